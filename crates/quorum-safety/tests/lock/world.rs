//! A small world in which actors, pauses, crashes, stale answers and hands fight over one Lease, with the real `decide`, `by_hand`,
//! `Held` and `Sighting` inside. Time is one true time; every machine's boot clock starts elsewhere. More cases: `PROPTEST_CASES=20000`.

#[path = "events.rs"]
mod events;

use events::{Event, events};
use proptest::prelude::*;
use quorum_safety::lock::{
    Claim, Decision, Held, HolderFacts, LeaseView, NodeState, PodRef, PodState, Record, Release, Sighting, Stage, Step,
    Timings, by_hand, decide,
};
use quorum_safety::{Fact, NodeName, UnixSeconds};
use std::time::Duration;

const ACTORS: usize = 3;

fn timings() -> Timings {
    Timings { lease: Duration::from_secs(6), renew: Duration::from_secs(2), margin: Duration::from_secs(1) }
}

/// An attempt of an actor: a process in a pod on its own node.
struct Actor {
    attempt: u32,
    operation: &'static str,
    target: &'static str,
    process: bool,
    paused: bool,
    pod: PodState,
    ready: bool,
    boot: u32,
    held: Option<Held>,
    /// What it read last: the Lease, and the facts of its holder.
    read: Option<(LeaseView, HolderFacts)>,
    sighting: Option<Sighting>,
    /// A renewal that was sent and has not arrived yet: when, and on which version.
    sent: Option<(Duration, String)>,
    /// The end of the last disruptive request, in true time.
    acting_until: u64,
    /// What it has changed on its target and neither finished nor undone.
    half_done: bool,
}

struct World {
    now: u64,
    version: u64,
    lease: Option<(Record, Option<Release>)>,
    exists: bool,
    actors: Vec<Actor>,
    /// What is half done on the targets, as (operation, target): the truth that the Lease must cover.
    half_done: Option<(String, NodeName)>,
    taken: u32,
    adopted: u32,
    hand: Hand,
}

/// An admin with `quorate lease release`, somewhere outside of the cluster.
#[derive(Default)]
struct Hand {
    sighting: Option<Sighting>,
    /// What was looked at last, and the release that it may record: its stage, and the version it was judged on.
    judged: Option<(Stage, String)>,
    abandoned: u32,
}

impl World {
    fn new() -> Self {
        let wants = [("upgrade", "cp2"), ("upgrade", "cp2"), ("defragment", "cp3")];
        let actors = wants.map(|(operation, target)| Actor {
            attempt: 0,
            operation,
            target,
            process: true,
            paused: false,
            pod: PodState::Running,
            ready: true,
            boot: 0,
            held: None,
            read: None,
            sighting: None,
            sent: None,
            acting_until: 0,
            half_done: false,
        });
        Self {
            now: 0,
            version: 1,
            lease: None,
            exists: false,
            actors: actors.into(),
            half_done: None,
            taken: 0,
            adopted: 0,
            hand: Hand::default(),
        }
    }

    /// The boot clock of an actor's machine.
    fn clock(&self, a: usize) -> Duration {
        Duration::from_secs(self.now + 1000 * (a as u64 + 1))
    }

    fn claim(&self, a: usize) -> Claim {
        let actor = &self.actors[a];
        Claim {
            identity: format!("{a}-{}", actor.attempt),
            operation: actor.operation.to_owned(),
            target: NodeName::from(actor.target),
        }
    }

    fn view(&self) -> LeaseView {
        let version = self.version.to_string();
        match &self.lease {
            _ if !self.exists => LeaseView::Absent,
            None => LeaseView::Free { version },
            Some((record, release)) => LeaseView::Held {
                version,
                identity: record.identity.clone(),
                record: Fact::Known(record.clone()),
                release: Fact::Known(release.clone()),
            },
        }
    }

    fn facts(&self, view: &LeaseView, silent: bool) -> HolderFacts {
        let LeaseView::Held { identity, record: Fact::Known(record), .. } = view else {
            return HolderFacts::unknown("", "nobody");
        };
        let holder: usize = record.node.0.parse().unwrap();
        let actor = &self.actors[holder];
        let this_attempt = record.pod.as_ref().is_some_and(|pod| pod.uid == format!("{holder}-{}", actor.attempt));
        HolderFacts {
            of: identity.clone(),
            pod: Fact::Known(if this_attempt { actor.pod } else { PodState::NotFound }),
            node: Fact::Known(NodeState::Present { ready: actor.ready, boot_id: actor.boot.to_string() }),
            // What is half done here is a drain: no unit runs, and the record alone must protect it.
            unit: Fact::Known(false),
            silent,
        }
    }

