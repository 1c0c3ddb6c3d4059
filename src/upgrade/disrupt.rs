//! One node, from the lock to its release: the order of design and SAFETY.md. Control plane nodes and workers go through the
//! same sub-steps; a worker has no member, no leadership, no hand-over.
//!
//! lock → judge → move leadership → cordon → drain → judge again → node step → proven recovery → uncordon → release.
//! Given up before the node step: undone. After it began: left as it is, lock and cordon included, and adopted by the next run.

use crate::cli::node::{Mode as KubeadmMode, Role, Upgrade as NodeUpgrade};
use crate::drain::{self, Cordoned, DrainError, Overseer, Owner, Progress, Uncordoned};
use crate::job::{self, Jobs, Placement, Request};
use crate::lock::{self, Claimant, Hold, Leases, Outcome as LockOutcome};
use crate::node::{NodeOutcome, NodeReport};
use crate::observe::etcd::{self, ClientFiles, KUBEADM_PKI};
use crate::report::{Outcome, Report};
use crate::seen::Seen;
use crate::upgrade::chain::{Chain, End, end, not_permitted, unknown};
use crate::upgrade::fleet::{Fleet, FleetNode};
use crate::upgrade::kubeadm_config::{self, ClusterConfiguration};
use crate::upgrade::plan::{Mode, NodePlan};
use crate::upgrade::recover;
use anyhow::Context;
use quorum_safety::lock::Step;
use quorum_safety::{Cordon, Disrupting, Disruption, Fact, Mine, NodeName, Reason, Verdict};
use std::time::Duration;

/// How long to wait for a Lease whose holder has just ended, or whose proof of being gone takes time.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long moving leadership may take until all members agree again.
const ELECTION: Duration = Duration::from_secs(30);

/// Takes one node through the whole disruption. `Ok(None)`: it is on target and recovered.
///
/// # Errors
/// When something could not be carried out before anything was touched; later ends are reports.
pub async fn upgrade(chain: &Chain<'_>, fleet: &Fleet, plan: &NodePlan) -> anyhow::Result<Option<End>> {
    let node = fleet.get(&plan.node).with_context(|| format!("{} is not in the fleet", plan.node))?;
    let resumed = matches!(&node.cordon, Cordon::Ours(operation) if *operation == chain.operation());
    if let Some(stop) = ready_to_begin(chain, plan).await? {
        return Ok(Some(stop));
    }
    if !resumed && let Some(stop) = rehearse(chain, node).await? {
        return Ok(Some(stop));
    }
    let hold = match take_locks(chain, node).await? {
        Ok(hold) => hold,
        Err(stop) => return Ok(Some(stop)),
    };
    let adopted = hold.guard.adopted().is_some();
    if adopted {
        chain.say(&format!("{}: going on with what a step before this one began", node.name));
    }
    let work = Work { chain, node, plan, hold, adopted };
    work.run().await
}

/// What must be so before anything is taken: the kill switch is off, and kubeadm's configuration is as the mode needs it.
async fn ready_to_begin(chain: &Chain<'_>, plan: &NodePlan) -> anyhow::Result<Option<End>> {
    if let Some(reason) = chain.stopped().await {
        return Ok(Some(not_permitted(format!("{} is left alone", plan.node), &[reason])));
    }
    let client = chain.access.live(&[]).await?;
    let configuration = match ClusterConfiguration::read(&client).await {
        Ok(configuration) => configuration,
        Err(why) => return Ok(Some(unknown(why))),
    };
    // `kubeadm upgrade node` follows kubeadm-config, which `apply` on the first node writes (hole H02).
    if plan.mode == Mode::Node && configuration.kubernetes_version != chain.to {
        let summary = format!(
            "{} waits: kubeadm-config names {}, and `kubeadm upgrade apply {}` on the first control plane node writes it",
            plan.node, configuration.kubernetes_version, chain.to
        );
        return Ok(Some(end(Outcome::Held, summary)));
    }
    Ok(None)
}

/// Rehearses the drain: nothing is cordoned for a drain that cannot end.
async fn rehearse(chain: &Chain<'_>, node: &FleetNode) -> anyhow::Result<Option<End>> {
    let options = drain::Options::new(chain.config, Some(chain.pod.uid.clone()));
    let rehearsal = drain::rehearse(chain.access, &node.name.0, &options).await?;
    let stopping: Vec<String> = rehearsal.stopping().iter().map(ToString::to_string).collect();
    if stopping.is_empty() {
        chain.say(&format!("{}: the drain was rehearsed, {} pods would go", node.name, rehearsal.pods.len()));
        return Ok(None);
    }
    let summary = format!("{} cannot be drained; nothing was touched", node.name);
    Ok(Some(Report::with_blockers(Outcome::Held, summary, &[], &stopping)))
}

