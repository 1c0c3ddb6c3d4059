//! What runs in the unit on the host: each sub-step looks at the host first, does what is left to do, and can be stopped anywhere.

use super::command::{Deadline, Echo, ToolError, run};
use super::handover::{self, Absent, HandOver};
use super::host::{Host, HostError, versions};
use super::manifests::Manifests;
use super::mark::Mark;
use super::nft::Target;
use super::plan::{Need, State, Step, need, objections};
use super::probe::{Probe, plain};
use super::report::{HandOverReport, Outcome, Report, StepReport};
use super::unready::{etcd_ready_url, unready};
use super::{apiserver, etcd, known_ready, kubeadm, mirror};
use crate::cli::node::{PutBack, Upgrade};
use crate::clock::Clock;
use crate::output;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How long kubeadm may take in one attempt; it gives up by itself after five minutes a component.
const KUBEADM: Duration = Duration::from_secs(22 * 60);
/// Between two attempts of kubeadm.
const BETWEEN: Duration = Duration::from_secs(30);
/// How long the node's own parts may take to answer again.
const RECOVERY: Duration = Duration::from_secs(5 * 60);
/// How long they must have answered to count.
const STABLE: Duration = Duration::from_secs(2);
/// How long what a kubelet says of its static pods may take to be as it is.
const SOON: Duration = Duration::from_secs(30);

/// Why a sub-step did not end well.
#[derive(Debug)]
struct Failure {
    outcome: Outcome,
    message: String,
    last: Vec<String>,
}

impl Failure {
    fn tool(message: impl Into<String>) -> Self {
        Self { outcome: Outcome::Midway, message: message.into(), last: Vec::new() }
    }

    fn refused(objections: &[String]) -> Self {
        Self { outcome: Outcome::Refused, message: objections.join("; "), last: Vec::new() }
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        Self { outcome: Outcome::Unknown, message: error.to_string(), last: error.last_lines() }
    }
}

impl From<super::packages::PackageError> for Failure {
    fn from(error: super::packages::PackageError) -> Self {
        HostError::from(error).into()
    }
}

impl From<etcd::RenewError> for Failure {
    fn from(error: etcd::RenewError) -> Self {
        match error {
            etcd::RenewError::Tool(error) => error.into(),
            etcd::RenewError::Configuration(_) => Self::tool(error.to_string()),
        }
    }
}

impl From<ToolError> for Failure {
    fn from(error: ToolError) -> Self {
        HostError::from(error).into()
    }
}

/// Brings this host to the target; never an error, since what happened is in the report.
pub(super) async fn upgrade(order: &Upgrade, clock: Clock) -> Report {
    let mark = Mark::new(Path::new("/"), order.to);
    if let Some(refusal) = too_late(order, clock.now(), &mark) {
        return refusal;
    }
    let mut report = Report::new(order.to);
    let host = match Host::here() {
        Ok(host) => host,
        Err(error) => {
            report.outcome = Outcome::Refused;
            report.failed_step = Some(Step::Checks);
            report.message = Some(error.to_string());
            report.untouched = !mark.names_target();
            return report;
        }
    };
    let mut work = Work::new(order, clock, host, mark);
    work.all().await;
    if let Some(hand_over) = work.hand_over.take() {
        hand_over.stop().await;
    }
    work.report
}

/// The refusal of an order whose time is over, before anything is begun; none while it is not.
pub(super) fn too_late(order: &Upgrade, now: jiff::Timestamp, mark: &Mark) -> Option<Report> {
    let until = order.start_before.filter(|until| now.as_second() >= *until)?;
    let over = now.as_second().saturating_sub(until);
    let why = format!(
        "this order was to be begun {over} s ago at the latest, by this node's clock ({now}): whoever gave it may hold the lock no more"
    );
    Some(Report { late: true, ..not_begun(order, mark, Outcome::Refused, &why) })
}

/// The report of a unit that was not started, while none runs.
pub(super) fn not_begun(order: &Upgrade, mark: &Mark, outcome: Outcome, why: &str) -> Report {
    let mut report = Report::new(order.to);
    report.outcome = outcome;
    report.message = Some(format!("{why}; nothing was started"));
    report.untouched = !mark.names_target();
    report
}

/// After the unit's end: what it, or the kubeadm in it, was about to swap when it was killed comes back.
pub(super) fn put_back_after(order: &PutBack) -> anyhow::Result<()> {
    if Mark::new(Path::new("/"), order.to).unfinished() {
        let host = Host::here()?;
        for (component, copy) in host.torn()? {
            host.put_back(component, &copy)?;
        }
    }
    Ok(())
}

