//! `kubeadm upgrade`: its arguments, and when it is tried again.

use crate::cli::node::{Mode, Upgrade};

/// What is known of etcd.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Etcd {
    /// Whether kubeadm would write its manifest just as it is now; none when that cannot be told.
    pub(super) stays: Option<bool>,
    /// Its manifest names the image that kubeadm would write; none when that cannot be told.
    pub(super) on_target: Option<bool>,
}

/// How often it is tried at most.
pub(super) const ATTEMPTS: u32 = 3;

/// The arguments of one attempt. The target is always named where kubeadm takes one (incidents R14, R18). etcd is left out when
/// kubeadm would write it just as it is. Where that cannot be told, on a further attempt when its manifest names the target's image
/// already: kubeadm then waits for a hash that never changes (incident R05), and skipping an etcd that is not on target would leave it
/// behind. An attempt that failed has put back the old manifest, or has not: so it is asked anew before each.
pub(super) fn arguments(order: &Upgrade, attempt: u32, etcd: &Etcd) -> Vec<String> {
    let mut args = match order.mode {
        Mode::Apply => vec!["upgrade".to_owned(), "apply".to_owned(), order.to.to_string(), "--yes".to_owned()],
        Mode::Node => vec!["upgrade".to_owned(), "node".to_owned()],
    };
    if !order.ignore_preflight_errors.is_empty() {
        args.push(format!("--ignore-preflight-errors={}", order.ignore_preflight_errors.join(",")));
    }
    if !order.skip_phases.is_empty() {
        args.push(format!("--skip-phases={}", order.skip_phases.join(",")));
    }
    if etcd.stays.unwrap_or(attempt > 1 && etcd.on_target == Some(true)) {
        args.push("--etcd-upgrade=false".to_owned());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(mode: Mode) -> Upgrade {
        Upgrade::bare("v1.36.3", mode)
    }

    #[test]
    fn h02_r18_apply_names_its_target_and_node_takes_none() {
        assert_eq!(arguments(&order(Mode::Apply), 1, &Etcd::default()), ["upgrade", "apply", "v1.36.3", "--yes"]);
        assert_eq!(arguments(&order(Mode::Node), 1, &Etcd::default()), ["upgrade", "node"]);
    }

    #[test]
    fn r11_phases_and_checks_of_the_configuration_are_passed_on() {
        let mut order = order(Mode::Node);
        order.skip_phases = vec!["addon/coredns".to_owned(), "addon/kube-proxy".to_owned()];
        order.ignore_preflight_errors = vec!["SystemVerification".to_owned(), "CoreDNSMigration".to_owned()];
        assert_eq!(
            arguments(&order, 1, &Etcd::default()),
            [
                "upgrade",
                "node",
                "--ignore-preflight-errors=SystemVerification,CoreDNSMigration",
                "--skip-phases=addon/coredns,addon/kube-proxy"
            ]
        );
    }

    #[test]
    fn r05_etcd_is_left_out_of_a_further_attempt_only_when_it_is_on_target() {
        let skips = |attempt, stays, on_target| {
            let arguments = arguments(&order(Mode::Apply), attempt, &Etcd { stays, on_target });
            arguments.contains(&"--etcd-upgrade=false".to_owned())
        };
        assert!(skips(2, None, Some(true)) && skips(3, None, Some(true)));
        assert!(!skips(1, None, Some(true)));
        assert!(!skips(2, None, Some(false)));
        assert!(!skips(2, None, None));
        assert!(skips(1, Some(true), Some(true)), "kubeadm would write it just as it is");
        assert!(!skips(2, Some(false), Some(true)), "another manifest of the same image");
    }
}