    fn runs(&self, a: usize) -> bool {
        self.actors[a].process && !self.actors[a].paused
    }

    /// Whether the actor reaches the API.
    fn connected(&self, a: usize) -> bool {
        self.runs(a) && self.actors[a].ready
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Wait(seconds) => self.now += seconds,
            Event::Read(a) if self.connected(a) => {
                let view = self.view();
                let now = self.clock(a);
                let seen = match self.actors[a].sighting.take() {
                    Some(seen) => seen.again(&view, now),
                    None => Sighting::first(&view, now),
                };
                let facts = self.facts(&view, seen.silent(now, &timings()));
                self.actors[a].sighting = Some(seen);
                self.actors[a].read = Some((view, facts));
            }
            Event::Try(a) => {
                self.step(Event::Read(a));
                self.step(Event::Write(a));
            }
            Event::Write(a) if self.connected(a) => self.write(a),
            Event::SendRenewal(a) if self.connected(a) && self.actors[a].held.is_some() => {
                self.actors[a].sent = Some((self.clock(a), self.version.to_string()));
            }
            Event::RenewalArrives(a) => {
                let Some((sent, version)) = self.actors[a].sent.take() else { return };
                let mine = self.claim(a).identity;
                let released = matches!(&self.lease, Some((_, Some(_))));
                let holds = matches!(&self.lease, Some((record, _)) if record.identity == mine);
                let arrives = version == self.version.to_string() && holds && !released;
                self.version += u64::from(arrives);
                if let (true, Some(held)) = (self.actors[a].process, self.actors[a].held.as_mut()) {
                    if arrives {
                        let _ = held.renewed(sent);
                    } else {
                        held.lost("409");
                    }
                }
            }
            Event::Announce(a) if self.connected(a) => {
                // Announces that something will be changed, with a precondition, under its Lease.
                let mine = self.claim(a).identity;
                let now = self.clock(a);
                let Some(held) = self.actors[a].held.as_mut() else { return };
                if held.still(now).is_err() {
                    return;
                }
                let Some((record, None)) = self.lease.as_mut() else { return };
                if record.identity == mine {
                    record.step = Step::touching("drain");
                    self.version += 1;
                }
            }
            Event::Act(a, seconds) if self.runs(a) => self.act(a, seconds),
            Event::Finish(a) if self.connected(a) => {
                let mine = self.claim(a).identity;
                let now = self.clock(a);
                let holds = matches!(&self.lease, Some((record, _)) if record.identity == mine);
                let done = self.actors[a].acting_until <= self.now;
                let Some(held) = self.actors[a].held.as_mut() else { return };
                if holds && done && held.still(now).is_ok() {
                    self.lease = None;
                    self.version += 1;
                    self.actors[a].held = None;
                    self.actors[a].half_done = false;
                    self.half_done = None;
                }
            }
            Event::Pause(a) => self.actors[a].paused = true,
            Event::Resume(a) => self.actors[a].paused = false,
            Event::Kill(a) => {
                self.end(a);
                // The kubelet says so only where it can be heard.
                if self.actors[a].ready && self.actors[a].pod == PodState::Running {
                    self.actors[a].pod = PodState::Terminal;
                }
            }
            Event::ForceDelete(a) => self.actors[a].pod = PodState::NotFound,
            Event::CutOff(a) => self.actors[a].ready = false,
            Event::Reconnect(a) => {
                self.actors[a].ready = true;
                if !self.actors[a].process && self.actors[a].pod == PodState::Running {
                    self.actors[a].pod = PodState::Terminal;
                }
            }
            Event::Reboot(a) => {
                self.end(a);
                self.actors[a].boot += 1;
                self.actors[a].pod = PodState::NotFound;
            }
            Event::Restart(a) if !self.actors[a].process => {
                let actor = &mut self.actors[a];
                actor.attempt += 1;
                actor.process = true;
                actor.paused = false;
                actor.pod = PodState::Running;
                actor.held = None;
                actor.read = None;
                actor.sighting = None;
                actor.sent = None;
            }
            Event::HandLooks(abandon) => {
                let view = self.view();
                let now = Duration::from_secs(self.now);
                let seen = match self.hand.sighting.take() {
                    Some(seen) => seen.again(&view, now),
                    None => Sighting::first(&view, now),
                };
                // Nobody looks at the target's host from a command line.
                let unit = Fact::Unknown("not looked at".to_owned());
                let facts = HolderFacts { unit, ..self.facts(&view, seen.silent(now, &timings())) };
                self.hand.sighting = Some(seen);
                self.hand.judged = by_hand(&view, &facts, abandon).map(|stage| (stage, self.version.to_string()));
                // Who abandons has put things right first; what is done from here on, nobody has put right.
                if let Some((Stage::Abandoned, _)) = self.hand.judged {
                    self.half_done = None;
                }
            }
            Event::HandWrites => {
                let Some((stage, version)) = self.hand.judged.take() else { return };
                let Some((record, release)) = self.lease.as_mut() else { return };
                if version != self.version.to_string() {
                    return;
                }
                self.version += 1;
                if stage == Stage::Abandoned {
                    self.lease = None;
                    self.hand.abandoned += 1;
                } else {
                    *release = Some(Release {
                        identity: record.identity.clone(),
                        because: "by hand".to_owned(),
                        by: "admin".to_owned(),
                        at: UnixSeconds(0),
                        stage,
                    });
                }
            }
            Event::HandTries(abandon) => {
                self.step(Event::HandLooks(abandon));
                self.step(Event::HandWrites);
            }
            _ => {}
        }
    }

    fn end(&mut self, a: usize) {
        self.actors[a].process = false;
        self.actors[a].held = None;
        // Its connections are cut: what has not been carried out is not.
        self.actors[a].acting_until = self.actors[a].acting_until.min(self.now);
    }

    fn write(&mut self, a: usize) {
        let Some((view, facts)) = self.actors[a].read.take() else { return };
        let me = self.claim(a);
        let (old, adopted) = match decide(&Fact::Known(view.clone()), &me, &facts) {
            Decision::Wait(_) => return,
            Decision::Create | Decision::Acquire => (Step::acquired(), false),
            Decision::Renew => match &view {
                LeaseView::Held { record: Fact::Known(record), .. } => (record.step.clone(), false),
                _ => panic!("renews what it does not hold"),
            },
            Decision::Adopt { step, .. } => (step, true),
            Decision::TakeOver { .. } => (Step::acquired(), false),
        };
        let current = if self.exists { Some(self.version.to_string()) } else { None };
        if view.version().map(str::to_owned) != current {
            return;
        }
        // The promise about half done work: whoever gets the Lease either takes it on or there is none.
        if let Some((operation, target)) = &self.half_done {
            assert!(
                *operation == me.operation && *target == me.target && old.touched,
                "{me:?} took the Lease over half done {operation} on {target}"
            );
        }
        self.exists = true;
        self.version += 1;
        self.taken += 1;
        self.adopted += u32::from(adopted);
        let (attempt, boot) = (self.actors[a].attempt, self.actors[a].boot);
        self.lease = Some((
            Record {
                identity: me.identity,
                operation: me.operation,
                target: me.target,
                actor: "test".to_owned(),
                pod: Some(PodRef { namespace: "q".into(), name: "p".into(), uid: format!("{a}-{attempt}") }),
                node: NodeName(a.to_string()),
                boot_id: boot.to_string(),
                step: old,
                since: UnixSeconds(0),
                step_since: UnixSeconds(0),
            },
            None,
        ));
        self.actors[a].held = Some(Held::since(self.clock(a), timings()));
    }

    fn act(&mut self, a: usize, seconds: u64) {
        let now = self.clock(a);
        // It knows its step from what it wrote; here: from the Lease, if it is its own.
        let mine = self.claim(a).identity;
        let announced = matches!(&self.lease, Some((record, _)) if record.identity == mine && record.step.touched);
        let Some(held) = self.actors[a].held.as_mut() else { return };
        let Ok(deadline) = held.may_act(now, Duration::from_secs(seconds)) else { return };
        let end = self.now + (deadline.at() - now).as_secs();
        // Nobody else may have a request under way, and nobody else may send one before this one has ended.
        for (other, actor) in self.actors.iter().enumerate() {
            assert!(other == a || actor.acting_until <= self.now, "{a} acts while a request of {other} is under way");
        }
        if announced {
            self.actors[a].acting_until = self.actors[a].acting_until.max(end);
            self.actors[a].half_done = true;
            let claim = self.claim(a);
            self.half_done = Some((claim.operation, claim.target));
        }
    }

    /// No two processes believe that they may act.
    fn check(&self) {
        let may: Vec<usize> = (0..ACTORS)
            .filter(|&a| self.actors[a].process)
            .filter(|&a| {
                let held = self.actors[a].held.clone();
                held.is_some_and(|mut held| held.may_act(self.clock(a), Duration::from_millis(1)).is_ok())
            })
            .collect();
        assert!(may.len() <= 1, "{may:?} may all act");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(600), failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, at most one may act, and what is half done is never taken over by another operation.
    #[test]
    fn at_most_one_may_act(events in events(80)) {
        let mut world = World::new();
        for event in events {
            world.step(event);
            world.check();
        }
    }

    /// Whatever is left half done, an actor of the same operation can adopt it once its holder is provably gone.
    #[test]
    fn everything_half_done_can_be_adopted(events in events(60)) {
        let mut world = World::new();
        for event in events {
            world.step(event);
        }
        // All processes end and are seen to end; a new one of the upgrade looks twice.
        for a in 0..ACTORS {
            world.step(Event::Resume(a));
            world.step(Event::Kill(a));
            world.step(Event::Reconnect(a));
        }
        let Some((operation, target)) = world.half_done.clone() else { return Ok(()) };
        let a = (0..ACTORS)
            .find(|&a| world.actors[a].operation == operation && NodeName::from(world.actors[a].target) == target)
            .unwrap();
        world.step(Event::Restart(a));
        world.step(Event::Read(a));
        world.step(Event::Wait(timings().silence().as_secs()));
        let before = world.adopted;
        world.step(Event::Read(a));
        world.step(Event::Write(a));
        prop_assert_eq!(world.adopted, before + 1);
    }
}

