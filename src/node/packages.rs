//! The host's package manager. Everything that knows apt is here; another manager would be one more variant of
//! [`PackageManager`], one more line in [`PackageManager::detect`], and one more arm in each function below.

use super::command::{Deadline, Echo, ToolError, ask, run, run_last};
use super::repository::{self, Form, Minor};
use crate::output;
use crate::replace::replace;
use crate::version::Version;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The packages of Kubernetes on a node.
pub(super) const NAMES: [&str; 3] = ["kubeadm", "kubectl", "kubelet"];

/// How long one work of the package manager may take.
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// How long another one at work on this host, such as unattended upgrades, is waited for.
const LOCKED: Duration = Duration::from_secs(120);

/// What the package manager knows of [`NAMES`]; what is in neither map is not installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Packages {
    /// The installed ones, with their versions.
    pub(super) installed: BTreeMap<String, Version>,
    /// The ones that somebody began to install and did not finish, such as a node step that was killed meanwhile.
    pub(super) half_done: BTreeMap<String, HalfDone>,
    /// The ones that are held.
    pub(super) held: Vec<String>,
}

/// A package between two states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HalfDone {
    /// The package manager's word for its state.
    pub(super) state: &'static str,
    /// The version that it goes by, where there is one: the old one until all files are there.
    pub(super) version: Option<Version>,
    /// Whether its files are not all there: it can only be installed again, at whatever version.
    pub(super) torn: bool,
}

/// A package manager that the node step can work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PackageManager {
    /// Debian, Ubuntu and kin.
    Apt,
}

/// Why packages cannot be dealt with.
#[derive(Debug, thiserror::Error)]
pub(super) enum PackageError {
    #[error("{0}")]
    Tool(#[from] ToolError),
    #[error("packages are managed by {0} here: only apt is supported so far")]
    Unsupported(&'static str),
    #[error("no package manager is found on this host: only apt is supported so far")]
    None,
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the package manager answered what is not understood: `{0}`")]
    NotUnderstood(String),
    #[error(
        "no package source names a repository of Kubernetes (`…/core:/stable:/v1.36/deb/`), and {0} is not to be had otherwise"
    )]
    NoRepository(Version),
}

/// A file of package sources that names Kubernetes minor versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    path: PathBuf,
    form: Form,
    text: String,
    minors: Vec<Minor>,
}

impl PackageManager {
    /// The one that this host has.
    pub(super) fn detect(root: &Path) -> Result<Self, PackageError> {
        let there = |path: &str| root.join(path).exists();
        if there("usr/bin/apt-get") && there("usr/bin/dpkg-query") {
            return Ok(Self::Apt);
        }
        for (path, name) in [
            ("usr/bin/dnf", "dnf"),
            ("usr/bin/yum", "yum"),
            ("usr/bin/zypper", "zypper"),
            ("usr/bin/rpm-ostree", "rpm-ostree"),
            ("sbin/apk", "apk"),
            ("usr/bin/pacman", "pacman"),
        ] {
            if there(path) {
                return Err(PackageError::Unsupported(name));
            }
        }
        Err(PackageError::None)
    }

