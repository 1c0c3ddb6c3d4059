//! The faults: each is injected, has hit somebody, and is healed where it does not heal by itself.

use super::super::stage::{Stage, kured};
use super::boundary::Boundary;
use lab::Machine;
use lab::prober::monitor::rule::Part;
use quorate::node::Step;
use quorate::upgrade::sub_step::SubStep;
use std::fmt;
use std::time::{Duration, Instant};

/// Whom it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    /// The node that is upgraded.
    Target,
    /// The node that the step runs on.
    Runner,
    /// Another control plane node.
    Bystander,
}

impl Whom {
    const ALL: [Self; 3] = [Self::Target, Self::Runner, Self::Bystander];
}

/// A process that is stopped for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Process {
    Etcd,
    Apiserver,
    Kubelet,
}

impl Process {
    const ALL: [Self; 3] = [Self::Etcd, Self::Apiserver, Self::Kubelet];

    const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Apiserver => "kube-apiserver",
            Self::Kubelet => "kubelet",
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    PowerCut(Whom),
    Reboot(Whom),
    /// SIGKILL of the step's pod.
    StepKilled,
    /// SIGKILL of the node Job's pod.
    NodePodKilled,
    /// SIGKILL of the main process of the unit on the host, as by the kernel when memory is out; systemd then ends the rest.
    UnitKilled,
    /// SIGSTOP of the step, for longer than its Lease.
    StepStopped,
    /// SIGSTOP of another process.
    Stopped(Process, Whom),
    /// The network cable is pulled.
    Cut(Whom),
    /// What the target sends to the bystander is lost; the other way it is not.
    OneWayLoss,
    /// 30 % of all packets of the bystander.
    HeavyLoss,
    /// SIGKILL of kubeadm when it has written the first manifest.
    KubeadmKilled,
    /// The unit on the host is killed between the two moves by which kubeadm swaps a manifest.
    KubeadmTorn(&'static str),
    /// The target has lost the apiserver's new image.
    ImageMissing,
    /// What the node step and kubeadm write to on the target is full.
    DiskFull,
    /// kubeadm's folder for copies is read-only.
    ScratchReadOnly,
    /// The repository of packages is empty, seen from the target.
    PackagesGone,
    LeaseDeleted,
    /// kured comes, and its lock is held by a node.
    KuredHolds,
    KillSwitch,
    /// An administrator cordons the bystander.
    Cordoned,
    /// An administrator uncordons the target.
    Uncordoned,
    /// All apiservers are stopped for two minutes.
    ApiAway,
    /// All apiservers refuse connections for two minutes.
    ApiRefused,
}

/// How long it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lasts {
    /// It is over at once, or by itself.
    Moment,
    /// So many seconds.
    Seconds(u64),
    /// Until the run of the command in which it was injected has ended, but so many seconds at most.
    Run(u64),
}

/// Who is who when a fault strikes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scene {
    pub(super) target: String,
    pub(super) runner: String,
    pub(super) bystander: String,
    pub(super) lease: String,
    pub(super) control_plane: Vec<String>,
}

/// What of whom it takes away: one node of each list.
pub(super) type Hits = Vec<(Vec<String>, Part)>;

/// The annotations of a kured whose lock a node holds.
const HELD_BY_K4: &str =
    r#"{weave.works/kured-node-lock: '{"nodeID":"k4","created":"2026-11-25T20:00:00Z","TTL":9223372036854775807}'}"#;
const IMAGE: &str = "registry.k8s.io/kube-apiserver:v1.36.3";
/// All machines share one disk, so no real one is filled: these folders become small file systems without a free byte.
const FULL: [&str; 3] = ["/var/cache/apt", "/etc/kubernetes/tmp", "/var/lib/quorate"];
const FILL: &str = r#"
for folder in "$@"; do
  mkdir -p "$folder" /run/lab-full
  mount -t tmpfs -o size=$(($(du -sk "$folder" | cut -f1) + 512))k lab /run/lab-full
  cp -a "$folder/." /run/lab-full/
  dd if=/dev/zero of=/run/lab-full/fill bs=4k 2>/dev/null || true
  mount --bind /run/lab-full "$folder"
  umount -l /run/lab-full
done"#;
/// Microseconds lie between the two moves, so the first is made here as kubeadm makes it.
const TEAR: &str =
    "mv /etc/kubernetes/manifests/$1.yaml $(ls -d /etc/kubernetes/tmp/kubeadm-backup-manifests* | tail -n 1)/
