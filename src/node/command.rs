//! One tool of the host, with a deadline: what it says is passed on line by line and its last lines are kept.

use crate::output;
use std::collections::VecDeque;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::time::Instant;

/// How many of a tool's last lines are kept.
const LAST: usize = 10;
/// How long a tool may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);

/// Where a host keeps its tools.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Between two looks.
const POLL: Duration = Duration::from_millis(500);

/// The end of the time that is left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// `limit`, or what is left if that is less.
    pub(crate) fn within(self, limit: Duration) -> Duration {
        limit.min(self.0.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn passed(self) -> bool {
        Instant::now() >= self.0
    }

    /// Waits until it has been so for `stable` without a break.
    ///
    /// # Errors
    /// When the time is over: why it was not so at last.
    pub(super) async fn steady(
        self,
        stable: Duration,
        check: impl AsyncFn() -> Result<(), String>,
    ) -> Result<(), String> {
        let mut since: Option<Instant> = None;
        loop {
            match check().await {
                Ok(()) if since.get_or_insert_with(Instant::now).elapsed() >= stable => return Ok(()),
                Ok(()) => {}
                Err(why) if self.passed() => return Err(why),
                Err(_) => since = None,
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// What a tool said when it ended well.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) stdout: String,
}

/// Why a tool did not end well.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ToolError {
    #[error("`{tool}` cannot be started: {why}")]
    Start { tool: String, why: String },
    #[error("`{tool}` failed ({status})")]
    Failed { tool: String, status: String, last: Vec<String> },
    #[error("`{tool}` was ended after {seconds} s without an end of its own")]
    TimedOut { tool: String, seconds: u64, last: Vec<String> },
}

impl ToolError {
    /// The last lines of the tool, oldest first.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        match self {
            Self::Start { .. } => Vec::new(),
            Self::Failed { last, .. } | Self::TimedOut { last, .. } => last.clone(),
        }
    }
}

/// Whether a tool's lines are passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    /// Every line goes to standard error, which is the journal.
    Lines,
    /// A question: only its answer matters.
    Nothing,
}

/// Asks a question of the host: a tool that changes nothing and whose answer is short.
pub(super) async fn ask(program: &str, args: &[&str], deadline: Deadline) -> Result<Said, ToolError> {
    run(program, args, deadline.within(Duration::from_secs(60)), Echo::Nothing).await
}

/// Runs a tool to its end, or ends it and everything it started when `limit` has passed.
pub(crate) async fn run(program: &str, args: &[&str], limit: Duration, echo: Echo) -> Result<Said, ToolError> {
    run_at(0, program, args, limit, echo).await
}

/// The same with everybody else before it, for what takes a core for seconds.
pub(super) async fn run_last(program: &str, args: &[&str], limit: Duration, echo: Echo) -> Result<Said, ToolError> {
    run_at(10, program, args, limit, echo).await
}

async fn run_at(nice: i32, program: &str, args: &[&str], limit: Duration, echo: Echo) -> Result<Said, ToolError> {
    let tool = std::iter::once(program).chain(args.iter().copied().take(2)).collect::<Vec<_>>().join(" ");
    if echo == Echo::Lines {
        output::progress(&format!("$ {program} {}", args.join(" ")));
    }
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The host's tools, not those of the image that this process may have come from.
    command.env("PATH", PATH);
    // English and no questions, whatever the host's settings; a group of its own, so that the deadline ends all of it.
    command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| ToolError::Start { tool: tool.clone(), why: error.to_string() })?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    // Never to more than this process has itself.
    if rustix::process::getpriority_process(None).is_ok_and(|own| own < nice)
        && let Err(error) = rustix::process::setpriority_process(group, nice)
    {
        tracing::debug!(%error, "The tool runs at the usual priority");
    }

    let heard = Heard::default();
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let reading = async { futures::join!(heard.read(out, true, echo), heard.read(err, false, echo)) };
    let ending = async {
        futures::pin_mut!(reading);
        tokio::select! {
            status = child.wait() => {
                // A daemon that the tool started may keep the pipes open for ever.
                if tokio::time::timeout(Duration::from_secs(1), &mut reading).await.is_err() {
                    tracing::debug!("A tool's pipes outlived it");
                }
                status
            }
            _ = &mut reading => child.wait().await,
        }
    };
    let ended = tokio::time::timeout(limit, ending).await;
    match ended {
        Ok(Ok(status)) if status.success() => Ok(Said { stdout: heard.stdout.into_inner() }),
        Ok(Ok(status)) => Err(ToolError::Failed { tool, status: status.to_string(), last: heard.last() }),
        Ok(Err(error)) => Err(ToolError::Failed { tool, status: error.to_string(), last: heard.last() }),
        Err(_) => {
            for signal in [rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
                if let Some(group) = group
                    && let Err(error) = rustix::process::kill_process_group(group, signal)
                {
                    tracing::debug!(%error, "The tool is gone");
                }
                if tokio::time::timeout(GRACE, child.wait()).await.is_ok() {
                    break;
                }
            }
            Err(ToolError::TimedOut { tool, seconds: limit.as_secs(), last: heard.last() })
        }
    }
}

