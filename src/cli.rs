//! The command line: clap types only, no I/O. One file a subcommand.

use crate::output::Format;
use crate::telemetry::LogFormat;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub mod etcd;
pub mod explain;
pub mod gate;
pub mod lease;
pub mod node;
pub mod reconcile;
pub mod sentinel;
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
    /// The reboot sentinel: tells kured when a node may be rebooted
    Sentinel(sentinel::Sentinel),
    /// One step of an upgrade; run by Jobs
    Step(step::Step),
    /// Work on the node itself; run by privileged Jobs pinned to it
    Node(node::Node),
    /// The etcd cluster: who its members are, every change of them, its snapshots, and the room in its databases
    Etcd(etcd::Etcd),
    /// The locks: who disrupts what
    Lease(lease::Lease),
    /// Judge a stored verdict again, offline
    Explain(explain::Explain),
}

/// How kubectl finds a plugin: `kubectl quorate` runs a program of this name in the path.
const PLUGIN: &str = "kubectl-quorate";

impl Cli {
    /// Reads a command line, the program's own name first. Help then says what was typed, also where kubectl was asked for it.
    ///
    /// # Errors
    /// When it is no command line, and when help was asked for.
    pub fn read(line: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let line: Vec<OsString> = line.into_iter().collect();
        let mut command = Self::command();
        if line.first().and_then(|own| Path::new(own).file_name()).is_some_and(|name| name == PLUGIN) {
            command = command.bin_name("kubectl quorate");
        }
        let matches = command.try_get_matches_from_mut(line)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> String {
        Cli::read(line.split(' ').map(OsString::from)).unwrap_err().to_string()
    }

    #[test]
    fn help_says_what_was_typed() {
        for (line, usage) in [
            ("quorate --help", "Usage: quorate [OPTIONS] <COMMAND>"),
            ("/usr/local/bin/kubectl-quorate --help", "Usage: kubectl quorate [OPTIONS] <COMMAND>"),
            ("/usr/local/bin/kubectl-quorate gate --help", "Usage: kubectl quorate gate [OPTIONS]"),
            ("kubectl-quorate plan", "Usage: kubectl quorate plan --to <VERSION>"),
        ] {
            assert!(said(line).contains(usage), "{line}: {}", said(line));
        }
        let cli = Cli::read(["kubectl-quorate", "gate", "--node=k2"].map(OsString::from)).unwrap();
        assert!(matches!(cli.command, Command::Gate(gate) if gate.node.as_deref() == Some("k2")));
    }
}
