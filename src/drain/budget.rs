//! PodDisruptionBudgets as the eviction API applies them, counted over all pods that would go. A dry-run eviction does not
//! use up its budget, so two dry runs pass where the second eviction would be refused: counting is ours to do. Pure.

use super::{BlockKind, Blocker, PodRef, filters};
use crate::config::BudgetPolicy;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{Selector, SelectorExt};
use std::collections::BTreeMap;

/// One PodDisruptionBudget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The pods it counts; none when it counts no pod (policy/v1: no selector).
    pub selector: Option<Selector>,
    /// How its unready pods may go.
    pub unready: Unready,
    /// What its controller last wrote; none when that is older than the budget itself.
    pub status: Option<Standing>,
}

/// How the pods stand that a budget counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `disruptionsAllowed`.
    pub allowed: i32,
    /// `currentHealthy`.
    pub healthy: i32,
    /// `desiredHealthy`: how many must stay.
    pub desired: i32,
    /// `expectedPods`: how many there should be.
    pub expected: i32,
}

impl Standing {
    /// Whether the workload has fewer healthy pods than it needs.
    pub const fn degraded(self) -> bool {
        self.healthy < self.desired
    }
}

/// `spec.unhealthyPodEvictionPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// An unready pod goes freely only while the budget is met.
    IfHealthyBudget,
    /// An unready pod always goes freely.
    AlwaysAllow,
}

impl Budget {
    /// Reads a budget.
    ///
    /// # Errors
    /// When its selector cannot be understood: then nobody knows which pods it counts.
    pub fn read(pdb: &PodDisruptionBudget) -> Result<Self, String> {
        let namespace = pdb.metadata.namespace.clone().ok_or("a budget has no namespace")?;
        let name = pdb.metadata.name.clone().ok_or("a budget has no name")?;
        let spec = pdb.spec.as_ref();
        let selector = spec.and_then(|spec| spec.selector.clone()).map(Selector::try_from).transpose();
        let selector = selector.map_err(|error| format!("the selector of budget {namespace}/{name}: {error}"))?;
        let unready = match spec.and_then(|spec| spec.unhealthy_pod_eviction_policy.as_deref()) {
            Some("AlwaysAllow") => Unready::AlwaysAllow,
            _ => Unready::IfHealthyBudget,
        };
        // The eviction API refuses while the controller has not seen the newest spec.
        let status = pdb.status.as_ref().filter(|status| status.observed_generation >= pdb.metadata.generation);
        let status = status.map(|status| Standing {
            allowed: status.disruptions_allowed,
            healthy: status.current_healthy,
            desired: status.desired_healthy,
            expected: status.expected_pods,
        });
        Ok(Self { namespace, name, selector, unready, status })
    }

    /// Whether it counts a pod.
    pub fn counts(&self, pod: &Pod) -> bool {
        let none = BTreeMap::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
        pod.metadata.namespace.as_ref() == Some(&self.namespace)
            && self.selector.as_ref().is_some_and(|selector| selector.matches(labels))
    }

    /// Whether an eviction of the pod passes without using up the budget.
    fn passes_freely(&self, pod: &Pod) -> bool {
        if filters::ready(pod) {
            return false;
        }
        let met = self.status.is_some_and(|standing| !standing.degraded() && standing.desired > 0);
        self.unready == Unready::AlwaysAllow || met
    }
}

/// The budgets that count a pod.
pub fn of<'a>(pod: &Pod, budgets: &'a [Budget]) -> Vec<&'a Budget> {
    budgets.iter().filter(|budget| budget.counts(pod)).collect()
}

/// Names of budgets, for people.
pub fn names(budgets: &[&Budget]) -> Option<String> {
    (!budgets.is_empty()).then(|| budgets.iter().map(|budget| budget.name.as_str()).collect::<Vec<_>>().join(", "))
}

/// Which of the pods would be refused if all were evicted now, in this order; at most one blocker for a pod.
pub fn count(pods: &[(&PodRef, &Pod)], budgets: &[Budget], policy: impl Fn(&str) -> BudgetPolicy) -> Vec<Blocker> {
    let mut used = BTreeMap::new();
    let mut blockers = Vec::new();
    for (reference, pod) in pods.iter().filter(|(_, pod)| filters::guarded(pod)) {
        let counting = of(pod, budgets);
        let Some((kind, reason)) = refusal(pod, &counting, &mut used) else { continue };
        let blocker = Blocker { pod: (*reference).clone(), budget: names(&counting), kind, reason };
        blockers.push(escalated(blocker, &counting, policy(&reference.namespace)));
    }
    blockers
}

