//! Compares what the restored etcd holds with the snapshot, before anybody writes to it.

use super::journal::Journal;
use super::tool::BUMP;
use crate::etcd::backup::manifest::Facts;
use crate::observe::etcd::connection::{Connection, Tls, connect};
use crate::observe::etcd::{ClientFiles, words};
use etcd_client::{Client, GetOptions};
use quorum_safety::{ClusterId, NodeName};
use std::time::Duration;

/// How long one answer may take; counting the keys of a large database takes seconds.
const ANSWER: Duration = Duration::from_secs(30);

/// Why the restored etcd is not what it has to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotProven {
    /// It does not answer (yet).
    #[error("{0}")]
    Unanswered(String),
    /// It holds something else: nobody may build on it.
    #[error("what was restored is not the snapshot: {0}")]
    Wrong(String),
}

/// What the restored etcd says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::etcd) struct Held {
    /// Its cluster.
    pub(in crate::etcd) cluster: ClusterId,
    /// Its revision.
    pub(in crate::etcd) revision: i64,
    /// Its keys at the revision to which the snapshot was raised.
    pub(in crate::etcd) keys: i64,
    /// The names of its members.
    members: Vec<String>,
}

/// Asks the restored etcd of this node by linearizable reads.
///
/// # Errors
/// When it does not answer, or is not as the snapshot says.
pub(super) async fn prove(journal: &Journal, files: &ClientFiles) -> Result<Held, NotProven> {
    let asked = async {
        let tls = Tls::read(files).await.map_err(|error| error.to_string())?;
        let Connection { mut client, .. } = connect(&tls, &journal.node.client_url, ANSWER).await?;
        look(&mut client, &journal.snapshot).await
    };
    let held = asked.await.map_err(NotProven::Unanswered)?;
    compare(&journal.snapshot, journal.before, &journal.node.name, &held).map_err(NotProven::Wrong)?;
    Ok(held)
}

/// The revision of the snapshot after it was raised.
pub(in crate::etcd) fn raised(snapshot: &Facts) -> i64 {
    snapshot.revision.saturating_add(BUMP)
}

/// What a restored etcd says of itself, by linearizable reads.
///
/// # Errors
/// In words, when it does not answer.
pub(in crate::etcd) async fn look(client: &mut Client, snapshot: &Facts) -> Result<Held, String> {
    let options = GetOptions::new().with_limit(1).with_keys_only();
    let first = get(client, "quorate", options).await?;
    let header = first.header().ok_or("it answers without a header")?;
    let (cluster, revision) = (ClusterId(header.cluster_id()), header.revision());
    let keys = if revision < raised(snapshot) {
        // Something else was restored. etcd would say that this is a revision of the future, which is no answer.
        0
    } else {
        // All keys, at the revision below which everything is compacted: what is written meanwhile does not count.
        let all = GetOptions::new().with_from_key().with_count_only().with_revision(raised(snapshot));
        get(client, "\0", all).await?.count()
    };
    let list = tokio::time::timeout(ANSWER, client.member_list()).await;
    let list = list.map_err(|_| "it does not tell its members".to_owned())?.map_err(|error| words(&error))?;
    let members = list.members().iter().map(|member| member.name().to_owned()).collect();
    Ok(Held { cluster, revision, keys, members })
}

/// A linearizable read.
///
/// # Errors
/// In words, when it is not answered.
pub(in crate::etcd) async fn get(
    client: &mut Client,
    key: impl Into<Vec<u8>>,
    options: GetOptions,
) -> Result<etcd_client::GetResponse, String> {
    let answer = tokio::time::timeout(ANSWER, client.get(key, Some(options))).await;
    answer.map_err(|_| "it answers no linearizable read".to_owned())?.map_err(|error| words(&error))
}

/// Whether it is what the snapshot says: `before` is the cluster that was there, `name` that of the only member.
///
/// # Errors
/// In words, when it is not.
pub(in crate::etcd) fn compare(
    snapshot: &Facts,
    before: Option<ClusterId>,
    name: &NodeName,
    held: &Held,
) -> Result<(), String> {
    let Held { cluster, revision, keys, members } = held;
    if *revision < raised(snapshot) {
        let wanted = raised(snapshot);
        return Err(format!("it is at revision {revision}, below the {wanted} to which it was to be raised"));
    }
    if let Some(wanted) = snapshot.keys
        && u64::try_from(*keys) != Ok(wanted)
    {
        return Err(format!("it has {keys} keys, and the snapshot {wanted}"));
    }
    if before == Some(*cluster) {
        return Err(format!("it has the identity {cluster} of the cluster that was there before"));
    }
    if *members != [name.0.as_str()] {
        return Err(format!("its members are {}, and {name} is to be the only one", members.join(", ")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::restore::journal::tests::journal;

    #[test]
    fn each_difference_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let journal = journal(folder.path());
        let right =
            || Held { cluster: ClusterId(0xdef), revision: BUMP + 740, keys: 2, members: vec!["k2".to_owned()] };
        let compare = |held: &Held| super::compare(&journal.snapshot, journal.before, &journal.node.name, held);
        compare(&right()).unwrap();
        for (held, wanted) in [
            (Held { revision: 900, ..right() }, "it is at revision 900, below the 1000000738"),
            (Held { keys: 3, ..right() }, "it has 3 keys, and the snapshot 2"),
            (Held { cluster: ClusterId(0xabc), ..right() }, "the identity abc of the cluster that was there before"),
            (Held { members: vec!["k1".into(), "k2".into()], ..right() }, "its members are k1, k2"),
        ] {
            let said = compare(&held).unwrap_err();
            assert!(said.contains(wanted), "{said}");
        }
    }
}
