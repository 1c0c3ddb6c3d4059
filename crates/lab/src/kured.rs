//! `kured_contract`: what kured does, as far as quorate depends on it, for tests on machines. kured's own module is in no registry that is
//! reached here; before a release the same is tried beside the real one.
//!
//! Every period it looks at a file, **once**. Is it there, it takes its lock, an annotation of its own DaemonSet; then drain delay, cordon,
//! drain, reboot delay, reboot; it never looks at the file again. A process that begins looks at the lock after a random delay: is it its
//! node's, it uncordons and releases. A drain that takes too long is given up: it releases, then uncordons, and ends if that fails. A lock
//! that names anybody else is waited for.
//!
//! At each [`Step`] it can be held up: see [`host`]. It asks for no alerts and has no window.

mod cluster;
mod host;
mod step;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::time::{Instant, sleep};

use crate::output::say;
use cluster::{Cluster, Lock};
use host::Host;
pub use step::Step;

/// Between two looks at pods that are to go.
const DRAIN_LOOK: Duration = Duration::from_secs(1);

/// kured's own arguments by their own names, and those of a test's.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Name of the node
    #[arg(long, env = "KURED_NODE_ID", value_name = "NAME")]
    pub node_id: String,
    /// Namespace of the DaemonSet that has the lock
    #[arg(long, value_name = "NAME", default_value = "kube-system")]
    pub ds_namespace: String,
    /// The DaemonSet that has the lock
    #[arg(long, value_name = "NAME", default_value = "kured")]
    pub ds_name: String,
    /// The lock's annotation
    #[arg(long, value_name = "KEY", default_value = "weave.works/kured-node-lock")]
    pub lock_annotation: String,
    /// How often it looks at the file
    #[arg(long, value_name = "LENGTH", default_value = "1h", value_parser = length)]
    pub period: Duration,
    /// The file, as this process sees it
    #[arg(long, value_name = "PATH", default_value = "/var/run/reboot-required")]
    pub reboot_sentinel: PathBuf,
    /// Between the lock and the cordon
    #[arg(long, value_name = "LENGTH", default_value = "0", value_parser = length)]
    pub drain_delay: Duration,
    /// How long a drain may take; 0: for ever
    #[arg(long, value_name = "LENGTH", default_value = "0", value_parser = length)]
    pub drain_timeout: Duration,
    /// Between the drain and the reboot
    #[arg(long, value_name = "LENGTH", default_value = "0", value_parser = length)]
    pub reboot_delay: Duration,
    /// The longest delay before a new process looks at the lock: in kured always a minute
    #[arg(long, value_name = "LENGTH", default_value = "1m", value_parser = length)]
    pub contract_first_look: Duration,
    /// The folder by which a test holds it up
    #[arg(long, value_name = "FOLDER", default_value = "/contract")]
    pub contract_folder: PathBuf,
    /// Reboot the host, and nothing else: how the process runs itself
    #[arg(long, hide = true)]
    pub contract_reboot: bool,
}

/// A length of time as Go writes it: `1h30m`, `10s`, `0`.
fn length(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let length: jiff::SignedDuration = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    length.try_into().map_err(|error: jiff::Error| error.to_string())
}

/// Does what kured does, until the node is rebooted under it or it is told to stop.
///
/// # Errors
/// It is in no pod; or what kured ends upon: the reboot, or the uncordon after a drain that was given up, failed.
pub fn run(options: &Options) -> Result<()> {
    if options.contract_reboot {
        return host::reboot();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let cluster = Cluster::in_pod(options)?;
        let kured = Kured { options, cluster, host: Host::new(options) };
        kured.after_the_boot().await?;
        kured.watch().await
    })
}

struct Kured<'a> {
    options: &'a Options,
    cluster: Cluster,
    host: Host,
}

/// How a drain ended.
enum Drained {
    Done,
    /// In words, why it was given up.
    GivenUp(String),
}

