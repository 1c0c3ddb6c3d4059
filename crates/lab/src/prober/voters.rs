//! The quorum margin over time: once a second every member is asked, on a new connection, for a linearizable read (etcd's
//! `/health`), and who answered in time is kept.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use super::access::Access;
use super::account::millis;
use super::connection::{Question, Target};
use super::{report, signals};

/// How often members are asked, and how long each has to answer.
const EVERY: Duration = Duration::from_secs(1);

/// Whom to ask.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// A voting member's client address; may be repeated
    #[arg(long = "member", value_name = "NAME=https://ADDRESS:PORT", required = true, value_parser = member)]
    pub members: Vec<(String, String)>,
    /// Folder with ca.crt, healthcheck-client.crt and healthcheck-client.key
    #[arg(long, value_name = "FOLDER")]
    pub pki: PathBuf,
    /// Where the account goes, every second
    #[arg(long, value_name = "FILE")]
    pub report: PathBuf,
}

fn member(text: &str) -> Result<(String, String), String> {
    let (name, url) = text.split_once('=').ok_or("not of the form NAME=https://ADDRESS:PORT")?;
    Ok((name.to_owned(), url.to_owned()))
}

/// Who answered from some time on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Milliseconds since the watch began.
    pub from_ms: u64,
    /// The names of those who answered.
    pub answering: Vec<String>,
}

/// The margin over time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Margin {
    /// When the watch began.
    pub started_at: Timestamp,
    /// For how long, milliseconds.
    pub lasted_ms: u64,
    /// All members that were asked.
    pub members: Vec<String>,
    /// How many times they were.
    pub samples: u64,
    /// What was seen, one entry for each change.
    pub changes: Vec<Change>,
}

impl Margin {
    /// The fewest members that answered at one time; none when nobody was asked.
    #[must_use]
    pub fn fewest(&self) -> Option<usize> {
        self.changes.iter().map(|change| change.answering.len()).min()
    }

    fn seen(&mut self, at: Duration, answering: Vec<String>) {
        self.samples += 1;
        self.lasted_ms = millis(at);
        if self.changes.last().is_none_or(|last| last.answering != answering) {
            self.changes.push(Change { from_ms: millis(at), answering });
        }
    }
}

/// Watches until it is told to stop.
///
/// # Errors
/// The certificates cannot be used, or the account not be written. A member that does not answer is in the account.
pub fn run(options: &Options) -> Result<Margin> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(watch(options))
}

async fn watch(options: &Options) -> Result<Margin> {
    let mut told = signals()?;
    let mut targets = Vec::new();
    for (name, url) in &options.members {
        targets.push((name.clone(), Arc::new(Target::new(&Access::from_etcd_pki(&options.pki, url)?)?)));
    }
    let members = options.members.iter().map(|(name, _)| name.clone()).collect();
    let mut margin = Margin { started_at: report::clock(), lasted_ms: 0, members, samples: 0, changes: Vec::new() };
    let (started, mut ticks) = (Instant::now(), interval(EVERY));
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = told.recv() => return Ok(margin),
        }
        let at = started.elapsed();
        let mut asked = JoinSet::new();
        for (name, target) in &targets {
            let (name, target) = (name.clone(), target.clone());
            asked.spawn(async move {
                let answer = timeout(EVERY, target.ask_once(&Question::get("/health"))).await;
                matches!(answer, Ok(Ok(answer)) if answer.is_success()).then_some(name)
            });
        }
        let mut answering = Vec::new();
        while let Some(one) = asked.join_next().await {
            answering.extend(one.context("a question broke")?);
        }
        answering.sort();
        margin.seen(at, answering);
        report::write(&options.report, &margin)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_kept_and_the_fewest_is_known() {
        let mut margin = Margin {
            started_at: Timestamp::UNIX_EPOCH,
            lasted_ms: 0,
            members: vec!["k1".to_owned(), "k2".to_owned()],
            samples: 0,
            changes: Vec::new(),
        };
        assert_eq!(margin.fewest(), None);
        let both = margin.members.clone();
        let one = vec!["k2".to_owned()];
        for (second, seen) in [(0, &both), (1, &both), (2, &one), (3, &both)] {
            margin.seen(Duration::from_secs(second), seen.clone());
        }
        let from: Vec<u64> = margin.changes.iter().map(|change| change.from_ms).collect();
        assert_eq!((from, margin.fewest(), margin.samples), (vec![0, 2000, 3000], Some(1), 4));
    }
}
