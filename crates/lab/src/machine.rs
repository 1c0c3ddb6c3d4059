//! One machine: a systemd-nspawn container with systemd, containerd and kubelet in a network namespace of its own.

mod faults;
mod files;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::command::{cannot_start, capture, command, output, run, tail};
use crate::network::{self, namespace};
use crate::proc::{self, Process};
use crate::tree;

const BOOT: Duration = Duration::from_secs(90);
const POWER_OFF: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);
/// Where a kernel names its boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Mounts an overlay; the first of the lower folders is the uppermost.
pub(crate) fn mount_overlay(lower: &[&Path], upper: &Path, work: &Path, at: &Path) -> Result<()> {
    let lower = lower.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(":");
    let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
    run(command("mount", ["-t", "overlay", "overlay", "-o", &options]).arg(at))
}

/// Mounts a file system in memory, for etcd's data. Real nodes have a disk each; these machines share the host's, and there each fsync
/// waits for whatever any of them has written since: one that unpacks packages would stall etcd on all of them at the same time. It
/// outlives a power cut of the machine, as what the host has cached of a disk would.
fn mount_memory(at: &Path) -> Result<()> {
    run(command("mount", ["-t", "tmpfs", "tmpfs", "-o", "size=1g,mode=0700"]).arg(at))
}

/// What a machine is made of: folders of the cache.
pub(crate) struct Parts<'a> {
    /// Root file systems, uppermost first.
    pub(crate) lower: &'a [&'a Path],
    /// A containerd root with all images.
    pub(crate) store: &'a Path,
    /// What it sees as `/srv/apt`.
    pub(crate) repository: &'a Path,
    /// With an audit policy.
    pub(crate) audit: bool,
    /// [`crate::cluster::Spec::processor`].
    pub(crate) processor: Option<u32>,
}

/// A machine of a lab that is up; it may be switched off.
#[derive(Clone, Debug)]
pub struct Machine {
    index: u8,
    folder: PathBuf,
}

impl Machine {
    pub(crate) fn new(index: u8, state: &Path) -> Self {
        Self { index, folder: state.join(format!("k{index}")) }
    }

    /// Makes its files; it is not started.
    pub(crate) fn make(&self, parts: &Parts<'_>) -> Result<()> {
        for name in ["up", "work", "root", "kubelet", "etcd"] {
            tree::make_public(&self.folder.join(name))?;
        }
        // Content blobs and unpacked layers never change, so machines share them; the databases are each machine's own.
        tree::clone(parts.store, &self.folder.join("containerd"), &|path| path.extension().is_some_and(|e| e == "db"))?;
        crate::command::write(&self.folder.join("lower"), join_lines(parts.lower))?;
        crate::command::write(&self.folder.join("repository"), parts.repository.display().to_string())?;
        self.mount()?;
        files::lay_out(&self.root(), self.index, parts)
    }

    fn mount(&self) -> Result<()> {
        let (root, etcd) = (self.root(), self.folder.join("etcd"));
        let mounted = tree::mounts_below(&self.folder)?;
        if !mounted.contains(&etcd) {
            mount_memory(&etcd)?;
        }
        if mounted.contains(&root) {
            return Ok(());
        }
        let lower = crate::command::read(&self.folder.join("lower"))?;
        let lower: Vec<&Path> = lower.lines().map(Path::new).collect();
        mount_overlay(&lower, &self.folder.join("up"), &self.folder.join("work"), &root)
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// The number of the machine: 1 for `k1`.
    #[must_use]
    pub const fn index(&self) -> u8 {
        self.index
    }

    /// Its host and node name: `k1`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("k{}", self.index)
    }

    /// Its address, `10.10.0.11` for `k1`; reachable from the client's namespace only.
    #[must_use]
    pub fn address(&self) -> String {
        network::address(self.index)
    }

    /// Its init, seen from the host; `None` when it is off.
    fn init(&self) -> Result<Option<i32>> {
        let Ok(text) = fs::read_to_string(self.folder.join("pid")) else { return Ok(None) };
        let Ok(nspawn) = text.trim().parse::<i32>() else { return Ok(None) };
        let all = proc::all()?;
        // A number may have been given to another process since.
        let ours = all.iter().find(|process| process.pid == nspawn && is_machine(process, Some(self.index)));
        Ok(ours
            .and_then(|_| all.iter().find(|process| process.parent == nspawn && !process.zombie))
            .map(|init| init.pid))
    }

