//! The workloads that are at zero while a control plane node is worked on: scaled after its drain, back before it is uncordoned.

use super::Work;
use crate::quiesce;
use crate::report::{Outcome, Report};
use crate::upgrade::chain::{Chain, End};
use crate::upgrade::fleet::FleetNode;
use quorum_safety::Disrupting;

/// Why they could not be scaled for this node, a line each; none for a worker, for which nothing is.
///
/// # Errors
/// When there is no answer.
pub(super) async fn blockers(chain: &Chain<'_>, node: &FleetNode) -> anyhow::Result<Vec<String>> {
    if !node.control_plane {
        return Ok(Vec::new());
    }
    Ok(quiesce::rehearse(chain.access, chain.config, chain.clock).await?.blockers)
}

impl Work<'_, '_> {
    /// Scales them to zero. Whoever holds the Lease of the control plane restores them, so workers, which have others, do neither.
    pub(super) async fn quiesce(&self, _: &Disrupting) -> anyhow::Result<Option<End>> {
        let (chain, node, guard) = (self.chain, self.node, &self.hold.guard);
        if !node.control_plane {
            return Ok(None);
        }
        let holder = guard.identity().await;
        match quiesce::quiesce(chain.access, chain.config, &holder, chain.clock.now(), guard).await {
            Ok(told) => told.iter().for_each(|line| chain.say(&format!("{}: {line}", node.name))),
            Err(error) => {
                let outcome = if error.is_unknown() { Outcome::Unknown } else { Outcome::Held };
                let summary = format!("{} must not go down: not everything is quiesced", node.name);
                return Ok(Some(Report::with_blockers(outcome, summary, &[], &[error.to_string()])));
            }
        }
        Ok(None)
    }

    /// Gives them their replicas back.
    pub(super) async fn restore(&self) -> anyhow::Result<()> {
        let (chain, node) = (self.chain, self.node);
        if !node.control_plane {
            return Ok(());
        }
        let restored = quiesce::restore(chain.access, chain.config, &self.hold.guard).await;
        restored.told.iter().for_each(|line| chain.say(&format!("{}: {line}", node.name)));
        let failed: Vec<String> = restored.failed.iter().map(ToString::to_string).collect();
        anyhow::ensure!(failed.is_empty(), "not everything that was quiesced is back: {}", failed.join("; "));
        Ok(())
    }
}
