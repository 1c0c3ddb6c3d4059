//! What a sentinel asks of the API in one look. A handful of requests, each with its deadline, and none for all pods of the cluster.

use super::OPERATION;
use super::kured::Settings;
use super::reason::{Code, Reason};
use super::soak;
use crate::access::Access;
use crate::config::Config;
use crate::lock::kured::{Found, among};
use crate::lock::{self, Leases, lease};
use crate::observe::cluster::{complete, within};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, Client};
use quorum_safety::lock::{LeaseView, Record};
use quorum_safety::sentinel::Lock;
use quorum_safety::{Fact, NodeName};
use std::time::Duration;

/// What was seen.
pub struct Look {
    /// Whoever answered.
    pub client: Client,
    /// All nodes.
    pub nodes: Vec<soak::Seen>,
    /// All DaemonSets, or why they are not known.
    pub sets: Result<Vec<DaemonSet>, String>,
    /// kured; none inside where there is none.
    pub kured: Result<Option<Kured>, String>,
}

/// kured's DaemonSet.
pub struct Kured {
    /// Its lock.
    pub found: Found,
    /// Its configuration.
    pub settings: Settings,
    /// Its pods.
    pub pods: Result<KuredPods, String>,
}

/// How kured's pods are found, also when their DaemonSet is not there any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KuredPods {
    namespace: String,
    selector: String,
}

/// kured's pod on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KuredPod {
    name: String,
    /// Its UID.
    pub uid: String,
    /// Since when its process runs; none while none does.
    started: Option<Timestamp>,
    deleted: bool,
}

/// Looks at nodes and DaemonSets.
///
/// # Errors
/// When no apiserver answers, or the nodes cannot be read whole.
pub async fn look(access: &Access, config: &Config) -> Result<Look, String> {
    let limit = config.times.answer.get();
    let client = access.live(&[]).await.map_err(|error| error.to_string())?;
    let nodes: Api<Node> = Api::all(client.clone());
    let list = within(limit, nodes.list(&ListParams::default())).await.map_err(|why| format!("nodes: {why}"))?;
    complete(&list.metadata).map_err(|why| format!("nodes: {why}"))?;
    let nodes = list.items.iter().map(soak::Seen::of).collect::<Result<_, _>>()?;
    let sets: Api<DaemonSet> = Api::all(client.clone());
    let sets = within(limit, sets.list(&ListParams::default()))
        .await
        .and_then(|list| complete(&list.metadata).map(|()| list.items))
        .map_err(|why| format!("DaemonSets: {why}"));
    let kured = sets.as_ref().map_err(Clone::clone).and_then(|sets| {
        let found = among(sets, &config.kured)?;
        Ok(found.map(|(found, set)| Kured::of(found, set)))
    });
    Ok(Look { client, nodes, sets, kured })
}

/// The labels of its pods. None would be all pods of the namespace.
fn selector_of(set: &DaemonSet) -> Result<String, String> {
    let selector = set.spec.as_ref().map(|spec| &spec.selector);
    if selector.is_some_and(|selector| selector.match_expressions.as_ref().is_some_and(|all| !all.is_empty())) {
        return Err("kured's DaemonSet selects its pods by matchExpressions: expected matchLabels".to_owned());
    }
    let labels = selector.and_then(|selector| selector.match_labels.as_ref());
    let labels: Vec<String> = labels.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() {
        Err("kured's DaemonSet selects its pods by no label".to_owned())
    } else {
        Ok(labels.join(","))
    }
}

impl Kured {
    fn of(found: Found, set: &DaemonSet) -> Self {
        let pods = selector_of(set).map(|selector| KuredPods { namespace: found.namespace.clone(), selector });
        Self { found, settings: Settings::of(set), pods }
    }

    /// Whether its lock names this node at all.
    pub fn names(&self, node: &NodeName) -> bool {
        let blocks = self.found.lock.known().and_then(Option::as_ref).map(|lock| lock.blocks());
        blocks.unwrap_or_default().iter().any(|block| block.node_id == node.0)
    }

    /// Whom its lock names, as the protocol wants to know it. `ended` is the UID of a pod of it that was ended here.
    pub fn lock(&self, node: &NodeName, pod: Option<&KuredPod>, ended: Option<&str>) -> Fact<Lock> {
        let lock = match &self.found.lock {
            Fact::Unknown(why) => return Fact::Unknown(why.clone()),
            Fact::Known(lock) => lock.as_ref().map(|lock| lock.blocks()).unwrap_or_default(),
        };
        let Some(own) = lock.iter().find(|block| block.node_id == node.0) else {
            return Fact::Known(if lock.is_empty() { Lock::Free } else { Lock::Elsewhere });
        };
        // A process of kured that has begun after the lock was taken finds it, uncordons and releases. One whose times cannot be compared
        // may be the one that took it.
        let returning = match pod {
            None => true,
            Some(pod) if ended.is_some_and(|ended| ended != pod.uid) => true,
            Some(KuredPod { started: None, .. }) => true,
            Some(KuredPod { started: Some(started), .. }) => {
                let taken = own.created.parse::<Timestamp>().ok().filter(|taken| *taken > Timestamp::UNIX_EPOCH);
                taken.is_some_and(|taken| started.as_second() > taken.as_second())
            }
        };
        Fact::Known(if returning { Lock::Returning } else { Lock::Here })
    }
}

