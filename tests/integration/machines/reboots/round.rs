//! Rounds of faults, drawn from a seed: two nodes of a cluster want a reboot, and on each something goes wrong at a step of kured's.

use super::super::faults::draw::{Deck, Numbers};
use super::fault::Fault;
use super::fleet::Fleet;
use super::{LIMIT, are_rebooted};
use lab::Machine;
use lab::kured::Step;
use lab::prober::monitor::Monitor;
use lab::prober::monitor::rule::Hit;

/// A fault, and the step at which it strikes.
pub(super) type Planned = (Fault, Step);

/// What happens in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Round {
    /// The machines that are flagged.
    pub(super) nodes: [usize; 2],
    /// What strikes the first that goes, and the second.
    pub(super) faults: [Planned; 2],
}

/// The rounds of a seed, among so many machines: a control plane node and another node each.
pub(super) fn rounds(seed: u64, machines: usize, count: usize) -> Vec<Round> {
    let mut numbers = Numbers(seed);
    let mut faults = Deck::new(Fault::ALL.to_vec());
    let mut decks: Vec<Deck<Step>> = Fault::ALL.iter().map(|fault| Deck::new(fault.steps().to_vec())).collect();
    let mut rounds = Vec::new();
    for _ in 0..count {
        let first = numbers.below(3);
        let second = (first + 1 + numbers.below(machines - 1)) % machines;
        let mut next = || {
            let fault = faults.take(&mut numbers, |_| true).expect("a deck is never empty");
            let place = Fault::ALL.iter().position(|it| *it == fault).expect("it is one of all");
            (fault, decks[place].take(&mut numbers, |_| true).expect("each fault has a step"))
        };
        let planned = [next(), next()];
        rounds.push(Round { nodes: [first, second], faults: planned });
    }
    rounds
}

/// Plays it to its end: both nodes have been rebooted, and nothing is left. Gives what was taken away meanwhile.
pub(super) fn play(fleet: &Fleet, monitor: &Monitor, round: &Round) -> Vec<Hit> {
    let machines = fleet.machines();
    let flagged: Vec<&Machine> = round.nodes.iter().map(|node| &machines[*node]).collect();
    println!("{:4} s: {:?} of {:?}", monitor.now_ms() / 1000, round.faults, round.nodes);
    let before = fleet.boots().expect("the API answers");
    let (mut waiting, mut hits) = (flagged.clone(), Vec::new());
    // How often kured had come to the next step on each of them before.
    let hold = |waiting: &[&Machine], at: Step| -> Vec<usize> {
        waiting.iter().for_each(|machine| fleet.hold(machine, at));
        waiting.iter().map(|machine| fleet.times(machine, at)).collect()
    };
    let mut steps = round.faults.iter().map(|(_, at)| *at).skip(1);
    let mut begun = hold(&waiting, round.faults[0].1);
    flagged.iter().for_each(|machine| fleet.flag(machine));
    for (fault, at) in &round.faults {
        let mut come = None;
        fleet.within(LIMIT, &format!("kured to come to {at}"), || {
            come = (0..waiting.len()).find(|place| fleet.times(waiting[*place], *at) > begun[*place]);
            come.map(drop).ok_or_else(|| "not yet".to_owned())
        });
        let target = waiting.remove(come.expect("it was waited for"));
        // Before anything is given up here: then the other one has its turn.
        begun = steps.next().map_or_else(Vec::new, |next| hold(&waiting, next));
        println!("{:4} s: {fault} strikes {} at {at}", monitor.now_ms() / 1000, target.name());
        hits.extend(fault.strike(fleet, target, *at, || monitor.now_ms()));
    }
    are_rebooted(fleet, &before, &round.nodes.map(|node| machines[node].name()));
    hits
}

#[test]
fn rounds_are_the_same_again_and_nothing_is_forgotten() {
    assert_eq!(rounds(7, 5, 10), rounds(7, 5, 10));
    assert_ne!(rounds(7, 5, 10), rounds(8, 5, 10));
    let all = rounds(1, 5, 10);
    assert!(all.iter().all(|round| round.nodes[0] != round.nodes[1] && round.nodes[0] < 3));
    for fault in Fault::ALL {
        assert!(all.iter().flat_map(|round| &round.faults).any(|(other, _)| *other == fault), "{fault}");
    }
}
