//! `quorate step`.

use crate::version::Version;
use clap::{Args, Subcommand};

/// One step of an upgrade; run by Jobs
#[derive(Debug, Args)]
pub struct Step {
    /// Which step.
    #[command(subcommand)]
    pub command: StepCommand,
}

/// The steps of an upgrade.
#[derive(Debug, Subcommand)]
pub enum StepCommand {
    /// Check everything that can be checked before anything is touched, then start the first node
    Preflight(Target),
    /// Upgrade one control plane node, then start the next
    ControlPlane(NodeTarget),
    /// Upgrade one worker, then start the next
    Worker(NodeTarget),
    /// Check that everything is on target and serves, and that nothing of the upgrade is left behind
    Postflight(Target),
}

impl StepCommand {
    /// All steps of the chain, as they are typed.
    pub const NAMES: [&'static str; 4] = ["preflight", "control-plane", "worker", "postflight"];
}

/// The version of an upgrade.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// The version to upgrade to, as in v1.36.3 [default: upgrade.target of the configuration]
    #[arg(long, value_name = "VERSION")]
    pub to: Option<Version>,
}

/// The version of an upgrade, and the node of a step.
#[derive(Clone, Debug, Args)]
pub struct NodeTarget {
    /// The version to upgrade to, as in v1.36.3
    #[arg(long, value_name = "VERSION")]
    pub to: Version,
    /// The node to upgrade; never the one that the step runs on
    #[arg(long, value_name = "NAME")]
    pub node: String,
    /// Only finish or undo what is half done on the node, and start nothing after it; `quorate reconcile` asks for it
    #[arg(long)]
    pub finish_only: bool,
    /// The how manieth attempt of `quorate reconcile` this is
    #[arg(long, value_name = "NUMBER", requires = "finish_only", hide = true)]
    pub attempt: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_named() {
        let command = StepCommand::augment_subcommands(clap::Command::new("step"));
        let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(names, StepCommand::NAMES);
    }
}
