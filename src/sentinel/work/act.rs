//! What a sentinel does: the Lease, the file, kured's pod.

use super::{OPEN, Pause, RECOVER, Seen, Work, announced, short};
use crate::etcd::members::plan::Change;
use crate::etcd::members::{leadership, request};
use crate::lock::{self, Claimant, Guard, Taken, take};
use crate::place;
use crate::seen;
use crate::sentinel::OPERATION;
use crate::sentinel::plan::Plan;
use crate::sentinel::reason::{Code, Reason};
use crate::sentinel::whole::{HandOver, Steady};
use quorum_safety::Fact;
use quorum_safety::lock::{Step as LeaseStep, Wait};
use quorum_safety::recovery::Stability;
use quorum_safety::sentinel::{Act, Lease, Lock, Step, asks_as};
use std::time::Duration;

impl Work<'_> {
    /// Asks for the Lease: a new one when this node may go, or the one that an earlier process of this node left.
    pub(super) async fn ask_for_lease(&mut self, seen: &Seen) -> Pause {
        let node = &self.pod.node;
        let Fact::Known(boot_id) = &seen.own.boot_id else {
            return self
                .cannot_ask(Reason::new(Code::NodeUnknown, format!("{node} reports no boot id")), Pause::Interval);
        };
        let own = (seen.link.pods(), self.pod.name.as_str());
        let who = Claimant::in_pod(&seen.leases, own, (OPERATION, node), "sentinel").await;
        let mut who = match who {
            Ok(who) if who.node == *node && who.boot_id == *boot_id => who,
            Ok(who) => {
                let why =
                    format!("its pod is on {} in boot {}, and not on {node} in boot {boot_id}", who.node, who.boot_id);
                return self.cannot_ask(Reason::new(Code::Undone, why), Pause::Watch);
            }
            Err(why) => {
                let why = format!("the sentinel cannot say who it is: {why}");
                return self.cannot_ask(Reason::new(Code::Undone, why), Pause::Interval);
            }
        };
        // One boot of one pod is one holder, whichever of its processes it is.
        let own = format!("{}-{}", who.claim.identity, short(boot_id));
        let holder = seen.held.as_ref().map(|(_, record)| record.identity.as_str());
        who.claim.identity = identity(&own, holder, self.memory.released.as_deref());
        let nobody_looks = |_| async { Fact::Unknown("a sentinel does not look for units".to_owned()) };
        let (slots, patience) = match &seen.held {
            // The proof that its holder is gone takes time.
            Some((slot, _)) => {
                (vec![slot.clone()], seen.leases.timings.silence().saturating_add(seen.leases.timings.renew))
            }
            None => (seen.slots.clone(), Duration::ZERO),
        };
        let mut waits = Vec::new();
        for slot in &slots {
            match take(&seen.leases, slot, &who, patience, nobody_looks).await {
                Taken::Got(guard) => return self.got(*guard, boot_id).await,
                Taken::Held(reasons) if reasons.iter().any(|wait| matches!(wait, Wait::MineReleased(_))) => {
                    tracing::warn!(identity = who.claim.identity, "Released by hand: it is asked for as another");
                    self.memory.released = Some(who.claim.identity.clone());
                    waits.extend(lock::reasons(slot, &reasons).iter().map(Reason::from));
                }
                Taken::Held(reasons) => waits.extend(lock::reasons(slot, &reasons).iter().map(Reason::from)),
            }
        }
        self.tell(&Plan { act: Act::Wait, open: false, pending: true, reasons: waits });
        if seen.held.is_some() { Pause::Watch } else { Pause::Interval }
    }

    /// Why the Lease is not even asked for.
    fn cannot_ask(&mut self, why: Reason, pause: Pause) -> Pause {
        self.tell(&Plan { act: Act::Wait, open: false, pending: true, reasons: vec![why] });
        pause
    }

    /// The Lease is held. What it says of the past decides what comes next.
    async fn got(&mut self, guard: Guard, boot_id: &str) -> Pause {
        let step = guard.step_so_far().await;
        let opened_in = step.name.strip_prefix(OPEN);
        self.memory.boot = Some(boot_id.to_owned());
        self.memory.opened = None;
        self.memory.acted = false;
        self.memory.aborted = None;
        self.memory.stability = Stability::new();
        self.memory.steady = Steady::default();
        match opened_in {
            // Between these two boots kured, or a power cut, has done what the gate was there for. None of kured's processes is of before.
            Some(boot) if boot != short(boot_id) => {
                tracing::info!("The node has been down under an open gate");
                self.memory.owes_end = false;
                if let Err(error) = guard.step(LeaseStep::touching(RECOVER)).await {
                    return self.cannot_ask(Reason::new(Code::Undone, format!("the Lease: {error}")), Pause::Watch);
                }
            }
            // An earlier process of this boot may have had a file.
            Some(_) => {
                self.memory.owes_end = true;
                self.memory.gives_up =
                    Some(Reason::new(Code::Closing, "an earlier sentinel of this boot had opened the gate"));
            }
            None => {}
        }
        tracing::info!(step = %guard.step_so_far().await, "The Lease is held");
        self.memory.guard = Some(guard);
        Pause::Now
    }

    pub(super) async fn act(&mut self, seen: &Seen, plan: &Plan) -> Result<Pause, String> {
        let limit = seen.link.config.times.answer.get();
        match plan.act {
            Act::Wait => Ok(self.idle(seen)),
            Act::Close => {
                self.memory.owes_end = true;
                if self.memory.gives_up.is_none() {
                    self.memory.gives_up = Some(why_over(plan));
                }
                let closed = self.host.close();
                let why: Vec<String> = plan.reasons.iter().map(ToString::to_string).collect();
                match closed {
                    Ok(_) => {
                        let why = why.join("; ");
                        self.shown.gate(false);
                        tracing::warn!(why, "The gate is closed");
                        self.event(true, "QuorateGateClosed", format!("the reboot gate is closed: {why}"));
                        Ok(Pause::Now)
                    }
                    Err(error) => {
                        let mut reasons = plan.reasons.clone();
                        reasons.push(Reason::new(Code::FileStays, error.to_string()));
                        self.tell(&Plan { reasons, open: true, ..plan.clone() });
                        Err(format!("the gate cannot be closed: {error}"))
                    }
                }
            }
            Act::Announce => {
                let Some(guard) = &self.memory.guard else { return Ok(Pause::Now) };
                let Fact::Known(boot) = &seen.own.boot_id else { return Err("the node reports no boot id".to_owned()) };
                let step = LeaseStep::touching(format!("{OPEN}{}", short(boot)));
                guard.step(step).await.map_err(|error| error.to_string())?;
                self.memory.gives_up = None;
                self.memory.acted = false;
                Ok(Pause::Now)
            }
            Act::Open => match self.memory.hand_over.take() {
                Some(first) => self.hand_over(seen, first, limit).await.inspect_err(|why| {
                    let leads = quorum_safety::Reason::new(quorum_safety::Code::TargetLeads, why.clone());
                    self.memory.gives_up = Some(leads.into());
                }),
                None => self.open(limit).await,
            },
            Act::EndKured => self.end_kured(seen, limit).await,
            Act::GiveBack => {
                let Some(guard) = self.memory.guard.take() else { return Ok(Pause::Now) };
                let done = announced(&guard.step_so_far().await) == Step::Recover;
                let tried = self.memory.gives_up.take();
                guard.release().await.map_err(|error| format!("the Lease is not given back: {error}"))?;
                self.memory.opened = None;
                self.memory.acted = false;
                if let Some(why) = tried.filter(|_| !done) {
                    self.memory.rests =
                        Some(self.clock.boottime().saturating_add(seen.link.config.sentinel.rest.get()));
                    tracing::warn!(%why, "The Lease is given back; nothing was rebooted");
                    self.event(true, "QuorateNotRebooted", format!("nothing was rebooted: {why}"));
                } else {
                    tracing::info!(rebooted = done, "The Lease is given back");
                    if done {
                        self.event(false, "QuorateRebooted", "rebooted, and proven to be whole again".to_owned());
                    }
                }
                Ok(Pause::Interval)
            }
        }
    }

    fn idle(&self, seen: &Seen) -> Pause {
        let busy = self.memory.guard.is_some() || self.memory.owes_end || seen.facts.lease == Lease::Ours;
        if busy || self.memory.settled.is_none() { Pause::Watch } else { Pause::Interval }
    }

    /// Moves leadership of etcd away, and waits until all members agree: then everything is judged anew.
    async fn hand_over(&self, seen: &Seen, first: HandOver, limit: Duration) -> Result<Pause, String> {
        let Some(guard) = &self.memory.guard else { return Ok(Pause::Now) };
        let HandOver { from, to, permit } = first;
        let begun = permit.begin();
        let change = Change::MoveLeader(to);
        tracing::info!(disruption = %begun.disruption(), "This node leads etcd: it hands over before its gate is opened");
        let request = request::make(&self.etcd, &from, &change, limit);
        let moved = guard.act(limit, request).await.map_err(|late| late.to_string())?;
        moved.map_err(|why| format!("leadership of etcd did not move: {why}"))?;
        let (link, sources) = (&seen.link, place::in_pod_with(&seen.link.access, self.etcd.clone()));
        let look = async || seen::look(&sources, &link.config, guard.mine(), self.clock).await;
        leadership::settles(&self.pod.node, self.clock, look).await?;
        Ok(Pause::Now)
    }

    /// Creates the file, before the deadline of the Lease.
    async fn open(&mut self, limit: Duration) -> Result<Pause, String> {
        let Some(guard) = &self.memory.guard else { return Ok(Pause::Now) };
        let text = serde_json::json!({
            "by": guard.identity().await,
            "node": self.pod.node.0,
            "at": self.clock.now().to_string(),
            "judged": self.memory.judged,
        });
        let now = self.clock.boottime();
        let opened = guard.act(limit, async { self.host.open(&format!("{text}\n")) }).await;
        match opened {
            Ok(Ok(())) => {
                self.memory.opened = Some(now);
                self.shown.gate(true);
                tracing::warn!(gate = %self.host.gate().display(), "The gate is open: kured may reboot this node");
                let note = format!("kured may reboot this node: {} is there", self.host.gate().display());
                self.event(false, "QuorateGateOpen", note);
                Ok(Pause::Watch)
            }
            Ok(Err(error)) => {
                let why = format!("{}: {error}", self.host.gate().display());
                self.memory.gives_up = Some(Reason::new(Code::FileNotWritable, why.clone()));
                self.memory.opened = Some(now);
                Err(why)
            }
            Err(late) => Err(late.to_string()),
        }
    }

    /// Ends kured's process on this node: the next one uncordons and releases its lock, and looks anew.
    async fn end_kured(&mut self, seen: &Seen, limit: Duration) -> Result<Pause, String> {
        if self.uncordons_next(seen) {
            return Ok(Pause::Watch);
        }
        let kured = match &seen.look.kured {
            Err(why) => return Err(why.clone()),
            Ok(Some(kured)) => kured.pods.clone()?,
            // Its pods may outlive it, and reboot.
            Ok(None) => match &self.memory.kured {
                Some(kured) => kured.clone(),
                // That there is none is told. What it left behind is not known: nothing is given back.
                None => return Ok(Pause::Watch),
            },
        };
        // It may not have been looked for yet.
        let pod = match &seen.pod {
            Some(pod) => Some(pod.clone()),
            None => kured.pod(&seen.look.client, &self.pod.node, limit).await?,
        };
        match (pod, &self.memory.ending) {
            (None, _) => self.memory.owes_end = false,
            (Some(pod), Some(ending)) if *ending != pod.uid => self.memory.owes_end = false,
            (Some(pod), _) => {
                kured.end(&seen.look.client, &pod, limit).await?;
                if self.memory.ending.as_ref() != Some(&pod.uid) {
                    tracing::warn!(pod = pod.uid, "kured's pod on this node is ended: it may have seen the gate open");
                    let note = "kured's pod is ended, since it may have seen the reboot gate open".to_owned();
                    self.event(true, "QuorateKuredEnded", note);
                }
                self.memory.ending = Some(pod.uid);
                return Ok(Pause::Watch);
            }
        }
        Ok(Pause::Now)
    }

    /// kured has given its drain up: it has released its lock and uncordons after that. Ended in between it would leave the node cordoned, and
    /// nobody would uncordon it. It has the margin for that.
    fn uncordons_next(&self, seen: &Seen) -> bool {
        let margin = seen.link.config.sentinel.margin.get();
        let names_this = !matches!(seen.facts.kured, Fact::Known(Lock::Free | Lock::Elsewhere));
        self.memory.aborted.is_some_and(|since| self.clock.boottime().saturating_sub(since) < margin)
            && seen.own.cordoned
            && !names_this
    }
}