async fn take_locks(chain: &Chain<'_>, node: &FleetNode) -> anyhow::Result<Result<Hold, End>> {
    let limit = chain.config.times.answer.get();
    let client = chain.access.live(std::slice::from_ref(&node.address)).await?;
    let actor = if node.control_plane { "step control-plane" } else { "step worker" };
    let operation = chain.operation();
    let own = (chain.access.namespace.as_str(), chain.pod.name.as_str());
    let claimant = match Claimant::in_pod(&client, own, (&operation, &node.name), actor, limit).await {
        Ok(claimant) => claimant,
        Err(why) => return Ok(Err(unknown(why))),
    };
    let avoid = vec![node.address.clone()];
    let leases = Leases::new(chain.access.clone(), avoid, lock::timings(chain.config), chain.clock);
    let unit = |node: NodeName| async move { chain.node_preflight(&node).await.map(|answer| answer.running.is_some()) };
    let slots: Vec<String> = if node.control_plane {
        vec![lock::CONTROL_PLANE.to_owned()]
    } else {
        (0..chain.config.rule.worker_slots).map(lock::worker).collect()
    };
    Ok(match lock::hold_any(&leases, &slots, &claimant, chain.config, PATIENCE, unit).await {
        LockOutcome::Got(hold) => Ok(*hold),
        LockOutcome::Held(reasons) => {
            Err(not_permitted(format!("{} is left alone: the lock is not to be had", node.name), &reasons))
        }
    })
}

/// A node under our locks.
struct Work<'a, 'c> {
    chain: &'a Chain<'c>,
    node: &'a FleetNode,
    plan: &'a NodePlan,
    hold: Hold,
    adopted: bool,
}

impl Work<'_, '_> {
    async fn run(self) -> anyhow::Result<Option<End>> {
        // Whether kubeadm or a package may have been touched: until then everything is undone when it is given up.
        let untouched = match self.up_to_the_node_step().await {
            Ok(Ok(before)) => Ok(before),
            Ok(Err(stop)) => Err(stop),
            Err(error) => Err(unknown(format!("{error:#}"))),
        };
        let before = match untouched {
            Ok(before) => before,
            Err(stop) if self.adopted => return Ok(Some(self.left_as_it_is(stop))),
            Err(stop) => return Ok(Some(self.undo(stop).await)),
        };
        match self.node_step_and_after(&before).await {
            Ok(None) => {}
            Ok(Some(stop)) => return Ok(Some(stop)),
            Err(error) => return Ok(Some(self.midway(format!("{error:#}")))),
        }
        let name = self.node.name.clone();
        match self.hold.release().await {
            Ok(()) => Ok(None),
            Err(error) => Ok(Some(end(
                Outcome::Midway,
                format!(
                    "{name} is upgraded and schedulable, but the lock could not be given back: {error}; run it again"
                ),
            ))),
        }
    }

    /// Judges, moves leadership, cordons, drains, judges again.
    async fn up_to_the_node_step(&self) -> anyhow::Result<Result<Seen, End>> {
        let (chain, node) = (self.chain, self.node);
        let wanted = Disruption::Upgrade(node.name.clone());
        let mut seen = chain.look(self.hold.mine()).await;
        let permit = match chain.judge(&seen, wanted).await? {
            Verdict::Permitted(permit) => permit,
            verdict => return Ok(Err(not_permitted(format!("{} must not go down", node.name), verdict.reasons()))),
        };
        let margin = permit.margin();
        let disrupting = permit.begin();
        if leads(&seen, node) {
            if let Some(stop) = self.move_leadership(&seen).await? {
                return Ok(Err(stop));
            }
            seen = chain.look(self.hold.mine()).await;
        }
        if let Err(stop) = self.still_holds(&disrupting, &seen, self.hold.mine()) {
            return Ok(Err(stop));
        }
        if node.control_plane {
            chain.say(&format!("{}: permitted; while it is down {margin} other voters may fail", node.name));
        }
        if let Some(stop) = self.cordon().await? {
            return Ok(Err(stop));
        }
        if let Some(stop) = self.drain().await? {
            return Ok(Err(stop));
        }
        // The target itself is cordoned by us now: what counts is everybody else.
        let mine = Mine::Adopted(self.hold.guard.identity().await);
        let seen = chain.look(mine.clone()).await;
        if let Err(stop) = self.still_holds(&disrupting, &seen, mine) {
            return Ok(Err(stop));
        }
        Ok(Ok(seen))
    }

    fn still_holds(&self, disrupting: &Disrupting, seen: &Seen, mine: Mine) -> Result<(), End> {
        let in_flight = quorum_safety::InFlight { mine, ..seen.in_flight.clone() };
        if let Some(reason) = self.hold.lost_kured(&in_flight) {
            return Err(not_permitted(format!("{} must not go down any more", self.node.name), &[reason]));
        }
        disrupting.still_holds(&seen.observation, &in_flight, &self.chain.config.policy()).map_err(|reasons| {
            not_permitted(format!("{} must not go down any more", self.node.name), reasons.as_slice())
        })
    }