impl KuredPods {
    /// Its pod on a node.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn pod(&self, client: &Client, node: &NodeName, limit: Duration) -> Result<Option<KuredPod>, String> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        let params = ListParams::default().labels(&self.selector).fields(&format!("spec.nodeName={node}"));
        let list = within(limit, pods.list(&params)).await.map_err(|why| format!("kured's pod on {node}: {why}"))?;
        complete(&list.metadata)?;
        // One that is being deleted and its successor may both be there: the older one first.
        let mut pods: Vec<&Pod> = list.items.iter().collect();
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|at| at.0));
        Ok(pods.first().and_then(|pod| KuredPod::of(pod)))
    }

    /// Deletes that pod; it has ended when it is gone.
    ///
    /// # Errors
    /// When it could not be asked for.
    pub async fn end(&self, client: &Client, pod: &KuredPod, limit: Duration) -> Result<(), String> {
        if pod.deleted {
            return Ok(());
        }
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        let preconditions = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match tokio::time::timeout(limit, pods.delete(&pod.name, &params)).await {
            Ok(Ok(_)) => Ok(()),
            // Gone, or another one by now.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
            Ok(Err(error)) => Err(format!("pod {}/{}: {}", self.namespace, pod.name, lease::said(&error))),
            Err(_) => Err(format!("pod {}/{}: no answer in {limit:?}", self.namespace, pod.name)),
        }
    }
}

impl KuredPod {
    fn of(pod: &Pod) -> Option<Self> {
        let containers =
            pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
        let running = containers.iter().filter_map(|one| one.state.as_ref()?.running.as_ref()?.started_at.as_ref());
        Some(Self {
            name: pod.metadata.name.clone()?,
            uid: pod.metadata.uid.clone()?,
            // Of several the first: it may be the one that looks.
            started: running.map(|at| at.0).min(),
            deleted: pod.metadata.deletion_timestamp.is_some(),
        })
    }
}

/// The Leases among which this node's is: the control plane's, or the slots for workers.
pub fn slots(control_plane: bool, config: &Config) -> Vec<String> {
    if control_plane {
        vec![lock::CONTROL_PLANE.to_owned()]
    } else {
        (0..config.rule.worker_slots).map(lock::worker).collect()
    }
}

/// The Lease that is held for a reboot of this node, and its record; none when none is.
///
/// # Errors
/// When one of them cannot be read, or not be understood: it may be this node's.
pub async fn held_for(leases: &Leases, slots: &[String], node: &NodeName) -> Result<Option<(String, Record)>, Reason> {
    let unknown = |slot: &str, why: String| {
        Reason::from(quorum_safety::Reason::new(quorum_safety::Code::LeaseUnknown, format!("{slot}: {why}")))
    };
    for slot in slots {
        let seen = leases.read(slot).await.map_err(|error| unknown(slot, error.to_string()))?;
        match seen.view {
            LeaseView::Held { record: Fact::Known(record), .. } => {
                if record.operation == OPERATION && record.target == *node {
                    return Ok(Some((slot.clone(), record)));
                }
            }
            LeaseView::Held { record: Fact::Unknown(why), .. } => return Err(unknown(slot, why)),
            LeaseView::Free { .. } | LeaseView::Absent => {}
        }
    }
    Ok(None)
}

impl Look {
    /// Why kured would not do what the gate says, or do more.
    pub fn about_kured(&self, gate: &std::path::Path, control_plane: bool) -> Vec<Reason> {
        let kured = match &self.kured {
            Err(why) => return vec![quorum_safety::Reason::new(quorum_safety::Code::KuredUnknown, why.clone()).into()],
            Ok(None) => return vec![Reason::new(Code::KuredAbsent, "no DaemonSet of it was found")],
            Ok(Some(kured)) => kured,
        };
        let mut reasons: Vec<Reason> = kured.settings.elsewhere(gate).into_iter().collect();
        reasons.extend(kured.settings.command.clone());
        // It could not be ended.
        reasons.extend(kured.pods.as_ref().err().map(|why| Reason::new(Code::KuredUnreadable, why.clone())));
        // It would wait for an alert of ours on any node, and for as long as that lasts (incident R29).
        reasons.extend(kured.settings.alerts.clone());
        if control_plane {
            reasons.extend(kured.settings.dangers.clone());
        } else {
            let period = kured.settings.period.as_ref().err();
            reasons.extend(period.map(|why| Reason::new(Code::KuredUnreadable, why.clone())));
        }
        reasons
    }