systemctl kill --kill-whom=all --signal=KILL quorate-node-step";
/// The static pods that are lost so. Without etcd or the apiserver their kubelet hears of no pod.
const TORN: [&str; 3] = ["kube-scheduler", "kube-apiserver", "etcd"];
pub(super) const KILL_UNIT: [&str; 5] = ["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "quorate-node-step"];
/// kubeadm has at most so long to begin.
const KUBEADM_BEGINS: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(180);

impl Fault {
    /// All of them.
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for whom in Whom::ALL {
            all.extend([Self::PowerCut(whom), Self::Reboot(whom), Self::Cut(whom)]);
        }
        for process in Process::ALL {
            all.extend([Self::Stopped(process, Whom::Target), Self::Stopped(process, Whom::Bystander)]);
        }
        all.extend([
            Self::StepKilled,
            Self::NodePodKilled,
            Self::UnitKilled,
            Self::StepStopped,
            Self::OneWayLoss,
            Self::HeavyLoss,
            Self::KubeadmKilled,
            Self::ImageMissing,
            Self::DiskFull,
            Self::ScratchReadOnly,
            Self::PackagesGone,
            Self::LeaseDeleted,
            Self::KuredHolds,
            Self::KillSwitch,
            Self::Cordoned,
            Self::Uncordoned,
            Self::ApiAway,
            Self::ApiRefused,
        ]);
        all.extend(TORN.map(Self::KubeadmTorn));
        all
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|fault| fault.to_string() == name)
    }

    /// Whether it makes sense there.
    pub(super) fn fits(self, at: Boundary, worker: bool) -> bool {
        let before = |step| at.until(step) && at != Boundary::Host(step);
        // Nobody holds a Lease there, so nothing is anybody's target.
        if matches!(at, Boundary::Chain(_)) {
            return self == Self::StepKilled;
        }
        match self {
            Self::NodePodKilled | Self::UnitKilled => matches!(at, Boundary::Host(_)),
            Self::KubeadmKilled => at == Boundary::Host(Step::Kubeadm),
            Self::Uncordoned => at.position() > Boundary::Lease(SubStep::Cordon).position(),
            Self::KubeadmTorn(_) => !worker && at == Boundary::Host(Step::Kubeadm),
            // What kubeadm needs goes before it looks; a worker's kubeadm needs neither.
            Self::ImageMissing | Self::ScratchReadOnly => !worker && before(Step::Kubeadm),
            Self::DiskFull => before(Step::Kubeadm),
            Self::PackagesGone => before(Step::KubeletPackages),
            Self::Stopped(Process::Etcd | Process::Apiserver, Whom::Target) | Self::OneWayLoss => !worker,
            Self::PowerCut(_)
            | Self::Reboot(_)
            | Self::Cut(_)
            | Self::StepKilled
            | Self::StepStopped
            | Self::Stopped(..)
            | Self::HeavyLoss
            | Self::LeaseDeleted
            | Self::KuredHolds
            | Self::KillSwitch
            | Self::Cordoned
            | Self::ApiAway
            | Self::ApiRefused => true,
        }
    }

    pub(super) fn lasts(self) -> Lasts {
        match self {
            Self::Reboot(_)
            | Self::StepKilled
            | Self::NodePodKilled
            | Self::UnitKilled
            | Self::KubeadmKilled
            | Self::KubeadmTorn(_)
            | Self::Uncordoned
            | Self::LeaseDeleted => Lasts::Moment,
            Self::PowerCut(_) => Lasts::Seconds(20),
            Self::Stopped(Process::Etcd | Process::Apiserver, _) => Lasts::Seconds(30),
            // Longer than it takes until its node is silent in the API.
            Self::Stopped(Process::Kubelet, _) | Self::Cut(_) => Lasts::Seconds(60),
            Self::OneWayLoss | Self::HeavyLoss => Lasts::Seconds(60),
            Self::StepStopped => Lasts::Seconds(90),
            Self::ApiAway | Self::ApiRefused => Lasts::Seconds(120),
            Self::ImageMissing | Self::DiskFull | Self::ScratchReadOnly | Self::PackagesGone => Lasts::Run(300),
            Self::KuredHolds | Self::KillSwitch | Self::Cordoned => Lasts::Run(90),
        }
    }

    /// The node that it hits; none when it hits no single one.
    pub(super) fn node(self, scene: &Scene) -> Option<String> {
        let whom = match self {
            Self::PowerCut(whom) | Self::Reboot(whom) | Self::Cut(whom) | Self::Stopped(_, whom) => whom,
            Self::StepKilled | Self::StepStopped => Whom::Runner,
            Self::NodePodKilled
            | Self::UnitKilled
            | Self::KubeadmKilled
            | Self::KubeadmTorn(_)
            | Self::Uncordoned
            | Self::ImageMissing
            | Self::DiskFull
            | Self::ScratchReadOnly
            | Self::PackagesGone => Whom::Target,
            Self::OneWayLoss | Self::HeavyLoss | Self::Cordoned => Whom::Bystander,
            Self::LeaseDeleted | Self::KuredHolds | Self::KillSwitch | Self::ApiAway | Self::ApiRefused => {
                return None;
            }
        };
        Some(match whom {
            Whom::Target => scene.target.clone(),
            Whom::Runner => scene.runner.clone(),
            Whom::Bystander => scene.bystander.clone(),
        })
    }

    /// What it takes away.
    pub(super) fn hits(self, scene: &Scene) -> Hits {
        let node: Vec<String> =
            self.node(scene).into_iter().filter(|node| scene.control_plane.contains(node)).collect();
        let one = |part| if node.is_empty() { Vec::new() } else { vec![(node.clone(), part)] };
        match self {
            Self::PowerCut(_) | Self::Reboot(_) | Self::Cut(_) | Self::Stopped(Process::Etcd, _) => one(Part::Voter),
            Self::HeavyLoss => one(Part::Path),
            Self::Stopped(Process::Apiserver, _) => one(Part::Apiserver),
            // Either may be the one that cannot be followed.
            Self::OneWayLoss => vec![(vec![scene.target.clone(), scene.bystander.clone()], Part::Path)],
            Self::ApiAway | Self::ApiRefused => {
                scene.control_plane.iter().map(|node| (vec![node.clone()], Part::Apiserver)).collect()
            }
            // Static pods run without a kubelet; what is missing on the target is missing on our one target.
            Self::Stopped(Process::Kubelet, _)
            | Self::StepKilled
            | Self::NodePodKilled
            | Self::UnitKilled
            | Self::StepStopped
            | Self::KubeadmKilled
            | Self::KubeadmTorn(_)
            | Self::ImageMissing
            | Self::DiskFull
            | Self::ScratchReadOnly
            | Self::PackagesGone
            | Self::LeaseDeleted
            | Self::KuredHolds
            | Self::KillSwitch
            | Self::Cordoned
            | Self::Uncordoned => Vec::new(),
        }
    }

    /// Lets it strike.
    ///
    /// # Errors
    /// It cannot: why, such as that the process which it would kill is gone.
    pub(super) fn inject(self, stage: &Stage, scene: &Scene) -> Result<(), String> {
        let machine = |name: &str| stage.machine(name);
        let on = || machine(&self.node(scene).expect("it hits a node"));
        let said = |error: anyhow::Error| format!("{error:#}");
        match self {
            Self::PowerCut(_) => on().crash().map_err(said),
            Self::Reboot(_) => on().reboot().map_err(said),
            Self::Cut(_) => on().cut().map_err(said),
            Self::StepKilled => on().kill_command(&["quorate", "step"]).map(drop).map_err(said),
            Self::NodePodKilled => on().kill_command(&["quorate", "node", "upgrade"]).map(drop).map_err(said),
            Self::UnitKilled => on().run_checked(KILL_UNIT).map(drop).map_err(said),
            Self::StepStopped => on().pause_command(&["quorate", "step"]).map(drop).map_err(said),
            Self::Stopped(process, _) => on().pause(process.name()).map_err(said),
            Self::OneWayLoss => on().lose_from(&machine(&scene.target)).map_err(said),
            Self::HeavyLoss => on().lose_percent(30).map_err(said),
            Self::KubeadmKilled => kill_kubeadm(&on(), scene.control_plane.contains(&scene.target)),
            Self::KubeadmTorn(component) => {
                first_manifest(&on(), true)?;
                on().run_checked(["sh", "-ec", TEAR, "sh", component]).map(drop).map_err(said)
            }
            Self::ImageMissing => {
                let script = format!(
                    "ctr -n k8s.io images export /root/lab-image.tar {IMAGE} && ctr -n k8s.io images rm --sync {IMAGE}"
                );
                on().run_checked(["sh", "-ec", &script]).map(drop).map_err(said)
            }
            Self::DiskFull => {
                let words = ["sh", "-ec", FILL, "sh"].into_iter().chain(FULL);
                on().run_checked(words).map(drop).map_err(said)
            }
            Self::ScratchReadOnly => {
                let script = "d=/etc/kubernetes/tmp; mkdir -p $d; mount --bind $d $d; mount -o remount,bind,ro $d";
                on().run_checked(["sh", "-ec", script]).map(drop).map_err(said)
            }
            Self::PackagesGone => on().run_checked(["mount", "-t", "tmpfs", "lab", "/srv/apt"]).map(drop).map_err(said),
            Self::LeaseDeleted => {
                kubectl(stage, &["-n", "quorate", "delete", "lease", &scene.lease, "--ignore-not-found"])
            }
            Self::KuredHolds => {
                let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
                std::fs::write(file.path(), kured(HELD_BY_K4)).map_err(|error| error.to_string())?;
                kubectl(stage, &["apply", "-f", file.path().to_str().expect("a path of a temporary file")])
            }
            Self::KillSwitch => {
                let reason = "--from-literal=reason=set by a fault";
                kubectl(stage, &["-n", "quorate", "create", "configmap", "quorate-kill-switch", reason])
            }
            Self::Cordoned => kubectl(stage, &["cordon", &scene.bystander]),
            Self::Uncordoned => kubectl(stage, &["uncordon", &scene.target]),
            Self::ApiAway => {
                // One that does not run is away already.
                let stopped = scene.control_plane.iter().map(|name| machine(name).pause(Process::Apiserver.name()));
                let failed: Vec<anyhow::Error> = stopped.filter_map(Result::err).collect();
                if failed.len() < scene.control_plane.len() { Ok(()) } else { Err(format!("{failed:?}")) }
            }
            Self::ApiRefused => {
                let mut refusing = scene.control_plane.iter().map(|name| machine(name).refuse(6443));
                refusing.try_for_each(|done| done.map_err(said))
            }
        }
    }

    /// Ends it; for one that is over by itself, nothing.
    ///
    /// # Errors
    /// It cannot be ended: the round is worth nothing then.
    pub(super) fn heal(self, stage: &Stage, scene: &Scene) -> Result<(), String> {
        let on = || stage.machine(&self.node(scene).expect("it hits a node"));
        let said = |error: anyhow::Error| format!("{error:#}");
        match self {
            // Its containerd is active; what runs in it is for the round to wait for.
            Self::PowerCut(_) | Self::Reboot(_) => on().start().map_err(said),
            Self::Cut(_) => on().heal().map_err(said),
            Self::StepStopped => {
                // The Job may have been ended, and its process with it.
                if on().runs_command(&["quorate", "step"]).map_err(said)? {
                    on().resume_command(&["quorate", "step"]).map_err(said)?;
                }
                Ok(())
            }
            Self::Stopped(process, _) => resume(&on(), process),
            Self::OneWayLoss | Self::HeavyLoss => on().lose_nothing().map_err(said),
            Self::ImageMissing => {
                let script = "ctr -n k8s.io images import /root/lab-image.tar && rm /root/lab-image.tar";
                on().run_checked(["sh", "-ec", script]).map(drop).map_err(said)
            }
            Self::DiskFull => {
                let script = r#"for folder in "$@"; do umount -l "$folder"; done"#;
                on().run_checked(["sh", "-ec", script, "sh"].into_iter().chain(FULL)).map(drop).map_err(said)
            }
            Self::ScratchReadOnly => on().run_checked(["umount", "-l", "/etc/kubernetes/tmp"]).map(drop).map_err(said),
            Self::PackagesGone => on().run_checked(["umount", "-l", "/srv/apt"]).map(drop).map_err(said),
            Self::KuredHolds => {
                kubectl(stage, &["-n", "kube-system", "annotate", "daemonset", "kured", "weave.works/kured-node-lock-"])
            }
            Self::KillSwitch => kubectl(stage, &["-n", "quorate", "delete", "configmap", "quorate-kill-switch"]),
            Self::Cordoned => kubectl(stage, &["uncordon", &scene.bystander]),
            Self::ApiAway => {
                scene.control_plane.iter().try_for_each(|name| resume(&stage.machine(name), Process::Apiserver))
            }
            Self::ApiRefused => {
                let mut healed = scene.control_plane.iter().map(|name| stage.machine(name).lose_nothing());
                healed.try_for_each(|done| done.map_err(said))
            }
            Self::StepKilled
            | Self::NodePodKilled
            | Self::UnitKilled
            | Self::KubeadmKilled
            | Self::KubeadmTorn(_)
            | Self::LeaseDeleted
            | Self::Uncordoned => Ok(()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |whom: &Whom| match whom {
            Whom::Target => "target",
            Whom::Runner => "runner",
            Whom::Bystander => "bystander",
        };
        match self {
            Self::PowerCut(whom) => write!(f, "power-cut-{}", of(whom)),
            Self::Reboot(whom) => write!(f, "reboot-{}", of(whom)),
            Self::Cut(whom) => write!(f, "cut-{}", of(whom)),
            Self::Stopped(process, whom) => write!(f, "stop-{}-{}", process.name(), of(whom)),
            Self::StepKilled => f.write_str("kill-step"),
            Self::NodePodKilled => f.write_str("kill-node-pod"),
            Self::UnitKilled => f.write_str("kill-unit"),
            Self::StepStopped => f.write_str("stop-step"),
            Self::OneWayLoss => f.write_str("one-way-loss"),
            Self::HeavyLoss => f.write_str("loss-30"),
            Self::KubeadmKilled => f.write_str("kill-kubeadm"),
            Self::KubeadmTorn(component) => write!(f, "tear-{component}"),
            Self::ImageMissing => f.write_str("image-missing"),
            Self::DiskFull => f.write_str("disk-full"),
            Self::ScratchReadOnly => f.write_str("scratch-read-only"),
            Self::PackagesGone => f.write_str("packages-gone"),
            Self::LeaseDeleted => f.write_str("lease-deleted"),
            Self::KuredHolds => f.write_str("kured-holds"),
            Self::KillSwitch => f.write_str("kill-switch"),
            Self::Cordoned => f.write_str("cordoned"),
            Self::Uncordoned => f.write_str("uncordoned"),
            Self::ApiAway => f.write_str("api-away"),
            Self::ApiRefused => f.write_str("api-refused"),
        }
    }
}

/// Tries until it succeeds; the API may be between two apiservers.
fn patiently(mut attempt: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(300)),
        }
    }
}

