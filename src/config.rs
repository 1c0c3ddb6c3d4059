//! The configuration: one YAML document, ConfigMap `quorate-config`, key `config.yaml`. Every key has a default; a key that is
//! not known is refused with the nearest that is.

use crate::exit::UsageError;
use jiff::SignedDuration;
use quorum_safety::Policy;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

mod backup;
mod defrag;
mod sentinel;
mod workload;
pub use backup::{Backup, S3};
pub use defrag::Defrag;
pub use sentinel::{Alerts, Sentinel};
pub use workload::{Workload, WorkloadKind};

/// Name of the ConfigMap.
pub const CONFIG_MAP: &str = "quorate-config";
/// Key of the document in it.
pub const KEY: &str = "config.yaml";

/// A length of time, as in `10m` or `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Period(SignedDuration);

impl Period {
    /// That many seconds.
    pub const fn seconds(seconds: i64) -> Self {
        Self(SignedDuration::from_secs(seconds))
    }

    /// That many milliseconds.
    fn milliseconds(milliseconds: u64) -> Self {
        Self(SignedDuration::from_millis(i64::try_from(milliseconds).unwrap_or(i64::MAX)))
    }

    /// The length; a negative one counts as none (`Config::parse` refuses them).
    pub fn get(self) -> Duration {
        self.0.unsigned_abs()
    }
}

/// The whole configuration.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// What a disruption is measured against.
    pub rule: Rule,
    /// How long things may take.
    pub times: Times,
    /// The upgrade.
    pub upgrade: Upgrade,
    /// Draining nodes.
    pub drain: Drain,
    /// Backups of etcd.
    pub backup: Backup,
    /// Defragmentation of etcd.
    pub defrag: Defrag,
    /// The reboot sentinel.
    pub sentinel: Sentinel,
    /// Where kured is: `auto`, `none`, or `NAMESPACE/NAME` of its DaemonSet.
    #[cfg_attr(test, schemars(regex(pattern = r"^(auto|none|[^/]+/[^/]+)$")))]
    pub kured: String,
    /// What stands in front of the apiservers.
    pub load_balancer: LoadBalancer,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rule: Rule::default(),
            times: Times::default(),
            upgrade: Upgrade::default(),
            drain: Drain::default(),
            backup: Backup::default(),
            defrag: Defrag::default(),
            sentinel: Sentinel::default(),
            kured: "auto".to_owned(),
            load_balancer: LoadBalancer::Unknown,
        }
    }
}

/// What a disruption is measured against.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rule {
    /// How many raft entries a healthy voter may be behind.
    pub healthy_lag: u64,
    /// How many raft entries a recovered voter may be behind.
    pub recovered_lag: u64,
    /// How long the quicker of two linearizable reads through a voter may take.
    pub slow_read: Period,
    /// How much of its quota the database of a voter may fill, percent.
    #[cfg_attr(test, schemars(range(min = 1, max = 100)))]
    pub database_fill: u64,
    /// The quota of the database (`--quota-backend-bytes`) where etcd does not tell it, before 3.6.6; bytes.
    #[cfg_attr(test, schemars(range(min = 1)))]
    pub assumed_quota: u64,
    /// How long every certificate must still be valid.
    pub certificate_margin: Period,
    /// How many workers may be down at the same time.
    #[cfg_attr(test, schemars(range(min = 1)))]
    pub worker_slots: usize,
}

impl Default for Rule {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            healthy_lag: policy.healthy_lag,
            recovered_lag: policy.recovered_lag,
            slow_read: Period::milliseconds(policy.slow_read),
            database_fill: policy.database_fill,
            assumed_quota: policy.assumed_quota,
            certificate_margin: Period::seconds(policy.certificate_margin),
            worker_slots: policy.worker_slots,
        }
    }
}

