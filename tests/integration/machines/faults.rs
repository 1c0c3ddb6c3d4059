//! The same upgrade under faults, on real machines: power cuts, pauses, partitions, kills, full disks, administrators. Each round is
//! one upgrade on a fresh cluster with several faults in it, at boundaries that come from the program's own lists; then the command is
//! run again until it is done, and nothing else is. A monitor outside of quorate judges every second of it.

mod boundary;
mod clean;
pub(super) mod draw;
mod fault;
mod record;
mod round;

use super::stage::{machines, stage, until};
use super::story::TO;
use draw::Planned;
use lab::{Lab, Machine, Spec, Version};
use quorate::node::Step;
use record::Line;
use round::By;

/// The rounds of `make test-long`; `make faults` says others.
const SEED: u64 = 1;
const ROUNDS: usize = 4;

/// What a variable says; `make` sets those that nobody has given to nothing.
fn set(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|text| !text.is_empty())
}

pub(super) fn number<T: std::str::FromStr>(variable: &str, default: T) -> T {
    set(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// What was built, for the record.
fn commit() -> String {
    let said = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
    said.map_or_else(|_| "unknown".to_owned(), |said| String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// The version that an upgrade begins with where nobody says another.
fn from() -> Version {
    Spec::default().version
}

/// Rounds that were played.
#[derive(Default)]
struct Played {
    lines: Vec<Line>,
    wrong: Vec<String>,
}

fn play(seed: Option<u64>, number: usize, plan: &[Planned], from: Version, by: By) -> Played {
    let (lines, wrong) = round::play(&commit(), seed, number, plan, from, by);
    record::keep(&lines);
    Played { lines, wrong }
}

impl Played {
    fn add(&mut self, other: Self) {
        self.lines.extend(other.lines);
        self.wrong.extend(other.wrong);
    }

    /// Nothing was wrong, and the rounds were not empty.
    fn assert_done(&self) {
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
        let struck = self.lines.iter().filter(|line| line.struck.is_some()).count();
        assert!(struck * 2 >= self.lines.len(), "only {struck} struck: {:#?}", self.lines);
    }
}

fn named(text: &str) -> Vec<Planned> {
    text.split_whitespace().map(|word| Planned::named(word).unwrap_or_else(|| panic!("{word} is no fault"))).collect()
}

/// `FAULT_SEED` and `FAULT_ROUNDS` choose the rounds, `FAULT_FIRST` the one to begin with; `FAULTS` names faults instead, those of one
/// round and the next apart by `/`; `FAULT_BY` is `upgrade` or `reconcile` (else one round is by the one and the next by the other), `FAULT_FROM` the version to begin with.
#[test]
#[ignore = "hours on the machines: make faults, make test-long"]
fn faults_drawn_from_a_seed_are_survived() {
    let by = set("FAULT_BY").map(|text| By::named(&text).unwrap_or_else(|| panic!("FAULT_BY={text} is nobody")));
    let by = |round| by.unwrap_or(if round % 2 == 0 { By::Hand } else { By::Reconcile });
    let from = set("FAULT_FROM").map_or_else(from, |text| text.parse().unwrap());
    let mut all = Played::default();
    if let Some(asked) = set("FAULTS") {
        for (number, round) in asked.split('/').enumerate() {
            all.add(play(None, number, &named(round), from, by(number)));
        }
        return all.assert_done();
    }
    let (seed, first) = (number("FAULT_SEED", SEED), number("FAULT_FIRST", 0));
    let end = first + number("FAULT_ROUNDS", ROUNDS);
    let plans = draw::rounds(seed, end);
    // All of them, also after one that failed.
    for (round, plan) in plans.iter().enumerate().take(end).skip(first) {
        all.add(play(Some(seed), round, plan, from, by(round)));
    }
    all.assert_done();
}

/// The choice for `make test`: what strikes the step, what strikes the host's work, what strikes the peer that is left.
#[test]
fn faults_of_a_short_choice_are_survived() {
    let plan =
        named("kill-step@1:lease:drain stop-etcd-bystander@2:host:kubeadm power-cut-target@3:host:kubelet-packages");
    let played = play(None, 0, &plan, from(), By::Hand);
    assert!(played.lines.iter().all(|line| line.struck.is_some()), "{:#?}", played.lines);
    played.assert_done();
}

/// Nobody hears on a machine what its kubelet says of its pods.
const MUTE: &str = "nft add table ip lab_mute
    nft add chain ip lab_mute out '{ type filter hook output priority 0; }'
    nft add counter ip lab_mute dropped
    nft add rule ip lab_mute out ip daddr 127.0.0.1 tcp dport 10250 counter name dropped drop";

/// A kubelet that was just restarted may be about to replace static pods. Whoever goes on with a step that was killed then, and cannot tell,
/// hands new connections over, restarts nothing himself, and is done once the kubelet says that all is as it must be.
#[test]
#[ignore = "an upgrade of its own: 8 minutes"]
fn r14_a_step_killed_while_the_kubelet_may_replace_static_pods_hands_over_again() {
    let _alone = machines();
    let stage = stage(Spec::default());
    stage.whole();
    let upgrade = || stage.quorate(["upgrade", "--to", TO]);
    let journal = |machine: &Machine| {
        let words = ["journalctl", "--unit=quorate-node-step", "--no-pager", "--output=cat"];
        machine.run_checked(words).unwrap()
    };
    let (machine, first) = std::thread::scope(|scope| {
        let first = scope.spawn(upgrade);
        let mut found = None;
        until("a unit to have restarted its kubelet", || {
            found = stage.lab.machines().into_iter().find(|it| boundary::on_host(it) == Some(Step::Recovery));
            found.as_ref().map(drop).ok_or_else(|| "none".to_owned())
        });
        let machine = found.unwrap();
        machine.run_checked(fault::KILL_UNIT).unwrap();
        machine.run_checked(["sh", "-ec", MUTE]).unwrap();
        (machine, first.join().unwrap())
    });
    assert_eq!(first.code, 20, "{first:?}");
    let (begun, apiserver) = (journal(&machine), machine.run_checked(["pgrep", "-x", "kube-apiserver"]).unwrap());
    let second = std::thread::scope(|scope| {
        let second = scope.spawn(upgrade);
        until("the next run to leave the rest to the kubelet", || {
            let now = journal(&machine);
            let since = now.strip_prefix(&begun).ok_or("the journal was begun anew")?;
            let handed_over =
                since.contains("hand-over: done") && since.contains("empty: skipped, the kubelet is at it");
            if handed_over && since.contains("recovery: begins") { Ok(()) } else { Err(since.to_owned()) }
        });
        // The rule is there, and it waits for the kubelet's word.
        machine.run_checked(["nft", "list", "table", "ip", "quorate_handover"]).unwrap();
        let dropped = || machine.run_checked(["nft", "list", "counter", "ip", "lab_mute", "dropped"]).unwrap();
        let before = dropped();
        until("recovery to have asked the kubelet in vain", || {
            let now = journal(&machine);
            assert!(!now[begun.len()..].contains("recovery: done"), "{now}");
            if dropped() == before { Err(before.clone()) } else { Ok(()) }
        });
        machine.run_checked(["nft", "delete", "table", "ip", "lab_mute"]).unwrap();
        second.join().unwrap()
    });
    assert_eq!(second.code, 0, "{second:?}");
    assert_eq!(machine.run_checked(["pgrep", "-x", "kube-apiserver"]).unwrap(), apiserver, "it was not restarted");
    stage.whole();
    Lab::down().unwrap();
}
