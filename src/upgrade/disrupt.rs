//! One node, from the lock to its release: the order of design and SAFETY.md. Control plane nodes and workers go through the
//! same sub-steps; a worker has no member, no leadership, no hand-over.
//!
//! lock → judge → move leadership → cordon → drain → quiesce → judge again → node step → proven recovery → restore → uncordon → release.
//! Given up before anything was changed on the host: undone. After it: left as it is, lock and cordon included, and adopted by the
//! next run. The kill switch stops what would change something, never the way back.

use crate::drain::{self, Cordoned, DrainError, Owner, Uncordoned};
use crate::etcd::members::leadership::leader_on;
use crate::lock::{self, Claimant, Hold, Leases, Outcome as LockOutcome};
use crate::node::{NodeReport, Preflight, Versions};
use crate::report::{Outcome, Report};
use crate::seen::Seen;
use crate::upgrade::chain::{Chain, End, end, not_permitted, unknown};
use crate::upgrade::fleet::{Fleet, FleetNode};
use crate::upgrade::kubeadm_config::ClusterConfiguration;
use crate::upgrade::passing::Passing;
use crate::upgrade::plan::{Mode, NodePlan};
use crate::upgrade::recover::{self, Expected};
use crate::upgrade::sub_step::SubStep;
use crate::upgrade::timeline::Timeline;
use crate::upgrade::unrecorded::{self, Found};
use anyhow::Context;
use on_host::{Done, Unfinished};
use quorum_safety::{Disrupting, Disruption, Fact, Mine, NodeName, Permit, Reason, Verdict};
use std::time::Duration;

mod leadership;
mod on_host;
mod quiesce;
mod watcher;

/// How long to wait for a Lease whose holder has just ended, or whose proof of being gone takes time.
const PATIENCE: Duration = Duration::from_secs(180);

/// Takes one node through the whole disruption. `Ok(None)`: it is on target and recovered.
///
/// # Errors
/// When something could not be carried out before anything was touched; later ends are reports.
pub async fn upgrade(chain: &Chain<'_>, fleet: &Fleet, plan: &NodePlan) -> anyhow::Result<Option<End>> {
    let node = fleet.get(&plan.node).with_context(|| format!("{} is not in the fleet", plan.node))?;
    if !plan.begun {
        if let Some(reason) = chain.stopped().await {
            return Ok(Some(not_permitted(format!("{} is left alone", plan.node), &[reason])));
        }
        if let Some(stop) = ready_to_begin(chain, plan).await? {
            return Ok(Some(stop));
        }
        if let Some(stop) = rehearse(chain, node).await? {
            return Ok(Some(stop));
        }
    }
    let hold = match take_locks(chain, node).await? {
        Ok(hold) => hold,
        Err(stop) => return Ok(Some(stop)),
    };
    let on_host = match hold.guard.adopted() {
        Some(step) => {
            chain.say(&format!("{}: going on with what a step before this one began ({})", node.name, step.name));
            SubStep::may_be_on_host(step)
        }
        None if plan.begun => match unrecorded::look(chain, node, &hold).await? {
            Ok(Found::Finished) => return Ok(unrecorded::leave(chain, node, hold, None).await),
            Ok(found) => found == Found::OnHost,
            Err(stop) => return Ok(unrecorded::leave(chain, node, hold, Some(stop)).await),
        },
        None => false,
    };
    let work = Work { chain, node, plan, hold, on_host, timeline: Timeline::from(chain.began) };
    match chain.stopped().await {
        Some(reason) => work.way_back(reason).await,
        None if chain.finish_only && !on_host => {
            let undone = format!("{}: what was begun had changed nothing on the host and was taken back", node.name);
            Ok(Some(work.give_up(end(Outcome::Ok, undone)).await))
        }
        None if work.was_ended_on_host() => match work.whole_on_host().await {
            Ok(answer) => work.only_back_in_service(&answer.versions).await,
            Err(why) => {
                chain.say(&format!("{}: its host is worked on again: {why}", node.name));
                work.run().await
            }
        },
        None => work.run().await,
    }
}

/// What must be so before anything is taken: kubeadm's configuration is as the mode needs it.
async fn ready_to_begin(chain: &Chain<'_>, plan: &NodePlan) -> anyhow::Result<Option<End>> {
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
    let mut stopping: Vec<String> = rehearsal.stopping().iter().map(ToString::to_string).collect();
    stopping.extend(quiesce::blockers(chain, node).await?);
    if stopping.is_empty() {
        chain.say(&format!("{}: the drain was rehearsed, {} pods would go", node.name, rehearsal.pods.len()));
        return Ok(None);
    }
    let summary = format!("{} cannot be emptied; nothing was touched", node.name);
    Ok(Some(Report::with_blockers(Outcome::Held, summary, &[], &stopping)))
}

