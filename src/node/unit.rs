//! The systemd unit on the host that does the work. It survives the pod, the kubelet and containerd; its name is the lock on the host.

use super::command::{Deadline, Echo, PATH, ToolError, ask, run};
use super::enter::Container;
use super::manifests::hex;
use super::mark::Mark;
use super::report::{Outcome, Report};
use super::{RESULT, UNIT, run as work};
use crate::cli::node::Upgrade;
use crate::clock::Clock;
use crate::exit::ExitStatus;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Where the program lies on the host: `/run` is often mounted noexec.
const BIN: &str = "/var/lib/quorate/bin";
/// How long the unit may take beyond the step's own deadline before systemd ends it.
const RUNTIME_MARGIN: Duration = Duration::from_secs(60);
/// How long the pod waits beyond that.
const FOLLOW_MARGIN: Duration = Duration::from_secs(120);

/// How the unit is described while it runs, by which an attaching pod knows its target.
pub(super) fn description(order: &Upgrade) -> String {
    format!("quorate node step to {}", order.to)
}

/// What went wrong around the unit.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnitError {
    #[error("{0}")]
    Tool(#[from] ToolError),
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("another node step runs on this host (`{running}`), this one is `{wanted}`: wait for its end")]
    Other { running: String, wanted: String },
    #[error("the unit {UNIT} still runs after {0} s; a further run attaches to it")]
    StillRuns(u64),
    #[error("the unit {UNIT} ended without a report ({0}); a further run goes on from the host's state")]
    NoReport(String),
}

/// What systemd knows of the unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// `active`, `activating`, `deactivating`, `failed`, `inactive`.
    state: String,
    description: String,
    invocation: String,
    result: String,
}

impl Seen {
    /// The description of the unit while it has not ended.
    pub(super) fn running(&self) -> Option<String> {
        self.runs().then(|| self.description.clone())
    }

    /// Whether it has not ended.
    pub(super) fn runs(&self) -> bool {
        !matches!(self.state.as_str(), "inactive" | "failed")
    }
}

/// Asks systemd for the unit.
pub(super) async fn look(deadline: Deadline) -> Result<Seen, ToolError> {
    let properties = "--property=ActiveState,Description,InvocationID,Result";
    let said = ask("systemctl", &["show", UNIT, properties], deadline).await?;
    Ok(seen(&said.stdout))
}

pub(super) fn seen(text: &str) -> Seen {
    let of: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let value = |key: &str| of.get(key).map(|value| (*value).to_owned()).unwrap_or_default();
    Seen {
        state: value("ActiveState"),
        description: value("Description"),
        invocation: value("InvocationID"),
        result: value("Result"),
    }
}

/// Starts the unit, or attaches to the one that runs, and waits for its end and report. Too late to start it is a report too.
pub(super) async fn start_or_attach(
    order: &Upgrade,
    container: &mut Container,
    clock: Clock,
) -> Result<Report, UnitError> {
    let deadline = Deadline::after(order.timeout + RUNTIME_MARGIN + FOLLOW_MARGIN);
    let mut attached = true;
    let mut found = look(deadline).await?;
    if !found.runs() {
        // The unit asks again: this process may be stopped between here and there.
        let mark = Mark::new(Path::new("/"), order.to);
        if let Some(refusal) = work::too_late(order, clock.now(), &mark) {
            return Ok(refusal);
        }
        let program = match install(&mut container.program) {
            Ok(program) => program,
            // Nothing runs and nothing was begun now: such as a disk that is full.
            Err(error) => return Ok(work::not_begun(order, &mark, Outcome::Unknown, &error.to_string())),
        };
        // A report is never a decision; an old one would only be taken for the new one's.
        remove(Path::new(RESULT))?;
        // A unit that failed keeps its name until then.
        if let Err(error) = ask("systemctl", &["reset-failed", UNIT], deadline).await {
            tracing::debug!(%error, "There is no unit to be reset");
        }
        match start(&program, order, deadline).await {
            Ok(()) => attached = false,
            // Another pod was faster: the name is taken.
            Err(error) => {
                if !look(deadline).await?.runs() {
                    return Err(error.into());
                }
            }
        }
        found = look(deadline).await?;
    }
    let wanted = description(order);
    if found.runs() && found.description != wanted {
        return Err(UnitError::Other { running: found.description, wanted });
    }
    crate::output::progress(if attached { "attached to the unit that runs" } else { "the unit is started" });
    let mut report = follow(found, deadline, order).await?;
    report.attached = attached;
    Ok(report)
}

async fn start(program: &Path, order: &Upgrade, deadline: Deadline) -> Result<(), ToolError> {
    let runtime = format!("--property=RuntimeMaxSec={}", (order.timeout + RUNTIME_MARGIN).as_secs());
    let description = format!("--description={}", description(order));
    let path = format!("--setenv=PATH={PATH}");
    let program = program.to_string_lossy();
    let unit = format!("--unit={UNIT}");
    // Also after a SIGKILL and when the host reboots: without its apiserver a kubelet of kubeadm hears of no pod that could mend it.
    let put_back = format!("--property=ExecStopPost={program} node put-back --to={}", order.to);
    // Its own words for "no" and "not yet" leave no failed unit behind.
    let ends = format!("--property=SuccessExitStatus={} {}", ExitStatus::Unknown.code(), ExitStatus::Midway.code());
    let mut args = vec![unit.as_str(), &description, &runtime, &path, &put_back, &ends];
    args.extend(["--quiet", "--no-ask-password", "--service-type=exec", "--property=TimeoutStopSec=20"]);
    args.extend(["--", program.as_ref(), "node", "run"]);
    let order = order.to_args();
    args.extend(order.iter().map(String::as_str));
    run("systemd-run", &args, deadline.within(Duration::from_secs(60)), Echo::Lines).await?;
    Ok(())
}