/// How long things may take.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Times {
    /// One answer of an etcd member or an apiserver.
    pub answer: Period,
    /// Between the two samples of an observation.
    pub between_samples: Period,
    /// The work on one node.
    pub node_step: Period,
    /// Proof of recovery after it.
    pub recovery: Period,
    /// How long everything must have been good to count as recovered.
    pub stable: Period,
    /// The drain of one node.
    pub drain: Period,
    /// Between two workers.
    pub worker_soak: Period,
    /// Duration of a Lease.
    pub lease: Period,
    /// Between two renewals.
    pub renew: Period,
    /// Until a kubelet must have begun a Job's pod, and three times that until the pod must run, before the next node is tried.
    pub job_start: Period,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            answer: Period::seconds(3),
            between_samples: Period::seconds(1),
            node_step: Period::seconds(30 * 60),
            recovery: Period::seconds(15 * 60),
            stable: Period::seconds(10),
            drain: Period::seconds(15 * 60),
            worker_soak: Period::seconds(10 * 60),
            lease: Period::seconds(60),
            renew: Period::seconds(20),
            job_start: Period::seconds(20),
        }
    }
}

/// The upgrade.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Upgrade {
    /// The version that Jobs made by plain kubectl upgrade to.
    pub target: Option<crate::version::Version>,
    /// kubeadm preflight checks to ignore, each by its name with the reason; `all` is refused.
    pub ignore_preflight_errors: BTreeMap<String, String>,
    /// kubeadm phases to skip, such as `addon/coredns` where CoreDNS is managed elsewhere (incident R11).
    pub skip_phases: Vec<String>,
    /// Workloads that are scaled to zero while a control plane node is worked on, such as operators that crash when the API restarts
    /// (incidents R04, R13). Needs the rights of `kustomize/components/quiesce`.
    pub quiesce: Vec<Workload>,
}

/// Draining nodes.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Drain {
    /// What to do with a pod that a budget protects, by namespace; `honour` where not named.
    pub namespaces: BTreeMap<String, BudgetPolicy>,
    /// What to do with pods that no controller would bring back: they block, or are evicted and gone for good.
    pub unmanaged_pods: crate::drain::UnmanagedPods,
}

/// What to do with a pod whose budget refuses its eviction.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BudgetPolicy {
    /// Wait until the drain's deadline, then give up and say what blocks.
    Honour,
    /// Delete it when half of the drain's deadline has passed; never when its workload is below its budget already.
    DeleteAfterHalf,
}

/// What stands in front of the apiservers.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LoadBalancer {
    /// Connections are spread over all servers: fresh connections must show a recovered node again.
    Balances,
    /// A client always meets the same server.
    Hashes,
    /// Not known.
    Unknown,
}

