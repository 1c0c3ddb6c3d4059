//! `quorate etcd verify` on files of this disk.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A snapshot of real etcd 3.6, kept with the crate that reads it.
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crates/etcd-snapshot/fuzz/corpus/used-3.6.db");

fn verify(path: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["etcd", "verify"]).arg(path).args(args).env_clear().output().unwrap()
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_snapshot_that_is_whole_is_told_with_what_it_holds() {
    let out = verify(Path::new(KEPT), &[]);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let text = said(&out.stdout);
    assert!(text.starts_with(&format!("{KEPT}: whole\n  checksum    matches\n")), "{text}");
    assert!(text.contains("version     cluster 3.6.0, storage 3.6.0\n") && text.contains("member      k1 "), "{text}");
    let out = verify(Path::new(KEPT), &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&json["trailer"], &json["storageVersion"]), (&"verified".into(), &"3.6.0".into()), "{json}");
    let snapshot = etcd_snapshot::verify(&fs::File::open(KEPT).unwrap()).unwrap();
    assert_eq!(json["hash"], snapshot.hash);
    assert_eq!(json["members"][0]["id"], snapshot.members[0].id);
}

#[test]
fn a_file_in_which_something_is_wrong_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(KEPT).unwrap();
    let path = dir.path().join("damaged.db");
    let wrong = |bytes: &[u8], code: i32, what: &str| {
        fs::write(&path, bytes).unwrap();
        let out = verify(&path, &[]);
        assert_eq!(out.status.code(), Some(code), "{what}: {out:?}");
        let line = said(&out.stderr);
        assert!(line.lines().count() == 1 && line.starts_with(&format!("error: {}: ", path.display())), "{line}");
        assert!(line.contains(what) && out.stdout.is_empty(), "{line}");
    };
    let mut flipped = whole.clone();
    let value = whole.len() - 40;
    flipped[value] ^= 1;
    wrong(&flipped, 21, "the checksum of the file is");
    wrong(&whole[..8192], 21, "at byte 56: the database has");
    wrong(b"not a snapshot", 21, "the size, 14 bytes, is that of no snapshot");
    // Nothing wrong, and not proven.
    fs::write(&path, &whole[..whole.len() - 32]).unwrap();
    let out = verify(&path, &[]);
    assert_eq!(out.status.code(), Some(12), "{out:?}");
    assert!(said(&out.stdout).contains("checksum    none: a database out of a data directory"), "{out:?}");

    for (path, what) in [
        (dir.path().to_path_buf(), "is no file"),
        (dir.path().join("missing"), "No such file"),
        ("s3://bucket".into(), "error: s3://bucket: expected s3://BUCKET/KEY"),
    ] {
        let out = verify(&path, &[]);
        assert_eq!(out.status.code(), Some(2), "{out:?}");
        assert!(said(&out.stderr).contains(what), "{out:?}");
    }
}
