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
    Release(Release),
}

/// Release a lock by hand; recorded with its reason
///
/// The holder stops when it sees the release; the next actor takes the lock once the holder's deadline has passed. What is half done is
/// finished or undone first, unless it is abandoned.
#[derive(Debug, Args)]
pub struct Release {
    /// The Lease, such as `control-plane-disruption`
    pub name: String,
    /// Why; recorded on the Lease
    #[arg(long, value_name = "TEXT")]
    pub because: String,
    /// Release it although its holder's pod runs on a Ready node
    #[arg(long)]
    pub even_if_alive: bool,
    /// What the holder left half done has been finished or undone by hand: forget it
    ///
    /// A holder that may still act has to stop first: then this waits until it has, exits with 11, and wants to be told again after
    /// another look at the target.
    #[arg(long)]
    pub abandon: bool,
}
