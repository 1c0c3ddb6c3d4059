//! Keeps the hand-over rule in force while this process lives, and not longer: an nft process is fed a refresh every five seconds,
//! or when another peer is ready; without it the rule's elements time out, and with an owner the whole table goes away with the process.

use super::command::{Deadline, PATH, ToolError, ask};
use super::conntrack::Over;
use super::nft::Target;
use super::probe::Probe;
use crate::output;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How often the rule is refreshed; a third of what it outlives.
const REFRESH: Duration = Duration::from_secs(5);
/// How often peers are asked: to one that has died new connections go until then.
const ASK: Duration = Duration::from_secs(1);
/// How often what is over is forgotten.
const FORGET: Duration = Duration::from_millis(100);
/// How soon that is tried again when it failed.
const FORGET_AGAIN: Duration = Duration::from_secs(2);
/// How long a first peer may take to be ready.
const FIRST_PEER: Duration = Duration::from_secs(30);

/// The rule in force.
#[derive(Debug)]
pub(super) struct HandOver {
    /// What takes it away: an owner and a timeout, or a timeout alone.
    pub(super) relies_on: &'static str,
    stop: oneshot::Sender<()>,
    keeper: JoinHandle<()>,
}

/// Why the rule is not in force.
#[derive(Debug, thiserror::Error)]
pub(super) enum Absent {
    /// The host cannot do it; the step goes without.
    #[error("{0}")]
    Impossible(String),
    /// Nobody would take over: the step must not take this apiserver away either.
    #[error("no peer is ready to take over: {0}")]
    NoPeer(String),
}

/// Whether it could be done: the peers that are ready. Nothing is changed yet.
pub(super) async fn possible(
    target: &Target,
    peers: &[IpAddr],
    probe: &Probe,
    deadline: Deadline,
) -> Result<Vec<IpAddr>, Absent> {
    let ready = first_ready(peers, target.local.port(), probe, deadline).await?;
    ask("nft", &["--version"], deadline).await.map_err(|error| Absent::Impossible(error.to_string()))?;
    Ok(ready)
}

impl HandOver {
    /// Puts the rule in force, first for the peers that are ready, and keeps it there until [`HandOver::stop`].
    pub(super) async fn start(
        target: Target,
        peers: Vec<IpAddr>,
        ready: Vec<IpAddr>,
        probe: Probe,
        deadline: Deadline,
    ) -> Result<Self, Absent> {
        // Or what is in force below would be another's.
        ask("nft", &[&target.clear()], deadline).await.map_err(|error| Absent::Impossible(said(&error)))?;
        let mut why = String::new();
        for (owned, relies_on) in [(true, "owner and timeout"), (false, "timeout")] {
            let mut nft = Nft::start().map_err(|error| Absent::Impossible(format!("nft: {error}")))?;
            nft.say(&target.setup(owned)).await.map_err(Absent::Impossible)?;
            nft.say(&target.refresh(&ready)).await.map_err(Absent::Impossible)?;
            match in_force(&target, deadline).await {
                Ok(()) => {
                    let (stop, stopped) = oneshot::channel();
                    let forgetting = forget(target.local);
                    let keeping = keep(nft, target, peers, ready, probe, stopped);
                    let keeper = tokio::spawn(async {
                        tokio::select! {
                            () = keeping => {}
                            never = forgetting => match never {},
                        }
                    });
                    return Ok(Self { relies_on, stop, keeper });
                }
                Err(error) => {
                    why = error;
                    nft.end().await;
                }
            }
        }
        Err(Absent::Impossible(why))
    }

    /// Takes the rule away. Connections that were handed over go on with the peer until they end.
    pub(super) async fn stop(self) {
        if self.stop.send(()).is_err() {
            tracing::debug!("The hand-over had ended before");
        }
        if tokio::time::timeout(Duration::from_secs(10), self.keeper).await.is_err() {
            output::progress("hand-over: its keeper did not end; the rule times out by itself");
        }
    }
}