    async fn cordon(&self) -> anyhow::Result<Option<End>> {
        let (chain, node) = (self.chain, self.node);
        self.hold.guard.step(Step::touching("cordon")).await?;
        let owner = self.owner().await;
        match drain::cordon(chain.access, &node.name.0, &owner, chain.clock.now(), &self.hold.guard).await? {
            Cordoned::Done(record) => {
                let stays = if record.prior_unschedulable { "; it was cordoned before and will stay so" } else { "" };
                chain.say(&format!("{}: cordoned{stays}", node.name));
                Ok(None)
            }
            Cordoned::HeldBy(other) => Ok(Some(end(Outcome::Held, other.held(&node.name.0)))),
            Cordoned::NoSuchNode => Ok(Some(unknown(format!("{} is gone", node.name)))),
        }
    }

    /// Whose the cordon is.
    async fn owner(&self) -> Owner {
        let identity = self.hold.guard.identity().await;
        Owner { operation: self.chain.operation(), identity, adopted: self.adopted }
    }

    /// Drains. What blocks is an answer: not now, and why.
    async fn drain(&self) -> anyhow::Result<Option<End>> {
        let (chain, node) = (self.chain, self.node);
        self.hold.guard.step(Step::touching("drain")).await?;
        let options = drain::Options::new(chain.config, Some(chain.pod.uid.clone()));
        let mut watcher = Watcher { chain, node: &node.name };
        let blocked = match drain::drain(chain.access, &node.name.0, &options, &self.hold.guard, &mut watcher).await {
            Ok(report) => {
                chain.say(&format!("{}: drained, {} pods in {} s", node.name, report.gone.len(), report.seconds));
                return Ok(None);
            }
            Err(DrainError::Blocked { blockers, .. } | DrainError::Deadline { blockers, .. }) => {
                blockers.iter().map(ToString::to_string).collect()
            }
            Err(DrainError::Stopped { because, .. }) => vec![because],
            Err(error @ (DrainError::Api { .. } | DrainError::Contended { .. } | DrainError::Unreadable { .. })) => {
                return Err(error.into());
            }
        };
        let summary = format!("{} could not be drained", node.name);
        Ok(Some(Report::with_blockers(Outcome::Held, summary, &[], &blocked)))
    }

