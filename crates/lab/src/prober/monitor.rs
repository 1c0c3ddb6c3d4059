//! A monitor outside of what it watches: once a second every etcd member is asked for a linearizable read and every apiserver, on its
//! own address, whether it is ready, each on a new connection. It runs in the client's network namespace. Whether what it saw is
//! explained is [`rule`]'s to say.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::access::Access;
use super::account::millis;
use super::connection::{Asked, Connection, Protocol, Question, Target};
use super::ticks;
use crate::cluster::Lab;
use crate::network::{API_PORT, CLIENT_NAMESPACE};

pub mod rule;

/// How often everybody is asked.
const EVERY: Duration = Duration::from_secs(1);
/// How long an answer may take, milliseconds: what quorate itself gives a member.
pub const DEADLINE_MS: u64 = 3_000;
/// How often the watched object is read, and how long one apiserver has for it.
const GLANCE: Duration = Duration::from_millis(100);
const GLANCE_LIMIT: Duration = Duration::from_millis(1_500);
const ETCD_PORT: u16 = 2379;

/// Who answered from some time on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Milliseconds since the monitor began.
    pub from_ms: u64,
    /// Nodes whose etcd member answered a linearizable read.
    pub voters: BTreeSet<String>,
    /// Nodes whose apiserver was ready.
    pub apiservers: BTreeSet<String>,
}

/// All that a monitor saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The control plane nodes, each with a voter and an apiserver.
    pub members: Vec<String>,
    /// For how long it watched, milliseconds.
    pub lasted_ms: u64,
    /// How many times everybody was asked.
    pub samples: usize,
    /// What was seen, one entry for each change.
    pub changes: Vec<Seen>,
}

impl Account {
    fn of(members: Vec<String>, lasted_ms: u64, mut samples: Vec<Seen>) -> Self {
        // One that waited for its deadline comes after the next.
        samples.sort_by_key(|sample| sample.from_ms);
        let count = samples.len();
        samples.dedup_by(|next, last| next.voters == last.voters && next.apiservers == last.apiservers);
        Self { members, lasted_ms, samples: count, changes: samples }
    }

    /// The fewest voters that answered at one time; none when nobody was asked.
    #[must_use]
    pub fn fewest_voters(&self) -> Option<usize> {
        self.fewest_voters_between(0, u64::MAX)
    }

    /// The same, of a part of the time.
    #[must_use]
    pub fn fewest_voters_between(&self, from_ms: u64, to_ms: u64) -> Option<usize> {
        let ends = self.changes.iter().skip(1).map(|change| change.from_ms).chain([self.lasted_ms]);
        let spans = self.changes.iter().zip(ends);
        spans.filter(|(seen, end)| seen.from_ms <= to_ms && *end >= from_ms).map(|(seen, _)| seen.voters.len()).min()
    }
}

/// What is known so far.
#[derive(Default)]
struct Known {
    samples: Vec<Seen>,
    glance: Option<(u64, Value)>,
}

/// A monitor that runs; it ends when it is dropped.
pub struct Monitor {
    started: Instant,
    members: Vec<String>,
    known: Arc<Mutex<Known>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What the thread needs.
struct Whom {
    voters: Vec<(String, Arc<Target>)>,
    apiservers: Vec<(String, Arc<Target>)>,
    watched: String,
}

impl Monitor {
    /// Watches the control plane of a lab that is up, and beside it one path of the API, whose newest answer is
    /// [`glance`](Self::glance).
    ///
    /// # Errors
    /// The certificates cannot be read, or the client's namespace not be entered.
    pub fn start(lab: &Lab, watched: &str) -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let pki = scratch.path().join("etcd");
        DirBuilder::new().mode(0o700).create(&pki)?;
        lab.copy_etcd_client(&pki)?;
        let (mut voters, mut apiservers) = (Vec::new(), Vec::new());
        for index in 1..=lab.spec().control_planes {
            let machine = lab.machine(index)?;
            let (name, address) = (machine.name(), machine.address());
            let etcd = Access::from_etcd_pki(&pki, &format!("https://{address}:{ETCD_PORT}"))?;
            voters.push((name.clone(), Arc::new(Target::new(&etcd)?)));
            let api = Access::from_kubeconfig(&lab.kubeconfig(), &format!("https://{address}:{API_PORT}"))?;
            apiservers.push((name, Arc::new(Target::new(&api)?)));
        }
        let members = voters.iter().map(|(name, _)| name.clone()).collect();
        let known = Arc::new(Mutex::new(Known::default()));
        let (stop, stopped) = watch::channel(false);
        let started = Instant::now();
        let (whom, shared) = (Whom { voters, apiservers, watched: watched.to_owned() }, known.clone());
        let (entered, ready) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("monitor".to_owned()).spawn(move || {
            let inside = enter(Path::new("/run/netns").join(CLIENT_NAMESPACE).as_path());
            let is_inside = inside.is_ok();
            entered.send(inside).context("nobody waits for the monitor")?;
            if !is_inside {
                return Ok(());
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(watch_all(whom, shared, started, stopped))
        })?;
        ready.recv().context("the monitor's thread broke")??;
        Ok(Self { started, members, known, stop, thread: Some(thread) })
    }

