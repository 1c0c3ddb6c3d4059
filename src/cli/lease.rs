//! `quorate lease`.

use clap::{Args, Subcommand};

/// The locks: who disrupts what
#[derive(Debug, Args)]
pub struct Lease {
    /// What to do with them.
    #[command(subcommand)]
    pub command: LeaseCommand,
}

/// What to do with the locks.
#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// Who holds what, since when, and whether the holder is provably gone
    Show,
    /// Release a lock by hand; recorded with its reason
    Release {
        /// The Lease, such as `control-plane-disruption`
        name: String,
        /// Why; recorded on the Lease
        #[arg(long, value_name = "TEXT")]
        because: String,
    },
}
