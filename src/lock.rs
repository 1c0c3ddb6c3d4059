//! The locks of a cluster: Leases of ours, kured's lock, the kill switch. The protocol is `quorum_safety::lock`; here is what
//! speaks to the API: every write carries the resourceVersion that was judged, every request has a deadline.
//!
//! Order: the Lease, kured's lock, act, kured's lock back, the Lease back ([`hold`], [`Hold::release`]).

use crate::clock::Clock;
use crate::config::Config;
use kube::Client;
use quorum_safety::lock::{KuredLock, LeaseView, Timings, Wait};
use quorum_safety::{Code, Fact, InFlight, KillSwitch, Kured, Lock, Mine, Reason};
use std::future::Future;
use std::time::Duration;

pub mod fence;
pub mod guard;
pub mod holder;
pub mod kill_switch;
pub mod kured;
pub mod lease;
mod release;
pub mod report;
pub mod take;

pub use fence::{Fence, fenced};
pub use guard::{Guard, GuardError};
pub use holder::Claimant;
pub use lease::{LeaseError, Leases, SeenLease};
pub use take::{Taken, take};

/// The Lease of everything that disrupts the control plane.
pub const CONTROL_PLANE: &str = "control-plane-disruption";
/// The Lease of a backup.
pub const SNAPSHOT: &str = "etcd-snapshot";

/// The Lease of one slot for the disruption of workers, counted from 0.
pub fn worker(slot: usize) -> String {
    format!("worker-disruption-{slot}")
}

/// All Leases of ours in a cluster of this configuration.
pub fn names(config: &Config) -> Vec<String> {
    let mut names = vec![CONTROL_PLANE.to_owned()];
    names.extend((0..config.rule.worker_slots).map(worker));
    names.push(SNAPSHOT.to_owned());
    names
}

/// The times of our Leases.
pub fn timings(config: &Config) -> Timings {
    Timings { lease: config.times.lease.get(), renew: config.times.renew.get(), ..Timings::default() }
}

/// Reads who holds which lock. What cannot be read is unknown, with the reason; nothing is changed.
pub async fn observe(client: &Client, namespace: &str, config: &Config, mine: Mine) -> InFlight {
    let limit = config.times.answer.get();
    let slots: Vec<String> = (0..config.rule.worker_slots).map(worker).collect();
    // One after the other, on one connection, as in observe::cluster.
    let control_plane = read_lock(client, namespace, CONTROL_PLANE, limit).await;
    let snapshot = read_lock(client, namespace, SNAPSHOT, limit).await;
    let mut workers = Vec::new();
    for name in &slots {
        workers.push(read_lock(client, namespace, name, limit).await);
    }
    let kured = kured::find(client, &config.kured, limit).await;
    let kill_switch = kill_switch::read(client, namespace, limit).await;
    InFlight { control_plane, workers: all(workers), snapshot, kured: in_flight(&kured), kill_switch, mine }
}

async fn read_lock(client: &Client, namespace: &str, name: &str, limit: Duration) -> Fact<Lock> {
    Fact::from(lease::read(client, namespace, name, limit).await.map(|seen| seen.view.lock()))
}

fn all(facts: Vec<Fact<Lock>>) -> Fact<Vec<Lock>> {
    let mut known = Vec::new();
    for fact in facts {
        match fact {
            Fact::Known(lock) => known.push(lock),
            Fact::Unknown(why) => return Fact::Unknown(why),
        }
    }
    Fact::Known(known)
}

fn in_flight(found: &Fact<Option<kured::Found>>) -> Fact<Kured> {
    match found {
        Fact::Unknown(why) => Fact::Unknown(why.clone()),
        Fact::Known(None) => Fact::Known(Kured::Absent),
        Fact::Known(Some(found)) => match &found.lock {
            Fact::Unknown(why) => Fact::Unknown(why.clone()),
            Fact::Known(lock) => Fact::Known(lock.as_ref().map_or(Kured::Free, KuredLock::in_flight)),
        },
    }
}

/// A Lease of ours together with kured's lock.
#[derive(Debug)]
#[must_use = "what is held and dropped stays in the cluster until somebody adopts it"]
pub struct Hold {
    /// The Lease.
    pub guard: Guard,
    kured: Option<kured::Found>,
}

/// What came of asking for both locks.
#[derive(Debug)]
#[must_use]
pub enum Outcome {
    /// Both are held, or there is no kured.
    Got(Box<Hold>),
    /// Not now; why. Nothing is held.
    Held(Vec<Reason>),
}

