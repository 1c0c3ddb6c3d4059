//! Taking everything down, by what is there and not by what somebody remembers: the lab may have been killed anywhere.

use std::fs;
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
        for group in cgroups()? {
            if !remove_cgroup(&group) {
                left.push(group.display().to_string());
            }
        }
        Ok(left)
    })?;
    remove_state(state)
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

/// The subtrees of machines in every hierarchy.
fn cgroups() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").context("cannot read /sys/fs/cgroup")? {
        let hierarchy = hierarchy?.path();
        found.extend(
            (1..=MOST_MACHINES).map(|machine| hierarchy.join(namespace(machine))).filter(|group| group.is_dir()),
        );
    }
    Ok(found)
}

/// Removes a cgroup with those below it; false when the kernel still holds one.
fn remove_cgroup(group: &Path) -> bool {
    let Ok(entries) = fs::read_dir(group) else { return !group.exists() };
    let below: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    // All of them, even after one that cannot go.
    let emptied = below.iter().fold(true, |so_far, path| remove_cgroup(path) && so_far);
    emptied && (fs::remove_dir(group).is_ok() || !group.exists())
}
