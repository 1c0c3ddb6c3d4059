//! Moves etcd's leadership away from a node before it goes down.

use super::Work;
use crate::etcd::members::plan::Change;
use crate::etcd::members::{leadership, request};
use crate::observe::etcd::{ClientFiles, KUBEADM_PKI};
use crate::seen::Seen;
use crate::upgrade::chain::{End, not_permitted, unknown};
use anyhow::Context;
use quorum_safety::{Disruption, Reason, Verdict};

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
                    let look = async || chain.look(self.mine().await).await;
                    return Ok(leadership::settles(&node.name, chain.clock, look).await.err().map(unknown));
                }
                verdict => refused.extend(verdict.reasons().iter().cloned()),
            }
        }
        Ok(Some(not_permitted(format!("{} leads etcd and leadership cannot move", node.name), &refused)))
    }
}
