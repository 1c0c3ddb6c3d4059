//! Moves etcd's leadership away from a node before it goes down.

use super::Work;
use crate::etcd::members::plan::Change;
use crate::etcd::members::request;
use crate::observe::etcd::{ClientFiles, KUBEADM_PKI};
use crate::seen::Seen;
use crate::upgrade::chain::{End, not_permitted, unknown};
use crate::upgrade::fleet::FleetNode;
use anyhow::Context;
use quorum_safety::{Disruption, NodeName, Reason, Verdict};
use std::time::Duration;

/// How long moving leadership may take until all members agree again.
const ELECTION: Duration = Duration::from_secs(30);

impl Work<'_, '_> {
    /// Moves etcd's leadership away: a disruption of its own, judged on its own, before.
    pub(super) async fn move_leadership(&self, seen: &Seen) -> anyhow::Result<Option<End>> {
        let (chain, node) = (self.chain, self.node);
        let membership = seen.observation.etcd.membership.as_result().map_err(|why| anyhow::anyhow!("{why}"))?;
        let leader = node.member.and_then(|id| membership.get(id)).context("the leader is not in the member list")?;
        let mut refused: Vec<Reason> = Vec::new();
        for voter in membership.voters().filter(|voter| voter.id != leader.id) {
            match chain.judge(seen, Disruption::MoveLeader(voter.id)).await? {
                Verdict::Permitted(permit) => {
                    chain.say(&format!("{}: leads etcd; leadership goes to {}", node.name, voter.name));
                    let moving = permit.begin();
                    tracing::info!(disruption = %moving.disruption(), "Moving leadership");
                    let deadline = chain.config.times.answer.get() * 3;
                    let files = ClientFiles::in_folder(KUBEADM_PKI);
                    let change = Change::MoveLeader(voter.id);
                    let moved = self.hold.guard.act(deadline, request::make(&files, leader, &change, deadline)).await?;
                    moved.map_err(|why| anyhow::anyhow!("leadership did not move: {why}"))?;
                    return Ok(self.wait_for_leader(&node.name).await);
                }
                verdict => refused.extend(verdict.reasons().iter().cloned()),
            }
        }
        Ok(Some(not_permitted(format!("{} leads etcd and leadership cannot move", node.name), &refused)))
    }

    async fn wait_for_leader(&self, from: &NodeName) -> Option<End> {
        let end = self.chain.clock.boottime() + ELECTION;
        loop {
            let seen = self.chain.look(self.mine().await).await;
            let agreed = seen.observation.etcd.members.iter().all(|member| {
                member.first.known().is_some_and(|first| {
                    first.leader.is_some() && member.second.known().is_some_and(|second| second.leader == first.leader)
                })
            });
            if agreed && !leads(&seen, self.node) {
                return None;
            }
            if self.chain.clock.boottime() >= end {
                return Some(unknown(format!(
                    "leadership did not settle away from {from} in {} s",
                    ELECTION.as_secs()
                )));
            }
        }
    }
}

/// Whether a node's member leads in its own view.
pub(super) fn leads(seen: &Seen, node: &FleetNode) -> bool {
    let views = &seen.observation.etcd.members;
    views
        .iter()
        .filter(|view| view.node.known() == Some(&node.name))
        .any(|view| view.second.known().is_some_and(|sample| sample.leader == Some(view.id)))
}
