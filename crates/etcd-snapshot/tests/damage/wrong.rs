//! One kind of damage each, under checksums that match, so that nothing but the damage can be found.

use etcd_snapshot::{Fault, FreelistFault, MetaFault, Order, Trailer};

use crate::image::{COMPACTED, Image, KEPT, PAGE};

const LEAF: u16 = 2;
const FREELIST: u16 = 0x10;

fn used() -> Image {
    Image::kept("used-3.6")
}

#[test]
fn kept_snapshots_are_sound_and_have_what_the_other_tests_damage() {
    for (name, bytes) in KEPT {
        let found = etcd_snapshot::verify(bytes).unwrap();
        assert_eq!(found.trailer, Trailer::Verified, "{name}");
        assert_eq!(found.file_size, bytes.len() as u64, "{name}");
        let pages = found.pages;
        let all = pages.meta + pages.branch + pages.leaf + pages.overflow + pages.freelist + pages.free;
        assert_eq!(all, pages.total, "{name}: {pages:?}");
        if name.starts_with("used") {
            assert!(
                pages.branch >= 1 && pages.leaf >= 3 && pages.overflow >= 1 && pages.free >= 1,
                "{name}: {pages:?}"
            );
        }
    }
}

#[test]
fn a_file_that_was_cut_off_anywhere_is_refused() {
    for (name, bytes) in KEPT {
        // At each page, with and without something after it, and at each sector of the first pages.
        let ends = (0..bytes.len()).step_by(PAGE).flat_map(|at| [at, at + 1, at + 32, at + PAGE - 1]);
        for end in ends.chain((0..3 * PAGE).step_by(512)).filter(|end| *end < bytes.len() - 32) {
            let found = etcd_snapshot::verify(&bytes[..end]).expect_err(&format!("{name} cut at {end}"));
            assert!(
                matches!(found.fault, Fault::Size(_) | Fault::Short(_) | Fault::HighWater { .. } | Fault::Meta { .. }),
                "{name} cut at {end}: {found}"
            );
        }
    }
}

#[test]
fn a_database_without_its_checksum_is_told_as_such() {
    let mut image = used();
    let whole = image.verify().unwrap();
    image.0.truncate(image.0.len() - 32);
    let found = image.verify().unwrap();
    assert_eq!(found.trailer, Trailer::Missing);
    assert_eq!((found.hash, found.revision, found.keys), (whole.hash, whole.revision, whole.keys));
    // bbolt makes its file larger ahead of need.
    image.0.resize(image.0.len() + 3 * PAGE, 0xff);
    assert_eq!(image.verify().unwrap().hash, whole.hash);
}

#[test]
fn of_a_database_file_the_newest_sound_meta_page_holds() {
    let mut image = used();
    image.0.truncate(image.0.len() - 32);
    for page in [0, PAGE] {
        let mut one = image.clone();
        one.0[page + 40] ^= 1;
        let found = one.verify().unwrap();
        assert_eq!((found.pages.sound_metas, found.hash), (1, image.verify().unwrap().hash));
    }
    image.0[40] ^= 1;
    image.0[PAGE + 40] ^= 1;
    assert!(matches!(image.fault(), (0, Fault::Meta { page: 0, why: MetaFault::Checksum { .. } })));
}

#[test]
fn a_checksum_that_does_not_match_is_told_when_nothing_inside_is_wrong() {
    let mut image = used();
    let last = image.0.len() - 1;
    image.0[last] ^= 0x80;
    let (at, fault) = image.fault();
    assert!(matches!(fault, Fault::Trailer { .. }), "{fault}");
    assert_eq!(at, image.0.len() as u64 - 32);
}