    /// What of kured's configuration is none of these reasons, on a worker, and would be one on a control plane node: somebody should know.
    pub fn advice(&self, reasons: &[Reason]) -> Vec<Reason> {
        let kured = self.kured.as_ref().ok().and_then(Option::as_ref);
        let dangers = kured.map(|kured| kured.settings.dangers.as_slice()).unwrap_or_default();
        dangers.iter().filter(|reason| !reasons.contains(reason)).cloned().collect()
    }

    /// Why it is not the time of kured's window. Two of its periods must be left: one until it looks, one for it to act.
    pub fn about_window(&self, now: Timestamp) -> Option<Reason> {
        let settings = &self.kured.as_ref().ok()?.as_ref()?.settings;
        match (&settings.window, &settings.period) {
            (Err(why), _) => Some(Reason::new(Code::KuredUnreadable, why.clone())),
            (Ok(window), Ok(period)) => {
                let ahead = period.saturating_mul(2);
                window.open(now, ahead).err().map(|why| Reason::new(Code::WindowClosed, why))
            }
            // Told by itself.
            (Ok(_), Err(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kured(lock: Option<&str>) -> Kured {
        let annotations = lock.map_or_else(|| json!({}), |lock| json!({"weave.works/kured-node-lock": lock}));
        let set: DaemonSet = serde_json::from_value(json!({
            "metadata": {"namespace": "kube-system", "name": "kured", "resourceVersion": "1", "annotations": annotations},
            "spec": {"selector": {"matchLabels": {"name": "kured", "app": "x"}}, "template": {}},
        }))
        .unwrap();
        let (found, set) = among(std::slice::from_ref(&set), "auto").unwrap().unwrap();
        Kured::of(found, set)
    }

    fn pod(started: Option<&str>) -> KuredPod {
        let started = started.map(|at| at.parse().unwrap());
        KuredPod { name: "kured-x".to_owned(), uid: "new".to_owned(), started, deleted: false }
    }

    #[test]
    fn kureds_lock_is_acted_on_by_a_process_that_is_older_than_it() {
        let own = r#"{"nodeID":"k2","metadata":{"unschedulable":false},"created":"2026-11-27T10:00:00Z","TTL":0}"#;
        let k2 = NodeName::from("k2");
        let lock =
            |lock: Option<&str>, pod: Option<KuredPod>, ended: Option<&str>| kured(lock).lock(&k2, pod.as_ref(), ended);
        assert_eq!(lock(None, None, None), Fact::Known(Lock::Free));
        assert_eq!(lock(Some(r#"{"nodeID":"k1"}"#), None, None), Fact::Known(Lock::Elsewhere));
        assert_eq!(lock(Some(r#"{"nodeID":"quorate/upgrade-v1.36.3"}"#), None, None), Fact::Known(Lock::Elsewhere));
        assert!(lock(Some("{"), None, None).known().is_none());
        let older = || Some(pod(Some("2026-11-27T09:00:00Z")));
        assert_eq!(lock(Some(own), older(), None), Fact::Known(Lock::Here));
        assert_eq!(lock(Some(own), older(), Some("old")), Fact::Known(Lock::Returning), "the one of before was ended");
        assert_eq!(lock(Some(own), older(), Some("new")), Fact::Known(Lock::Here), "it is being ended");
        assert_eq!(lock(Some(own), Some(pod(Some("2026-11-27T10:00:01Z"))), None), Fact::Known(Lock::Returning));
        assert_eq!(lock(Some(own), Some(pod(None)), None), Fact::Known(Lock::Returning));
        assert_eq!(lock(Some(own), None, None), Fact::Known(Lock::Returning));
        assert_eq!(lock(Some(r#"{"nodeID":"k2"}"#), older(), None), Fact::Known(Lock::Here), "Go's year one");
        assert_eq!(lock(Some(r#"{"nodeID":"k2","created":"soon"}"#), older(), None), Fact::Known(Lock::Here));
    }

    #[test]
    fn kureds_pods_are_found_by_its_labels_and_never_by_none() {
        assert_eq!(kured(None).pods.unwrap().selector, "app=x,name=kured");
        let by = |selector: serde_json::Value| {
            let spec = json!({"selector": selector, "template": {}});
            selector_of(&serde_json::from_value(json!({"spec": spec})).unwrap())
        };
        assert!(by(json!({})).is_err() && by(json!({"matchLabels": {}})).is_err());
        let expression = json!([{"key": "name", "operator": "In", "values": ["kured"]}]);
        assert!(by(json!({"matchLabels": {"app": "x"}, "matchExpressions": expression})).is_err());
        assert_eq!(by(json!({"matchLabels": {"app": "x"}, "matchExpressions": []})).unwrap(), "app=x");
    }
}
