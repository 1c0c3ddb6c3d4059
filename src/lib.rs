//! quorate keeps a kubeadm control plane quorate while it is upgraded. See ARCHITECTURE.md for the map.

pub mod access;
pub mod cli;
pub mod clock;
pub mod config;
pub mod drain;
pub mod etcd;
pub mod event;
pub mod exit;
pub mod explain;
pub mod gate;
pub mod job;
pub mod lock;
pub mod node;
pub mod observe;
pub mod output;
pub mod place;
pub mod quiesce;
pub mod reconcile;
mod replace;
pub mod report;
pub mod seen;
pub mod sentinel;
pub mod status;
pub mod telemetry;
pub mod upgrade;
pub mod version;

use crate::cli::{Cli, Command};
use crate::exit::ExitStatus;
use std::process::ExitCode;

/// Runs one command to its end.
pub async fn run(cli: Cli) -> ExitCode {
    telemetry::init(&cli.global.log, cli.global.log_format);
    match dispatch(cli).await {
        Ok(status) => status.into(),
        Err(error) => output::fail(&error),
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<ExitStatus> {
    let clock = clock::Clock::system();
    let global = &cli.global;
    match &cli.command {
        Command::Gate(gate) => gate::run(global, gate, clock).await,
        Command::Status(status) => status::run(global, status, clock).await,
        Command::Etcd(etcd) => etcd::run(global, etcd, clock).await,
        Command::Lease(lease) => lock::report::run(global, lease, clock).await,
        Command::Explain(explain) => explain::run(global, explain),
        Command::Node(node) => node::main(&node.command, clock).await,
        Command::Plan(plan) => upgrade::show::run(global, plan.to, clock).await,
        Command::Upgrade(upgrade) => upgrade::follow::run(global, upgrade, clock).await,
        Command::Reconcile(reconcile) => reconcile::run(global, reconcile, clock).await,
        Command::Sentinel(one) => sentinel::run(global, one, clock).await,
        Command::Step(step) => upgrade::step::run(global, step, clock).await,
    }
}
