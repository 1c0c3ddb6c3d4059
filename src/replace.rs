//! Files that are replaced whole or not at all: what others read, or what must be known after a power cut.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Puts a file with these rights, as in a file's mode, in the place of what is there, if anything is. It is on the disk when this returns.
/// Until then it is hidden: neither the kubelet nor apt reads a file whose name begins with a dot.
pub(crate) fn replace(path: &Path, bytes: &[u8], rights: u32) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(io::Error::other("no file")) };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    let new = folder.join(hidden);
    let rights = rights & 0o7777;
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(rights).open(&new)?;
        // One that a killed run has left may have other rights.
        file.set_permissions(Permissions::from_mode(rights))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    };
    write().inspect_err(|_| {
        // Half of it helps nobody, and takes what is left of a full disk.
        if let Err(error) = fs::remove_file(&new) {
            tracing::debug!(%error, "There is nothing to be removed");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_replaced_with_its_rights_whatever_a_killed_run_has_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etcd.yaml");
        fs::write(folder.path().join(".etcd.yaml.new"), "what a killed run has left, and longer").unwrap();
        for (text, rights) in [("one", 0o600), ("another", 0o644), ("x", 0o640)] {
            replace(&path, text.as_bytes(), rights).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, rights);
            assert_eq!(names(folder.path()), ["etcd.yaml"]);
        }
    }

    #[test]
    fn what_cannot_be_replaced_stays_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etcd.yaml");
        fs::create_dir(&path).unwrap();
        replace(&path, b"new", 0o600).unwrap_err();
        assert!(path.is_dir());
        assert_eq!(names(folder.path()), ["etcd.yaml"]);
    }
}
