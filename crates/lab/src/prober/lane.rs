//! One stream of requests: each on a connection of its own, or all on one that is kept.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Error, Result, anyhow};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::connection::{Asked, Connection, Ending, Protocol, Question, Target};
use super::report::{Class, Counts};
use super::{DEADLINE, Options, ticks};

pub(super) struct Lane {
    pub(super) class: Class,
    pub(super) target: Arc<Target>,
    pub(super) counts: Arc<Counts>,
    pub(super) options: Options,
    pub(super) stopped: watch::Receiver<bool>,
}

/// All causes on one line: a report is read by people.
struct Causes(Error);

impl fmt::Display for Causes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

fn outcome(class: Class, counts: &Counts, began: Instant, ended: Result<Result<()>, tokio::time::error::Elapsed>) {
    match ended {
        Ok(Ok(())) => counts.success(class, began.elapsed()),
        Ok(Err(error)) => counts.failure(class, &Causes(error)),
        Err(_) => counts.failure(class, &format_args!("no answer within {} s", DEADLINE.as_secs())),
    }
}

impl Lane {
    fn question(&self, number: u64) -> Question {
        match self.class {
            Class::Write => self.options.write(number),
            Class::New | Class::Kept | Class::Http2 => self.options.read(),
        }
    }

    /// A request on a new connection each time; the next one starts on time, whatever became of this one.
    pub(super) async fn open(mut self, every: Duration) {
        let mut ticks = ticks(Duration::ZERO, every);
        let mut under_way = JoinSet::new();
        for number in 1.. {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = self.stopped.wait_for(|stopped| *stopped) => break,
            }
            while under_way.try_join_next().is_some() {}
            let (class, target, counts) = (self.class, self.target.clone(), self.counts.clone());
            let question = self.question(number);
            under_way.spawn(async move {
                let began = Instant::now();
                let asked = async { target.ask_once(&question).await?.into_success() };
                outcome(class, &counts, began, timeout(DEADLINE, asked).await);
            });
        }
        under_way.join_all().await;
    }

    /// One request after the other on a connection that is kept.
    pub(super) async fn keep(mut self, protocol: Protocol, first: Duration, every: Duration) {
        let mut ticks = ticks(first, every);
        let mut kept = None;
        for number in 1.. {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = self.stopped.wait_for(|stopped| *stopped) => break,
            }
            let began = Instant::now();
            let question = self.question(number);
            let ended = timeout(DEADLINE, self.ask_kept(&mut kept, protocol, &question)).await;
            outcome(self.class, &self.counts, began, ended);
        }
    }

    /// What any careful client does: a connection that the server closed properly before a request was written is opened
    /// anew. A request that was written is never written again.
    async fn ask_kept(&self, kept: &mut Option<Connection>, protocol: Protocol, question: &Question) -> Result<()> {
        // Taken out: a connection that is not put back, for a failure or the deadline, is closed.
        let mut connection = kept.take();
        for _ in 0..2 {
            let mut open = match connection.take() {
                None => self.target.connect(protocol).await?,
                Some(mut known) => match known.ending().await {
                    None => known,
                    Some(ending) => self.reopen(ending, protocol).await?,
                },
            };
            match self.target.ask(&mut open, question).await? {
                Asked::Answered(answer) => {
                    answer.into_success()?;
                    *kept = Some(open);
                    return Ok(());
                }
                Asked::NotWritten => connection = Some(open),
            }
        }
        Err(anyhow!("the connection closed twice before the request was written"))
    }

    async fn reopen(&self, ending: Ending, protocol: Protocol) -> Result<Connection> {
        match ending {
            Ending::Closed => {
                self.counts.reopened(self.class);
                self.target.connect(protocol).await
            }
            Ending::Cut(why) => Err(anyhow!("cut while nothing was asked: {why}")),
        }
    }
}
