//! Cordons and drains a node as a step of an upgrade does, and uncordons it: for `make bench`, beside `kubectl drain`. It holds no Lease and
//! asks no etcd, so it is no tool to be used on a cluster.

use quorate::access::Access;
use quorate::clock::Clock;
use quorate::config::Config;
use quorate::drain::{self, Options, Overseer, Owner, Progress};
use quorate::lock::Fence;
use quorum_safety::lock::TooLate;
use std::path::Path;
use std::time::Duration;

/// Nobody else is at work on a bench.
struct Alone;

impl Fence for Alone {
    fn clock(&self) -> Clock {
        Clock::system()
    }

    fn left(&self) -> Result<Duration, TooLate> {
        Ok(Duration::from_secs(30))
    }
}

impl Overseer for Alone {
    async fn should_stop(&mut self) -> Option<String> {
        None
    }

    fn progress(&mut self, _: &Progress) {}
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let (Some(what), Some(node), Some(kubeconfig), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        anyhow::bail!("usage: drain drain|uncordon NODE KUBECONFIG");
    };
    anyhow::ensure!(rustls::crypto::ring::default_provider().install_default().is_ok(), "no provider of TLS");
    let access = Access::from_file(Path::new(&kubeconfig), "quorate").await?;
    let owner = Owner { operation: "bench".to_owned(), identity: "bench".to_owned(), adopted: true };
    match what.as_str() {
        "drain" => {
            drain::cordon(&access, &node, &owner, Clock::system().now(), &Alone).await?;
            let report =
                drain::drain(&access, &node, &Options::new(&Config::default(), None), &Alone, &mut Alone).await?;
            anyhow::ensure!(report.deleted.is_empty(), "pods were deleted past their budgets");
        }
        "uncordon" => drop(drain::uncordon(&access, &node, &owner, &Alone).await?),
        other => anyhow::bail!("`{other}` is neither drain nor uncordon"),
    }
    Ok(())
}
