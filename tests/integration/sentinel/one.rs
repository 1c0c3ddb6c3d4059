//! A cluster with a single control plane node: real etcd of one member.

use super::*;

/// As many requests as one look may make of the API, whatever it asks.
const MOST: usize = 20;

/// The policy is never: nobody stands in for a single voter, nor for its apiserver. Its workers are another matter.
#[test]
fn a_single_control_plane_node_is_never_let_go_and_its_workers_are() -> Result<()> {
    let mut fleet = Fleet::of(1)?;
    fleet.kured(&["--period=10m", "--reboot-sentinel=/sentinel/quorate-reboot-required"])?;
    fleet.worker()?;
    fleet.wants_reboot(1)?;
    // Without the files for etcd it could judge nothing: that is said at once.
    let key = fleet.stage.api.etcd().dir().join("pki/etcd/healthcheck-client.key");
    let aside = key.with_extension("aside");
    fs::rename(&key, &aside)?;
    fleet.start(1)?;
    fleet.says(1, "S008-etcd-files: cannot read ")?;
    assert!(fleet.asked(1, "/readyz")?.starts_with("HTTP/1.1 503"));
    fs::rename(&aside, &key)?;
    // Its own sentinel says since when the worker is up.
    fleet.start(4)?;
    fleet.says(1, "Q031-single-voter: ")?;
    // Etcd and the apiservers are asked each time: that is the dearest look there is. The other sentinel shares the account.
    fleet.sentinel(4)?.kill()?;
    let (looks, before) = (fleet.looks(1)?, rights::asked(&fleet.stage.api)?.len());
    fleet.has_looked(1, looks + 5)?;
    let (looks, asked) = (fleet.looks(1)? - looks, rights::asked(&fleet.stage.api)?.len() - before);
    println!("{asked} requests in {looks} looks, or one look more");
    assert!(asked <= (looks + 1) * MOST, "{asked} requests in {looks} looks");
    assert!(!fleet.is_open(1), "{}", fleet.log(1)?);
    assert!(!fleet.log(1)?.contains("The Lease is held"), "{}", fleet.log(1)?);
    assert_eq!(fleet.stage.holder()?, "", "it does not even ask for the Lease");
    let metrics = fleet.asked(1, "/metrics")?;
    assert!(metrics.contains("quorate_sentinel_reason{code=\"Q031-single-voter\"} 1"), "{metrics}");
    // That it waits is no trouble of its own.
    assert!(fleet.asked(1, "/readyz")?.starts_with("HTTP/1.1 200"));

    fleet.wants_reboot(4)?;
    fleet.start(4)?;
    fleet.worker_opens()?;
    assert!(!fleet.is_open(1), "{}", fleet.log(1)?);
    Ok(())
}
