//! Reboots on machines: quorate's sentinels, and `kured_contract` (crates/lab/src/kured.rs) in kured's place, reboot every node of a cluster.
//! What must never be is watched from outside of both: two control plane nodes down at once, a quorum lost, two gates open.

mod chain;
mod fault;
mod fleet;
mod round;
mod watch;

use super::faults::number;
use super::stage::{LEASES, machines};
use fault::Fault;
use fleet::Fleet;
use lab::Lab;
use lab::kured::Step;
use lab::prober::monitor::rule::{self, Hit};
use lab::prober::monitor::{Account, Monitor};
use round::Round;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use watch::{Watched, watch};

/// A node takes two minutes on two cores; so long for five is far more than that.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// The choice for `make test`, of a control plane node and a worker: the sentinel of whichever goes first is killed when its node is drained, and
/// the power of the other is cut where kured would have asked for the reboot.
const SHORT: Round =
    Round { nodes: [0, 3], faults: [(Fault::SentinelKilled, Step::Drained), (Fault::PowerCut, Step::Rebooting)] };

/// Ends the watch, also when something panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What was seen of a part of the story, from outside.
struct Seen {
    account: Account,
    watched: Watched,
    /// What was injected.
    hits: Vec<Hit>,
    /// The nodes' boots after it, as the API has them.
    boots: BTreeMap<String, String>,
}

/// Does something while everything is watched from outside. What it gives is what it has injected.
fn watched(fleet: &Fleet, work: impl FnOnce(&Monitor) -> Vec<Hit>) -> Seen {
    let monitor = Monitor::start(&fleet.stage.lab, LEASES).unwrap();
    let over = AtomicBool::new(false);
    let (hits, watched) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&fleet.machines(), fleet.control_plane().len(), &monitor, &over));
        let end = Over(&over);
        let hits = work(&monitor);
        drop(end);
        (hits, watching.join().unwrap())
    });
    let seen = Seen { account: monitor.stop().unwrap(), watched, hits, boots: fleet.boots().unwrap() };
    println!("{:#?}", seen.watched.story);
    seen
}

impl Seen {
    /// What must never be.
    fn assert_safe(&self) {
        let Self { account, watched, hits, .. } = self;
        assert!(account.samples > 60 && watched.looks > 60, "{account:?} {watched:?}");
        assert!(watched.off.is_empty(), "two nodes were off at once: {watched:#?}");
        assert!(watched.gates.is_empty(), "two gates of the control plane were open at once: {watched:#?}");
        let hits = [hits.clone(), watched.elections(&account.members)].concat();
        let breaches = rule::breaches(account, &hits, &watched.targets);
        assert!(breaches.is_empty(), "{breaches:#?} {:#?} {hits:#?} {account:#?}", watched.targets);
    }
}

/// All nodes want a reboot at once, and get it.
fn all_reboot(fleet: &Fleet) {
    let before = fleet.boots().expect("the API answers");
    fleet.machines().iter().for_each(|machine| fleet.flag(machine));
    let began = Instant::now();
    let mut back = 0;
    fleet.within(LIMIT, "every node to have been rebooted", || {
        let boots = fleet.boots().ok_or("the API does not answer")?;
        let rebooted = boots.iter().filter(|(name, boot)| before.get(*name) != Some(boot)).count();
        if rebooted > back {
            println!("{:4} s: {rebooted} of {} nodes are rebooted", began.elapsed().as_secs(), boots.len());
            back = rebooted;
        }
        if rebooted == boots.len() { Ok(()) } else { Err(format!("{rebooted} of {}", boots.len())) }
    });
    is_over(fleet);
    println!("{:4} s: nothing is left", began.elapsed().as_secs());
}

/// Waits until these nodes have another boot than before, and nothing is left of it.
fn are_rebooted(fleet: &Fleet, before: &BTreeMap<String, String>, names: &[String]) {
    fleet.within(LIMIT, "the nodes to have been rebooted", || {
        let boots = fleet.boots().ok_or("the API does not answer")?;
        let missing: Vec<&String> = names.iter().filter(|name| boots.get(*name) == before.get(*name)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("not yet: {missing:?}")) }
    });
    is_over(fleet);
}