struct Work<'a> {
    order: &'a Upgrade,
    clock: Clock,
    host: Host,
    deadline: Deadline,
    hand_over: Option<HandOver>,
    /// Whether kubeadm would write etcd just as it is; asked before the hand-over.
    etcd_stays: Option<bool>,
    /// Whether this run has restarted the apiserver.
    restarted: bool,
    /// What [`State::unsettled`] was before the hand-over.
    unsettled: bool,
    mark: Mark,
    /// Whether an earlier run to this target has begun to change the host and none has ended well since.
    resumed: bool,
    /// Whether an earlier run to this target has changed the host at all: even of one that ended well nobody may have heard.
    changed_before: bool,
    /// Whether this one has; scratch and package lists do not count.
    changed: bool,
    report: Report,
}

impl<'a> Work<'a> {
    fn new(order: &'a Upgrade, clock: Clock, host: Host, mark: Mark) -> Self {
        Self {
            order,
            clock,
            host,
            deadline: Deadline::after(order.timeout),
            hand_over: None,
            etcd_stays: None,
            restarted: false,
            unsettled: false,
            resumed: mark.unfinished(),
            changed_before: mark.names_target(),
            mark,
            changed: false,
            report: Report::new(order.to),
        }
    }

    /// Must come before the first change of the host, and before any other: from here on the node is not what it was.
    fn touch(&mut self) -> Result<(), Failure> {
        if !self.changed {
            let wrong = |source| HostError::File { path: self.mark.path().to_owned(), source };
            self.mark.begin().map_err(wrong)?;
            self.changed = true;
        }
        Ok(())
    }

    const fn untouched(&self) -> bool {
        !self.changed && !self.changed_before
    }

    async fn all(&mut self) {
        let before = match self.look().await {
            Ok(state) => state,
            Err(failure) => return self.failed(Step::Checks, failure),
        };
        self.report.before = versions(&before);
        self.report.after = versions(&before);
        let mut failed = None;
        for step in Step::ALL {
            if let Err(failure) = self.one(step).await {
                failed = Some((step, failure));
                break;
            }
        }
        match self.look().await {
            Ok(after) => {
                self.report.after = versions(&after);
                self.report.manifests_changed = changed(&before.manifests, &after.manifests);
            }
            Err(failure) => failed = failed.or(Some((Step::Recovery, failure))),
        }
        match failed {
            Some((step, failure)) => self.failed(step, failure),
            None => {
                self.report.outcome = Outcome::Done;
                self.report.done = true;
                self.report.untouched = self.untouched();
                if self.changed || self.resumed {
                    // It stays `begun`: a later refusal then says less than it could.
                    if let Err(error) = self.mark.done() {
                        output::progress(&format!("{}: {error}", self.mark.path().display()));
                    }
                    if let Err(error) = self.host.forget_manifests() {
                        output::progress(&error.to_string());
                    }
                }
            }
        }
    }

    fn failed(&mut self, step: Step, failure: Failure) {
        // Whatever it was: with something changed the node is midway, without it is untouched.
        self.report.outcome = match (self.changed, failure.outcome) {
            (true, _) => Outcome::Midway,
            (false, Outcome::Refused) => Outcome::Refused,
            (false, _) => Outcome::Unknown,
        };
        self.report.untouched = self.untouched();
        output::progress(&format!("{step}: {}", failure.message));
        self.report.failed_step = Some(step);
        self.report.message = Some(failure.message);
        self.report.last_lines = failure.last;
    }

    async fn look(&self) -> Result<State, Failure> {
        let tag = self.order.etcd_image_tag.as_deref();
        let mut state = self.host.state(self.order.to, tag, self.clock.now(), self.deadline).await?;
        state.handed_over = self.hand_over.is_some();
        state.unsettled = self.unsettled;
        state.etcd_stays = self.etcd_stays == Some(true);
        if !self.resumed {
            // What somebody else's kubeadm left is not ours to mend.
            state.torn.clear();
        }
        Ok(state)
    }