/// A world in which nobody ever takes anything would pass the properties: this one must see it happen.
#[test]
fn the_world_takes_adopts_and_takes_over() {
    let mut world = World::new();
    let all = [
        Event::Read(0),
        Event::Write(0),
        Event::Announce(0),
        Event::Act(0, 2),
        // Nobody gets it from who lives.
        Event::Try(1),
        Event::Kill(0),
        Event::Read(2),
        Event::Write(2),
        Event::Read(1),
        Event::Write(1),
        Event::Finish(1),
        Event::Read(2),
        Event::Write(2),
        Event::Reboot(2),
        Event::Read(1),
        Event::Write(1),
    ];
    for event in all {
        world.step(event);
        world.check();
    }
    assert_eq!((world.taken, world.adopted), (4, 1));
}

/// The race that the deadline of each request is there for: a request sent just before the holder's deadline, and a successor that acts as
/// soon as it may.
#[test]
fn no_request_is_under_way_when_the_successor_acts() {
    let mut world = World::new();
    let all = [
        Event::Try(0),
        Event::Announce(0),
        Event::Read(1),
        Event::Wait(5),
        // Four seconds, one before the deadline: not sent.
        Event::Act(0, 4),
        Event::ForceDelete(0),
        // Too early, and in time.
        Event::Try(1),
        Event::Wait(2),
        Event::Try(1),
        Event::Announce(1),
        Event::Act(1, 1),
    ];
    for event in all {
        world.step(event);
        world.check();
    }
    assert_eq!(world.adopted, 1);
    assert_eq!(world.actors[1].acting_until, world.now + 1, "the successor did act");
}

