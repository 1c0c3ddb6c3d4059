//! What may happen in the world of the Lease, and how it is drawn.

use super::ACTORS;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Wait(u64),
    Read(usize),
    /// Reads and writes at once.
    Try(usize),
    Write(usize),
    SendRenewal(usize),
    RenewalArrives(usize),
    Announce(usize),
    Act(usize, u64),
    Finish(usize),
    Pause(usize),
    Resume(usize),
    Kill(usize),
    ForceDelete(usize),
    CutOff(usize),
    Reconnect(usize),
    Reboot(usize),
    Restart(usize),
    /// The hand looks, wants to abandon what is half done or not, and does first what it has to do before it says so.
    HandLooks(bool),
    /// The hand records what it may, if nobody wrote since it looked.
    HandWrites,
    /// Looks and writes at once.
    HandTries(bool),
}

fn event() -> impl Strategy<Value = Event> {
    let actor = 0..ACTORS;
    prop_oneof![
        4 => (1u64..9).prop_map(Event::Wait),
        4 => actor.clone().prop_map(Event::Read),
        4 => actor.clone().prop_map(Event::Write),
        6 => actor.clone().prop_map(Event::Try),
        2 => actor.clone().prop_map(Event::SendRenewal),
        2 => actor.clone().prop_map(Event::RenewalArrives),
        2 => actor.clone().prop_map(Event::Announce),
        4 => (actor.clone(), 1u64..5).prop_map(|(a, d)| Event::Act(a, d)),
        1 => actor.clone().prop_map(Event::Finish),
        2 => actor.clone().prop_map(Event::Pause),
        2 => actor.clone().prop_map(Event::Resume),
        1 => actor.clone().prop_map(Event::Kill),
        2 => actor.clone().prop_map(Event::ForceDelete),
        1 => actor.clone().prop_map(Event::CutOff),
        1 => actor.clone().prop_map(Event::Reconnect),
        1 => actor.clone().prop_map(Event::Reboot),
        2 => actor.prop_map(Event::Restart),
        1 => prop::bool::weighted(0.8).prop_map(Event::HandLooks),
        1 => Just(Event::HandWrites),
        4 => prop::bool::weighted(0.8).prop_map(Event::HandTries),
    ]
}

/// Single events, and runs of them without which hardly anything gets far: somebody acts, somebody is patient, somebody is interrupted
/// in the middle.
pub(super) fn events(most: usize) -> impl Strategy<Value = Vec<Event>> {
    let actor = 0..ACTORS;
    let some = prop_oneof![
        6 => event().prop_map(|event| vec![event]),
        1 => (actor.clone(), 1u64..5).prop_map(|(a, d)| vec![Event::Try(a), Event::Announce(a), Event::Act(a, d)]),
        1 => (actor.clone(), any::<bool>(), 1u64..5).prop_map(|(a, abandon, d)| {
            vec![Event::Try(a), Event::Announce(a), Event::HandTries(abandon), Event::Act(a, d)]
        }),
        1 => (actor.clone(), 0..ACTORS, 1u64..5).prop_map(|(a, b, d)| {
            vec![Event::Try(a), Event::Announce(a), Event::Read(b), Event::Wait(d), Event::Act(a, d), Event::ForceDelete(a)]
        }),
        1 => (actor, 7u64..9).prop_map(|(a, d)| vec![Event::Try(a), Event::Wait(d), Event::Try(a)]),
        1 => (any::<bool>(), 7u64..9)
            .prop_map(|(abandon, d)| vec![Event::HandTries(abandon), Event::Wait(d), Event::HandTries(abandon)]),
    ];
    prop::collection::vec(some, 1..most).prop_map(|runs| runs.concat())
}
