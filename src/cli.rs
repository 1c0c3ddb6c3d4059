//! The command line: clap types only, no I/O. One file a subcommand.

use crate::output::Format;
use crate::telemetry::LogFormat;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

pub mod explain;
pub mod gate;
pub mod lease;
pub mod node;
pub mod reconcile;
pub mod step;
pub mod upgrade;

/// Keeps a kubeadm control plane quorate while it is upgraded.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Kubeconfig file [default: the Pod's own account, $KUBECONFIG, ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Configuration file [default: ConfigMap quorate-config in the cluster]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Namespace of quorate in the cluster
    #[arg(long, global = true, value_name = "NAME", default_value = "quorate")]
    pub namespace: String,
    /// Form of the answer
    #[arg(short, long, global = true, value_name = "FORM", default_value = "text")]
    pub output: Format,
    /// What to log to standard error, in the syntax of RUST_LOG
    #[arg(long, global = true, value_name = "FILTER", env = "QUORATE_LOG", default_value = "warn,kube_client=off")]
    pub log: String,
    /// Form of the log
    #[arg(long, global = true, value_name = "FORM", env = "QUORATE_LOG_FORMAT", default_value = "plain")]
    pub log_format: LogFormat,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask whether a node may be taken down now, with all reasons if not
    Gate(gate::Gate),
    /// The control plane at a glance, and whether one more node may go
    Status(upgrade::Status),
    /// What an upgrade would do, in which order, and what blocks it
    Plan(upgrade::Plan),
    /// Upgrade the whole cluster, node by node, and follow it to the end
    Upgrade(upgrade::Upgrade),
    /// Finish or undo what was left half done, and start nothing new; run by a CronJob, too
    Reconcile(reconcile::Reconcile),
    /// One step of an upgrade; run by Jobs
    Step(step::Step),
    /// Work on the node itself; run by privileged Jobs pinned to it
    Node(node::Node),
    /// The locks: who disrupts what
    Lease(lease::Lease),
    /// Judge a stored verdict again, offline
    Explain(explain::Explain),
}
