//! A moment as the values that the real functions are asked with, and their answers.

use crate::defect::Defect;
use crate::world::{
    Actor, Decided, Glimpse, Holder, Kind, KuredLock, LEASE, MARGIN, Plan, Pod, Scenario, State, Step, Unit,
};
use ahash::HashMap;
use quorum_safety::fixture::name;
use quorum_safety::lock::{
    Claim, Decision, HolderFacts, KuredBlock, KuredStep, LeaseView, NodeState, PodRef, PodState, Proof, Record,
    Release, Sighting, Stage, Timings, Wait, by_hand, decide, kured_step,
};
use quorum_safety::sentinel::asks_as;
use quorum_safety::{Fact, UnixSeconds};
use std::fmt::{self, Display, Formatter};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

/// A tick is a second of the real types.
pub(crate) fn timings(scenario: &Scenario) -> Timings {
    let margin = if scenario.is(Defect::NoMargin) { 0 } else { MARGIN };
    Timings { lease: seconds(LEASE), renew: seconds(1), margin: seconds(margin) }
}

pub(crate) fn seconds(ticks: u8) -> Duration {
    Duration::from_secs(u64::from(ticks))
}

/// The number of a node in the fixture, which counts from 1.
pub(crate) fn number(at: usize) -> u64 {
    u64::try_from(at).unwrap_or(u64::MAX).saturating_add(1)
}

/// The identity of a holder. A sentinel's is that of its pod and the boot, whichever of its processes it is; behind it counts how often a hand
/// has told such a holder to stop.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    actor: usize,
    /// Of a sentinel only.
    boot: Option<u8>,
    count: u8,
}

impl Display for Identity {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.boot {
            Some(boot) if self.count > 0 => write!(f, "sentinel-{}-{boot}.{}", self.actor, self.count),
            Some(boot) => write!(f, "sentinel-{}-{boot}", self.actor),
            None => write!(f, "actor-{}", self.actor),
        }
    }
}

/// Of whoever is no sentinel: neither boot nor count is in it.
fn identity(actor: usize) -> Identity {
    Identity { actor, boot: None, count: 0 }
}

/// What is seen of the holder of the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HolderSeen {
    pod: Pod,
    /// Whether its node is Ready, and its boot.
    node: (bool, u8),
    /// Whether a step is at work on its target; none where that host was not looked at.
    unit: Option<bool>,
    /// For how many ticks the Lease was seen unchanged.
    sighted: Option<u8>,
}

/// All that a decision about the Lease depends on: a search asks the same a hundred thousand times.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Asked {
    me: (Identity, Actor),
    holder: Option<(Holder, Identity, Actor, HolderSeen)>,
    defect: Option<Defect>,
}

static DECISIONS: LazyLock<Mutex<HashMap<Asked, Option<Decided>>>> = LazyLock::new(Mutex::default);

pub(crate) fn operation(kind: Kind) -> String {
    match kind {
        Kind::Upgrade => "upgrade",
        Kind::Reboot => "reboot",
        Kind::Defragment => "defragment",
        Kind::Sentinel => "sentinel",
        Kind::Members(Plan::Remove) => "remove",
        Kind::Members(Plan::Join) => "join",
        Kind::Members(Plan::Replace) => "replace",
    }
    .to_owned()
}

fn step(step: Step) -> quorum_safety::lock::Step {
    match step {
        Step::Acquired => quorum_safety::lock::Step::acquired(),
        Step::Drain => quorum_safety::lock::Step::touching("drain"),
        Step::AtWork => quorum_safety::lock::Step::touching("node-step"),
        Step::Open => quorum_safety::lock::Step::touching("open"),
        Step::Recover => quorum_safety::lock::Step::touching("recover"),
    }
}

impl Scenario {
    /// The identity that an actor has now.
    pub(crate) fn me(&self, state: &State, actor: usize) -> Identity {
        if !self.is_sentinel(actor) {
            return identity(actor);
        }
        let boot = state.nodes[self.actors[actor].runner].boot;
        Identity { actor, boot: Some(boot), count: self.count(state, actor) }
    }

    /// As which holder of its pod and boot an actor asks.
    pub(crate) fn count(&self, state: &State, actor: usize) -> u8 {
        let boot = state.nodes[self.actors[actor].runner].boot;
        let held = state.lease.filter(|holder| holder.actor == actor && holder.boot == boot);
        let held = held.map(|holder| holder.count);
        if !self.is_sentinel(actor) || self.is(Defect::ReleasedIsForEver) {
            return held.unwrap_or(0);
        }
        let count = asks_as(held.map(u32::from), state.lives[actor].told.map(u32::from));
        u8::try_from(count).unwrap_or(u8::MAX)
    }

