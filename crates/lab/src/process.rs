//! Real components as plain child processes that can be killed, stopped and frozen, and that never outlive the test.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(25);

/// Looks at a condition until it holds, it never will, or `limit` has passed.
///
/// `look` answers `Break(value)` when it holds, `Continue(why)` for not yet, and an error for never.
/// The error after the deadline carries the last reason.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<ControlFlow<T, Error>>) -> Result<T> {
    let start = Instant::now();
    loop {
        match look().with_context(|| format!("wait until {what}"))? {
            ControlFlow::Break(value) => return Ok(value),
            ControlFlow::Continue(why) if start.elapsed() >= limit => {
                return Err(why.context(format!("not within {} s: {what}", limit.as_secs())));
            }
            ControlFlow::Continue(_) => thread::sleep(POLL),
        }
    }
}

/// Starts every process from one thread that lives as long as this program.
///
/// The kernel sends the parent-death signal when the *thread* that started the child ends, and each Rust test has a
/// thread of its own: a component shared by several tests would die with the first.
static STARTER: LazyLock<mpsc::Sender<(Command, mpsc::Sender<std::io::Result<Child>>)>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<(Command, mpsc::Sender<std::io::Result<Child>>)>();
    thread::spawn(move || {
        for (mut command, answer) in receiver {
            // Nobody waits for the answer only if that thread is gone; the child then dies with its handle's owner.
            if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                drop(child.kill());
                drop(child.wait());
            }
        }
    });
    sender
});

/// One real component: how to start it, and the child while it runs.
///
/// Dropping kills it. When this program is killed, the kernel kills it (`setpriv --pdeathsig`).
#[derive(Debug)]
pub struct Process {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Process {
    /// Describes a process; [`start`](Self::start) starts it. Both outputs are appended to `log`.
    pub fn new(name: impl Into<String>, program: PathBuf, args: Vec<String>, log: PathBuf) -> Self {
        Self { name: name.into(), program, args, log, child: Mutex::new(None) }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it with the arguments it always has. Waits for nothing: readiness is for the caller to see.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn start(&self) -> Result<()> {
        let mut slot = self.child();
        if let Some(child) = slot.as_mut()
            && child.try_wait()?.is_none()
        {
            bail!("{} runs already", self.name);
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        let mut command = Command::new("setpriv");
        command
            // The shell refuses when this program died before the signal was set: then nobody would ever send it.
            .args(["--pdeathsig", "KILL", "--", "sh", "-c", r#"[ "$PPID" = "$0" ] && exec "$@""#])
            .arg(std::process::id().to_string())
            .arg(&self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let (sender, receiver) = mpsc::channel();
        STARTER.send((command, sender)).map_err(|_gone| anyhow!("the starting thread is gone"))?;
        let child = receiver
            .recv()
            .context("the starting thread is gone")?
            .with_context(|| format!("start {} (needs setpriv of util-linux)", self.name))?;
        *slot = Some(child);
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let mut slot = self.child();
        let child = slot.as_mut().with_context(|| format!("{} does not run", self.name))?;
        if let Some(status) = child.try_wait()? {
            bail!("{} has ended: {status}", self.name);
        }
        kill_process(Pid::from_child(child), signal).with_context(|| format!("send {signal:?} to {}", self.name))
    }

    /// SIGKILL, as a crash of the process. Gone when this returns; nothing happens if it was gone before.
    pub fn kill(&self) -> Result<()> {
        let mut slot = self.child();
        if let Some(mut child) = slot.take() {
            child.kill().with_context(|| format!("kill {}", self.name))?;
            child.wait().with_context(|| format!("wait for the end of {}", self.name))?;
        }
        Ok(())
    }

    /// SIGTERM, an orderly stop. Gone when this returns.
    ///
    /// # Errors
    /// When it does not run, or has not ended after `limit` (it then still runs).
    pub fn stop(&self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let status = until(&format!("{} has ended", self.name), limit, || {
            let mut slot = self.child();
            let child = slot.as_mut().context("somebody else took it")?;
            Ok(match child.try_wait()? {
                Some(status) => ControlFlow::Break(status),
                None => ControlFlow::Continue(anyhow!("it still runs after SIGTERM")),
            })
        })?;
        self.child().take();
        Ok(status)
    }

    /// SIGSTOP: the process keeps its sockets and answers nothing. Frozen when this returns.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        until(&format!("{} is frozen", self.name), Duration::from_secs(5), || {
            let pid = self.pid().with_context(|| format!("{} has ended", self.name))?;
            Ok(match state(pid)? {
                Some('T') => ControlFlow::Break(()),
                other => ControlFlow::Continue(anyhow!("its state is {other:?}")),
            })
        })
    }

    /// SIGCONT after [`pause`](Self::pause).
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Kills it if it still runs and starts it again, with the same arguments and data. Waits for nothing.
    pub fn restart(&self) -> Result<()> {
        self.kill()?;
        self.start()
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// `Ok` while it runs (frozen counts as running).
    ///
    /// # Errors
    /// When it was not started, or ended by itself: with its exit status and the last lines of its log.
    pub fn running(&self) -> Result<()> {
        let ended = match self.child().as_mut() {
            None => bail!("{} does not run", self.name),
            Some(child) => child.try_wait()?,
        };
        match ended {
            None => Ok(()),
            Some(status) => {
                bail!("{} has ended, {status}; end of {}:\n{}", self.name, self.log.display(), tail(&self.log))
            }
        }
    }

    /// Where both outputs of every start went.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and SIGKILL of an own child does not fail.
        drop(self.kill());
    }
}

/// The state letter of a process in /proc; `None` when there is no such process.
fn state(pid: u32) -> Result<Option<char>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("read the state of a process"),
    };
    // The name before it may hold spaces and parentheses: the state follows the last one.
    Ok(stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next()))
}

/// The last lines of a log, at most 2 KiB, for an error message.
pub(crate) fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(2048)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(cannot be read: {error})"),
    }
}