#[test]
fn meta_pages() {
    let wrong = |edit: &dyn Fn(&mut Image)| {
        let mut image = used();
        edit(&mut image);
        image.seal_trailer().fault()
    };
    let meta = |why| move |fault: &Fault| matches!(fault, Fault::Meta { page: 0, why: found } if *found == why);
    let (at, fault) = wrong(&|image| image.0[16] = 0);
    assert!(meta(MetaFault::Magic(0xed0c_da00))(&fault) && at == 0, "{fault}");
    let (_, fault) = wrong(&|image| image.0[20] = 3);
    assert!(meta(MetaFault::Version(3))(&fault), "{fault}");
    let (at, fault) = wrong(&|image| image.0[PAGE + 41] ^= 1);
    assert!(matches!(fault, Fault::Meta { page: 1, why: MetaFault::Checksum { .. } }) && at == 4096, "{fault}");
    // Swapped: each is sound, and in the place of the other.
    let (_, fault) = wrong(&|image| {
        let (first, second) = (image.0[..PAGE].to_vec(), image.0[PAGE..2 * PAGE].to_vec());
        image.put(0, second).put(PAGE, first);
    });
    assert!(meta(MetaFault::Header)(&fault), "{fault}");

    let sealed = |at: usize, bytes: &[u8]| {
        let mut image = used();
        image.put(at, bytes).seal().fault()
    };
    for size in [0_u32, 512, 4095, 1 << 31] {
        let (_, fault) = sealed(24, &size.to_le_bytes());
        assert!(meta(MetaFault::PageSize(size))(&fault), "{fault}");
    }
    // Each sound, not written from one: another root, more pages, an older transaction.
    for (at, value) in [(32, 3_u64), (56, 5), (64, 1)] {
        let (at, fault) = sealed(PAGE + at, &value.to_le_bytes());
        assert!(matches!(fault, Fault::MetasDiffer) && at == 4096, "{fault}");
    }
    for pages in [0, 2, 10_000, u64::MAX] {
        let mut image = used();
        image.put(56, pages.to_le_bytes()).put(PAGE + 56, pages.to_le_bytes());
        let (at, fault) = image.seal().fault();
        assert!(matches!(fault, Fault::HighWater { pages: found, .. } if found == pages) && at == 56, "{fault}");
    }
    for root in [0, 1, 10_000, u64::MAX] {
        let mut image = used();
        image.put(32, root.to_le_bytes()).put(PAGE + 32, root.to_le_bytes());
        let (at, fault) = image.seal().fault();
        assert!(matches!(fault, Fault::PageOutside { page, .. } if page == root) && at == 32, "{fault}");
    }
}

#[test]
fn pages_that_are_not_what_the_tree_needs() {
    let image = used();
    let (keys, leaf) = (image.keys(), image.child(image.keys(), 1));
    let sealed = |at: usize, bytes: &[u8]| {
        let mut image = image.clone();
        image.put(at, bytes).seal_trailer().fault()
    };
    let page = (leaf / PAGE) as u64;
    let (at, fault) = sealed(leaf, &[0; PAGE]);
    assert!(matches!(fault, Fault::PageNumber { found: 0, .. }) && at == leaf as u64, "{fault}");
    for flags in [0_u16, 3, 4, 0x10, 0x8002] {
        let (at, fault) = sealed(leaf + 8, &flags.to_le_bytes());
        assert!(
            matches!(fault, Fault::PageKind { flags: found, .. } if found == flags) && at == leaf as u64,
            "{fault}"
        );
    }
    let (_, fault) = sealed(leaf + 10, &0_u16.to_le_bytes());
    assert!(matches!(fault, Fault::PageEmpty(found) if found == page), "{fault}");
    // The one before ends where the headers of so many elements would.
    let (_, fault) = sealed(leaf + 10, &u16::MAX.to_le_bytes());
    assert!(matches!(fault, Fault::ElementPosition { element: 0, .. }), "{fault}");
    let (_, fault) = sealed(leaf + 12, &u32::MAX.to_le_bytes());
    assert!(matches!(fault, Fault::PageOutside { overflow: u32::MAX, .. }), "{fault}");
    let (_, fault) = sealed(leaf + 12, &1_u32.to_le_bytes());
    assert!(matches!(fault, Fault::PageTwice(_) | Fault::PageSize { overflow: 1, .. }), "{fault}");

    // The branch is its own child, and one leaf is that of two.
    let (at, fault) = sealed(keys + 16 + 8, &((keys / PAGE) as u64).to_le_bytes());
    assert!(matches!(fault, Fault::PageTwice(found) if found == (keys / PAGE) as u64), "{fault}");
    assert_eq!(at, keys as u64 + 16);
    let (at, fault) = sealed(keys + 16 + 8, &page.to_le_bytes());
    assert!(matches!(fault, Fault::KeyOrder { element: 0, why: Order::BeyondParent }), "{at} {fault}");
    let (_, fault) = sealed(keys + 16 + 16 + 8, &((image.child(keys, 0) / PAGE) as u64).to_le_bytes());
    assert!(matches!(fault, Fault::PageTwice(_)), "{fault}");
    // A meta page, and one that does not exist.
    for outside in [0, 1, 1 << 40] {
        let (_, fault) = sealed(keys + 16 + 8, &u64::to_le_bytes(outside));
        assert!(matches!(fault, Fault::PageOutside { page, .. } if page == outside), "{fault}");
    }
}

