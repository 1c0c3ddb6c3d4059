//! Takes this node's apiserver out of rotation while its etcd is away: another process of this program does it on the host, and ends with the
//! pipe to it, however this one ends.

use crate::cli::node::HandOver;
use crate::node::HandOverReport;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// How long it may take to be in force: longer than it takes itself.
const IN_FORCE: Duration = Duration::from_secs(90);
/// How long it may take to give back: longer than it waits for its apiserver.
const BACK: Duration = Duration::from_secs(45);

/// The hand-over in force.
#[derive(Debug)]
pub(super) struct Aside {
    child: Child,
    input: ChildStdin,
}

/// What came of it.
pub(super) enum Stepped {
    /// New connections go to peers.
    Aside(Aside),
    /// This host cannot do it, and why: clients wait for as long as the member is away.
    Without(String),
    /// It must not be gone on, and why: nobody would take over, or that is not known.
    Not(String),
}

/// Starts it and waits until it is in force.
pub(super) async fn step(order: &HandOver) -> Stepped {
    let mut command = Command::new("/proc/self/exe");
    command.args(["node", "hand-over"]).args(order.to_args());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Stepped::Not(format!("it cannot be started: {error}")),
    };
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Stepped::Not("it has no pipes".to_owned());
    };
    let mut line = String::new();
    let read = tokio::time::timeout(IN_FORCE, BufReader::new(output).read_line(&mut line)).await;
    let report = match (read, serde_json::from_str::<HandOverReport>(&line)) {
        (Ok(Ok(_)), Ok(report)) => report,
        (Ok(Ok(_)), Err(_)) => return Stepped::Not(format!("it said `{}`", line.trim())),
        (Ok(Err(error)), _) => return Stepped::Not(error.to_string()),
        (Err(_), _) => return Stepped::Not(format!("it said nothing in {} s", IN_FORCE.as_secs())),
    };
    if report.on {
        return Stepped::Aside(Aside { child, input });
    }
    drop(input);
    match tokio::time::timeout(BACK, child.wait()).await {
        Ok(Ok(status)) if status.success() => Stepped::Without(report.because),
        Ok(Ok(_)) | Ok(Err(_)) | Err(_) => Stepped::Not(report.because),
    }
}

impl Aside {
    /// Gives the connections back, once the apiserver is ready again; what kept that from being done, in words.
    pub(super) async fn back(self) -> Result<(), String> {
        let Self { mut child, input } = self;
        drop(input);
        match tokio::time::timeout(BACK, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(status.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it did not end in {} s", BACK.as_secs())),
        }
    }
}