fn refusal<'a>(
    pod: &Pod,
    counting: &[&'a Budget],
    used: &mut BTreeMap<(&'a str, &'a str), i32>,
) -> Option<(BlockKind, String)> {
    let budget = match counting {
        [] => return None,
        [budget] => *budget,
        several => {
            let names = names(several)?;
            let reason = format!("it is in {} budgets ({names}), which the eviction API never lets go", several.len());
            return Some((BlockKind::SeveralBudgets, reason));
        }
    };
    if budget.passes_freely(pod) {
        return None;
    }
    let name = &budget.name;
    let Some(standing) = budget.status else {
        let reason = format!("budget {name} has not been worked out yet by its controller");
        return Some((BlockKind::BudgetExhausted, reason));
    };
    let Standing { allowed, healthy, desired, expected } = standing;
    let before = used.entry((&budget.namespace, name)).or_insert(0);
    if *before < allowed {
        *before += 1;
        return None;
    }
    Some(if allowed > 0 {
        let reason =
            format!("budget {name} allows {allowed} at a time: it goes when a replacement of those before it is ready");
        (BlockKind::BudgetInTurn, reason)
    } else if expected > 0 && desired >= expected {
        let reason = format!("budget {name} needs {desired} healthy pods of {expected}, so it never lets one go");
        (BlockKind::BudgetNeverAllows, reason)
    } else {
        let reason = format!("budget {name} needs {desired} healthy pods and has {healthy}");
        (BlockKind::BudgetExhausted, reason)
    })
}

/// A blocker that the policy of its namespace will remove.
fn escalated(mut blocker: Blocker, counting: &[&Budget], policy: BudgetPolicy) -> Blocker {
    let removable =
        matches!(blocker.kind, BlockKind::BudgetNeverAllows | BlockKind::BudgetExhausted | BlockKind::SeveralBudgets);
    let healthy = counting.iter().all(|budget| budget.status.is_some_and(|standing| !standing.degraded()));
    if removable && healthy && policy == BudgetPolicy::DeleteAfterHalf {
        blocker.kind = BlockKind::DeletedAfterHalf;
        blocker.reason += "; the policy of its namespace deletes it after half of the deadline";
    }
    blocker
}