#[test]
fn a_tree_that_is_deeper_than_any_is_not_followed() {
    let mut image = used();
    let key = [1_u8];
    let pages: Vec<u64> = (0..100).map(|_| image.add_page()).collect();
    for (page, next) in pages.iter().zip(pages.iter().skip(1)) {
        let at = usize::try_from(*page).unwrap() * PAGE;
        image.header(*page, 1, 1, 0);
        image.put(at + 16, 16_u32.to_le_bytes()).put(at + 20, 1_u32.to_le_bytes()).put(at + 24, next.to_le_bytes());
        image.put(at + 32, key);
    }
    image.put(32, pages[0].to_le_bytes()).put(PAGE + 32, pages[0].to_le_bytes());
    let (_, fault) = image.seal().fault();
    assert!(matches!(fault, Fault::Depth(32)), "{fault}");
}

#[test]
fn elements_and_keys() {
    let image = used();
    let (keys, leaf) = (image.keys(), image.child(image.keys(), 1));
    let elements = image.elements(leaf);
    let sealed = |at: usize, bytes: &[u8]| {
        let mut image = image.clone();
        image.put(at, bytes).seal_trailer().fault()
    };
    let second = &elements[1];
    let (at, fault) = sealed(second.at, &2_u32.to_le_bytes());
    assert!(matches!(fault, Fault::ElementFlags { element: 1, flags: 2 }) && at == second.at as u64, "{fault}");
    for position in [0_u32, 16, u32::MAX] {
        let (_, fault) = sealed(second.at + 4, &position.to_le_bytes());
        assert!(matches!(fault, Fault::ElementPosition { element: 1, .. }), "{fault}");
    }
    for size in [0_u32, 32769, u32::MAX] {
        let (_, fault) = sealed(second.at + 8, &size.to_le_bytes());
        assert!(matches!(fault, Fault::KeySize { element: 1, size: found } if found == u64::from(size)), "{fault}");
    }
    let (_, fault) = sealed(second.at + 12, &u32::MAX.to_le_bytes());
    assert!(matches!(fault, Fault::ElementOutside { element: 1 }), "{fault}");

    let key_at = |index: usize| elements[index].value_at - elements[index].key.len();
    // The same key twice; one lower; one above the next page's.
    let (at, fault) = sealed(key_at(1), &elements[0].key);
    assert!(matches!(fault, Fault::KeyOrder { element: 1, why: Order::Previous }), "{fault}");
    assert_eq!(at, key_at(1) as u64);
    let (_, fault) = sealed(key_at(0), &[0; 8]);
    assert!(matches!(fault, Fault::KeyOrder { element: 0, why: Order::BelowParent }), "{fault}");
    let (_, fault) = sealed(key_at(elements.len() - 1), &[0x7f; 8]);
    assert!(matches!(fault, Fault::KeyOrder { why: Order::BeyondParent, .. }), "{fault}");
    // In the branch: the second is below the first.
    let branch_key = keys + 32 + image.u32(keys + 32);
    let (_, fault) = sealed(branch_key, &[0; 17]);
    assert!(matches!(fault, Fault::KeyOrder { element: 1, why: Order::Previous }), "{fault}");
}

