//! What a file holds, as far as it is told.

use serde::{Deserialize, Serialize};

use crate::error::Hex;

/// A file that was found sound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Snapshot {
    /// Bytes of the file, its checksum with it.
    pub file_size: u64,
    /// SHA-256 of the whole file, its checksum with it: what `sha256sum` tells.
    #[serde(serialize_with = "hexadecimal")]
    pub file_sha256: [u8; 32],
    /// Whether it ends in a checksum that was verified.
    pub trailer: Trailer,
    /// Bytes of the database: `totalSize` of `etcdutl snapshot status`.
    pub total_size: u64,
    /// CRC-32C over the names of all buckets and their keys and values: `hash` of `etcdutl snapshot status`.
    pub hash: u32,
    /// The revision of the last record, 0 when there is none: `revision` of `etcdutl snapshot status`.
    pub revision: i64,
    /// Entries of all buckets: `totalKey` of `etcdutl snapshot status` of etcd 3.5.
    pub entries: u64,
    /// Keys that are there at the last revision: `totalKey` of `etcdutl snapshot status` since etcd 3.6. None when there are too many
    /// to be counted in bounded memory and time; see [`Limits`](crate::Limits).
    pub keys: Option<u64>,
    /// The revision up to which a compaction was asked for.
    pub scheduled_compaction: Option<i64>,
    /// The revision up to which a compaction was done.
    pub finished_compaction: Option<i64>,
    /// The version of what is stored, such as `3.6.0`; since etcd 3.6. `version` of `etcdutl snapshot status`.
    pub storage_version: Option<String>,
    /// The version of the cluster, such as `3.6.0`.
    pub cluster_version: Option<String>,
    /// The raft index of the last entry that was applied.
    pub consistent_index: Option<u64>,
    /// The raft term of that entry.
    pub term: Option<u64>,
    /// Who votes, as raft has it.
    pub conf_state: Option<ConfState>,
    /// The members of the cluster, by id.
    pub members: Vec<Member>,
    /// The ids of members that were removed, in the order of their text.
    pub removed_members: Vec<u64>,
    /// Whether authentication is on.
    pub auth_enabled: bool,
    /// All buckets in their order.
    pub buckets: Vec<Bucket>,
    /// What the pages are used for.
    pub pages: PageUse,
}

/// The checksum at the end of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Trailer {
    /// The file is a snapshot that etcd sent: its last 32 bytes are the SHA-256 of all before them.
    Verified,
    /// The file is a database as it lies in a data directory, or a snapshot that was cut exactly before its checksum. That no bit of it
    /// has changed cannot be told. `etcdutl snapshot restore` wants `--skip-hash-check` for it.
    Missing,
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// The number of its entries.
    pub entries: u64,
}

/// What the pages of a file are used for. All numbers are pages, and the six kinds make up `total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct PageUse {
    /// Bytes of one page.
    pub size: u64,
    /// All of them.
    pub total: u64,
    /// The two that say where everything is.
    pub meta: u64,
    /// Inner pages of trees.
    pub branch: u64,
    /// Pages with entries.
    pub leaf: u64,
    /// What a branch or leaf takes beyond its first page.
    pub overflow: u64,
    /// The list of free pages; etcd writes none.
    pub freelist: u64,
    /// What a defragmentation would give back.
    pub free: u64,
    /// How many of the two meta pages are sound: both, in a snapshot. In a database file the older one may not be, after a crash.
    pub sound_metas: u8,
}

/// A member, as etcd stores it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its name; empty until it has started.
    #[serde(default)]
    pub name: String,
    /// Where other members reach it.
    #[serde(default, rename = "peerURLs", deserialize_with = "list")]
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has started.
    #[serde(default, rename = "clientURLs", deserialize_with = "list")]
    pub client_urls: Vec<String>,
    /// Whether it is a learner, which does not vote.
    #[serde(default)]
    pub is_learner: bool,
}

/// Who votes, as raft has it. Ids of members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ConfState {
    /// Voting members.
    #[serde(default, deserialize_with = "list")]
    pub voters: Vec<u64>,
    /// Learners.
    #[serde(default, deserialize_with = "list")]
    pub learners: Vec<u64>,
    /// Voting members before a change that is under way.
    #[serde(default, deserialize_with = "list")]
    pub voters_outgoing: Vec<u64>,
    /// Voting members that become learners when a change that is under way is done.
    #[serde(default, deserialize_with = "list")]
    pub learners_next: Vec<u64>,
}

fn hexadecimal<S: serde::Serializer>(bytes: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&Hex(bytes))
}

/// Go writes an empty list as `null`.
fn list<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
