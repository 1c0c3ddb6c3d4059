//! A kubeadm control plane of several machines behind a virtual IP: up, attach, down. One at a time on a host.

mod down;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::build;
use crate::cache::{Cache, GIB, Lock, need_space};
use crate::command::{capture, command, output, read, require, tail, write};
use crate::kubeadm;
use crate::machine::{Machine, Parts};
use crate::network::{self, API_PORT, CLIENT_NAMESPACE, MOST_MACHINES, VIP};
use crate::output::{say, stage};
use crate::tree;
use crate::version::{Version, sorted};

const HOST_PROGRAMS: [&str; 10] =
    ["ip", "sysctl", "mount", "nsenter", "setsid", "bash", "haproxy", "systemd-nspawn", "setpriv", "env"];
/// What a machine writes until it is up: etcd's preallocated log, container roots, logs.
const BYTES_A_MACHINE: u64 = GIB;

/// The files in kubeadm's etcd folder that a client needs: the authority, its certificate and its key.
pub const ETCD_CLIENT: [&str; 3] = ["ca.crt", "healthcheck-client.crt", "healthcheck-client.key"];

/// What to bring up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Control plane nodes, each with an etcd member: `k1` to `kN`.
    pub control_planes: u8,
    /// Workers, after the control plane nodes. With one, the control plane taint stays, as in real clusters.
    pub workers: u8,
    /// The version it starts with.
    pub version: Version,
    /// Further versions whose packages and images are there to upgrade to.
    pub upgrades_to: Vec<Version>,
    /// Whether apiservers write `/var/log/kubernetes/audit.log` (level Metadata, every request).
    pub audit: bool,
    /// How much of one of this host's processors a machine has at most, in percent; none: all of them, which makes one machine's work another
    /// one's delay, as on hosts of their own it is not.
    pub processor: Option<u32>,
}

impl Default for Spec {
    /// Three control plane nodes, no worker, v1.36.1 with v1.36.3 to upgrade to, no audit log, all processors for all.
    fn default() -> Self {
        let [version, next] = build::DEFAULT_VERSIONS;
        Self { control_planes: 3, workers: 0, version, upgrades_to: vec![next], audit: false, processor: None }
    }
}

impl Spec {
    fn machines(&self) -> u8 {
        self.control_planes.saturating_add(self.workers)
    }

    fn versions_in_play(&self) -> Vec<Version> {
        let mut versions = self.upgrades_to.clone();
        versions.push(self.version);
        sorted(&versions)
    }

    fn check(&self) -> Result<()> {
        if self.control_planes == 0 {
            bail!("a cluster has one control plane node at least");
        }
        if self.machines() > MOST_MACHINES {
            bail!("{MOST_MACHINES} machines at most, not {}", self.machines());
        }
        Ok(())
    }
}

/// `lab.json` in the state folder: written before anything else is made.
#[derive(Serialize, Deserialize)]
struct Record {
    spec: Spec,
    /// False while it comes up: what is found so was interrupted.
    complete: bool,
    /// Folders of the cache that it stands on.
    uses: Vec<PathBuf>,
}

fn record(state: &Path) -> Result<Option<Record>> {
    let path = state.join("lab.json");
    if !path.exists() {
        return Ok(None);
    }
    serde_json::from_str(&read(&path)?).map(Some).with_context(|| format!("cannot understand {}", path.display()))
}

/// Folders of the cache that machines which are up stand on. A record that cannot be read protects nothing that could
/// still be used: `down` is all that works then.
pub(crate) fn in_use(state: &Path) -> Vec<PathBuf> {
    record(state).ok().flatten().map(|record| record.uses).unwrap_or_default()
}

/// The machines of a cluster that is up. Nothing is taken down when this is dropped.
#[derive(Clone, Debug)]
pub struct Lab {
    spec: Spec,
    state: PathBuf,
}