/// Waits for the end of the unit, its journal passed on meanwhile.
async fn follow(mut found: Seen, deadline: Deadline, order: &Upgrade) -> Result<Report, UnitError> {
    let mut invocation = found.invocation.clone();
    let mut journal = Journal::follow(&invocation);
    while found.runs() {
        if deadline.passed() {
            return Err(UnitError::StillRuns(order.timeout.as_secs()));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        match look(deadline).await {
            Ok(now) => found = now,
            // systemd reloads, or the host is short of something: the deadline ends it.
            Err(error) => tracing::warn!(%error, "systemd does not answer"),
        }
        if invocation.is_empty() && !found.invocation.is_empty() {
            invocation.clone_from(&found.invocation);
            journal = Journal::follow(&invocation);
        }
    }
    journal.end().await;
    let why = if found.result.is_empty() { "unknown".to_owned() } else { format!("systemd: {}", found.result) };
    let report = match std::fs::read(RESULT) {
        Ok(bytes) => {
            serde_json::from_slice::<Report>(&bytes).map_err(|error| UnitError::NoReport(error.to_string()))?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(UnitError::NoReport(why)),
        Err(source) => return Err(UnitError::File { path: RESULT.into(), source }),
    };
    if !invocation.is_empty() && report.invocation != invocation {
        return Err(UnitError::NoReport(why));
    }
    Ok(report)
}

/// The unit's journal, passed on to standard error.
struct Journal(Option<tokio::process::Child>);

impl Journal {
    fn follow(invocation: &str) -> Self {
        if invocation.is_empty() {
            return Self(None);
        }
        let child = tokio::process::Command::new("journalctl")
            .env("PATH", PATH)
            .args(["--quiet", "--no-pager", "--output=cat", "--lines=all", "--follow"])
            .arg(format!("_SYSTEMD_INVOCATION_ID={invocation}"))
            .stdin(Stdio::null())
            .stdout(Stdio::from(io::stderr()))
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        match child {
            Ok(child) => Self(Some(child)),
            Err(error) => {
                crate::output::progress(&format!("the unit's journal cannot be followed: {error}"));
                Self(None)
            }
        }
    }

    /// Gives it a moment for the last lines.
    async fn end(self) {
        let Some(mut child) = self.0 else { return };
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Err(error) = child.kill().await {
            tracing::debug!(%error, "journalctl is gone");
        }
    }
}

/// Copies this program to the host under the name of its content, and removes what was left of others.
fn install(program: &mut File) -> Result<PathBuf, UnitError> {
    install_at(Path::new(BIN), program)
}

fn install_at(bin: &Path, program: &mut File) -> Result<PathBuf, UnitError> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |source| UnitError::File { path, source }
    };
    std::fs::create_dir_all(bin).map_err(wrong(bin))?;
    let name = format!("quorate-{}", digest(program).map_err(wrong(Path::new("/proc/self/exe")))?);
    let path = bin.join(&name);
    let intact = File::open(&path).and_then(|mut file| digest(&mut file)).is_ok_and(|it| name.ends_with(&it));
    if !intact {
        let new = bin.join(format!("{name}.new"));
        let copied = File::create(&new).and_then(|mut file| {
            program.rewind()?;
            io::copy(program, &mut file)?;
            file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
            file.sync_all()
        });
        if let Err(source) = copied {
            // Half of it takes the last room of a disk that others write to.
            remove(&new)?;
            return Err(UnitError::File { path: new, source });
        }
        std::fs::rename(&new, &path).map_err(wrong(&path))?;
    }
    for entry in std::fs::read_dir(bin).map_err(wrong(bin))? {
        let entry = entry.map_err(wrong(bin))?;
        let other = entry.file_name();
        if other.to_string_lossy().starts_with("quorate-") && other.to_string_lossy() != name.as_str() {
            remove(&entry.path())?;
        }
    }
    Ok(path)
}

fn digest(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        match buffer.get(..read) {
            None | Some([]) => return Ok(hex(&sum.finalize())),
            Some(bytes) => sum.update(bytes),
        }
    }
}

fn remove(path: &Path) -> Result<(), UnitError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(UnitError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_says_is_read() {
        let runs =
            seen("ActiveState=active\nDescription=quorate node step to v1.36.3\nInvocationID=ab\nResult=success\n");
        assert!(runs.runs());
        assert_eq!(runs.description, "quorate node step to v1.36.3");
        assert!(!seen("ActiveState=inactive\n").runs());
        assert!(!seen("ActiveState=failed\nResult=timeout\n").runs());
        // Nothing understood is not "ended".
        assert!(seen("").runs());
    }

    #[test]
    fn the_program_lies_on_the_host_once_under_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        let source = folder.path().join("program");
        for content in ["one", "two", "two"] {
            std::fs::write(&source, content).unwrap();
            let path = install_at(&bin, &mut File::open(&source).unwrap()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
            assert_eq!(std::fs::read_dir(&bin).unwrap().count(), 1);
        }
        // A copy that a crash cut short is not used.
        let path = install_at(&bin, &mut File::open(&source).unwrap()).unwrap();
        std::fs::write(&path, "tw").unwrap();
        install_at(&bin, &mut File::open(&source).unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
    }
}