#[test]
fn buckets() {
    let image = used();
    let sealed = |at: usize, bytes: &[u8]| {
        let mut image = image.clone();
        image.put(at, bytes).seal_trailer().fault()
    };
    let key = image.bucket("key");
    let (_, fault) = sealed(key.at, &0_u32.to_le_bytes());
    assert!(matches!(fault, Fault::NotABucket), "{fault}");
    let (_, fault) = sealed(key.value_at - 3, &[0xff]);
    assert!(matches!(fault, Fault::Bucket(why) if why.contains("name")), "{fault}");
    // A root page of 0 says that the bucket lies in its entry; there is none.
    let (_, fault) = sealed(key.value_at, &0_u64.to_le_bytes());
    assert!(matches!(fault, Fault::Bucket(_)), "{fault}");
    let cluster = image.bucket("cluster");
    assert_eq!(image.u64(cluster.value_at), 0, "it lies in its entry");
    let (_, fault) = sealed(cluster.value_at, &7_u64.to_le_bytes());
    assert!(matches!(fault, Fault::Bucket(why) if why.contains("more in its entry")), "{fault}");
    let (_, fault) = sealed(cluster.value_at + 16 + 8, &1_u16.to_le_bytes());
    assert!(matches!(fault, Fault::Bucket(why) if why.contains("header of no leaf")), "{fault}");
    let (_, fault) = sealed(cluster.value_at + 16 + 10, &0_u16.to_le_bytes());
    assert!(matches!(fault, Fault::Bucket(why) if why.contains("not as long")), "{fault}");
    // An entry of bucket `key` that says that it is a bucket.
    let leaf = image.child(image.keys(), 0);
    let (_, fault) = sealed(leaf + 16, &1_u32.to_le_bytes());
    assert!(matches!(fault, Fault::Bucket(why) if why.contains("lies in another")), "{fault}");
}

#[test]
fn records_and_entries() {
    let image = used();
    let elements = image.elements(image.child(image.keys(), 1));
    let sealed = |at: usize, bytes: &[u8]| {
        let mut image = image.clone();
        image.put(at, bytes).seal_trailer().fault()
    };
    let first = &elements[0];
    // Where no key of a parent is above it, so that it is in order still.
    let last = usize::from(image.u16(image.keys() + 10)) - 1;
    let second = &image.elements(image.child(image.keys(), last))[1];
    let (_, fault) = sealed(second.value_at - second.key.len() + 8, b"`");
    assert!(matches!(fault, Fault::Record(why) if why.contains("no revision")), "{fault}");
    // The key's length reaches far beyond the value.
    let (_, fault) = sealed(first.value_at + 1, &[0x7f]);
    assert!(matches!(fault, Fault::Record(why) if why.contains("KeyValue")), "{fault}");
    let (_, fault) = sealed(first.value_at, &[0xff; 11]);
    assert!(matches!(fault, Fault::Record(why) if why.contains("64 bits")), "{fault}");
    // Behind the key come tag and value of create_revision, then of mod_revision.
    let length = usize::from(image.0[first.value_at + 1]);
    let tag = (first.value_at..).find(|at| *at > first.value_at + 1 + length && image.0[*at] == 0x18).unwrap();
    let (_, fault) = sealed(tag + 1, &[image.0[tag + 1] ^ 1]);
    assert!(matches!(fault, Fault::Record(why) if why.contains("another revision")), "{fault}");

    let meta = image.bucket("meta");
    let entries: Vec<_> = image.elements(meta.value_at + 16);
    let entry = |name: &[u8]| entries.iter().find(|entry| entry.key == name).unwrap();
    for (name, why) in [("confState", "cannot be read"), ("storageVersion", "is no version")] {
        let (_, fault) = sealed(entry(name.as_bytes()).value_at, b"!");
        assert!(
            matches!(&fault, Fault::Entry { bucket: "meta", key, why: found } if key == name && found.contains(why)),
            "{fault}"
        );
    }
}

