//! `quorate upgrade`, `quorate plan`, `quorate status`.

use crate::version::Version;
use clap::Args;

/// Upgrade the whole cluster, node by node, and follow it to the end
#[derive(Debug, Args)]
pub struct Upgrade {
    /// The version to upgrade to, as in v1.36.3
    #[arg(long, value_name = "VERSION")]
    pub to: Version,
}

/// What an upgrade would do, in which order, and what blocks it
#[derive(Debug, Args)]
pub struct Plan {
    /// The version to upgrade to, as in v1.36.3
    #[arg(long, value_name = "VERSION")]
    pub to: Version,
}

/// The control plane at a glance, and whether one more node may go
#[derive(Debug, Args)]
pub struct Status {
    /// Observe now, by a Job, instead of showing the last observation
    #[arg(long)]
    pub fresh: bool,
    /// Read in place, on a control plane node, as root, from kubeadm's paths
    #[arg(long)]
    pub here: bool,
}