    async fn one(&mut self, step: Step) -> Result<(), Failure> {
        let start = Instant::now();
        let mut state = self.look().await?;
        if step == Step::HandOver && self.resumed && state.manifests.control_plane() {
            self.unsettled = self.stand(&state.manifests).await.is_err();
            state.unsettled = self.unsettled;
        }
        if step == Step::HandOver && state.manifests.pods.contains_key("etcd") && !state.kubeadm_done(self.order.to) {
            self.ask_for_etcd(&state).await?;
        }
        let skipped = match need(step, &state, self.order) {
            Need::Skip(why) => {
                if step == Step::HandOver {
                    why.clone_into(&mut self.report.hand_over.because);
                }
                Some(why.to_owned())
            }
            Need::Do => {
                if self.deadline.passed() {
                    return Err(Failure::tool(format!("no time is left of {} s", self.order.timeout.as_secs())));
                }
                output::progress(&format!("{step}: begins"));
                self.carry_out(step, &state).await?;
                None
            }
        };
        let seconds = start.elapsed().as_secs();
        match &skipped {
            Some(why) => output::progress(&format!("{step}: skipped, {why}")),
            None => output::progress(&format!("{step}: done in {seconds} s")),
        }
        self.report.steps.push(StepReport { name: step, seconds, skipped });
        Ok(())
    }

    /// What kubeadm would do with etcd. Not to know it is no failure: kubeadm then does what it always does.
    async fn ask_for_etcd(&mut self, state: &State) -> Result<(), Failure> {
        let own = own_apiserver(&state.manifests)?;
        let said = etcd::stays(self.order, &self.host, &state.manifests, own, self.deadline).await;
        self.etcd_stays = said.as_ref().ok().copied();
        output::progress(&match said {
            Ok(true) => "etcd: kubeadm would write it just as it is, so it is not restarted".to_owned(),
            Ok(false) => "etcd: left to kubeadm, which would write another manifest and restarts it".to_owned(),
            Err(why) => format!("etcd: left to kubeadm, which restarts it: {why}"),
        });
        Ok(())
    }

    async fn carry_out(&mut self, step: Step, state: &State) -> Result<(), Failure> {
        let (to, deadline, manager) = (self.order.to, self.deadline, self.host.manager);
        match step {
            Step::PutBack => self.put_back()?,
            Step::PruneScratch => self.prune_scratch()?,
            Step::Checks => {
                let mut found = objections(state, self.order);
                found.extend(self.host.short_of_disk(&state.manifests, state.kubeadm_done(to))?);
                if found.is_empty() && !self.resumed && state.manifests.control_plane() {
                    let own = own_apiserver(&state.manifests)?;
                    found = unready(own, &state.manifests, &self.order.peers, &self.probe(), deadline).await;
                    // What is asked at the end must be to be had at the beginning.
                    found.extend(self.stand_soon(&state.manifests).await.err());
                }
                if !found.is_empty() {
                    return Err(Failure::refused(&found));
                }
            }
            Step::Repository => {
                // With a copy first: a mirror that is down must not leave a node that is half done.
                if !manager.sources(&self.host.root)?.is_empty() {
                    let mut lacking = manager.lacking_there(&self.host.root, to, deadline).await?;
                    lacking.retain(|name| *name != "kubectl" || state.has_kubectl());
                    if !lacking.is_empty() {
                        let lacking = lacking.join(", ");
                        return Err(Failure::refused(&[format!("not to be had at {to}: {lacking}")]));
                    }
                }
                self.touch()?;
                manager.point_to(&self.host.root, to, deadline).await?;
            }
            Step::KubeadmPackage => {
                self.touch()?;
                manager.install(&self.host.root, &["kubeadm"], to, deadline).await?;
            }
            Step::HandOver => self.hand_over(state).await?,
            Step::Empty => {
                self.touch()?;
                self.restarted = true;
                let address = own_apiserver(&state.manifests)?;
                match apiserver::restart(address, &self.probe(), deadline).await {
                    // What is left then is the kubelet, whose restart may be what this apiserver waits for.
                    Err(why) if state.kubeadm_done(to) => output::progress(&format!("kube-apiserver: {why}")),
                    ended => ended.map_err(Failure::tool)?,
                }
            }
            Step::Kubeadm => self.kubeadm(state).await?,
            Step::EtcdCertificates => {
                self.touch()?;
                let own = own_apiserver(&state.manifests)?;
                etcd::renew(&state.etcd_outlived, self.order, &state.manifests, own, deadline).await?;
            }
            Step::KubeletPackages => {
                self.touch()?;
                manager.install(&self.host.root, &state.kubelet_packages_behind(to), to, deadline).await?;
            }
            Step::Hold => {
                self.touch()?;
                manager.hold(&state.not_held(), deadline).await?;
            }
            Step::RestartKubelet => self.restart_kubelet().await?,
            Step::Recovery => self.recovery(state).await?,
            Step::HandBack => {
                if let Some(hand_over) = self.hand_over.take() {
                    hand_over.stop().await;
                }
            }
        }
        Ok(())
    }