#[derive(Default)]
struct Heard {
    stdout: std::cell::RefCell<String>,
    last: std::cell::RefCell<VecDeque<String>>,
}

impl Heard {
    async fn read<R: AsyncRead + Unpin>(&self, pipe: Option<R>, is_stdout: bool, echo: Echo) {
        let Some(pipe) = pipe else { return };
        let mut pipe = BufReader::new(pipe);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            match pipe.read_until(b'\n', &mut bytes).await {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "A tool's pipe broke");
                    return;
                }
            }
            let line = String::from_utf8_lossy(&bytes);
            let line = line.trim_end();
            if echo == Echo::Lines {
                output::progress(line);
            }
            if is_stdout {
                let mut stdout = self.stdout.borrow_mut();
                stdout.push_str(line);
                stdout.push('\n');
            }
            if !line.is_empty() {
                let mut last = self.last.borrow_mut();
                if last.len() == LAST {
                    last.pop_front();
                }
                last.push_back(line.to_owned());
            }
        }
    }

    fn last(&self) -> Vec<String> {
        self.last.borrow().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_failure_carries_the_last_lines() {
        let error = wait(run("sh", &["-c", "seq 30; echo bad >&2; exit 3"], Duration::from_secs(10), Echo::Nothing))
            .unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        assert_eq!(error.last_lines().len(), LAST);
        assert!(error.last_lines().contains(&"bad".to_owned()), "{error:?}");
    }

    #[test]
    fn a_tool_that_runs_last_has_its_children_do_so_too() {
        // Only what it starts once its priority is set: apt takes longer than that to come to dpkg.
        let script = "sleep 1; sh -c 'nice'";
        let said = wait(run_last("sh", &["-c", script], Duration::from_secs(20), Echo::Nothing)).unwrap();
        let usual = wait(run("nice", &[], Duration::from_secs(20), Echo::Nothing)).unwrap();
        let number = |said: &Said| said.stdout.trim().parse::<i32>().unwrap();
        assert_eq!(number(&said), 10.max(number(&usual)), "{said:?}");
    }

    #[test]
    fn a_tool_that_hangs_is_ended_with_all_that_it_started() {
        let start = Instant::now();
        let error = wait(run("sh", &["-c", "sleep 4242 & echo $!; wait"], Duration::from_millis(300), Echo::Nothing))
            .unwrap_err();
        assert!(matches!(error, ToolError::TimedOut { .. }), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(4));
        let child = error.last_lines().first().cloned().unwrap();
        // The group's orphan may need a moment to be reaped.
        let gone = (0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            std::fs::read_to_string(format!("/proc/{child}/stat")).map_or(true, |stat| stat.contains(" Z "))
        });
        assert!(gone, "process {child} is still there");
    }

    #[test]
    fn a_tool_that_is_not_there_is_named() {
        let error = wait(run("no-such-tool", &[], Duration::from_secs(1), Echo::Nothing)).unwrap_err();
        assert!(error.to_string().contains("no-such-tool"), "{error}");
    }
}