/// Found by `at_most_one_may_act`, one run in seven: the holder goes on with what it had announced, after its half done work was given
/// up by hand and before it has seen that. What it does then is nobody's, unless giving up waits until it has stopped.
#[test]
fn what_a_holder_does_before_it_sees_its_release_is_not_given_up() {
    let mut world = World::new();
    let all = [
        Event::Try(2),
        Event::Announce(2),
        Event::HandTries(true),
        Event::Act(2, 1),
        Event::Try(0),
        Event::Wait(7),
        Event::Try(0),
    ];
    for event in all {
        world.step(event);
        world.check();
    }
    assert_eq!(world.half_done, Some(("defragment".to_owned(), NodeName::from("cp3"))));
    assert_eq!((world.taken, world.hand.abandoned), (1, 0));
    let stage = world.lease.and_then(|(_, release)| release).map(|release| release.stage);
    assert_eq!(stage, Some(Stage::Told), "nobody had seen it stop");
}

/// And a hand that comes again, after the holder has stopped and what it did was put right, does get through.
#[test]
fn what_a_stopped_holder_left_is_given_up_by_hand() {
    let mut world = World::new();
    let all = [
        Event::Try(2),
        Event::Announce(2),
        Event::CutOff(2),
        // Told, and not known to have stopped before its deadline: it did act in between.
        Event::HandTries(true),
        Event::HandTries(true),
        Event::HandTries(true),
        Event::Act(2, 1),
        Event::HandLooks(true),
    ];
    let given_up = [Event::Wait(7), Event::HandTries(true), Event::HandTries(true), Event::Try(0)];
    for event in all {
        world.step(event);
        world.check();
    }
    assert_eq!((world.taken, world.hand.abandoned), (1, 0));
    for event in given_up {
        world.step(event);
        world.check();
    }
    assert_eq!((world.taken, world.hand.abandoned), (2, 1));
    assert_eq!(world.half_done, None);
}