/// Takes, adopts or takes over a Lease, then kured's lock. If another holds kured's, the Lease is given back at once: nobody waits
/// for kured's lock while holding the Lease.
///
/// `patience` is how long to wait for the Lease; proof that a holder is gone may need `Timings::silence` of watching. `unit` tells
/// whether a node's host runs the unit `quorate-node-step`; it is asked only when that could decide.
pub async fn hold<F: Future<Output = Fact<bool>>>(
    leases: &Leases,
    name: &str,
    who: &Claimant,
    config: &Config,
    patience: Duration,
    unit: impl Fn(quorum_safety::NodeName) -> F,
) -> Outcome {
    let guard = match take(leases, name, who, patience, unit).await {
        Taken::Got(guard) => *guard,
        Taken::Held(waits) => return Outcome::Held(reasons(name, &waits)),
    };
    match kured::take(leases, &config.kured, &guard, &names(config)).await {
        Ok(kured) => Outcome::Got(Box::new(Hold { guard, kured })),
        Err(reason) => {
            let mut reasons = vec![reason];
            // What is half done keeps its record: the next attempt adopts it.
            if !guard.step_so_far().await.touched {
                match guard.release().await {
                    Err(error) => {
                        reasons.push(Reason::new(Code::LeaseHeld, format!("{name}: not given back: {error}")));
                    }
                    Ok(()) => no_block_left(leases, config).await,
                }
            }
            Outcome::Held(reasons)
        }
    }
}

/// Clears a block that a write without an answer has left behind: it would keep kured from rebooting for ever. That kured's lock is not
/// known is a reason already; whoever comes next clears it too.
async fn no_block_left(leases: &Leases, config: &Config) {
    match kured::clear_stale(leases, &config.kured, &names(config)).await {
        Ok(None) => {}
        Ok(Some(block)) => tracing::warn!(block, "A block of ours was left in kured's lock, and is cleared"),
        Err(why) => tracing::warn!(why, "Whether a block of ours was left in kured's lock is not known"),
    }
}

/// The same for one of several slots, such as those for workers. A slot that already names the target decides: what is half done on it is
/// adopted there, and nobody works on one node under two slots.
///
/// The first pass asks every slot once; then the first one is waited for.
pub async fn hold_any<F: Future<Output = Fact<bool>>>(
    leases: &Leases,
    slots: &[String],
    who: &Claimant,
    config: &Config,
    patience: Duration,
    unit: impl Fn(quorum_safety::NodeName) -> F,
) -> Outcome {
    match slot_of_target(leases, slots, who).await {
        Err(reason) => return Outcome::Held(vec![reason]),
        Ok(Some(slot)) => return hold(leases, slot, who, config, patience, &unit).await,
        Ok(None) => {}
    }
    let mut refused = Vec::new();
    let passes = slots.iter().map(|slot| (slot, Duration::ZERO)).chain(slots.first().map(|slot| (slot, patience)));
    for (slot, patience) in passes {
        let held = match hold(leases, slot, who, config, patience, &unit).await {
            Outcome::Got(held) => held,
            Outcome::Held(reasons) => {
                refused.extend(reasons);
                continue;
            }
        };
        // Somebody may have taken another slot for the same target at the same time: then both give theirs back.
        let others: Vec<String> = slots.iter().filter(|other| *other != slot).cloned().collect();
        let reason = match slot_of_target(leases, &others, who).await {
            Ok(None) => return Outcome::Got(held),
            Ok(Some(other)) => Reason::new(Code::LeaseHeld, format!("{other}: it is held for the same node")),
            Err(reason) => reason,
        };
        let mut reasons = vec![reason];
        if let Err(error) = held.release().await {
            reasons.push(Reason::new(Code::LeaseHeld, format!("{slot}: not given back: {error}")));
        }
        return Outcome::Held(reasons);
    }
    refused.sort();
    refused.dedup();
    Outcome::Held(refused)
}

/// The slot that is held for the target of this claimant, if any.
async fn slot_of_target<'a>(
    leases: &Leases,
    slots: &'a [String],
    who: &Claimant,
) -> Result<Option<&'a String>, Reason> {
    for slot in slots {
        let unknown = |why: String| Reason::new(Code::LeaseUnknown, format!("{slot}: {why}"));
        let seen = leases.read(slot).await.map_err(|error| unknown(error.to_string()))?;
        match &seen.view {
            LeaseView::Held { record: Fact::Known(record), .. } if record.target == who.claim.target => {
                return Ok(Some(slot));
            }
            // It may be the same node.
            LeaseView::Held { record: Fact::Unknown(why), .. } => return Err(unknown(why.clone())),
            LeaseView::Held { .. } | LeaseView::Free { .. } | LeaseView::Absent => {}
        }
    }
    Ok(None)
}