async fn take_locks(chain: &Chain<'_>, node: &FleetNode) -> anyhow::Result<Result<Hold, End>> {
    let actor = if node.control_plane { "step control-plane" } else { "step worker" };
    let operation = chain.operation();
    let avoid = vec![node.address.clone()];
    let leases = Leases::new(chain.access.clone(), avoid, lock::timings(chain.config), chain.clock);
    let claimant =
        match Claimant::in_pod(&leases, (leases.namespace(), &chain.pod.name), (&operation, &node.name), actor).await {
            Ok(claimant) => claimant,
            Err(why) => return Ok(Err(unknown(why))),
        };
    let unit = |node: NodeName| async move {
        match chain.node_preflight(&node).await {
            Fact::Known(answer) => answer.running.map(|running| running.is_some()),
            Fact::Unknown(why) => Fact::Unknown(why),
        }
    };
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
    /// An adopted operation that may have changed the host: it can only be finished.
    on_host: bool,
    timeline: Timeline,
}

impl Work<'_, '_> {
    async fn run(self) -> anyhow::Result<Option<End>> {
        let (before, disrupting) = match self.up_to_the_node_step().await {
            Ok(Ok(ready)) => ready,
            Ok(Err(stop)) => return Ok(Some(self.give_up(stop).await)),
            Err(error) => return Ok(Some(self.give_up(unknown(format!("{error:#}"))).await)),
        };
        let Done { before, report, alone } = match self.on_host(before, &disrupting).await {
            Ok(done) => done,
            Err(Unfinished::Untouched(stop)) => return Ok(Some(self.give_up(stop).await)),
            Err(Unfinished::Midway(stop)) => return Ok(Some(stop)),
        };
        let changed = alone.then_some(report.manifests_changed.as_slice());
        let expected = Expected { before: &before, after: &report.after, changed };
        self.back_in_service(expected, Some(&report)).await
    }

    /// With the kill switch engaged: what has changed nothing is undone, what has is brought back into service if it is whole, and is
    /// left as it is if it is not. Nothing is changed on the host.
    async fn way_back(self, reason: Reason) -> anyhow::Result<Option<End>> {
        let (chain, node) = (self.chain, self.node);
        let engaged = not_permitted(format!("{}: nothing more is changed", node.name), &[reason]);
        if !self.on_host {
            return Ok(Some(self.give_up(engaged).await));
        }
        let answer = match self.whole_on_host().await {
            Ok(answer) => answer,
            Err(why) => return Ok(Some(self.left_as_it_is(engaged.and(&format!("; {why}"))))),
        };
        chain.say(&format!(
            "{}: the kill switch is engaged; its step was done, so it goes back into service",
            node.name
        ));
        match self.only_back_in_service(&answer.versions).await? {
            Some(stop) => Ok(Some(stop)),
            None => Ok(Some(engaged)),
        }
    }

    /// Whether whoever held the locks before us had come to the end of the work on the host.
    fn was_ended_on_host(&self) -> bool {
        let adopted = self.hold.guard.adopted().and_then(|step| SubStep::named(&step.name));
        adopted.is_some_and(|step| step > SubStep::NodeStep)
    }

    /// What the host says while it is on target and nothing works on it; else what is not so.
    async fn whole_on_host(&self) -> Result<Preflight, String> {
        let answer = match self.chain.node_preflight(&self.node.name).await {
            Fact::Known(answer) => answer,
            Fact::Unknown(why) => return Err(why),
        };
        let mut behind = recover::behind(&answer.versions, self.chain.to);
        match &answer.running {
            Fact::Known(None) => {}
            Fact::Known(Some(_)) => behind.push("its step still runs".to_owned()),
            Fact::Unknown(why) => behind.push(format!("whether its step still runs is not known: {why}")),
        }
        if behind.is_empty() { Ok(answer) } else { Err(behind.join(", ")) }
    }

    /// Back into service without a touch of the host: all that is left of what was adopted.
    async fn only_back_in_service(self, versions: &Versions) -> anyhow::Result<Option<End>> {
        let before = self.chain.look(self.mine().await).await;
        self.back_in_service(Expected { before: &before, after: versions, changed: None }, None).await
    }

    /// What `judge` is to be told of this Lease: the host of an operation may have to be finished on a control plane that is not whole;
    /// until then the target is one like any other.
    async fn mine(&self) -> Mine {
        let identity = self.hold.guard.identity().await;
        if self.on_host { Mine::Adopted(identity) } else { Mine::Taken(identity) }
    }

