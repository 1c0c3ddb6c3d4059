//! Which pods of a node go. Pure, after kubectl's filters (kubectl `drain/filters.go`): the first that has an opinion wins.

use super::{BlockKind, PodRef};
use crate::job::{CONTAINER, OPERATION};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use quorum_safety::Fact;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Annotation that the kubelet sets on the API object of a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Taint of a cordoned node.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// What to do with pods that no controller would bring back.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UnmanagedPods {
    /// They block the drain.
    #[default]
    Block,
    /// They are evicted, and are gone for good.
    Evict,
}

/// What happens to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is evicted.
    Evict,
    /// It stays, and that is in order.
    Skip(SkipReason),
    /// It stands in the way; why, for people.
    Block(BlockKind, String),
}

/// Why a pod stays on a drained node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SkipReason {
    /// The API object of a static pod: only the kubelet can remove it.
    Mirror,
    /// Its DaemonSet, of this name, would put it back at once.
    DaemonSet(String),
    /// It does our work on this node.
    NodeJob,
    /// A finished pod of ours: it is the record of what was done.
    Record,
    /// It came after the cordon and tolerates it: evicted, it would come again.
    ToleratesCordon,
    /// Its controller put it back here each time it was evicted.
    KeepsReturning,
}

/// A DaemonSet by namespace and name.
pub type DaemonSetKey = (String, String);

/// What the filters need to know beside the pod.
#[derive(Clone, Debug)]
pub struct Surroundings<'a> {
    /// The namespace of quorate.
    pub namespace: &'a str,
    /// UID of the pod that drains, if it is a pod.
    pub own_uid: Option<&'a str>,
    /// UIDs of the DaemonSets that own pods of the node; none for one that does not exist.
    pub daemon_sets: &'a BTreeMap<DaemonSetKey, Fact<Option<String>>>,
    /// What to do with pods that nothing would bring back.
    pub unmanaged: UnmanagedPods,
}

/// What happens to a pod of the node.
pub fn fate(pod: &Pod, around: &Surroundings<'_>) -> Fate {
    mirror(pod)
        .or_else(|| own(pod, around))
        .or_else(|| daemon_set(pod, around))
        .or_else(|| unmanaged(pod, around))
        .unwrap_or(Fate::Evict)
}

fn mirror(pod: &Pod) -> Option<Fate> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.contains_key(MIRROR).then_some(Fate::Skip(SkipReason::Mirror))
}

/// R01: what drains a node, or leads an upgrade, must not run on it. The label counts in our namespace only: elsewhere
/// anybody could keep a pod on a node with it.
fn own(pod: &Pod, around: &Surroundings<'_>) -> Option<Fate> {
    if around.own_uid.is_some() && pod.metadata.uid.as_deref() == around.own_uid {
        let reason = "it is the pod that drains, and runs on the node that it would take down";
        return Some(Fate::Block(BlockKind::OwnActor, reason.to_owned()));
    }
    let operation = pod.metadata.labels.as_ref()?.get(OPERATION)?;
    if pod.metadata.namespace.as_deref() != Some(around.namespace) {
        return None;
    }
    if finished(pod) {
        return Some(Fate::Skip(SkipReason::Record));
    }
    match subcommand(pod) {
        Some("node") => Some(Fate::Skip(SkipReason::NodeJob)),
        Some(actor @ ("step" | "drain")) => Some(Fate::Block(
            BlockKind::OwnActor,
            format!("it runs `quorate {actor}` of operation {operation} on the node that it would take down"),
        )),
        // Gates, backups and the like disrupt nothing: they go like any other pod. So does a pass of reconcile: what it starts is a Job of
        // its own, and the next pass does what this one did not.
        Some(_) => None,
        None => Some(Fate::Block(
            BlockKind::Unknown,
            format!("it works for operation {operation}, and what it does cannot be told from its arguments"),
        )),
    }
}

/// The first argument of quorate's container that is a subcommand; flags may stand before it.
fn subcommand(pod: &Pod) -> Option<&str> {
    const KNOWN: [&str; 14] = [
        "detect",
        "drain",
        "etcd",
        "explain",
        "gate",
        "lease",
        "members",
        "node",
        "plan",
        "reconcile",
        "restore",
        "sentinel",
        "status",
        "step",
    ];
    let containers = &pod.spec.as_ref()?.containers;
    let container = containers.iter().find(|container| container.name == CONTAINER)?;
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    words.map(String::as_str).find(|word| KNOWN.contains(word))
}

