//! What happens in a round, drawn from a seed: the same seed and number, the same faults at the same boundaries, at the same commit.

use super::boundary::Boundary;
use super::fault::Fault;
use quorate::node::Step;
use std::fmt;

/// Nodes of the cluster; the last is its worker.
pub(super) const NODES: usize = 4;

/// A fault that is to strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) fault: Fault,
    /// The how manieth node that is worked on, from 1.
    pub(super) nth: usize,
    pub(super) at: Boundary,
}

impl Planned {
    /// `kill-step@2:lease:drain`, as it is printed.
    pub(super) fn named(text: &str) -> Option<Self> {
        let (fault, rest) = text.split_once('@')?;
        let (nth, at) = rest.split_once(':')?;
        Some(Self { fault: Fault::named(fault)?, nth: nth.parse().ok()?, at: Boundary::named(at)? })
    }

    /// The sub-step on the host at which a kill strikes. Nothing else waits for it: a host that stands still would change what
    /// the fault finds there.
    pub(super) fn held_on_host(self) -> Option<Step> {
        match (self.fault, self.at) {
            (Fault::StepKilled | Fault::NodePodKilled | Fault::UnitKilled, Boundary::Host(step)) => Some(step),
            _ => None,
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}", self.fault, self.nth, self.at)
    }
}

/// A stream of numbers from a seed (splitmix64): all that is asked of it is that it is the same tomorrow.
pub(in super::super) struct Numbers(pub(in super::super) u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(in super::super) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("a small number");
        usize::try_from(self.next() % end).expect("below a small number")
    }
}

/// Cards that are taken one after the other, and shuffled again when none is left: nothing comes twice before everything came once.
pub(in super::super) struct Deck<T> {
    all: Vec<T>,
    left: Vec<T>,
}

impl<T: Copy> Deck<T> {
    pub(in super::super) const fn new(all: Vec<T>) -> Self {
        Self { all, left: Vec::new() }
    }

    /// The next that fits; none when nothing in the whole deck does.
    pub(in super::super) fn take(&mut self, numbers: &mut Numbers, fits: impl Fn(T) -> bool) -> Option<T> {
        if !self.left.iter().any(|card| fits(*card)) {
            let mut again = self.all.clone();
            for place in (1..again.len()).rev() {
                again.swap(place, numbers.below(place + 1));
            }
            self.left.extend(again);
        }
        let place = self.left.iter().position(|card| fits(*card))?;
        Some(self.left.remove(place))
    }
}

/// The faults of the first rounds of a seed.
pub(super) fn rounds(seed: u64, count: usize) -> Vec<Vec<Planned>> {
    let mut numbers = Numbers(seed);
    let (mut faults, mut boundaries) = (Deck::new(Fault::all()), Deck::new(Boundary::all()));
    let mut rounds = Vec::new();
    for _ in 0..count {
        let mut round: Vec<Planned> = Vec::new();
        for number in 0..4 + numbers.below(3) {
            // Every node is struck before one is struck twice.
            let nth = number % NODES + 1;
            let fit = |fault: Fault, at: Boundary| fault.fits(at, nth == NODES);
            let some = |fault: Fault| Boundary::all().into_iter().any(|at| fit(fault, at));
            let fault = faults.take(&mut numbers, some).expect("some fault fits every node");
            let at =
                boundaries.take(&mut numbers, |at| fit(fault, at)).expect("a fault that fits nowhere was not drawn");
            round.push(Planned { fault, nth, at });
        }
        round.sort_by_key(|planned| (planned.nth, planned.at.position()));
        rounds.push(round);
    }
    rounds
}

#[test]
fn a_seed_is_replayed_and_nothing_is_forgotten() {
    assert_eq!(rounds(7, 9), rounds(7, 9));
    assert_eq!(rounds(7, 3), rounds(7, 9)[..3]);
    assert_ne!(rounds(7, 3), rounds(8, 3));
    // Where nobody holds a Lease only one kind strikes.
    let drawn: Vec<Planned> = rounds(1, 120).into_iter().flatten().collect();
    for fault in Fault::all() {
        assert!(drawn.iter().any(|planned| planned.fault == fault), "{fault}");
    }
    for at in Boundary::all() {
        assert!(drawn.iter().any(|planned| planned.at == at), "{at}");
    }
    assert!(drawn.iter().all(|planned| planned.fault.fits(planned.at, planned.nth == NODES)));
    assert!(rounds(1, 120).iter().all(|round| (4..=6).contains(&round.len())));
}

#[test]
fn what_is_printed_can_be_asked_for_again() {
    for planned in rounds(3, 5).into_iter().flatten() {
        assert_eq!(Planned::named(&planned.to_string()), Some(planned));
    }
    assert_eq!(Planned::named("kill-step@drain"), None);
}
