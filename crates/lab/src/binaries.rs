//! Where the real components come from, for the tiers that run them as plain processes.

use std::path::PathBuf;

use anyhow::Result;

/// The etcd servers that the lab can run: the newest of each minor version in the crate `etcd-bin-vendored`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EtcdVersion {
    /// 3.5.23
    V3_5,
    /// 3.6.15
    V3_6,
    /// 3.7.2
    V3_7,
}

impl EtcdVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::V3_5, Self::V3_6, Self::V3_7];

    /// The version of the server, as it reports itself.
    pub fn number(self) -> &'static str {
        match self {
            Self::V3_5 => "3.5.23",
            Self::V3_6 => "3.6.15",
            Self::V3_7 => "3.7.2",
        }
    }

    /// The version of `etcdutl` of the same series: Go's module proxy has not each of 3.5.
    pub fn etcdutl(self) -> &'static str {
        match self {
            Self::V3_5 => "3.5.35",
            Self::V3_6 | Self::V3_7 => self.number(),
        }
    }
}

/// The etcd server of this version; fetched on first use (about 10 MB, a few seconds).
///
/// # Errors
/// When it cannot be fetched.
pub fn etcd_server(version: EtcdVersion) -> Result<PathBuf> {
    Ok(crate::build::etcd(version.number())?.join("etcd"))
}

/// `etcdutl` for this version, see [`EtcdVersion::etcdutl`]; built on first use.
///
/// # Errors
/// When it cannot be built.
pub fn etcdutl(version: EtcdVersion) -> Result<PathBuf> {
    Ok(crate::build::etcd_tools(version.etcdutl())?.join("etcdutl"))
}

/// `etcdctl` of the machines' version, which speaks with servers of each; built on first use.
///
/// # Errors
/// When it cannot be built.
pub fn etcdctl() -> Result<PathBuf> {
    Ok(crate::build::etcd_tools(crate::build::MACHINE_ETCD)?.join("etcdctl"))
}

/// Prometheus; fetched from Debian on first use (about 20 MB).
///
/// # Errors
/// When it cannot be fetched.
pub fn prometheus() -> Result<PathBuf> {
    Ok(crate::build::prometheus()?.join("prometheus"))
}

/// The folder with the Kubernetes programs of one release, for example `v1.36.1`; built on first use, in minutes.
///
/// # Errors
/// When `version` is none, or it cannot be built.
pub fn kubernetes(version: &str) -> Result<PathBuf> {
    crate::build::kubernetes(version.parse()?)
}
