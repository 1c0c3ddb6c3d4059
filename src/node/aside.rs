//! `quorate node hand-over`: new connections to this node's apiserver go to peers for as long as whoever started it keeps its standard input
//! open. For a member of etcd that is away for a moment, and its apiserver with it, while nothing else of the node is.

use super::apiserver::{let_clients_go, wait_ready};
use super::command::Deadline;
use super::handover::{Absent, HandOver, possible};
use super::manifests;
use super::nft::Target;
use super::probe::Probe;
use super::report::HandOverReport;
use super::run::advertised;
use crate::cli::node::HandOver as Order;
use crate::exit::ExitStatus;
use crate::output;
use anyhow::Context;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

/// How long it may take to be in force.
const IN_FORCE: Duration = Duration::from_secs(60);
/// How long the own apiserver may take to be ready when it is over; then it gets its connections back all the same: its etcd serves.
const BACK: Duration = Duration::from_secs(20);

/// Holds it on this host until standard input ends, and says in a line whether it is in force.
///
/// # Errors
/// When this host's apiserver is not to be found.
pub(super) async fn hold_on_host(order: &Order) -> anyhow::Result<ExitStatus> {
    let root = Path::new("/");
    let local = advertised(&manifests::read(root)?).context("the manifest of kube-apiserver names no address")?;
    let target = Target { local, service: order.service_address };
    // A thread of its own: it ends with the input, and that ends with whoever started this, however he ends.
    let over = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
    let say = |report: &HandOverReport| -> anyhow::Result<()> {
        output::line(&serde_json::to_string(report)?);
        Ok(())
    };
    let over = async {
        if let Err(error) = over.await {
            tracing::warn!(%error, "Standard input was not read to its end");
        }
    };
    hold(target, order.peers.clone(), Probe::new(root), say, over).await
}

/// The same of any apiserver, until something is over.
pub(super) async fn hold(
    target: Target,
    peers: Vec<IpAddr>,
    probe: Probe,
    say: impl Fn(&HandOverReport) -> anyhow::Result<()>,
    over: impl Future<Output = ()>,
) -> anyhow::Result<ExitStatus> {
    let (local, deadline) = (target.local, Deadline::after(IN_FORCE));
    let started = match possible(&target, &peers, &probe, deadline).await {
        Ok(ready) => HandOver::start(target, peers, ready, probe.clone(), deadline).await,
        Err(absent) => Err(absent),
    };
    let held = match started {
        Ok(held) => held,
        Err(absent) => {
            say(&HandOverReport { on: false, because: absent.to_string() })?;
            return Ok(match absent {
                Absent::Impossible(_) => ExitStatus::Ok,
                Absent::NoPeer(_) => ExitStatus::Held,
            });
        }
    };
    let_clients_go(local, deadline).await;
    say(&HandOverReport { on: true, because: held.relies_on.to_owned() })?;
    over.await;
    if let Err(why) = wait_ready(local, &probe, Duration::ZERO, Deadline::after(BACK)).await {
        output::progress(&format!("hand-over: given back, although {why}"));
    }
    held.stop().await;
    Ok(ExitStatus::Ok)
}