impl Kured<'_> {
    /// A process that begins: a lock of this node's is one of before the boot.
    async fn after_the_boot(&self) -> Result<()> {
        loop {
            sleep(random_below(self.options.contract_first_look)?).await;
            match self.uncordon_and_release().await {
                Ok(()) => return Ok(()),
                Err(error) => say(format_args!("the lock of before: {error:#}; trying again")),
            }
        }
    }

    async fn uncordon_and_release(&self) -> Result<()> {
        let Some(Lock { node_id, unschedulable }) = self.cluster.lock().await? else { return Ok(()) };
        if node_id != self.options.node_id {
            return Ok(());
        }
        self.host.comes_to(Step::Back).await?;
        if !unschedulable {
            self.cluster.cordon(false).await?;
        }
        self.host.comes_to(Step::Uncordoned).await?;
        self.cluster.release().await?;
        self.host.comes_to(Step::Released).await
    }

    async fn watch(&self) -> Result<()> {
        sleep(random_below(self.options.period)?).await;
        loop {
            if self.host.is_reboot_required() {
                self.try_to_reboot().await?;
            }
            sleep(self.options.period).await;
        }
    }

    /// From the one look at the file to the reboot.
    async fn try_to_reboot(&self) -> Result<()> {
        self.host.comes_to(Step::Seen).await?;
        let was_cordoned = self.cluster.is_cordoned().await.context("cannot read the node")?;
        match self.cluster.acquire(was_cordoned).await {
            Ok(None) => {}
            Ok(Some(holder)) => {
                say(format_args!("Lock already held: {holder}"));
                return Ok(());
            }
            Err(error) => {
                say(format_args!("Error acquiring lock: {error:#}"));
                return Ok(());
            }
        }
        self.host.comes_to(Step::Locked).await?;
        sleep(self.options.drain_delay).await;
        let drained = match self.drain().await {
            Ok(drained) => drained,
            Err(error) => Drained::GivenUp(format!("{error:#}")),
        };
        if let Drained::GivenUp(why) = drained {
            say(format_args!("Unable to cordon or drain: {why}"));
            self.host.comes_to(Step::GivenUp).await?;
            if let Err(error) = self.cluster.release().await {
                say(format_args!("Error in best-effort releasing lock: {error:#}"));
            }
            self.host.comes_to(Step::Freed).await?;
            return self.cluster.cordon(false).await.context("cannot uncordon after a drain that was given up");
        }
        self.host.comes_to(Step::Drained).await?;
        sleep(self.options.reboot_delay).await;
        self.host.comes_to(Step::Rebooting).await?;
        self.host.ask_for_reboot()?;
        loop {
            say("Waiting for reboot");
            sleep(Duration::from_secs(60)).await;
        }
    }

    /// Cordons, and evicts what `kubectl drain --force --ignore-daemonsets --delete-emptydir-data` would.
    async fn drain(&self) -> Result<Drained> {
        self.cluster.cordon(true).await?;
        self.host.comes_to(Step::Cordoned).await?;
        let timeout = self.options.drain_timeout;
        let end = (!timeout.is_zero()).then(|| Instant::now() + timeout);
        let leaves = self.cluster.pods_to_go().await?;
        let (mut stays, mut why) = (leaves, String::new());
        loop {
            let there = self.cluster.pods_to_go().await?;
            stays.retain(|pod| there.iter().any(|other| other.uid == pod.uid));
            if stays.is_empty() {
                return Ok(Drained::Done);
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(Drained::GivenUp(format!("global timeout reached: {timeout:?}: {why}")));
            }
            for pod in &stays {
                if let Err(error) = self.cluster.evict(pod).await {
                    why = format!("{error:#}");
                }
            }
            sleep(DRAIN_LOOK).await;
        }
    }
}

/// Another length each time.
fn random_below(most: Duration) -> Result<Duration> {
    let mut bytes = [0_u8; 4];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(most.mul_f64(f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_as_go_writes_them() {
        let rows = [("0", 0), ("10s", 10), ("1h0m0s", 3600), ("1h30m", 5400), ("5m", 300)];
        for (text, seconds) in rows {
            assert_eq!(length(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert!(length("soon").is_err() && length("-5s").is_err());
    }
}
