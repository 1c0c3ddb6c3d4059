//! What `make image` leaves in dist/: a static binary, and an archive of exactly that.

use lab::image::{self, Image};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The promise of README.md.
const MAX_BYTES: u64 = 16_000_000;

/// A file that `make` has built.
pub(crate) fn dist(variable: &str, name: &str) -> PathBuf {
    let path = std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("dist").join(name), PathBuf::from);
    assert!(path.is_file(), "{} is not there: `make image` makes it", path.display());
    path
}

fn files(archive: impl Read) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            found.push((entry.path().unwrap().to_string_lossy().into_owned(), bytes));
        }
    }
    found
}

#[test]
fn the_binary_is_small_and_runs_in_an_empty_root() {
    let binary = dist("QUORATE_BIN", "quorate");
    assert!(binary.metadata().unwrap().len() <= MAX_BYTES);
    let empty = tempfile::tempdir().unwrap();
    std::fs::copy(&binary, empty.path().join("quorate")).unwrap();
    let output = Command::new("chroot").arg(empty.path()).args(["/quorate", "--version"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("quorate {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_image_is_the_binary_the_authorities_the_time_zones_and_the_licence() {
    let outer = files(std::fs::File::open(dist("QUORATE_IMAGE", "quorate-image.tar")).unwrap());
    let of = |end: &str| &outer.iter().find(|(name, _)| name.ends_with(end)).unwrap().1;
    let manifest: serde_json::Value = serde_json::from_slice(of("manifest.json")).unwrap();
    assert_eq!(manifest[0]["RepoTags"], serde_json::json!(["localhost/quorate:dev"]));
    let config = of(manifest[0]["Config"].as_str().unwrap());
    let config: serde_json::Value = serde_json::from_slice(config).unwrap();
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/usr/local/bin/quorate"]));

    let inner = files(of("/layer.tar").as_slice());
    // What kured's window is told by: one file a zone, and no other.
    let (zones, inner): (Vec<_>, Vec<_>) =
        inner.into_iter().partition(|(name, _)| name.starts_with("usr/share/zoneinfo/"));
    assert!(zones.iter().any(|(name, bytes)| name.ends_with("/Europe/Berlin") && bytes.starts_with(b"TZif")));
    assert!(zones.iter().all(|(_, bytes)| bytes.starts_with(b"TZif")));
    let names: Vec<&str> = inner.iter().map(|(name, _)| name.as_str()).collect();
    let expected = ["etc/ssl/certs/ca-certificates.crt", "usr/local/bin/quorate", "usr/share/doc/quorate/LICENSE"];
    assert_eq!(names, expected);
    assert!(inner[1].1 == std::fs::read(dist("QUORATE_BIN", "quorate")).unwrap(), "another binary: `make image`");
}

#[test]
fn the_same_binary_gives_the_same_digest_whenever_it_was_built() {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("quorate");
    std::fs::copy(dist("QUORATE_BIN", "quorate"), &binary).unwrap();
    let make = |name: &str, age: u64| {
        let touched = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000 - age);
        std::fs::File::options().append(true).open(&binary).unwrap().set_modified(touched).unwrap();
        let out = folder.path().join(name);
        // As `make image` does.
        let mut contents = Image::of_binary(&binary).unwrap();
        contents.user = "65532:65532".to_owned();
        contents.add_file("usr/share/doc/quorate/LICENSE", &binary, 0o644);
        let digest = image::write("localhost/quorate:dev", &out, &contents).unwrap();
        (digest, std::fs::read(out).unwrap())
    };
    assert!(make("a.tar", 0) == make("b.tar", 100_000));
}
