//! `quorate upgrade`, `quorate plan`, `quorate status`.

use super::etcd::{liftable, time};
use crate::version::Version;
use clap::Args;
use quorum_safety::Code;
use std::time::Duration;

/// Upgrade the whole cluster, node by node, and follow it to the end
#[derive(Debug, Args)]
pub struct Upgrade {
    /// The version to upgrade to, as in v1.36.3
    #[arg(long, value_name = "VERSION")]
    pub to: Version,
    /// Lift this single check for this upgrade, such as Q054-foreign-cordon; only those that docs/reasons.md calls liftable
    #[arg(long, value_name = "CODE", value_parser = liftable, requires = "because")]
    pub lift: Vec<Code>,
    /// Why a check is lifted; it is recorded
    #[arg(long, value_name = "TEXT", requires = "lift")]
    pub because: Option<String>,
    /// For how long it is lifted, at most a day
    #[arg(long = "for", value_name = "TIME", default_value = "2h", value_parser = while_lifted)]
    pub lifted_for: Duration,
}

/// What an upgrade would do, in which order, and what blocks it
#[derive(Debug, Args)]
pub struct Plan {
    /// The version to upgrade to, as in v1.36.3
    #[arg(long, value_name = "VERSION")]
    pub to: Version,
}

/// The control plane at a glance, and whether one more node may go
#[derive(Debug, Args)]
pub struct Status {
    /// Observe now, by a Job, instead of showing the last observation
    #[arg(long)]
    pub fresh: bool,
    /// Read in place, on a control plane node, as root, from kubeadm's paths
    #[arg(long)]
    pub here: bool,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a check may be lifted.
fn while_lifted(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("nothing is lifted for no time: expected something like 2h".to_owned()),
        length if length > DAY => Err(format!("`{text}` is more than a day: what is lifted for longer is forgotten")),
        length => Ok(length),
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use quorum_safety::Code;
    use std::time::Duration;

    #[test]
    fn a_check_is_lifted_with_a_reason_and_for_a_while() {
        let read = |line: &str| Cli::try_parse_from(line.split(' '));
        for (line, wanted) in [
            ("quorate upgrade --to v1.36.3 --lift Q054", "--because"),
            ("quorate upgrade --to v1.36.3 --because x", "--lift"),
            ("quorate upgrade --to v1.36.3 --lift Q030 --because x", "nothing lifts Q030"),
            ("quorate upgrade --to v1.36.3 --lift Q054 --because x --for 48h", "more than a day"),
            ("quorate upgrade --to v1.36.3 --lift Q054 --because x --for 0s", "for no time"),
            ("quorate upgrade --to v1.36.3 --lift Q054 --because x --for soon", "15m"),
        ] {
            let said = read(line).unwrap_err().to_string();
            assert!(said.contains(wanted), "{line}: {said}");
        }
        let cli = read("quorate upgrade --to v1.36.3 --lift Q054 --because out").unwrap();
        let Command::Upgrade(upgrade) = cli.command else { panic!("{cli:?}") };
        assert_eq!((upgrade.lift, upgrade.lifted_for), (vec![Code::ForeignCordon], Duration::from_secs(7_200)));
    }
}
