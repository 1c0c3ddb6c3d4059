//! The two files on the host: the one by which the host asks for a reboot, and the gate's own, which kured looks at. Both are known by their
//! paths on the host, which is mounted into the pod at `root`.

use super::reason::{Code, Reason};
use crate::replace::replace;
use jiff::Timestamp;
use quorum_safety::{Fact, UnixSeconds};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Where they are.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
    required: PathBuf,
    gate: PathBuf,
}

impl Host {
    /// The host whose root is mounted at `root`, and the paths of the two files on it.
    pub fn new(root: &Path, required: &Path, gate: &Path) -> Self {
        Self { root: root.to_owned(), required: required.to_owned(), gate: gate.to_owned() }
    }

    /// The gate's path on the host.
    pub fn gate(&self) -> &Path {
        &self.gate
    }

    fn here(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Whether the host wants a reboot.
    pub fn required(&self) -> Fact<bool> {
        exists(&self.here(&self.required), &self.required)
    }

    /// Since when it wants one at the latest: when its file was last written, as far as that can be told and is not to come; else now. Whatever
    /// wants a reboot too may have written it again.
    pub fn required_since(&self, now: UnixSeconds) -> UnixSeconds {
        let written = fs::symlink_metadata(self.here(&self.required)).and_then(|file| file.modified());
        let written = written.ok().and_then(|at| Timestamp::try_from(at).ok()).map(|at| UnixSeconds(at.as_second()));
        written.filter(|written| (1..=now.0).contains(&written.0)).unwrap_or(now)
    }

    /// Whether the gate's file is there, whoever made it.
    pub fn is_open(&self) -> Fact<bool> {
        exists(&self.here(&self.gate), &self.gate)
    }

    /// Creates the gate's file, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn open(&self, text: &str) -> io::Result<()> {
        replace(&self.here(&self.gate), text.as_bytes(), 0o644)
    }

    /// Removes the gate's file; says whether one was there.
    ///
    /// # Errors
    /// When it is there and cannot be removed, or cannot be seen: it counts as open.
    pub fn close(&self) -> io::Result<bool> {
        match fs::remove_file(self.here(&self.gate)) {
            Ok(()) => Ok(true),
            // A read-only file system refuses before it looks. Where the folder itself is not there, as on a mount that is gone, nothing is known of
            // the file.
            Err(error) => match self.is_open() {
                Fact::Known(false) => Ok(false),
                Fact::Known(true) => Err(error),
                Fact::Unknown(why) => Err(io::Error::new(error.kind(), why)),
            },
        }
    }

    /// Tries what it will need of the two folders, before it is needed (incident R26).
    pub fn test(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if let Some(folder) = self.required.parent() {
            let folder_here = self.here(folder);
            let listed = fs::metadata(&folder_here)
                .and_then(|there| if there.is_dir() { Ok(()) } else { Err(ErrorKind::NotADirectory.into()) });
            if let Err(error) = listed {
                reasons.push(Reason::new(Code::HostUnknown, format!("{} on the host: {error}", folder.display())));
            }
        }
        if let Err(error) = self.probe() {
            let folder = self.gate.parent().unwrap_or(&self.gate).display();
            let user = rustix::process::geteuid().as_raw();
            reasons.push(Reason::new(Code::FileNotWritable, format!("{folder} on the host, as user {user}: {error}")));
        }
        reasons
    }

    /// Creates a file beside the gate's, and removes it.
    fn probe(&self) -> io::Result<()> {
        let gate = self.here(&self.gate);
        let (Some(folder), Some(name)) = (gate.parent(), gate.file_name()) else {
            return Err(io::Error::other("it is no path of a file"));
        };
        let mut probe = std::ffi::OsString::from(".");
        probe.push(name);
        probe.push(".test");
        let probe = folder.join(probe);
        replace(&probe, b"test\n", 0o644)?;
        fs::remove_file(probe)
    }
}

/// Only "not found" means that it is not there; its folder must be.
fn exists(here: &Path, on_host: &Path) -> Fact<bool> {
    match fs::symlink_metadata(here) {
        Ok(_) => Fact::Known(true),
        Err(error) if error.kind() == ErrorKind::NotFound => match here.parent().map(fs::metadata) {
            Some(Ok(_)) => Fact::Known(false),
            Some(Err(error)) => Fact::Unknown(format!("folder of {}: {error}", on_host.display())),
            None => Fact::Unknown(format!("{} is no path of a file", on_host.display())),
        },
        Err(error) => Fact::Unknown(format!("{}: {error}", on_host.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_opened_and_closed_and_what_is_not_there_is_unknown() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Path::new("/var/run/reboot-required"), Path::new("/var/run/gate"));
        assert!(matches!(host.required(), Fact::Unknown(why) if why.contains("/var/run/reboot-required")));
        assert_eq!(host.test().len(), 2, "{:?}", host.test());
        let unseen = host.close().unwrap_err().to_string();
        assert!(unseen.contains("folder of /var/run/gate"), "a folder that is not there may hold a gate: {unseen}");
        fs::create_dir_all(root.path().join("var/run")).unwrap();
        assert_eq!(host.test(), []);
        assert_eq!((host.required(), host.is_open()), (Fact::Known(false), Fact::Known(false)));
        let now = UnixSeconds(2_000);
        assert_eq!(host.required_since(now), now, "nobody has written it");
        let file = fs::File::create(root.path().join("var/run/reboot-required")).unwrap();
        let at = |seconds| std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        file.set_modified(at(1_000)).unwrap();
        assert_eq!(host.required_since(now), UnixSeconds(1_000));
        file.set_modified(at(1 << 40)).unwrap();
        assert_eq!(host.required_since(now), now, "a clock that was ahead");
        fs::remove_file(root.path().join("var/run/reboot-required")).unwrap();
        assert!(!host.close().unwrap());
        host.open("{}").unwrap();
        assert_eq!(host.is_open(), Fact::Known(true));
        assert!(host.close().unwrap());
        assert_eq!(fs::read_dir(root.path().join("var/run")).unwrap().count(), 0);
    }
}
