//! What it asks of the API, by the Service's address as kured does: the node, its pods, and the lock.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::time::{sleep, timeout};

use super::Options;
use crate::prober::access::Access;
use crate::prober::connection::{Answer, Question, Target};

const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Between two tries to write a DaemonSet that others write, too.
const AGAIN: Duration = Duration::from_millis(100);

pub(super) struct Cluster {
    target: Target,
    node: String,
    set: String,
    annotation: String,
}

/// What the lock says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lock {
    /// Whom it names.
    pub(super) node_id: String,
    /// The node was cordoned before it was taken.
    pub(super) unschedulable: bool,
}

/// A pod of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    namespace: String,
    name: String,
    pub(super) uid: String,
}

impl Lock {
    fn of(json: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(json).context("the lock cannot be understood")?;
        let node_id = text(&value, &["nodeID"]).context("the lock names nobody")?.to_owned();
        Ok(Self { node_id, unschedulable: is_true(&value, &["metadata", "unschedulable"]) })
    }
}

impl Cluster {
    pub(super) fn in_pod(options: &Options) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).with_context(|| format!("{name}: this is no pod"));
        let server =
            format!("https://{}:{}", variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
        let target = Target::new(&Access::from_account(ACCOUNT.as_ref(), &server)?)?;
        Ok(Self {
            target,
            node: options.node_id.clone(),
            set: format!("/apis/apps/v1/namespaces/{}/daemonsets/{}", options.ds_namespace, options.ds_name),
            annotation: options.lock_annotation.clone(),
        })
    }

    async fn ask(&self, question: &Question) -> Result<Answer> {
        timeout(LIMIT, self.target.ask_once(question)).await.context("no answer")?
    }

    async fn get(&self, path: &str) -> Result<Value> {
        self.ask(&Question::get(path)).await?.json()
    }

    fn node(&self) -> String {
        format!("/api/v1/nodes/{}", self.node)
    }

    pub(super) async fn is_cordoned(&self) -> Result<bool> {
        Ok(is_true(&self.get(&self.node()).await?, &["spec", "unschedulable"]))
    }

    pub(super) async fn cordon(&self, cordoned: bool) -> Result<()> {
        let wanted = if cordoned { Value::Bool(true) } else { Value::Null };
        let question = Question {
            method: "PATCH",
            path: self.node(),
            content_type: "application/merge-patch+json",
            body: json!({"spec": {"unschedulable": wanted}}).to_string(),
        };
        self.ask(&question).await?.into_success()
    }

    /// What the lock says; none when there is none.
    pub(super) async fn lock(&self) -> Result<Option<Lock>> {
        locked(&self.get(&self.set).await?, &self.annotation)
    }

    /// Takes the lock; gives its holder when it is another's. One that this node has already is taken.
    pub(super) async fn acquire(&self, unschedulable: bool) -> Result<Option<String>> {
        loop {
            let mut set = self.get(&self.set).await?;
            match locked(&set, &self.annotation)? {
                Some(lock) if lock.node_id == self.node => return Ok(None),
                Some(lock) => return Ok(Some(lock.node_id)),
                None => {}
            }
            let lock = json!({"nodeID": self.node, "metadata": {"unschedulable": unschedulable},
                "created": now(), "TTL": 0});
            annotations(&mut set)?.insert(self.annotation.clone(), lock.to_string().into());
            if self.write(&set).await? {
                return Ok(None);
            }
            sleep(AGAIN).await;
        }
    }

    /// Gives the lock back.
    pub(super) async fn release(&self) -> Result<()> {
        loop {
            let mut set = self.get(&self.set).await?;
            match locked(&set, &self.annotation)? {
                Some(lock) if lock.node_id == self.node => {}
                Some(lock) => bail!("not the lock holder: {}", lock.node_id),
                None => return Ok(()),
            }
            annotations(&mut set)?.remove(&self.annotation);
            if self.write(&set).await? {
                return Ok(());
            }
            sleep(AGAIN).await;
        }
    }

    /// Writes the DaemonSet as it was read; whether nobody had written in between.
    async fn write(&self, set: &Value) -> Result<bool> {
        let question =
            Question { method: "PUT", path: self.set.clone(), content_type: "application/json", body: set.to_string() };
        let answer = self.ask(&question).await?;
        if answer.status == 409 {
            return Ok(false);
        }
        answer.into_success().map(|()| true)
    }

    /// The pods of the node that a drain takes away.
    pub(super) async fn pods_to_go(&self) -> Result<Vec<Pod>> {
        let all = self.get(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.node)).await?;
        let items = all.get("items").and_then(Value::as_array).context("no list of pods")?;
        Ok(items.iter().filter(|pod| goes(pod)).filter_map(Pod::of).collect())
    }

    /// Asks for its eviction.
    pub(super) async fn evict(&self, pod: &Pod) -> Result<()> {
        let Pod { namespace, name, .. } = pod;
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace}});
        let question = Question {
            method: "POST",
            path: format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction"),
            content_type: "application/json",
            body: eviction.to_string(),
        };
        let answer = self.ask(&question).await?;
        if answer.status == 404 { Ok(()) } else { answer.into_success().with_context(|| name.clone()) }
    }
}

