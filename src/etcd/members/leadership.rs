//! etcd's leadership, before the node of the leader goes down: who leads on it, and whether all agree once it was moved.

use crate::clock::Clock;
use crate::seen::Seen;
use quorum_safety::{Disruption, MemberId, NodeName, Permit, Policy, Reason, Verdict, judge};
use std::time::Duration;

/// How long moving leadership may take until all members agree again.
const ELECTION: Duration = Duration::from_secs(30);

/// The member on this node, if it leads in its own view.
pub fn leader_on(seen: &Seen, node: &NodeName) -> Option<MemberId> {
    let views = seen.observation.etcd.members.iter().filter(|view| view.node.known() == Some(node));
    let mut leading = views.filter(|view| view.second.known().is_some_and(|sample| sample.leader == Some(view.id)));
    leading.next().map(|view| view.id)
}

/// The first of these to whom leadership may go, and the permit for that; else all that speaks against each of them.
pub fn first_permitted(
    seen: &Seen,
    to: impl IntoIterator<Item = MemberId>,
    policy: &Policy,
) -> Result<(MemberId, Permit), Vec<Reason>> {
    let mut refused = Vec::new();
    for to in to {
        match judge(&seen.observation, &seen.in_flight, &Disruption::MoveLeader(to), policy) {
            Verdict::Permitted(permit) => return Ok((to, permit)),
            verdict => refused.extend(verdict.reasons().iter().cloned()),
        }
    }
    refused.sort();
    refused.dedup();
    Err(refused)
}

/// Looks until leadership has settled away from a node: all members name the same leader as a moment before, and it is not this node's.
///
/// # Errors
/// It did not in time.
pub async fn settles(from: &NodeName, clock: Clock, look: impl AsyncFn() -> Seen) -> Result<(), String> {
    let end = clock.boottime().saturating_add(ELECTION);
    loop {
        let seen = look().await;
        let views = &seen.observation.etcd.members;
        let agreed = views.iter().all(|member| {
            member.first.known().is_some_and(|first| {
                first.leader.is_some() && member.second.known().is_some_and(|second| second.leader == first.leader)
            })
        });
        if agreed && !views.is_empty() && leader_on(&seen, from).is_none() {
            return Ok(());
        }
        if clock.boottime() >= end {
            return Err(format!("leadership did not settle away from {from} in {} s", ELECTION.as_secs()));
        }
    }
}
