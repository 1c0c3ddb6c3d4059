//! A mark on the host: a node step to this version has begun to change it. What is left to do is judged from the host's state alone;
//! the mark serves one question, whether the node is still as it was before the first run, which the state cannot answer: a later
//! run that changes nothing itself may follow one that was killed midway.

use crate::replace::replace;
use crate::version::Version;
use std::io;
use std::path::{Path, PathBuf};

/// Below the host's root.
const FILE: &str = "var/lib/quorate/node-step.begun";

/// The mark of one target.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    path: PathBuf,
    to: Version,
}

impl Mark {
    /// The mark for a target below a root.
    pub(super) fn new(root: &Path, to: Version) -> Self {
        Self { path: root.join(FILE), to }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a run to this target has begun to change the host and none has ended well since.
    pub(super) fn unfinished(&self) -> bool {
        self.says(&["begun"])
    }

    /// Whether a run to this target has ever begun to change the host, ended well or not.
    pub(super) fn names_target(&self) -> bool {
        self.says(&["begun", "done"])
    }

    /// What cannot be read, or is not understood, counts as begun.
    fn says(&self, words: &[&str]) -> bool {
        match std::fs::read_to_string(&self.path) {
            Ok(text) => match text.trim_end().split_once(' ') {
                Some((version, word @ ("begun" | "done"))) => {
                    version.parse().map_or(true, |version: Version| version == self.to) && words.contains(&word)
                }
                _ => true,
            },
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Sets it. It is on the disk when this returns: a power cut must not take it away and leave the change.
    pub(super) fn begin(&self) -> io::Result<()> {
        self.write("begun")
    }

    /// The run has ended well.
    pub(super) fn done(&self) -> io::Result<()> {
        self.write("done")
    }

    fn write(&self, word: &str) -> io::Result<()> {
        let folder = self.path.parent().ok_or_else(|| io::Error::other("no folder"))?;
        std::fs::create_dir_all(folder)?;
        replace(&self.path, format!("{} {word}\n", self.to).as_bytes(), 0o644)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_speaks_of_its_own_target() {
        let root = tempfile::tempdir().unwrap();
        let mark = |to: &str| Mark::new(root.path(), to.parse().unwrap());
        let (this, other) = (mark("v1.36.3"), mark("v1.36.4"));
        assert!(!this.unfinished() && !this.names_target());
        this.begin().unwrap();
        assert!(this.unfinished() && this.names_target());
        assert!(!other.unfinished() && !other.names_target());
        this.done().unwrap();
        assert!(!this.unfinished() && this.names_target());
        other.begin().unwrap();
        assert!(!this.names_target() && other.unfinished());
    }

    #[test]
    fn a_mark_that_cannot_be_read_counts_as_begun() {
        for text in ["", "v1.36.3", "nonsense begun"] {
            let root = tempfile::tempdir().unwrap();
            let mark = Mark::new(root.path(), "v1.36.3".parse().unwrap());
            std::fs::create_dir_all(mark.path().parent().unwrap()).unwrap();
            std::fs::write(mark.path(), text).unwrap();
            assert!(mark.unfinished() && mark.names_target(), "{text:?}");
        }
        let root = tempfile::tempdir().unwrap();
        let mark = Mark::new(root.path(), "v1.36.3".parse().unwrap());
        std::fs::create_dir_all(mark.path()).unwrap();
        assert!(mark.unfinished() && mark.names_target());
    }
}
