//! What breaks on a machine's way to the others, and processes that are told apart by their command line. The kernels that the lab is
//! run on have no netem: packets are dropped by nftables, in the machine's own network namespace.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::Signal;

use super::{Machine, POLL};
use crate::proc::{self, Process};

const TABLE: &str = "inet lab_fault";
/// Services may take a minute and a half each to stop.
const REBOOT: Duration = Duration::from_secs(240);

impl Machine {
    /// Orderly reboot, until another init runs; what is to run in it then, [`start`](Self::start) waits for.
    ///
    /// # Errors
    /// It is off, or did not come back.
    pub fn reboot(&self) -> Result<()> {
        let before = self.running()?;
        self.run_checked(["systemctl", "--no-block", "reboot"])?;
        let deadline = Instant::now() + REBOOT;
        // Seen from the host, and no command is run in it meanwhile: the shutdown stops every process, nsenter stops itself with its
        // child, reaps it no more, and so keeps the namespace that is to go.
        while self.init()?.is_none_or(|now| now == before) {
            if Instant::now() > deadline {
                bail!("machine {} did not reboot in {} s", self.name(), REBOOT.as_secs());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Packets from another machine are lost on arrival; those to it are not. Until [`lose_nothing`](Self::lose_nothing).
    ///
    /// # Errors
    /// It is off, or nft refuses.
    pub fn lose_from(&self, other: &Self) -> Result<()> {
        self.lose(&[("prerouting", &format!("ip saddr {}", other.address()))])
    }

    /// So many of a hundred packets from and to everybody are lost, each by its own chance.
    ///
    /// # Errors
    /// It is off, or nft refuses.
    pub fn lose_percent(&self, percent: u8) -> Result<()> {
        // The machine's own packets to itself are not on the way to anybody.
        let chance = format!("numgen random mod 100 < {percent}");
        self.lose(&[
            ("prerouting", &format!("meta iifname != lo {chance}")),
            ("postrouting", &format!("meta oifname != lo {chance}")),
        ])
    }

    /// What the machine and its pods send to this TCP port of anybody else is lost; until [`lose_nothing`](Self::lose_nothing).
    ///
    /// # Errors
    /// It is off, or nft refuses.
    pub fn lose_to_others(&self, port: u16) -> Result<()> {
        self.lose(&[("postrouting", &format!("ip daddr != {} tcp dport {port}", self.address()))])
    }

    fn lose(&self, rules: &[(&str, &str)]) -> Result<()> {
        let mut lines = vec![format!("add table {TABLE}")];
        for (hook, which) in rules {
            // Before everything else, connection tracking included: what is lost was never there.
            lines.push(format!("add chain {TABLE} {hook} {{ type filter hook {hook} priority -350; policy accept; }}"));
            lines.push(format!("add rule {TABLE} {hook} {which} counter drop"));
        }
        self.run_checked(["nft", &lines.join("; ")]).map(drop)
    }

    /// Whoever connects to this TCP port is refused, as if nobody listened, and what is connected is reset; until
    /// [`lose_nothing`](Self::lose_nothing).
    ///
    /// # Errors
    /// It is off, or nft refuses.
    pub fn refuse(&self, port: u16) -> Result<()> {
        let chain = format!("add chain {TABLE} input {{ type filter hook input priority 0; policy accept; }}");
        let rule = format!("add rule {TABLE} input tcp dport {port} counter reject with tcp reset");
        self.run_checked(["nft", &format!("add table {TABLE}; {chain}; {rule}")]).map(drop)
    }

    /// Nothing is lost or refused any more. No error when nothing was.
    ///
    /// # Errors
    /// It is off, or nft refuses.
    pub fn lose_nothing(&self) -> Result<()> {
        // Adding what may be there already never fails, so that deleting it never does.
        self.run_checked(["nft", &format!("add table {TABLE}; delete table {TABLE}")]).map(drop)
    }

    /// Stops all processes whose command line has these words, one after the other: `quorate step`. Gives how many.
    ///
    /// # Errors
    /// It is off, or there is no such process.
    pub fn pause_command(&self, words: &[&str]) -> Result<usize> {
        self.signal_command(words, Signal::STOP)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// It is off, or there is no such process.
    pub fn resume_command(&self, words: &[&str]) -> Result<usize> {
        self.signal_command(words, Signal::CONT)
    }

    /// Kills them.
    ///
    /// # Errors
    /// It is off, or there is no such process.
    pub fn kill_command(&self, words: &[&str]) -> Result<usize> {
        self.signal_command(words, Signal::KILL)
    }

    /// Whether a process of this command line is there.
    ///
    /// # Errors
    /// It is off.
    pub fn runs_command(&self, words: &[&str]) -> Result<bool> {
        Ok(!self.commands(words)?.is_empty())
    }

    fn commands(&self, words: &[&str]) -> Result<Vec<Process>> {
        let inside = proc::below(&proc::all()?, self.running()?);
        Ok(inside.into_iter().filter(|process| !process.zombie && has(&process.arguments(), words)).collect())
    }

    fn signal_command(&self, words: &[&str], signal: Signal) -> Result<usize> {
        let found = self.commands(words)?;
        if found.is_empty() {
            bail!("no process `{}` on machine {}", words.join(" "), self.name());
        }
        found.iter().try_for_each(|process| proc::signal(process.pid, signal))?;
        Ok(found.len())
    }
}

/// Whether a command line begins with these words, the program by its file's name.
fn has(arguments: &[String], words: &[&str]) -> bool {
    let Some((program, arguments)) = arguments.split_first() else { return false };
    let program = program.rsplit('/').next().unwrap_or(program);
    words.split_first().is_some_and(|(first, rest)| {
        program == *first
            && arguments.len() >= rest.len()
            && arguments.iter().zip(rest).all(|(is, wanted)| is == wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_known_by_its_program_and_first_words() {
        let line = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let step = line("/usr/local/bin/quorate step control-plane --to=v1.36.3");
        assert!(has(&step, &["quorate", "step"]) && has(&step, &["quorate"]));
        assert!(!has(&step, &["quorate", "node"]) && !has(&step, &["step"]));
        assert!(!has(&line("/usr/local/bin/quorate"), &["quorate", "step"]));
        assert!(!has(&line("/var/lib/quorate/bin/quorate-ab node run"), &["quorate", "node"]));
        assert!(!has(&[], &["quorate"]));
    }
}
