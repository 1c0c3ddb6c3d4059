//! A moment as the values that the real functions are asked with, and their answers.

use crate::defect::Defect;
use crate::world::{Actor, Cordon, Decided, Holder, Kind, KuredLock, LEASE, MARGIN, Pod, Scenario, State, Step, Unit};
use quorum_safety::fixture::{self, name};
use quorum_safety::lock::{
    Claim, Decision, HolderFacts, KuredBlock, KuredStep, LeaseView, NodeState, PodRef, PodState, Proof, Record,
    Release, Sighting, Stage, Timings, by_hand, decide, kured_step,
};
use quorum_safety::{Cordon as SeenCordon, Disruption, Fact, Kured, Lock, Mine, UnixSeconds, Verdict};
use std::collections::HashMap;
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
fn number(at: usize) -> u64 {
    u64::try_from(at).unwrap_or(u64::MAX).saturating_add(1)
}

fn identity(actor: usize) -> String {
    format!("actor-{actor}")
}

fn operation(kind: Kind) -> String {
    match kind {
        Kind::Upgrade => "upgrade",
        Kind::Reboot => "reboot",
        Kind::Defragment => "defragment",
    }
    .to_owned()
}

fn step(step: Step) -> quorum_safety::lock::Step {
    match step {
        Step::Acquired => quorum_safety::lock::Step::acquired(),
        Step::Drain => quorum_safety::lock::Step::touching("drain"),
        Step::AtWork => quorum_safety::lock::Step::touching("node-step"),
    }
}

impl Scenario {
    fn claim(&self, actor: usize) -> Claim {
        let wants = self.actors[actor];
        Claim { identity: identity(actor), operation: operation(wants.kind), target: name(number(wants.target)) }
    }

    fn record(&self, holder: &Holder) -> Record {
        let wants = self.actors[holder.actor];
        Record {
            identity: identity(holder.actor),
            operation: operation(wants.kind),
            target: name(number(wants.target)),
            actor: "model".to_owned(),
            pod: Some(PodRef {
                namespace: "quorate".to_owned(),
                name: identity(holder.actor),
                uid: identity(holder.actor),
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
            identity: identity(holder.actor),
            because: "the model".to_owned(),
            by: "a hand".to_owned(),
            at: UnixSeconds(0),
            stage: if stopped { Stage::Stopped } else { Stage::Told },
        });
        LeaseView::Held {
            version,
            identity: identity(holder.actor),
            record: Fact::Known(self.record(holder)),
            release: Fact::Known(release),
        }
    }

    /// Whether somebody who has seen the Lease unchanged for so long knows that the holder's deadline has passed.
    fn is_silent(&self, view: &LeaseView, sighted: Option<u8>) -> bool {
        sighted.is_some_and(|age| Sighting::first(view, Duration::ZERO).silent(seconds(age), &timings(self)))
    }

    fn facts(&self, state: &State, view: &LeaseView, sighted: Option<u8>, looks_at_host: bool) -> HolderFacts {
        let Some(holder) = &state.lease else { return HolderFacts::unknown("", "nobody holds it") };
        let wants = self.actors[holder.actor];
        let (runner, target) = (state.nodes[wants.runner], state.nodes[wants.target]);
        let pod = match state.lives[holder.actor].pod {
            Pod::Running => PodState::Running,
            Pod::Ended => PodState::Terminal,
            Pod::GivenUp if self.is(Defect::UnreachableHasEnded) => PodState::Terminal,
            Pod::GivenUp => PodState::Terminating,
            Pod::Missing if self.is(Defect::MissingPodHasEnded) => PodState::Terminal,
            Pod::Missing => PodState::NotFound,
        };
        let ready = runner.is_reached();
        let unit = if self.is(Defect::HostNotLookedAt) {
            Fact::Known(false)
        } else if looks_at_host && target.is_reached() {
            Fact::Known(target.unit != Unit::None)
        } else {
            Fact::Unknown("the host was not looked at".to_owned())
        };
        HolderFacts {
            of: identity(holder.actor),
            pod: Fact::Known(pod),
            node: Fact::Known(NodeState::Present { ready, boot_id: runner.boot.to_string() }),
            unit,
            silent: self.is_silent(view, sighted)
                || (self.is(Defect::ReleaseCountsAtOnce) && holder.released.is_some()),
        }
    }

    /// What an actor decides about the Lease now; none when it waits.
    pub(crate) fn decided(&self, state: &State, actor: usize) -> Option<Decided> {
        let view = self.view(state);
        let facts = self.facts(state, &view, state.lives[actor].sighted, true);
        let mut decision = decide(&Fact::Known(view), &self.claim(actor), &facts);
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
                let mut untouched = state.clone();
                untouched.lease = Some(Holder { step: Step::Acquired, ..*holder });
                let view = self.view(&untouched);
                decision =
                    decide(&Fact::Known(view), &self.claim(actor), &HolderFacts { unit: Fact::Known(false), ..facts });
            }
        }
        match decision {
            Decision::Create | Decision::Acquire | Decision::TakeOver { .. } => Some(Decided::Take),
            Decision::Renew => Some(Decided::Mine),
            Decision::Adopt { step, .. } => Some(match step.name.as_str() {
                "drain" => Decided::Adopt(Step::Drain),
                "node-step" => Decided::Adopt(Step::AtWork),
                _ => Decided::Take,
            }),
            Decision::Wait(_) => None,
        }
    }

    /// What a hand may record about the holder now: true once the holder is proven to have stopped.
    pub(crate) fn by_hand(&self, state: &State) -> Option<bool> {
        let view = self.view(state);
        let facts = self.facts(state, &view, state.hand, false);
        match by_hand(&view, &facts, false)? {
            Stage::Told => Some(false),
            Stage::Stopped | Stage::Abandoned => Some(true),
        }
    }

    /// kured's annotation, as we or kured have written it.
    fn kured(&self, state: &State) -> Option<quorum_safety::lock::KuredLock> {
        let created = "0001-01-01T00:00:00Z".to_owned();
        let block = match state.kured {
            KuredLock::Free => return None,
            KuredLock::Ours(of) => KuredBlock::ours(&operation(self.actors[of].kind), &identity(of), created),
            KuredLock::Node(at) => KuredBlock { node_id: name(number(at)).0, holder: None, created, ttl: 0 },
        };
        Some(quorum_safety::lock::KuredLock::One(block))
    }

    /// What to do about kured's lock.
    pub(crate) fn kured_step(&self, state: &State, actor: usize) -> KuredStep {
        let mut live: Vec<String> = state.lease.iter().map(|holder| identity(holder.actor)).collect();
        if self.is(Defect::StaleBlockOfKuredStays) {
            live = (0..self.actors.len()).map(identity).collect();
        }
        kured_step(&Fact::Known(Some(self.kured(state))), &identity(actor), &Fact::Known(live))
    }

    /// Whether the rule permits what this actor wants.
    pub(crate) fn permits(&self, state: &State, actor: usize, adopted: bool) -> bool {
        let cordon = |cordon| match cordon {
            Cordon::Foreign if self.is(Defect::ForeignCordonIgnored) => Cordon::None,
            cordon => cordon,
        };
        let asked = Asked {
            nodes: state.nodes.iter().map(|node| (node.is_well(), cordon(node.cordon))).collect(),
            lease: state.lease.map(|holder| (holder.actor, self.actors[holder.actor])),
            kured: self
                .kured(state)
                .filter(|_| !self.is(Defect::KuredIgnored))
                .map(|lock| lock.in_flight())
                .and_then(owner),
            actor: (actor, self.actors[actor]),
            adopted: adopted || self.is(Defect::WholenessNotAsked),
            stays_up: self.is(Defect::TargetCountedAsUp),
        };
        let mut answers = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry(asked.clone()).or_insert_with(|| asked.judge(self.view(state).lock()))
    }
}