    pub(crate) fn holder_identity(&self, holder: &Holder) -> Identity {
        if !self.is_sentinel(holder.actor) {
            return identity(holder.actor);
        }
        Identity { actor: holder.actor, boot: Some(holder.boot), count: holder.count }
    }

    fn claim(&self, state: &State, actor: usize) -> Claim {
        let wants = self.actors[actor];
        let identity = self.me(state, actor).to_string();
        Claim { identity, operation: operation(wants.kind), target: name(number(wants.target)) }
    }

    fn record(&self, holder: &Holder) -> Record {
        let wants = self.actors[holder.actor];
        Record {
            identity: self.holder_identity(holder).to_string(),
            operation: operation(wants.kind),
            target: name(number(wants.target)),
            actor: "model".to_owned(),
            pod: Some(PodRef {
                namespace: "quorate".to_owned(),
                name: format!("actor-{}", holder.actor),
                uid: format!("actor-{}", holder.actor),
            }),
            node: name(number(wants.runner)),
            boot_id: holder.boot.to_string(),
            step: step(holder.step),
            since: UnixSeconds(0),
            step_since: UnixSeconds(0),
        }
    }

    pub(crate) fn view(&self, state: &State) -> LeaseView {
        let version = "1".to_owned();
        let Some(holder) = &state.lease else { return LeaseView::Free { version } };
        let release = holder.released.map(|stopped| Release {
            identity: self.holder_identity(holder).to_string(),
            because: "the model".to_owned(),
            by: "a hand".to_owned(),
            at: UnixSeconds(0),
            stage: if stopped { Stage::Stopped } else { Stage::Told },
        });
        LeaseView::Held {
            version,
            identity: self.holder_identity(holder).to_string(),
            record: Fact::Known(self.record(holder)),
            release: Fact::Known(release),
        }
    }

    /// Whether somebody who has seen the Lease unchanged for so long knows that the holder's deadline has passed.
    fn is_silent(&self, sighted: Option<u8>) -> bool {
        sighted
            .is_some_and(|age| Sighting::first(&LeaseView::Absent, Duration::ZERO).silent(seconds(age), &timings(self)))
    }

    /// What is seen of the holder now.
    pub(crate) fn sees_holder(&self, state: &State, holder: &Holder, actor: usize) -> HolderSeen {
        let sighted = state.lives[actor].sighted;
        // A sentinel sees its own paths of its own host only; nobody asks before the holder's deadline has passed.
        let looks_at_host = self.is_silent(sighted) && !self.is_sentinel(actor);
        self.seen_of(state, holder, sighted, looks_at_host)
    }

    fn seen_of(&self, state: &State, holder: &Holder, sighted: Option<u8>, looks_at_host: bool) -> HolderSeen {
        let wants = self.actors[holder.actor];
        let (runner, target) = (state.nodes[wants.runner], state.nodes[wants.target]);
        HolderSeen {
            pod: state.lives[holder.actor].pod,
            node: (runner.is_reached(), runner.boot),
            unit: (looks_at_host && target.is_reached()).then_some(target.unit != Unit::None),
            sighted,
        }
    }

    fn facts(&self, holder: &Holder, seen: &HolderSeen) -> HolderFacts {
        let pod = match seen.pod {
            Pod::Running => PodState::Running,
            Pod::Ended => PodState::Terminal,
            Pod::GivenUp if self.is(Defect::UnreachableHasEnded) => PodState::Terminal,
            Pod::GivenUp | Pod::Evicted => PodState::Terminating,
            Pod::Missing if self.is(Defect::MissingPodHasEnded) => PodState::Terminal,
            Pod::Missing | Pod::NotYet => PodState::NotFound,
        };
        let unit = match seen.unit {
            _ if self.is(Defect::HostNotLookedAt) => Fact::Known(false),
            Some(works) => Fact::Known(works),
            None => Fact::Unknown("the host was not looked at".to_owned()),
        };
        let (ready, boot) = seen.node;
        HolderFacts {
            of: self.holder_identity(holder).to_string(),
            pod: Fact::Known(pod),
            node: Fact::Known(NodeState::Present { ready, boot_id: boot.to_string() }),
            unit,
            silent: self.is_silent(seen.sighted) || (self.is(Defect::ReleaseCountsAtOnce) && holder.released.is_some()),
        }
    }

