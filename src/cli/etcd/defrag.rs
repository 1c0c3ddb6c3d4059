//! `quorate etcd defrag`.

use super::{Files, liftable, time};
use clap::Args;
use quorum_safety::Code;
use std::path::PathBuf;
use std::time::Duration;

/// Give the room that lies free in etcd's databases back, one member at a time, where it pays
///
/// A member serves nobody while it is defragmented. So each is judged anew before, the leader comes last and hands its leadership over, and the
/// next is not begun before the one before it answers again. Whatever ends it, the same command goes on.
#[derive(Debug, Args)]
pub struct Defrag {
    /// Say for each member what it would gain, whether it pays, and in which order; change nothing
    #[arg(long, conflicts_with = "wait", group = "in_place")]
    pub dry_run: bool,
    /// End the alarm NOSPACE, under which etcd takes no writes: compact, defragment the member of this node, and disarm once every member has
    /// room; to be typed on each control plane node, in the order that it tells
    #[arg(long, requires = "here", requires = "without_api", conflicts_with = "in_job", group = "in_place")]
    pub cure_nospace: bool,
    /// Read in place, on a control plane node, as root, from kubeadm's paths; and act there with --cure-nospace
    #[arg(long, requires = "in_place", conflicts_with = "in_job")]
    pub here: bool,
    /// The override for the locks: under NOSPACE etcd has no room for a Lease, and no apiserver may serve; recorded on this host
    #[arg(long, requires = "because", requires = "cure_nospace", conflicts_with = "dry_run")]
    pub without_api: bool,
    /// Why the locks are gone without, and a check is lifted
    #[arg(long, value_name = "TEXT", requires = "without_api")]
    pub because: Option<String>,
    /// Lift this single check, for this command; only those that docs/reasons.md calls liftable
    #[arg(long, value_name = "CODE", value_parser = liftable, requires = "cure_nospace", conflicts_with = "dry_run")]
    pub lift: Vec<Code>,
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