/// Whether a pod that its budgets refuse to let go may be deleted: never when its workload has fewer healthy pods than it
/// needs (incident R33, peers B6). `live` is the number of ready pods that the budget counts, listed after anything that
/// we deleted ourselves: the status of a budget follows later.
///
/// # Errors
/// Why not.
pub fn may_delete(counting: &[(&Budget, usize)]) -> Result<(), String> {
    for (budget, live) in counting {
        let name = &budget.name;
        let Some(standing) = budget.status else {
            return Err(format!("budget {name} has not been worked out yet by its controller"));
        };
        let desired = usize::try_from(standing.desired)
            .map_err(|_| format!("budget {name} needs {} healthy pods", standing.desired))?;
        if standing.degraded() || *live < desired {
            let healthy = usize::try_from(standing.healthy).map_or(*live, |healthy| healthy.min(*live));
            return Err(format!("budget {name} needs {desired} healthy pods and has {healthy}: not deleted"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn budget(name: &str, change: Value, [allowed, healthy, desired, expected]: [i32; 4]) -> Budget {
        let mut pdb = json!({
            "metadata": {"namespace": "ns", "name": name, "generation": 2},
            "spec": {"selector": {"matchLabels": {"app": "web"}}},
            "status": {"observedGeneration": 2, "disruptionsAllowed": allowed, "currentHealthy": healthy,
                "desiredHealthy": desired, "expectedPods": expected},
        });
        for (key, value) in change.as_object().unwrap() {
            for (inner, value) in value.as_object().unwrap() {
                pdb[key][inner] = value.clone();
            }
        }
        Budget::read(&serde_json::from_value(pdb).unwrap()).unwrap()
    }

    fn pod(name: &str, ready: &str, phase: &str) -> (PodRef, Pod) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": name, "uid": name, "labels": {"app": "web", "tier": "front"}},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap();
        (super::super::pod_ref(&pod).unwrap(), pod)
    }

    fn kinds(pods: &[(PodRef, Pod)], budgets: &[Budget], policy: BudgetPolicy) -> Vec<(String, BlockKind)> {
        let pods: Vec<_> = pods.iter().map(|(reference, pod)| (reference, pod)).collect();
        count(&pods, budgets, |_| policy).into_iter().map(|blocker| (blocker.pod.name, blocker.kind)).collect()
    }

    #[test]
    fn the_pods_of_a_budget_are_counted_together() {
        let pods = [pod("a", "True", "Running"), pod("b", "True", "Running"), pod("c", "True", "Running")];
        let expect = |standing, expected: &[BlockKind]| {
            let found = kinds(&pods, &[budget("web", json!({}), standing)], BudgetPolicy::Honour);
            assert_eq!(found.into_iter().map(|(_, kind)| kind).collect::<Vec<_>>(), expected, "{standing:?}");
        };
        expect([3, 5, 2, 5], &[]);
        expect([2, 4, 2, 5], &[BlockKind::BudgetInTurn]);
        expect([1, 3, 2, 3], &[BlockKind::BudgetInTurn; 2]);
        expect([0, 3, 3, 3], &[BlockKind::BudgetNeverAllows; 3]);
        expect([0, 2, 2, 3], &[BlockKind::BudgetExhausted; 3]);
    }

    #[test]
    fn pods_that_no_budget_guards_use_none_up() {
        let free = [
            pod("pending", "False", "Pending"),
            pod("ended", "False", "Succeeded"),
            pod("unready", "False", "Running"),
        ];
        let met = budget("web", json!({}), [0, 2, 2, 3]);
        assert_eq!(kinds(&free, &[met], BudgetPolicy::Honour), []);
        let short = || budget("web", json!({}), [0, 1, 2, 3]);
        let unready = ("unready".to_owned(), BlockKind::BudgetExhausted);
        assert_eq!(kinds(&free, &[short()], BudgetPolicy::Honour), [unready]);
        let lenient = budget("web", json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}}), [0, 1, 2, 3]);
        assert_eq!(kinds(&free, &[lenient], BudgetPolicy::Honour), []);
    }

    #[test]
    fn what_the_eviction_api_cannot_do_is_said() {
        let pods = [pod("a", "True", "Running")];
        let two = [budget("one", json!({}), [1, 3, 2, 3]), budget("two", json!({}), [1, 3, 2, 3])];
        let borrowed: Vec<_> = pods.iter().map(|(reference, pod)| (reference, pod)).collect();
        let blockers = count(&borrowed, &two, |_| BudgetPolicy::Honour);
        assert_eq!(blockers[0].kind, BlockKind::SeveralBudgets);
        assert_eq!(blockers[0].budget.as_deref(), Some("one, two"));
        let new = budget("web", json!({"status": {"observedGeneration": 1}}), [3, 3, 0, 3]);
        assert_eq!(kinds(&pods, &[new], BudgetPolicy::Honour), [("a".to_owned(), BlockKind::BudgetExhausted)]);
    }

    #[test]
    fn selectors_match_as_the_api_server_does() {
        let (_, pod) = pod("a", "True", "Running");
        for (selector, expected) in [
            (json!({}), true),
            (Value::Null, false),
            (json!({"matchLabels": {"app": "db"}}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["db", "web"]}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}), false),
            (json!({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["web"]}]}), true),
            (json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}), true),
            (
                json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}),
                false,
            ),
        ] {
            let budget = budget("web", json!({"spec": {"selector": selector}}), [1, 1, 0, 1]);
            assert_eq!(budget.counts(&pod), expected, "{selector}");
        }
        let mut elsewhere = budget("web", json!({}), [1, 1, 0, 1]);
        elsewhere.namespace = "other".to_owned();
        assert!(!elsewhere.counts(&pod));
    }

    #[test]
    fn r33_a_workload_below_its_budget_is_never_cut_further() {
        let single = budget("single", json!({}), [0, 1, 1, 1]);
        let short = budget("short", json!({}), [0, 1, 2, 3]);
        let new = budget("new", json!({"status": {"observedGeneration": 1}}), [0, 1, 1, 1]);
        assert_eq!(may_delete(&[(&single, 1)]), Ok(()));
        // The budget's controller has not yet seen the one that we have just deleted.
        assert!(may_delete(&[(&single, 0)]).unwrap_err().contains("has 0"));
        assert!(may_delete(&[(&short, 2)]).unwrap_err().contains("needs 2 healthy pods and has 1"));
        assert!(may_delete(&[(&single, 1), (&short, 1)]).is_err());
        assert!(may_delete(&[(&new, 1)]).is_err());
        // The rehearsal promises a deletion only where it would be done.
        let pods = [pod("a", "True", "Running")];
        let after_half = BudgetPolicy::DeleteAfterHalf;
        assert_eq!(kinds(&pods, &[single], after_half), [("a".to_owned(), BlockKind::DeletedAfterHalf)]);
        assert_eq!(kinds(&pods, &[short], after_half), [("a".to_owned(), BlockKind::BudgetExhausted)]);
    }
}
