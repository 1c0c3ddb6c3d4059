//! What clients see: requests at a fixed rate on raw connections, without any retry, counted one by one.
//!
//! Four classes. *New* and *writes* open a TCP and TLS connection for each request and start it on time whatever became of
//! the one before. *Kept* and *HTTP/2* ask one request after the other on connections that stay open; there are several, so
//! that each apiserver behind a balancer has some, and while one hangs its own next requests are left out, which the longest
//! gap and the slowest answer show.
//!
//! Every read goes through etcd: a GET of one object without a resourceVersion is no read of the apiserver's cache.

pub(crate) mod access;
mod account;
pub(crate) mod connection;
mod lane;
pub mod memory;
pub mod monitor;
mod report;
pub mod voters;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use access::Access;
use connection::{Protocol, Question, Target};
use report::Counts;

pub use account::Tally;
pub use report::{Class, Failure, Report};

/// How long a request may take, connecting included.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How long the apiserver has to let this account read and write before anything is counted: roles are seen by watches.
const ADMITTED: Duration = Duration::from_secs(60);
/// How often a report is written, and a refused account asks again.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it looks whether it runs when it should.
const PULSE: Duration = Duration::from_millis(20);
const POD_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where requests go, who sends them, and how many.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The apiserver or what stands before it, by its address; its certificate must name it
    #[arg(long, value_name = "https://ADDRESS:PORT")]
    pub server: String,
    /// Take the client certificate of this kubeconfig [default: the token and ca.crt of the pod's account]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Folder of `token` and `ca.crt`, when there is no kubeconfig
    #[arg(long, value_name = "FOLDER", default_value = POD_ACCOUNT)]
    pub account: PathBuf,
    /// Namespace of the ConfigMaps that are read and written
    #[arg(long, value_name = "NAME", default_value = "quorate-demo")]
    pub namespace: String,
    /// The ConfigMap that is read; those that are written have a number after this name. Made when not there, and nobody else's
    #[arg(long, value_name = "NAME", default_value = "prober")]
    pub config_map: String,
    /// Requests a second on new connections
    #[arg(long, value_name = "NUMBER", default_value_t = 15)]
    pub new_rate: u32,
    /// Requests a second on kept HTTP/1.1 connections
    #[arg(long, value_name = "NUMBER", default_value_t = 15)]
    pub kept_rate: u32,
    /// Requests a second on HTTP/2 connections
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    pub http2_rate: u32,
    /// Writes a second, each on a new connection
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    pub write_rate: u32,
    /// Connections of each kept class
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    pub connections: u32,
    /// End after so many seconds [default: on SIGTERM or SIGINT]
    #[arg(long, value_name = "NUMBER")]
    pub seconds: Option<u64>,
    /// Write the report here every second, too; a file that is there already is moved aside, never lost
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

impl Options {
    fn target(&self) -> Result<Target> {
        Target::new(&match &self.kubeconfig {
            Some(file) => Access::from_kubeconfig(file, &self.server)?,
            None => Access::from_account(&self.account, &self.server)?,
        })
    }

    fn maps(&self) -> String {
        format!("/api/v1/namespaces/{}/configmaps", self.namespace)
    }

    fn read(&self) -> Question {
        Question::get(&format!("{}/{}", self.maps(), self.config_map))
    }

    /// How many objects writes take turns in. Writers of one object make each other's attempts fail inside the apiserver, and it tries
    /// them again: that would be counted, not the way to it. So none is written again before the write before has met its deadline.
    #[must_use]
    pub fn written(&self) -> u64 {
        u64::from(self.write_rate) * (DEADLINE.as_secs() + 1)
    }

    fn written_name(&self, number: u64) -> String {
        format!("{}-{}", self.config_map, number % self.written())
    }

    fn create(&self, name: &str) -> Question {
        Question {
            method: "POST",
            path: self.maps(),
            content_type: "application/json",
            body: serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}).to_string(),
        }
    }

    fn write(&self, number: u64) -> Question {
        Question {
            method: "PATCH",
            path: format!("{}/{}", self.maps(), self.written_name(number)),
            content_type: "application/merge-patch+json",
            body: serde_json::json!({"data": {"writes": number.to_string()}}).to_string(),
        }
    }
}

