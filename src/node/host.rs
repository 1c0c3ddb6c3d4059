//! Looks at the host, changes nothing.

use super::command::{Deadline, ToolError, ask};
use super::packages::{PackageError, PackageManager};
use super::plan::State;
use super::report::Versions;
use super::{etcd, manifests};
use crate::output;
use crate::replace::replace;
use crate::version::Version;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Our own copies of the static pods' manifests, as they were before kubeadm last began.
const KEPT: &str = "var/lib/quorate/manifests";
/// Where kubeadm keeps its scratch.
const SCRATCH: &str = "etc/kubernetes/tmp";
/// How long a kubelet that is being restarted is asked again.
const RESTARTS: Duration = Duration::from_secs(5);
/// Scratch older than this is removed: long enough to look at what a failed upgrade left (incident R19).
const SCRATCH_KEPT: i64 = 3 * 24 * 60 * 60;
/// How many of kubeadm's copies of etcd stay until then: the last, and the one before it.
const COPIES_OF_ETCD_KEPT: usize = 2;

/// The host, seen from its own root.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// `/`, but in tests.
    pub(super) root: PathBuf,
    pub(super) manager: PackageManager,
    answers: Arc<Mutex<Answers>>,
}

/// What programs have answered that answer the same for ever: the host is looked at before each sub-step, and starting them takes longer
/// than all the rest.
#[derive(Debug, Default)]
struct Answers {
    /// The version of a process.
    kubelet: Option<(Process, Version)>,
    /// The etcd of the target's own kubeadm.
    etcd: Option<(Version, String)>,
}

/// A process: its id may be another's later, with another start.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: String,
    /// In ticks since boot, as in /proc/PID/stat.
    start: String,
}

