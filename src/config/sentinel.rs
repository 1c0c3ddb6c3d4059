//! The reboot sentinel.

use super::Period;
use serde::{Deserialize, Serialize};

mod alerts;
pub use alerts::Alerts;

/// The reboot sentinel.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sentinel {
    /// Between two looks of a sentinel, while its gate is closed; a tenth more or less.
    pub interval: Period,
    /// Between two looks while its gate is open, or its Lease held.
    pub watch: Period,
    /// For how long every node must have been up before another one is rebooted.
    pub soak: Period,
    /// How much longer than its own period kured may take to act on an open gate, and how long to uncordon after a drain that it gave up.
    pub margin: Period,
    /// How long a sentinel stands back after a try that came to nothing.
    pub rest: Period,
    /// DaemonSets that must be whole, `NAMESPACE/NAME`; none: the cluster's network, found by its name.
    pub daemon_sets: Vec<String>,
    /// The alerts that keep a gate closed.
    pub alerts: Alerts,
    /// The namespace of the sentinels' pods; none: quorate's own.
    pub namespace: Option<String>,
}

impl Default for Sentinel {
    fn default() -> Self {
        Self {
            interval: Period::seconds(300),
            watch: Period::seconds(10),
            soak: Period::seconds(24 * 3600),
            margin: Period::seconds(120),
            rest: Period::seconds(30 * 60),
            daemon_sets: Vec::new(),
            alerts: Alerts::default(),
            namespace: None,
        }
    }
}

impl Sentinel {
    /// What is wrong with it, in words that go on after "configuration: ".
    pub(super) fn check(&self) -> Result<(), String> {
        for (name, period) in [("interval", self.interval), ("watch", self.watch), ("margin", self.margin)] {
            if !period.0.is_positive() {
                return Err(format!("`sentinel.{name}` is {}: expected more than nothing, such as 10s", period.0));
            }
        }
        for (name, period) in [("soak", self.soak), ("rest", self.rest)] {
            if period.0.is_negative() {
                return Err(format!("`sentinel.{name}` is {}: expected 0s or more", period.0));
            }
        }
        for set in &self.daemon_sets {
            if set.split('/').filter(|part| !part.is_empty()).count() != 2 {
                return Err(format!("`sentinel.daemonSets` has `{set}`: expected NAMESPACE/NAME of a DaemonSet"));
            }
        }
        if let Some(namespace) = &self.namespace
            && !super::workload::is_label(namespace)
        {
            return Err(format!(
                "`sentinel.namespace` is `{namespace}`: expected the name of a namespace, such as kured"
            ));
        }
        self.alerts.check()
    }
}