/// Probes until it is told to stop, or for as long as the options say, and gives the report.
///
/// # Errors
/// The account is not admitted within a minute, or a report cannot be written. Failed requests are in the report.
pub fn run(options: &Options) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(probe(options))
}

async fn probe(options: &Options) -> Result<Report> {
    let mut told = signals()?;
    if let Some(file) = &options.report {
        report::move_aside(file)?;
    }
    let target = Arc::new(options.target()?);
    tokio::select! {
        admitted = admitted(options, &target) => admitted?,
        () = told.recv() => bail!("told to stop before the account was admitted"),
    }
    let counts = Arc::new(Counts::begin(&options.server));
    let (stop, stopped) = watch::channel(false);
    let mut lanes = start(options, &target, &counts, &stopped);
    let mut ticks = interval(PAUSE);
    let mut pulse = self::ticks(PULSE, PULSE);
    let end = options.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        tokio::select! {
            _ = ticks.tick() => if let Some(file) = &options.report {
                report::write(file, &counts.report(false))?;
            },
            due = pulse.tick() => counts.late(due.elapsed()),
            () = told.recv() => break,
            () = until(end) => break,
            Some(ended) = lanes.join_next() => ended.context("a lane of the prober broke")?,
        }
    }
    counts.end();
    stop.send_replace(true);
    // What is under way ends by itself, at its deadline at the latest: it counts.
    while let Some(ended) = lanes.join_next().await {
        ended.context("a lane of the prober broke")?;
    }
    let report = counts.report(true);
    if let Some(file) = &options.report {
        report::write(file, &report)?;
    }
    Ok(report)
}

/// SIGTERM and SIGINT: a container's first process has no default action for either.
struct Told(tokio::signal::unix::Signal, tokio::signal::unix::Signal);

fn signals() -> Result<Told> {
    Ok(Told(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}

impl Told {
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Makes the ConfigMaps, reads one and writes each once: only what worked before can be said to have failed later.
async fn admitted(options: &Options, target: &Target) -> Result<()> {
    let create = |name: &str| (options.create(name), 409);
    let mut questions = vec![create(&options.config_map), (options.read(), 200)];
    for number in 0..options.written() {
        questions.extend([create(&options.written_name(number)), (options.write(number), 200)]);
    }
    let attempt = async |question: &Question, fine| {
        let answer = target.ask_once(question).await?;
        if !answer.is_success() && answer.status != fine {
            bail!("{} {}: {}", question.method, question.path, answer.failure());
        }
        Ok(())
    };
    let deadline = Instant::now() + ADMITTED;
    for (question, fine) in &questions {
        while let Err(error) =
            timeout(DEADLINE, attempt(question, *fine)).await.unwrap_or_else(|_| Err(anyhow!("no answer")))
        {
            if Instant::now() > deadline {
                return Err(error.context(format!("not admitted within {} s", ADMITTED.as_secs())));
            }
            sleep(PAUSE).await;
        }
    }
    Ok(())
}

fn start(
    options: &Options,
    target: &Arc<Target>,
    counts: &Arc<Counts>,
    stopped: &watch::Receiver<bool>,
) -> JoinSet<()> {
    let mut lanes = JoinSet::new();
    let lane = |class| lane::Lane {
        class,
        target: target.clone(),
        counts: counts.clone(),
        options: options.clone(),
        stopped: stopped.clone(),
    };
    for (class, rate) in [(Class::New, options.new_rate), (Class::Write, options.write_rate)] {
        if let Some(every) = every(rate, 1) {
            lanes.spawn(lane(class).open(every));
        }
    }
    let kept = [(Class::Kept, options.kept_rate, Protocol::Http1), (Class::Http2, options.http2_rate, Protocol::Http2)];
    for (class, rate, protocol) in kept {
        if let Some(pause) = every(rate, options.connections) {
            for number in 0..options.connections {
                // Spread over the interval: not all lanes at one moment.
                let first = pause.mul_f64(f64::from(number) / f64::from(options.connections));
                lanes.spawn(lane(class).keep(protocol, first, pause));
            }
        }
    }
    lanes
}

/// The pause between the requests of one of several lanes that share a rate; none for no requests at all.
fn every(rate: u32, lanes: u32) -> Option<Duration> {
    (rate > 0 && lanes > 0).then(|| Duration::from_secs(u64::from(lanes)) / rate)
}

fn ticks(first: Duration, every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + first, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}