/// What of the host could not be seen.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostError {
    #[error("{0}")]
    Packages(#[from] PackageError),
    #[error("{0}")]
    Tool(#[from] ToolError),
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("`{tool}` said what is not understood: `{said}`")]
    NotUnderstood { tool: &'static str, said: String },
}

impl HostError {
    /// The last lines of the tool behind it.
    pub(super) fn last_lines(&self) -> Vec<String> {
        match self {
            Self::Packages(PackageError::Tool(error)) | Self::Tool(error) => error.last_lines(),
            Self::Packages(_) | Self::File { .. } | Self::NotUnderstood { .. } => Vec::new(),
        }
    }
}

impl Host {
    /// This host, once its namespaces are entered.
    pub(super) fn here() -> Result<Self, HostError> {
        let root = PathBuf::from("/");
        let manager = PackageManager::detect(&root)?;
        Ok(Self::at(root, manager))
    }

    /// The host below a folder.
    pub(super) fn at(root: PathBuf, manager: PackageManager) -> Self {
        Self { root, manager, answers: Arc::default() }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Everything that the plan is judged by. `etcd_tag` is what kubeadm-config pins: a tag, `default`, or not told.
    pub(super) async fn state(
        &self,
        to: Version,
        etcd_tag: Option<&str>,
        now: jiff::Timestamp,
        deadline: Deadline,
    ) -> Result<State, HostError> {
        let (known, running_kubelet) = futures::try_join!(
            async { self.manager.known(deadline).await.map_err(HostError::from) },
            self.running_kubelet(deadline),
        )?;
        let super::packages::Packages { installed: packages, half_done, held } = known;
        let manifests = self.manifests()?;
        let etcd_tag = match etcd_tag {
            Some("default") if knows_etcd(&manifests, &packages, to) => {
                Some(self.default_etcd_tag(to, deadline).await?)
            }
            Some("default") | None => None,
            Some(tag) => Some(tag.to_owned()),
        };
        let etcd_outlived = if manifests.pods.contains_key("etcd") { etcd::outlived(self)? } else { Vec::new() };
        Ok(State {
            held,
            running_kubelet,
            scratch: self.old_scratch(now)?.len(),
            handed_over: false,
            unsettled: false,
            etcd_stays: false,
            etcd_outlived,
            torn: self.torn()?.into_iter().map(|(component, _)| component).collect(),
            packages,
            half_done,
            manifests,
            etcd_tag,
        })
    }

    /// What was answered before; never locked for longer.
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tag of the etcd image that this kubeadm, which is the target's own, would write.
    async fn default_etcd_tag(&self, to: Version, deadline: Deadline) -> Result<String, HostError> {
        let known = self.answers().etcd.clone();
        if let Some((_, tag)) = known.filter(|(of, _)| *of == to) {
            return Ok(tag);
        }
        let tag = default_etcd_tag(to, deadline).await?;
        self.answers().etcd = Some((to, tag.clone()));
        Ok(tag)
    }

    /// The version of the kubelet that runs, asked of the very program that runs: the file at /usr/bin/kubelet may be newer.
    async fn running_kubelet(&self, deadline: Deadline) -> Result<Option<Version>, HostError> {
        let process = async || -> Result<Option<Process>, HostError> {
            let said =
                ask("systemctl", &["show", "kubelet.service", "--property=MainPID", "--value"], deadline).await?;
            let pid = said.stdout.trim();
            if pid.is_empty() || pid == "0" {
                return Ok(None);
            }
            // None: it has ended since, and has no version.
            let start = start_of(pid).unwrap_or_default();
            Ok(Some(Process { pid: pid.to_owned(), start }))
        };
        let version = async |process: Process| -> Result<Version, HostError> {
            let known = self.answers().kubelet.clone();
            if let Some((_, version)) = known.filter(|(of, _)| *of == process && !process.start.is_empty()) {
                return Ok(version);
            }
            let said = ask(&format!("/proc/{}/exe", process.pid), &["--version"], deadline).await?;
            let version = kubelet_version(&said.stdout)
                .ok_or_else(|| HostError::NotUnderstood { tool: "kubelet --version", said: said.stdout.clone() })?;
            self.answers().kubelet = Some((process, version));
            Ok(version)
        };
        version_of_process(process, version, Deadline::after(deadline.within(RESTARTS))).await
    }

    pub(super) fn manifests(&self) -> Result<manifests::Manifests, HostError> {
        manifests::read(&self.root).map_err(|source| HostError::File { path: self.path(manifests::FOLDER), source })
    }

    /// Static pods that this node had when kubeadm began, and whose manifest is not there, or none any more; each with the newest copy that
    /// is whole. kubeadm moves the old one away and then the new one in (kubeadm 1.36, `upgradeComponent`); killed in between it leaves the
    /// node without, and starts no more by itself. A power cut may leave an empty file, and a full disk half of one.
    pub(super) fn torn(&self) -> Result<Vec<(&'static str, PathBuf)>, HostError> {
        let folder = self.path(SCRATCH);
        let wrong = |source| HostError::File { path: folder.clone(), source };
        let mut backups = Vec::new();
        for entry in entries(&folder).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            if entry.file_name().to_string_lossy().starts_with("kubeadm-backup-manifests") {
                backups.push(entry.path());
            }
        }
        // Their names end with the time.
        backups.sort();
        let mut found = Vec::new();
        for component in manifests::COMPONENTS {
            let file = format!("{component}.yaml");
            let own = self.path(KEPT).join(&file);
            if !own.exists() || manifests::is_of(&self.manifest(component), component) {
                continue;
            }
            let mut copies = backups.iter().rev().map(|backup| backup.join(&file)).chain([own]);
            found.extend(copies.find(|copy| manifests::is_of(copy, component)).map(|copy| (component, copy)));
        }
        Ok(found)
    }

    /// Puts a copy back, whole or not at all, and says so.
    pub(super) fn put_back(&self, component: &str, copy: &Path) -> Result<(), HostError> {
        output::progress(&format!("{component}: its manifest is missing; {} is put back", copy.display()));
        let path = self.manifest(component);
        copy_over(copy, &path).map_err(|source| HostError::File { path, source })
    }

    /// Keeps a copy of each of the four that is whole, before kubeadm works on them: these are what this node has. Rolling back on a full
    /// disk, kubeadm writes its own copies over the originals, whole or not, and removes them. `afresh`: no earlier run's count.
    pub(super) fn keep_manifests(&self, afresh: bool) -> Result<(), HostError> {
        if afresh {
            self.forget_manifests()?;
        }
        let folder = self.path(KEPT);
        std::fs::create_dir_all(&folder).map_err(|source| HostError::File { path: folder.clone(), source })?;
        for component in manifests::COMPONENTS {
            let (from, to) = (self.manifest(component), folder.join(format!("{component}.yaml")));
            if manifests::is_of(&from, component) {
                copy_over(&from, &to).map_err(|source| HostError::File { path: to, source })?;
            }
        }
        Ok(())
    }

    /// Removes these copies: what is missing from now on was taken away by somebody else.
    pub(super) fn forget_manifests(&self) -> Result<(), HostError> {
        let path = self.path(KEPT);
        match std::fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(HostError::File { path, source }),
            _ => Ok(()),
        }
    }

    /// Brings the four to the disk: kubeadm does not.
    pub(super) fn sync_manifests(&self) -> Result<(), HostError> {
        let all = manifests::COMPONENTS.map(|component| self.manifest(component));
        for path in all.into_iter().chain([self.path(manifests::FOLDER)]).filter(|path| path.exists()) {
            std::fs::File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|source| HostError::File { path, source })?;
        }
        Ok(())
    }

    fn manifest(&self, component: &str) -> PathBuf {
        self.path(manifests::FOLDER).join(format!("{component}.yaml"))
    }

    /// Folders that an upgrade of kubeadm left behind, older than three days; and of its copies of etcd all but the newest two, however
    /// young: each further attempt leaves one more.
    pub(super) fn old_scratch(&self, now: jiff::Timestamp) -> Result<Vec<PathBuf>, HostError> {
        let folder = self.path(SCRATCH);
        let wrong = |source| HostError::File { path: folder.clone(), source };
        let (mut found, mut of_etcd) = (Vec::new(), Vec::new());
        for entry in entries(&folder).map_err(wrong)? {
            let entry = entry.map_err(wrong)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let modified = entry.metadata().map_err(wrong)?.mtime();
            let kubeadms = name.starts_with("kubeadm-backup-") || name.starts_with("kubeadm-upgraded-manifests");
            if kubeadms && modified < now.as_second() - SCRATCH_KEPT {
                found.push(entry.path());
            } else if name.starts_with("kubeadm-backup-etcd-") {
                of_etcd.push((modified, entry.path()));
            }
        }
        of_etcd.sort();
        of_etcd.truncate(of_etcd.len().saturating_sub(COPIES_OF_ETCD_KEPT));
        found.extend(of_etcd.into_iter().map(|(_, path)| path));
        found.sort();
        Ok(found)
    }

    /// Disk that is short, as sentences. kubeadm copies all of etcd below /etc/kubernetes/tmp before it swaps etcd; when it is
    /// done already, that copy lies there and must not stop what is left to do.
    pub(super) fn short_of_disk(
        &self,
        manifests: &manifests::Manifests,
        kubeadm_done: bool,
    ) -> Result<Vec<String>, HostError> {
        let mut wanted = vec![
            ("usr", 512 * MIB, "the packages"),
            ("var/cache/apt", 256 * MIB, "downloaded packages"),
            ("var/lib/quorate", 32 * MIB, "quorate itself"),
        ];
        if let Some(etcd) = manifests.pods.get("etcd").filter(|_| !kubeadm_done) {
            let folder = etcd.flag("data-dir").unwrap_or("/var/lib/etcd").trim_start_matches('/');
            let path = self.path(folder);
            let size = size(&path).map_err(|source| HostError::File { path, source })?;
            wanted.push(("etc/kubernetes", size + 256 * MIB, "kubeadm's copy of etcd"));
        }
        let mut found = Vec::new();
        for (folder, needed, what) in wanted {
            let path = self.path(folder);
            let disk = match rustix::fs::statvfs(&path) {
                Ok(disk) => disk,
                Err(rustix::io::Errno::NOENT) => continue,
                Err(error) => return Err(HostError::File { path, source: error.into() }),
            };
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            if free < needed {
                found.push(format!(
                    "{} MiB are free at {}: {what} needs {} MiB",
                    free / MIB,
                    path.display(),
                    needed.div_ceil(MIB)
                ));
            }
        }
        Ok(found)
    }
}