impl Lab {
    /// Brings a cluster up: builds what is missing, boots the machines, runs kubeadm, waits until all nodes are Ready.
    /// What an interrupted `up` left is removed first; a cluster of this very kind that is up already is given as it is.
    ///
    /// # Errors
    /// Another is up already; the host lacks something; a step failed (then [`down`](Self::down) removes what there is).
    pub fn up(spec: Spec) -> Result<Self> {
        spec.check()?;
        require(&HOST_PROGRAMS)?;
        refuse_unified_cgroups()?;
        let cache = Cache::open()?;
        let state = cache.state();
        let _lock = lock(&cache)?;
        if is_up(&state, &spec)? {
            say("up already");
            return Ok(Self { spec, state });
        }
        let versions = spec.versions_in_play();
        let layer = build::machine_layer(spec.version)?;
        let (root, store) = (build::machine_root()?, build::store(&versions)?);
        let repository = build::repository(&versions)?;
        let Spec { audit, processor, .. } = spec;
        let parts = Parts { lower: &[&layer, &root], store: &store, repository: &repository, audit, processor };
        need_space(cache.root(), BYTES_A_MACHINE * u64::from(spec.machines()), "bring the machines up")?;
        let uses = [&layer, &root, &store, &repository].into_iter();
        let uses = uses.filter_map(|path| path.ancestors().find(|folder| is_entry(folder))).map(Path::to_owned);
        let mut record = Record { spec: spec.clone(), complete: false, uses: uses.collect() };
        save(&state, &record)?;
        let lab = Self { spec, state };
        lab.link_tools()?;
        {
            let _stage = stage("network and load balancer");
            network::up(lab.spec.machines())?;
            network::haproxy_up(&lab.state, lab.spec.control_planes)?;
        }
        lab.boot(&parts)?;
        lab.kubeadm()?;
        record.complete = true;
        save(&lab.state, &record)?;
        say(format_args!(
            "up: {} control plane node(s), {} worker(s), {}",
            lab.spec.control_planes, lab.spec.workers, lab.spec.version
        ));
        Ok(lab)
    }

    /// The cluster that is up.
    ///
    /// # Errors
    /// None is, or its `up` was interrupted.
    pub fn attach() -> Result<Self> {
        let state = Cache::open()?.state();
        match record(&state)? {
            Some(record) if record.complete => Ok(Self { spec: record.spec, state }),
            Some(_) => bail!("the lab is coming up, or its `up` was interrupted: `lab down` removes it"),
            None => bail!("no lab is up: `lab up` brings one up"),
        }
    }

    /// Takes down whatever is there, also after the lab was killed, and leaves nothing: processes, mounts, network
    /// namespaces, cgroups, files. No error when nothing is there.
    ///
    /// # Errors
    /// Another `up` or `down` is at work, or something could not be removed.
    pub fn down() -> Result<()> {
        let cache = Cache::open()?;
        let _lock = lock(&cache)?;
        let _stage = stage("taking the lab down");
        down::everything(&cache.state())
    }

    /// What it was brought up as.
    #[must_use]
    pub const fn spec(&self) -> &Spec {
        &self.spec
    }

    /// A machine by its number: 1 for `k1`.
    ///
    /// # Errors
    /// There is no such machine.
    pub fn machine(&self, index: u8) -> Result<Machine> {
        if index == 0 || index > self.spec.machines() {
            bail!("there is no machine {index}: the lab has {}", self.spec.machines());
        }
        Ok(Machine::new(index, &self.state))
    }

    /// All machines, control plane nodes first.
    #[must_use]
    pub fn machines(&self) -> Vec<Machine> {
        (1..=self.spec.machines()).map(|index| Machine::new(index, &self.state)).collect()
    }