    /// What an actor decides about the Lease now; none when it waits.
    pub(crate) fn decided(&self, state: &State, actor: usize) -> Option<Decided> {
        let holder = state.lease.map(|holder| {
            let now = self.sees_holder(state, &holder, actor);
            let seen = match state.lives[actor].glimpse {
                Some(Glimpse::Holder(before)) => HolderSeen { node: now.node, ..before },
                Some(Glimpse::Members(_) | Glimpse::Objects { .. }) | None => now,
            };
            (holder, self.holder_identity(&holder), self.actors[holder.actor], seen)
        });
        let asked = Asked { me: (self.me(state, actor), self.actors[actor]), holder, defect: self.defect };
        let mut decisions = DECISIONS.lock().unwrap_or_else(PoisonError::into_inner);
        *decisions.entry(asked).or_insert_with(|| self.decides(state, actor, holder.map(|(.., seen)| seen)))
    }

    fn decides(&self, state: &State, actor: usize, seen: Option<HolderSeen>) -> Option<Decided> {
        let view = self.view(state);
        let facts = match (&state.lease, &seen) {
            (Some(holder), Some(seen)) => self.facts(holder, seen),
            (Some(_) | None, _) => HolderFacts::unknown("", "nobody holds it"),
        };
        let mut decision = decide(&Fact::Known(view), &self.claim(state, actor), &facts);
        if let (Some(holder), Decision::Wait(_)) = (&state.lease, &decision) {
            let proof = Proof::PodEnded;
            let same = self.actors[holder.actor].operation() == self.actors[actor].operation();
            let others = holder.actor != actor;
            if self.is(Defect::ExpiryHandsOver) && facts.silent && others {
                decision = if same {
                    Decision::Adopt { proof, step: step(holder.step) }
                } else {
                    Decision::TakeOver { proof }
                };
            } else if self.is(Defect::HalfDoneIsTakenOver) && others && !same {
                // Only that of the doubts is dropped: its holder is gone.
                let untouched = State { lease: Some(Holder { step: Step::Acquired, ..*holder }), ..*state };
                let view = self.view(&untouched);
                let facts = HolderFacts { unit: Fact::Known(false), ..facts };
                decision = decide(&Fact::Known(view), &self.claim(state, actor), &facts);
            }
        }
        match decision {
            Decision::Create | Decision::Acquire | Decision::TakeOver { .. } => Some(Decided::Take),
            Decision::Renew => Some(Decided::Mine),
            Decision::Adopt { step, .. } => Some(match step.name.as_str() {
                "drain" => Decided::Adopt(Step::Drain),
                "node-step" => Decided::Adopt(Step::AtWork),
                "open" => Decided::Adopt(Step::Open),
                "recover" => Decided::Adopt(Step::Recover),
                _ => Decided::Take,
            }),
            Decision::Wait(waits) => {
                waits.iter().any(|wait| matches!(wait, Wait::MineReleased(_))).then_some(Decided::Told)
            }
        }
    }

    /// What a hand may record about the holder now: whether what it left is given up, and whether it is proven to have stopped.
    pub(crate) fn by_hand(&self, state: &State, abandon: bool) -> Option<(bool, bool)> {
        let view = self.view(state);
        let holder = state.lease?;
        let facts = self.facts(&holder, &self.seen_of(state, &holder, state.hand, false));
        Some(match by_hand(&view, &facts, abandon)? {
            Stage::Told => (false, false),
            Stage::Stopped => (false, true),
            Stage::Abandoned => (true, true),
        })
    }

    /// kured's annotation, as we or kured have written it.
    pub(crate) fn kured(&self, lock: KuredLock) -> Option<quorum_safety::lock::KuredLock> {
        let created = "0001-01-01T00:00:00Z".to_owned();
        let block = match lock {
            KuredLock::Free => return None,
            // Never a sentinel's: its identity would change with the boot.
            KuredLock::Ours(of) => {
                KuredBlock::ours(&operation(self.actors[of].kind), &identity(of).to_string(), created)
            }
            KuredLock::Node(at) => KuredBlock { node_id: name(number(at)).0, holder: None, created, ttl: 0 },
        };
        Some(quorum_safety::lock::KuredLock::One(block))
    }

    /// What to do about kured's lock.
    pub(crate) fn kured_step(&self, state: &State, actor: usize) -> KuredStep {
        let mut live: Vec<String> = state.lease.iter().map(|holder| self.holder_identity(holder).to_string()).collect();
        if self.is(Defect::StaleBlockOfKuredStays) {
            live = (0..self.actors.len()).map(|actor| identity(actor).to_string()).collect();
        }
        if self.is(Defect::LocksInEitherOrder) {
            // Else whoever waits without the Lease loses its block to whoever holds it.
            let running = (0..self.actors.len()).filter(|of| state.lives[*of].process);
            live.extend(running.map(|of| identity(of).to_string()));
        }
        kured_step(&Fact::Known(Some(self.kured(state.kured))), &self.me(state, actor).to_string(), &Fact::Known(live))
    }
}