const MIB: u64 = 1 << 20;

/// Replaces a file by a copy of another.
fn copy_over(from: &Path, to: &Path) -> io::Result<()> {
    replace(to, &std::fs::read(from)?, std::fs::metadata(from)?.mode())
}

/// What is in a folder; one that is not there is empty.
fn entries(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<std::fs::DirEntry>>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => Ok(Some(entries).into_iter().flatten()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None.into_iter().flatten()),
        Err(error) => Err(error),
    }
}

/// Bytes of all files below a folder.
fn size(folder: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let data = match entry.metadata() {
            Ok(data) => data,
            // etcd removes old files while we look.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        sum += if data.is_dir() { size(&entry.path())? } else { data.len() };
    }
    Ok(sum)
}

/// Whether kubeadm can be asked which etcd it would write: it is the target's own, and there is an etcd to write.
pub(super) fn knows_etcd(manifests: &manifests::Manifests, packages: &BTreeMap<String, Version>, to: Version) -> bool {
    manifests.pods.contains_key("etcd") && packages.get("kubeadm") == Some(&to)
}

/// The tag of the etcd image that this kubeadm would write for the target.
pub(super) async fn default_etcd_tag(to: Version, deadline: Deadline) -> Result<String, HostError> {
    let version = format!("--kubernetes-version={to}");
    let said = ask("kubeadm", &["config", "images", "list", &version], deadline).await?;
    etcd_tag(&said.stdout)
        .ok_or_else(|| HostError::NotUnderstood { tool: "kubeadm config images list", said: said.stdout.clone() })
}

