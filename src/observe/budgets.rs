//! Reads the PodDisruptionBudgets that let no pod go: what a drain would have to wait for.

use super::cluster::{complete, within};
use crate::drain::budget::Budget;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::ListParams;
use kube::{Api, Client};
use quorum_safety::{BudgetPods, BudgetView, Budgets, Fact};
use std::time::Duration;

/// How many are named at most.
const NAMED: usize = 20;

/// Reads those of the whole cluster.
pub async fn observe(client: &Client, deadline: Duration) -> Fact<Budgets> {
    let budgets: Api<PodDisruptionBudget> = Api::all(client.clone());
    let listed = within(deadline, budgets.list(&ListParams::default())).await;
    listed
        .and_then(|list| {
            complete(&list.metadata)?;
            let mut closed = Vec::new();
            for budget in &list.items {
                closed.extend(view(&Budget::read(budget)?));
            }
            closed.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
            let (count, all) = (list.items.len(), closed.len());
            closed.truncate(NAMED);
            Ok(Budgets { count, closed: all, named: closed })
        })
        .into()
}

/// What a budget says; nothing of one that lets a pod go, or counts none.
fn view(budget: &Budget) -> Option<BudgetView> {
    let pods = match budget.status {
        Some(standing) if standing.allowed > 0 || standing.expected == 0 => return None,
        Some(standing) => Fact::Known(BudgetPods {
            healthy: standing.healthy,
            desired: standing.desired,
            expected: standing.expected,
        }),
        None => Fact::Unknown("not worked out yet by its controller".to_owned()),
    };
    Some(BudgetView { namespace: budget.namespace.clone(), name: budget.name.clone(), pods })
}
