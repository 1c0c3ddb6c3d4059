//! Kubernetes versions.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A released version, `v1.36.3`. Ordered as releases are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    /// Major, always 1 so far.
    pub major: u16,
    /// Minor.
    pub minor: u16,
    /// Patch.
    pub patch: u16,
}

/// Text that is not a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a Kubernetes release: expected three numbers, such as v1.36.3")]
pub struct VersionError(pub String);

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || VersionError(text.to_owned());
        let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
        let mut number = || -> Result<u16, VersionError> {
            let digits = parts.next().ok_or_else(wrong)?;
            // No signs, no spaces, no leading zeros: what apt and kubeadm would not take is not taken here.
            if digits.is_empty()
                || digits.len() > 1 && digits.starts_with('0')
                || !digits.bytes().all(|b| b.is_ascii_digit())
            {
                return Err(wrong());
            }
            digits.parse().map_err(|_| wrong())
        };
        let version = Self { major: number()?, minor: number()?, patch: number()? };
        if parts.next().is_some() { Err(wrong()) } else { Ok(version) }
    }
}

impl TryFrom<String> for Version {
    type Error = VersionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_releases_and_nothing_else() {
        assert_eq!("v1.36.3".parse::<Version>().unwrap().to_string(), "v1.36.3");
        assert!("1.36.10".parse::<Version>().unwrap() > "v1.36.9".parse().unwrap());
        for wrong in
            ["", "v1.36", "v1.36.3.1", "v1.36.x", "v1.36.-3", "v1.036.3", "v1.36.3-rc.1", "1. 36.3", "v1.36.99999"]
        {
            let error = wrong.parse::<Version>().unwrap_err().to_string();
            assert!(error.contains("v1.36.3"), "{error}");
        }
    }
}