    /// The administrator's kubeconfig; it names the virtual IP, so it works in the client's namespace only.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("admin.conf")
    }

    /// The control plane endpoint: `10.10.0.10:6443`.
    #[must_use]
    pub fn vip(&self) -> String {
        format!("{VIP}:{API_PORT}")
    }

    /// HAProxy's admin socket, on the host.
    #[must_use]
    pub fn haproxy_socket(&self) -> PathBuf {
        self.state.join("haproxy.sock")
    }

    /// Where a Unix datagram socket hears of each session that HAProxy has ended, on the host: a line of its tcplog.
    #[must_use]
    pub fn haproxy_log(&self) -> PathBuf {
        self.state.join("haproxy.log")
    }

    /// Copies what a client of this cluster's etcd needs into a folder: [`ETCD_CLIENT`].
    ///
    /// # Errors
    /// The first machine is off, or the folder cannot be written.
    pub fn copy_etcd_client(&self, into: &Path) -> Result<()> {
        let first = self.machine(1)?;
        for name in ETCD_CLIENT {
            write(&into.join(name), first.read_file(&format!("/etc/kubernetes/pki/etcd/{name}"))?)?;
        }
        Ok(())
    }

    /// A command in the client's network namespace with KUBECONFIG set and kubectl, kubeadm, etcdctl, etcdutl of this
    /// cluster first in PATH; stdin closed.
    pub fn client<I, S>(&self, argv: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut path = self.state.join("bin").into_os_string();
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        // ip finds the program by the PATH it has itself, so env is between.
        let mut command = network::inside(CLIENT_NAMESPACE, ["env"]);
        command.args(argv).env("KUBECONFIG", self.kubeconfig()).env("PATH", path);
        command
    }

    /// Runs a command as [`client`](Self::client) to its end, whatever its exit code.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run<I, S>(&self, argv: I) -> Result<Output>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        output(&mut self.client(argv))
    }

    /// Runs a command as [`client`](Self::client) that must succeed, and gives its stdout.
    ///
    /// # Errors
    /// It failed: with its last lines.
    pub fn run_checked<I, S>(&self, argv: I) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        capture(&mut self.client(argv))
    }

    /// Loads a docker archive into the containerd of every machine.
    ///
    /// # Errors
    /// The archive cannot be read, a machine is off, or containerd refused it.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let _stage = stage(format_args!("loading {}", archive.display()));
        on_all(&self.machines(), |machine| {
            let file = File::open(archive).with_context(|| format!("cannot open {}", archive.display()))?;
            machine.feed(["ctr", "-n", "k8s.io", "images", "import", "-"], file).map(drop)
        })
    }

    fn link_tools(&self) -> Result<()> {
        let bin = self.state.join("bin");
        fs::create_dir_all(&bin)?;
        let (kubernetes, etcd) = (build::kubernetes(self.spec.version)?, build::etcd_tools(build::MACHINE_ETCD)?);
        for (folder, tools) in [(kubernetes, ["kubectl", "kubeadm"]), (etcd, ["etcdctl", "etcdutl"])] {
            for tool in tools {
                // A link of its own, not a path: the cache may drop old keys while the lab is up.
                let (from, to) = (folder.join(tool), bin.join(tool));
                if fs::hard_link(&from, &to).is_err() {
                    symlink(&from, &to).with_context(|| format!("cannot link {}", to.display()))?;
                }
            }
        }
        Ok(())
    }

    fn boot(&self, parts: &Parts<'_>) -> Result<()> {
        let _stage = stage(format_args!("booting {} machine(s)", self.spec.machines()));
        on_all(&self.machines(), |machine| {
            let control_plane = machine.index() <= self.spec.control_planes;
            machine.make(&Parts { audit: parts.audit && control_plane, ..*parts })?;
            machine.start()?;
            parts.processor.map_or(Ok(()), |percent| machine.has_at_most(percent))
        })
    }

    fn kubeadm(&self) -> Result<()> {
        let key = certificate_key()?;
        let first = self.machine(1)?;
        let join = {
            let _stage = stage("kubeadm init on k1");
            let config = kubeadm::config(1, self.spec.version, &key, self.spec.audit);
            first.write_file("/root/kubeadm.yaml", config)?;
            let words = ["kubeadm", "init", "--config", "/root/kubeadm.yaml", "--upload-certs"];
            let words = words.into_iter().chain(["--skip-phases=addon/coredns", kubeadm::PREFLIGHT]);
            let printed = self.logged(&first, words, "init.log")?;
            write(&self.kubeconfig(), first.read_file("/etc/kubernetes/admin.conf")?)?;
            kubeadm::join_words(&printed)?
        };
        for machine in self.machines().iter().skip(1) {
            let _stage = stage(format_args!("kubeadm join on {}", machine.name()));
            let address = machine.address();
            let mut words: Vec<&str> = vec!["kubeadm", "join"];
            words.extend(join.iter().map(String::as_str));
            if machine.index() <= self.spec.control_planes {
                words.extend(["--control-plane", "--certificate-key", &key, "--apiserver-advertise-address", &address]);
            }
            words.extend(["--cri-socket", kubeadm::CRI, kubeadm::PREFLIGHT]);
            self.logged(machine, words, &format!("join{}.log", machine.index()))?;
        }
        let _stage = stage("waiting until all nodes are Ready");
        // Without a worker the control plane has to carry everything.
        if self.spec.workers == 0 {
            self.run_checked(["kubectl", "taint", "node", "--all", "node-role.kubernetes.io/control-plane-"])?;
        }
        self.run_checked(["kubectl", "wait", "--for=condition=Ready", "node", "--all", "--timeout=180s"])?;
        Ok(())
    }

    /// Runs a command on a machine, keeps what it prints in a file of the state folder, and gives it.
    fn logged<'a>(&self, machine: &Machine, argv: impl IntoIterator<Item = &'a str>, file: &str) -> Result<String> {
        let path = self.state.join(file);
        let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = machine.command(argv)?;
        let status = command.stdout(log.try_clone()?).stderr(log).status()?;
        let printed = read(&path)?;
        if !status.success() {
            bail!("kubeadm failed on {}, see {}: {}", machine.name(), path.display(), tail(&printed, 8));
        }
        Ok(printed)
    }
}

