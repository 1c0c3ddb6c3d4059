//! Compares what the restored etcd holds with the snapshot, before anybody writes to it.

use super::journal::Journal;
use super::tool::BUMP;
use crate::observe::etcd::connection::{Connection, Tls, connect};
use crate::observe::etcd::{ClientFiles, words};
use etcd_client::{Client, GetOptions};
use quorum_safety::ClusterId;
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
pub(super) struct Held {
    /// Its cluster.
    pub(super) cluster: ClusterId,
    /// Its revision.
    pub(super) revision: i64,
    /// Its keys at the revision to which the snapshot was raised.
    pub(super) keys: i64,
    /// The names of its members.
    members: Vec<String>,
}

/// Asks it by linearizable reads.
///
/// # Errors
/// When it does not answer, or is not as the snapshot says.
pub(super) async fn prove(journal: &Journal, files: &ClientFiles) -> Result<Held, NotProven> {
    let held = look(journal, files).await.map_err(NotProven::Unanswered)?;
    compare(journal, &held).map_err(NotProven::Wrong)?;
    Ok(held)
}

/// The revision of the snapshot after it was raised.
fn raised(journal: &Journal) -> i64 {
    journal.snapshot.revision.saturating_add(BUMP)
}

async fn look(journal: &Journal, files: &ClientFiles) -> Result<Held, String> {
    let tls = Tls::read(files).await.map_err(|error| error.to_string())?;
    let Connection { mut client, .. } = connect(&tls, &journal.node.client_url, ANSWER).await?;
    let options = GetOptions::new().with_limit(1).with_keys_only();
    let first = get(&mut client, "quorate", options).await?;
    let header = first.header().ok_or("it answers without a header")?;
    let (cluster, revision) = (ClusterId(header.cluster_id()), header.revision());
    // All keys, at the revision below which everything is compacted: what is written meanwhile does not count.
    let all = GetOptions::new().with_from_key().with_count_only().with_revision(raised(journal));
    let keys = get(&mut client, "\0", all).await?.count();
    let list = tokio::time::timeout(ANSWER, client.member_list()).await;
    let list = list.map_err(|_| "it does not tell its members".to_owned())?.map_err(|error| words(&error))?;
    let members = list.members().iter().map(|member| member.name().to_owned()).collect();
    Ok(Held { cluster, revision, keys, members })
}

async fn get(client: &mut Client, key: &str, options: GetOptions) -> Result<etcd_client::GetResponse, String> {
    let answer = tokio::time::timeout(ANSWER, client.get(key, Some(options))).await;
    answer.map_err(|_| "it answers no linearizable read".to_owned())?.map_err(|error| words(&error))
}

fn compare(journal: &Journal, held: &Held) -> Result<(), String> {
    let Held { cluster, revision, keys, members } = held;
    if *revision < raised(journal) {
        return Err(format!(
            "it is at revision {revision}, below the {} to which it was to be raised",
            raised(journal)
        ));
    }
    if let Some(wanted) = journal.snapshot.keys
        && u64::try_from(*keys) != Ok(wanted)
    {
        return Err(format!("it has {keys} keys, and the snapshot {wanted}"));
    }
    if journal.before == Some(*cluster) {
        return Err(format!("it has the identity {cluster} of the cluster that was there before"));
    }
    if *members != [journal.node.name.0.as_str()] {
        return Err(format!("its members are {}, and {} is to be the only one", members.join(", "), journal.node.name));
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
        compare(&journal, &right()).unwrap();
        for (held, wanted) in [
            (Held { revision: 900, ..right() }, "it is at revision 900, below the 1000000738"),
            (Held { keys: 3, ..right() }, "it has 3 keys, and the snapshot 2"),
            (Held { cluster: ClusterId(0xabc), ..right() }, "the identity abc of the cluster that was there before"),
            (Held { members: vec!["k1".into(), "k2".into()], ..right() }, "its members are k1, k2"),
        ] {
            let said = compare(&journal, &held).unwrap_err();
            assert!(said.contains(wanted), "{said}");
        }
    }
}
