//! A namespace with nodes and pods on a real API server, and contenders in it: as tasks, and as processes that can be killed and frozen.

use anyhow::{Context, Result, anyhow};
use lab::api::{Api, Spec};
use lab::process::{Process, until};
use quorate::access::Access;
use quorate::clock::Clock;
use quorate::config::Config;
use quorate::drain::{self, Owner};
use quorate::lock::{CONTROL_PLANE, Claimant, Leases, Taken, take};
use quorate::quiesce;
use quorate::upgrade::sub_step::SubStep;
use quorum_safety::lock::{LeaseView, Step, Timings};
use quorum_safety::{Fact, NodeName};
use serde_json::{Value, json};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// Times short enough to wait for, and the same in proportion.
pub(super) fn timings() -> Timings {
    Timings { lease: Duration::from_secs(6), renew: Duration::from_secs(2), margin: Duration::from_secs(1) }
}

/// Long enough to see that a holder's deadline has passed.
pub(super) fn past_silence() -> Duration {
    timings().silence() + Duration::from_secs(3)
}

/// One API server for all tests that do not harm it; gone with the last of them.
pub(super) fn shared() -> Result<Arc<Api>> {
    static SHARED: Mutex<Weak<Api>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(api) = shared.upgrade() {
        return Ok(api);
    }
    let api = Arc::new(Api::start(Spec::default())?);
    *shared = Arc::downgrade(&api);
    Ok(api)
}

/// One test's part of a cluster: a namespace of its own, and node names that carry its name.
pub(super) struct Place {
    pub(super) api: Arc<Api>,
    pub(super) namespace: &'static str,
}