/// Waits until at least one peer is ready.
async fn first_ready(peers: &[IpAddr], port: u16, probe: &Probe, deadline: Deadline) -> Result<Vec<IpAddr>, Absent> {
    let until = Deadline::after(deadline.within(FIRST_PEER));
    loop {
        let (ready, said) = ask_peers(peers, port, probe).await;
        if !ready.is_empty() {
            return Ok(ready);
        }
        if until.passed() {
            return Err(Absent::NoPeer(said.join("; ")));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Asks all peers at once: who is ready, and what the others said.
pub(super) async fn ask_peers(peers: &[IpAddr], port: u16, probe: &Probe) -> (Vec<IpAddr>, Vec<String>) {
    let asked = peers.iter().map(|peer| async move { (*peer, probe.ready(SocketAddr::new(*peer, port)).await) });
    let (mut ready, mut said) = (Vec::new(), Vec::new());
    for (peer, answer) in futures::future::join_all(asked).await {
        match answer {
            Ok(()) => ready.push(peer),
            Err(error) => said.push(format!("{peer}: {error}")),
        }
    }
    (ready, said)
}

/// What nft says first is what is wrong.
fn said(error: &ToolError) -> String {
    error.last_lines().into_iter().next().unwrap_or_else(|| error.to_string())
}

/// Whether the kernel has this node's address in the set: nft reports mistakes without ending.
async fn in_force(target: &Target, deadline: Deadline) -> Result<(), String> {
    let until = Deadline::after(deadline.within(Duration::from_secs(3)));
    let address = format!("{} . {}", target.local.ip(), target.local.port());
    loop {
        let answer = ask("nft", &target.question(), deadline).await;
        let why = match answer {
            Ok(said) if said.stdout.contains(&address) => return Ok(()),
            Ok(_) => "nft took the rule and the kernel does not show it".to_owned(),
            Err(error) => said(&error),
        };
        if until.passed() {
            return Err(why);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Has connections from outside forgotten once they are over; never ends. Only a help: what keeps it from that is told once, and tried again.
async fn forget(own: SocketAddr) -> Infallible {
    let mut told = false;
    loop {
        let Err(why) = forget_until_wrong(own).await;
        if !told {
            output::progress(&format!(
                "hand-over: a new connection from the port of one that the apiserver has reset may be refused: {why}"
            ));
            told = true;
        }
        tokio::time::sleep(FORGET_AGAIN).await;
    }
}

async fn forget_until_wrong(own: SocketAddr) -> Result<Infallible, String> {
    let walked = tokio::task::spawn_blocking(move || Over::new(own)).await;
    let mut over = walked.map_err(|error| error.to_string())??;
    loop {
        over.forget()?;
        tokio::time::sleep(FORGET).await;
    }
}

/// Refreshes until told to stop. When nft is gone the rule is too, or will be in seconds: fail open.
async fn keep(
    mut nft: Nft,
    target: Target,
    peers: Vec<IpAddr>,
    mut ready: Vec<IpAddr>,
    probe: Probe,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut next = Instant::now() + REFRESH;
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            () = tokio::time::sleep(ASK) => {}
        }
        let (now_ready, said) = ask_peers(&peers, target.local.port(), &probe).await;
        if now_ready != ready {
            output::progress(&format!("hand-over: now to {now_ready:?} {}", said.join("; ")));
            ready = now_ready;
        } else if Instant::now() < next {
            continue;
        }
        next = Instant::now() + REFRESH;
        if let Err(error) = nft.say(&target.refresh(&ready)).await {
            output::progress(&format!("hand-over: lost, {error}"));
            return;
        }
    }
    if let Err(error) = nft.say(&target.remove()).await {
        output::progress(&format!("hand-over: cannot be taken back, it times out: {error}"));
    }
    nft.end().await;
}

/// An nft process that takes one transaction a line.
struct Nft {
    child: Child,
    stdin: ChildStdin,
}

impl Nft {
    fn start() -> std::io::Result<Self> {
        let mut child = Command::new("nft")
            .arg("-i")
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Its mistakes belong into the journal.
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take().ok_or_else(|| std::io::Error::other("no pipe to it"))?;
        Ok(Self { child, stdin })
    }

    async fn say(&mut self, line: &str) -> Result<(), String> {
        let written = async {
            self.stdin.write_all(line.as_bytes()).await?;
            self.stdin.write_all(b"\n").await?;
            self.stdin.flush().await
        };
        match tokio::time::timeout(Duration::from_secs(3), written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("nft: {error}")),
            Err(_) => Err("nft does not read".to_owned()),
        }
    }

    async fn end(self) {
        let Self { mut child, stdin } = self;
        drop(stdin);
        if tokio::time::timeout(Duration::from_secs(3), child.wait()).await.is_err()
            && let Err(error) = child.kill().await
        {
            tracing::debug!(%error, "nft is gone");
        }
    }
}

#[cfg(test)]
#[path = "handover/kernel.rs"]
mod kernel;
