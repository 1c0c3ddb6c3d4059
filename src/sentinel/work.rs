//! The loop around the plan: looks, acts, waits. Its memory is one process's; what must outlive it is in the Lease and in the file.

use super::answer::Answer;
use super::host::Host;
use super::jumps::Jumps;
use super::look::{KuredPod, KuredPods, Look};
use super::plan::{Facts, Plan, plan};
use super::reason::{Code, Reason};
use super::shown::Shown;
use super::soak;
use super::whole::{HandOver, Observed, Steady};
use crate::access::Access;
use crate::cli::Global;
use crate::cli::sentinel::Run;
use crate::clock::Clock;
use crate::config::Config;
use crate::exit::ExitStatus;
use crate::job::short_hash;
use crate::lock::{Guard, Leases};
use crate::observe::etcd::ClientFiles;
use crate::place::{self, OwnPod};
use anyhow::Context;
use quorum_safety::lock::{Record, Step as LeaseStep};
use quorum_safety::recovery::Stability;
use quorum_safety::sentinel::{Act, Step};
use quorum_safety::{Fact, UnixSeconds};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

mod act;
mod looks;
mod told;

/// What the step is called in the Lease; behind it is the boot in which the gate was opened.
const OPEN: &str = "open in boot ";
/// What the step is called after the boot.
const RECOVER: &str = "recover";

