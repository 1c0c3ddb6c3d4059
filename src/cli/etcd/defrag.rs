//! `quorate etcd defrag`.

use super::{Files, time};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Give the room that lies free in etcd's databases back, one member at a time, where it pays
///
/// A member serves nobody while it is defragmented. So each is judged anew before, the leader comes last and hands its leadership over, and the
/// next is not begun before the one before it answers again. Whatever ends it, the same command goes on.
#[derive(Debug, Args)]
pub struct Defrag {
    /// Say for each member what it would gain, whether it pays, and in which order; change nothing
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Read in place, on a control plane node, as root, from kubeadm's paths
    #[arg(long, requires = "dry_run", conflicts_with = "in_job")]
    pub here: bool,
    /// How long to wait for what passes by itself: an election, a late answer, a lock whose holder is gone
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = time)]
    pub wait: Duration,
    /// Run inside a Job, on the node of the member
    #[arg(long, hide = true)]
    pub in_job: bool,
    /// Take this node's apiserver out of rotation meanwhile
    #[arg(long, hide = true, requires = "in_job")]
    pub hand_over: bool,
    /// Where the member of this node keeps its data
    #[arg(long, hide = true, value_name = "DIR", default_value = "/var/lib/etcd")]
    pub data_dir: PathBuf,
    /// Where kubeadm's files are.
    #[command(flatten)]
    pub files: Files,
}
