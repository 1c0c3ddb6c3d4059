//! `quorate gate`.

use clap::Args;

/// Ask whether a node may be taken down now, with all reasons if not
#[derive(Debug, Args)]
pub struct Gate {
    /// The node that would go down [default: each node in turn; with --here, this one]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Read in place, on a control plane node, as root, from kubeadm's paths; the node is this one unless named
    #[arg(long)]
    pub here: bool,
    /// Run inside a Job: exit 0 with the verdict in the termination message
    #[arg(long, hide = true)]
    pub in_job: bool,
}