impl Place {
    pub(super) fn new(api: Arc<Api>, namespace: &'static str) -> Result<Self> {
        drop(rustls::crypto::ring::default_provider().install_default());
        let place = Self { api, namespace };
        place
            .api
            .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}).to_string())?;
        // No controller makes it here, and no pod is admitted without.
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}});
        place.api.apply(&account.to_string())?;
        Ok(place)
    }

    /// The same on the shared API server, with a Ready node and a running pod of each of these names.
    pub(super) fn with_pods<const N: usize>(namespace: &'static str, pods: [&str; N]) -> Result<Self> {
        Self::with_pods_on(shared()?, namespace, pods)
    }

    /// The same on an API server of the test's own.
    pub(super) fn with_pods_on<const N: usize>(
        api: Arc<Api>,
        namespace: &'static str,
        pods: [&str; N],
    ) -> Result<Self> {
        let place = Self::new(api, namespace)?;
        pods.iter().try_for_each(|pod| place.node_with_pod(pod, "boot-1"))?;
        Ok(place)
    }

    /// The full name of one of this test's nodes.
    pub(super) fn node(&self, short: &str) -> NodeName {
        NodeName(format!("{}-{short}", self.namespace))
    }

    /// A Ready node of this boot id, with a pod of the same name on it that runs.
    pub(super) fn node_with_pod(&self, short: &str, boot_id: &str) -> Result<()> {
        let name = self.node(short).0;
        self.api.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}).to_string())?;
        self.api.set_node_ready(&name, self.api.address(1))?;
        self.boot(short, boot_id)?;
        self.pod(short)
    }

    pub(super) fn boot(&self, short: &str, boot_id: &str) -> Result<()> {
        self.patch_status("node", &self.node(short).0, &json!({"nodeInfo": {"bootID": boot_id}}))
    }

    pub(super) fn not_ready(&self, short: &str) -> Result<()> {
        let condition = json!([{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]);
        self.patch_status("node", &self.node(short).0, &json!({"conditions": condition}))
    }

    /// A pod called like its node, running.
    pub(super) fn pod(&self, short: &str) -> Result<()> {
        self.pod_on(short, short)
    }

    /// A running pod on a node that is there.
    pub(super) fn pod_on(&self, node: &str, short: &str) -> Result<()> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": short, "namespace": self.namespace},
            "spec": {"nodeName": self.node(node).0, "containers": [{"name": "quorate", "image": "localhost/quorate:dev"}]},
        });
        self.api.apply(&pod.to_string())?;
        self.api.set_pod_ready(self.namespace, short)
    }

    /// What the kubelet writes when the containers of a pod have ended.
    pub(super) fn pod_ended(&self, short: &str) -> Result<()> {
        let ended = json!({
            "name": "quorate", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 137}},
        });
        self.patch_status("pod", short, &json!({"phase": "Failed", "containerStatuses": [ended]}))
    }

    /// What the garbage collector of pods writes of a node that nobody reaches: nobody has seen a container end.
    pub(super) fn pod_given_up(&self, short: &str) -> Result<()> {
        self.patch_status("pod", short, &json!({"phase": "Failed"}))
    }

    pub(super) fn patch_status(&self, kind: &str, name: &str, status: &Value) -> Result<()> {
        let patch = json!({"status": status}).to_string();
        let args =
            ["patch", kind, name, "-n", self.namespace, "--subresource=status", "--type=strategic", "-p", &patch];
        self.api.kubectl(args).map(drop)
    }

    pub(super) async fn leases(&self) -> Result<Leases> {
        leases(self.api.kubeconfig()?, self.namespace).await
    }

    /// The same, as this service account of the namespace.
    pub(super) async fn leases_as(&self, account: &str) -> Result<Leases> {
        leases(&self.api.kubeconfig_for(self.namespace, account)?, self.namespace).await
    }

    /// Who that pod is, asking for this.
    pub(super) async fn claimant(&self, pod: &str, operation: &str, target: &str) -> Result<Claimant> {
        claimant(&self.leases().await?, pod, operation, &self.node(target)).await
    }

    /// Asks for the Lease as that pod. Nobody looks at a host.
    pub(super) async fn take(
        &self,
        lease: &str,
        pod: &str,
        operation: &str,
        target: &str,
        patience: Duration,
    ) -> Result<Taken> {
        let who = self.claimant(pod, operation, target).await?;
        Ok(take(&self.leases().await?, lease, &who, patience, nobody_looks).await)
    }

    pub(super) async fn lease(&self, name: &str) -> Result<LeaseView> {
        Ok(self.leases().await?.read(name).await?.view)
    }

    /// Starts a contender as a process of its own: this very program, told to run [`contender`].
    pub(super) fn process(&self, lease: &str, pod: &str, operation: &str, target: &str) -> Result<Contender> {
        self.process_at(&SubStep::Drain.into(), lease, pod, operation, target)
    }

    /// The same, which announces this sub-step.
    pub(super) fn process_at(
        &self,
        step: &Step,
        lease: &str,
        pod: &str,
        operation: &str,
        target: &str,
    ) -> Result<Contender> {
        self.process_of(
            pod,
            json!({
                "kubeconfig": self.api.kubeconfig()?, "namespace": self.namespace, "lease": lease, "pod": pod,
                "operation": operation, "target": self.node(target).0, "step": step,
            }),
        )
    }

    /// The same under the Lease of the control plane, as the account of the steps: it cordons its target, and scales to zero what this
    /// configuration lists, before it says `got`.
    pub(super) fn process_that_quiesces(
        &self,
        pod: &str,
        operation: &str,
        target: &str,
        config: &str,
    ) -> Result<Contender> {
        self.process_of(
            pod,
            json!({
                "kubeconfig": self.api.kubeconfig_for(self.namespace, "quorate-step")?, "namespace": self.namespace,
                "lease": CONTROL_PLANE, "pod": pod, "operation": operation, "target": self.node(target).0,
                "step": Step::from(SubStep::Drain), "config": config,
            }),
        )
    }

    fn process_of(&self, pod: &str, job: Value) -> Result<Contender> {
        let program = std::env::current_exe()?;
        let log = self.api.pki_dir().join(format!("contender-{}-{pod}.log", self.namespace));
        let args = [
            format!("{CONTENDER}={job}"),
            program.display().to_string(),
            "--ignored".to_owned(),
            "--exact".to_owned(),
            "lock::contender".to_owned(),
            "--nocapture".to_owned(),
        ];
        let process = Process::new(format!("contender {pod}"), "/usr/bin/env".into(), args.into(), log);
        process.start()?;
        Ok(Contender { process })
    }
}