impl Pod {
    fn of(pod: &Value) -> Option<Self> {
        let of = |key: &str| text(pod, &["metadata", key]).map(str::to_owned);
        Some(Self { namespace: of("namespace")?, name: of("name")?, uid: of("uid")? })
    }
}

fn at<'v>(value: &'v Value, path: &[&str]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

fn text<'v>(value: &'v Value, path: &[&str]) -> Option<&'v str> {
    at(value, path).and_then(Value::as_str)
}

fn is_true(value: &Value, path: &[&str]) -> bool {
    at(value, path) == Some(&Value::Bool(true))
}

fn annotations(set: &mut Value) -> Result<&mut Map<String, Value>> {
    let metadata = set.get_mut("metadata").and_then(Value::as_object_mut).context("a DaemonSet without metadata")?;
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    annotations.as_object_mut().context("its annotations are none")
}

/// Mirrors of static pods and pods of DaemonSets stay.
fn goes(pod: &Value) -> bool {
    let is_mirror = at(pod, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_some();
    let owners = at(pod, &["metadata", "ownerReferences"]).and_then(Value::as_array);
    let mut owners = owners.into_iter().flatten();
    let is_of_set = owners.any(|owner| text(owner, &["kind"]) == Some("DaemonSet") && is_true(owner, &["controller"]));
    !is_mirror && !is_of_set
}

/// The lock in a DaemonSet.
fn locked(set: &Value, annotation: &str) -> Result<Option<Lock>> {
    text(set, &["metadata", "annotations", annotation]).map(Lock::of).transpose()
}

#[expect(clippy::disallowed_methods, reason = "a stand-in for a program with a clock of its own")]
fn now() -> String {
    Timestamp::now().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_read_as_kured_writes_it() {
        let set = |lock: &str| json!({"metadata": {"annotations": {"a": lock}}});
        let lock = |lock: &str| locked(&set(lock), "a");
        let own = r#"{"nodeID":"k1","metadata":{"unschedulable":true},"created":"2026-11-27T10:00:00Z","TTL":0}"#;
        assert_eq!(lock(own).unwrap(), Some(Lock { node_id: "k1".to_owned(), unschedulable: true }));
        let ours = lock(r#"{"nodeID":"quorate/upgrade"}"#).unwrap().unwrap();
        assert_eq!((ours.node_id.as_str(), ours.unschedulable), ("quorate/upgrade", false));
        assert!(lock("{").is_err() && lock("{}").is_err());
        assert_eq!(locked(&set(own), "b").unwrap(), None);
        assert_eq!(locked(&json!({"metadata": {}}), "a").unwrap(), None);
    }

    #[test]
    fn mirrors_and_pods_of_daemon_sets_stay() {
        let owned = |kind: &str| json!({"metadata": {"ownerReferences": [{"kind": kind, "controller": true}]}});
        assert!(goes(&owned("ReplicaSet")) && goes(&json!({"metadata": {}})));
        assert!(!goes(&owned("DaemonSet")));
        assert!(!goes(&json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}})));
    }
}
