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
