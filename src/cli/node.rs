//! `quorate node`.

use clap::{Args, Subcommand};

/// Work on the node itself; run by privileged Jobs pinned to it
#[derive(Debug, Args)]
pub struct Node {
    /// What to do on it.
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// What to do on the node.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Look, change nothing: image, disk, packages, stray files, certificates
    Preflight,
    /// Bring kubeadm, the static pods, kubelet and kubectl of this node to the target
    Upgrade,
}
