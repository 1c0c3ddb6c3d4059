//! One round: a fresh cluster, one upgrade, several faults in it, a monitor over all of it.

use super::super::stage::{LEASES, Said, Stage, machines, stage};
use super::super::story::TO;
use super::boundary::{AtBoundary, Boundary, Holder, holder, on_host};
use super::clean;
use super::draw::Planned;
use super::fault::{Lasts, Scene};
use super::record::Line;
use lab::prober::monitor::Monitor;
use lab::prober::monitor::rule::{self, Hit, Target};
use lab::{Machine, Spec, Version};
use quorate::upgrade::sub_step::SubStep;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An upgrade with all that happens in it must be done in so many runs of the command, and in so long.
const RUNS: usize = 40;
const DEADLINE: Duration = Duration::from_secs(45 * 60);
/// The longest that one run may take before it is interrupted, which leaves the chain.
const ONE_RUN: &str = "1500";
/// What the command ends with then.
const INTERRUPTED: i32 = 124;
/// Whoever types the command again does not do so at once.
const BETWEEN_RUNS: Duration = Duration::from_secs(10);
/// The CronJob's own schedule is every ten minutes; this is for one that could do nothing yet.
const BETWEEN_PASSES: Duration = Duration::from_secs(60);
/// Between two looks for a boundary: some last no longer.
const LOOK: Duration = Duration::from_millis(50);

/// Everything about a round that its threads tell each other.
#[derive(Default)]
struct Going {
    /// Nodes in the order in which they were first worked on, and every change of the target.
    order: Mutex<(Vec<String>, Vec<Target>)>,
    holder: Mutex<Option<Holder>>,
    /// Runs of the command that have ended.
    ended: AtomicUsize,
    /// A fault is in force.
    in_force: AtomicBool,
    /// The upgrade is over, one way or another.
    over: AtomicBool,
}

/// Ends the round's threads, also when something panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A fault that struck, or why it did not.
struct Struck {
    planned: Planned,
    at: Result<Boundary, String>,
    node: Option<String>,
    hits: Vec<Hit>,
    from_ms: u64,
    began: Instant,
    /// Runs that had ended before.
    runs: usize,
    /// It could not be healed.
    stuck: Option<String>,
}

struct Run {
    said: Said,
    ended: Instant,
}

/// Plays a round to its end. What was wrong with it comes beside the lines of its faults: it counts also when none of them struck.
pub(super) fn play(
    commit: &str,
    seed: Option<u64>,
    number: usize,
    plan: &[Planned],
    from: Version,
    by: By,
) -> (Vec<Line>, Vec<String>) {
    let _alone = machines();
    let printed: Vec<String> = plan.iter().map(ToString::to_string).collect();
    println!("seed {seed:?}, round {number}, from {from}, gone on by {}: {}", by.name(), printed.join(" "));
    let stage = stage(Spec {
        version: from,
        upgrades_to: vec![TO.parse().unwrap()],
        workers: 1,
        audit: true,
        ..Spec::default()
    });
    stage.whole();
    let monitor = Monitor::start(&stage.lab, LEASES).unwrap();
    let going = Going::default();
    let (runs, struck) = std::thread::scope(|scope| {
        let over = Over(&going.over);
        scope.spawn(|| watch(&monitor, &going));
        let injector =
            scope.spawn(|| plan.iter().map(|one| strike(&stage, &monitor, &going, *one)).collect::<Vec<_>>());
        let runs = drive(&stage, &going, by);
        drop(over);
        (runs, injector.join().unwrap())
    });
    let done = runs.last().filter(|run| run.said.code == 0).map(|run| run.ended);
    let mut wrong: Vec<String> = struck.iter().filter_map(|one| one.stuck.clone()).collect();
    match done {
        Some(_) => wrong.extend(clean::wrong(&stage)),
        None => wrong.push(format!("not done after {} runs", runs.len())),
    }
    let account = monitor.stop().unwrap();
    // What went wrong may have taken a machine away, and with it what was asked there.
    if wrong.is_empty() {
        stage.keep_what_was_asked();
    }
    let hits: Vec<Hit> = struck.iter().flat_map(|one| one.hits.clone()).collect();
    let targets = locked(&going.order).1.clone();
    for breach in rule::breaches(&account, &hits, &targets) {
        wrong.push(format!("{}–{} s: {}", breach.from_ms / 1000, breach.to_ms / 1000, breach.what));
    }
    wrong.extend(runs.iter().filter_map(no_hand));
    let logs = logs(seed, number);
    keep(&logs, &stage, &runs, &format!("{wrong:#?}\n{hits:#?}\n{targets:#?}\n{account:#?}"));
    if !wrong.is_empty() {
        println!("wrong: {wrong:#?}, see {}", logs.display());
    }
    let mut nexts = struck.iter().skip(1).map(|one| one.from_ms).chain([u64::MAX]);
    let lines = struck
        .iter()
        .map(|one| {
            let next = nexts.next().unwrap_or(u64::MAX);
            let struck = one.at.is_ok();
            Line {
                commit: commit.to_owned(),
                from,
                seed,
                round: number,
                by,
                planned: one.planned,
                struck: one.at.clone().ok(),
                node: one.node.clone(),
                exits: runs.iter().skip(one.runs).filter(|_| struck).map(|run| run.said.code).collect(),
                seconds: done.filter(|_| struck).map(|done| done.saturating_duration_since(one.began).as_secs()),
                fewest_voters: account.fewest_voters_between(one.from_ms, next).filter(|_| struck),
                verdict: match &one.at {
                    Err(why) => format!("not struck: {why}"),
                    Ok(_) if wrong.is_empty() => "done".to_owned(),
                    Ok(_) => wrong.join("; "),
                },
            }
        })
        .collect();
    (lines, wrong)
}

