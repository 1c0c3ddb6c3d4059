//! kured's lock: taken after the Lease, given back before it, and never left to stand for nothing.

use super::mute::Mute;
use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A DaemonSet of kured's with these annotations, and the configuration that names it.
pub(super) fn kured(place: &Place, annotations: &Value) -> Result<Config> {
    let labels = json!({"app": place.namespace});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "kured", "namespace": place.namespace, "annotations": annotations},
        "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "kured", "image": "ghcr.io/kubereboot/kured:1.23.0"}]},
        }},
    });
    place.api.apply(&set.to_string())?;
    Ok(Config { kured: format!("{}/kured", place.namespace), ..Config::default() })
}

/// kured's lock, as it stands there.
pub(super) fn annotation(place: &Place) -> Result<Option<Value>> {
    let set = place.api.kubectl(["get", "daemonset", "kured", "-n", place.namespace, "-o", "json"])?;
    let set: Value = serde_json::from_str(&set)?;
    let lock = &set["metadata"]["annotations"]["weave.works/kured-node-lock"];
    Ok(lock.as_str().map(serde_json::from_str).transpose()?)
}

#[tokio::test]
async fn kureds_lock_held_by_a_node_gives_the_lease_back() -> Result<()> {
    let place = Place::new(shared()?, "kured-held")?;
    place.node_with_pod("cp1", "boot-1")?;
    let who = place.claimant("cp1", "upgrade", "cp2").await?;
    let leases = place.leases().await?;
    for (lock, code) in [
        (
            r#"{"nodeID":"worker1","metadata":{"unschedulable":false},"created":"2026-11-22T10:00:00Z","TTL":0}"#,
            Code::KuredLockHeld,
        ),
        (r#"{"nodeID""#, Code::KuredUnknown),
    ] {
        let config = kured(&place, &json!({"weave.works/kured-node-lock": lock}))?;
        let Outcome::Held(reasons) = hold(&leases, CONTROL_PLANE, &who, &config, NOW, nobody_looks).await else {
            panic!("it holds both")
        };
        assert_eq!(reasons.iter().map(|reason| reason.code).collect::<Vec<_>>(), [code]);
        assert!(
            matches!(place.lease(CONTROL_PLANE).await?, LeaseView::Free { .. }),
            "nobody waits for kured with the Lease"
        );
    }
    Ok(())
}

#[tokio::test]
async fn kureds_lock_is_taken_after_the_lease_and_given_back_before_it() -> Result<()> {
    let place = Place::with_pods("kured-free", ["cp1", "cp3"])?;
    let config = kured(&place, &json!({}))?;
    let leases = place.leases().await?;
    let client = leases.client().await?;
    let first = place.claimant("cp1", "upgrade-v1.36.3", "cp2").await?;
    let Outcome::Got(held) = hold(&leases, CONTROL_PLANE, &first, &config, NOW, nobody_looks).await else {
        panic!("held")
    };
    let block = annotation(&place)?.unwrap();
    assert_eq!(block["nodeID"], "quorate/upgrade-v1.36.3");
    let seen = lock::observe(&client, place.namespace, &config, held.mine()).await;
    assert_eq!(seen.kured, Fact::Known(Kured::Held("quorate/upgrade-v1.36.3".to_owned())));
    assert!(matches!(&seen.control_plane, Fact::Known(Lock::Held(holder)) if holder.identity == first.claim.identity));
    // Another slot's operation finds kured's lock taken by an operation that lives.
    let other = place.claimant("cp3", "upgrade-v1.36.3", "worker1").await?;
    let worker = lock::worker(0);
    let Outcome::Held(reasons) = hold(&leases, &worker, &other, &config, NOW, nobody_looks).await else {
        panic!("both")
    };
    assert_eq!(reasons.first().map(|reason| reason.code), Some(Code::KuredLockHeld));
    held.release().await?;
    assert_eq!(annotation(&place)?, None);
    assert!(matches!(place.lease(CONTROL_PLANE).await?, LeaseView::Free { .. }));
    // Left behind by an attempt that is gone: the next holder writes over it.
    let Outcome::Got(held) = hold(&leases, CONTROL_PLANE, &first, &config, NOW, nobody_looks).await else {
        panic!("held")
    };
    drop(held);
    place.pod_ended("cp1")?;
    let Outcome::Got(held) = hold(&leases, CONTROL_PLANE, &other, &config, NOW, nobody_looks).await else {
        panic!("held")
    };
    assert_eq!(annotation(&place)?.unwrap()["quorateHolder"], other.claim.identity);
    held.release().await?;
    assert_eq!(annotation(&place)?, None);
    // kured is uninstalled while its lock is ours: nothing to give back.
    let Outcome::Got(held) = hold(&leases, CONTROL_PLANE, &other, &config, NOW, nobody_looks).await else {
        panic!("held")
    };
    place.api.kubectl(["delete", "daemonset", "kured", "-n", place.namespace])?;
    held.release().await?;
    assert!(matches!(place.lease(CONTROL_PLANE).await?, LeaseView::Free { .. }));
    let named = lock::kured::find(&client, &config.kured, timings().lease).await;
    assert!(named.as_result().unwrap_err().contains("does not exist"), "named and not there is not absent");
    Ok(())
}

/// Safety review, finding 18: kured's chart is installed again while its lock is ours.
#[tokio::test]
async fn a_holder_sees_that_kureds_lock_is_no_longer_its_own() -> Result<()> {
    let place = Place::new(shared()?, "kured-lost")?;
    place.node_with_pod("cp1", "boot-1")?;
    let config = kured(&place, &json!({}))?;
    let leases = place.leases().await?;
    let client = leases.client().await?;
    let who = place.claimant("cp1", "upgrade", "cp2").await?;
    let Outcome::Got(held) = hold(&leases, CONTROL_PLANE, &who, &config, NOW, nobody_looks).await else {
        panic!("held")
    };
    let look = async || lock::observe(&client, place.namespace, &config, held.mine()).await;
    assert_eq!(held.lost_kured(&look().await), None);
    place.api.kubectl(["delete", "daemonset", "kured", "-n", place.namespace])?;
    kured(&place, &json!({}))?;
    let reason = held.lost_kured(&look().await).unwrap();
    assert_eq!(reason.code, Code::KuredLockHeld);
    held.release().await?;
    Ok(())
}

/// The block was written and the answer lost: a block without a Lease behind it would keep kured from rebooting for ever.
#[tokio::test]
async fn a_block_of_ours_whose_write_was_not_answered_is_found_again() -> Result<()> {
    let place = Place::new(shared()?, "kured-mute")?;
    place.node_with_pod("cp1", "boot-1")?;
    let config = kured(&place, &json!({}))?;
    let mute = Mute::before(&place.api)?;
    let access = Access::from_file(&mute.kubeconfig, "kured-mute").await?;
    let leases = Leases::new(access, Vec::new(), lock::timings(&Config::default()), Clock::system());
    let who = place.claimant("cp1", "upgrade", "cp2").await?;
    // How many answers were lost.
    let lost = Arc::new(AtomicUsize::new(0));
    let lose_the_one_after = |wanted: bool| {
        let (api, lost) = (Arc::clone(&place.api), Arc::clone(&lost));
        mute.lose_the_answer(move || {
            let set = api.request("GET", "/apis/apps/v1/namespaces/kured-mute/daemonsets/kured", None);
            let lock = set.map(|set| set["metadata"]["annotations"]["weave.works/kured-node-lock"].is_string());
            let done = lock.is_ok_and(|there| there == wanted);
            lost.fetch_add(usize::from(done), Ordering::Relaxed);
            done
        });
    };
    lose_the_one_after(true);
    let Outcome::Got(held) = hold(&leases, CONTROL_PLANE, &who, &config, NOW, nobody_looks).await else {
        panic!("given up: {:?}", annotation(&place)?)
    };
    assert_eq!(annotation(&place)?.unwrap()["quorateHolder"], who.claim.identity);
    lose_the_one_after(false);
    held.release().await?;
    assert_eq!((annotation(&place)?, lost.load(Ordering::Relaxed)), (None, 2));
    assert!(matches!(place.lease(CONTROL_PLANE).await?, LeaseView::Free { .. }));
    Ok(())
}

#[tokio::test]
async fn a_block_is_cleared_once_nobody_holds_a_lease_and_no_other() -> Result<()> {
    let place = Place::new(shared()?, "kured-stale")?;
    place.node_with_pod("cp1", "boot-1")?;
    let leases = place.leases().await?;
    let Taken::Got(guard) = place.take(CONTROL_PLANE, "cp1", "upgrade", "cp2", NOW).await? else { panic!("held") };
    let ours = json!({"nodeID": "quorate/upgrade", "quorateHolder": guard.identity().await}).to_string();
    let config = kured(&place, &json!({"weave.works/kured-node-lock": ours}))?;
    let names = lock::names(&config);
    assert_eq!(lock::kured::clear_stale(&leases, &config.kured, &names).await, Ok(None));
    guard.release().await?;
    // Its holder is gone; but whoever holds any Lease of ours may be adopting what the block stands for.
    let Taken::Got(other) = place.take(lock::SNAPSHOT, "cp1", "backup", "cp2", NOW).await? else { panic!("held") };
    assert_eq!(lock::kured::clear_stale(&leases, &config.kured, &names).await, Ok(None));
    assert!(annotation(&place)?.is_some());
    other.release().await?;
    assert_eq!(lock::kured::clear_stale(&leases, &config.kured, &names).await, Ok(Some("quorate/upgrade".to_owned())));
    assert_eq!(annotation(&place)?, None);
    kured(&place, &json!({"weave.works/kured-node-lock": r#"{"nodeID":"worker1"}"#}))?;
    assert_eq!(lock::kured::clear_stale(&leases, &config.kured, &names).await, Ok(None));
    assert!(annotation(&place)?.is_some());
    Ok(())
}
