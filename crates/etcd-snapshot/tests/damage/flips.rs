//! One bit that is not as it was.

use crate::image::{Image, KEPT, Numbers, PAGE};

/// Flips one bit after the other, or those that are drawn, and answers which are not found.
fn missed(image: &mut Image, bits: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut missed = Vec::new();
    for bit in bits {
        let (at, mask) = (bit / 8, 1 << (bit % 8));
        image.0[at] ^= mask;
        if image.verify().is_ok() {
            missed.push(bit);
        }
        image.0[at] ^= mask;
    }
    missed
}

#[test]
fn each_byte_of_a_small_snapshot_counts() {
    let mut image = Image::kept("fresh-3.5");
    let bits = (0..image.0.len()).map(|at| at * 8 + at % 8);
    assert_eq!(missed(&mut image, bits), Vec::<usize>::new());
}

#[test]
#[ignore = "a minute: make test-long"]
fn each_bit_of_a_small_snapshot_counts() {
    let mut image = Image::kept("fresh-3.5");
    let bits = image.0.len() * 8;
    assert_eq!(missed(&mut image, 0..bits), Vec::<usize>::new());
}

#[test]
fn bits_that_are_drawn_of_larger_ones_count() {
    let mut numbers = Numbers(0x5eed);
    for (name, bytes) in KEPT {
        let mut image = Image::kept(name);
        let bits: Vec<_> = (0..2000).map(|_| numbers.below(bytes.len() * 8)).collect();
        assert_eq!(missed(&mut image, bits.into_iter()), Vec::<usize>::new(), "{name}");
    }
}

/// What is found without the checksum of the whole: each bit of the meta pages, of the headers of all pages that are used, and of
/// the headers of their elements, but for the length of the last value of a page, which only its contents can tell.
#[test]
fn the_structure_tells_of_each_bit_that_holds_it_together() {
    for name in ["used-3.5", "used-3.6", "used-3.7"] {
        let mut image = Image::kept(name);
        image.0.truncate(image.0.len() - 32);
        let keys = image.keys();
        let leaves: Vec<_> = (0..usize::from(image.u16(keys + 10))).map(|index| image.child(keys, index)).collect();
        let mut bytes: Vec<usize> = Vec::new();
        for page in [image.root(), keys].iter().chain(&leaves) {
            let count = usize::from(image.u16(page + 10));
            bytes.extend(*page..page + 16 + 16 * count);
            if image.u16(page + 8) == 2 {
                bytes.truncate(bytes.len() - 4);
            }
        }
        let bits = bytes.iter().flat_map(|at| (0..8).map(move |bit| at * 8 + bit));
        assert_eq!(missed(&mut image, bits), Vec::<usize>::new(), "{name}");
    }
}

#[test]
fn the_meta_pages_of_a_snapshot_tell_of_each_bit() {
    let image = Image::kept("used-3.6");
    for bit in [0, PAGE].iter().flat_map(|page| page * 8..(page + 80) * 8) {
        let mut flipped = image.clone();
        flipped.0[bit / 8] ^= 1 << (bit % 8);
        assert!(flipped.seal_trailer().verify().is_err(), "bit {bit}");
    }
}
