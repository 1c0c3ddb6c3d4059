//! Snapshots that are checked while they pass.

use etcd_snapshot::{Error, Fault, Stream, Streamed, verify_streamed};
use sha2::{Digest as _, Sha256};

use crate::image::{Image, KEPT, PAGE};

fn pass(bytes: &[u8], piece: usize) -> Result<Streamed, Error> {
    let mut stream = Stream::new();
    bytes.chunks(piece).try_for_each(|piece| stream.feed(piece))?;
    stream.finish()
}

/// How many bytes have come when it is told that something is wrong; the fault.
fn told(image: &Image) -> (usize, Fault) {
    let mut stream = Stream::new();
    for (number, piece) in image.0.chunks(512).enumerate() {
        if let Err(error) = stream.feed(piece) {
            return ((number + 1) * 512, error.fault);
        }
    }
    (image.0.len(), stream.finish().expect_err("it is found sound").fault)
}

#[test]
fn pieces_of_any_size_are_one_snapshot() {
    for (name, bytes) in KEPT {
        let database = bytes.len() - 32;
        for piece in [1, 7, 31, 32, 33, 100, 4096, 5000, 65536, bytes.len()] {
            let found = pass(bytes, piece).unwrap_or_else(|error| panic!("{name} in pieces of {piece}: {error}"));
            assert_eq!(found.size, bytes.len() as u64);
            assert_eq!(found.sha256[..], Sha256::digest(&bytes[..database])[..]);
        }
    }
}

#[test]
fn what_a_stream_was_written_to_is_verified_but_for_its_checksum() {
    for (name, bytes) in KEPT {
        let image = Image(bytes.to_vec());
        let (passed, verified) = (pass(bytes, 4096).unwrap(), image.verify().unwrap());
        assert_eq!(verified.file_sha256[..], Sha256::digest(bytes)[..], "{name}");
        assert_eq!(verify_streamed(&image.0, &passed).unwrap(), verified, "{name}");
        // A file that has not all of it, or more.
        for other in [&bytes[..bytes.len() - 32], &bytes[..bytes.len() - PAGE], &[bytes, &[0; PAGE]].concat()] {
            let error = verify_streamed(other, &passed).unwrap_err();
            assert!(matches!(error.fault, Fault::Size(_)), "{name}: {error}");
        }
    }
    let mut image = Image::kept("used-3.6");
    let passed = pass(&image.0, 4096).unwrap();
    let root = image.root();
    image.0[root] ^= 1;
    let error = verify_streamed(&image.0, &passed).unwrap_err();
    assert!(matches!(error.fault, Fault::PageNumber { .. }), "{error}");
}

#[test]
fn a_stream_that_ends_early_or_late_is_refused() {
    let Image(bytes) = Image::kept("used-3.7");
    for end in (0..bytes.len()).step_by(512).chain([bytes.len() - 1, bytes.len() - 32]) {
        let error = pass(&bytes[..end], 4096).expect_err(&format!("it ends at {end}"));
        assert!(matches!(error.fault, Fault::Short(_) | Fault::HighWater { .. }), "{end}: {error}");
    }
    for more in [1, 32, PAGE, PAGE + 32] {
        let error = pass(&[bytes.clone(), vec![0; more]].concat(), 4096).expect_err(&format!("{more} bytes more"));
        assert!(matches!(error.fault, Fault::HighWater { .. }), "{more}: {error}");
    }
}

#[test]
fn what_is_wrong_at_the_front_is_told_before_the_rest_has_come() {
    let mut image = Image::kept("used-3.7");
    image.0[16] ^= 1;
    let (came, fault) = told(&image);
    assert!(matches!(fault, Fault::Meta { page: 0, .. }) && came <= 1024, "{came}: {fault}");
    let mut image = Image::kept("used-3.7");
    image.0[PAGE + 40] ^= 1;
    let (came, fault) = told(&image);
    assert!(matches!(fault, Fault::Meta { page: 1, .. }) && came <= PAGE + 1024, "{came}: {fault}");
    let mut image = Image::kept("used-3.7");
    image.put(PAGE + 64, 1_u64.to_le_bytes()).seal();
    let (came, fault) = told(&image);
    assert!(matches!(fault, Fault::MetasDiffer) && came <= PAGE + 1024, "{came}: {fault}");
    let mut image = Image::kept("used-3.7");
    let root = image.root();
    image.0[root] ^= 1;
    let (came, fault) = told(image.seal());
    assert!(matches!(fault, Fault::PageNumber { .. }) && came <= root + 1024, "{came}: {fault}");
}

#[test]
fn a_stream_that_does_not_end_is_told_as_soon_as_it_is_too_long() {
    let mut image = Image::kept("used-3.7");
    let whole = image.0.len();
    image.0.resize(whole + 100 * PAGE, 0);
    let (came, fault) = told(&image);
    assert!(matches!(fault, Fault::HighWater { .. }) && came <= whole + 1024, "{came}: {fault}");
}

#[test]
fn a_bit_that_flips_on_the_way_is_told_at_the_end() {
    let image = Image::kept("used-3.7");
    for at in [3 * PAGE + 500, image.0.len() - 33, image.0.len() - 32, image.0.len() - 1] {
        let mut flipped = image.clone();
        flipped.0[at] ^= 4;
        let (_, fault) = told(&flipped);
        assert!(matches!(fault, Fault::Trailer { .. } | Fault::PageNumber { .. }), "{at}: {fault}");
    }
}