/// As whom it asks. `own` is this boot of this pod; behind it counts how often a holder of that name was released by hand ([`asks_as`]).
/// `holder` is who holds it for this node, and may be of this count; `released` is the name under which it was last told to stop.
fn identity(own: &str, holder: Option<&str>, released: Option<&str>) -> String {
    let count = |name: &str| match name.strip_prefix(own)? {
        "" => Some(0),
        count => count.strip_prefix('.')?.parse::<u32>().ok(),
    };
    let next = asks_as(holder.and_then(count), released.and_then(count));
    if next == 0 { own.to_owned() } else { format!("{own}.{next}") }
}

/// Why a try whose gate closes is over: with a reason, whether the node is whole is asked before anything is given back.
fn why_over(plan: &Plan) -> Reason {
    let first = plan.reasons.first().cloned();
    first.unwrap_or_else(|| Reason::new(Code::Closing, "no reboot is wanted any more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A release that names this holder is for ever; what it had begun must not be.
    #[test]
    fn who_was_released_by_hand_asks_as_another_and_every_process_of_its_boot_knows_which() {
        let own = "reboot/k1/0123abcd-2f0c9c1a";
        let (first, second) = (format!("{own}.1"), format!("{own}.2"));
        assert_eq!(identity(own, None, None), own);
        assert_eq!(identity(own, Some(own), None), own);
        assert_eq!(identity(own, Some(own), Some(own)), first);
        assert_eq!(identity(own, Some(&first), Some(own)), first, "it is this one's by now");
        assert_eq!(identity(own, Some(&first), None), first, "of an earlier process");
        assert_eq!(identity(own, Some(&first), Some(&first)), second);
        assert_eq!(identity(own, None, Some(own)), first);
        for other in ["reboot/k1/0123abcd-77777777", "reboot/k1/0123abcd-2f0c9c1a-", "reboot/k2/x"] {
            assert_eq!(identity(own, Some(other), None), own, "{other}");
        }
    }

    #[test]
    fn a_gate_that_nobody_wants_open_any_more_is_a_try_that_is_over() {
        let plan = |reasons| Plan { act: Act::Close, open: true, pending: false, reasons };
        assert_eq!(why_over(&plan(Vec::new())), Reason::new(Code::Closing, "no reboot is wanted any more"));
        let sick = Reason::new(Code::NodeNotReady, "k1");
        assert_eq!(why_over(&plan(vec![sick.clone()])), sick);
    }
}