    /// Judges, moves leadership, cordons, drains, judges again.
    async fn up_to_the_node_step(&self) -> anyhow::Result<Result<(Seen, Disrupting), End>> {
        let (chain, node) = (self.chain, self.node);
        let (seen, permit) = match self.permit().await? {
            Ok(permitted) => permitted,
            Err(stop) => return Ok(Err(stop)),
        };
        let margin = permit.margin();
        let disrupting = permit.begin();
        if let Err(stop) = self.following(&disrupting, seen).await? {
            return Ok(Err(stop));
        }
        if node.control_plane {
            chain.say(&format!("{}: permitted; while it is down {margin} other voters may fail", node.name));
        }
        if let Some(stop) = self.cordon(&disrupting).await? {
            return Ok(Err(stop));
        }
        if let Some(stop) = self.drain(&disrupting).await? {
            return Ok(Err(stop));
        }
        if let Some(stop) = self.quiesce(&disrupting).await? {
            return Ok(Err(stop));
        }
        // A drain takes minutes: whoever else has failed meanwhile counts.
        Ok(self.still_permitted(&disrupting).await?.map(|seen| (seen, disrupting)))
    }

    /// What is seen now, while the permit still holds.
    async fn still_permitted(&self, disrupting: &Disrupting) -> anyhow::Result<Result<Seen, End>> {
        let seen = self.chain.look(self.mine().await).await;
        self.following(disrupting, seen).await
    }

    /// What is seen when the permit holds and the target does not lead etcd (any more). What passes is waited for: what was done until then
    /// would be for nothing.
    async fn following(&self, disrupting: &Disrupting, mut seen: Seen) -> anyhow::Result<Result<Seen, End>> {
        let passing = Passing::of(self.chain, &self.node.name);
        loop {
            self.hold.guard.check()?;
            let stop = match self.led_by_another(disrupting, seen).await? {
                Ok(seen) => return Ok(Ok(seen)),
                Err(stop) => stop,
            };
            if !passing.another_look(&stop.reasons).await {
                return Ok(Err(stop));
            }
            seen = self.chain.look(self.mine().await).await;
        }
    }

    /// Moves leadership away from the target, and asks whether the permit still holds then.
    async fn led_by_another(&self, disrupting: &Disrupting, mut seen: Seen) -> anyhow::Result<Result<Seen, End>> {
        if leader_on(&seen, &self.node.name).is_some() {
            if let Some(stop) = self.move_leadership(&seen).await? {
                return Ok(Err(stop));
            }
            seen = self.chain.look(self.mine().await).await;
        }
        Ok(self.still_holds(disrupting, &seen).await?.map(|()| seen))
    }

    /// A permit for the target. What passes by itself (nothing refuses, something is unknown or not now) is waited for.
    async fn permit(&self) -> anyhow::Result<Result<(Seen, Permit), End>> {
        let (chain, node) = (self.chain, self.node);
        let passing = Passing::of(chain, &node.name);
        loop {
            self.hold.guard.check()?;
            let seen = chain.look(self.mine().await).await;
            let verdict = match chain.judge(&seen, Disruption::Upgrade(node.name.clone())).await? {
                Verdict::Permitted(permit) => return Ok(Ok((seen, permit))),
                verdict => verdict,
            };
            if !passing.another_look(verdict.reasons()).await {
                let stop = not_permitted(format!("{} must not go down", node.name), verdict.reasons());
                return Ok(Err(stop.on(&seen.observation)));
            }
        }
    }

    async fn still_holds(&self, disrupting: &Disrupting, seen: &Seen) -> anyhow::Result<Result<(), End>> {
        if let Some(reason) = self.hold.lost_kured(&seen.in_flight) {
            return Ok(Err(not_permitted(format!("{} must not go down any more", self.node.name), &[reason])));
        }
        let policy = self.chain.policy().await?;
        Ok(disrupting.still_holds(&seen.observation, &seen.in_flight, &policy).map_err(|reasons| {
            not_permitted(format!("{} must not go down any more", self.node.name), reasons.as_slice())
        }))
    }

