//! What stands in for the Leases while the API is away: a lock on this host, and a mark of what was begun under it.

use super::plan::{Begun, Order, Wanted};
use crate::clock::Clock;
use crate::etcd::backup;
use crate::etcd::host::{lock, record};
use crate::replace::replace;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub(in crate::etcd) const LOCK: &str = "members.lock";
const MARK: &str = "members.begun";

/// The lock of this host. The kernel lets go of it when the process ends, however it ends; the mark stays.
#[derive(Debug)]
pub(in crate::etcd) struct HostLock {
    _lock: File,
    /// No snapshot is taken beside a change: a stalled one freezes a member (etcd-notes, 2b row 4).
    _snapshot: File,
    folder: PathBuf,
    /// What was begun before this process and not ended.
    pub(super) begun: Option<Order>,
}

/// The mark.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    order: Order,
}

impl HostLock {
    /// Takes it; none while another process of this host has it, or takes a backup.
    ///
    /// # Errors
    /// When the folder cannot be used, or what was begun cannot be read: then nothing may be done.
    pub(in crate::etcd) fn take(folder: &Path) -> anyhow::Result<Option<Self>> {
        let Some(own) = lock(folder, LOCK)? else { return Ok(None) };
        let Some(snapshot) = lock(folder, backup::HOST_LOCK)? else { return Ok(None) };
        let begun = read(&folder.join(MARK))?;
        Ok(Some(Self { _lock: own, _snapshot: snapshot, folder: folder.to_owned(), begun }))
    }

    /// Marks the order as begun, before anything of it is done.
    ///
    /// # Errors
    /// When that cannot be kept: then nothing of it may be done.
    pub(super) fn begin(&self, order: &Order) -> anyhow::Result<()> {
        let path = self.folder.join(MARK);
        let text = serde_json::to_vec(&Mark { order: order.clone() })?;
        replace(&path, &text, 0o600).with_context(|| format!("write {}", path.display()))
    }

    /// Takes the mark away: nothing is half done.
    ///
    /// # Errors
    /// When it cannot be taken away: then the next command goes on with what is over.
    pub(super) fn end(self) -> anyhow::Result<()> {
        let path = self.folder.join(MARK);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Records that this host went without the API, and why.
    ///
    /// # Errors
    /// When it cannot be recorded: what is not recorded is not done.
    pub(super) fn record(
        &self,
        order: &Order,
        because: &str,
        lifted: &[quorum_safety::Code],
        clock: Clock,
    ) -> anyhow::Result<()> {
        record(&self.folder, &order.command(), because, lifted, clock)
    }
}

/// What was begun on this host.
///
/// # Errors
/// When there is a mark and it cannot be read.
pub(super) fn begun(folder: &Path) -> anyhow::Result<Option<Begun>> {
    Ok(read(&folder.join(MARK))?.map(|order| Begun {
        operation: order.operation(),
        node: order.node.clone(),
        peer_url: match order.wanted {
            Wanted::Add { peer_url } | Wanted::Replace { peer_url, .. } => Some(peer_url),
            Wanted::Promote(_) | Wanted::Remove(_) | Wanted::MoveLeader(_) => None,
        },
    }))
}

fn read(path: &Path) -> anyhow::Result<Option<Order>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("read {}", path.display()))?,
    };
    let mark: Mark = serde_json::from_str(&text).with_context(|| {
        format!(
            "{}: it says what is half done, and cannot be understood: end that by hand, then remove it",
            path.display()
        )
    })?;
    Ok(Some(mark.order))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::MemberId;

    #[test]
    fn one_at_a_time_and_what_was_begun_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let order = Order {
            wanted: Wanted::Replace { old: MemberId(0xa2), peer_url: "https://10.10.0.12:2380".into() },
            node: "k2".into(),
        };
        let first = HostLock::take(folder.path()).unwrap().unwrap();
        assert!(HostLock::take(folder.path()).unwrap().is_none());
        assert_eq!(first.begun, None);
        first.begin(&order).unwrap();
        drop(first);
        let second = HostLock::take(folder.path()).unwrap().unwrap();
        assert_eq!(second.begun.as_ref(), Some(&order));
        let begun = begun(folder.path()).unwrap().unwrap();
        assert_eq!(
            (begun.operation.as_str(), begun.peer_url.as_deref()),
            ("members-replace-a2", Some("https://10.10.0.12:2380"))
        );
        second.record(&order, "the API is away", &[], Clock::system()).unwrap();
        second.end().unwrap();
        assert_eq!(HostLock::take(folder.path()).unwrap().unwrap().begun, None);
        let recorded = fs::read_to_string(folder.path().join("overrides.jsonl")).unwrap();
        assert!(recorded.contains("the API is away") && recorded.contains("members replace a2"), "{recorded}");
    }

    /// The lock of a backup and that of a change are two, and each looks at the other.
    #[test]
    fn no_change_is_begun_beside_a_backup() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = lock(folder.path(), backup::HOST_LOCK).unwrap().unwrap();
        assert!(HostLock::take(folder.path()).unwrap().is_none());
        drop(snapshot);
        let change = HostLock::take(folder.path()).unwrap().unwrap();
        assert!(lock(folder.path(), backup::HOST_LOCK).unwrap().is_none());
        drop(change);
    }

    #[test]
    fn a_mark_that_cannot_be_understood_blocks() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(MARK), "{}").unwrap();
        assert!(format!("{:#}", HostLock::take(folder.path()).unwrap_err()).contains(MARK));
    }
}