impl Config {
    /// Reads a document and checks every value.
    ///
    /// # Errors
    /// One line that names the key, the value and what would be right.
    pub fn parse(text: &str) -> Result<Self, UsageError> {
        // An empty document is all defaults; YAML calls it null.
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        let config: Self = serde_saphyr::from_str(text).map_err(|error| {
            let message = error.to_string();
            let first = message.lines().next().unwrap_or(&message);
            UsageError(format!("configuration: {}{}", first.trim().trim_start_matches("error: "), nearest(first)))
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), UsageError> {
        let wrong = |text: String| Err(UsageError(format!("configuration: {text}")));
        let times = &self.times;
        for (name, period) in [
            ("rule.slowRead", self.rule.slow_read),
            ("rule.certificateMargin", self.rule.certificate_margin),
            ("times.answer", times.answer),
            ("times.betweenSamples", times.between_samples),
            ("times.nodeStep", times.node_step),
            ("times.recovery", times.recovery),
            ("times.stable", times.stable),
            ("times.drain", times.drain),
            ("times.lease", times.lease),
            ("times.renew", times.renew),
            ("times.jobStart", times.job_start),
        ] {
            if !period.0.is_positive() {
                return wrong(format!("`{name}` is {}: expected more than nothing, such as 10s", period.0));
            }
        }
        if times.worker_soak.0.is_negative() {
            return wrong(format!("`times.workerSoak` is {}: expected 0s or more", times.worker_soak.0));
        }
        // Two samples closer together cannot tell a stalled member from a slow one (etcd-notes, 3d).
        if times.between_samples.get() < Duration::from_secs(1) {
            return wrong(format!("`times.betweenSamples` is {}: expected at least 1s", times.between_samples.0));
        }
        if times.renew.get() * 2 > times.lease.get() {
            return wrong(format!(
                "`times.renew` is {}: expected at most half of `times.lease` ({})",
                times.renew.0, times.lease.0
            ));
        }
        // A read that takes longer is not answered, which is another reason.
        if self.rule.slow_read.get() > times.answer.get() {
            return wrong(format!(
                "`rule.slowRead` is {}: expected at most `times.answer` ({})",
                self.rule.slow_read.0, times.answer.0
            ));
        }
        if !(1..=100).contains(&self.rule.database_fill) {
            let fill = self.rule.database_fill;
            return wrong(format!("`rule.databaseFill` is {fill}: expected a percentage from 1 to 100"));
        }
        if self.rule.assumed_quota == 0 {
            return wrong("`rule.assumedQuota` is 0: expected bytes, such as 2147483648".to_owned());
        }
        if self.rule.worker_slots == 0 {
            return wrong("`rule.workerSlots` is 0: expected at least 1".to_owned());
        }
        for (check, because) in &self.upgrade.ignore_preflight_errors {
            if check.eq_ignore_ascii_case("all") {
                return wrong(
                    "`upgrade.ignorePreflightErrors` has `all`: name each check, such as SystemVerification".to_owned(),
                );
            }
            if because.trim().is_empty() {
                return wrong(format!("`upgrade.ignorePreflightErrors.{check}` is empty: say why it may be ignored"));
            }
        }
        if let Err(what) = workload::check(&self.upgrade.quiesce) {
            return wrong(format!("`upgrade.quiesce` {what}"));
        }
        if let Err(what) = self.backup.check().and_then(|()| self.defrag.check()) {
            return wrong(what);
        }
        if let Err(what) = self.sentinel.check() {
            return wrong(what);
        }
        if self.kured != "auto"
            && self.kured != "none"
            && self.kured.split('/').filter(|part| !part.is_empty()).count() != 2
        {
            return wrong(format!(
                "`kured` is `{}`: expected auto, none or NAMESPACE/NAME of its DaemonSet",
                self.kured
            ));
        }
        Ok(())
    }

    /// What `judge` measures against.
    pub fn policy(&self) -> Policy {
        Policy {
            healthy_lag: self.rule.healthy_lag,
            recovered_lag: self.rule.recovered_lag,
            slow_read: u64::try_from(self.rule.slow_read.get().as_millis()).unwrap_or(u64::MAX),
            database_fill: self.rule.database_fill,
            assumed_quota: self.rule.assumed_quota,
            certificate_margin: i64::try_from(self.rule.certificate_margin.get().as_secs()).unwrap_or(i64::MAX),
            worker_slots: self.rule.worker_slots,
            lifted: Vec::new(),
            without_api: false,
        }
    }
}

/// ` (did you mean …?)` for the message "unknown field `X`, expected one of a, b, c".
fn nearest(message: &str) -> String {
    let Some((unknown, known)) = message
        .split_once("unknown field `")
        .and_then(|(_, rest)| rest.split_once('`'))
        .and_then(|(unknown, rest)| rest.split_once("expected ").map(|(_, known)| (unknown, known)))
    else {
        return String::new();
    };
    known
        .trim_start_matches("one of ")
        .split([',', ' ', '\n'])
        .map(|name| name.trim_matches('`'))
        .filter(|name| !name.is_empty())
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| format!(" (did you mean `{name}`?)"))
        .unwrap_or_default()
}

#[cfg(test)]
mod schema;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_decisions() {
        let config = Config::parse("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.policy(), Policy::default());
        assert_eq!(config.times.drain.get(), Duration::from_secs(900));
    }

    #[test]
    fn reads_what_it_writes() {
        let text = serde_saphyr::to_string(&Config::default()).unwrap();
        assert_eq!(Config::parse(&text).unwrap(), Config::default());
    }

    #[test]
    fn a_workload_is_a_deployment_unless_it_says_otherwise() {
        let text =
            "upgrade: {quiesce: [{namespace: shop, name: a.b-1}, {namespace: shop, name: a.b-1, kind: StatefulSet}]}";
        let listed = Config::parse(text).unwrap().upgrade.quiesce;
        let told: Vec<String> = listed.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["Deployment shop/a.b-1", "StatefulSet shop/a.b-1"]);
    }

    #[test]
    fn figures_of_etcd_reach_the_rule() {
        let config =
            Config::parse("rule: {slowRead: 3s, databaseFill: 100, assumedQuota: 8589934592}").unwrap().policy();
        assert_eq!((config.slow_read, config.database_fill, config.assumed_quota), (3_000, 100, 8_589_934_592));
    }

