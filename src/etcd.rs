//! `quorate etcd`: what is done to the etcd cluster itself. One module a subject.

use crate::cli::Global;
use crate::cli::etcd::{Etcd, EtcdCommand};
use crate::exit::ExitStatus;

pub mod verify;

/// Runs the command.
///
/// # Errors
/// When it could not be carried out.
pub fn run(global: &Global, etcd: &Etcd) -> anyhow::Result<ExitStatus> {
    match &etcd.command {
        EtcdCommand::Verify(verify) => verify::run(global, verify),
    }
}
