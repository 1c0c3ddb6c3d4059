//! The commands of one Kubernetes release, as tools of a small Go module: k8s.io/kubernetes and the staging modules that it replaces by
//! folders, of the same release, in folders again. So no package knows of which release it is, and what two releases have in common
//! is compiled once: all but a few files of a patch release.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{COMPONENTS, go_version};
use crate::cache::{Cache, GIB, Key};
use crate::command::{capture, read, run, tied, write};
use crate::output::stage;
use crate::version::Version;

const KIND: &str = "kubernetes";
/// Raise when the way of building changes in a manner that the other inputs of the key do not show.
const RECIPE: &str = "2";

fn commands() -> impl Iterator<Item = &'static str> {
    COMPONENTS.into_iter().chain(["kubelet", "kubeadm", "kubectl"])
}

fn key(version: Version) -> Result<Key> {
    Ok(Key::default()
        .with("recipe", RECIPE)
        .with("go", go_version()?)
        .with("module", go_mod(""))
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

/// The version at which all modules of a release are required: of which one they are must not show.
const NO_VERSION: &str = "v0.0.0";

/// The staging modules that k8s.io/kubernetes itself requires, by its module file; not each release of the others is published.
fn staging_modules(upstream: &str) -> Vec<&str> {
    let required: Vec<&str> =
        upstream.lines().filter_map(|line| line.trim().strip_suffix(" v0.0.0")).map(str::trim).collect();
    let replaced = upstream.lines().filter_map(|line| line.trim().split_once(" => ./staging/"));
    replaced.map(|(module, _)| module.trim()).filter(|module| required.contains(module)).collect()
}

/// The module file: the `go` and `godebug` lines of the release's own, its modules in `../src`, our tools.
pub(super) fn go_mod(upstream: &str) -> String {
    let mut text = String::from("module quorate.dev/lab/kubernetes\n\n");
    for line in upstream.lines().filter(|line| line.starts_with("go ") || line.starts_with("godebug ")) {
        text += line;
        text.push('\n');
    }
    text += &format!("require k8s.io/kubernetes {NO_VERSION}\nreplace (\n");
    for module in ["k8s.io/kubernetes"].into_iter().chain(staging_modules(upstream)) {
        text += &format!("\t{module} => ../src/{module}\n");
    }
    text += ")\ntool (\n";
    for command in commands() {
        text += &format!("\tk8s.io/kubernetes/cmd/{command}\n");
    }
    text += ")\n";
    text
}

/// A module file of the release that requires its sisters without their version.
fn without_version(text: &str, staging: &[&str], version: &str) -> String {
    let line = |line: &str| {
        let of_release = |module: &&&str| line.split_whitespace().any(|word| word == **module);
        match staging.iter().find(of_release) {
            Some(_) => line.replace(version, NO_VERSION),
            None => line.to_owned(),
        }
    };
    text.lines().map(|it| line(it) + "\n").collect()
}

/// What `go mod download -json` says of a module.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Downloaded {
    path: String,
    #[serde(default)]
    dir: PathBuf,
    #[serde(default)]
    go_mod: PathBuf,
    #[serde(default)]
    error: String,
}

fn download(folder: &Path, modules: &[String]) -> Result<Vec<Downloaded>> {
    let mut command = tied("go", ["mod", "download", "-json"]);
    let answer = capture(command.args(modules).current_dir(folder))?;
    let found = serde_json::Deserializer::from_str(&answer).into_iter().collect::<Result<Vec<Downloaded>, _>>();
    let found = found.context("go mod download did not answer JSON")?;
    for module in &found {
        ensure!(module.error.is_empty(), "go mod download of {}: {}", module.path, module.error);
    }
    ensure!(found.len() == modules.len(), "go mod download gave {} of {} modules", found.len(), modules.len());
    Ok(found)
}

/// Lays out the modules of a release below `src`, and writes the module file of the tools.
fn lay_out(version: Version, module: &Path, src: &Path) -> Result<()> {
    let file = module.join("go.mod");
    write(&file, "module quorate.dev/lab/kubernetes\n")?;
    let kubernetes = download(module, &[format!("k8s.io/kubernetes@{version}")])?;
    let upstream = read(&kubernetes.first().context("k8s.io/kubernetes was not downloaded")?.go_mod)?;
    let staging = staging_modules(&upstream);
    let wanted: Vec<String> = staging.iter().map(|name| format!("{name}@{}", version.staging())).collect();
    for one in kubernetes.iter().chain(&download(module, &wanted)?) {
        let to = src.join(&one.path);
        std::fs::create_dir_all(&to)?;
        // What Go downloaded is read-only, and its links lead nowhere else.
        run(tied("cp", ["-r", "--no-preserve=mode,ownership", "-T"]).arg(&one.dir).arg(&to))?;
        let own = to.join("go.mod");
        write(&own, without_version(&read(&own)?, &staging, &version.staging()))?;
    }
    write(&file, go_mod(&upstream))?;
    run(tied("go", ["mod", "tidy"]).current_dir(module))
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
    let (module, src) = (new.join("module"), new.join("src"));
    {
        let _stage = stage(format_args!("Kubernetes {version}: modules"));
        lay_out(version, &module, &src)?;
    }
    let _stage = stage(format_args!("Kubernetes {version}: {}", commands().collect::<Vec<_>>().join(", ")));
    // All at once: linking takes one core, and the other one compiles meanwhile. Without paths: with them a package would be compiled
    // again in each folder. The compiler cleans up behind itself only when it has taken 4 GiB: that takes a part of its time.
    run(tied("go", ["build", "-trimpath", "-ldflags", &linker_flags(version), "-o"])
        .arg(new.join(""))
        .args(commands().map(|command| format!("k8s.io/kubernetes/cmd/{command}")))
        .current_dir(&module)
        .env("CGO_ENABLED", "0")
        .env("GOGC", "off")
        .env("GOMEMLIMIT", "4GiB"))?;
    std::fs::remove_dir_all(&src)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPSTREAM: &str = "module k8s.io/kubernetes\n\ngo 1.26.0\n\ngodebug default=go1.26\n\nrequire (\n\tk8s.io/api v0.0.0\n\tk8s.io/kubelet v0.0.0\n)\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tk8s.io/kubelet => ./staging/src/k8s.io/kubelet\n\tk8s.io/sample-cli-plugin => ./staging/src/k8s.io/sample-cli-plugin\n)\n";

    #[test]
    fn the_module_file_has_the_modules_of_the_release_in_folders() {
        let expected = "module quorate.dev/lab/kubernetes\n\ngo 1.26.0\ngodebug default=go1.26\nrequire k8s.io/kubernetes v0.0.0\nreplace (\n\tk8s.io/kubernetes => ../src/k8s.io/kubernetes\n\tk8s.io/api => ../src/k8s.io/api\n\tk8s.io/kubelet => ../src/k8s.io/kubelet\n)\ntool (\n\tk8s.io/kubernetes/cmd/kube-apiserver\n\tk8s.io/kubernetes/cmd/kube-controller-manager\n\tk8s.io/kubernetes/cmd/kube-scheduler\n\tk8s.io/kubernetes/cmd/kube-proxy\n\tk8s.io/kubernetes/cmd/kubelet\n\tk8s.io/kubernetes/cmd/kubeadm\n\tk8s.io/kubernetes/cmd/kubectl\n)\n";
        assert_eq!(go_mod(UPSTREAM), expected);
    }

    #[test]
    fn no_module_of_a_release_says_of_which_one_it_is() {
        let text = "module k8s.io/kubelet\n\nrequire (\n\tgolang.org/x/sys v0.36.1\n\tk8s.io/api v0.36.1\n\tk8s.io/api-other v0.36.1 // indirect\n)\n";
        let expected = text.replace("k8s.io/api v0.36.1", "k8s.io/api v0.0.0");
        assert_eq!(without_version(text, &staging_modules(UPSTREAM), "v0.36.1"), expected);
    }

    #[test]
    fn the_version_is_stamped_into_both_packages() {
        let flags = linker_flags(Version::new(36, 3));
        assert!(flags.contains("k8s.io/component-base/version.gitVersion=v1.36.3"));
        assert!(flags.contains("k8s.io/client-go/pkg/version.gitMinor=36 "));
    }
}
