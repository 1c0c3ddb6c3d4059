//! What a restore on this host has begun: a file that is written before each step, so that whoever is killed is gone on from.

use super::node::{Node, Peer};
use super::step::Step;
use crate::etcd::backup::manifest::Facts;
use crate::replace::replace;
use anyhow::Context;
use quorum_safety::ClusterId;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The one that is under way.
const BEGUN: &str = "restore.begun";
/// The last one that came to its end.
const DONE: &str = "restore.done";

/// A restore on this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Journal {
    /// When it began, as `YYYYmmdd-HHMMSS`: what it puts aside is named after it.
    pub(super) id: String,
    /// What is restored, as it was typed.
    pub(super) from: String,
    /// The node.
    pub(super) node: Node,
    /// The other control plane nodes, as far as anybody knew of them.
    pub(super) others: Vec<Peer>,
    /// What the snapshot holds.
    pub(super) snapshot: Facts,
    /// The identity of the cluster that was there, where it was told.
    #[serde(default)]
    pub(super) before: Option<ClusterId>,
    /// The step that was begun last.
    pub(super) doing: Step,
}

impl Journal {
    /// The one that is under way on this host.
    ///
    /// # Errors
    /// When there is one that cannot be read: then nothing may be done.
    pub(super) fn begun(state: &Path) -> anyhow::Result<Option<Self>> {
        read(&state.join(BEGUN))
    }

    /// The last one that came to its end.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub(super) fn done(state: &Path) -> anyhow::Result<Option<Self>> {
        read(&state.join(DONE))
    }

    /// Says that a step begins; it is on the disk when this returns.
    ///
    /// # Errors
    /// When that cannot be kept: then the step may not be done.
    pub(super) fn begin(&mut self, state: &Path, step: Step) -> anyhow::Result<()> {
        self.doing = step;
        let path = state.join(BEGUN);
        replace(&path, &serde_json::to_vec_pretty(self)?, 0o600).with_context(|| format!("write {}", path.display()))
    }

    /// It has come to its end.
    ///
    /// # Errors
    /// When that cannot be kept: then the next run does the last step again.
    pub(super) fn end(&self, state: &Path) -> anyhow::Result<()> {
        let (begun, done) = (state.join(BEGUN), state.join(DONE));
        fs::rename(&begun, &done).with_context(|| format!("rename {} to {}", begun.display(), done.display()))
    }

    /// Nothing was changed, and nothing is to be gone on with.
    ///
    /// # Errors
    /// When it cannot be taken away.
    pub(super) fn forget(state: &Path) -> anyhow::Result<()> {
        let path = state.join(BEGUN);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Where the manifests are while they are aside, and stay afterwards.
    pub(super) fn manifests(&self, state: &Path) -> PathBuf {
        state.join("aside").join(format!("restore-{}", self.id))
    }

    /// Where the data of before is, beside the new one.
    pub(super) fn data(&self) -> PathBuf {
        self.node.data_dir.join(format!("member-before-{}", self.id))
    }

    /// Where the new data is made; what is in it when the step begins was left by one that was killed.
    pub(super) fn new_data(&self) -> PathBuf {
        self.node.data_dir.join(format!("restore-{}", self.id))
    }
}

/// Our own folder: the copy of the snapshot, and the tool.
pub(super) fn folder(state: &Path) -> PathBuf {
    state.join("restore")
}

/// The copy of the snapshot.
pub(super) fn copy(state: &Path) -> PathBuf {
    folder(state).join("snapshot.db")
}

fn read(path: &Path) -> anyhow::Result<Option<Journal>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("read {}", path.display()))?,
    };
    let journal = serde_json::from_str(&text).with_context(|| {
        format!(
            "{}: it says how far a restore came on this host, and cannot be understood: end that by hand, then remove it",
            path.display()
        )
    })?;
    Ok(Some(journal))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::etcd::restore::node::tests::k2;

    /// What a small snapshot holds.
    pub(in super::super) fn facts() -> Facts {
        Facts {
            bytes: 24_608,
            sha256: "00ff".to_owned(),
            hash: 7,
            revision: 738,
            compact_revision: None,
            keys: Some(2),
            total_size: 24_576,
            size_in_use: 20_480,
        }
    }

    pub(in super::super) fn journal(kubernetes: &Path) -> Journal {
        Journal {
            id: "20261127-004500".to_owned(),
            from: "/root/etcd.db".to_owned(),
            node: k2(kubernetes),
            others: vec![Peer { name: "k1".into(), address: "10.10.0.11".to_owned() }],
            snapshot: facts(),
            before: Some(ClusterId(0xabc)),
            doing: Step::Keep,
        }
    }

    #[test]
    fn what_was_begun_is_found_again_and_what_ended_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let mut journal = journal(state);
        assert_eq!(Journal::begun(state).unwrap(), None);
        for step in Step::ALL {
            journal.begin(state, step).unwrap();
            assert_eq!(Journal::begun(state).unwrap().as_ref(), Some(&journal));
        }
        journal.end(state).unwrap();
        assert_eq!(Journal::begun(state).unwrap(), None);
        assert_eq!(Journal::done(state).unwrap().map(|done| done.doing), Some(Step::Kubelet));
    }

    #[test]
    fn a_journal_that_cannot_be_understood_blocks() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(BEGUN), "{}").unwrap();
        assert!(format!("{:#}", Journal::begun(folder.path()).unwrap_err()).contains(BEGUN));
    }
}
