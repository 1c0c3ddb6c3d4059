//! What an upgrade writes down in the cluster before it does it: ConfigMap `quorate-upgrade-<version>`. The state of an
//! upgrade is the live fleet; this holds only what the fleet does not show.

use crate::node::Versions;
use crate::upgrade::lifted::Lifted;
use crate::upgrade::timeline::Part;
use crate::version::Version;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use quorum_safety::NodeName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most verdicts that are kept.
pub const VERDICTS: usize = 20;
/// Most bytes of them, but the last one is always kept: a ConfigMap holds 1 MiB, and what cannot be recorded is not done.
const VERDICT_BYTES: usize = 512 * 1024;
const STATE: &str = "state.json";
const VERDICT_LOG: &str = "verdicts.jsonl";

/// What the fleet does not show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ChainRecord {
    /// The node that `kubeadm upgrade apply` runs on, written before it starts.
    pub apply_node: Option<NodeName>,
    /// Version of the kubeadm package by node, as the last node Job on it said.
    pub kubeadm: BTreeMap<NodeName, Version>,
    /// The tag of etcd's image that the target's kubeadm writes, as the last node Job said that could tell.
    pub etcd: Option<String>,
    /// The image id that the chain began with: another one in mid-way is refused.
    pub image: Option<String>,
    /// Seconds that each finished node took.
    pub seconds: BTreeMap<NodeName, u64>,
    /// What of them went where, by node: of the step that finished it.
    pub parts: BTreeMap<NodeName, Vec<Part>>,
    /// Single checks that somebody has lifted for this upgrade, also those whose time is over.
    pub lifted: Vec<Lifted>,
}

impl ChainRecord {
    /// Whether a node was touched for this upgrade.
    pub fn begun(&self) -> bool {
        self.apply_node.is_some() || !self.seconds.is_empty()
    }

    /// Keeps what a node Job said of its node's packages. What it could not tell leaves what was told before.
    pub fn heard(&mut self, node: &NodeName, versions: &Versions) {
        if let Some(version) = versions.packages.get("kubeadm") {
            self.kubeadm.insert(node.clone(), *version);
        }
        if versions.etcd_wanted.is_some() {
            self.etcd.clone_from(&versions.etcd_wanted);
        }
    }
}

/// The record as it is in the cluster.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// What it says.
    pub record: ChainRecord,
    /// The object it was read from; none when there is none yet.
    object: Option<ConfigMap>,
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A request failed.
    #[error("ConfigMap {name}: {source}")]
    Request {
        /// Its name.
        name: String,
        /// Why.
        source: kube::Error,
    },
    /// Its text is not a record.
    #[error("ConfigMap {name}, key {STATE}: {source}; mend or delete it")]
    Unreadable {
        /// Its name.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// It is there and says nothing: somebody has edited it.
    #[error("ConfigMap {name} has no key {STATE}: put it back, or delete the ConfigMap")]
    NoState {
        /// Its name.
        name: String,
    },
}

/// What the names begin with.
const PREFIX: &str = "quorate-upgrade-";

/// Name of the ConfigMap.
pub fn name(to: Version) -> String {
    format!("{PREFIX}{to}")
}

/// How long the nodes of one upgrade took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Its target.
    pub to: Version,
    /// Seconds that each finished node took.
    pub seconds: BTreeMap<NodeName, u64>,
}

/// All upgrades of this cluster in which a node was finished, the one that was begun last first. A record that cannot be read measures
/// nothing.
///
/// # Errors
/// When they cannot be listed.
pub async fn measured(client: &Client, namespace: &str) -> Result<Vec<Measured>, RecordError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let listed = maps.list(&ListParams::default()).await;
    let list = listed.map_err(|source| RecordError::Request { name: format!("{PREFIX}*"), source })?;
    let mut found: Vec<_> =
        list.items.iter().filter_map(|map| Some((&map.metadata.creation_timestamp, of(map)?))).collect();
    found.sort_by(|(a, one), (b, other)| {
        let when = |time: &Option<Time>| time.as_ref().map(|time| time.0);
        when(b).cmp(&when(a)).then(other.to.cmp(&one.to))
    });
    Ok(found.into_iter().map(|(_, measured)| measured).collect())
}

