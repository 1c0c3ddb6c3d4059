//! The work on the host: an order that names the control plane as it is now, a node Job that carries it out, what its report comes to.

use super::Work;
use crate::cli::node::{Mode as KubeadmMode, Role, Upgrade as NodeUpgrade};
use crate::job::{JobError, Jobs, Placement, Request};
use crate::node::{NodeOutcome, NodeReport};
use crate::report::{Outcome, Report};
use crate::seen::Seen;
use crate::upgrade::chain::{End, unknown};
use crate::upgrade::kubeadm_config::{self, ClusterConfiguration};
use crate::upgrade::plan::Mode;
use crate::upgrade::sub_step::SubStep;
use quorum_safety::{Disrupting, Fact};
use std::time::Duration;

/// How long the request that makes the node Job may take.
const MAKE_JOB: Duration = Duration::from_secs(20);
/// How long after that a node's step may still start. By the clocks of two machines, hence long.
const START_WITHIN: Duration = Duration::from_secs(120);
/// How much later its pod is given up, for clocks that differ.
const NO_POD_YET: Duration = Duration::from_secs(60);

/// How often an order is given that came too late: its node was away, as in a reboot.
const ORDERS: usize = 3;

/// Why the node step is not done.
pub(super) enum Unfinished {
    /// Nothing was changed on the host: all is undone.
    Untouched(End),
    /// Something may have been.
    Midway(End),
}

/// The work on the host is done.
pub(super) struct Done {
    /// What was seen before it.
    pub(super) before: Seen,
    /// What it came to.
    pub(super) report: NodeReport,
    /// Whether the report tells all that was changed since `before`. Not when others came before it, which may have changed more than the
    /// API had heard of then.
    pub(super) alone: bool,
}

impl Work<'_, '_> {
    /// Gives the order and sees it carried out. One that its node heard of too late is given again, while the permit holds: a node that
    /// reboots in the middle would else wait, cordoned, for the next run.
    pub(super) async fn on_host(&self, mut before: Seen, disrupting: &Disrupting) -> Result<Done, Unfinished> {
        // Nothing of the host was announced yet: what cannot be read now is no reason to leave it half done.
        let mut order = match self.ordered(&before).await {
            Ok(order) => order,
            Err(error) => return Err(Unfinished::Untouched(unknown(format!("{error:#}")))),
        };
        let midway = |error: anyhow::Error| Unfinished::Midway(self.midway(format!("{error:#}")));
        let mut number = 1;
        loop {
            let report = self.node_step(order, disrupting).await.map_err(midway)??;
            if !report.late || number == ORDERS {
                return Ok(Done { before, report: self.answered(report)?, alone: number == 1 && !self.on_host });
            }
            number += 1;
            let why = report.message.clone().unwrap_or_default();
            self.chain.say(&format!("{}: ordering it again: {why}", self.node.name));
            before = match self.still_permitted(disrupting).await.map_err(midway)? {
                Ok(seen) => seen,
                Err(stop) if report.untouched && !self.on_host => return Err(Unfinished::Untouched(stop)),
                Err(stop) => {
                    let mut left = self.midway(stop.summary.clone());
                    (left.reasons, left.blockers) = (stop.reasons, stop.blockers);
                    return Err(Unfinished::Midway(left.fitted()));
                }
            };
            order = self.ordered(&before).await.map_err(midway)?;
        }
    }

    /// The order for the host, and the record of who gets `apply`.
    async fn ordered(&self, before: &Seen) -> anyhow::Result<NodeUpgrade> {
        let order = self.order(before).await?;
        if self.plan.mode == Mode::Apply {
            // Written before it starts: this node resumes first, and no other one gets `apply`.
            let name = self.node.name.clone();
            self.chain.record(|record| record.apply_node = Some(name.clone())).await?;
        }
        Ok(order)
    }

