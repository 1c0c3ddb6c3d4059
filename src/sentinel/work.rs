//! The loop around the plan: looks, acts, waits. Its memory is one process's; what must outlive it is in the Lease and in the file.

use super::host::Host;
use super::look::{self, KuredPod, Look};
use super::plan::{Facts, Plan, plan};
use super::reason::{Code, Reason};
use super::soak::{self, Boot};
use super::whole::{Question, Steady};
use super::{rights, workloads};
use crate::access::Access;
use crate::cli::Global;
use crate::cli::sentinel::Run;
use crate::clock::Clock;
use crate::config::Config;
use crate::exit::ExitStatus;
use crate::job::short_hash;
use crate::lock::lease::FIELD_MANAGER;
use crate::lock::{self, Guard, Leases};
use crate::observe::etcd::ClientFiles;
use crate::place::{self, OwnPod};
use crate::report::ObservationDigest;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use quorum_safety::lock::{Record, Step as LeaseStep};
use quorum_safety::recovery::Stability;
use quorum_safety::sentinel::{Act, Lease, Lock, Step};
use quorum_safety::{Fact, Mine, UnixSeconds};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

mod act;

/// How far the wall clock and the boot clock may go apart between two looks.
const JUMP: Duration = Duration::from_secs(60);
/// What the step is called in the Lease; behind it is the boot in which the gate was opened.
const OPEN: &str = "open in boot ";
/// What the step is called after the boot.
const RECOVER: &str = "recover";