/// Runs `quorate sentinel run` until it is told to stop.
///
/// # Errors
/// When it is no sentinel's pod, or cannot listen where it is told to.
pub async fn run(global: &Global, args: &Run, clock: Clock) -> anyhow::Result<ExitStatus> {
    let host = Host::new(&args.host, &args.required, &args.gate);
    // Before anything that may fail, and with nobody's help: whoever made it may be dead, and what it saw is over.
    let owes_end = found_at_start(&host);
    let pod = OwnPod::from_environment()?;
    let etcd = ClientFiles::in_folder(args.files.kubernetes_dir.join("pki/etcd"));
    let (mut end, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shown = Shown::default();
    if let Some(address) = args.listen {
        shown.clone().serve(address).await.with_context(|| format!("cannot listen at {address}"))?;
    }
    let memory = Memory { owes_end, ..Memory::default() };
    let mut work = Work { global, pod, host, etcd, clock, shown, link: None, memory };
    loop {
        let pass = async {
            let pause = work.pass().await;
            work.pause(pause).await;
        };
        tokio::select! {
            () = pass => {}
            _ = end.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    // The Lease says what was begun; the next process of this node finds it there.
    match work.host.close() {
        Ok(was_open) => tracing::info!(was_open, "The sentinel ends; the gate is closed"),
        Err(error) => tracing::error!(%error, "The sentinel ends, and the gate could not be closed"),
    }
    Ok(ExitStatus::Ok)
}

struct Work<'a> {
    global: &'a Global,
    pod: OwnPod,
    host: Host,
    etcd: ClientFiles,
    clock: Clock,
    shown: Shown,
    link: Option<Link>,
    memory: Memory,
}

/// The way to the API, once there is one.
#[derive(Clone)]
struct Link {
    access: Access,
    config: Config,
}

impl Link {
    /// The namespace of the sentinels' pods.
    fn pods(&self) -> &str {
        self.config.sentinel.namespace.as_deref().unwrap_or(&self.access.namespace)
    }
}

/// What one process remembers.
#[derive(Default)]
struct Memory {
    guard: Option<Guard>,
    /// The configuration that was read last: its times are kept to while the API is away, too.
    config: Config,
    /// The boot id with which the Lease was asked for.
    boot: Option<String>,
    /// The name under which it was told, by hand, to stop.
    released: Option<String>,
    owes_end: bool,
    /// How kured's pods are found, as its DaemonSet last said.
    kured: Option<KuredPods>,
    /// kured's pod that is being ended, or was.
    ending: Option<String>,
    /// When the gate was opened, on the boot clock.
    opened: Option<Duration>,
    /// What the last look has found to be done before the gate is opened.
    hand_over: Option<HandOver>,
    /// kured has taken its lock for this node since then.
    acted: bool,
    gives_up: Option<Reason>,
    /// When kured was seen to have given its drain up, on the boot clock.
    aborted: Option<Duration>,
    /// Until when it stands back, on the boot clock.
    rests: Option<Duration>,
    stability: Stability,
    steady: Steady,
    /// Both clocks.
    clocks: Jumps,
    /// What this node's boot id was when its annotation was last seen right, and since when, on the boot clock.
    settled: Option<Duration>,
    /// Nothing of this node's was held at the last look.
    nothing_held: bool,
    /// What it may do was asked, and all is granted; inside, the namespace of kured for which it was.
    rights_seen: Option<Option<String>>,
    /// The cluster was seen in this look.
    saw: bool,
    /// What was told last, without the figures in it.
    told: Option<(bool, Vec<Reason>, Vec<Reason>)>,
    pending_since: Option<UnixSeconds>,
    /// What is to be left on the Node, and what was left there last.
    answer: Option<Answer>,
    published: Option<Answer>,
    looks: u64,
    /// What should be known of kured, as the last look has found it.
    advice: Vec<Reason>,
    /// On what the last look has judged.
    judged: Option<Observed>,
}

/// All of one look that acts need.
struct Seen {
    link: Link,
    look: Look,
    own: soak::Seen,
    leases: Leases,
    slots: Vec<String>,
    /// The Lease that is held for this node, by an earlier process or by this one.
    held: Option<(String, Record)>,
    pod: Option<KuredPod>,
    facts: Facts,
}

/// How long to wait before the next look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    Now,
    Watch,
    Interval,
}

impl Work<'_> {
    fn config(&self) -> Config {
        self.memory.config.clone()
    }

    /// Waits; ends early when the Lease is lost while the gate may be open.
    async fn pause(&self, pause: Pause) {
        let config = self.config().sentinel;
        let length = match pause {
            // Signals and the renewal of the Lease are heard all the same.
            Pause::Now => return tokio::task::yield_now().await,
            Pause::Watch => config.watch.get(),
            Pause::Interval => jittered(config.interval.get(), &self.pod.node.0, self.memory.looks),
        };
        match &self.memory.guard {
            Some(guard) => {
                let _ended = tokio::time::timeout(length, guard.stopped()).await;
            }
            None => tokio::time::sleep(length).await,
        }
    }

    /// One look and what follows from it.
    async fn pass(&mut self) -> Pause {
        self.memory.looks = self.memory.looks.wrapping_add(1);
        let jumped = self.memory.clocks.look(self.clock.now(), self.clock.boottime());
        self.memory.saw = false;
        if self.memory.guard.as_ref().is_some_and(|guard| guard.check().is_err()) {
            // It stays in the cluster with its record, and is asked for anew.
            self.memory.guard = None;
        }
        let (required, file) = (self.host.required(), self.host.is_open());
        if self.memory.guard.is_none() && file != Fact::Known(false) {
            return self.close_without_lease(required, file);
        }
        if required == Fact::Known(false) && self.is_quiet() {
            // Nobody looks at kured meanwhile.
            self.memory.advice.clear();
            self.tell(&Plan { act: Act::Wait, open: false, pending: false, reasons: self.host.test() });
            self.publish_while_quiet().await;
            return Pause::Interval;
        }
        let seen = match self.look(required.clone(), file.clone(), jumped).await {
            Ok(seen) => seen,
            Err(why) => return self.blind(required, file, why),
        };
        let other_boot = |asked: &String| seen.own.boot_id.known().is_some_and(|boot| boot != asked);
        if self.memory.guard.is_some() && self.memory.boot.as_ref().is_some_and(other_boot) {
            // The API had not heard of the boot yet: this process is another holder than it took itself for, and adopts.
            self.memory.guard = None;
            self.memory.gives_up = None;
            return Pause::Now;
        }
        if seen.facts.asks_for_lease() {
            return self.ask_for_lease(&seen).await;
        }
        let plan = plan(&seen.facts);
        self.tell(&plan);
        self.publish(&seen.look.client, seen.link.config.times.answer.get()).await;
        match self.act(&seen, &plan).await {
            Ok(pause) => pause,
            Err(why) => {
                tracing::error!(act = ?plan.act, why, "It could not be done; trying again");
                Pause::Watch
            }
        }
    }

    /// Whether there is nothing to be asked of the API: nothing of this node's is held, nothing is owed, and since when the node is up was
    /// found written, twice: right after a boot the API may still have the boot id of before.
    fn is_quiet(&self) -> bool {
        let long_ago = self
            .memory
            .settled
            .is_some_and(|since| self.clock.boottime().saturating_sub(since) >= self.config().sentinel.interval.get());
        self.memory.guard.is_none() && !self.memory.owes_end && self.memory.nothing_held && long_ago
    }

    /// Who does not hold the Lease for sure has no file: that needs nobody.
    fn close_without_lease(&mut self, required: Fact<bool>, file: Fact<bool>) -> Pause {
        let mut reasons: Vec<Reason> =
            file.as_result().err().map(|why| Reason::new(Code::FileUnknown, why)).into_iter().collect();
        self.memory.owes_end = true;
        let open = match self.host.close() {
            Ok(_) => false,
            Err(error) => {
                reasons.push(Reason::new(Code::FileStays, error.to_string()));
                true
            }
        };
        if !open {
            self.shown.gate(false);
            tracing::warn!("The gate is closed: its Lease is not held");
            return Pause::Now;
        }
        self.tell(&Plan { act: Act::Close, open, pending: required != Fact::Known(false), reasons });
        Pause::Watch
    }

    /// Nothing can be seen: what is open is closed. A Lease that is held is kept.
    fn blind(&mut self, required: Fact<bool>, file: Fact<bool>, why: Reason) -> Pause {
        self.memory.judged = None;
        let mut reasons = vec![why];
        let mut open = false;
        if file != Fact::Known(false) {
            self.memory.owes_end = true;
            if self.memory.gives_up.is_none() {
                self.memory.gives_up = reasons.first().cloned();
            }
            if let Err(error) = self.host.close() {
                reasons.push(Reason::new(Code::FileStays, error.to_string()));
                open = true;
            }
        }
        reasons.extend(self.host.test());
        self.tell(&Plan { act: Act::Close, open, pending: required != Fact::Known(false), reasons });
        // A Lease that waits for this node, as after its boot, waits no longer than it has to; whether there is one may not be known yet.
        let may_hold = self.memory.guard.is_some() || !self.memory.nothing_held;
        if open || may_hold { Pause::Watch } else { Pause::Interval }
    }

    async fn link(&mut self) -> Result<Link, Reason> {
        if let Some(link) = &self.link {
            return Ok(link.clone());
        }
        let unknown = |error: String| Reason::new(Code::ApiUnknown, error);
        let access = Access::new(self.global).await.map_err(|error| unknown(error.to_string()))?;
        let config = place::configuration(self.global, &access).await.map_err(|error| unknown(format!("{error:#}")))?;
        self.memory.config = config.clone();
        let link = Link { access, config };
        self.link = Some(link.clone());
        Ok(link)
    }
}