fn of(map: &ConfigMap) -> Option<Measured> {
    let to = map.metadata.name.as_deref()?.strip_prefix(PREFIX)?.parse().ok()?;
    let record: ChainRecord = serde_json::from_str(map.data.as_ref()?.get(STATE)?).ok()?;
    (!record.seconds.is_empty()).then_some(Measured { to, seconds: record.seconds })
}

impl Stored {
    /// Reads the record; an empty one when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn read(client: &Client, namespace: &str, to: Version) -> Result<Self, RecordError> {
        let name = name(to);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let object = maps.get_opt(&name).await.map_err(|source| RecordError::Request { name: name.clone(), source })?;
        let record = match &object {
            None => ChainRecord::default(),
            Some(object) => match object.data.as_ref().and_then(|data| data.get(STATE)) {
                Some(text) => serde_json::from_str(text).map_err(|source| RecordError::Unreadable { name, source })?,
                None => return Err(RecordError::NoState { name }),
            },
        };
        Ok(Self { record, object })
    }

    /// Changes the record, with the resourceVersion as a precondition; read again and tried again when somebody else was
    /// faster.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn update(
        client: &Client,
        namespace: &str,
        to: Version,
        verdict: Option<&str>,
        change: impl Fn(&mut ChainRecord),
    ) -> Result<ChainRecord, RecordError> {
        let name = name(to);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let failed = |source| RecordError::Request { name: name.clone(), source };
        let mut attempts = 0;
        loop {
            let stored = Self::read(client, namespace, to).await?;
            let mut record = stored.record;
            change(&mut record);
            let text = serde_json::to_string(&record)
                .map_err(|source| RecordError::Unreadable { name: name.clone(), source })?;
            let mut object = stored.object.clone().unwrap_or_else(|| ConfigMap {
                metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
                ..ConfigMap::default()
            });
            let data = object.data.get_or_insert_with(BTreeMap::new);
            data.insert(STATE.to_owned(), text);
            if let Some(verdict) = verdict {
                let log = data.entry(VERDICT_LOG.to_owned()).or_default();
                *log = appended(log, verdict);
            }
            let written = if stored.object.is_some() {
                maps.replace(&name, &PostParams::default(), &object).await
            } else {
                maps.create(&PostParams::default(), &object).await
            };
            match written {
                Ok(_) => return Ok(record),
                Err(kube::Error::Api(status)) if status.code == 409 && attempts < 5 => attempts += 1,
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// The log with one more line; the oldest go.
fn appended(log: &str, line: &str) -> String {
    let mut lines: Vec<&str> = log.lines().chain([line]).collect();
    let mut bytes = 0;
    let kept = lines.iter().rev().take(VERDICTS).take_while(|line| {
        bytes += line.len() + 1;
        bytes <= VERDICT_BYTES
    });
    let kept = kept.count().max(1);
    lines.drain(..lines.len() - kept);
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_cannot_tell_leaves_what_was_told_before() {
        let mut record: ChainRecord = serde_json::from_str("{}").unwrap();
        let told = |kubeadm: &str, etcd: Option<&str>| Versions {
            packages: BTreeMap::from([("kubeadm".to_owned(), kubeadm.parse().unwrap())]),
            etcd_wanted: etcd.map(str::to_owned),
            ..Versions::default()
        };
        record.heard(&"k1".into(), &told("v1.36.3", Some("3.6.8-0")));
        record.heard(&"k2".into(), &told("v1.36.1", None));
        record.heard(&"k1".into(), &Versions::default());
        assert_eq!(record.etcd.as_deref(), Some("3.6.8-0"));
        assert_eq!(record.kubeadm.len(), 2);
        assert_eq!(record.kubeadm.get(&NodeName::from("k1")).map(ToString::to_string).as_deref(), Some("v1.36.3"));
    }

    #[test]
    fn the_last_verdicts_are_kept() {
        let mut log = String::new();
        for number in 0..50 {
            log = appended(&log, &format!("{{\"n\":{number}}}"));
        }
        assert_eq!(log.lines().count(), VERDICTS);
        assert_eq!(log.lines().last(), Some("{\"n\":49}"));
    }

    #[test]
    fn many_large_verdicts_fit_a_config_map() {
        let mut log = String::new();
        for _ in 0..VERDICTS {
            log = appended(&log, &"x".repeat(200_000));
        }
        assert_eq!(log.lines().count(), 2);
        assert_eq!(appended(&log, &"y".repeat(600_000)).lines().count(), 1);
    }
}