/// `sentinel status` has nothing left to say: what has just rebooted soaks first (S013), and is named until then.
fn at_rest(fleet: &Fleet) {
    fleet.within(LIMIT, "status to say that all is well", || {
        let said = fleet.status();
        if said.code == 0 { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

/// Gates, Leases, cordons, kured's lock: nothing is left of a reboot.
fn is_over(fleet: &Fleet) {
    fleet.within(LIMIT, "nothing to be left", || {
        let left = fleet.left();
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    });
}

/// What happened on one cluster, once.
struct Story {
    plain: Seen,
    faults: Seen,
}

/// Told by whichever test asks first, and once: one that ended early ends every test that asks for it.
fn story() -> &'static Story {
    static STORY: OnceLock<Option<Story>> = OnceLock::new();
    STORY.get_or_init(|| std::panic::catch_unwind(tell).ok()).as_ref().expect("the story was told to its end")
}

fn tell() -> Story {
    let _alone = machines();
    let fleet = Fleet::up(2);
    let plain = watched(&fleet, |_| {
        all_reboot(&fleet);
        Vec::new()
    });
    let faults = watched(&fleet, |monitor| round::play(&fleet, monitor, &SHORT));
    at_rest(&fleet);
    fleet.stage.keep_what_was_asked();
    Lab::down().unwrap();
    Story { plain, faults }
}

#[test]
fn three_control_plane_nodes_and_two_workers_reboot_one_after_the_other() {
    let Story { plain, .. } = story();
    plain.assert_safe();
    let Seen { account, watched, boots, .. } = plain;
    assert!(account.changes.iter().any(|change| change.voters.len() == 2), "a member is seen to be away: {account:?}");
    for (name, seen) in &watched.boots {
        assert_eq!(seen.len(), 2, "{name} is rebooted once: {watched:#?}");
        assert_eq!(seen.last(), boots.get(name), "{name}");
    }
    assert_eq!(watched.boots.len(), 5, "{watched:#?}");
}

#[test]
fn reboots_under_a_short_choice_of_faults_are_safe_and_done() {
    story().faults.assert_safe();
}

/// `REBOOT_SEED` and `REBOOT_ROUNDS` choose others.
#[test]
#[ignore = "ten rounds on one cluster: more than an hour"]
fn reboots_under_faults_drawn_from_a_seed_are_safe_and_done() {
    let _alone = machines();
    let fleet = Fleet::up(2);
    let (seed, count) = (number("REBOOT_SEED", 1), number("REBOOT_ROUNDS", 10));
    for (place, round) in round::rounds(seed, fleet.machines().len(), count).iter().enumerate() {
        println!("seed {seed}, round {place}");
        watched(&fleet, |monitor| round::play(&fleet, monitor, round)).assert_safe();
    }
    Lab::down().unwrap();
}

#[test]
#[ignore = "a cluster of its own, an upgrade and two reboots: 10 minutes"]
fn reboots_that_are_wanted_while_a_chain_upgrades_wait_for_their_turn() {
    let _alone = machines();
    let fleet = Fleet::up(1);
    let mut said = None;
    let seen = watched(&fleet, |monitor| {
        said = Some(chain::play(&fleet, monitor));
        Vec::new()
    });
    seen.assert_safe();
    let said = said.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let Seen { account, watched, .. } = &seen;
    let rebooted: Vec<usize> = watched.boots.values().map(Vec::len).filter(|boots| *boots > 1).collect();
    assert_eq!(rebooted, [2, 2], "two nodes are rebooted once each: {watched:#?}");
    assert_eq!(chain::out_of_turn(watched, &account.members), Vec::<String>::new(), "{watched:#?}");
    Lab::down().unwrap();
}
