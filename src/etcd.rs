//! `quorate etcd`: what is done to the etcd cluster itself. One module a subject; what they share about Jobs is in [`job`].

use crate::cli::Global;
use crate::cli::etcd::{Etcd, EtcdCommand};
use crate::clock::Clock;
use crate::exit::ExitStatus;

pub mod backup;
pub mod defrag;
mod drill;
mod host;
mod job;
pub mod members;
pub mod restore;
pub mod verify;

/// Runs the command.
///
/// # Errors
/// When it could not be carried out; what was refused, or is half done, is an answer.
pub async fn run(global: &Global, etcd: &Etcd, clock: Clock) -> anyhow::Result<ExitStatus> {
    match &etcd.command {
        EtcdCommand::Members(members) => members::run(global, &members.command, clock).await,
        EtcdCommand::Backup(backup) => backup::run(global, backup, clock).await,
        EtcdCommand::Verify(verify) => verify::run(global, verify, clock).await,
        EtcdCommand::Defrag(defrag) => defrag::run(global, defrag, clock).await,
        EtcdCommand::Drill(drill) => drill::run(global, drill, clock).await,
        EtcdCommand::Restore(restore) => restore::run(global, &restore.command, clock).await,
    }
}
