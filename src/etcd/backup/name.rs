//! What a backup and its files are called.

use super::manifest::Compression;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// How each of them begins.
pub const PREFIX: &str = "etcd-snapshot-";

/// The name of a backup of that time: `etcd-snapshot-YYYYmmdd-HHMMSS`, UTC.
pub fn of(taken_at: Timestamp) -> String {
    format!("{PREFIX}{}", taken_at.to_zoned(TimeZone::UTC).strftime("%Y%m%d-%H%M%S"))
}

/// The file of its snapshot.
pub fn snapshot(name: &str, compression: Compression, encrypted: bool) -> String {
    format!("{name}.db{}{}", compressed(compression), if encrypted { ".age" } else { "" })
}

/// The file of its node's archive, which is encrypted always.
pub fn node(name: &str) -> String {
    format!("{name}.node.tar{}.age", compressed(Compression::Zstd))
}

/// Whether a file, by whatever path, is called as the archive of a node.
pub fn is_node(file: &str) -> bool {
    backup_of(file).is_some_and(|backup| file.ends_with(&node(backup)))
}

/// Its manifest.
pub fn manifest(name: &str) -> String {
    format!("{name}{}", super::manifest::SUFFIX)
}

/// The name of the backup that a file of this name belongs to, by whatever path: none when it is called otherwise.
pub fn backup_of(file: &str) -> Option<&str> {
    let own = file.rsplit('/').next()?;
    let (name, _) = own.split_once('.')?;
    let digits = name.strip_prefix(PREFIX)?;
    let (day, time) = digits.split_once('-')?;
    let number = |text: &str, length: usize| text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
    (number(day, 8) && number(time, 6)).then_some(name)
}

const fn compressed(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "",
        Compression::Zstd => ".zst",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_as_the_old_ones_were_and_belong_to_their_backup() {
        let name = of("2026-11-26T20:04:05+01:00".parse().unwrap());
        assert_eq!(name, "etcd-snapshot-20261126-190405");
        assert_eq!(snapshot(&name, Compression::None, false), "etcd-snapshot-20261126-190405.db");
        assert_eq!(snapshot(&name, Compression::Zstd, true), "etcd-snapshot-20261126-190405.db.zst.age");
        for file in [snapshot(&name, Compression::Zstd, true), node(&name), manifest(&name), format!("a/b/{name}.db")] {
            assert_eq!(backup_of(&file), Some(name.as_str()), "{file}");
        }
        for other in ["etcd-snapshot-2026-1.db", "etcd-snapshot-20261126-190405", "other-20261126-190405.db", ""] {
            assert_eq!(backup_of(other), None, "{other}");
        }
    }
}
