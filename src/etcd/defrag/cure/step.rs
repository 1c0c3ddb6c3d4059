//! The steps of a cure, in their order, and the mark that says which one this host has begun: whoever is killed is gone on from.

use super::super::plan::Database;
use crate::replace::replace;
use anyhow::Context;
use quorum_safety::MemberId;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The mark.
const BEGUN: &str = "nospace.begun";

/// A step of a cure. Each may be done again wherever it was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// What etcd keeps of older revisions goes.
    Compact,
    /// Leadership goes to another member.
    HandOver,
    /// The member of this host is defragmented.
    Defragment,
    /// The alarm is disarmed.
    Disarm,
}

impl Step {
    /// All of them, in order. The second is taken on the leader's host alone, the last by whoever is last.
    pub const ALL: [Self; 4] = [Self::Compact, Self::HandOver, Self::Defragment, Self::Disarm];

    /// What it does, as it is shown when it begins.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Compact => "etcd forgets what its keys were before, in all members",
            Self::HandOver => "leadership goes to another member",
            Self::Defragment => "the member of this host gives its room back, and serves nobody meanwhile",
            Self::Disarm => "every member has room again: the alarm is disarmed",
        }
    }
}

/// What was begun on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Begun {
    /// The step that was begun last.
    pub(super) step: Step,
    /// The member of this host.
    pub(super) member: MemberId,
    /// Its database then.
    pub(super) database: Database,
}

impl Begun {
    /// What this host has begun and not ended.
    ///
    /// # Errors
    /// When there is a mark and it cannot be read: then nothing may be done.
    pub(super) fn read(state: &Path) -> anyhow::Result<Option<Self>> {
        let path = path(state);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("read {}", path.display()))?,
        };
        let begun = serde_json::from_str(&text).with_context(|| {
            format!(
                "{}: it says what of a cure is half done on this host, and cannot be understood: look whether etcd answers here, then remove it",
                path.display()
            )
        })?;
        Ok(Some(begun))
    }

    /// Says that a step begins; it is on the disk when this returns.
    ///
    /// # Errors
    /// When that cannot be kept: then the step may not be done.
    pub(super) fn write(&self, state: &Path) -> anyhow::Result<()> {
        let path = path(state);
        replace(&path, &serde_json::to_vec(self)?, 0o600).with_context(|| format!("write {}", path.display()))
    }

    /// Nothing is half done any more.
    ///
    /// # Errors
    /// When the mark cannot be taken away: then the next run looks for what is over.
    pub(super) fn end(state: &Path) -> anyhow::Result<()> {
        let path = path(state);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn path(state: &Path) -> PathBuf {
    state.join(BEGUN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_is_found_again_until_it_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        assert_eq!(Begun::read(state).unwrap(), None);
        assert!(Step::ALL.is_sorted());
        for step in Step::ALL {
            let begun = Begun { step, member: MemberId(0xa2), database: Database { size: 2, in_use: 1 } };
            begun.write(state).unwrap();
            assert_eq!(Begun::read(state).unwrap(), Some(begun));
        }
        Begun::end(state).unwrap();
        Begun::end(state).unwrap();
        assert_eq!(Begun::read(state).unwrap(), None);
        let words = serde_json::to_string(&Step::ALL).unwrap();
        assert_eq!(words, r#"["compact","hand-over","defragment","disarm"]"#);
    }

    #[test]
    fn a_mark_that_cannot_be_understood_blocks() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(BEGUN), "{}").unwrap();
        assert!(format!("{:#}", Begun::read(folder.path()).unwrap_err()).contains(BEGUN));
    }
}
