//! What is read is what `etcdutl snapshot status` prints, and what the member itself says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use etcd_snapshot::{Limits, Part, Snapshot, Stream, Trailer, keys};
use lab::binaries::EtcdVersion;
use lab::etcd::Join;
use serde_json::{Value, json};

use crate::member::Lab;

/// Verifies a file and compares.
fn compare(lab: &Lab, path: &Path, what: &str) -> Snapshot {
    let found = etcd_snapshot::verify(&File::open(path).unwrap()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let said = lab.status(path);
    // etcdutl of 3.5 counts all entries, later ones the keys that are there, and tell the version of what is stored.
    let keys = if lab.version == EtcdVersion::V3_5 { Some(found.entries) } else { found.keys };
    let mut wanted =
        json!({"hash": found.hash, "revision": found.revision, "totalKey": keys, "totalSize": found.total_size});
    if lab.version != EtcdVersion::V3_5 {
        wanted["version"] = json!(found.storage_version.as_deref().unwrap_or_default());
    }
    assert_eq!(said, wanted, "{what}");
    let pages = found.pages;
    let all = pages.meta + pages.branch + pages.leaf + pages.overflow + pages.freelist + pages.free;
    assert_eq!(all, pages.total, "{what}: {pages:?}");
    // The same keys in several passes.
    let small = Limits::default().with_key_table(4096).with_passes(u64::MAX);
    let again = etcd_snapshot::verify_within(&File::open(path).unwrap(), small).unwrap();
    assert_eq!(again, found, "{what}");
    found
}

/// Verifies a snapshot, which also has to pass as a stream.
fn check(lab: &mut Lab, what: &str) -> Snapshot {
    let path = lab.snapshot();
    let found = compare(lab, &path, what);
    assert_eq!((found.trailer, found.pages.sound_metas), (Trailer::Verified, 2), "{what}");
    assert_eq!(found.file_size, found.total_size + 32, "{what}");
    // A member says 1 before anything is written.
    assert_eq!(found.revision.max(1), lab.revision(), "{what}");

    let (mut stream, mut file, mut piece) = (Stream::new(), File::open(&path).unwrap(), vec![0; 32 * 1024]);
    loop {
        let size = file.read(&mut piece).unwrap();
        if size == 0 {
            break;
        }
        stream.feed(&piece[..size]).unwrap();
    }
    assert_eq!(stream.finish().unwrap().size, found.file_size, "{what}");
    same_keys(lab, &path, &found, what);
    fs::remove_file(path).unwrap();
    found
}

/// The walk over keys shows what the member answers, which nobody has written to since: each with its last revision and value.
fn same_keys(lab: &Lab, path: &Path, snapshot: &Snapshot, what: &str) {
    let said: Value = serde_json::from_str(&lab.etcdctl(&["get", "", "--from-key", "--write-out=json"])).unwrap();
    let bytes = |field: &Value| STANDARD.decode(field.as_str().unwrap_or_default()).unwrap();
    let said = said["kvs"].as_array().map_or(&[][..], Vec::as_slice).iter();
    let wanted: BTreeMap<Vec<u8>, (i64, Vec<u8>)> = said
        .map(|pair| (bytes(&pair["key"]), (pair["mod_revision"].as_i64().unwrap(), bytes(&pair["value"]))))
        .collect();
    let small = Limits::default().with_key_table(4096).with_passes(u64::MAX);
    for limits in [Limits::default(), small] {
        let (mut found, mut last) = (BTreeMap::new(), Vec::new());
        let count = keys(&File::open(path).unwrap(), limits, &mut |part| match part {
            Part::Key { key, revision } => {
                last = key.to_vec();
                assert_eq!(found.insert(last.clone(), (revision, Vec::new())), None, "{what}: {key:?} twice");
            }
            Part::Value(piece) => found.get_mut(&last).unwrap().1.extend_from_slice(piece),
        });
        assert_eq!(count.unwrap(), snapshot.keys, "{what}");
        // Not as a whole: it has megabytes.
        assert!(found.keys().eq(wanted.keys()), "{what}: {:?}", found.keys());
        assert!(found == wanted, "{what}: revisions or values differ");
    }
}

fn live(lab: &Lab) -> u64 {
    let all = json!({"key": "AA==", "range_end": "AA==", "count_only": true});
    let answer = lab.call("/v3/kv/range", &all);
    // The gateway leaves 0 out.
    answer["count"].as_str().map_or(0, |count| count.parse().unwrap())
}

fn everything_that_a_member_stores(version: EtcdVersion) {
    let mut lab = Lab::start(version);
    let fresh = check(&mut lab, "fresh");
    assert_eq!(fresh.keys, Some(live(&lab)));
    let id = lab.member().id();
    assert_eq!(fresh.members.iter().map(|member| (member.id, member.name.as_str())).collect::<Vec<_>>(), [(id, "k1")]);
    assert_eq!(fresh.members[0].client_urls, [lab.member().endpoint()]);
    assert_eq!(fresh.conf_state.as_ref().map(|state| state.voters.clone()), Some(vec![id]));
    let series = version.number().rsplit_once('.').unwrap().0;
    assert_eq!(fresh.cluster_version.as_deref(), Some(format!("{series}.0").as_str()));
    let stored = (version != EtcdVersion::V3_5).then(|| format!("{series}.0"));
    assert_eq!(fresh.storage_version, stored);
    assert!(fresh.consistent_index.is_some() && fresh.term.is_some());

    lab.put("many/", 3000, 60);
    let many = check(&mut lab, "many keys");
    assert_eq!(many.keys, Some(3000));
    assert!(many.pages.branch >= 1, "{:?}", many.pages);
    lab.put("large/", 6, 1_000_000);
    let large = check(&mut lab, "large values");
    assert!(large.pages.overflow >= 6 * 244, "{:?}", large.pages);
    let lease = lab.call("/v3/lease/grant", &json!({"TTL": "6000"}));
    lab.call("/v3/kv/put", &json!({"key": "bGVhc2U=", "value": "eA==", "lease": lease["ID"]}));
    let leases = check(&mut lab, "a lease");
    assert_eq!(leases.buckets.iter().find(|bucket| bucket.name == "lease").map(|bucket| bucket.entries), Some(1));

    lab.put("many/00", 100, 30);
    // Over what is there.
    lab.put("many/", 50, 70);
    lab.delete("many/01");
    lab.delete("large/");
    let deleted = check(&mut lab, "deletions");
    assert_eq!(deleted.keys, Some(live(&lab)));
    assert_eq!(deleted.scheduled_compaction, None);
    lab.put("many/01", 20, 30);
    let revision = lab.revision();
    lab.compact(revision - 1);
    let compacted = check(&mut lab, "compaction");
    assert_eq!(compacted.keys, Some(live(&lab)));
    assert_eq!(compacted.finished_compaction, Some(revision - 1));
    assert_eq!(compacted.scheduled_compaction, Some(revision - 1));
    assert!(compacted.pages.free > 1000, "fragmented: {:?}", compacted.pages);
    lab.call("/v3/maintenance/defragment", &json!({}));
    let defragmented = check(&mut lab, "defragmented");
    assert!(defragmented.pages.free < 10 && defragmented.total_size < compacted.total_size, "{:?}", defragmented.pages);
    assert_eq!((defragmented.hash, defragmented.keys), (compacted.hash, compacted.keys));

    let learner = lab.cluster.add_member_unstarted(Join::Learner).unwrap();
    let added = check(&mut lab, "a learner");
    let stored: Vec<_> = added.members.iter().filter(|member| member.is_learner).collect();
    assert!(matches!(stored.as_slice(), [member] if member.id == learner && member.name.is_empty()), "{stored:?}");
    assert_eq!(added.conf_state.map(|state| state.learners), Some(vec![learner]));
    lab.etcdctl(&["member", "remove", &format!("{learner:x}")]);
    let removed = check(&mut lab, "a member that was removed");
    assert_eq!((removed.members.len(), removed.removed_members.as_slice()), (1, [learner].as_slice()));
    lab.call("/v3/maintenance/alarm", &json!({"action": "ACTIVATE", "memberID": id.to_string(), "alarm": "NOSPACE"}));
    let alarmed = check(&mut lab, "an alarm");
    assert_eq!(alarmed.buckets.iter().find(|bucket| bucket.name == "alarm").map(|bucket| bucket.entries), Some(1));
    lab.call("/v3/maintenance/alarm", &json!({"action": "DEACTIVATE", "memberID": id.to_string(), "alarm": "NOSPACE"}));
    assert!(!alarmed.auth_enabled);
    lab.authenticate();
    assert!(check(&mut lab, "authentication").auth_enabled);
}

#[test]
fn everything_that_3_5_stores() {
    everything_that_a_member_stores(EtcdVersion::V3_5);
}

#[test]
fn everything_that_3_6_stores() {
    everything_that_a_member_stores(EtcdVersion::V3_6);
}

#[test]
fn everything_that_3_7_stores() {
    everything_that_a_member_stores(EtcdVersion::V3_7);
}

#[test]
fn a_database_out_of_a_data_directory_and_one_that_was_restored() {
    for version in EtcdVersion::ALL {
        let mut lab = Lab::start(version);
        lab.put("a/", 500, 100);
        lab.delete("a/000");
        let snapshot = lab.snapshot();
        let wanted = etcd_snapshot::verify(&File::open(&snapshot).unwrap()).unwrap();
        lab.etcdutl(&[
            "snapshot",
            "restore",
            snapshot.to_str().unwrap(),
            "--data-dir=restored",
            "--name=k1",
            "--initial-cluster=k1=http://127.0.0.1:1",
            "--initial-advertise-peer-urls=http://127.0.0.1:1",
            "--bump-revision=1000000",
            "--mark-compacted",
        ])
        .unwrap();
        let restored = snapshot.with_file_name("restored/member/snap/db");
        let found = compare(&lab, &restored, "restored");
        assert_eq!((found.trailer, found.revision), (Trailer::Missing, wanted.revision + 1_000_000), "{version:?}");

        lab.member().stop().unwrap();
        let database = lab.cluster.dir().join("k1/etcd/member/snap/db");
        let found = compare(&lab, &database, "data directory");
        assert_eq!((found.trailer, found.keys), (Trailer::Missing, wanted.keys), "{version:?}");
    }
}