    /// Its name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Apt => "apt",
        }
    }

    /// What of [`NAMES`] is here, and how.
    pub(super) async fn known(self, deadline: Deadline) -> Result<Packages, PackageError> {
        // All packages: dpkg-query fails when a name is not known at all, and kubectl need not be on a worker.
        let said = ask("dpkg-query", &["-W", "-f=${db:Status-Abbrev}|${Package}|${Version}\\n"], deadline).await?;
        known(&said.stdout)
    }

    /// Files of package sources that name Kubernetes minor versions.
    pub(super) fn sources(self, root: &Path) -> Result<Vec<Source>, PackageError> {
        let mut paths = vec![root.join("etc/apt/sources.list")];
        let parts = root.join("etc/apt/sources.list.d");
        match std::fs::read_dir(&parts) {
            Ok(entries) => {
                for entry in entries {
                    paths.push(entry.map_err(|source| PackageError::File { path: parts.clone(), source })?.path());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(PackageError::File { path: parts, source }),
        }
        paths.sort();
        let mut found = Vec::new();
        for path in paths {
            let form = match path.extension().and_then(|extension| extension.to_str()) {
                Some("list") => Form::Lines,
                Some("sources") => Form::Deb822,
                _ => continue,
            };
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(PackageError::File { path, source }),
            };
            let minors = repository::minors(&text, form);
            if !minors.is_empty() {
                found.push(Source { path, form, text, minors });
            }
        }
        Ok(found)
    }

    /// Points the host's repository to the target's minor version, and reads that repository's list.
    pub(super) async fn point_to(self, root: &Path, to: Version, deadline: Deadline) -> Result<(), PackageError> {
        let sources = self.sources(root)?;
        let Some(chosen) = choose(&sources, to) else {
            // A mirror of another layout is the host's own affair, as long as it has the target.
            run("apt-get", &["update", "-q"], deadline.within(LIMIT), Echo::Lines).await?;
            return match self.lacking(to, &[], deadline).await?.as_slice() {
                [] => Ok(()),
                _ => Err(PackageError::NoRepository(to)),
            };
        };
        if let Some(text) = chosen.text_for(to) {
            write_over(&chosen.path, &text)?;
        }
        let path = chosen.path.to_string_lossy().into_owned();
        let mut options = vec!["update".to_owned(), "-q".to_owned(), "-oAPT::Get::List-Cleanup=0".to_owned()];
        options.extend(only(&path));
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        run("apt-get", &options, deadline.within(LIMIT), Echo::Lines).await?;
        Ok(())
    }

    /// Which packages the repository of the target's minor version does not have at the target's version. Looks without changing
    /// the host's sources or lists: a copy of both lies in `/run` meanwhile.
    pub(super) async fn lacking_there(
        self,
        root: &Path,
        to: Version,
        deadline: Deadline,
    ) -> Result<Vec<&'static str>, PackageError> {
        let sources = self.sources(root)?;
        let Some(chosen) = choose(&sources, to) else { return self.lacking(to, &[], deadline).await };
        let aside = Aside::new(root)?;
        let list = aside.0.join(match chosen.form {
            Form::Lines => "kubernetes.list",
            Form::Deb822 => "kubernetes.sources",
        });
        let text = chosen.text_for(to).unwrap_or_else(|| chosen.text.clone());
        std::fs::write(&list, text).map_err(|source| PackageError::File { path: list.clone(), source })?;
        let mut options = only(&list.to_string_lossy());
        options.push(format!("-oDir::State::lists={}", aside.0.join("lists").display()));
        options.push("-oDir::Cache::pkgcache=".to_owned());
        options.push("-oDir::Cache::srcpkgcache=".to_owned());
        let update: Vec<&str> = ["update", "-q"].into_iter().chain(options.iter().map(String::as_str)).collect();
        run("apt-get", &update, deadline.within(LIMIT), Echo::Nothing).await?;
        self.lacking(to, &options, deadline).await
    }

    async fn lacking(
        self,
        to: Version,
        options: &[String],
        deadline: Deadline,
    ) -> Result<Vec<&'static str>, PackageError> {
        let arguments: Vec<&str> =
            ["madison"].into_iter().chain(NAMES).chain(options.iter().map(String::as_str)).collect();
        let said = ask("apt-cache", &arguments, deadline).await?;
        Ok(NAMES.into_iter().filter(|name| !offered(&said.stdout, name, to)).collect())
    }

    /// Installs packages at the target's version, held or not, whatever a package manager that was killed has left of them.
    pub(super) async fn install(
        self,
        root: &Path,
        names: &[&str],
        to: Version,
        deadline: Deadline,
    ) -> Result<(), PackageError> {
        let unhold: Vec<&str> = std::iter::once("unhold").chain(names.iter().copied()).collect();
        patiently("apt-mark", &unhold, deadline).await?;
        // Only now: dpkg leaves held packages as they are.
        if journal_left(root)? || !self.known(deadline).await?.half_done.is_empty() {
            finish_interrupted(deadline).await;
        }
        let mut arguments = vec!["install", "-y", "-q", "-oDPkg::Lock::Timeout=120"];
        // An administrator's /etc/default/kubelet stays as it is.
        arguments.extend(["-oDpkg::Options::=--force-confdef", "-oDpkg::Options::=--force-confold"]);
        let pinned: Vec<String> = names.iter().map(|name| format!("{name}={}-*", number(to))).collect();
        arguments.extend(pinned.iter().map(String::as_str));
        // Unpacking takes a core for seconds, and the disk: etcd and the apiservers come first.
        run_last("apt-get", &arguments, deadline.within(LIMIT), Echo::Lines).await?;
        Ok(())
    }

    /// Holds packages, so that nothing but an upgrade moves them.
    pub(super) async fn hold(self, names: &[&str], deadline: Deadline) -> Result<(), PackageError> {
        let arguments: Vec<&str> = std::iter::once("hold").chain(names.iter().copied()).collect();
        patiently("apt-mark", &arguments, deadline).await?;
        Ok(())
    }
}