fn daemon_set(pod: &Pod, around: &Surroundings<'_>) -> Option<Fate> {
    let key = owning_daemon_set(pod)?;
    let uid = &controller(pod)?.uid;
    match around.daemon_sets.get(&key) {
        Some(Fact::Known(Some(found))) if found == uid => Some(Fate::Skip(SkipReason::DaemonSet(key.1))),
        // Its DaemonSet is gone: nothing brings it back. kubectl asks for --force here.
        Some(Fact::Known(_)) if finished(pod) || around.unmanaged == UnmanagedPods::Evict => Some(Fate::Evict),
        Some(Fact::Known(_)) => Some(Fate::Block(
            BlockKind::Unmanaged,
            format!("its DaemonSet {} does not exist any more: nothing would bring it back", key.1),
        )),
        Some(Fact::Unknown(why)) => {
            Some(Fate::Block(BlockKind::Unknown, format!("whether its DaemonSet {} exists is not known: {why}", key.1)))
        }
        None => {
            Some(Fate::Block(BlockKind::Unknown, format!("whether its DaemonSet {} exists was not looked up", key.1)))
        }
    }
}

fn unmanaged(pod: &Pod, around: &Surroundings<'_>) -> Option<Fate> {
    if finished(pod) || controller(pod).is_some() || around.unmanaged == UnmanagedPods::Evict {
        return None;
    }
    let reason = "it has no controller: nothing would bring it back (`drain.unmanagedPods: evict` allows it)";
    Some(Fate::Block(BlockKind::Unmanaged, reason.to_owned()))
}

/// The DaemonSet that a pod belongs to, as far as the pod says.
pub fn owning_daemon_set(pod: &Pod) -> Option<DaemonSetKey> {
    let owner = controller(pod).filter(|owner| owner.kind == "DaemonSet" && owner.api_version.starts_with("apps/"))?;
    Some((pod.metadata.namespace.clone()?, owner.name.clone()))
}

/// The owner that keeps a pod running.
pub fn controller(pod: &Pod) -> Option<&OwnerReference> {
    pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether all containers have ended for good.
pub fn finished(pod: &Pod) -> bool {
    matches!(phase(pod), Some("Succeeded" | "Failed"))
}

/// Whether it has been told to go.
pub fn leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether the eviction API asks a budget at all (`canIgnorePDB` of its eviction.go).
pub fn guarded(pod: &Pod) -> bool {
    !leaving(pod) && !finished(pod) && phase(pod) != Some("Pending")
}

/// Whether it counts as healthy for a budget: its condition Ready is true.
pub fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether the scheduler would put it on a cordoned node.
pub fn tolerates_cordon(pod: &Pod) -> bool {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_ref());
    tolerations.into_iter().flatten().any(|toleration| {
        let key = toleration.key.as_deref().unwrap_or("");
        let exists = toleration.operator.as_deref() == Some("Exists");
        let value = exists || toleration.value.as_deref().unwrap_or("").is_empty();
        let effect = matches!(toleration.effect.as_deref(), None | Some("" | "NoSchedule"));
        (key == UNSCHEDULABLE || (key.is_empty() && exists)) && value && effect
    })
}

