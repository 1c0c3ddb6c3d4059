//! What a restore does to the host: manifests aside and back, data aside, and what runs. Everything is renamed or copied first; nothing is
//! deleted but what a killed run of this very restore left half made.

use super::journal::Journal;
use super::node::{Node, alone};
use crate::node::{manifests, program};
use crate::replace::replace;
use anyhow::Context;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

/// The host, as far as a restore changes it.
pub(super) struct Host<'a> {
    /// kubeadm's folder.
    pub(super) kubernetes: &'a Path,
    /// Ours.
    pub(super) state: &'a Path,
}

impl Host<'_> {
    fn manifest(&self, component: &str) -> PathBuf {
        self.kubernetes.join("manifests").join(format!("{component}.yaml"))
    }

    fn aside(&self, journal: &Journal, component: &str) -> PathBuf {
        journal.manifests(self.state).join(format!("{component}.yaml"))
    }

    /// Takes the manifests of the four out of the kubelet's folder, each copied before: the two folders may be on different disks. Those who
    /// act on the cluster go first, etcd last.
    ///
    /// # Errors
    /// When one cannot be copied or taken away.
    pub(super) fn stop(&self, journal: &Journal) -> anyhow::Result<()> {
        let aside = journal.manifests(self.state);
        fs::create_dir_all(&aside).with_context(|| format!("make {}", aside.display()))?;
        for component in manifests::COMPONENTS.into_iter().rev() {
            let (from, to) = (self.manifest(component), self.aside(journal, component));
            let text = match fs::read(&from) {
                Ok(text) => text,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| format!("read {}", from.display())),
            };
            match fs::read(&to) {
                Ok(kept) if kept == text => {}
                Ok(_) => anyhow::bail!(
                    "{} is not as it was put aside in {}: put the one that is right in both places",
                    from.display(),
                    to.display()
                ),
                Err(_) => {
                    let rights = fs::metadata(&from)?.mode();
                    replace(&to, &text, rights).with_context(|| format!("write {}", to.display()))?;
                }
            }
            fs::remove_file(&from).with_context(|| format!("take away {}", from.display()))?;
        }
        let folder = self.kubernetes.join("manifests");
        sync(&folder)
    }

    /// Which of the four still run, with their process ids.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub(super) fn running(&self, node: &Node) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        for it in &node.processes {
            for pid in pids(&it.component, it.word.as_deref())? {
                found.push(format!("{} ({pid})", it.component));
            }
        }
        Ok(found)
    }

    /// Whether a component of this node runs.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub(super) fn runs(&self, node: &Node, component: &str) -> anyhow::Result<bool> {
        let Some(it) = node.processes.iter().find(|it| it.component == component) else { return Ok(false) };
        Ok(!pids(component, it.word.as_deref())?.is_empty())
    }

    /// Whether the manifest of a component was put aside.
    pub(super) fn has_aside(&self, journal: &Journal, component: &str) -> bool {
        self.aside(journal, component).exists()
    }

    /// Gives a manifest back to the kubelet as it was.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(super) fn start(&self, journal: &Journal, component: &str) -> anyhow::Result<()> {
        self.give_back(journal, component, |text| text)
    }

    /// The same for etcd, with nobody but itself in its initial cluster.
    ///
    /// # Errors
    /// As above.
    pub(super) fn start_etcd_alone(&self, journal: &Journal) -> anyhow::Result<()> {
        let Node { name, peer_url, .. } = &journal.node;
        self.give_back(journal, "etcd", |text| alone(&text, name, peer_url))
    }

    fn give_back(
        &self,
        journal: &Journal,
        component: &str,
        change: impl FnOnce(String) -> String,
    ) -> anyhow::Result<()> {
        let (from, to) = (self.aside(journal, component), self.manifest(component));
        let text = fs::read_to_string(&from).with_context(|| format!("read {}", from.display()))?;
        let rights = fs::metadata(&from)?.mode();
        replace(&to, change(text).as_bytes(), rights).with_context(|| format!("write {}", to.display()))
    }

    /// Renames etcd's data, within its folder, which may be a mount point. Done once: what lies there after that is the new data.
    ///
    /// # Errors
    /// When it cannot be renamed, or there is data although it was put aside.
    pub(super) fn data_aside(&self, journal: &Journal) -> anyhow::Result<()> {
        let (data, aside) = (journal.node.data_dir.join("member"), journal.data());
        match (data.exists(), aside.exists()) {
            (true, false) => {
                fs::rename(&data, &aside)
                    .with_context(|| format!("rename {} to {}", data.display(), aside.display()))?;
                sync(&journal.node.data_dir)
            }
            // Done before; or the disk was lost, and there is none to be kept.
            (false, _) => Ok(()),
            (true, true) => anyhow::bail!(
                "{} is there although {} was put aside: something has started etcd meanwhile; see what, and move one of them away",
                data.display(),
                aside.display()
            ),
        }
    }

    /// What a killed run left half made of the new data.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(super) fn remove_half_made(&self, journal: &Journal) -> anyhow::Result<()> {
        let path = journal.new_data();
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Puts the new data in place. False while it is not made yet; true also when that was done before.
    ///
    /// # Errors
    /// When it cannot be put there.
    pub(super) fn data_in_place(&self, journal: &Journal, made: bool) -> anyhow::Result<bool> {
        let folder = &journal.node.data_dir;
        let (new, place) = (journal.new_data(), folder.join("member"));
        if place.exists() {
            self.remove_half_made(journal)?;
            return Ok(true);
        }
        if !made {
            return Ok(false);
        }
        // etcdutl has written it through the cache of the kernel; the rename must not reach the disk before it.
        let opened = fs::File::open(folder).with_context(|| format!("open {}", folder.display()))?;
        rustix::fs::syncfs(&opened).with_context(|| format!("write out {}", folder.display()))?;
        let owner = fs::metadata(folder)?;
        own(&new.join("member"), owner.uid(), owner.gid())?;
        fs::rename(new.join("member"), &place)
            .with_context(|| format!("rename {} to {}", new.display(), place.display()))?;
        sync(folder)?;
        self.remove_half_made(journal)?;
        Ok(true)
    }
}