impl Source {
    /// The text that names the target's minor version; none when it does already.
    fn text_for(&self, to: Version) -> Option<String> {
        let wanted = (to.major, to.minor);
        let highest = self.minors.last().copied().filter(|_| !self.minors.contains(&wanted))?;
        Some(repository::rewritten(&self.text, self.form, highest, to))
    }
}

/// The source to use: one that names the target's minor version, or the one with the highest.
fn choose(sources: &[Source], to: Version) -> Option<&Source> {
    let wanted = (to.major, to.minor);
    sources.iter().find(|it| it.minors.contains(&wanted)).or_else(|| sources.iter().max_by_key(|it| it.minors.last()))
}

/// Options that make apt see one file of sources only.
fn only(path: &str) -> Vec<String> {
    vec![format!("-oDir::Etc::sourcelist={path}"), "-oDir::Etc::sourceparts=-".to_owned()]
}

/// `1.36.3`, as packages are numbered.
fn number(version: Version) -> String {
    format!("{}.{}.{}", version.major, version.minor, version.patch)
}

/// Whether a dpkg was killed and left its journal behind, with which apt refuses everything. Its names are digits; `tmp.i` is no entry.
fn journal_left(root: &Path) -> Result<bool, PackageError> {
    let path = root.join("var/lib/dpkg/updates");
    let wrong = |source| PackageError::File { path: path.clone(), source };
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(wrong(error)),
    };
    for entry in entries {
        let name = entry.map_err(wrong)?.file_name();
        if name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Has dpkg finish what a killed one left. That it fails is not the end: a package whose files are not all there cannot be
/// configured, only installed again, and that comes next; whatever else is wrong stops apt-get too, which says so.
async fn finish_interrupted(deadline: Deadline) {
    output::progress("a package manager was killed on this host: dpkg finishes what it left");
    let arguments = ["--configure", "-a", "--force-confdef", "--force-confold"];
    if let Err(error) = patiently("dpkg", &arguments, deadline).await {
        output::progress(&format!("dpkg could not finish all of it: {error}"));
    }
}

/// Runs a tool that needs dpkg's lock and, unlike apt-get, fails at once while another one is at work.
async fn patiently(program: &str, arguments: &[&str], deadline: Deadline) -> Result<(), ToolError> {
    let until = Deadline::after(deadline.within(LOCKED));
    loop {
        match run(program, arguments, deadline.within(LIMIT), Echo::Lines).await {
            Err(error) if is_locked(&error.last_lines()) && !until.passed() => {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            ended => return ended.map(drop),
        }
    }
}

/// Whether dpkg said that another one is at work.
fn is_locked(last: &[String]) -> bool {
    last.iter().any(|line| line.contains("locked by another process"))
}

/// Reads dpkg-query's lines `ii |kubeadm|1.36.1-1.1`: what is wanted, what is, and `R` when it must be installed again (dpkg-query(1)).
fn known(text: &str) -> Result<Packages, PackageError> {
    let mut found = Packages::default();
    for line in text.lines() {
        let mut fields = line.split('|').map(str::trim);
        let (Some(status), Some(name), Some(version)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(PackageError::NotUnderstood(line.to_owned()));
        };
        if !NAMES.contains(&name) {
            continue;
        }
        // What apt-mark calls held is dpkg's selection `hold`.
        if status.starts_with('h') {
            found.held.push(name.to_owned());
        }
        let wrong = || PackageError::NotUnderstood(line.to_owned());
        let upstream = version.split_once('-').map_or(version, |(upstream, _)| upstream);
        let version = upstream.parse::<Version>();
        let again = status.chars().nth(2) == Some('R');
        let state = match status.chars().nth(1) {
            // Never there, or removed.
            Some('n' | 'c') if !again => continue,
            Some('i') if !again => {
                found.installed.insert(name.to_owned(), version.map_err(|_| wrong())?);
                continue;
            }
            Some('n' | 'c' | 'i') => "to be installed again",
            Some('H') => "half installed",
            Some('U') => "unpacked",
            Some('F') => "half configured",
            Some('W' | 't') => "waiting for triggers",
            _ => return Err(wrong()),
        };
        let torn = again || state == "half installed";
        found.half_done.insert(name.to_owned(), HalfDone { state, version: version.ok(), torn });
    }
    Ok(found)
}

/// Whether `apt-cache madison` offers a package at a version.
fn offered(madison: &str, name: &str, to: Version) -> bool {
    let wanted = format!("{}-", number(to));
    madison.lines().any(|line| {
        let mut fields = line.split('|').map(str::trim);
        fields.next() == Some(name) && fields.next().is_some_and(|version| version.starts_with(&wanted))
    })
}

/// Replaces a file, with the rights that it had; a symbolic link stays one.
fn write_over(path: &Path, text: &str) -> Result<(), PackageError> {
    let write = || {
        let path = std::fs::canonicalize(path)?;
        replace(&path, text.as_bytes(), std::fs::metadata(&path)?.mode())
    };
    write().map_err(|source| PackageError::File { path: path.to_owned(), source })
}

/// A folder in memory that goes away with its value.
struct Aside(PathBuf);

impl Aside {
    fn new(root: &Path) -> Result<Self, PackageError> {
        let path = root.join(format!("run/quorate-preflight-{}", std::process::id()));
        let aside = Self(path.clone());
        // apt reads as `_apt`: it must get through, and it wants the folder `partial`.
        std::fs::create_dir_all(path.join("lists/partial"))
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)))
            .map_err(|source| PackageError::File { path, source })?;
        Ok(aside)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "A temporary folder stays behind");
        }
    }
}