#[test]
fn a_list_of_free_pages_as_bbolt_writes_it() {
    let image = Image(COMPACTED.to_vec());
    let found = image.verify().unwrap();
    assert_eq!((found.pages.freelist, found.pages.free, found.pages.total), (1, 4, 20));
    assert_eq!(found.hash, used().verify().unwrap().hash);
    // The same with each of its entries one lower: used, or out of order.
    let list = usize::try_from(image.u64(PAGE + 48).max(image.u64(48))).unwrap() * PAGE;
    for entry in (0..4).map(|index| list + 16 + 8 * index) {
        let mut other = image.clone();
        other.put(entry, (image.u64(entry) - 1).to_le_bytes());
        let (_, fault) = other.fault();
        assert!(matches!(fault, Fault::Freelist(_) | Fault::PageLost(_)), "{fault}");
    }
}

#[test]
fn a_list_of_free_pages() {
    let image = used();
    let free = image.verify().unwrap().pages.free;
    let used: Vec<bool> = (0..image.0.len() / PAGE).map(|page| page < 2 || is_used(&image, page as u64)).collect();
    let all_free: Vec<u64> = (0_u64..).zip(&used).filter(|(_, used)| !**used).map(|(page, _)| page).collect();
    assert_eq!(all_free.len() as u64, free);
    let found = with_list(&image, &all_free).verify().unwrap();
    assert_eq!((found.pages.freelist, found.pages.free), (1, free));

    // A free page that is missing in it is lost.
    let (at, fault) = with_list(&image, &all_free[1..]).fault();
    assert!(matches!(fault, Fault::PageLost(page) if page == all_free[0]), "{fault}");
    assert_eq!(at, all_free[0] * PAGE as u64);
    let mut twice = all_free.clone();
    twice.push(all_free[all_free.len() - 1]);
    let (_, fault) = with_list(&image, &twice).fault();
    assert!(matches!(fault, Fault::Freelist(FreelistFault::Order(_))), "{fault}");
    let mut outside = all_free.clone();
    outside.push(1 << 40);
    let (_, fault) = with_list(&image, &outside).fault();
    assert!(matches!(fault, Fault::Freelist(FreelistFault::Outside(_))), "{fault}");
    for count in [1000_u16, 0xffff] {
        let mut large = with_list(&image, &all_free);
        let list = large.0.len() - 32 - PAGE;
        large.put(list + 10, count.to_le_bytes());
        // With that last count the first entry is the real one.
        large.put(list + 16, u64::MAX.to_le_bytes());
        let (_, fault) = large.seal().fault();
        assert!(matches!(fault, Fault::Freelist(FreelistFault::Count { .. })), "{fault}");
    }
    let mut counted_inside = with_list(&image, &[&[all_free.len() as u64], all_free.as_slice()].concat());
    let list = counted_inside.0.len() - 32 - PAGE;
    counted_inside.put(list + 10, 0xffff_u16.to_le_bytes());
    assert_eq!(counted_inside.seal().verify().unwrap().pages.freelist, 1);
    let mut leaf = with_list(&image, &all_free);
    let (_, fault) = leaf.put(list + 8, LEAF.to_le_bytes()).seal().fault();
    assert!(matches!(fault, Fault::PageKind { flags: LEAF, .. }), "{fault}");
}

/// The image with a list of free pages at its end.
fn with_list(image: &Image, pages: &[u64]) -> Image {
    let mut image = image.clone();
    let number = image.add_page();
    image.header(number, FREELIST, u16::try_from(pages.len()).unwrap(), 0);
    let at = usize::try_from(number).unwrap() * PAGE;
    for (index, page) in pages.iter().enumerate() {
        image.put(at + 16 + 8 * index, page.to_le_bytes());
    }
    for meta in [0, PAGE] {
        image.put(meta + 48, number.to_le_bytes());
    }
    image.seal();
    image
}

/// Whether a page is used: then no list of free pages may have it.
fn is_used(image: &Image, page: u64) -> bool {
    match with_list(image, &[page]).fault() {
        (_, Fault::Freelist(FreelistFault::Used(found))) => found == page,
        (_, Fault::PageLost(_)) => false,
        (_, other) => panic!("{other}"),
    }
}