/// Gives all of a tree to whoever owns etcd's folder: root, where kubeadm is not told otherwise.
fn own(path: &Path, uid: u32, gid: u32) -> anyhow::Result<()> {
    let data = fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
    if (data.uid(), data.gid()) != (uid, gid) {
        chown(path, Some(uid), Some(gid)).with_context(|| format!("give away {}", path.display()))?;
    }
    if data.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
            own(&entry?.path(), uid, gid)?;
        }
    }
    Ok(())
}

fn sync(folder: &Path) -> anyhow::Result<()> {
    let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("write out {}", folder.display()))
}

fn pids(component: &str, word: Option<&str>) -> anyhow::Result<Vec<i32>> {
    let all = program::running(Path::new("/"), component).map_err(|why| anyhow::anyhow!(why))?;
    let of = |process: &program::Process| {
        word.is_none_or(|word| process.words.iter().any(|found| found.as_slice() == word.as_bytes()))
    };
    Ok(all.iter().filter(|process| of(process)).map(|process| process.pid.as_raw_nonzero().get()).collect())
}

/// Bytes that are free for us on the disk of a folder.
///
/// # Errors
/// When that is not told.
pub(in crate::etcd) fn room(folder: &Path) -> anyhow::Result<(u64, u64)> {
    let disk = rustix::fs::statvfs(folder).with_context(|| format!("ask for the room at {}", folder.display()))?;
    let device = fs::metadata(folder).with_context(|| format!("look at {}", folder.display()))?.dev();
    Ok((device, disk.f_bavail.saturating_mul(disk.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::restore::journal::tests::journal;

    struct Place {
        folder: tempfile::TempDir,
        journal: Journal,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut journal = journal(&folder.path().join("kubernetes"));
            journal.node.data_dir = folder.path().join("etcd");
            fs::create_dir_all(journal.node.data_dir.join("member/wal")).unwrap();
            Self { folder, journal }
        }

        fn kubernetes(&self) -> PathBuf {
            self.folder.path().join("kubernetes")
        }

        fn on<T>(&self, act: impl FnOnce(&Host<'_>) -> T) -> T {
            let (kubernetes, state) = (self.kubernetes(), self.folder.path().join("state"));
            act(&Host { kubernetes: &kubernetes, state: &state })
        }

        fn manifests(&self) -> Vec<String> {
            let entries = fs::read_dir(self.kubernetes().join("manifests")).unwrap();
            let mut names: Vec<String> = entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    #[test]
    fn manifests_go_aside_once_and_come_back_as_they_were_but_for_etcds_peers() {
        let place = Place::new();
        let before = fs::read_to_string(place.kubernetes().join("manifests/etcd.yaml")).unwrap();
        // Killed after the first: the rest goes, and what is aside stays.
        for _ in 0..2 {
            place.on(|host| host.stop(&place.journal)).unwrap();
            assert_eq!(place.manifests(), Vec::<String>::new());
        }
        place.on(|host| host.start_etcd_alone(&place.journal)).unwrap();
        let after = fs::read_to_string(place.kubernetes().join("manifests/etcd.yaml")).unwrap();
        assert_ne!(after, before);
        assert!(after.contains("--initial-cluster=k2=https://10.10.0.12:2380\n"), "{after}");
        // Somebody's other one is not lost.
        let said = place.on(|host| host.stop(&place.journal)).unwrap_err().to_string();
        assert!(said.contains("is not as it was put aside"), "{said}");
        place.on(|host| host.start(&place.journal, "etcd")).unwrap();
        assert_eq!(fs::read_to_string(place.kubernetes().join("manifests/etcd.yaml")).unwrap(), before);
        assert!(place.on(|host| host.has_aside(&place.journal, "kube-scheduler")));
        assert!(!place.on(|host| host.has_aside(&place.journal, "kube-controller-manager")));
    }

    #[test]
    fn data_is_renamed_once_and_never_deleted() {
        let place = Place::new();
        let member = place.journal.node.data_dir.join("member");
        for _ in 0..2 {
            place.on(|host| host.data_aside(&place.journal)).unwrap();
            assert!(!member.exists() && place.journal.data().join("wal").is_dir());
        }
        // Half made, then made.
        fs::create_dir_all(place.journal.new_data().join("member/snap")).unwrap();
        place.on(|host| host.remove_half_made(&place.journal)).unwrap();
        assert!(!place.on(|host| host.data_in_place(&place.journal, false)).unwrap());
        fs::create_dir_all(place.journal.new_data().join("member/snap")).unwrap();
        for _ in 0..2 {
            assert!(place.on(|host| host.data_in_place(&place.journal, true)).unwrap());
            assert!(member.join("snap").is_dir() && !place.journal.new_data().exists());
        }
        assert!(place.journal.data().join("wal").is_dir());
        let said = place.on(|host| host.data_aside(&place.journal)).unwrap_err().to_string();
        assert!(said.contains("something has started etcd meanwhile"), "{said}");
    }

    #[test]
    fn of_processes_with_the_same_name_only_the_nodes_own_count() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let args = vec!["4711".to_owned()];
        let child = lab::process::Process::new("sleep", "sleep".into(), args, log.path().to_owned());
        child.start().unwrap();
        let pid = i32::try_from(child.pid().unwrap()).unwrap();
        // Whoever spawns goes on before the kernel has written down the child's words.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !pids("sleep", Some("4711")).unwrap().contains(&pid) {
            assert!(std::time::Instant::now() < end);
            std::thread::yield_now();
        }
        assert!(pids("sleep", None).unwrap().contains(&pid));
        assert!(!pids("sleep", Some("--data-dir=/nowhere")).unwrap().contains(&pid));
        child.kill().unwrap();
        assert!(!pids("sleep", None).unwrap().contains(&pid));
    }
}
