//! kubeadm, kubelet and kubectl as Debian packages, and a repository of them laid out like the public one: a folder a
//! minor version, so that `apt-get install kubeadm=1.36.3-1.1` is real.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::kubernetes;
use crate::cache::{Cache, GIB, Key};
use crate::command::{capture, command, run, write};
use crate::output::stage;
use crate::version::{Version, set_name, sorted};

const PACKAGES: [&str; 3] = ["kubeadm", "kubelet", "kubectl"];
const BUILD: [&str; 4] = ["-Zgzip", "-z1", "--root-owner-group", "-b"];

const UNIT: &str = "[Unit]
Description=kubelet
After=containerd.service
[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=2
[Install]
WantedBy=multi-user.target
";

const DROP_IN: &str = r#"[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
"#;

const POSTINST: &str = "#!/bin/sh
[ -d /run/systemd/system ] && systemctl daemon-reload
systemctl enable kubelet >/dev/null 2>&1 || true
";

fn control(package: &str, version: Version) -> String {
    format!(
        "Package: {package}\nVersion: {}-1.1\nArchitecture: amd64\nMaintainer: lab <lab@localhost>\nDescription: {package} of Kubernetes {version}\n",
        version.bare()
    )
}

/// The folder with the packages of one release, `kubeadm_1.36.1-1.1_amd64.deb` and so on.
///
/// # Errors
/// The binaries cannot be built, or dpkg-deb failed.
pub fn debs(version: Version) -> Result<PathBuf> {
    let binaries = kubernetes(version)?;
    let mut key = Key::default().with_built(&binaries).with("build", BUILD.join(" "));
    for (name, text) in [("unit", UNIT), ("drop-in", DROP_IN), ("postinst", POSTINST)] {
        key = key.with(name, text);
    }
    for package in PACKAGES {
        key = key.with("control", control(package, version));
    }
    Cache::open()?.entry("debs", &version.to_string(), &key, GIB / 2, |new| {
        let _stage = stage(format_args!("Kubernetes {version}: packages"));
        PACKAGES.iter().try_for_each(|package| make_deb(package, version, &binaries, new))
    })
}

fn make_deb(package: &str, version: Version, binaries: &Path, new: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(new)?;
    let tree = scratch.path().join("tree");
    write(&tree.join("DEBIAN/control"), control(package, version))?;
    fs::create_dir_all(tree.join("usr/bin"))?;
    fs::copy(binaries.join(package), tree.join("usr/bin").join(package))?;
    if package == "kubelet" {
        let units = tree.join("usr/lib/systemd/system");
        write(&units.join("kubelet.service"), UNIT)?;
        write(&units.join("kubelet.service.d/10-kubeadm.conf"), DROP_IN)?;
        let postinst = tree.join("DEBIAN/postinst");
        write(&postinst, POSTINST)?;
        fs::set_permissions(&postinst, fs::Permissions::from_mode(0o755))?;
    }
    run(command("dpkg-deb", BUILD).arg(&tree).arg(new.join(format!("{package}_{}-1.1_amd64.deb", version.bare()))))
}

/// The folder that a machine sees as `/srv/apt`: `core:/stable:/v1.36/deb` with the packages of these versions.
///
/// # Errors
/// The packages cannot be built, or apt-ftparchive failed.
pub fn repository(versions: &[Version]) -> Result<PathBuf> {
    let versions = sorted(versions);
    let built = versions.iter().map(|version| Ok((*version, debs(*version)?))).collect::<Result<Vec<_>>>()?;
    let key = built.iter().fold(Key::default().with("recipe", "1"), |key, (_, folder)| key.with_built(folder));
    Cache::open()?.entry("repository", &set_name(&versions), &key, GIB / 8, |new| {
        let mut folders = Vec::new();
        for (version, packages) in &built {
            let folder = new.join("core:/stable:").join(version.series()).join("deb");
            fs::create_dir_all(&folder)?;
            for package in fs::read_dir(packages)? {
                let package = package?;
                let target = folder.join(package.file_name());
                fs::hard_link(package.path(), &target).with_context(|| format!("cannot link {}", target.display()))?;
            }
            folders.push(folder);
        }
        folders.dedup();
        for folder in folders {
            let packages = capture(command("apt-ftparchive", ["packages", "."]).current_dir(&folder))?;
            write(&folder.join("Packages"), packages)?;
            let release = capture(command("apt-ftparchive", ["release", "."]).current_dir(&folder))?;
            write(&folder.join("Release"), release)?;
        }
        Ok(())
    })
}

/// The line of a machine's `sources.list.d/kubernetes.list` for the series of a version.
pub(crate) fn source_line(version: Version) -> String {
    format!("deb [trusted=yes] file:/srv/apt/core:/stable:/{}/deb /\n", version.series())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_says_its_name_and_version() {
        let text = control("kubeadm", Version::new(36, 3));
        assert!(text.starts_with("Package: kubeadm\nVersion: 1.36.3-1.1\n") && text.ends_with("v1.36.3\n"));
        assert_eq!(source_line(Version::new(35, 4)), "deb [trusted=yes] file:/srv/apt/core:/stable:/v1.35/deb /\n");
    }
}