impl Hold {
    /// Gives kured's lock back, then the Lease. Only when the operation is finished or undone: the record goes with it.
    ///
    /// # Errors
    /// When one of the two could not be given back; the Lease is kept if kured's lock was not, so that the next attempt finds both.
    pub async fn release(self) -> Result<(), GuardError> {
        if let Some(found) = &self.kured {
            kured::release(&self.guard, found).await?;
        }
        self.guard.release().await
    }

    /// Why kured could reboot a node although we hold the locks, by what was seen of its own: to be asked with each judgment. Who else
    /// holds it is the business of `judge`.
    pub fn lost_kured(&self, seen: &InFlight) -> Option<Reason> {
        kured_lost(self.kured.is_some(), &seen.kured)
    }

    /// What `judge` is to be told about the Lease that is held.
    pub fn mine(&self) -> Mine {
        self.guard.mine()
    }
}

fn kured_lost(taken: bool, now: &Fact<Kured>) -> Option<Reason> {
    let why = match (taken, now) {
        // Its annotation was removed, or its DaemonSet was made anew.
        (true, Fact::Known(Kured::Free)) => "it was ours, and is nobody's now",
        (true, Fact::Known(Kured::Absent)) => "it was ours, and kured is gone: it may come back without it",
        (false, Fact::Known(Kured::Free)) => "kured came while the Lease was held, and its lock is not ours",
        (false, Fact::Known(Kured::Absent)) | (_, Fact::Known(Kured::Held(_)) | Fact::Unknown(_)) => return None,
    };
    Some(Reason::new(Code::KuredLockHeld, why))
}

/// Why a Lease is not to be had.
pub fn reasons(name: &str, waits: &[Wait]) -> Vec<Reason> {
    waits.iter().map(|wait| wait.reason(name)).collect()
}

/// Why a request was given up.
#[derive(Debug, thiserror::Error)]
#[error("no answer in {0:?}")]
pub struct NoAnswer(pub Duration);

/// Runs a request until `end` of the boot clock at most. The clock is read before each step of the request: after a pause (a frozen
/// process, a suspended machine) nothing more is sent.
///
/// # Errors
/// When the time is over.
pub async fn until<T>(clock: Clock, end: Duration, request: impl Future<Output = T>) -> Result<T, NoAnswer> {
    let begun = clock.boottime();
    let limit = end.saturating_sub(begun);
    let mut request = std::pin::pin!(request);
    let guarded = std::future::poll_fn(|context| {
        if clock.boottime() >= end {
            return std::task::Poll::Ready(Err(NoAnswer(limit)));
        }
        request.as_mut().poll(context).map(Ok)
    });
    match tokio::time::timeout(limit, guarded).await {
        Ok(answer) => answer,
        Err(_) => Err(NoAnswer(limit)),
    }
}

/// The kill switch as a reason, if it stops something.
pub fn stopped_by(kill_switch: &Fact<KillSwitch>) -> Option<Reason> {
    match kill_switch {
        Fact::Known(KillSwitch::Off) => None,
        Fact::Known(KillSwitch::Engaged(why)) => Some(Reason::new(Code::KillSwitchEngaged, why.clone())),
        Fact::Unknown(why) => Some(Reason::new(Code::KillSwitchUnknown, why.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;

    /// Safety review, finding 18: kured's chart is installed again during a drain, and its lock with our block is gone.
    #[test]
    fn a_lock_of_kureds_that_is_no_longer_ours_is_told() {
        for (taken, now, told) in [
            (true, Fact::Known(Kured::Held("quorate/upgrade".to_owned())), false),
            (true, Fact::Known(Kured::Free), true),
            (true, Fact::Known(Kured::Absent), true),
            (false, Fact::Known(Kured::Absent), false),
            (false, Fact::Known(Kured::Free), true),
            // Told by `judge`.
            (true, Fact::Known(Kured::Held("k2".to_owned())), false),
            (true, Fact::Unknown("403".to_owned()), false),
        ] {
            assert_eq!(kured_lost(taken, &now).is_some(), told, "{taken} {now:?}");
        }
    }

    /// The pause of a process falls between two steps of its request: what would have been sent afterwards is not.
    #[tokio::test]
    async fn nothing_is_sent_after_a_pause_past_the_deadline() {
        let clock = Clock::system();
        for (pause, sent) in [(Duration::ZERO, true), (Duration::from_millis(300), false)] {
            let mut paused = false;
            let mut reached = false;
            let request = std::future::poll_fn(|context| {
                if !paused {
                    paused = true;
                    std::thread::sleep(pause);
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                reached = true;
                Poll::Ready(())
            });
            let answer = until(clock, clock.boottime() + Duration::from_millis(200), request).await;
            assert_eq!((answer.is_ok(), reached), (sent, sent));
        }
    }
}