    /// Moves etcd's leadership away: a disruption of its own, judged on its own, before.
    async fn move_leadership(&self, seen: &Seen) -> anyhow::Result<Option<End>> {
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
                    let moved =
                        self.hold.guard.act(deadline, etcd::move_leader(&files, leader, voter.id, deadline)).await?;
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
            let seen = self.chain.look(self.hold.mine()).await;
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

    /// The node step, proven recovery, uncordon. `Ok(Some(…))` and errors leave the lock and the cordon: half done.
    async fn node_step_and_after(&self, before: &Seen) -> anyhow::Result<Option<End>> {
        let (chain, node) = (self.chain, self.node);
        if self.plan.mode == Mode::Apply {
            // Written before it starts: this node resumes first, and no other one gets `apply`.
            let name = node.name.clone();
            chain.record(|record| record.apply_node = Some(name.clone())).await?;
        }
        self.hold.guard.step(Step::touching("node-step")).await?;
        let report = match self.node_step(before).await? {
            Ok(report) => report,
            Err(stop) => return Ok(Some(stop)),
        };
        self.hold.guard.step(Step::touching("recovery")).await?;
        if let Some(stop) = recover::wait(chain, node, before, &report, self.adopted, &self.hold).await? {
            return Ok(Some(stop));
        }
        self.hold.guard.step(Step::touching("uncordon")).await?;
        match drain::uncordon(chain.access, &node.name.0, &self.owner().await, &self.hold.guard).await? {
            Uncordoned::Schedulable => chain.say(&format!("{}: recovered, schedulable again", node.name)),
            Uncordoned::StaysCordoned => {
                chain.say(&format!("{}: recovered; the cordon that was there before stays", node.name))
            }
            Uncordoned::NotOurs => {
                chain.say(&format!("{}: recovered; its cordon was lifted by somebody else", node.name))
            }
            Uncordoned::NoSuchNode => return Ok(Some(self.midway("the node is gone".to_owned()))),
        }
        let (name, seconds) = (node.name.clone(), chain.seconds());
        let kubeadm = report.after.packages.get("kubeadm").copied();
        chain
            .record(|record| {
                record.seconds.insert(name.clone(), seconds);
                if let Some(version) = kubeadm {
                    record.kubeadm.insert(name.clone(), version);
                }
            })
            .await?;
        Ok(None)
    }

    /// Runs the node Job and reads its report.
    async fn node_step(&self, before: &Seen) -> anyhow::Result<Result<NodeReport, End>> {
        let (chain, node) = (self.chain, self.node);
        let order = self.order(before).await?;
        let mut args = vec!["node".to_owned(), "upgrade".to_owned()];
        args.extend(order.to_args());
        let request = Request {
            template: "quorate-node",
            name: job::name("node", Some(&chain.to.to_string()), Some(&node.name)),
            args,
            operation: chain.operation(),
            target: Some(node.name.clone()),
            placement: Placement::OnTarget,
        };
        chain.say(&format!("{}: kubeadm upgrade {}, then kubelet and kubectl", node.name, order.mode));
        let jobs = Jobs::new(chain.access, vec![node.address.clone()]);
        jobs.start(&request).await?;
        let deadline = chain.config.times.node_step.get() + Duration::from_secs(120);
        let ended = tokio::select! {
            ended = jobs.wait_end(&request.name, deadline) => ended?,
            // The unit on the host goes on and its Job reports; the next step adopts it.
            late = self.hold.guard.stopped() => return Ok(Err(self.midway(format!("the lock was lost: {late}")))),
        };
        let report: NodeReport = match serde_json::from_str(&ended.message) {
            Ok(report) => report,
            Err(_) => {
                let text =
                    format!("the node step's pod ended with {} and left no report: {}", ended.exit_code, ended.message);
                return Ok(Err(self.midway(text)));
            }
        };
        match report.outcome {
            NodeOutcome::Done => {
                for step in report.steps.iter().filter(|step| step.skipped.is_none()) {
                    chain.say(&format!("{}:   {:?} {} s", node.name, step.name, step.seconds));
                }
                let on = if report.hand_over.on { "handed over" } else { "not handed over" };
                if node.control_plane {
                    chain.say(&format!("{}:   new connections were {on}: {}", node.name, report.hand_over.because));
                }
                Ok(Ok(report))
            }
            NodeOutcome::Refused | NodeOutcome::Unknown | NodeOutcome::Midway => {
                let step = report.failed_step.map(|step| format!("{step:?}: ")).unwrap_or_default();
                let message = report.message.clone().unwrap_or_default();
                let mut stop = self.midway(format!("{step}{message}"));
                stop.blockers = report.last_lines;
                Ok(Err(stop))
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
            timeout: chain.config.times.node_step.get(),
        })
    }

    /// Given up before the node was touched: uncordon, give the locks back.
    async fn undo(self, mut stop: End) -> End {
        let (chain, node) = (self.chain, self.node);
        let undone = drain::uncordon(chain.access, &node.name.0, &self.owner().await, &self.hold.guard).await;
        match undone {
            Ok(_) => match self.hold.release().await {
                Ok(()) => stop.summary.push_str("; everything is as it was"),
                Err(error) => stop.blockers.push(format!("the lock could not be given back: {error}")),
            },
            Err(error) => stop.blockers.push(format!("{} could not be uncordoned: {error}; run it again", node.name)),
        }
        stop
    }

    /// An adopted operation that cannot go on now: lock and cordon stay, so that nobody else takes what is half done.
    fn left_as_it_is(&self, mut stop: End) -> End {
        stop.summary
            .push_str(&format!("; {} stays half done, locked and cordoned, until it can be finished", self.node.name));
        stop
    }

    fn midway(&self, what: String) -> End {
        let summary = format!(
            "{} is half done: {what}. It stays locked and cordoned; `quorate upgrade --to {}` goes on from there",
            self.node.name, self.chain.to
        );
        end(Outcome::Midway, summary)
    }
}

/// Whether a node's member leads in its own view.
fn leads(seen: &Seen, node: &FleetNode) -> bool {
    let views = &seen.observation.etcd.members;
    views
        .iter()
        .filter(|view| view.node.known() == Some(&node.name))
        .any(|view| view.second.known().is_some_and(|sample| sample.leader == Some(view.id)))
}

/// Watches a drain: stops it by the kill switch.
struct Watcher<'a, 'c> {
    chain: &'a Chain<'c>,
    node: &'a NodeName,
}

impl Overseer for Watcher<'_, '_> {
    async fn should_stop(&mut self) -> Option<String> {
        self.chain.stopped().await.map(|reason| reason.to_string())
    }

    fn progress(&mut self, event: &Progress) {
        let text = match event {
            Progress::Evicting(pod) => format!("evicting {pod}"),
            Progress::Deleting(pod) => format!("deleting {pod} past its budget, as its namespace's policy says"),
            Progress::Gone(_) => return,
            Progress::Waiting(blocker) => format!("waiting for {blocker}"),
            Progress::Trouble(what) => format!("the API: {what}"),
        };
        self.chain.say(&format!("{}: {text}", self.node));
    }
}
