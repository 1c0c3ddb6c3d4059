//! The manifest: a JSON document that lies beside a backup and says what is in it. It is written last, so that a backup with a manifest is
//! whole, and one without was never finished or was made by something else.

use super::seal::hex;
use etcd_snapshot::Snapshot;
use jiff::Timestamp;
use quorum_safety::{ClusterId, MemberId};
use serde::{Deserialize, Serialize};

/// The version of the format. It grows when a reader of an older one would take a newer one wrongly; fields that are new do not count.
pub const FORMAT: u32 = 1;

/// How a manifest is named: `<name>.json`, whatever the file of the snapshot beside it is called.
pub const SUFFIX: &str = ".json";

/// What a backup is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// `etcd-snapshot-YYYYmmdd-HHMMSS`; what is stored is named after it.
    pub name: String,
    /// When the snapshot was asked for.
    pub taken_at: Timestamp,
    /// How long it took until all but this manifest was stored.
    pub seconds: f64,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The UID of namespace kube-system, where the API told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_uid: Option<String>,
    /// Who the snapshot is from.
    pub member: From,
    /// The version of that member, as in `3.6.15`.
    pub etcd_version: String,
    /// The version of what is stored, as in `3.6.0`; since etcd 3.6.
    #[serde(default)]
    pub storage_version: Option<String>,
    /// The version of an apiserver that answered, as in `v1.36.1`; none when none did.
    #[serde(default)]
    pub kubernetes_version: Option<String>,
    /// The snapshot as etcd sent it, whatever was done to it afterwards.
    pub snapshot: Facts,
    /// The file in which it is.
    pub stored: Stored,
    /// What a snapshot does not hold, of the node on which the backup was made.
    pub node: Node,
}

impl Manifest {
    /// The files that lie beside it.
    pub fn files(&self) -> impl Iterator<Item = &Stored> {
        let node = match &self.node {
            Node::Stored(stored) => Some(stored),
            Node::Absent(_) => None,
        };
        std::iter::once(&self.stored).chain(node)
    }
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct From {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: MemberId,
}

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Bytes of the `.db`, its checksum at the end with it.
    pub bytes: u64,
    /// SHA-256 of the whole `.db`, in hexadecimal, as `sha256sum` tells it.
    pub sha256: String,
    /// `hash` of `etcdutl snapshot status`.
    pub hash: u32,
    /// The revision of its last record.
    pub revision: i64,
    /// The revision up to which a compaction was done; none when there was none.
    #[serde(default)]
    pub compact_revision: Option<i64>,
    /// Keys that are there at that revision; none when there were too many to be counted.
    #[serde(default)]
    pub keys: Option<u64>,
    /// Bytes of the database: `totalSize` of `etcdutl snapshot status`.
    pub total_size: u64,
    /// Bytes of its pages that are in use.
    pub size_in_use: u64,
}

impl Facts {
    /// Of a snapshot that was verified.
    pub fn of(snapshot: &Snapshot) -> Self {
        let pages = &snapshot.pages;
        Self {
            bytes: snapshot.file_size,
            sha256: hex(&snapshot.file_sha256),
            hash: snapshot.hash,
            revision: snapshot.revision,
            compact_revision: snapshot.finished_compaction,
            keys: snapshot.keys,
            total_size: snapshot.total_size,
            size_in_use: pages.total.saturating_sub(pages.free).saturating_mul(pages.size),
        }
    }
}

/// A file of a backup, beside its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// Its name.
    pub file: String,
    /// Its bytes.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal: `sha256sum` of what is stored.
    pub sha256: String,
    /// How it is compressed.
    pub compression: Compression,
    /// To whom it is encrypted; none when it is not.
    #[serde(default)]
    pub encryption: Option<Encryption>,
}

/// How a file is compressed; before it is encrypted.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Compression {
    /// Not at all.
    None,
    /// `zstd -d` undoes it.
    Zstd,
}

/// How a file is encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Encryption {
    /// With what.
    pub kind: EncryptionKind,
    /// Whose identities open it: public keys.
    pub recipients: Vec<String>,
}

/// With what a file is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EncryptionKind {
    /// `age -d` undoes it.
    Age,
}

/// The archive of a node: PKI, static pod manifests, kubeadm-config, encryption configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Node {
    /// It lies beside the snapshot.
    Stored(Stored),
    /// There is none; why.
    Absent(String),
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn manifest() -> Manifest {
        Manifest {
            format: FORMAT,
            name: "etcd-snapshot-20261126-204500".to_owned(),
            taken_at: "2026-11-26T20:45:00Z".parse().unwrap(),
            seconds: 1.5,
            cluster_id: ClusterId(0xabc),
            cluster_uid: None,
            member: From { name: "k2".to_owned(), id: MemberId(0x8e9e_05c5_2164_694d) },
            etcd_version: "3.6.15".to_owned(),
            storage_version: Some("3.6.0".to_owned()),
            kubernetes_version: None,
            snapshot: Facts {
                bytes: 24_608,
                sha256: "00ff".to_owned(),
                hash: 7,
                revision: 3,
                compact_revision: None,
                keys: Some(2),
                total_size: 24_576,
                size_in_use: 20_480,
            },
            stored: Stored {
                file: "etcd-snapshot-20261126-204500.db.zst.age".to_owned(),
                bytes: 900,
                sha256: "11ee".to_owned(),
                compression: Compression::Zstd,
                encryption: Some(Encryption { kind: EncryptionKind::Age, recipients: vec!["age1x".to_owned()] }),
            },
            node: Node::Absent("no recipients".to_owned()),
        }
    }

    #[test]
    fn reads_what_it_writes_and_what_a_later_version_writes() {
        let text = serde_json::to_string(&manifest()).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest());
        // Ids as etcd shows them: a number of 64 bits is cut by many readers of JSON.
        assert!(text.contains(r#""id":"8e9e05c52164694d""#), "{text}");
        let mut later: serde_json::Value = serde_json::from_str(&text).unwrap();
        later["stored"]["later"] = true.into();
        assert_eq!(serde_json::from_value::<Manifest>(later).unwrap(), manifest());
    }
}
