//! The DaemonSets that must be whole on every node before and after a reboot: a node that is Ready without its network takes its
//! neighbours' pods down with it (incident R30). Pure.

use super::reason::{Code, Reason};
use k8s_openapi::api::apps::v1::DaemonSet;

/// The DaemonSets of networks that are looked for where the configuration names none.
const NETWORKS: [&str; 12] = [
    "calico-node",
    "canal",
    "cilium",
    "kube-flannel-ds",
    "kube-flannel",
    "kube-router",
    "weave-net",
    "antrea-agent",
    "kindnet",
    "kube-ovn-cni",
    "ovnkube-node",
    "aws-node",
];

/// Why they are not whole. `wanted` are `NAMESPACE/NAME`s; none: the cluster's network, found by its name. `elsewhere` is how many nodes are
/// down beside the one that is asked about: a pod may be missing on each of them, and says nothing of this one.
pub fn reasons(sets: &[DaemonSet], wanted: &[String], elsewhere: usize) -> Vec<Reason> {
    let broken = |set| broken(set, elsewhere);
    if wanted.is_empty() {
        let networks: Vec<&DaemonSet> = sets
            .iter()
            .filter(|set| set.metadata.name.as_deref().is_some_and(|name| NETWORKS.contains(&name)))
            .collect();
        if networks.is_empty() {
            let why = "no network that is known by its name; name what must be whole in `sentinel.daemonSets`";
            return vec![Reason::new(Code::WorkloadUnknown, why)];
        }
        return networks.into_iter().filter_map(broken).collect();
    }
    let one = |wanted: &String| match sets.iter().find(|set| name(set) == *wanted) {
        Some(set) => broken(set),
        None => Some(Reason::new(Code::WorkloadUnknown, format!("DaemonSet {wanted} does not exist"))),
    };
    wanted.iter().filter_map(one).collect()
}

fn name(set: &DaemonSet) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", part(&set.metadata.namespace), part(&set.metadata.name))
}

fn broken(set: &DaemonSet, elsewhere: usize) -> Option<Reason> {
    let name = name(set);
    let Some(status) = &set.status else {
        return Some(Reason::new(Code::WorkloadUnknown, format!("DaemonSet {name} has no status")));
    };
    if status.observed_generation.unwrap_or(0) < set.metadata.generation.unwrap_or(0) {
        return Some(Reason::new(
            Code::WorkloadUnknown,
            format!("DaemonSet {name}: its controller has not seen its newest spec"),
        ));
    }
    let (ready, wanted) = (status.number_ready, status.desired_number_scheduled);
    if wanted == 0 {
        return Some(Reason::new(Code::WorkloadUnknown, format!("DaemonSet {name} is to run nowhere")));
    }
    let missing = wanted.saturating_sub(ready).max(status.number_unavailable.unwrap_or(0));
    (usize::try_from(missing).unwrap_or(0) > elsewhere)
        .then(|| Reason::new(Code::WorkloadNotWhole, format!("DaemonSet {name}: {ready} of {wanted} pods are ready")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(name: &str, status: Value) -> DaemonSet {
        let metadata = json!({"namespace": "kube-system", "name": name, "generation": 2});
        serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    }

    fn status(ready: i32, wanted: i32) -> Value {
        json!({"currentNumberScheduled": wanted, "desiredNumberScheduled": wanted, "numberMisscheduled": 0, "numberReady": ready,
            "observedGeneration": 2})
    }

    #[test]
    fn what_is_not_whole_or_not_known_is_named() {
        let codes = |sets: &[DaemonSet], wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            reasons(sets, &wanted, 0).into_iter().map(|reason| reason.code[..4].to_owned()).collect::<Vec<_>>()
        };
        let whole = set("cilium", status(3, 3));
        assert_eq!(codes(&[whole.clone(), set("other", status(0, 3))], &[]), [""; 0]);
        assert_eq!(codes(&[set("other", status(3, 3))], &[]), ["S016"], "no network is known");
        assert_eq!(codes(std::slice::from_ref(&whole), &["kube-system/cilium", "storage/csi"]), ["S016"]);
        assert_eq!(codes(&[set("cilium", status(2, 3))], &[]), ["S015"]);
        assert_eq!(codes(&[set("cilium", status(0, 0))], &[]), ["S016"]);
        let mut late = status(3, 3);
        late["observedGeneration"] = 1.into();
        assert_eq!(codes(&[set("cilium", late)], &[]), ["S016"]);
        let mut unavailable = status(3, 3);
        unavailable["numberUnavailable"] = 1.into();
        assert_eq!(codes(&[set("cilium", unavailable)], &[]), ["S015"]);
        let beside = |elsewhere| reasons(&[set("cilium", status(2, 3))], &[], elsewhere).len();
        assert_eq!((beside(0), beside(1)), (1, 0), "the node that died for good is not this one");
        assert_eq!(reasons(&[set("cilium", status(1, 3))], &[], 1).len(), 1);
        let none: DaemonSet =
            serde_json::from_value(json!({"metadata": {"namespace": "kube-system", "name": "cilium"}})).unwrap();
        assert_eq!(codes(&[none], &[]), ["S016"]);
    }
}
