//! The memory of a program's processes over time, on this host and in all machines on it: the most anonymous memory that any process of
//! each of its commands was seen with. The kernel keeps no peak of that, so it is looked at again and again; what is there for less than
//! that is not seen.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::time::interval;

use super::{report, signals};
use crate::proc;

/// How often it is looked at.
const EVERY: Duration = Duration::from_millis(250);

/// Whose memory.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The program's name; one that is called `NAME-…` is it, too
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Where the account goes, whenever it changes
    #[arg(long, value_name = "FILE")]
    pub report: PathBuf,
}

/// The most anonymous memory in bytes, by command: the first words of its arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Memory(pub BTreeMap<String, u64>);

impl Memory {
    /// Whether that is news.
    fn saw(&mut self, command: String, bytes: u64) -> bool {
        let most = self.0.entry(command).or_default();
        let news = bytes > *most;
        *most = bytes.max(*most);
        news
    }
}

/// Whether a process is the program's, by the kernel's name of it. What runs on a host is called after its content.
fn of(program: &str, process: &str) -> bool {
    process.strip_prefix(program).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// The words of a command line before its first flag, without the program.
fn command(arguments: &[String]) -> String {
    let words = arguments.iter().skip(1).take_while(|word| !word.starts_with('-') && !word.is_empty());
    words.map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// Anonymous resident memory out of `/proc/PID/status`, bytes; none of a process that is gone or about to be.
fn anonymous(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Watches until it is told to stop.
///
/// # Errors
/// The processes cannot be listed, or the account not be written.
pub fn run(options: &Options) -> Result<Memory> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(watch(options))
}

async fn watch(options: &Options) -> Result<Memory> {
    let mut told = signals()?;
    let mut memory = Memory::default();
    report::write(&options.report, &memory)?;
    let mut ticks = interval(EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = told.recv() => return Ok(memory),
        }
        let mut news = false;
        for process in proc::all()?.into_iter().filter(|process| of(&options.name, &process.name)) {
            let arguments = process.arguments();
            let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
            // Of a process that ends meanwhile the one or the other is not to be had.
            if let (Some(bytes), [_, _, ..]) = (anonymous(&status), arguments.as_slice()) {
                news |= memory.saw(command(&arguments), bytes);
            }
        }
        if news {
            report::write(&options.report, &memory)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_name() {
        assert!(of("quorate", "quorate") && of("quorate", "quorate-01234567"));
        assert!(!of("quorate", "quorates") && !of("quorate", "kubectl-quorate"));
    }

    #[test]
    fn a_command_is_its_words_before_the_first_flag() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(command(&words("/quorate step worker --to v1.36.3 x")), "step worker");
        assert_eq!(command(&words("/quorate")), "");
    }

    #[test]
    fn the_most_is_kept() {
        let status = "Name:\tquorate\nVmRSS:\t    9000 kB\nRssAnon:\t    2048 kB\nRssFile:\t 6952 kB\n";
        assert_eq!(anonymous(status), Some(2 << 20));
        assert_eq!(anonymous("Name:\tquorate\nState:\tZ (zombie)\n"), None);
        let mut memory = Memory::default();
        assert!(memory.saw("gate".to_owned(), 5) && !memory.saw("gate".to_owned(), 3));
        assert_eq!(memory.0, BTreeMap::from([("gate".to_owned(), 5)]));
    }
}