fn etcd_tag(images: &str) -> Option<String> {
    images.lines().map(manifests::split_image).find(|(name, tag)| name == "etcd" && !tag.is_empty()).map(|(_, tag)| tag)
}

/// When a process started, in ticks since boot (proc_pid_stat(5)): the 22nd word, counted after the name, which may hold anything.
fn start_of(pid: &str) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(19).map(str::to_owned)
}

/// The process may have ended between the two questions, as when the package restarts the kubelet: then both are asked again.
async fn version_of_process<P>(
    process: impl AsyncFn() -> Result<Option<P>, HostError>,
    version: impl AsyncFn(P) -> Result<Version, HostError>,
    until: Deadline,
) -> Result<Option<Version>, HostError> {
    loop {
        let Some(one) = process().await? else { return Ok(None) };
        match version(one).await {
            Ok(version) => return Ok(Some(version)),
            Err(error) if until.passed() => return Err(error),
            Err(error) => tracing::debug!(%error, "The kubelet's process is asked again"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn kubelet_version(text: &str) -> Option<Version> {
    text.trim().strip_prefix("Kubernetes ")?.parse().ok()
}

/// What of a state is reported.
pub(super) fn versions(state: &State) -> Versions {
    Versions {
        packages: state.packages.clone(),
        running_kubelet: state.running_kubelet,
        static_pods: state.manifests.pods.iter().map(|(name, pod)| ((*name).to_owned(), pod.tag.clone())).collect(),
        etcd_wanted: state.etcd_tag.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn host(root: &Path) -> Host {
        Host::at(root.to_owned(), PackageManager::Apt)
    }

    #[test]
    fn r19_only_kubeadms_own_scratch_older_than_three_days_is_found() {
        let root = tempfile::tempdir().unwrap();
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        assert!(host(root.path()).old_scratch(now).unwrap().is_empty());
        let tmp = root.path().join(SCRATCH);
        for (name, age) in [
            ("kubeadm-backup-etcd-2026-05-01", SCRATCH_KEPT + 1),
            ("kubeadm-backup-manifests-2026-05-01", SCRATCH_KEPT + 1),
            ("kubeadm-upgraded-manifests123", SCRATCH_KEPT + 1),
            ("kubeadm-backup-etcd-2026-06-01", SCRATCH_KEPT - 60),
            ("admins-own-notes", 10 * SCRATCH_KEPT),
        ] {
            std::fs::create_dir_all(tmp.join(name)).unwrap();
            let at = UNIX_EPOCH + Duration::from_secs(u64::try_from(now.as_second() - age).unwrap());
            std::fs::File::open(tmp.join(name)).unwrap().set_modified(at).unwrap();
        }
        let found = host(root.path()).old_scratch(now).unwrap();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found
                .iter()
                .all(|path| path.to_string_lossy().contains("2026-05")
                    || path.ends_with("kubeadm-upgraded-manifests123"))
        );
    }

    #[test]
    fn r19_of_kubeadms_copies_of_etcd_two_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let tmp = root.path().join(SCRATCH);
        for minutes in 1..=4 {
            for kind in ["etcd", "manifests"] {
                let folder = tmp.join(format!("kubeadm-backup-{kind}-{minutes}-minutes-ago"));
                std::fs::create_dir_all(&folder).unwrap();
                let at = UNIX_EPOCH + Duration::from_secs(1_800_000_000 - 60 * minutes);
                std::fs::File::open(&folder).unwrap().set_modified(at).unwrap();
            }
        }
        let found = host(root.path()).old_scratch(now).unwrap();
        assert_eq!(found, [3, 4].map(|minutes| tmp.join(format!("kubeadm-backup-etcd-{minutes}-minutes-ago"))));
    }

    #[test]
    fn a_disk_without_room_for_the_copy_of_etcd_is_named() {
        let root = tempfile::tempdir().unwrap();
        let etcd = root.path().join("data/member");
        std::fs::create_dir_all(&etcd).unwrap();
        // Sparse: kubeadm's copy would not be.
        std::fs::File::create(etcd.join("db")).unwrap().set_len(1 << 43).unwrap();
        std::fs::create_dir_all(root.path().join(manifests::FOLDER)).unwrap();
        let manifest = "metadata: {name: etcd}\nspec: {containers: [{name: etcd, image: 'x/etcd:3', command: [etcd, --data-dir=/data]}]}\n";
        std::fs::write(root.path().join(manifests::FOLDER).join("etcd.yaml"), manifest).unwrap();
        let host = host(root.path());
        let short = host.short_of_disk(&host.manifests().unwrap(), false).unwrap();
        assert_eq!(short.len(), 1, "{short:?}");
        assert!(short[0].contains("kubeadm's copy of etcd needs 8388864 MiB"), "{short:?}");
        assert!(host.short_of_disk(&host.manifests().unwrap(), true).unwrap().is_empty());
    }

    #[test]
    fn a_manifest_that_kubeadm_has_moved_away_or_spoiled_is_put_back_from_the_newest_copy() {
        let root = tempfile::tempdir().unwrap();
        let host = host(root.path());
        let pod = |name: &str, tag: &str| {
            format!("metadata: {{name: {name}}}\nspec: {{containers: [{{name: {name}, image: 'x/{name}:{tag}'}}]}}\n")
        };
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let torn = || host.torn().unwrap().into_iter().map(|(component, _)| component).collect::<Vec<_>>();
        let all = ["etcd", "kube-apiserver", "kube-scheduler"];
        for component in all {
            put(&format!("etc/kubernetes/manifests/{component}.yaml"), &pod(component, "before"));
        }
        host.keep_manifests(true).unwrap();
        assert!(torn().is_empty());
        // The manager was never here, whatever an older upgrade has left.
        for (time, tag) in [("2026-11-25-22-00-00", "older"), ("2026-11-25-22-10-00", "newer")] {
            for component in ["etcd", "kube-controller-manager", "kube-scheduler"] {
                let copy = format!("etc/kubernetes/tmp/kubeadm-backup-manifests-{time}/{component}.yaml");
                put(&copy, &pod(component, tag));
            }
        }
        put("etc/kubernetes/tmp/kubeadm-backup-manifests-2026-11-25-22-10-00/etcd.yaml", "");
        let folder = root.path().join(manifests::FOLDER);
        std::fs::remove_file(folder.join("kube-scheduler.yaml")).unwrap();
        put("etc/kubernetes/manifests/etcd.yaml", "");
        put("etc/kubernetes/manifests/kube-apiserver.yaml", "metadata: {name: kube-apiserver}\nspec: {contain");
        assert_eq!(torn(), all);
        for (component, copy) in host.torn().unwrap() {
            host.put_back(component, &copy).unwrap();
        }
        let tag = |component: &str| manifests::read(root.path()).unwrap().pods[component].tag.clone();
        // kubeadm's newest that is whole, else ours.
        assert_eq!(all.map(tag), ["older", "before", "newer"]);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3);
        assert!(torn().is_empty());
        // Over: who takes one away now means it.
        host.forget_manifests().unwrap();
        std::fs::remove_file(folder.join("etcd.yaml")).unwrap();
        assert!(torn().is_empty());
    }

    #[test]
    fn a_kubelet_that_is_restarted_between_two_questions_is_asked_again() {
        let gone = |pid: &str| HostError::NotUnderstood { tool: "kubelet --version", said: pid.to_owned() };
        let asked = |pids: &'static [&'static str], patience: u64| {
            let next = std::cell::Cell::new(0);
            let process = async || {
                let pid = pids.get(next.get()).or(pids.last()).map(|pid| (*pid).to_owned());
                next.set(next.get() + 1);
                Ok(pid.filter(|pid| pid != "0"))
            };
            let version =
                async |pid: String| if pid == "new" { Ok("v1.36.3".parse().unwrap()) } else { Err(gone(&pid)) };
            let until = Deadline::after(Duration::from_millis(patience));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(version_of_process(process, version, until))
        };
        assert_eq!(asked(&["old", "new"], 5000).unwrap().unwrap().to_string(), "v1.36.3");
        assert_eq!(asked(&["old", "0"], 5000).unwrap(), None);
        // Not for ever.
        assert!(asked(&["old"], 300).is_err());
    }

    #[test]
    fn only_the_targets_own_kubeadm_knows_its_etcd_and_only_where_there_is_one() {
        let root = tempfile::tempdir().unwrap();
        let read = || manifests::read(root.path()).unwrap();
        let to = "v1.36.3".parse().unwrap();
        let kubeadm = |version: &str| BTreeMap::from([("kubeadm".to_owned(), version.parse().unwrap())]);
        assert!(!knows_etcd(&read(), &kubeadm("v1.36.3"), to), "a worker");
        std::fs::create_dir_all(root.path().join(manifests::FOLDER)).unwrap();
        let manifest = "metadata: {name: etcd}\nspec: {containers: [{name: etcd, image: 'x/etcd:3.6.8-0'}]}\n";
        std::fs::write(root.path().join(manifests::FOLDER).join("etcd.yaml"), manifest).unwrap();
        assert!(knows_etcd(&read(), &kubeadm("v1.36.3"), to));
        assert!(!knows_etcd(&read(), &kubeadm("v1.36.1"), to));
        assert!(!knows_etcd(&read(), &BTreeMap::new(), to));
    }

    #[test]
    fn a_process_is_told_from_a_later_one_of_the_same_id() {
        let own = start_of(&std::process::id().to_string()).unwrap();
        assert!(own.parse::<u64>().unwrap() > start_of("1").unwrap().parse().unwrap());
        assert_eq!(start_of("0"), None);
    }

    #[test]
    fn answers_of_tools_are_read() {
        let images =
            "registry.k8s.io/kube-apiserver:v1.36.3\nregistry.k8s.io/pause:3.10.2\nregistry.k8s.io/etcd:3.6.8-0\n";
        assert_eq!(etcd_tag(images).as_deref(), Some("3.6.8-0"));
        assert_eq!(etcd_tag("registry.k8s.io/pause:3.10.2\n"), None);
        assert_eq!(kubelet_version("Kubernetes v1.36.1\n").unwrap().to_string(), "v1.36.1");
        assert_eq!(kubelet_version("flag provided but not defined"), None);
    }
}
