//! The account of a prober: kept while it runs, written every second, so that one that is killed leaves it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::account::{Account, Tally, millis};

/// Failures that are kept with their time and error; all are counted.
const KEPT_FAILURES: usize = 1000;

/// A class of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Class {
    /// Reads, each on a new connection.
    New,
    /// Reads on kept HTTP/1.1 connections.
    Kept,
    /// Reads on kept HTTP/2 connections.
    Http2,
    /// Writes, each on a new connection.
    Write,
}

impl Class {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 4] = [Self::New, Self::Kept, Self::Http2, Self::Write];

    /// What it is called in tables.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::New => "new connections",
            Self::Kept => "kept HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Write => "writes",
        }
    }
}

/// One request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// When it was given up.
    pub at: Timestamp,
    /// Its class.
    pub class: Class,
    /// Why, on one line.
    pub error: String,
}

/// All that a prober saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Where the requests went.
    pub server: String,
    /// When counting began.
    pub started_at: Timestamp,
    /// For how long it counted, milliseconds.
    pub lasted_ms: u64,
    /// Whether the prober ended orderly; a report of one that was killed lacks its last second.
    pub complete: bool,
    /// The longest that the prober itself was kept from running, milliseconds: so much of a gap may be its own.
    pub late_ms: u64,
    /// What was counted for each class; a class without a request is not there.
    pub classes: BTreeMap<Class, Tally>,
    /// The first thousand failures.
    pub failures: Vec<Failure>,
}

impl Report {
    /// Failures of a class; a class that was never asked has failed altogether, and is none here.
    #[must_use]
    pub fn failed(&self, class: Class) -> Option<u64> {
        self.classes.get(&class).map(|tally| tally.failed)
    }
}

/// The running account of all classes.
pub(super) struct Counts {
    server: String,
    started_at: Timestamp,
    started: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    accounts: BTreeMap<Class, Account>,
    failures: Vec<Failure>,
    late: Duration,
    ended: Option<Duration>,
}

#[expect(clippy::disallowed_methods, reason = "a report is set beside logs of real servers, which have the real clock")]
pub(super) fn clock() -> Timestamp {
    Timestamp::now()
}

impl Counts {
    pub(super) fn begin(server: &str) -> Self {
        Self { server: server.to_owned(), started_at: clock(), started: Instant::now(), inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn success(&self, class: Class, took: Duration) {
        self.inner().accounts.entry(class).or_default().success(self.started.elapsed(), took);
    }

    pub(super) fn failure(&self, class: Class, error: &dyn fmt::Display) {
        let mut inner = self.inner();
        inner.accounts.entry(class).or_default().failure();
        if inner.failures.len() < KEPT_FAILURES {
            inner.failures.push(Failure { at: clock(), class, error: error.to_string() });
        }
    }

    pub(super) fn reopened(&self, class: Class) {
        self.inner().accounts.entry(class).or_default().reopened();
    }

    /// The prober was to run that much earlier than it did.
    pub(super) fn late(&self, by: Duration) {
        let mut inner = self.inner();
        inner.late = inner.late.max(by);
    }

    /// From now on a gap does not grow: no further request is sent.
    pub(super) fn end(&self) {
        self.inner().ended = Some(self.started.elapsed());
    }

    pub(super) fn report(&self, complete: bool) -> Report {
        let inner = self.inner();
        let now = inner.ended.unwrap_or_else(|| self.started.elapsed());
        Report {
            server: self.server.clone(),
            started_at: self.started_at,
            lasted_ms: millis(now),
            complete,
            late_ms: millis(inner.late),
            classes: inner.accounts.iter().map(|(class, account)| (*class, account.tally(now))).collect(),
            failures: inner.failures.clone(),
        }
    }
}

/// Writes a document that is whole or not there.
pub(super) fn write(file: &Path, document: &impl Serialize) -> Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot = || format!("cannot write {}", file.display());
    let mut new = tempfile::NamedTempFile::new_in(folder).with_context(cannot)?;
    serde_json::to_writer_pretty(&mut new, document)?;
    new.write_all(b"\n").with_context(cannot)?;
    new.persist(file).with_context(cannot)?;
    Ok(())
}

/// A prober that is started again must not lose what the one before has seen: `FILE` becomes `FILE.1`, `FILE.2`, …
pub(super) fn move_aside(file: &Path) -> Result<()> {
    if !file.exists() {
        return Ok(());
    }
    let free = (1..).map(|number: u32| {
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    });
    for aside in free {
        if !aside.exists() {
            return fs::rename(file, &aside).with_context(|| format!("cannot move {} aside", file.display()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_of_a_prober_before_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("report.json");
        for expected in [1, 2, 3] {
            move_aside(&file).unwrap();
            write(&file, &expected).unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(["report.json.1", "report.json.2", "report.json"].map(read), ["1\n", "2\n", "3\n"]);
    }

    #[test]
    fn a_report_reads_back() {
        let counts = Counts::begin("https://10.10.0.10:6443");
        counts.success(Class::New, Duration::from_millis(3));
        counts.failure(Class::Http2, &"no answer within 5 s");
        counts.reopened(Class::Kept);
        counts.late(Duration::from_millis(40));
        counts.late(Duration::from_millis(7));
        counts.end();
        let report: Report = serde_json::from_str(&serde_json::to_string(&counts.report(true)).unwrap()).unwrap();
        assert_eq!((report.failed(Class::New), report.failed(Class::Http2)), (Some(0), Some(1)));
        assert_eq!(report.failed(Class::Write), None);
        assert_eq!(report.late_ms, 40);
        assert_eq!(report.classes.get(&Class::Kept).unwrap().reopened, 1);
        assert_eq!(report.failures.first().unwrap().error, "no answer within 5 s");
    }
}
