//! One bit of a large snapshot that is not as it was.

use std::fs;

use etcd_snapshot::Fault;
use lab::binaries::EtcdVersion;

use crate::member::Lab;

/// How many bits are drawn.
const BITS: u64 = 100;

#[test]
fn a_bit_of_a_snapshot_of_10_mb_is_found_and_etcdutl_does_not_see_it() {
    let mut lab = Lab::start(EtcdVersion::V3_6);
    lab.put("a/", 1100, 9000);
    let path = lab.snapshot();
    let mut bytes = fs::read(&path).unwrap();
    assert!(bytes.len() > 10_000_000, "{}", bytes.len());
    etcd_snapshot::verify(&bytes).unwrap();
    let mut at = 0x5eed_u64;
    for _ in 0..BITS {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bit = usize::try_from((at >> 16) % (bytes.len() as u64 * 8)).unwrap();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(etcd_snapshot::verify(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }

    // In the middle of a value.
    let value = b"a/00500a/00500a/00500a/00500";
    let place = bytes.windows(value.len()).position(|window| window == value).unwrap();
    bytes[place + 20] ^= 1;
    fs::write(&path, &bytes).unwrap();
    lab.status(&path);
    let error = etcd_snapshot::verify(&bytes).unwrap_err();
    assert!(matches!(error.fault, Fault::Trailer { .. }), "{error}");
}
