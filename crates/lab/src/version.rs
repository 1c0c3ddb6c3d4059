//! Versions of Kubernetes, as its tags are written (`v1.36.1`).

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// A release of Kubernetes 1.x.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    minor: u32,
    patch: u32,
}

impl Version {
    /// Release 1.`minor`.`patch`.
    #[must_use]
    pub const fn new(minor: u32, patch: u32) -> Self {
        Self { minor, patch }
    }

    /// The minor number: 36 of v1.36.1.
    #[must_use]
    pub const fn minor(self) -> u32 {
        self.minor
    }

    /// Without the leading `v`, as Debian packages have it: `1.36.1`.
    #[must_use]
    pub fn bare(self) -> String {
        format!("1.{}.{}", self.minor, self.patch)
    }

    /// The series of the package repository: `v1.36`.
    #[must_use]
    pub fn series(self) -> String {
        format!("v1.{}", self.minor)
    }

    /// The version of the staging modules (`k8s.io/api` …) of this release: `v0.36.1`.
    #[must_use]
    pub fn staging(self) -> String {
        format!("v0.{}.{}", self.minor, self.patch)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1.{}.{}", self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted = || format!("`{text}` is not a version like v1.36.1");
        let Some((minor, patch)) = text.strip_prefix("v1.").and_then(|rest| rest.split_once('.')) else {
            bail!(wanted());
        };
        Ok(Self { minor: minor.parse().with_context(wanted)?, patch: patch.parse().with_context(wanted)? })
    }
}

impl TryFrom<String> for Version {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

/// The name of a set of versions: sorted, each once, joined by `+`.
pub(crate) fn set_name(versions: &[Version]) -> String {
    sorted(versions).iter().map(ToString::to_string).collect::<Vec<_>>().join("+")
}

/// The same versions, sorted, each once.
pub(crate) fn sorted(versions: &[Version]) -> Vec<Version> {
    let mut set = versions.to_vec();
    set.sort_unstable();
    set.dedup();
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_and_written_in_all_its_forms() {
        let v: Version = "v1.36.1".parse().unwrap();
        assert_eq!(v, Version::new(36, 1));
        assert_eq!(v.to_string(), "v1.36.1");
        assert_eq!((v.bare(), v.series(), v.staging()), ("1.36.1".into(), "v1.36".into(), "v0.36.1".into()));
        assert_eq!(serde_json::to_string(&v).unwrap(), "\"v1.36.1\"");
        for bad in ["1.36.1", "v1.36", "v2.0.0", "v1.36.x", "v1.36.1-rc.0", ""] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_set_has_one_name_in_any_order() {
        let (a, b) = (Version::new(36, 1), Version::new(36, 3));
        assert_eq!(set_name(&[b, a, b]), "v1.36.1+v1.36.3");
        assert_eq!(set_name(&[a, b]), set_name(&[b, a]));
    }
}