    async fn restart_kubelet(&mut self) -> Result<(), Failure> {
        self.touch()?;
        for arguments in [["daemon-reload"].as_slice(), &["restart", "kubelet.service"]] {
            run("systemctl", arguments, self.deadline.within(Duration::from_secs(120)), Echo::Lines).await?;
        }
        Ok(())
    }

    /// Puts manifests back that kubeadm has moved away, or spoiled.
    fn put_back(&mut self) -> Result<(), Failure> {
        for (component, copy) in self.host.torn()? {
            self.touch()?;
            self.host.put_back(component, &copy)?;
        }
        Ok(())
    }

    fn prune_scratch(&self) -> Result<(), Failure> {
        for path in self.host.old_scratch(self.clock.now())? {
            output::progress(&format!("removing {}", path.display()));
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(|source| HostError::File { path, source })?;
        }
        Ok(())
    }

    fn probe(&self) -> Probe {
        Probe::new(&self.host.root)
    }

    async fn hand_over(&mut self, state: &State) -> Result<(), Failure> {
        let target = Target { local: own_apiserver(&state.manifests)?, service: self.order.service_address };
        let peers = self.order.peers.clone();
        let started = match handover::possible(&target, &peers, &self.probe(), self.deadline).await {
            Ok(ready) => {
                self.touch()?;
                HandOver::start(target, peers, ready, self.probe(), self.deadline).await
            }
            Err(absent) => Err(absent),
        };
        match started {
            Ok(hand_over) => {
                self.report.hand_over = HandOverReport { on: true, because: hand_over.relies_on.to_owned() };
                self.hand_over = Some(hand_over);
            }
            // Without nft clients see what they saw before quorate; without a ready peer they would see nothing at all.
            Err(Absent::Impossible(why)) => self.report.hand_over.because = why,
            Err(error @ Absent::NoPeer(_)) => {
                self.report.hand_over.because = "no peer is ready".to_owned();
                // Of a node that serves nobody nothing is taken away; the kubelet's restart may be what mends it. Nor is it where only the
                // kubelet is at work, whoever waits.
                let serves = self.probe().ready(own_apiserver(&state.manifests)?).await.is_ok();
                let takes_away = serves && !state.is_left_to_the_kubelet(self.order.to);
                if takes_away || !state.kubeadm_done(self.order.to) {
                    return Err(Failure::tool(error.to_string()));
                }
            }
        }
        Ok(())
    }

    async fn kubeadm(&mut self, state: &State) -> Result<(), Failure> {
        let control_plane = state.manifests.control_plane();
        let mut attempt = 1;
        loop {
            if control_plane {
                // The kubelet tells kubeadm about static pods through the node's own apiserver. One that this upgrade has not touched is
                // as it was.
                let stable = if self.restarted || self.resumed || attempt > 1 { STABLE } else { Duration::ZERO };
                let address = own_apiserver(&state.manifests)?;
                apiserver::wait_ready(address, &self.probe(), stable, Deadline::after(self.deadline.within(RECOVERY)))
                    .await
                    .map_err(|why| Failure::tool(format!("before kubeadm: {why}")))?;
                if !stable.is_zero() {
                    known_ready::wait(&state.manifests, self.deadline).await;
                }
                if self.hand_over.is_some() && !self.restarted {
                    // kubeadm may come to the apiserver a second after it was started.
                    apiserver::let_clients_go(address, self.deadline).await;
                }
            }
            let now = self.look().await?;
            if attempt > 1 && now.manifests.pods.contains_key("etcd") {
                self.ask_for_etcd(&now).await?;
            }
            self.touch()?;
            self.host.keep_manifests(attempt == 1 && !self.resumed)?;
            let etcd = kubeadm::Etcd { stays: self.etcd_stays, on_target: now.etcd_on_target() };
            let arguments = kubeadm::arguments(self.order, attempt, &etcd);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let ended = tokio::select! {
                ended = run("kubeadm", &arguments, self.deadline.within(KUBEADM), Echo::Lines) => ended,
                never = self.beside(&state.manifests) => match never {},
            };
            let failure = match ended {
                Ok(_) => {
                    let now = self.host.manifests()?;
                    self.host.sync_manifests()?;
                    return if !control_plane
                        || (State { manifests: now, ..state.clone() }).static_pods_on_target(self.order.to)
                    {
                        Ok(())
                    } else {
                        Err(Failure::tool(format!(
                            "kubeadm ended well and the static pods are not at {}: does kubeadm-config name it?",
                            self.order.to
                        )))
                    };
                }
                Err(error) => error,
            };
            output::progress(&format!("kubeadm: attempt {attempt} of {}: {failure}", kubeadm::ATTEMPTS));
            if attempt == kubeadm::ATTEMPTS || self.deadline.within(BETWEEN * 2) < BETWEEN * 2 {
                return Err(failure.into());
            }
            attempt += 1;
            // Killed, it has not put back what it had moved; and each attempt leaves a copy of etcd.
            self.put_back()?;
            self.prune_scratch()?;
            if control_plane {
                // kubeadm waits until the API shows the new static pod. A kubelet whose apiserver had no etcd meanwhile may hold on to a
                // mirror pod that is gone, and delays what it starts again (kubelet 1.36, `DeleteMirrorPod`); anew, it does neither.
                self.restart_kubelet().await?;
            }
            tokio::time::sleep(BETWEEN).await;
        }
    }

