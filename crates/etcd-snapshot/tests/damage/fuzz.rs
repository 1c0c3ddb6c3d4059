//! Damage that is drawn from a seed: whatever a file says, it is read to an end, in time that goes with its size, without a panic.
//!
//! fuzz/ has the same for libFuzzer (`make fuzz`).

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use etcd_snapshot::{Limits, ReadAt, Stream, verify_within};

use crate::image::{COMPACTED, Image, KEPT, Numbers, PAGE};

/// Counts what is read.
struct Counting<'a> {
    bytes: &'a [u8],
    read: AtomicU64,
}

impl ReadAt for Counting<'_> {
    fn size(&self) -> io::Result<u64> {
        self.bytes.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.bytes.read_exact_at(buffer, offset)
    }
}

const NUMBERS: [u64; 12] =
    [0, 1, 2, 3, 0x10, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

/// Changes a file in one way.
fn mutate(image: &mut Image, numbers: &mut Numbers) {
    let len = image.0.len() - 32;
    // Half of all changes are where the structure is: meta pages, headers of pages and elements.
    let at =
        if numbers.below(2) == 0 { numbers.below(len / PAGE) * PAGE + numbers.below(160) } else { numbers.below(len) };
    let at = at.min(len - 8);
    match numbers.below(8) {
        0 => image.0[at] ^= 1 << numbers.below(8),
        1 => image.0[at] = u8::try_from(numbers.below(256)).unwrap(),
        2 | 3 => {
            let size = [1, 2, 4, 8][numbers.below(4)];
            let value = NUMBERS[numbers.below(NUMBERS.len())].to_le_bytes();
            image.put(at & !(size - 1), &value[..size]);
        }
        4 => {
            // A number that is off by a little.
            let value = image.u64(at & !7).wrapping_add(numbers.next() % 5).wrapping_sub(2);
            image.put(at & !7, value.to_le_bytes());
        }
        5 => {
            let (from, to) = (numbers.below(len / PAGE) * PAGE, numbers.below(len / PAGE) * PAGE);
            let page = image.0[from..from + PAGE].to_vec();
            image.put(to, page);
        }
        6 => {
            let (from, size) = (numbers.below(len - 64), 1 + numbers.below(63));
            let some = image.0[from..from + size].to_vec();
            image.put(at.min(len - 64), some);
        }
        _ => {
            // A page that refers to a page: one in the range.
            let page = numbers.below(len / PAGE) as u64;
            image.put(at & !7, page.to_le_bytes());
        }
    }
}

/// Reads so many damaged files.
fn run(seed: u64, rounds: u32) {
    let mut numbers = Numbers(seed);
    let mut sound = 0;
    for round in 0..rounds {
        let kept = KEPT.get(numbers.below(KEPT.len() + 1)).map_or(COMPACTED, |(_, bytes)| bytes);
        let mut image = Image(kept.to_vec());
        for _ in 0..=numbers.below(6) {
            mutate(&mut image, &mut numbers);
        }
        match numbers.below(8) {
            0 => image.0.truncate(numbers.below(image.0.len())),
            1 => image.0.truncate(image.0.len() - 32),
            2 => {}
            _ => drop(image.seal()),
        }
        let source = Counting { bytes: &image.0, read: AtomicU64::new(0) };
        let limits = Limits::default().with_key_table(512);
        let found = verify_within(&source, limits);
        let (read, size) = (source.read.into_inner(), image.0.len() as u64);
        // Once for the checksum, once for the tree, and the records once more for each pass; large pages twice.
        assert!(read <= 20 * size + 65536, "seed {seed} round {round}: {read} bytes read of {size}");

        let mut stream = Stream::new();
        let streamed = image.0.chunks(1 + numbers.below(5000)).try_for_each(|piece| stream.feed(piece));
        let streamed = streamed.and_then(|()| stream.finish());
        if let Ok(found) = found {
            sound += 1;
            let pages = found.pages;
            let all = pages.meta + pages.branch + pages.leaf + pages.overflow + pages.freelist + pages.free;
            assert_eq!(all, pages.total, "seed {seed} round {round}");
            let has_trailer = found.trailer == etcd_snapshot::Trailer::Verified;
            assert_eq!(streamed.is_ok(), has_trailer, "seed {seed} round {round}: {streamed:?}");
        }
    }
    // Some damage is to free pages or values: were none found sound, the rest would not have been reached.
    assert!(sound > 0 && sound < rounds, "{sound} of {rounds}");
}

#[test]
fn whatever_a_file_says_it_is_read_to_an_end() {
    run(1, 4_000);
}

#[test]
#[ignore = "minutes: make test-long"]
fn whatever_many_files_say_they_are_read_to_an_end() {
    for seed in 2..102 {
        run(seed, 20_000);
    }
}