    /// Milliseconds since it began: the time of its account.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        millis(self.started.elapsed())
    }

    /// The newest answer of the API at the watched path, and when it came; none before the first.
    #[must_use]
    pub fn glance(&self) -> Option<(u64, Value)> {
        lock(&self.known).glance.clone()
    }

    /// What was seen so far.
    #[must_use]
    pub fn account(&self) -> Account {
        Account::of(self.members.clone(), self.now_ms(), lock(&self.known).samples.clone())
    }

    /// Ends it, and gives all that it saw.
    ///
    /// # Errors
    /// It broke while it watched.
    pub fn stop(mut self) -> Result<Account> {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            match thread.join() {
                Ok(ended) => ended?,
                Err(_) => bail!("the monitor panicked"),
            }
        }
        Ok(self.account())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    // It is a list of what was seen: a panic leaves no half of an entry.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves this thread, and only it, into a network namespace.
fn enter(namespace: &Path) -> Result<()> {
    let file = File::open(namespace).with_context(|| format!("cannot open {}", namespace.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter {}", namespace.display()))
}

async fn watch_all(
    whom: Whom,
    known: Arc<Mutex<Known>>,
    started: Instant,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let mut asked = JoinSet::new();
    let mut due = ticks(Duration::ZERO, EVERY);
    let mut glances = tokio::spawn(glances(whom.apiservers.clone(), whom.watched, known.clone(), started));
    loop {
        tokio::select! {
            _ = due.tick() => {
                asked.spawn(sample(whom.voters.clone(), whom.apiservers.clone(), millis(started.elapsed())));
            }
            Some(one) = asked.join_next() => lock(&known).samples.push(one.context("a question broke")??),
            ended = &mut glances => return ended.context("the watch over the API broke"),
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
    }
    glances.abort();
    // What is under way ends at its deadline at the latest.
    while let Some(one) = asked.join_next().await {
        lock(&known).samples.push(one.context("a question broke")??);
    }
    Ok(())
}

type Targets = Vec<(String, Arc<Target>)>;

async fn sample(voters: Targets, apiservers: Targets, from_ms: u64) -> Result<Seen> {
    let (voters, apiservers) = tokio::join!(answering(voters, "/health"), answering(apiservers, "/readyz"));
    Ok(Seen { from_ms, voters: voters?, apiservers: apiservers? })
}

async fn answering(targets: Targets, path: &'static str) -> Result<BTreeSet<String>> {
    let mut asked = JoinSet::new();
    for (name, target) in targets {
        asked.spawn(async move {
            let answer = timeout(Duration::from_millis(DEADLINE_MS), target.ask_once(&Question::get(path))).await;
            matches!(answer, Ok(Ok(answer)) if answer.is_success()).then_some(name)
        });
    }
    let mut found = BTreeSet::new();
    while let Some(one) = asked.join_next().await {
        found.extend(one.context("a question broke")?);
    }
    Ok(found)
}

/// Reads the watched path again and again on a connection that is kept, from the next apiserver when one does not answer.
async fn glances(apiservers: Targets, path: String, known: Arc<Mutex<Known>>, started: Instant) {
    let question = Question::get(&path);
    let mut due = ticks(Duration::ZERO, GLANCE);
    for (_, target) in apiservers.iter().cycle() {
        let mut connection = None;
        // Until this one fails; then the next is asked.
        while let Ok(Ok((open, value))) = timeout(GLANCE_LIMIT, glance(target, connection.take(), &question)).await {
            connection = Some(open);
            lock(&known).glance = Some((millis(started.elapsed()), value));
            due.tick().await;
        }
        due.tick().await;
    }
}

async fn glance(target: &Target, kept: Option<Connection>, question: &Question) -> Result<(Connection, Value)> {
    let mut connection = match kept {
        Some(connection) => connection,
        None => target.connect(Protocol::Http1).await?,
    };
    match target.ask(&mut connection, question).await? {
        Asked::Answered(answer) => Ok((connection, answer.json()?)),
        Asked::NotWritten => bail!("the connection was closed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_put_in_order_and_only_changes_are_kept() {
        let seen = |from_ms, voters: &[&str]| Seen {
            from_ms,
            voters: voters.iter().map(|it| (*it).to_owned()).collect(),
            apiservers: BTreeSet::new(),
        };
        let samples =
            vec![seen(0, &["k1", "k2"]), seen(3_000, &["k1", "k2"]), seen(1_000, &["k2"]), seen(2_000, &["k2"])];
        let account = Account::of(vec!["k1".to_owned(), "k2".to_owned()], 4_000, samples);
        let from: Vec<u64> = account.changes.iter().map(|change| change.from_ms).collect();
        assert_eq!((from, account.samples, account.fewest_voters()), (vec![0, 1_000, 3_000], 4, Some(1)));
        assert_eq!(account.fewest_voters_between(3_500, 3_600), Some(2));
    }

    #[test]
    fn a_namespace_that_is_not_there_is_named() {
        let error = enter(Path::new("/run/netns/no-such-namespace")).unwrap_err().to_string();
        assert!(error.contains("no-such-namespace"), "{error}");
    }
}