    #[test]
    fn bad_values_are_named_with_what_would_be_right() {
        for (text, expected) in [
            ("time: {}", "did you mean `times`?"),
            ("times: {drian: 5m}", "did you mean `drain`?"),
            ("times: {drain: -5m}", "times.drain"),
            ("times: {betweenSamples: 200ms}", "at least 1s"),
            ("times: {renew: 50s}", "at most half"),
            ("rule: {workerSlots: 0}", "workerSlots"),
            ("rule: {slowRead: 0s}", "rule.slowRead"),
            ("rule: {slowRead: 3001ms}", "at most `times.answer`"),
            ("times: {answer: 500ms}", "at most `times.answer` (PT0.5S)"),
            ("rule: {databaseFill: 0}", "from 1 to 100"),
            ("rule: {databaseFill: 101}", "from 1 to 100"),
            ("rule: {assumedQuota: 0}", "2147483648"),
            ("upgrade: {ignorePreflightErrors: {all: x}}", "name each check"),
            ("upgrade: {ignorePreflightErrors: {Swap: ''}}", "say why"),
            ("upgrade: {target: latest}", "v1.36.3"),
            ("upgrade: {quiesce: [{namespace: Shop, name: a}]}", "`upgrade.quiesce` names namespace `Shop`"),
            ("upgrade: {quiesce: [{namespace: shop.a, name: a}]}", "such as shop"),
            ("upgrade: {quiesce: [{namespace: shop, name: a_b}]}", "`a_b` in namespace shop"),
            ("upgrade: {quiesce: [{namespace: shop, name: a..b}]}", "such as operator"),
            ("upgrade: {quiesce: [{namespace: shop, name: ''}]}", "such as operator"),
            ("upgrade: {quiesce: [{namespace: shop}]}", "name"),
            ("upgrade: {quiesce: [{namespace: shop, name: a, kind: DaemonSet}]}", "StatefulSet"),
            ("upgrade: {quiesce: [{namespace: shop, nam: a}]}", "did you mean `name`?"),
            (
                "upgrade: {quiesce: [{namespace: shop, name: a}, {namespace: shop, name: a, kind: Deployment}]}",
                "names Deployment shop/a twice",
            ),
            ("backup: {keeep: 3}", "did you mean `keep`?"),
            ("backup: {keep: 0}", "at least 1"),
            ("backup: {minimumAge: -1h}", "0s or more"),
            ("backup: {stall: 0s}", "`backup.stall`"),
            ("backup: {directory: backup}", "absolute path"),
            ("backup: {s3: {endpoint: s3.example, bucket: b}}", "https://s3.example"),
            ("backup: {s3: {endpoint: 'https://s3.example', bucket: a/b}}", "name of a bucket"),
            ("backup: {directory: /b, s3: {endpoint: 'https://s3.example', bucket: b}}", "one of them"),
            ("backup: {compression: gzip}", "zstd"),
            ("backup: {recipients: [ssh-ed25519]}", "age1"),
            ("defrag: {fragmented: 0}", "from 1 to 100"),
            ("defrag: {fragmented: 101}", "from 1 to 100"),
            ("defrag: {perGigabyte: 0s}", "`defrag.perGigabyte`"),
            ("defrag: {leastSise: 1}", "did you mean `leastSize`?"),
            ("sentinel: {soka: 1h}", "did you mean `soak`?"),
            ("sentinel: {soak: -1h}", "0s or more"),
            ("sentinel: {interval: 0s}", "`sentinel.interval`"),
            ("sentinel: {daemonSets: [cilium]}", "NAMESPACE/NAME"),
            ("sentinel: {namespace: Kured}", "`sentinel.namespace` is `Kured`"),
            ("sentinel: {alerts: {prometheus: 'prometheus:9090'}}", "names no host by http or https"),
            ("sentinel: {alerts: {prometheus: 'http://me:secret@prometheus'}}", "has a user"),
            ("sentinel: {alerts: {ignore: ['Watch.*']}}", "`sentinel.alerts.ignore` has `Watch.*`"),
            ("sentinel: {alerts: {heartbeat: ''}}", "`sentinel.alerts.heartbeat`"),
            ("sentinel: {alerts: {ignored: []}}", "did you mean `ignore`?"),
            ("kured: kube-system", "NAMESPACE/NAME"),
            ("loadBalancer: pfsense", "pfsense"),
        ] {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
