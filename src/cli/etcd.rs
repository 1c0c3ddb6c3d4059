//! `quorate etcd`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// The etcd cluster: its snapshots
#[derive(Debug, Args)]
pub struct Etcd {
    /// What to do.
    #[command(subcommand)]
    pub command: EtcdCommand,
}

/// What to do with etcd.
#[derive(Debug, Subcommand)]
pub enum EtcdCommand {
    /// Prove that a snapshot is whole, and tell what it holds
    Verify(Verify),
}

/// Prove that a snapshot is whole, and tell what it holds
///
/// Its checksum is compared, every page and key is looked at, nothing is asked of any cluster. Exits with 0 when all of it is proven, 21
/// when something is wrong with it, 12 when nothing is wrong and it has no checksum, as a file out of a data directory has none.
#[derive(Debug, Args)]
pub struct Verify {
    /// A snapshot as etcd sent it, or the database out of a data directory
    pub file: PathBuf,
}
