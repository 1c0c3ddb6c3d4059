//! The commands of one Kubernetes release, as tools of a small Go module: the staging modules that k8s.io/kubernetes
//! replaces by folders are required at the version of the same release instead.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{COMPONENTS, go_version};
use crate::cache::{Cache, GIB, Key};
use crate::command::{capture, read, run, tied, write};
use crate::output::stage;
use crate::version::Version;

const KIND: &str = "kubernetes";
/// Raise when the way of building changes in a manner that the other inputs of the key do not show.
const RECIPE: &str = "1";

fn commands() -> impl Iterator<Item = &'static str> {
    COMPONENTS.into_iter().chain(["kubelet", "kubeadm", "kubectl"])
}

fn key(version: Version) -> Result<Key> {
    Ok(Key::default()
        .with("recipe", RECIPE)
        .with("go", go_version()?)
        .with("module", go_mod(version, ""))
        .with("flags", linker_flags(version)))
}

/// The folder with `kube-apiserver`, `kube-controller-manager`, `kube-scheduler`, `kube-proxy`, `kubelet`, `kubeadm`
/// and `kubectl` of a release. Takes 5 minutes on 2 cores the first time.
///
/// # Errors
/// Go or disk is missing, the module proxy cannot be reached, or the build failed.
pub fn kubernetes(version: Version) -> Result<PathBuf> {
    Cache::open()?.entry(KIND, &version.to_string(), &key(version)?, GIB, |new| make(version, new))
}

/// Whether a version is there already, whatever its key: for the estimate of disk only.
pub(super) fn is_built(cache: &Cache, version: Version) -> bool {
    std::fs::read_dir(cache.root().join(KIND)).is_ok_and(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{version}@")))
        })
    })
}

/// The module file: the `go` and `godebug` lines of the release's own, its staging modules by version, our tools.
pub(super) fn go_mod(version: Version, upstream: &str) -> String {
    let mut text = String::from("module quorate.dev/lab/kubernetes\n\n");
    for line in upstream.lines().filter(|line| line.starts_with("go ") || line.starts_with("godebug ")) {
        text += line;
        text.push('\n');
    }
    text += &format!("require k8s.io/kubernetes {version}\nreplace (\n");
    for line in upstream.lines() {
        if let Some((module, _)) = line.trim().split_once(" => ./staging/") {
            let module = module.trim();
            text += &format!("\t{module} => {module} {}\n", version.staging());
        }
    }
    text += ")\ntool (\n";
    for command in commands() {
        text += &format!("\tk8s.io/kubernetes/cmd/{command}\n");
    }
    text += ")\n";
    text
}

/// What upstream's build stamps into its binaries: without it kubeadm takes itself for v0.0.0.
fn linker_flags(version: Version) -> String {
    let mut flags = String::from("-s -w");
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        let minor = version.minor();
        flags += &format!(
            " -X {package}.gitVersion={version} -X {package}.gitMajor=1 -X {package}.gitMinor={minor} -X {package}.gitTreeState=clean"
        );
    }
    flags
}

fn make(version: Version, new: &Path) -> Result<()> {
    let module = new.join("module");
    let file = module.join("go.mod");
    {
        let _stage = stage(format_args!("Kubernetes {version}: modules"));
        write(&file, "module quorate.dev/lab/kubernetes\n")?;
        let wanted = format!("k8s.io/kubernetes@{version}");
        let answer = capture(tied("go", ["mod", "download", "-json", &wanted]).current_dir(&module))?;
        let answer: serde_json::Value = serde_json::from_str(&answer).context("go mod download did not answer JSON")?;
        let Some(upstream) = answer.get("GoMod").and_then(serde_json::Value::as_str) else {
            bail!("go mod download gave no module file for {wanted}: {answer}");
        };
        write(&file, go_mod(version, &read(Path::new(upstream))?))?;
        run(tied("go", ["mod", "tidy"]).current_dir(&module))?;
    }
    for command in commands() {
        let _stage = stage(format_args!("Kubernetes {version}: {command}"));
        let out = new.join(command);
        run(tied("go", ["build", "-trimpath", "-ldflags", &linker_flags(version), "-o"])
            .arg(&out)
            .arg(format!("k8s.io/kubernetes/cmd/{command}"))
            .current_dir(&module)
            .env("CGO_ENABLED", "0"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_file_requires_staging_modules_by_version() {
        let upstream = "module k8s.io/kubernetes\n\ngo 1.26.0\n\ngodebug default=go1.26\n\nrequire (\n\tk8s.io/api v0.0.0\n)\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tk8s.io/kubelet => ./staging/src/k8s.io/kubelet\n)\n";
        let expected = "module quorate.dev/lab/kubernetes\n\ngo 1.26.0\ngodebug default=go1.26\nrequire k8s.io/kubernetes v1.36.1\nreplace (\n\tk8s.io/api => k8s.io/api v0.36.1\n\tk8s.io/kubelet => k8s.io/kubelet v0.36.1\n)\ntool (\n\tk8s.io/kubernetes/cmd/kube-apiserver\n\tk8s.io/kubernetes/cmd/kube-controller-manager\n\tk8s.io/kubernetes/cmd/kube-scheduler\n\tk8s.io/kubernetes/cmd/kube-proxy\n\tk8s.io/kubernetes/cmd/kubelet\n\tk8s.io/kubernetes/cmd/kubeadm\n\tk8s.io/kubernetes/cmd/kubectl\n)\n";
        assert_eq!(go_mod(Version::new(36, 1), upstream), expected);
    }

    #[test]
    fn the_version_is_stamped_into_both_packages() {
        let flags = linker_flags(Version::new(36, 3));
        assert!(flags.contains("k8s.io/component-base/version.gitVersion=v1.36.3"));
        assert!(flags.contains("k8s.io/client-go/pkg/version.gitMinor=36 "));
    }
}
