//! `quorate sentinel`.

use crate::cli::etcd::Files;
use clap::{Args, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The reboot sentinel: tells kured when this node may be rebooted
#[derive(Debug, Args)]
pub struct Sentinel {
    /// What to do.
    #[command(subcommand)]
    pub command: SentinelCommand,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum SentinelCommand {
    /// Watch this node, and open the gate for kured when the rule permits; run by a DaemonSet on every node
    Run(Run),
    /// The gates of the whole fleet, and why they are closed
    Status,
}

/// Watch this node, and open the gate for kured when the rule permits; run by a DaemonSet on every node
#[derive(Debug, Args)]
pub struct Run {
    /// Where the host's root is mounted
    #[arg(long, value_name = "FOLDER", default_value = "/host")]
    pub host: PathBuf,
    /// The file on the host by which it asks for a reboot
    #[arg(long, value_name = "PATH", default_value = "/var/run/reboot-required")]
    pub required: PathBuf,
    /// The file on the host that kured looks at: it is there while this node may be rebooted
    #[arg(long, value_name = "PATH", default_value = "/var/run/quorate-reboot-required")]
    pub gate: PathBuf,
    /// Where to answer /metrics and /readyz, such as 0.0.0.0:9476
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Where kubeadm's files are.
    #[command(flatten)]
    pub files: Files,
}
