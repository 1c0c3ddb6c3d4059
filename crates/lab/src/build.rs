//! What machines and tests run: real binaries, packages, images and a machine root, each built once and kept in the
//! [`Cache`](crate::cache::Cache). A test asks for the least it needs; what an item needs itself is built first.
//!
//! Binaries come from package registries only: Kubernetes commands and etcd's tools are built as tools of small Go
//! modules, etcd servers come in the crate `etcd-bin-vendored`, the rest is Debian's.

mod etcd;
mod images;
mod kubernetes;
mod packages;
mod prometheus;
mod root;
mod store;

use anyhow::Result;

pub use etcd::{etcd, etcd_tools};
pub use images::images;
pub use kubernetes::kubernetes;
pub use packages::{debs, repository};
pub use prometheus::prometheus;
pub use root::{machine_layer, machine_root};
pub use store::store;

use crate::cache::{Cache, GIB, need_space};
use crate::command::{capture, command, require};
use crate::version::Version;

/// The versions that `lab build` makes unless told otherwise: the upgrade that `make demo` shows.
pub const DEFAULT_VERSIONS: [Version; 2] = [Version::new(36, 1), Version::new(36, 3)];
/// The etcd that runs on machines.
pub const MACHINE_ETCD: &str = "3.6.15";
/// The tag of its image: what kubeadm 1.34 to 1.36 ask for. The binary inside is [`MACHINE_ETCD`].
pub const ETCD_TAG: &str = "3.6.8-0";
/// The tags of the pause image that kubeadm 1.35 and 1.36 and the machines' containerd ask for.
pub const PAUSE_TAGS: [&str; 3] = ["3.10", "3.10.1", "3.10.2"];

/// The commands of a release that run in containers.
pub(crate) const COMPONENTS: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"];

/// The host's programs that building takes, besides Go and Cargo.
const HOST_PROGRAMS: [&str; 13] = [
    "go",
    "cargo",
    "setpriv",
    "gcc",
    "strip",
    "mmdebstrap",
    "chroot",
    "dpkg-deb",
    "apt-get",
    "apt-ftparchive",
    "systemd-nspawn",
    "haproxy",
    "ip",
];

/// Builds all that machines of these versions need: `lab build`.
///
/// # Errors
/// A host program or disk is missing, or a step failed; nothing half made is left.
pub fn all(versions: &[Version]) -> Result<()> {
    require(&HOST_PROGRAMS)?;
    let cache = Cache::open()?;
    let missing = versions.iter().filter(|version| !kubernetes::is_built(&cache, **version)).count() as u64;
    if missing > 0 {
        // Measured: 1 GiB of modules, 2.5 GiB of Go's build cache and 2.5 GiB of results for one version; less for each more.
        need_space(cache.root(), (4 + 3 * missing) * GIB, &format!("build {missing} version(s) from nothing"))?;
    }
    for version in versions {
        machine_layer(*version)?;
    }
    store(versions)?;
    repository(versions)?;
    prometheus()?;
    Ok(())
}

/// The Go release that builds: part of every key of what Go built.
fn go_version() -> Result<String> {
    Ok(capture(&mut command("go", ["env", "GOVERSION"]))?.trim().to_owned())
}