/// For those that cannot look at a host: that proof is then not to be had.
pub(super) async fn nobody_looks(_target: NodeName) -> Fact<bool> {
    Fact::Unknown("nobody looks at the host".to_owned())
}

async fn leases(kubeconfig: &Path, namespace: &str) -> Result<Leases> {
    let access = Access::from_file(kubeconfig, namespace).await?;
    Ok(Leases::new(access, Vec::new(), timings(), Clock::system()))
}

async fn claimant(leases: &Leases, pod: &str, operation: &str, target: &NodeName) -> Result<Claimant> {
    Claimant::in_pod(leases, (leases.namespace(), pod), (operation, target), "test").await.map_err(|why| anyhow!(why))
}

const CONTENDER: &str = "QUORATE_TEST_CONTENDER";

/// A contender in a process of its own. It writes lines: `got`, `acted <milliseconds of the boot clock>`, `stopped: …`,
/// `ended: …`, `held: …`.
pub(super) struct Contender {
    pub(super) process: Process,
}

impl Contender {
    pub(super) fn lines(&self) -> Result<Vec<String>> {
        let path = self.process.log_path();
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Waits for a line that starts like this.
    pub(super) fn says(&self, start: &str) -> Result<String> {
        until(&format!("{} says `{start}`", self.process.name()), Duration::from_secs(60), || {
            let lines = self.lines()?;
            Ok(match lines.iter().find(|line| line.starts_with(start)) {
                Some(line) => ControlFlow::Break(line.clone()),
                None => ControlFlow::Continue(anyhow!("it said {lines:?}")),
            })
        })
    }

    /// When it acted, on the boot clock of this machine.
    pub(super) fn acted(&self) -> Result<Vec<Duration>> {
        let lines = self.lines()?;
        let times = lines.iter().filter_map(|line| line.strip_prefix("acted "));
        times.map(|time| Ok(Duration::from_millis(time.parse()?))).collect()
    }
}

/// The other process: takes the Lease, announces its step, and acts ten times a second until it may not; then it tries to
/// write.
pub(super) async fn contend() -> Result<()> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let Ok(job) = std::env::var(CONTENDER) else { return Ok(()) };
    let job: Value = serde_json::from_str(&job)?;
    let text = |key: &str| job[key].as_str().map(str::to_owned).with_context(|| format!("no {key}"));
    let leases = leases(Path::new(&text("kubeconfig")?), &text("namespace")?).await?;
    let who = claimant(&leases, &text("pod")?, &text("operation")?, &NodeName(text("target")?)).await?;
    let clock = Clock::system();
    let say = |line: &str| writeln!(std::io::stdout(), "\n{line}");
    let name = text("lease")?;
    let step: Step = serde_json::from_value(job["step"].clone())?;
    let guard =
        match take(&leases, &name, &who, Duration::from_secs(2), |_| async { Fact::Unknown("no look".into()) }).await {
            Taken::Got(guard) => *guard,
            Taken::Held(waits) => return Ok(say(&format!("held: {waits:?}"))?),
        };
    guard.step(step).await?;
    if let Some(config) = job["config"].as_str() {
        let access = Access::from_file(Path::new(&text("kubeconfig")?), &text("namespace")?).await?;
        let (operation, identity) = (text("operation")?, guard.identity().await);
        let owner = Owner { operation, identity: identity.clone(), adopted: false };
        drain::cordon(&access, &text("target")?, &owner, clock.now(), &guard).await?;
        let told = quiesce::quiesce(&access, &Config::parse(config)?, &identity, clock.now(), &guard).await?;
        say(&told.join("\n"))?;
    }
    say("got")?;
    loop {
        let acted = guard.act(Duration::from_millis(500), async { clock.boottime() }).await;
        match acted {
            Ok(at) => say(&format!("acted {}", at.as_millis()))?,
            Err(error) => {
                say(&format!("stopped: {error}"))?;
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // All the same it tries to write, and lives on for longer than a renewal takes: what that changes is there to be found.
    let step = guard.step(SubStep::NodeStep.into()).await;
    tokio::time::sleep(timings().renew * 2).await;
    let release = guard.release().await;
    Ok(say(&format!("ended: step {step:?}, release {release:?}"))?)
}