/// Names of the volumes whose data goes with the pod.
pub fn empty_dirs(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes
        .into_iter()
        .flatten()
        .filter(|volume| volume.empty_dir.is_some())
        .map(|volume| volume.name.clone())
        .collect()
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

/// A pod that stays, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Skipped {
    /// The pod.
    pub pod: PodRef,
    /// Why.
    pub reason: SkipReason,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn fate_of(value: Value, unmanaged: UnmanagedPods) -> Fate {
        let sets = [
            ("there", Fact::Known(Some("uid-there".to_owned()))),
            ("deleted", Fact::Known(None)),
            ("unseen", Fact::Unknown("no answer".to_owned())),
        ];
        let daemon_sets = sets.map(|(name, found)| (("ns".to_owned(), name.to_owned()), found)).into();
        let around =
            Surroundings { namespace: "quorate", own_uid: Some("uid-me"), daemon_sets: &daemon_sets, unmanaged };
        fate(&pod(value), &around)
    }

    fn owned(kind: &str, name: &str, uid: &str) -> Value {
        let version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
        json!({"namespace": "ns", "name": "p", "uid": "u",
            "ownerReferences": [{"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true}]})
    }

    type Expected = Box<dyn Fn(&Fate) -> bool>;

    #[test]
    fn each_filter_has_its_say() {
        let block = |kind| move |fate: &Fate| matches!(fate, Fate::Block(found, _) if *found == kind);
        let is = |wanted: Fate| move |fate: &Fate| *fate == wanted;
        let daemon = |name: &str, uid: &str| json!({"metadata": owned("DaemonSet", name, uid)});
        let alone = json!({"namespace": "ns", "name": "p", "uid": "u"});
        let rows: Vec<(&str, Value, Expected)> = vec![
            ("of a ReplicaSet", json!({"metadata": owned("ReplicaSet", "web", "x")}), Box::new(is(Fate::Evict))),
            ("alone", json!({"metadata": alone}), Box::new(block(BlockKind::Unmanaged))),
            ("alone, finished", json!({"metadata": alone, "status": {"phase": "Failed"}}), Box::new(is(Fate::Evict))),
            (
                "alone, running",
                json!({"metadata": alone, "status": {"phase": "Running"}}),
                Box::new(block(BlockKind::Unmanaged)),
            ),
            (
                "mirror",
                json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}),
                Box::new(is(Fate::Skip(SkipReason::Mirror))),
            ),
            (
                "daemon",
                daemon("there", "uid-there"),
                Box::new(is(Fate::Skip(SkipReason::DaemonSet("there".to_owned())))),
            ),
            ("daemon, made again", daemon("there", "uid-before"), Box::new(block(BlockKind::Unmanaged))),
            ("daemon, deleted", daemon("deleted", "x"), Box::new(block(BlockKind::Unmanaged))),
            ("daemon, unseen", daemon("unseen", "x"), Box::new(block(BlockKind::Unknown))),
            ("daemon, not asked", daemon("other", "x"), Box::new(block(BlockKind::Unknown))),
            ("myself", json!({"metadata": {"namespace": "ns", "uid": "uid-me"}}), Box::new(block(BlockKind::OwnActor))),
        ];
        for (what, value, expected) in rows {
            let fate = fate_of(value, UnmanagedPods::Block);
            assert!(expected(&fate), "{what}: {fate:?}");
        }
        assert_eq!(fate_of(json!({"metadata": alone}), UnmanagedPods::Evict), Fate::Evict);
        assert_eq!(fate_of(daemon("deleted", "x"), UnmanagedPods::Evict), Fate::Evict);
        // Unknown stays unknown, whatever is allowed.
        assert!(block(BlockKind::Unknown)(&fate_of(daemon("unseen", "x"), UnmanagedPods::Evict)));
    }

    #[test]
    fn r01_our_own_pods_are_told_apart_by_what_they_run() {
        let ours = |namespace: &str, args: &[&str], phase: &str| {
            let mut metadata = owned("Job", "job", "x");
            metadata["namespace"] = json!(namespace);
            metadata["labels"] = json!({OPERATION: "upgrade-v1.36.3"});
            let containers = json!([{"name": "sidecar", "args": ["gate"]}, {"name": CONTAINER, "args": args}]);
            let pod = json!({"metadata": metadata, "spec": {"containers": containers}, "status": {"phase": phase}});
            match fate_of(pod, UnmanagedPods::Block) {
                Fate::Evict => "evict",
                Fate::Skip(SkipReason::NodeJob) => "node job",
                Fate::Skip(SkipReason::Record) => "record",
                Fate::Block(BlockKind::OwnActor, _) => "actor",
                Fate::Block(BlockKind::Unknown, _) => "unknown",
                other => panic!("{other:?}"),
            }
        };
        for (args, phase, expected) in [
            (&["node", "upgrade"][..], "Running", "node job"),
            (&["--log", "info", "node", "upgrade"], "Pending", "node job"),
            (&["step", "control-plane", "--node", "k1"], "Running", "actor"),
            (&["step", "control-plane", "--node", "k1"], "Succeeded", "record"),
            (&["reconcile"], "Running", "evict"),
            (&["gate", "--node", "step"], "Running", "evict"),
            (&[], "Running", "unknown"),
        ] {
            assert_eq!(ours("quorate", args, phase), expected, "{args:?} {phase}");
        }
        assert_eq!(ours("ns", &["node", "upgrade"], "Running"), "evict", "the label counts in our namespace only");
    }

    #[test]
    fn a_cordon_is_tolerated_as_the_scheduler_says() {
        for (toleration, expected) in [
            (json!({"operator": "Exists"}), true),
            (json!({"key": UNSCHEDULABLE, "operator": "Exists", "effect": "NoSchedule"}), true),
            (json!({"key": UNSCHEDULABLE}), true),
            (json!({"operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}), false),
            (json!({"key": UNSCHEDULABLE, "value": "x"}), false),
        ] {
            let pod = pod(json!({"spec": {"containers": [], "tolerations": [toleration]}}));
            assert_eq!(tolerates_cordon(&pod), expected, "{toleration}");
        }
    }

    #[test]
    fn data_that_goes_is_named() {
        let volumes = json!([{"name": "cache", "emptyDir": {}}, {"name": "config", "configMap": {}}]);
        assert_eq!(empty_dirs(&pod(json!({"spec": {"containers": [], "volumes": volumes}}))), ["cache"]);
    }
}
