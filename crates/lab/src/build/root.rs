//! The file systems that machines boot from: Debian with systemd, containerd and runc, and over it a thin layer with the
//! packages of one Kubernetes version, so that `up` neither unpacks nor copies them for each machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{debs, packages};
use crate::cache::{Cache, GIB, Key};
use crate::command::{run, tied, write};
use crate::output::stage;
use crate::tree;
use crate::version::Version;

const SUITE: &str = "trixie";
const INCLUDE: &str = "systemd-sysv,dbus,iproute2,runc,containerd,kmod,procps,ca-certificates,containernetworking-plugins,\
nftables,iptables,conntrack,ethtool,socat,curl,mount,jq,apt,dpkg";
const HOOK: &str = "rm -rf $1/var/cache/apt/archives/*.deb";
/// Units that would touch the network the lab gives a machine, or update packages behind a test's back.
const MASKED: [&str; 6] = [
    "systemd-networkd.service",
    "systemd-networkd-wait-online.service",
    "systemd-networkd.socket",
    "systemd-resolved.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
];

fn entry() -> Result<PathBuf> {
    let key =
        Key::default().with("suite", SUITE).with("include", INCLUDE).with("hook", HOOK).with("mask", MASKED.join(" "));
    Cache::open()?.entry("root", SUITE, &key, 2 * GIB, |new| {
        let _stage = stage("the machines' root (Debian trixie)");
        let root = new.join("rootfs");
        run(tied("mmdebstrap", ["--variant=minbase"])
            .arg(format!("--include={INCLUDE}"))
            .arg(format!("--customize-hook={HOOK}"))
            .arg(SUITE)
            .arg(&root))?;
        for unit in MASKED {
            let mask = root.join("etc/systemd/system").join(unit);
            if fs::symlink_metadata(&mask).is_ok() {
                fs::remove_file(&mask)?;
            }
            symlink("/dev/null", &mask)?;
        }
        let sources = root.join("etc/apt/sources.list");
        if sources.exists() {
            fs::remove_file(sources)?;
        }
        fs::create_dir_all(root.join("srv/apt"))?;
        fs::create_dir_all(root.join("etc/apt/keyrings"))?;
        Ok(())
    })
}

/// The root file system of all machines, without Kubernetes.
///
/// # Errors
/// mmdebstrap is missing or failed, or there is too little disk.
pub fn machine_root() -> Result<PathBuf> {
    Ok(entry()?.join("rootfs"))
}

/// The folder of the cache that holds it, for keys.
pub(super) fn machine_root_entry() -> Result<PathBuf> {
    entry()
}

const INSTALL: &str = "apt-get update -qq 2>/dev/null; \
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \"$@\" >/dev/null && \
apt-mark hold kubeadm kubelet kubectl >/dev/null";

/// A layer over [`machine_root`] in which kubeadm, kubelet and kubectl of a version are installed and held, as by an
/// administrator, and the package source is set.
///
/// # Errors
/// The packages cannot be built, or apt failed.
pub fn machine_layer(version: Version) -> Result<PathBuf> {
    let root = entry()?;
    let debs = debs(version)?;
    let key = Key::default().with_built(&root).with_built(&debs).with("install", INSTALL);
    let layer = Cache::open()?.entry("layer", &version.to_string(), &key, GIB / 2, |new| {
        let repository = super::repository(&[version])?;
        let _stage = stage(format_args!("Kubernetes {version}: machine layer"));
        make_layer(version, &root.join("rootfs"), &repository, new)
    })?;
    Ok(layer.join("upper"))
}

fn make_layer(version: Version, root: &Path, repository: &Path, new: &Path) -> Result<()> {
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| new.join(name));
    for folder in [&upper, &work, &merged] {
        tree::make_public(folder)?;
    }
    crate::machine::mount_overlay(&[root], &upper, &work, &merged)?;
    write(&merged.join("etc/apt/sources.list.d/kubernetes.list"), packages::source_line(version))?;
    let source = merged.join("srv/apt");
    rustix::mount::mount_bind(repository, &source).context("cannot bind the repository")?;
    let done = run(tied("chroot", [merged.as_os_str()])
        .args(["/bin/sh", "-c", INSTALL, "install"])
        .args(["kubeadm", "kubelet", "kubectl"].map(|name| format!("{name}={}-1.1", version.bare())))
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
    tree::unmount_below(new)?;
    done?;
    tree::remove(&work)?;
    tree::remove(&merged)
}
