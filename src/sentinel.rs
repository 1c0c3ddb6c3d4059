//! The reboot sentinel: tells kured when this node may be rebooted, by a file on the host that kured looks at.
//!
//! kured drains and reboots; the sentinel decides whether the file is there. What it does next is [`plan`], pure, over the protocol
//! [`quorum_safety::sentinel`] that the model is searched with; around it [`work`] looks, acts, and waits. A node that wants no reboot asks
//! nothing of the API.

use crate::cli::Global;
use crate::cli::sentinel::{Sentinel, SentinelCommand};
use crate::clock::Clock;
use crate::exit::ExitStatus;

pub mod alerts;
pub mod answer;
pub mod host;
pub mod jumps;
pub mod kured;
pub mod look;
pub mod plan;
pub mod reason;
pub mod rights;
pub mod shown;
pub mod soak;
pub mod status;
pub mod whole;
pub mod window;
pub mod work;
pub mod workloads;

/// The operation in a Lease that is held for a reboot.
pub const OPERATION: &str = "reboot";

/// Runs the command.
///
/// # Errors
/// When it is no sentinel's pod, or the fleet cannot be seen.
pub async fn run(global: &Global, sentinel: &Sentinel, clock: Clock) -> anyhow::Result<ExitStatus> {
    match &sentinel.command {
        SentinelCommand::Run(args) => work::run(global, args, clock).await,
        SentinelCommand::Status => status::run(global, clock).await,
    }
}
