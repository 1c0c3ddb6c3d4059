//! Whatever a file says, it is read to an end. Each input is read as it is, and under checksums that match: else nearly all would end there.

#![no_main]

use etcd_snapshot::{Limits, Part, Stream, keys, verify_within};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};

const PAGE: usize = 4096;
const TRAILER: usize = 32;

fuzz_target!(|data: &[u8]| {
    read(data);
    let mut sealed = data.to_vec();
    for meta in [0, PAGE] {
        if let Some(page) = sealed.get_mut(meta..meta + 80) {
            let sum = page[16..72].iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
                (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
            page[72..80].copy_from_slice(&sum.to_le_bytes());
        }
    }
    if sealed.len() % 512 == TRAILER {
        let (database, trailer) = sealed.split_at_mut(data.len() - TRAILER);
        trailer.copy_from_slice(&Sha256::digest(database));
    }
    read(&sealed);
});

fn read(data: &[u8]) {
    let limits = Limits::default().with_key_table(512);
    let _ = verify_within(data, limits);
    let mut shown = 0;
    let mut count = |part: Part<'_>| shown += u64::from(matches!(part, Part::Key { .. }));
    if let Ok(Some(said)) = keys(data, limits, &mut count) {
        assert_eq!(shown, said);
    }
    let mut stream = Stream::new();
    if data.chunks(1000).try_for_each(|piece| stream.feed(piece)).is_ok() {
        let _ = stream.finish();
    }
}