#[cfg(test)]
#[path = "packages/killed.rs"]
mod killed;

#[cfg(test)]
mod tests {
    use super::*;

    fn to() -> Version {
        "v1.36.3".parse().unwrap()
    }

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn other_package_managers_are_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        assert!(PackageManager::detect(root.path()).unwrap_err().to_string().contains("no package manager"));
        put(root.path(), "usr/bin/dnf", "");
        assert!(PackageManager::detect(root.path()).unwrap_err().to_string().contains("managed by dnf"));
        put(root.path(), "usr/bin/apt-get", "");
        put(root.path(), "usr/bin/dpkg-query", "");
        assert_eq!(PackageManager::detect(root.path()).unwrap(), PackageManager::Apt);
    }

    #[test]
    fn a_package_between_two_states_is_half_done() {
        // (status, version, half done in words, torn); none: installed, or not there.
        let table = [
            ("ii ", "1.36.3-1.1", None, false),
            ("hi ", "1.36.3-1.1", None, false),
            ("un ", "", None, false),
            ("rc ", "1.36.1-1.1", None, false),
            ("iHR", "1.36.1-1.1", Some("half installed"), true),
            ("hHR", "1.36.1-1.1", Some("half installed"), true),
            ("iH ", "", Some("half installed"), true),
            ("iU ", "1.36.3-1.1", Some("unpacked"), false),
            ("iUR", "1.36.3-1.1", Some("unpacked"), true),
            ("iF ", "1.36.3-1.1", Some("half configured"), false),
            ("hF ", "1.36.3-1.1", Some("half configured"), false),
            ("iW ", "1.36.3-1.1", Some("waiting for triggers"), false),
            ("it ", "1.36.3-1.1", Some("waiting for triggers"), false),
            ("iiR", "1.36.3-1.1", Some("to be installed again"), true),
        ];
        for (status, version, state, torn) in table {
            let found = known(&format!("{status}|kubelet|{version}\n")).unwrap();
            let half = found.half_done.get("kubelet");
            assert_eq!(half.map(|it| it.state), state, "{status}");
            assert_eq!(half.is_some_and(|it| it.torn), torn, "{status}");
            assert_eq!(found.installed.contains_key("kubelet"), status.ends_with("i "), "{status}");
            assert!(half.is_none_or(|it| it.version.is_some() != version.is_empty()), "{status}");
        }
    }

    #[test]
    fn the_journal_of_a_killed_dpkg_is_told_from_its_scratch() {
        let root = tempfile::tempdir().unwrap();
        assert!(!journal_left(root.path()).unwrap());
        put(root.path(), "var/lib/dpkg/updates/tmp.i", "");
        assert!(!journal_left(root.path()).unwrap());
        put(root.path(), "var/lib/dpkg/updates/0003", "");
        assert!(journal_left(root.path()).unwrap());
        // What cannot be read is not "empty".
        std::fs::remove_dir_all(root.path().join("var/lib/dpkg/updates")).unwrap();
        put(root.path(), "var/lib/dpkg/updates", "");
        assert!(journal_left(root.path()).is_err());
    }

    #[test]
    fn dpkgs_lock_is_told_from_its_other_complaints() {
        let said = |line: &str| is_locked(&[line.to_owned()]);
        assert!(said("dpkg: error: dpkg frontend lock was locked by another process with pid 4242"));
        assert!(!said("dpkg: error processing package kubelet (--configure):"));
    }

    #[test]
    fn installed_packages_are_read() {
        let text =
            "ii |kubeadm|1.36.1-1.1\nhi |kubelet|1.36.1-1.1\nrc |kubectl|1.36.3-1.1\niF |kubernetes-cni|1.7.1-1.1\n";
        let found = known(text).unwrap();
        assert_eq!(found.installed.keys().collect::<Vec<_>>(), ["kubeadm", "kubelet"]);
        assert_eq!(found.installed["kubelet"].to_string(), "v1.36.1");
        assert_eq!(found.held, ["kubelet"]);
        assert!(found.half_done.is_empty());
        assert!(known("ii |kubeadm|1.36.1~rc.1-1\n").is_err());
        assert!(known("iX |kubeadm|1.36.1-1\n").is_err());
        assert!(known("nonsense\n").is_err());
    }

    #[test]
    fn an_offer_is_of_exactly_the_version() {
        let madison = "   kubeadm | 1.36.30-1.1 | file:/srv Packages\n   kubeadm | 1.36.3-1.1 | file:/srv Packages\n\
                       \n   kubelet | 1.36.30-1.1 | file:/srv Packages\n";
        assert!(offered(madison, "kubeadm", to()));
        assert!(!offered(madison, "kubelet", to()));
        assert!(!offered(madison, "kubectl", to()));
    }

    #[test]
    fn the_source_of_the_target_or_the_highest_is_chosen_and_rewritten() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "etc/apt/sources.list", "deb https://deb.debian.org/debian trixie main\n");
        put(root.path(), "etc/apt/sources.list.d/a.list", "deb file:/srv/apt/core:/stable:/v1.34/deb /\n");
        let newer = "Types: deb\nURIs: file:/srv/apt/core:/stable:/v1.35/deb\nSuites: /\n";
        put(root.path(), "etc/apt/sources.list.d/b.sources", newer);
        put(root.path(), "etc/apt/sources.list.d/c.list.bak", "deb file:/srv/apt/core:/stable:/v1.36/deb /\n");
        let sources = PackageManager::Apt.sources(root.path()).unwrap();
        assert_eq!(sources.len(), 2);
        let chosen = choose(&sources, to()).unwrap();
        assert!(chosen.path.ends_with("b.sources"));
        write_over(&chosen.path, &chosen.text_for(to()).unwrap()).unwrap();
        let sources = PackageManager::Apt.sources(root.path()).unwrap();
        let chosen = choose(&sources, to()).unwrap();
        assert_eq!(chosen.text, newer.replace("1.35", "1.36"));
        assert_eq!(chosen.text_for(to()), None);
        let names: Vec<_> = std::fs::read_dir(root.path().join("etc/apt/sources.list.d")).unwrap().collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }
}