    /// Runs the node Job and reads its report.
    async fn node_step(&self, order: NodeUpgrade, _: &Disrupting) -> anyhow::Result<Result<NodeReport, Unfinished>> {
        let (chain, node) = (self.chain, self.node);
        self.announce(SubStep::NodeStep).await?;
        let mut args = vec!["node".to_owned(), "upgrade".to_owned()];
        args.extend(order.to_args());
        let request = Request {
            template: "quorate-node",
            name: chain.node_job(&node.name),
            args,
            operation: chain.operation(),
            target: Some(node.name.clone()),
            placement: Placement::OnTarget,
        };
        chain.say(&format!("{}: kubeadm upgrade {}, then kubelet and kubectl", node.name, order.mode));
        let jobs = Jobs::new(chain.access, vec![node.address.clone()]);
        // Under the Lease's deadline like every disruptive request; and a pod that comes late starts nothing (`--start-before`).
        self.hold.guard.act(MAKE_JOB, jobs.start(&request)).await??;
        // From then on it would begin nothing.
        if let Err(JobError::NotStarted(why)) = jobs.wait_started(&request.name, START_WITHIN + NO_POD_YET).await {
            let text = format!("its work on the host was not begun: {why}");
            return Ok(Err(Unfinished::Midway(self.midway(text))));
        }
        let deadline = chain.config.times.node_step.get() + Duration::from_secs(120);
        let ended = tokio::select! {
            ended = jobs.wait_end(&request.name, deadline) => ended?,
            // The unit on the host goes on and its Job reports; the next step adopts it.
            late = self.hold.guard.stopped() => {
                return Ok(Err(Unfinished::Midway(self.midway(format!("the lock was lost: {late}")))));
            }
        };
        let report: NodeReport = match serde_json::from_str(&ended.message) {
            Ok(report) => report,
            Err(_) => {
                let text =
                    format!("the node step's pod ended with {} and left no report: {}", ended.exit_code, ended.message);
                return Ok(Err(Unfinished::Midway(self.midway(text))));
            }
        };
        Ok(Ok(report))
    }

    /// What a report comes to.
    fn answered(&self, report: NodeReport) -> Result<NodeReport, Unfinished> {
        let (chain, node) = (self.chain, self.node);
        match report.outcome {
            NodeOutcome::Done => {
                for step in report.steps.iter().filter(|step| step.skipped.is_none()) {
                    chain.say(&format!("{}:   {:?} {} s", node.name, step.name, step.seconds));
                }
                let on = if report.hand_over.on { "handed over" } else { "not handed over" };
                if node.control_plane {
                    chain.say(&format!("{}:   new connections were {on}: {}", node.name, report.hand_over.because));
                }
                Ok(report)
            }
            NodeOutcome::Refused | NodeOutcome::Unknown | NodeOutcome::Midway => {
                let step = report.failed_step.map(|step| format!("{step:?}: ")).unwrap_or_default();
                let message = report.message.clone().unwrap_or_default();
                if report.untouched && !self.on_host {
                    let outcome = if report.outcome == NodeOutcome::Refused { Outcome::Held } else { Outcome::Unknown };
                    let summary = format!("{}: {step}{message}; nothing was changed on it", node.name);
                    let stop = Report::with_blockers(outcome, summary, &[], &report.last_lines);
                    return Err(Unfinished::Untouched(stop));
                }
                let mut stop = self.midway(format!("{step}{message}"));
                stop.blockers = report.last_lines;
                Err(Unfinished::Midway(stop.fitted()))
            }
        }
    }

    async fn order(&self, before: &Seen) -> anyhow::Result<NodeUpgrade> {
        let (chain, node) = (self.chain, self.node);
        let client = chain.access.live(std::slice::from_ref(&node.address)).await?;
        let configuration = ClusterConfiguration::read(&client).await.map_err(|why| anyhow::anyhow!("{why}"))?;
        let service = kubeadm_config::service_address(&client).await.map_err(|why| anyhow::anyhow!("{why}"))?;
        let nodes = before.observation.nodes.known().map(Vec::as_slice).unwrap_or_default();
        let peers = before
            .observation
            .apiservers
            .iter()
            .filter(|server| server.node != node.name && server.ready == Fact::Known(true))
            .filter_map(|server| nodes.iter().find(|peer| peer.name == server.node)?.address.known()?.parse().ok())
            .collect();
        Ok(NodeUpgrade {
            to: chain.to,
            mode: if self.plan.mode == Mode::Apply { KubeadmMode::Apply } else { KubeadmMode::Node },
            role: Some(if node.control_plane { Role::ControlPlane } else { Role::Worker }),
            skip_phases: chain.config.upgrade.skip_phases.clone(),
            ignore_preflight_errors: chain.config.upgrade.ignore_preflight_errors.keys().cloned().collect(),
            peers: if node.control_plane { peers } else { Vec::new() },
            service_address: node.control_plane.then_some(service),
            etcd_image_tag: node.control_plane.then(|| configuration.etcd_image_tag()),
            cluster_configuration: node.control_plane.then(|| configuration.document.clone()),
            timeout: chain.config.times.node_step.get(),
            start_before: Some(chain.clock.unix().0.saturating_add(START_WITHIN.as_secs().cast_signed())),
        })
    }
}