    async fn cordon(&self, _: &Disrupting) -> anyhow::Result<Option<End>> {
        let (chain, node) = (self.chain, self.node);
        self.announce(SubStep::Cordon).await?;
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

    /// Announces a sub-step. What may have changed the host keeps its record: whoever adopts it after us must not take it for something
    /// that can be undone.
    async fn announce(&self, step: SubStep) -> anyhow::Result<()> {
        self.timeline.enter(step, self.chain.clock.boottime());
        if step.on_host() || !self.on_host {
            self.hold.guard.step(step.into()).await?;
        }
        Ok(())
    }

    /// Whose the cordon is. One that was there before we took the locks is ours too, also when its Lease was given free by hand: nobody
    /// else can hold them.
    async fn owner(&self) -> Owner {
        let identity = self.hold.guard.identity().await;
        let adopted = self.plan.begun || self.hold.guard.adopted().is_some();
        Owner { operation: self.chain.operation(), identity, adopted }
    }

    /// Drains. What blocks is an answer: not now, and why.
    async fn drain(&self, _: &Disrupting) -> anyhow::Result<Option<End>> {
        let (chain, node) = (self.chain, self.node);
        self.announce(SubStep::Drain).await?;
        let options = drain::Options::new(chain.config, Some(chain.pod.uid.clone()));
        let mut watcher = watcher::Watcher { chain, node: &node.name };
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

    /// Proven recovery, uncordon, release. A stop leaves the lock and the cordon: half done.
    async fn back_in_service(self, expected: Expected<'_>, told: Option<&NodeReport>) -> anyhow::Result<Option<End>> {
        let (chain, node) = (self.chain, self.node);
        match self.recovered_and_uncordoned(expected).await {
            Ok(None) => {}
            Ok(Some(stop)) => return Ok(Some(stop)),
            Err(error) => return Ok(Some(self.midway(format!("{error:#}")))),
        }
        let (name, seconds) = (&node.name, chain.seconds());
        let parts = self.timeline.parts(chain.clock.boottime(), told.map_or(&[], |report| &report.steps));
        let recorded = chain.record(|record| {
            record.seconds.insert(name.clone(), seconds);
            record.parts.insert(name.clone(), parts.clone());
            if let Some(report) = told {
                record.heard(name, &report.after);
            }
        });
        // For the next estimate only.
        if let Err(error) = recorded.await {
            chain.say(&format!("{}: how long it took could not be recorded: {error:#}", node.name));
        }
        match self.hold.release().await {
            Ok(()) => Ok(None),
            Err(error) => {
                let summary = format!(
                    "{} is upgraded and schedulable, but the lock could not be given back: {error}; \
                     `quorate upgrade --to {}` gives it back",
                    node.name, chain.to
                );
                Ok(Some(end(Outcome::Midway, summary)))
            }
        }
    }

    async fn recovered_and_uncordoned(&self, expected: Expected<'_>) -> anyhow::Result<Option<End>> {
        let (chain, node) = (self.chain, self.node);
        self.announce(SubStep::Recovery).await?;
        if let Some(stop) = recover::wait(chain, node, expected, &self.hold).await? {
            return Ok(Some(stop));
        }
        self.announce(SubStep::Uncordon).await?;
        self.restore().await?;
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
        Ok(None)
    }

    /// Given up. What may have changed the host stays locked and cordoned; else all is undone: uncordon, give the locks back.
    async fn give_up(self, stop: End) -> End {
        if self.on_host {
            return self.left_as_it_is(stop);
        }
        let (chain, node) = (self.chain, self.node);
        let left = |what: String| {
            let mut stop = stop.clone();
            stop.outcome = Outcome::Midway;
            stop.blockers.insert(0, format!("{what}; `quorate upgrade --to {}` takes it back or goes on", chain.to));
            stop.fitted()
        };
        if let Err(error) = self.restore().await {
            return left(format!("{error:#}"));
        }
        match drain::uncordon(chain.access, &node.name.0, &self.owner().await, &self.hold.guard).await {
            Ok(_) => match self.hold.release().await {
                Ok(()) => stop
                    .and(&format!("; everything is as it was, and `quorate upgrade --to {}` begins again", chain.to)),
                Err(error) => left(format!("the lock could not be given back: {error}")),
            },
            Err(error) => left(format!("{} could not be uncordoned: {error}", node.name)),
        }
    }

    /// An adopted operation that cannot go on now: lock and cordon stay, so that nobody else takes what is half done.
    fn left_as_it_is(&self, mut stop: End) -> End {
        stop.outcome = Outcome::Midway;
        stop.and(&format!("; {} stays half done, locked and cordoned, until it can be finished", self.node.name))
    }

    fn midway(&self, what: String) -> End {
        let stays = match self.hold.guard.check() {
            Ok(_) => "It stays locked and cordoned".to_owned(),
            Err(late) if what.contains(&late.to_string()) => {
                "It stays cordoned; its lock is not ours any more".to_owned()
            }
            Err(late) => format!("It stays cordoned; its lock is not ours any more ({late})"),
        };
        let summary = format!(
            "{} is half done: {what}. {stays}; `quorate upgrade --to {}` goes on from there",
            self.node.name, self.chain.to
        );
        end(Outcome::Midway, summary)
    }
}