    /// Whether it is switched on.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn is_on(&self) -> Result<bool> {
        Ok(self.init()?.is_some())
    }

    fn running(&self) -> Result<i32> {
        self.init()?.with_context(|| format!("machine {} is not running", self.name()))
    }

    /// Switches it on and waits until its containerd is active. No error when it is on already.
    ///
    /// # Errors
    /// It did not boot within 90 s; its console is `console.log` in its folder.
    pub fn start(&self) -> Result<()> {
        if self.init()?.is_none() {
            self.power_on()?;
        }
        let deadline = Instant::now() + BOOT;
        let mut why = String::new();
        loop {
            // While nspawn sets it up, the first of its children is there and gone again: no error yet.
            match self.run(["systemctl", "is-active", "-q", "containerd"]) {
                Ok(said) if said.status.success() => return Ok(()),
                Ok(_) => {}
                Err(error) => why = format!("{error:#}; "),
            }
            if Instant::now() > deadline {
                let console = self.folder.join("console.log");
                let said = fs::read_to_string(&console).unwrap_or_else(|error| error.to_string());
                bail!("machine {} did not boot, see {}: {why}{}", self.name(), console.display(), tail(&said, 3));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Nothing when it is held to so much of a processor.
    pub(crate) fn has_at_most(&self, percent: u32) -> Result<()> {
        let file = files::group_folder(self.index).join(files::QUOTA);
        let said = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if said.trim() != files::quota(percent).to_string() {
            bail!(
                "machine {} is not held to {percent}% of a processor: {} is {}",
                self.name(),
                file.display(),
                said.trim()
            );
        }
        Ok(())
    }

    fn power_on(&self) -> Result<()> {
        // An orderly reboot inside ends nspawn with 133: power it on again. Anything else leaves it off.
        const SUPERVISE: &str =
            r#"while :; do systemd-nspawn "$@" & echo $! >"$0"; wait $!; [ $? = 133 ] || break; done"#;
        self.mount()?;
        let pid = self.folder.join("pid");
        if pid.exists() {
            fs::remove_file(&pid)?;
        }
        let (group, of) = (namespace(self.index), |name: &str| self.folder.join(name).display().to_string());
        let repository = crate::command::read(&self.folder.join("repository"))?;
        let console = fs::File::options().create(true).append(true).open(self.folder.join("console.log"))?;
        // In a session of its own and no child of ours: machines outlive the command that starts them.
        let mut nspawn = command("setsid", ["--fork", "bash", "-c", SUPERVISE]);
        nspawn
            .arg(&pid)
            .args(["-q", "-D", &of("root"), "--boot", "--register=no", "--keep-unit"])
            .args([
                format!("--network-namespace-path=/run/netns/{group}"),
                format!("--machine={group}"),
                format!("--hostname={}", self.name()),
                "--capability=all".to_owned(),
                "--system-call-filter=@keyring bpf perf_event_open pidfd_getfd @mount @module".to_owned(),
                format!("--bind={}:/var/lib/containerd", of("containerd")),
                format!("--bind={}:/var/lib/kubelet", of("kubelet")),
                format!("--bind={}:/var/lib/etcd", of("etcd")),
                format!("--bind-ro={repository}:/srv/apt"),
                "--bind=/dev/kmsg".to_owned(),
                "--console=pipe".to_owned(),
            ])
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "0")
            .stdout(console.try_clone()?)
            .stderr(console);
        let status = nspawn.status().map_err(|error| cannot_start(&nspawn, error))?;
        if !status.success() {
            bail!("cannot start machine {}: {status}", self.name());
        }
        let deadline = Instant::now() + BOOT;
        while self.init()?.is_none() {
            if Instant::now() > deadline {
                bail!("machine {} was not started, see {}", self.name(), of("console.log"));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Power cut: every process of the machine dies at once. It stays off until [`start`](Self::start).
    ///
    /// # Errors
    /// It is off already.
    pub fn crash(&self) -> Result<()> {
        proc::signal(self.running()?, Signal::KILL)?;
        self.wait_until_off()
    }

    /// Orderly power off.
    ///
    /// # Errors
    /// It is off already, or still on after 90 s.
    pub fn stop(&self) -> Result<()> {
        self.running()?;
        let nspawn = crate::command::read(&self.folder.join("pid"))?;
        proc::signal(nspawn.trim().parse().context("the machine's pid file holds no number")?, Signal::TERM)?;
        self.wait_until_off()
    }

    fn wait_until_off(&self) -> Result<()> {
        let deadline = Instant::now() + POWER_OFF;
        loop {
            // The supervisor too: it would take the next start for its own.
            if !proc::all()?.iter().any(|process| is_machine(process, Some(self.index))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("machine {} is still on after {} s", self.name(), POWER_OFF.as_secs());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Pulls its network cable. What happens inside it stays reachable for [`run`](Self::run).
    ///
    /// # Errors
    /// The lab is not up.
    pub fn cut(&self) -> Result<()> {
        network::cable(self.index, "down")
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// The lab is not up.
    pub fn heal(&self) -> Result<()> {
        network::cable(self.index, "up")
    }

    /// A command inside the machine, as root, stdin closed, to be run as the caller likes.
    ///
    /// # Errors
    /// It is off.
    pub fn command<I, S>(&self, argv: I) -> Result<Command>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        let init = self.running()?.to_string();
        let mut command = command("nsenter", ["-t", &init, "-m", "-u", "-i", "-n", "-p", "-r", "-W/", "env", "-i"]);
        command.args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]).args(argv);
        Ok(command)
    }

    /// Runs a command inside the machine to its end, whatever its exit code.
    ///
    /// # Errors
    /// It is off.
    pub fn run<I, S>(&self, argv: I) -> Result<Output>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        output(&mut self.command(argv)?)
    }

    /// Runs a command inside the machine that must succeed, and gives its stdout.
    ///
    /// # Errors
    /// It is off, or the command failed: with its last lines.
    pub fn run_checked<I, S>(&self, argv: I) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        capture(&mut self.command(argv)?).with_context(|| format!("on machine {}", self.name()))
    }

    /// Runs a command inside the machine that must succeed, with this on its stdin.
    ///
    /// # Errors
    /// It is off, or the command failed.
    pub fn feed<I, S>(&self, argv: I, stdin: impl Into<Stdio>) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        capture(self.command(argv)?.stdin(stdin)).with_context(|| format!("on machine {}", self.name()))
    }

    /// Writes a file inside the machine, with its parent folders.
    ///
    /// # Errors
    /// It is off, or the file cannot be written.
    pub fn write_file(&self, path: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        let mut scratch = tempfile::tempfile()?;
        scratch.write_all(bytes.as_ref())?;
        std::io::Seek::rewind(&mut scratch)?;
        self.feed(["sh", "-c", r#"mkdir -p "$(dirname "$1")" && cat >"$1""#, "sh", path], scratch).map(drop)
    }

    /// Reads a file inside the machine.
    ///
    /// # Errors
    /// It is off, or there is no such file.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        let output = self.run(["cat", path])?;
        if !output.status.success() {
            bail!("on machine {}: {}", self.name(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output.stdout)
    }

    /// Reads a file of the machine from outside, by a path without symbolic links; none when it is not there, or the machine is off. Runs no
    /// command in it: that would be in the way of a shutdown (see [`reboot`](Self::reboot)).
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn peek(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let Some(init) = self.init()? else { return Ok(None) };
        // One that is about to go may be gone by now.
        Ok(fs::read(format!("/proc/{init}/root{path}")).ok())
    }

    /// The kernel's name of this boot: a new one after each start, as the kubelet reports it in `nodeInfo.bootID`. A pod
    /// on the machine sees the host's instead.
    ///
    /// # Errors
    /// It is off.
    pub fn boot_id(&self) -> Result<String> {
        Ok(self.run_checked(["cat", BOOT_ID])?.trim().to_owned())
    }

    /// The same from outside, as [`peek`](Self::peek) does; none, too, while nspawn is only just setting it up: it shows the host's until then.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn peek_boot_id(&self) -> Result<Option<String>> {
        let of_host = fs::read(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?;
        let seen = self.peek(BOOT_ID)?.filter(|seen| !seen.is_empty() && *seen != of_host);
        Ok(seen.map(|seen| String::from_utf8_lossy(&seen).trim().to_owned()))
    }

    /// Stops all processes of this name on the machine (SIGSTOP), in containers too: `etcd`, `kube-apiserver`, `kubelet`.
    ///
    /// # Errors
    /// It is off, or there is no such process.
    pub fn pause(&self, process: &str) -> Result<()> {
        self.signal(process, Signal::STOP)
    }

    /// Lets paused processes go on (SIGCONT).
    ///
    /// # Errors
    /// It is off, or there is no such process.
    pub fn resume(&self, process: &str) -> Result<()> {
        self.signal(process, Signal::CONT)
    }

    /// Kills all processes of this name on the machine (SIGKILL).
    ///
    /// # Errors
    /// It is off, or there is no such process.
    pub fn kill(&self, process: &str) -> Result<()> {
        self.signal(process, Signal::KILL)
    }

    fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        // The kernel keeps 15 bytes of a name.
        let kept = name.get(..15).unwrap_or(name);
        let inside = proc::below(&proc::all()?, self.running()?);
        let found: Vec<&Process> = inside.iter().filter(|process| process.name == kept && !process.zombie).collect();
        if found.is_empty() {
            bail!("no process `{name}` on machine {}", self.name());
        }
        found.iter().try_for_each(|process| proc::signal(process.pid, signal))
    }
}

fn join_lines(folders: &[&Path]) -> String {
    folders.iter().map(|folder| format!("{}\n", folder.display())).collect()
}

/// Whether a process is the container manager (or its supervisor) of a machine, or of any.
pub(crate) fn is_machine(process: &Process, index: Option<u8>) -> bool {
    if !["systemd-nspawn", "bash", "setsid"].contains(&process.name.as_str()) || process.zombie {
        return false;
    }
    let arguments = process.arguments();
    let names = |machine: u8| arguments.contains(&format!("--machine={}", namespace(machine)));
    index.map_or_else(|| (1..=network::MOST_MACHINES).any(names), names)
}