fn kubectl(stage: &Stage, args: &[&str]) -> Result<(), String> {
    patiently(|| {
        let words = ["kubectl", "--request-timeout=4s"].into_iter().chain(args.iter().copied());
        let output = stage.lab.run(words).map_err(|error| format!("{error:#}"))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        // An answer that was lost: it was done the first time.
        if output.status.success() || said.contains("AlreadyExists") || said.contains("NotFound") {
            return Ok(());
        }
        Err(said)
    })
}

/// Lets what was stopped go on; what was killed and started meanwhile, by its kubelet, goes on already.
fn resume(machine: &Machine, process: Process) -> Result<(), String> {
    patiently(|| machine.resume(process.name()).map_err(|error| format!("{error:#}")))
}

/// Waits until kubeadm has written the apiserver's new manifest; a worker has none.
fn first_manifest(machine: &Machine, control_plane: bool) -> Result<(), String> {
    let end = Instant::now() + KUBEADM_BEGINS;
    let written = ["grep", "-q", "kube-apiserver:v1.36.3", "/etc/kubernetes/manifests/kube-apiserver.yaml"];
    while control_plane && !machine.run(written).is_ok_and(|said| said.status.success()) {
        if Instant::now() >= end {
            return Err("kubeadm wrote no manifest".to_owned());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Kills kubeadm in the middle.
fn kill_kubeadm(machine: &Machine, control_plane: bool) -> Result<(), String> {
    first_manifest(machine, control_plane)?;
    let end = Instant::now() + KUBEADM_BEGINS;
    loop {
        match machine.kill_command(&["kubeadm", "upgrade"]) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= end => return Err(format!("{error:#}")),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[test]
fn every_fault_fits_somewhere_and_every_boundary_can_be_struck() {
    let (faults, boundaries) = (Fault::all(), Boundary::all());
    for fault in &faults {
        assert!(boundaries.iter().any(|at| fault.fits(*at, false)), "{fault}");
        assert_eq!(Fault::named(&fault.to_string()), Some(*fault));
    }
    for at in &boundaries {
        assert!(faults.iter().any(|fault| fault.fits(*at, false)), "{at}");
    }
    assert!(Fault::PackagesGone.fits(Boundary::Lease(SubStep::Drain), true));
    assert!(!Fault::PackagesGone.fits(Boundary::Lease(SubStep::Recovery), true));
}

#[test]
fn what_a_fault_takes_away_is_on_control_plane_nodes_only() {
    let scene = Scene {
        target: "k4".to_owned(),
        runner: "k1".to_owned(),
        bystander: "k2".to_owned(),
        lease: "worker-disruption-0".to_owned(),
        control_plane: ["k1", "k2", "k3"].map(str::to_owned).to_vec(),
    };
    assert_eq!(Fault::PowerCut(Whom::Target).hits(&scene), Vec::new());
    assert_eq!(Fault::PowerCut(Whom::Runner).hits(&scene), vec![(vec!["k1".to_owned()], Part::Voter)]);
    assert_eq!((Fault::ApiAway.hits(&scene).len(), Fault::ApiRefused.hits(&scene).len()), (3, 3));
}