/// Runs `quorate sentinel run` until it is told to stop.
///
/// # Errors
/// When it is no sentinel's pod, or no signal can be waited for.
pub async fn run(global: &Global, args: &Run, clock: Clock) -> anyhow::Result<ExitStatus> {
    let pod = OwnPod::from_environment()?;
    let host = Host::new(&args.host, &args.required, &args.gate);
    let etcd = ClientFiles::in_folder(args.files.kubernetes_dir.join("pki/etcd"));
    let (mut end, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut work = Work { global, pod, host, etcd, clock, link: None, memory: Memory::default() };
    // Before anything else, and with nobody's help: whoever made it may be dead, and what it saw is over.
    work.found_at_start();
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
    link: Option<Link>,
    memory: Memory,
}

/// The way to the API, once there is one.
#[derive(Clone)]
struct Link {
    access: Access,
    config: Config,
}

/// What one process remembers.
#[derive(Default)]
struct Memory {
    guard: Option<Guard>,
    owes_end: bool,
    /// kured's pod that is being ended, or was.
    ending: Option<String>,
    /// When the gate was opened, on the boot clock.
    opened: Option<Duration>,
    /// kured has taken its lock for this node since then.
    acted: bool,
    gives_up: Option<Reason>,
    /// Until when it stands back, on the boot clock.
    rests: Option<Duration>,
    stability: Stability,
    steady: Steady,
    /// Both clocks, one look ago.
    clocks: Option<(Timestamp, Duration)>,
    /// What this node's boot id was when its annotation was last seen right, and since when, on the boot clock.
    settled: Option<Duration>,
    /// Nothing of this node's was held at the last look.
    nothing_held: bool,
    /// What it may do was asked, and all is granted.
    rights_seen: bool,
    /// What was told last.
    told: Option<(bool, Vec<Reason>)>,
    looks: u64,
    digest: Option<ObservationDigest>,
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
    /// A file that lies there when this process begins is nobody's.
    fn found_at_start(&mut self) {
        match self.host.close() {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!(gate = %self.host.gate().display(), "The gate was open when the sentinel began; it is closed");
                self.memory.owes_end = true;
            }
            Err(error) => {
                tracing::error!(gate = %self.host.gate().display(), %error, "The gate may be open and cannot be closed");
                self.memory.owes_end = true;
            }
        }
        for reason in self.host.test() {
            tracing::error!(%reason, "What the sentinel will need of its host is not there");
        }
    }

    fn config(&self) -> Config {
        self.link.as_ref().map_or_else(Config::default, |link| link.config.clone())
    }

    /// Waits; ends early when the Lease is lost while the gate may be open.
    async fn pause(&self, pause: Pause) {
        let config = self.config().sentinel;
        let length = match pause {
            Pause::Now => return,
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
        let jumped = self.jumped();
        if self.memory.guard.as_ref().is_some_and(|guard| guard.check().is_err()) {
            // It stays in the cluster with its record, and is asked for anew.
            self.memory.guard = None;
        }
        let (required, file) = (self.host.required(), self.host.is_open());
        if self.memory.guard.is_none() && file != Fact::Known(false) {
            return self.close_without_lease(required, file);
        }
        if required == Fact::Known(false) && self.is_quiet() {
            self.tell(&Plan { act: Act::Wait, open: false, pending: false, reasons: self.host.test() });
            return Pause::Interval;
        }
        let seen = match self.look(required.clone(), file.clone(), jumped).await {
            Ok(seen) => seen,
            Err(why) => return self.blind(required, file, why),
        };
        if seen.facts.asks_for_lease() {
            return self.ask_for_lease(&seen).await;
        }
        let plan = plan(&seen.facts);
        self.tell(&plan);
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

    /// Whether the wall clock has jumped since the last look: windows and soaking are told by it.
    fn jumped(&mut self) -> Option<Reason> {
        let (wall, boot) = (self.clock.now(), self.clock.boottime());
        let before = self.memory.clocks.replace((wall, boot));
        let (wall_before, boot_before) = before?;
        let (by_wall, by_boot) =
            (wall.duration_since(wall_before).as_secs_f64(), boot.saturating_sub(boot_before).as_secs_f64());
        let apart = by_wall - by_boot;
        (apart.abs() > JUMP.as_secs_f64())
            .then(|| Reason::new(Code::ClockJumped, format!("by {apart:.0} s since the last look")))
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
            tracing::warn!("The gate is closed: its Lease is not held");
            return Pause::Now;
        }
        self.tell(&Plan { act: Act::Close, open, pending: required != Fact::Known(false), reasons });
        Pause::Watch
    }

    /// Nothing can be seen: what is open is closed. A Lease that is held is kept.
    fn blind(&mut self, required: Fact<bool>, file: Fact<bool>, why: Reason) -> Pause {
        self.memory.digest = None;
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
        if open || self.memory.guard.is_some() { Pause::Watch } else { Pause::Interval }
    }

    async fn link(&mut self) -> Result<Link, Reason> {
        if let Some(link) = &self.link {
            return Ok(link.clone());
        }
        let unknown = |error: String| Reason::new(Code::ApiUnknown, error);
        let access = Access::new(self.global).await.map_err(|error| unknown(error.to_string()))?;
        let config = place::configuration(self.global, &access).await.map_err(|error| unknown(format!("{error:#}")))?;
        let link = Link { access, config };
        self.link = Some(link.clone());
        Ok(link)
    }

    /// Looks at everything that is needed for the next act, the cheap first. Given up when the Lease is lost meanwhile.
    async fn look(
        &mut self,
        required: Fact<bool>,
        file: Fact<bool>,
        jumped: Option<Reason>,
    ) -> Result<Box<Seen>, Reason> {
        let guard = self.memory.guard.take();
        let looked = match &guard {
            Some(guard) => {
                tokio::select! {
                    looked = self.look_with(Some(guard), required, file, jumped) => looked,
                    late = guard.stopped() => {
                        Err(quorum_safety::Reason::new(quorum_safety::Code::LeaseNotMine, late.to_string()).into())
                    }
                }
            }
            None => self.look_with(None, required, file, jumped).await,
        };
        self.memory.guard = guard;
        looked
    }

    async fn look_with(
        &mut self,
        guard: Option<&Guard>,
        required: Fact<bool>,
        file: Fact<bool>,
        jumped: Option<Reason>,
    ) -> Result<Box<Seen>, Reason> {
        let unknown = |why: String| Reason::new(Code::ApiUnknown, why);
        let link = self.link().await?;
        let (node, limit) = (self.pod.node.clone(), link.config.times.answer.get());
        let look = match look::look(&link.access, &link.config).await {
            Ok(look) => look,
            Err(why) => {
                // The addresses of the apiservers may have changed.
                self.link = None;
                return Err(unknown(why));
            }
        };
        let own = look.nodes.iter().find(|seen| seen.name == node).cloned();
        let own = own.ok_or_else(|| Reason::new(Code::NodeUnknown, format!("the API lists no node {node}")))?;
        self.write_boot(&look.client, &own, limit).await?;
        let slots = look::slots(own.control_plane, &link.config);
        let leases = Leases::new(link.access.clone(), Vec::new(), lock::timings(&link.config), self.clock);
        let (lease, held) = match guard {
            Some(guard) => (Lease::Held(announced(&guard.step_so_far().await)), None),
            None => match look::held_for(&leases, &slots, &node).await {
                Ok(Some(held)) => (Lease::Ours, Some(held)),
                Ok(None) => (Lease::NotOurs, None),
                Err(why) => return Err(why),
            },
        };
        self.memory.nothing_held = lease == Lease::NotOurs;
        let (kured, pod) = self.kureds_lock(&look, lease, limit).await;
        let open = matches!(lease, Lease::Held(Step::Open));
        let under_way = open && matches!(kured, Fact::Known(Lock::Here));
        let mut facts = Facts {
            required,
            file,
            lease,
            kured,
            reasons: jumped.into_iter().collect(),
            whole: false,
            waited: self.waited(&look),
            owes_end: self.memory.owes_end,
            gives_up: self.memory.gives_up.clone(),
            rests: self.rests(),
            not_recovered: Vec::new(),
        };
        self.cheap(&look, &link, under_way, &mut facts);
        if !self.memory.rights_seen {
            let lacking = rights::lacking(&look, &link.access.namespace, (own.control_plane, &node.0), limit).await;
            self.memory.rights_seen = lacking.is_empty();
            facts.reasons.extend(lacking);
        }
        self.dear(&look, &link, &own, guard, &mut facts).await;
        Ok(Box::new(Seen { link, look, own, leases, slots, held, pod, facts }))
    }

    /// Says on the Node since when it is up, if that is not there.
    async fn write_boot(&mut self, client: &Client, own: &soak::Seen, limit: Duration) -> Result<(), Reason> {
        let now = self.clock.unix();
        let up = i64::try_from(self.clock.boottime().as_secs()).unwrap_or(i64::MAX);
        let Some(boot) = own.unwritten(now, UnixSeconds(now.0.saturating_sub(up))) else {
            if own.boot_id.known().is_some() {
                self.memory.settled.get_or_insert(self.clock.boottime());
            }
            return Ok(());
        };
        self.memory.settled = None;
        annotate(client, &own.name.0, &boot, limit).await.map_err(|why| Reason::new(Code::Undone, why))
    }

    async fn kureds_lock(&mut self, look: &Look, lease: Lease, limit: Duration) -> (Fact<Lock>, Option<KuredPod>) {
        let node = &self.pod.node;
        let kured = match &look.kured {
            Err(why) => return (Fact::Unknown(why.clone()), None),
            Ok(None) => return (Fact::Known(Lock::Free), None),
            Ok(Some(kured)) => kured,
        };
        let named = kured.names(node);
        if !named && !self.memory.owes_end && lease != Lease::Ours {
            if self.memory.ending.take().is_some() {
                tracing::info!("kured has given its lock back");
            }
            return (kured.lock(node, None, None), None);
        }
        match kured.pod(&look.client, node, limit).await {
            Err(why) => (Fact::Unknown(why), None),
            Ok(pod) => (kured.lock(node, pod.as_ref(), self.memory.ending.as_deref()), pod),
        }
    }

    fn waited(&self, look: &Look) -> bool {
        let Some(opened) = self.memory.opened else { return false };
        let period =
            look.kured.as_ref().ok().and_then(Option::as_ref).and_then(|kured| kured.settings.period.clone().ok());
        // Without a known period it is over when it may be.
        let patience =
            period.map_or(Duration::ZERO, |period| period.saturating_add(self.config().sentinel.margin.get()));
        self.clock.boottime().saturating_sub(opened) >= patience
    }

    fn rests(&self) -> Option<String> {
        let left = self.memory.rests?.checked_sub(self.clock.boottime()).filter(|left| !left.is_zero())?;
        Some(format!("for another {} min", left.as_secs().div_ceil(60)))
    }

    /// What nodes and DaemonSets say.
    fn cheap(&mut self, look: &Look, link: &Link, under_way: bool, facts: &mut Facts) {
        let config = &link.config.sentinel;
        let node = &self.pod.node;
        facts.reasons.extend(self.host.test());
        facts.reasons.extend(soak::reasons(&look.nodes, node, under_way, config.soak.get(), self.clock.unix()));
        match &look.sets {
            Ok(sets) => facts.reasons.extend(workloads::reasons(sets, &config.daemon_sets)),
            Err(why) => facts.reasons.push(Reason::new(Code::WorkloadUnknown, why.clone())),
        }
        let control_plane = look.nodes.iter().any(|seen| seen.name == *node && seen.control_plane);
        facts.reasons.extend(look.about_kured(self.host.gate(), control_plane));
        if !under_way {
            facts.reasons.extend(look.about_window(self.clock.now()));
        }
        // Between two looks with an open gate it took its lock and gave it back: nothing was rebooted.
        match &facts.kured {
            Fact::Known(Lock::Here) if self.memory.opened.is_some() => self.memory.acted = true,
            Fact::Known(Lock::Free) if self.memory.acted && self.memory.gives_up.is_none() => {
                let why = "it took its lock for this node, and has given it back";
                self.memory.gives_up = Some(Reason::new(Code::DrainAborted, why));
            }
            Fact::Known(_) | Fact::Unknown(_) => {}
        }
        facts.gives_up = self.memory.gives_up.clone();
    }

    /// What etcd and the apiservers say: asked only where nothing cheaper says no, or what was begun needs it.
    async fn dear(&mut self, look: &Look, link: &Link, own: &soak::Seen, guard: Option<&Guard>, facts: &mut Facts) {
        let node = self.pod.node.clone();
        let question = |mine: Mine, open: bool| Question {
            access: &link.access,
            config: &link.config,
            clock: self.clock,
            node: &node,
            mine,
            open,
        };
        let sources = place::in_pod_with(&link.access, self.etcd.clone());
        let closed = facts.file == Fact::Known(false);
        let back = matches!(facts.lease, Lease::Held(Step::Recover))
            || (closed && !facts.owes_end && facts.gives_up.is_some() && facts.lease == Lease::Held(Step::Open));
        if let Some(guard) = guard.filter(|_| back) {
            facts.not_recovered = if own.control_plane {
                let mine = Mine::Adopted(guard.identity().await);
                question(mine, true).control_plane_back(&sources, &mut self.memory.stability).await
            } else {
                let required = i64::try_from(link.config.times.stable.get().as_secs()).unwrap_or(i64::MAX);
                self.memory.steady.look(Vec::new(), required, self.clock.unix())
            };
            facts.not_recovered.extend(self.own_faults(look, link, own));
        }
        let wants = facts.required == Fact::Known(true) && facts.reasons.is_empty() && facts.rests.is_none();
        let asks = match facts.lease {
            Lease::Held(Step::Acquired | Step::Open) => wants && facts.gives_up.is_none(),
            Lease::NotOurs => wants && !facts.owes_end && facts.kured == Fact::Known(Lock::Free),
            Lease::Held(Step::Recover) | Lease::Ours | Lease::Unknown => false,
        };
        if !asks {
            return;
        }
        let mine = guard.map_or(Mine::Nothing, Guard::mine);
        let question = question(mine, matches!(facts.lease, Lease::Held(Step::Open)));
        let judged = if own.control_plane {
            question.control_plane(&sources).await
        } else {
            question.worker(&look.client, &look.nodes).await
        };
        facts.reasons.extend(judged.reasons);
        facts.whole = true;
        self.memory.digest = judged.digest;
    }

    /// What of this node itself keeps it from being back: its own condition, and the workloads that must be whole (incident R30).
    fn own_faults(&self, look: &Look, link: &Link, own: &soak::Seen) -> Vec<Reason> {
        let mut faults = Vec::new();
        match &own.ready {
            Fact::Known((true, _)) => {}
            Fact::Known((false, _)) => faults.push(Reason::new(Code::Recovering, format!("{} is not Ready", own.name))),
            Fact::Unknown(why) => faults.push(Reason::new(Code::Recovering, format!("{}: {why}", own.name))),
        }
        match &look.sets {
            Ok(sets) => faults.extend(
                workloads::reasons(sets, &link.config.sentinel.daemon_sets)
                    .into_iter()
                    .map(|reason| Reason::new(Code::Recovering, reason.detail)),
            ),
            Err(why) => faults.push(Reason::new(Code::Recovering, why.clone())),
        }
        faults
    }

    /// Tells the answer, when it is another one.
    fn tell(&mut self, plan: &Plan) {
        let told = (plan.open, plan.reasons.clone());
        if self.memory.told.as_ref() == Some(&told) {
            return;
        }
        let why: Vec<String> = plan.reasons.iter().map(ToString::to_string).collect();
        let why = why.join("; ");
        match (plan.open, plan.pending, plan.reasons.is_empty()) {
            (true, ..) => tracing::warn!(why, "The gate is open"),
            (false, false, true) => tracing::info!("No reboot is wanted"),
            (false, true, true) => tracing::info!("A reboot is wanted, and nothing stands in its way"),
            (false, _, false) => tracing::warn!(why, "The gate is closed"),
        }
        self.memory.told = Some(told);
    }
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

async fn annotate(client: &Client, node: &str, boot: &Boot, limit: Duration) -> Result<(), String> {
    let text = serde_json::to_string(boot).map_err(|error| error.to_string())?;
    let patch = serde_json::json!({"metadata": {"annotations": {soak::BOOT: text}}});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let nodes: Api<Node> = Api::all(client.clone());
    let patch = Patch::Merge(&patch);
    let written = nodes.patch_metadata(node, &params, &patch);
    crate::observe::cluster::within(limit, written).await.map(drop).map_err(|why| format!("node {node}: {why}"))
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
