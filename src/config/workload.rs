//! Workloads that the configuration names.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// A workload that may be scaled.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workload {
    /// Its namespace.
    #[cfg_attr(test, schemars(regex(pattern = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")))]
    pub namespace: String,
    /// Its name.
    #[cfg_attr(test, schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")))]
    pub name: String,
    /// What it is.
    #[serde(default)]
    pub kind: WorkloadKind,
}

/// The kinds of workload that are scaled.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WorkloadKind {
    /// apps/v1 Deployment.
    #[default]
    Deployment,
    /// apps/v1 StatefulSet.
    StatefulSet,
}

impl WorkloadKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Deployment, Self::StatefulSet];

    /// As Kubernetes spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.name(), self.namespace, self.name)
    }
}

/// Checks a list of workloads.
///
/// # Errors
/// One line on the first that is wrong, without the name of the key.
pub(super) fn check(listed: &[Workload]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for workload in listed {
        let Workload { namespace, name, .. } = workload;
        if namespace.len() > 63 || !is_label(namespace) {
            return Err(format!(
                "names namespace `{namespace}`: expected at most 63 lower-case letters, digits and `-`, such as shop"
            ));
        }
        if name.len() > 253 || !name.split('.').all(is_label) {
            return Err(format!(
                "names `{name}` in namespace {namespace}: expected lower-case letters, digits, `-` and `.`, such as operator"
            ));
        }
        if !seen.insert(workload) {
            return Err(format!("names {workload} twice: once is enough"));
        }
    }
    Ok(())
}

/// Whether it is what names of objects are made of (RFC 1123), its length apart.
pub(super) fn is_label(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inside) && !text.starts_with('-') && !text.ends_with('-')
}