/// A run that did not end well and says neither what holds it nor what to do; none when it does.
fn no_hand(run: &Run) -> Option<String> {
    // Interrupted by us after its time: the chain goes on.
    let told = |text: &str| text.contains("`quorate ") || text.contains("run the same command again") || reason(text);
    let silent = run.said.code != 0 && run.said.code != INTERRUPTED && !told(&run.said.out) && !told(&run.said.err);
    silent.then(|| format!("a run ended with {} and named no way on: {}", run.said.code, run.said.out.trim()))
}

/// Whether a text names a reason by its code, `Q052`.
fn reason(text: &str) -> bool {
    text.as_bytes().windows(4).any(|it| it[0] == b'Q' && it[1..].iter().all(u8::is_ascii_digit))
}

/// Who goes on after a run that did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// Somebody types the command again.
    Hand,
    /// `reconcile` finishes or undoes what is half done; only then somebody types it again.
    Reconcile,
}

impl By {
    /// As it is asked for, and kept.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Hand => "upgrade",
            Self::Reconcile => "reconcile",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Hand, Self::Reconcile].into_iter().find(|it| it.name() == name)
    }
}

/// Lets the CronJob's Job run, as its schedule would, until it has left no Lease held. What it could not do is told by the next run.
fn reconcile(stage: &Stage, going: &Going, end: Instant) {
    let mut next = Instant::now();
    for number in 1.. {
        let held = locked(&going.holder).clone();
        let quiet = stage.try_get(["jobs", "-n", "quorate"]).is_some_and(|jobs| clean::active(&jobs).is_empty());
        if (held.is_none() && quiet) || Instant::now() >= end {
            return;
        }
        if Instant::now() >= next {
            let name = format!("reconcile-{}-{number}", going.ended.load(Ordering::Relaxed));
            let from = "--from=cronjob/quorate-reconcile";
            let words = ["kubectl", "--request-timeout=4s", "-n", "quorate", "create", "job", from, &name];
            let said = Said::from(stage.lab.run(words).unwrap());
            println!("{name}: {}{}", said.out.trim(), said.err.trim());
            next = Instant::now() + BETWEEN_PASSES;
        }
        std::thread::sleep(LOOK * 20);
    }
}

/// Runs the command until it ends with 0. While a fault is in force it is not run again: who waits for power does not try.
fn drive(stage: &Stage, going: &Going, by: By) -> Vec<Run> {
    let end = Instant::now() + DEADLINE;
    let mut runs: Vec<Run> = Vec::new();
    while runs.len() < RUNS && Instant::now() < end {
        let binary = stage.binary.to_str().unwrap();
        let words = ["timeout", "--signal=INT", ONE_RUN, binary, "upgrade", "--to", TO];
        let said = Said::from(stage.lab.run(words).unwrap());
        println!("run {} ended with {}: {}", runs.len() + 1, said.code, said.out.trim());
        let done = said.code == 0;
        runs.push(Run { said, ended: Instant::now() });
        going.ended.fetch_add(1, Ordering::Relaxed);
        if done {
            break;
        }
        let again = Instant::now() + BETWEEN_RUNS;
        while (going.in_force.load(Ordering::Relaxed) || Instant::now() < again) && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
        if by == By::Reconcile {
            reconcile(stage, going, end);
        }
    }
    runs
}

/// Follows the Leases.
fn watch(monitor: &Monitor, going: &Going) {
    let mut read = 0;
    while !going.over.load(Ordering::Relaxed) {
        if let Some((at_ms, leases)) = monitor.glance().filter(|(at_ms, _)| *at_ms != read) {
            read = at_ms;
            let held = holder(&leases);
            if let Some(held) = &held {
                let mut known = locked(&going.order);
                let (order, targets) = &mut *known;
                if !order.contains(&held.target) {
                    order.push(held.target.clone());
                }
                note(targets, held, at_ms);
            }
            *locked(&going.holder) = held;
        }
        std::thread::sleep(LOOK / 2);
    }
}