/// A file that lies there when this process begins is nobody's. Whether there was one, or may have been.
fn found_at_start(host: &Host) -> bool {
    let gate = host.gate().display();
    let owes_end = match host.close() {
        Ok(was_open) => {
            if was_open {
                tracing::warn!(%gate, "The gate was open when the sentinel began; it is closed");
            }
            was_open
        }
        Err(error) => {
            tracing::error!(%gate, %error, "The gate may be open and cannot be closed");
            true
        }
    };
    for reason in host.test() {
        tracing::error!(%reason, "What the sentinel will need of its host is not there");
    }
    owes_end
}

/// How far the Lease says that this node is.
fn announced(step: &LeaseStep) -> Step {
    if step.name.starts_with(OPEN) {
        Step::Open
    } else if step.name == RECOVER {
        Step::Recover
    } else {
        Step::Acquired
    }
}

/// The first part of a boot id: enough to tell one boot of a node from another.
fn short(boot_id: &str) -> String {
    boot_id.chars().filter(|letter| letter.is_ascii_alphanumeric()).take(8).collect()
}

/// A tenth more or less, another one each time and on each node: the sentinels of a fleet do not ask all at once.
fn jittered(interval: Duration, node: &str, look: u64) -> Duration {
    let hash = u32::from_str_radix(&short_hash(&format!("{node}/{look}")), 16).unwrap_or(0);
    interval.mul_f64(0.9 + 0.2 * f64::from(hash) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_spread() {
        let of = |look| jittered(Duration::from_secs(300), "k1", look);
        assert!((0..100).map(of).all(|pause| (Duration::from_secs(270)..=Duration::from_secs(330)).contains(&pause)));
        assert_ne!(of(1), of(2));
        assert_ne!(of(1), jittered(Duration::from_secs(300), "k2", 1));
    }

    #[test]
    fn the_lease_says_in_which_boot_a_gate_was_opened() {
        let boot = "2f0c9c1a-77aa-4a01-9b1e-000000000000";
        let step = LeaseStep::touching(format!("{OPEN}{}", short(boot)));
        assert_eq!(step.name, "open in boot 2f0c9c1a");
        assert_eq!(announced(&step), Step::Open);
        assert_eq!(announced(&LeaseStep::touching(RECOVER)), Step::Recover);
        assert_eq!(announced(&LeaseStep::acquired()), Step::Acquired);
    }
}
