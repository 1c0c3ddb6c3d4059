//! `quorate reconcile`.

use clap::Args;

/// Finish or undo what was left half done, and start nothing new; run by a CronJob, too
///
/// Starts a Job that does it and prints what it found. What takes minutes goes on in a Job of its own, which the answer names.
#[derive(Debug, Args)]
pub struct Reconcile {
    /// Run inside a Job: exit 0 with the report in the termination message
    #[arg(long, hide = true)]
    pub in_job: bool,
}