/// Keeps when each node became the target, and when the work on its host began. One that was given up and is taken again begins anew.
fn note(targets: &mut Vec<Target>, held: &Holder, at_ms: u64) {
    let on_host = held.step.on_host();
    match targets.last_mut() {
        Some(last) if last.node == held.target && (on_host || last.down_ms.is_none()) => {
            last.down_ms = last.down_ms.or(on_host.then_some(at_ms));
        }
        Some(_) | None => {
            targets.push(Target { node: held.target.clone(), from_ms: at_ms, down_ms: on_host.then_some(at_ms) });
        }
    }
}

/// Waits for the boundary, lets the fault strike, and heals it.
fn strike(stage: &Stage, monitor: &Monitor, going: &Going, planned: Planned) -> Struck {
    let mut struck = Struck {
        planned,
        at: Err("the upgrade was over".to_owned()),
        node: None,
        hits: Vec::new(),
        from_ms: monitor.now_ms(),
        began: Instant::now(),
        runs: going.ended.load(Ordering::Relaxed),
        stuck: None,
    };
    let scene = loop {
        let Some((scene, at, stopped)) = come(stage, going, planned) else { return struck };
        going.in_force.store(true, Ordering::Relaxed);
        struck.runs = going.ended.load(Ordering::Relaxed);
        (struck.from_ms, struck.began) = (monitor.now_ms(), Instant::now());
        struck.at = planned.fault.inject(stage, &scene).map(|()| at);
        drop(stopped);
        println!("{:4} s: {planned} strikes at {at}: {:?}", struck.from_ms / 1000, struck.at.as_ref().err());
        if struck.at.is_ok() {
            break scene;
        }
        // What it would hit is not there just now, such as the pod of a step that has ended.
        going.in_force.store(false, Ordering::Relaxed);
        std::thread::sleep(LOOK * 20);
    };
    struck.node = planned.fault.node(&scene);
    wait(planned.fault.lasts(), struck.began, struck.runs, going);
    if let Err(error) = planned.fault.heal(stage, &scene) {
        struck.stuck = Some(format!("{planned} cannot be healed: {error}"));
    }
    let healed_ms = Some(monitor.now_ms());
    let hit = |(one_of, part)| Hit { one_of, part, from_ms: struck.from_ms, healed_ms };
    struck.hits = planned.fault.hits(&scene).into_iter().map(hit).collect();
    going.in_force.store(false, Ordering::Relaxed);
    struck
}