fn owner(kured: Kured) -> Option<String> {
    match kured {
        Kured::Absent | Kured::Free => None,
        Kured::Held(owner) => Some(owner),
    }
}

/// Everything that the rule's answer depends on: a search asks the same a hundred thousand times.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Asked {
    /// Whether each node is well, and its cordon.
    nodes: Vec<(bool, Cordon)>,
    /// Who holds the Lease.
    lease: Option<(usize, Actor)>,
    kured: Option<String>,
    /// Who asks.
    actor: (usize, Actor),
    adopted: bool,
    stays_up: bool,
}

static ANSWERS: LazyLock<Mutex<HashMap<Asked, bool>>> = LazyLock::new(Mutex::default);

impl Asked {
    fn judge(&self, lease: Lock) -> bool {
        let whole = fixture::healthy(u64::try_from(self.nodes.len()).unwrap_or(u64::MAX));
        let idle = whole.in_flight.clone();
        let (asker, wants) = self.actor;
        let mut seen = whole;
        for (at, (well, cordon)) in self.nodes.iter().enumerate() {
            let number = number(at);
            if !well {
                seen = seen.power_cut(number);
            }
            let cordon = match cordon {
                Cordon::None => SeenCordon::None,
                // Ours is on the target of whoever holds the Lease.
                Cordon::Ours => SeenCordon::Ours(operation(self.lease.map_or(wants.kind, |(_, holder)| holder.kind))),
                Cordon::Foreign => SeenCordon::Foreign,
            };
            seen = seen.on_node(&name(number).0, |node| node.cordon = cordon);
        }
        seen.in_flight.control_plane = Fact::Known(lease);
        seen.in_flight.kured = Fact::Known(self.kured.clone().map_or(Kured::Free, Kured::Held));
        let holds = self.lease.is_some_and(|(holder, _)| holder == asker);
        seen.in_flight.mine = match (holds, self.adopted) {
            (false, _) => Mine::Nothing,
            (true, false) => Mine::Taken(identity(asker)),
            (true, true) => Mine::Adopted(identity(asker)),
        };
        let target = number(wants.target);
        let wanted = match wants.kind {
            _ if self.stays_up => {
                // As if nobody of the control plane went down, and nothing was under way.
                seen.in_flight = idle;
                seen = seen.on_node(&name(target).0, |node| node.cordon = SeenCordon::None);
                Disruption::Upgrade("w1".into())
            }
            Kind::Upgrade => fixture::upgrade(target),
            Kind::Reboot => fixture::reboot(target),
            Kind::Defragment => Disruption::Defragment(fixture::id(target)),
        };
        // Somebody leads who can; whoever is taken down has handed over before.
        let well = self.nodes.iter().enumerate().filter(|(_, (well, _))| *well).map(|(at, _)| number(at));
        let led_by = well.rev().find(|leader| *leader != target);
        for at in 0..self.nodes.len() {
            seen = seen.on_samples(number(at), |sample| sample.leader = led_by.map(fixture::id));
        }
        matches!(seen.judge(&wanted), Verdict::Permitted(_))
    }
}