    /// What shortens the work of kubeadm and of the kubelet for it; never ends.
    async fn beside(&self, manifests: &Manifests) -> Infallible {
        let see_off = async {
            if self.hand_over.is_some()
                && let Ok(address) = own_apiserver(manifests)
                && let Err(why) = apiserver::see_off(address, self.deadline).await
            {
                output::progress(&format!("kube-apiserver: {why}; the kubelet ends it"));
            }
        };
        let hurry = mirror::COMPONENTS.map(async |component| {
            if manifests.pods.contains_key(component)
                && let Err(why) = mirror::hurry(component).await
            {
                output::progress(&format!("{component}: the kubelet looks when its time comes: {why}"));
            }
        });
        futures::join!(see_off, futures::future::join_all(hurry));
        std::future::pending().await
    }

    /// The node's own parts answer, at the target's version, for a while without a break.
    async fn recovery(&self, state: &State) -> Result<(), Failure> {
        let until = Deadline::after(self.deadline.within(RECOVERY));
        let well = until.steady(STABLE, async || self.well(&state.manifests).await).await;
        well.map_err(|why| Failure::tool(format!("not recovered: {why}")))
    }

    /// Whether each static pod that runs is the one that the kubelet wants.
    async fn stand(&self, manifests: &Manifests) -> Result<(), String> {
        let wanted = self.probe().wanted().await.map_err(|why| format!("the kubelet's static pods: {why}"))?;
        manifests.pods.keys().try_for_each(|component| mirror::stands(&self.host.root, component, &wanted))
    }

    /// The same within [`SOON`]: the kubelet asks an apiserver who may ask it.
    async fn stand_soon(&self, manifests: &Manifests) -> Result<(), String> {
        let until = Deadline::after(self.deadline.within(SOON));
        until.steady(Duration::ZERO, async || self.stand(manifests).await).await
    }

    async fn well(&self, manifests: &Manifests) -> Result<(), String> {
        plain("http://127.0.0.1:10248/healthz").await.map_err(|why| format!("kubelet: {why}"))?;
        if !manifests.control_plane() {
            return Ok(());
        }
        self.stand(manifests).await?;
        let address = own_apiserver(manifests).map_err(|failure| failure.message)?;
        // An old apiserver lives on for up to a minute after its SIGTERM and answers "ok": its version tells them apart.
        let version = self.probe().version(address).await.map_err(|why| format!("kube-apiserver: {why}"))?;
        if version != self.order.to.to_string() {
            return Err(format!("kube-apiserver at {address} is {version}"));
        }
        self.probe().ready(address).await.map_err(|why| format!("kube-apiserver: {why}"))?;
        if let Some(url) = etcd_ready_url(manifests) {
            plain(&url).await.map_err(|why| format!("etcd: {why}"))?;
        }
        Ok(())
    }
}

/// The address that this node's apiserver advertises.
fn own_apiserver(manifests: &Manifests) -> Result<SocketAddr, Failure> {
    let wrong = || Failure::tool("the manifest of kube-apiserver names no --advertise-address that is understood");
    advertised(manifests).ok_or_else(wrong)
}

/// The same; none when there is none, or none that is understood.
pub(super) fn advertised(manifests: &Manifests) -> Option<SocketAddr> {
    let pod = manifests.pods.get("kube-apiserver")?;
    let address = pod.flag("advertise-address").and_then(|it| it.parse().ok())?;
    let port = pod.flag("secure-port").unwrap_or("6443").parse().ok()?;
    Some(SocketAddr::new(address, port))
}

/// Components whose manifest has other bytes, came or went.
fn changed(before: &Manifests, after: &Manifests) -> Vec<String> {
    let digest = |of: &Manifests, name: &str| of.pods.get(name).map(|pod| pod.digest.clone());
    super::manifests::COMPONENTS
        .into_iter()
        .filter(|name| digest(before, name) != digest(after, name))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
#[path = "run/tests.rs"]
mod tests;