fn wait(lasts: Lasts, began: Instant, runs: usize, going: &Going) {
    let (seconds, with_run) = match lasts {
        Lasts::Moment => return,
        Lasts::Seconds(seconds) => (seconds, false),
        Lasts::Run(seconds) => (seconds, true),
    };
    while began.elapsed() < Duration::from_secs(seconds) {
        if with_run && going.ended.load(Ordering::Relaxed) > runs {
            return;
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits until the work on the n-th node is at the boundary, or past it; or on a later node, when it went by unseen; but never where the
/// fault would mean nothing. None when the upgrade is over before. For a kill the work on the host stands still at its boundary until it
/// was struck.
fn come(stage: &Stage, going: &Going, planned: Planned) -> Option<(Scene, Boundary, Option<AtBoundary>)> {
    loop {
        let order = locked(&going.order).0.clone();
        let held = locked(&going.holder).clone();
        if let Boundary::Chain(step) = planned.at {
            // Before the n-th node has a Lease.
            if held.is_none() && order.len() + 1 >= planned.nth {
                let found = Boundary::runner(step, &stage.lab.machines()).map(|runner| without_target(stage, runner));
                if let Some(scene) = found.filter(|_| locked(&going.holder).is_none()) {
                    return Some((scene, planned.at, None));
                }
            }
        } else if let Some(held) = held.filter(|_| order.len() >= planned.nth) {
            let here = order.get(planned.nth - 1) == Some(&held.target);
            if here || order.len() > planned.nth {
                let stopped = planned.held_on_host().filter(|_| here && held.step == SubStep::NodeStep);
                let stopped = stopped.and_then(|step| AtBoundary::wait(&stage.machine(&held.target), step));
                let at = now_at(stage, &held);
                let fits = planned.fault.fits(at, !control_plane(stage).contains(&held.target));
                if fits && (!here || at.position() >= planned.at.position()) {
                    return Some((scene(stage, &held), at, stopped));
                }
            }
        }
        if going.over.load(Ordering::Relaxed) {
            return None;
        }
        std::thread::sleep(LOOK);
    }
}

fn now_at(stage: &Stage, held: &Holder) -> Boundary {
    let inside = (held.step == SubStep::NodeStep).then(|| on_host(&stage.machine(&held.target))).flatten();
    inside.map_or(Boundary::Lease(held.step), Boundary::Host)
}

fn control_plane(stage: &Stage) -> Vec<String> {
    (1..=stage.lab.spec().control_planes).map(|index| format!("k{index}")).collect()
}

/// While nobody holds a Lease there is a step and the node it runs on, and no target.
fn without_target(stage: &Stage, runner: &Machine) -> Scene {
    Scene {
        target: String::new(),
        runner: runner.name(),
        bystander: String::new(),
        lease: String::new(),
        control_plane: control_plane(stage),
    }
}

fn scene(stage: &Stage, held: &Holder) -> Scene {
    let control_plane = control_plane(stage);
    let others = control_plane.iter().filter(|name| **name != held.target && **name != held.runner);
    Scene {
        target: held.target.clone(),
        runner: held.runner.clone(),
        // Of three, one is neither; when the worker is the target there are two.
        bystander: others.clone().next_back().unwrap().clone(),
        lease: held.lease.clone(),
        control_plane: control_plane.clone(),
    }
}

fn logs(seed: Option<u64>, number: usize) -> PathBuf {
    let root = std::env::var_os("QUORATE_LOGS").map_or_else(std::env::temp_dir, PathBuf::from);
    let seed = seed.map_or_else(|| "named".to_owned(), |seed| seed.to_string());
    root.join(format!("faults-{seed}-{number}"))
}

/// Keeps what a round that went wrong is understood by.
fn keep(folder: &std::path::Path, stage: &Stage, runs: &[Run], account: &str) {
    let put = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    std::fs::create_dir_all(folder).unwrap();
    put("account.txt", account);
    for (number, run) in runs.iter().enumerate() {
        let text = format!("exit code {}\n{}\n{}", run.said.code, run.said.err, run.said.out);
        put(&format!("run-{:02}.txt", number + 1), &text);
    }
    for machine in stage.lab.machines() {
        let name = machine.name();
        for (file, words) in [
            ("unit", ["journalctl", "--unit=quorate-node-step", "--no-pager", "--output=short-precise"]),
            ("kubelet", ["journalctl", "--unit=kubelet", "--no-pager", "--lines=3000"]),
        ] {
            let said = machine.run(words).map(|said| String::from_utf8_lossy(&said.stdout).into_owned());
            put(&format!("{name}-{file}.txt"), &said.unwrap_or_else(|error| format!("{error:#}")));
        }
    }
    for (file, words) in [
        ("objects.yaml", "kubectl get nodes,leases,jobs,pods -n quorate -o yaml"),
        ("record.yaml", "kubectl get configmaps -n quorate -o yaml"),
        (
            "steps.txt",
            "kubectl -n quorate logs -l app.kubernetes.io/name=quorate --prefix --tail=-1 --max-log-requests=50",
        ),
    ] {
        let said = stage.lab.run(words.split(' ')).unwrap();
        put(file, &format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr)));
    }
}

#[test]
fn a_target_that_is_given_up_and_taken_again_is_taken_down_anew() {
    let held = |step| Holder { lease: "l".to_owned(), target: "k1".to_owned(), runner: "k2".to_owned(), step };
    let mut targets = Vec::new();
    for (at_ms, step) in [(1, SubStep::Acquired), (2, SubStep::Drain), (3, SubStep::NodeStep), (4, SubStep::Recovery)] {
        note(&mut targets, &held(step), at_ms);
    }
    assert_eq!(targets, [Target { node: "k1".to_owned(), from_ms: 1, down_ms: Some(3) }]);
    note(&mut targets, &held(SubStep::Acquired), 9);
    note(&mut targets, &held(SubStep::NodeStep), 12);
    assert_eq!(targets[1], Target { node: "k1".to_owned(), from_ms: 9, down_ms: Some(12) });
}

#[test]
fn a_run_that_names_no_way_on_is_found() {
    let run = |code, out: &str| {
        let said = Said { code, out: out.to_owned(), err: String::new() };
        no_hand(&Run { said, ended: Instant::now() }).is_some()
    };
    assert!(run(20, "k1 is half done: it failed"));
    assert!(!run(20, "k1 is half done: it failed. `quorate upgrade --to v1.36.3` goes on from there"));
    assert!(!run(
        20,
        "the last step ended without a report; run the same command again: it goes on from what is there"
    ));
    assert!(!run(12, "Q052: k2 is cordoned"));
    assert!(!run(0, "") && !run(INTERRUPTED, ""));
}
