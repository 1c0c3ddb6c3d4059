//! `quorate etcd backup`.

use super::Files;
use clap::Args;
use std::path::PathBuf;

/// Take a snapshot of a healthy voter, prove it, and store it with a manifest
///
/// Where it goes, whether it is compressed and encrypted, and how long it stays is in the configuration, under `backup`. Nothing has a name
/// in the store that is not proven, and a backup that fails removes nothing.
#[derive(Debug, Args)]
pub struct Backup {
    /// List what is stored
    #[arg(long)]
    pub list: bool,
    /// Say from whom, to where, and which old backups would be removed; store and remove nothing
    #[arg(long, conflicts_with = "list")]
    pub dry_run: bool,
    /// Act in place, on a control plane node, as root, while the API does not answer; or with --without-lease
    #[arg(long)]
    pub here: bool,
    /// The override for a lock that is not to be had although the API answers: a database that is full takes no Lease, and a change of
    /// members that is half done keeps its own; recorded on this host
    #[arg(long, requires = "because", requires = "here", conflicts_with = "list")]
    pub without_lease: bool,
    /// Why the lock is gone without
    #[arg(long, value_name = "TEXT", requires = "without_lease")]
    pub because: Option<String>,
    /// Where it goes instead, with --here: a folder of this host
    #[arg(long, value_name = "DIR", requires = "here")]
    pub to: Option<PathBuf>,
    /// Where the snapshot is kept until it is stored [default: /spool in a Job, where the lock is with --here]
    #[arg(long, hide = true, value_name = "DIR")]
    pub spool: Option<PathBuf>,
    /// Run inside a Job
    #[arg(long, hide = true)]
    pub in_job: bool,
    /// Where kubeadm's files are.
    #[command(flatten)]
    pub files: Files,
}