/// Does the same on all machines at once; the first error, in their order.
fn on_all(machines: &[Machine], work: impl Fn(&Machine) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let running: Vec<_> = machines.iter().map(|machine| scope.spawn(|| work(machine))).collect();
        let done: Vec<Result<()>> = running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread of the lab panicked")))
            .collect();
        done.into_iter().collect()
    })
}

fn is_entry(folder: &Path) -> bool {
    folder.file_name().is_some_and(|name| name.to_string_lossy().contains('@'))
}

fn save(state: &Path, record: &Record) -> Result<()> {
    let (path, new) = (state.join("lab.json"), state.join("lab.json.new"));
    write(&new, serde_json::to_string_pretty(record)?)?;
    fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))
}

fn lock(cache: &Cache) -> Result<Lock> {
    cache.try_lock("up-and-down")?.context("another `lab up` or `lab down` is at work")
}

/// Whether this very cluster is up. What an interrupted `up` left is removed; another that is up, or that is not ours, is not touched.
fn is_up(state: &Path, spec: &Spec) -> Result<bool> {
    let namespaces = network::namespaces()?;
    match record(state) {
        Ok(Some(record)) if record.complete && !namespaces.is_empty() && record.spec == *spec => Ok(true),
        Ok(Some(record)) if record.complete && !namespaces.is_empty() => {
            bail!("another lab is up already ({}): `lab down` takes it down", record.spec.version)
        }
        Ok(None) if !namespaces.is_empty() => {
            bail!("network namespaces of a lab are there ({}): `lab down` removes them", namespaces.join(", "))
        }
        Ok(None) if !state.exists() => Ok(false),
        Ok(_) | Err(_) => {
            let _stage = stage("removing what an interrupted lab left");
            down::everything(state).map(|()| false)
        }
    }
}

/// Machines are booted with cgroup v1 controllers; nobody has tried v2 only.
fn refuse_unified_cgroups() -> Result<()> {
    if Path::new("/sys/fs/cgroup/memory").is_dir() {
        return Ok(());
    }
    bail!("this host has cgroup v2 only; the lab's machines need v1 or hybrid (systemd.unified_cgroup_hierarchy=0)")
}

fn certificate_key() -> Result<String> {
    let mut bytes = [0_u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Removes a folder of the state that only `down` may remove.
fn remove_state(state: &Path) -> Result<()> {
    tree::remove(state)
}

/// `ip netns pids`, for `down`.
fn processes_in(namespace: &str) -> Result<Vec<i32>> {
    let text = capture(&mut command("ip", ["netns", "pids", namespace]))?;
    Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_specs_are_refused() {
        assert!(Spec::default().check().is_ok());
        assert!(Spec { control_planes: 0, workers: 1, ..Spec::default() }.check().is_err());
        assert!(Spec { control_planes: 3, workers: 7, ..Spec::default() }.check().is_err());
    }

    #[test]
    fn the_version_it_starts_with_is_in_play() {
        let spec = Spec { upgrades_to: vec![Version::new(36, 3), Version::new(36, 1)], ..Spec::default() };
        assert_eq!(spec.versions_in_play(), [Version::new(36, 1), Version::new(36, 3)]);
    }

    #[test]
    fn a_key_has_the_length_that_kubeadm_wants() {
        assert_eq!(certificate_key().unwrap().len(), 64);
        assert_ne!(certificate_key().unwrap(), certificate_key().unwrap());
    }
}
