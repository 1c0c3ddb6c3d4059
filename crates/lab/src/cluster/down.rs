//! Taking everything down, by what is there and not by what somebody remembers: the lab may have been killed anywhere.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::{processes_in, remove_state};
use crate::machine::is_machine;
use crate::network::{self, MOST_MACHINES, namespace};
use crate::{proc, tree};

const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// Removes processes, mounts, namespaces, cgroups and files of a lab, in this order, each until none is left.
pub(super) fn everything(state: &Path) -> Result<()> {
    let traces = traces(state)?;
    until_gone("processes of machines", || {
        let all = proc::all()?;
        // The supervisor first: it would start a machine anew.
        let mut managers: Vec<_> = all.iter().filter(|process| is_machine(process, None)).collect();
        managers.sort_by_key(|process| process.name == "systemd-nspawn");
        for manager in &managers {
            proc::signal(manager.pid, Signal::KILL)?;
            for process in proc::below(&all, manager.pid) {
                proc::signal(process.pid, Signal::KILL)?;
            }
        }
        Ok(managers.iter().map(|process| process.pid.to_string()).collect())
    })?;
    until_gone("processes in network namespaces", || {
        let mut left = Vec::new();
        for namespace in network::namespaces()? {
            for pid in processes_in(&namespace)? {
                proc::signal(pid, Signal::KILL)?;
                left.push(pid.to_string());
            }
        }
        Ok(left)
    })?;
    until_gone("mounts", || {
        let mounts = tree::mounts_below(state)?;
        tree::unmount_below(state)?;
        Ok(mounts.iter().map(|path| path.display().to_string()).collect())
    })?;
    for namespace in network::namespaces()? {
        network::remove(&namespace)?;
    }
    until_gone("cgroups", || {
        let mut left = Vec::new();
        for group in cgroups()?.iter().chain(&traces.groups) {
            if group.is_dir() && !remove_cgroup(group) && !has_processes(group) {
                left.push(group.display().to_string());
            }
        }
        Ok(left)
    })?;
    for file in traces.files.iter().filter(|file| file.exists()) {
        let removed = if file.is_dir() { fs::remove_dir(file) } else { fs::remove_file(file) };
        removed.with_context(|| format!("cannot remove {}", file.display()))?;
    }
    remove_state(state)
}

/// What systemd-nspawn leaves behind by itself, found while machines and mounts are there.
struct Traces {
    files: Vec<PathBuf>,
    groups: Vec<PathBuf>,
}

fn traces(state: &Path) -> Result<Traces> {
    let nspawn = Path::new("/run/systemd/nspawn");
    let mut files: Vec<PathBuf> =
        (1..=MOST_MACHINES).map(|machine| nspawn.join("propagate").join(namespace(machine))).collect();
    for machine in 1..=MOST_MACHINES {
        // It locks the folder it boots from, by device and inode; the lock file stays.
        if let Ok(root) = fs::metadata(state.join(format!("k{machine}/root"))) {
            files.push(nspawn.join(format!("locks/inode-{}:{}", root.dev(), root.ino())));
        }
    }
    // With --keep-unit it makes `payload` and `supervisor` below the group it was started in, for all machines together.
    let managers = proc::all()?.into_iter().filter(|process| is_machine(process, None));
    let mut groups = Vec::new();
    for pid in managers.map(|process| process.pid.to_string()).chain(["self".to_owned()]) {
        let Ok(table) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { continue };
        for (hierarchy, path) in table.lines().filter_map(group_of_line) {
            let parent = Path::new("/sys/fs/cgroup").join(hierarchy).join(path);
            groups.extend(["payload", "supervisor"].map(|name| parent.join(name)));
        }
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(Traces { files, groups })
}

/// `9:name=systemd:/a/supervisor` is group `a` of the hierarchy `systemd`; systemd-nspawn uses that and the unified one.
fn group_of_line(line: &str) -> Option<(&'static str, &str)> {
    let (hierarchy, path) = if let Some((_, path)) = line.split_once(":name=systemd:/") {
        ("systemd", path)
    } else {
        ("unified", line.strip_prefix("0::/")?)
    };
    let path = path.strip_suffix("supervisor").unwrap_or(path);
    Some((hierarchy, path.trim_end_matches('/')))
}

/// Whether somebody lives in a group or below it: then it is not ours to remove, ours are dead.
fn has_processes(group: &Path) -> bool {
    let here = fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| !text.is_empty());
    let Ok(entries) = fs::read_dir(group) else { return here };
    here || entries.flatten().any(|entry| entry.path().is_dir() && has_processes(&entry.path()))
}

/// Repeats an attempt until it finds nothing left.
fn until_gone(what: &str, attempt: impl Fn() -> Result<Vec<String>>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = attempt()?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{what} are still there after {} s: {}", PATIENCE.as_secs(), left.join(", "));
        }
        std::thread::sleep(POLL);
    }
}

/// The subtrees of machines in every hierarchy. They can be deep: systemd-nspawn gives a machine a cgroup namespace, whose root is the
/// group that the lab was started in, and each run of a lab may have been started in another.
fn cgroups() -> Result<Vec<PathBuf>> {
    let names: Vec<_> = (1..=MOST_MACHINES).map(namespace).collect();
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // Gone since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
        };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let ours = names.iter().any(|name| entry.file_name() == name.as_str());
            if ours { found.push(entry.path()) } else { folders.push(entry.path()) }
        }
    }
    Ok(found)
}

/// Removes a cgroup with those below it; false when the kernel still holds one.
fn remove_cgroup(group: &Path) -> bool {
    let Ok(entries) = fs::read_dir(group) else { return !group.exists() };
    let below: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    // All of them, even after one that cannot go.
    let emptied = below.iter().filter(|path| !remove_cgroup(path)).count() == 0;
    emptied && (fs::remove_dir(group).is_ok() || !group.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_that_nspawn_was_started_in_is_found() {
        assert_eq!(group_of_line("9:name=systemd:/supervisor"), Some(("systemd", "")));
        assert_eq!(group_of_line("9:name=systemd:/user.slice/x"), Some(("systemd", "user.slice/x")));
        assert_eq!(group_of_line("0::/a/supervisor"), Some(("unified", "a")));
        assert_eq!(group_of_line("4:memory:/a"), None);
    }
}
