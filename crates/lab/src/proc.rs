//! The host's processes, as /proc shows them: what runs in a machine is a descendant of its init.

use std::fs;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// One process, at the time of looking.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    /// The kernel's name of it, at most 15 bytes.
    pub(crate) name: String,
    pub(crate) zombie: bool,
}

impl Process {
    /// Its command line, one string an argument; empty when it is gone.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }
}

/// `PID (NAME) STATE PARENT …`; the name may hold blanks and parentheses.
fn parse(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let zombie = fields.next()? == "Z";
    Some(Process { pid: pid.parse().ok()?, parent: fields.next()?.parse().ok()?, name: name.to_owned(), zombie })
}

/// All processes. One that ends while we look is left out.
pub(crate) fn all() -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let path = entry?.path();
        if let Some(process) = fs::read_to_string(path.join("stat")).ok().as_deref().and_then(parse) {
            found.push(process);
        }
    }
    Ok(found)
}

/// All descendants of a process, without itself.
pub(crate) fn below(all: &[Process], ancestor: i32) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![ancestor];
    while let Some(parent) = parents.pop() {
        for child in all.iter().filter(|process| process.parent == parent) {
            parents.push(child.pid);
            found.push(child.clone());
        }
    }
    found
}

/// Sends a signal; a process that is gone already is no error.
pub(crate) fn signal(pid: i32, signal: Signal) -> Result<()> {
    let Some(target) = Pid::from_raw(pid) else { return Ok(()) };
    match kill_process(target, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot signal process {pid}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_blanks_and_parentheses_are_read() {
        let process = parse("42 (a) b (c)) S 7 42 42").unwrap();
        assert_eq!((process.pid, process.parent, process.name.as_str(), process.zombie), (42, 7, "a) b (c)", false));
        assert!(parse("nonsense").is_none());
    }

    #[test]
    fn descendants_are_found_through_all_generations() {
        let p = |pid, parent| Process { pid, parent, name: String::new(), zombie: false };
        let mut pids: Vec<i32> = below(&[p(2, 1), p(3, 2), p(4, 3), p(5, 1)], 2).iter().map(|p| p.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [3, 4]);
    }
}
