//! The locks against a real API server: who gets a Lease, when a holder stops, kured's annotation, the kill switch.

mod kured;
mod mute;
mod place;
mod quiesce;
mod reconcile;
mod take_over;

use anyhow::Result;
use kured::{annotation, kured};
use lab::api::{Api, Spec};
use lab::process::until;
use mute::Mute;
use place::{Place, nobody_looks, past_silence, shared, timings};
use quorate::access::Access;
use quorate::clock::Clock;
use quorate::config::Config;
use quorate::lock::{self, CONTROL_PLANE, Leases, Outcome, Taken, hold, take};
use quorum_safety::lock::{LeaseView, Step, Wait};
use quorum_safety::{Code, Fact, KillSwitch, Kured, Lock, Mine};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const NOW: Duration = Duration::ZERO;

/// Not a test: the other process of the tests below.
#[tokio::test]
#[ignore = "run by other tests, as a process of its own"]
async fn contender() {
    place::contend().await.unwrap();
}

fn waits(taken: &Taken) -> &[Wait] {
    match taken {
        Taken::Held(waits) => waits,
        Taken::Got(guard) => panic!("it got the Lease: {guard:?}"),
    }
}

/// The same as people read it.
fn told(taken: &Taken) -> String {
    let reasons: Vec<String> = waits(taken).iter().map(|wait| wait.reason(CONTROL_PLANE).to_string()).collect();
    reasons.join("\n")
}

#[tokio::test]
async fn h04_of_many_that_ask_at_once_exactly_one_gets_the_lease() -> Result<()> {
    let place = Place::new(shared()?, "h04")?;
    let mut claims = Vec::new();
    for number in 0..6 {
        let pod = format!("cp{number}");
        place.node_with_pod(&pod, "boot-1")?;
        claims.push(place.claimant(&pod, "upgrade-v1.36.3", &pod).await?);
    }
    let leases = place.leases().await?;
    // First on a Lease that does not exist (create), then on one that is free (update).
    for _ in 0..2 {
        let asked = claims.iter().map(|who| take(&leases, CONTROL_PLANE, who, NOW, nobody_looks));
        let taken = futures::future::join_all(asked).await;
        let (got, held): (Vec<_>, Vec<_>) = taken.into_iter().partition(|taken| matches!(taken, Taken::Got(_)));
        assert_eq!((got.len(), held.len()), (1, 5));
        let Some(Taken::Got(guard)) = got.into_iter().next() else { panic!("counted") };
        let identity = guard.identity().await;
        assert!(matches!(place.lease(CONTROL_PLANE).await?, LeaseView::Held { identity: i, .. } if i == identity));
        guard.release().await?;
        assert!(matches!(place.lease(CONTROL_PLANE).await?, LeaseView::Free { .. }));
    }
    Ok(())
}

/// Safety review, finding 1: the uncordon is done, and the apiserver goes away before the Lease is given back.
#[tokio::test]
async fn a_lease_is_given_back_although_the_connection_is_refused_for_a_while() -> Result<()> {
    let place = Place::new(Arc::new(Api::start(Spec::default())?), "refused")?;
    place.node_with_pod("cp1", "boot-1")?;
    let who = place.claimant("cp1", "upgrade", "cp2").await?;
    let access = Access::from_file(place.api.kubeconfig()?, "refused").await?;
    let leases = Leases::new(access, Vec::new(), lock::timings(&Config::default()), Clock::system());
    let Taken::Got(guard) = take(&leases, CONTROL_PLANE, &who, NOW, nobody_looks).await else { panic!("held") };
    place.api.apiserver(1)?.kill()?;
    let api = Arc::clone(&place.api);
    let restarted = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        api.apiserver(1)?.restart()
    });
    guard.release().await?;
    restarted.join().unwrap()?;
    place.api.wait_ready(1, Duration::from_secs(60))?;
    assert!(matches!(place.lease(CONTROL_PLANE).await?, LeaseView::Free { .. }));
    Ok(())
}

/// The apiserver of a node whose member is to be replaced has no etcd, and ends just then: the connection breaks without an answer.
#[tokio::test]
async fn a_step_whose_write_was_not_answered_is_announced_again() -> Result<()> {
    let place = Place::new(shared()?, "step-mute")?;
    place.node_with_pod("cp1", "boot-1")?;
    let mute = Mute::before(&place.api)?;
    let access = Access::from_file(&mute.kubeconfig, "step-mute").await?;
    let leases = Leases::new(access, Vec::new(), lock::timings(&Config::default()), Clock::system());
    let who = place.claimant("cp1", "upgrade", "cp2").await?;
    let Taken::Got(guard) = take(&leases, CONTROL_PLANE, &who, NOW, nobody_looks).await else { panic!("held") };
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/step-mute/leases/{CONTROL_PLANE}");
    let (api, lost) = (Arc::clone(&place.api), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&lost);
    mute.lose_the_answer(move || {
        let lease = api.request("GET", &path, None);
        let record = lease.map(|lease| lease["metadata"]["annotations"]["quorate.dev/holder"].to_string());
        let done = record.is_ok_and(|record| record.contains("drain"));
        counted.fetch_add(usize::from(done), Ordering::Relaxed);
        done
    });
    guard.step(Step::touching("drain")).await?;
    assert_eq!((guard.step_so_far().await, lost.load(Ordering::Relaxed)), (Step::touching("drain"), 1));
    guard.release().await?;
    Ok(())
}

#[tokio::test]
async fn a_holder_that_cannot_renew_reports_late_and_goes_on_only_through_a_new_look() -> Result<()> {
    let place = Place::new(Arc::new(Api::start(Spec::default())?), "late")?;
    place.node_with_pod("cp1", "boot-1")?;
    let who = place.claimant("cp1", "upgrade", "cp2").await?;
    let leases = place.leases().await?;
    let Taken::Got(guard) = take(&leases, CONTROL_PLANE, &who, NOW, nobody_looks).await else { panic!("held") };
    guard.step(Step::touching("drain")).await?;
    // Renewed past the first deadline.
    tokio::time::sleep(timings().lease + Duration::from_secs(1)).await;
    guard.check()?;
    place.api.apiserver(1)?.pause()?;
    assert!(guard.act(Duration::from_secs(3600), async {}).await.is_err(), "longer than the deadline");
    let late = tokio::time::timeout(Duration::from_secs(20), guard.stopped()).await?;
    assert!(guard.act(Duration::from_millis(1), async {}).await.is_err(), "{late}");
    assert!(guard.step(Step::touching("node-step")).await.is_err());
    place.api.apiserver(1)?.resume()?;
    place.api.wait_ready(1, Duration::from_secs(30))?;
    assert!(guard.check().is_err(), "late is final");
    assert!(guard.release().await.is_err(), "what is late gives nothing back");
    // It looks again, finds that the Lease is still its own, and goes on where it was.
    let Taken::Got(guard) = take(&leases, CONTROL_PLANE, &who, Duration::from_secs(5), nobody_looks).await else {
        panic!("held")
    };
    assert_eq!(guard.step_so_far().await, Step::touching("drain"));
    assert_eq!(guard.mine(), Mine::Adopted(who.claim.identity.clone()));
    guard.release().await?;
    Ok(())
}

#[tokio::test]
async fn r31_the_kill_switch_is_engaged_by_kubectl_and_what_cannot_be_read_is_unknown() -> Result<()> {
    let place = Place::new(shared()?, "r31")?;
    let config = Config { kured: "auto".to_owned(), ..Config::default() };
    let leases = place.leases().await?;
    let admin = leases.client().await?;
    assert_eq!(lock::observe(&admin, "r31", &config, Mine::Nothing).await.kill_switch, Fact::Known(KillSwitch::Off));
    place.api.kubectl([
        "create",
        "configmap",
        "quorate-kill-switch",
        "-n",
        "r31",
        "--from-literal=reason=storage is on fire",
    ])?;
    let engaged = lock::observe(&admin, "r31", &config, Mine::Nothing).await.kill_switch;
    assert_eq!(engaged, Fact::Known(KillSwitch::Engaged("storage is on fire".to_owned())));
    assert_eq!(lock::stopped_by(&engaged).map(|reason| reason.code), Some(Code::KillSwitchEngaged));
    // An account that may read nothing: the switch was switched off, and it still counts as engaged.
    place.api.kubectl(["delete", "configmap", "quorate-kill-switch", "-n", "r31"])?;
    let kubeconfig = place.api.kubeconfig_for("r31", "default")?;
    let nobody = Access::from_file(&kubeconfig, "r31").await?.live(&[]).await?;
    let seen = lock::observe(&nobody, "r31", &config, Mine::Nothing).await;
    let refused = |why: &str| assert!(why.contains("403"), "{why}");
    refused(seen.kill_switch.as_result().unwrap_err());
    refused(seen.control_plane.as_result().unwrap_err());
    refused(seen.workers.as_result().unwrap_err());
    refused(seen.snapshot.as_result().unwrap_err());
    refused(seen.kured.as_result().unwrap_err());
    assert_eq!(lock::stopped_by(&seen.kill_switch).map(|reason| reason.code), Some(Code::KillSwitchUnknown));
    Ok(())
}

fn quorate(place: &Place, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.arg("--kubeconfig").arg(place.api.kubeconfig()?).args(["--namespace", place.namespace]).args(args);
    Ok(command.env_remove("KUBERNETES_SERVICE_HOST").output()?)
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn a_release_by_hand_needs_a_reason_and_stops_a_holder_that_lives() -> Result<()> {
    let place = Place::with_pods("by-hand", ["cp1", "cp3"])?;
    kured(&place, &json!({}))?;
    place.api.apply(
        &json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "quorate-config", "namespace": "by-hand"},
            "data": {"config.yaml": "kured: by-hand/kured\n"},
        })
        .to_string(),
    )?;
    let free = quorate(&place, &["lease", "release", CONTROL_PLANE, "--because", "a test"])?;
    assert_eq!(free.status.code(), Some(0), "{}", text(&free));
    let holder = place.process(CONTROL_PLANE, "cp1", "upgrade", "cp2")?;
    holder.says("got")?;
    let show = quorate(&place, &["lease", "show"])?;
    println!("{}", text(&show));
    assert_eq!(show.status.code(), Some(0), "{}", text(&show));
    for word in [
        "control-plane-disruption",
        "upgrade/by-hand-cp2/",
        "drain",
        "alive",
        "worker-disruption-0",
        "kured's lock: free",
        "kill switch: off",
    ] {
        assert!(text(&show).contains(word), "no `{word}` in:\n{}", text(&show));
    }
    for (args, code) in [
        (vec!["lease", "release", CONTROL_PLANE], 2),
        (vec!["lease", "release", CONTROL_PLANE, "--because", " "], 2),
        (vec!["lease", "release", "control-plane", "--because", "x"], 2),
        (vec!["lease", "release", CONTROL_PLANE, "--because", "x"], 10),
    ] {
        let refused = quorate(&place, &args)?;
        assert_eq!(refused.status.code(), Some(code), "{args:?}: {}", text(&refused));
    }
    let LeaseView::Held { release: Fact::Known(None), .. } = place.lease(CONTROL_PLANE).await? else {
        panic!("released")
    };
    let args = ["lease", "release", CONTROL_PLANE, "--because", "cp1 is on fire", "--even-if-alive", "-o", "json"];
    let released = quorate(&place, &args)?;
    assert_eq!(released.status.code(), Some(0), "{}", text(&released));
    let answer: Value = serde_json::from_slice(&released.stdout)?;
    assert_eq!(answer["release"]["because"], "cp1 is on fire");
    assert_eq!(answer["halfDone"]["step"]["name"], "drain");
    // It may not have seen it yet.
    let taken = place.take(CONTROL_PLANE, "cp3", "upgrade", "cp2", NOW).await?;
    assert!(waits(&taken).contains(&Wait::ReleaseTooFresh), "{taken:?}");
    let last_words = holder.says("stopped")?;
    assert!(last_words.contains("released by hand"), "{last_words}");
    let Taken::Got(guard) = place.take(CONTROL_PLANE, "cp3", "upgrade", "cp2", past_silence()).await? else {
        panic!("held")
    };
    assert_eq!(guard.adopted(), Some(&Step::touching("drain")));
    until("the holder has ended", Duration::from_secs(10), || {
        Ok(match holder.process.running() {
            Err(_) => ControlFlow::Break(()),
            Ok(()) => ControlFlow::Continue(anyhow::anyhow!("it runs")),
        })
    })?;
    guard.release().await?;
    Ok(())
}

#[tokio::test]
async fn what_is_half_done_is_abandoned_only_after_its_holder_has_stopped() -> Result<()> {
    let place = Place::with_pods("abandon", ["cp1", "cp3"])?;
    place.api.apply(
        &json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "quorate-config", "namespace": "abandon"},
            "data": {"config.yaml": "times:\n  lease: 6s\n  renew: 2s\nkured: abandon/kured\n"},
        })
        .to_string(),
    )?;
    let holder = place.process(CONTROL_PLANE, "cp1", "upgrade", "cp2")?;
    holder.says("acted")?;
    let LeaseView::Held { identity, .. } = place.lease(CONTROL_PLANE).await? else { panic!("free") };
    let block = json!({"nodeID": "quorate/upgrade", "quorateHolder": identity}).to_string();
    let config = kured(&place, &json!({"weave.works/kured-node-lock": block}))?;
    // Cut off: it sees no release, and may act until its deadline.
    place.not_ready("cp1")?;
    holder.process.pause()?;
    let args = ["lease", "release", CONTROL_PLANE, "--because", "cp1 is on fire", "--abandon", "-o", "json"];
    let first = quorate(&place, &args)?;
    assert_eq!(first.status.code(), Some(11), "{}", text(&first));
    assert_eq!(serde_json::from_slice::<Value>(&first.stdout)?["release"]["stage"], "stopped");
    let taken = place.take(CONTROL_PLANE, "cp3", "defragment", "cp3", past_silence()).await?;
    assert!(matches!(waits(&taken), [Wait::HalfDone { step, .. }] if step == "drain"), "{taken:?}");
    let second = quorate(&place, &args)?;
    assert_eq!(second.status.code(), Some(0), "{}", text(&second));
    assert_eq!(serde_json::from_slice::<Value>(&second.stdout)?["release"]["stage"], "abandoned");
    // Nothing is left that `judge` would refuse for, and nobody has to wait for a proof: that was given before.
    let client = place.leases().await?.client().await?;
    let seen = lock::observe(&client, place.namespace, &config, Mine::Nothing).await;
    assert_eq!((seen.control_plane, seen.kured), (Fact::Known(Lock::Free), Fact::Known(Kured::Free)));
    let lease = place.api.kubectl(["get", "lease", CONTROL_PLANE, "-n", "abandon", "-o", "json"])?;
    let lease: Value = serde_json::from_str(&lease)?;
    let trace = lease["metadata"]["annotations"]["quorate.dev/released"].as_str().unwrap();
    assert!(trace.contains("cp1 is on fire"), "who gave it up and why stays there: {trace}");
    // A block that was left without a Lease goes by the same command.
    kured(&place, &json!({"weave.works/kured-node-lock": block}))?;
    let again = quorate(&place, &args)?;
    assert_eq!(again.status.code(), Some(0), "{}", text(&again));
    assert_eq!(annotation(&place)?, None);
    let taken = place.take(CONTROL_PLANE, "cp3", "defragment", "cp3", NOW).await?;
    let Taken::Got(guard) = taken else { panic!("{taken:?}") };
    holder.process.resume()?;
    let last_words = holder.says("stopped")?;
    assert!(last_words.contains("the deadline passed"), "{last_words}");
    guard.release().await?;
    Ok(())
}

/// The shipped manifests, and who may do what under them.
#[tokio::test]
async fn r03_the_shipped_roles_suffice_for_the_locks_and_observing_cannot_take_one() -> Result<()> {
    let place = Place::new(Arc::new(Api::start(Spec::default())?), "quorate")?;
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests");
    place.api.kubectl(["apply", "-k", manifests])?;
    for pod in ["cp1", "cp3"] {
        place.node_with_pod(pod, "boot-1")?;
    }
    let config = Config::default();
    let step = place.leases_as("quorate-step").await?;
    let client = step.client().await?;
    // kured is found in any namespace by itself; absent is a fact.
    assert_eq!(lock::observe(&client, "quorate", &config, Mine::Nothing).await.kured, Fact::Known(Kured::Absent));
    kured(&place, &json!({}))?;
    let first = place.claimant("cp1", "upgrade", "cp2").await?;
    let Outcome::Got(held) = hold(&step, CONTROL_PLANE, &first, &config, NOW, nobody_looks).await else {
        panic!("held")
    };
    assert_eq!(annotation(&place)?.unwrap()["quorateHolder"], first.claim.identity);
    held.guard.step(Step::touching("drain")).await?;
    drop(held);
    place.pod_ended("cp1")?;
    let second = place.claimant("cp3", "upgrade", "cp2").await?;
    let Outcome::Got(held) = hold(&step, CONTROL_PLANE, &second, &config, NOW, nobody_looks).await else {
        panic!("held")
    };
    assert_eq!(held.guard.adopted(), Some(&Step::touching("drain")));
    held.release().await?;
    assert_eq!(annotation(&place)?, None);
    // The account that observes reads everything and writes nothing.
    let observer = place.leases_as("quorate-observe").await?;
    let seen = lock::observe(&observer.client().await?, "quorate", &config, Mine::Nothing).await;
    assert_eq!(seen.control_plane, Fact::Known(Lock::Free));
    assert_eq!(seen.workers, Fact::Known(vec![Lock::Free]));
    assert_eq!((seen.snapshot, seen.kured), (Fact::Known(Lock::Free), Fact::Known(Kured::Free)));
    assert_eq!(seen.kill_switch, Fact::Known(KillSwitch::Off));
    let taken = take(&observer, CONTROL_PLANE, &second, NOW, nobody_looks).await;
    assert!(matches!(waits(&taken), [Wait::LeaseUnknown(why)] if why.contains("403")), "{taken:?}");
    // Two of them: which one holds the reboots back is not known.
    let other = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "kured", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "kured", "image": "ghcr.io/kubereboot/kured:1.23.0"}]}}}});
    place.api.apply(&other.to_string())?;
    let seen = lock::observe(&client, "quorate", &config, Mine::Nothing).await.kured;
    assert!(seen.as_result().unwrap_err().contains("more than one kured"), "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn one_of_two_slots_is_taken_and_never_two_for_one_node() -> Result<()> {
    let place = Place::with_pods("slots", ["cp1", "cp2", "cp3"])?;
    let config = Config { kured: "none".to_owned(), ..Config::default() };
    let leases = place.leases().await?;
    let slots = [lock::worker(0), lock::worker(1)];
    let who = async |pod: &'static str, target: &'static str| place.claimant(pod, "upgrade", target).await;
    let ask = async |who| lock::hold_any(&leases, &slots, &who, &config, NOW, nobody_looks).await;
    // The second of two workers gets the second slot; a third none.
    let Outcome::Got(first) = ask(who("cp1", "w1").await?).await else { panic!("no slot") };
    let Outcome::Got(second) = ask(who("cp2", "w2").await?).await else { panic!("no slot") };
    assert!(matches!(ask(who("cp3", "w3").await?).await, Outcome::Held(reasons) if reasons.len() >= 2));
    // Half done in slot 1 and left there; slot 0 is free. The next attempt adopts it where it is.
    second.guard.step(Step::touching("drain")).await?;
    drop(second);
    first.release().await?;
    let Outcome::Held(reasons) = ask(who("cp3", "w2").await?).await else { panic!("took a second slot for the node") };
    assert!(reasons.iter().all(|reason| reason.code == Code::LeaseHeld || reason.code == Code::LeaseUnknown));
    assert!(matches!(place.lease(&slots[0]).await?, LeaseView::Free { .. }));
    place.pod_ended("cp2")?;
    let Outcome::Got(adopted) = ask(who("cp3", "w2").await?).await else { panic!("not adopted") };
    assert_eq!(adopted.guard.adopted(), Some(&Step::touching("drain")));
    adopted.release().await?;
    // Two at once for the same node: never both.
    let (one, other) = (who("cp1", "w4").await?, who("cp3", "w4").await?);
    let (one, other) = tokio::join!(ask(one), ask(other));
    let got = [&one, &other].into_iter().filter(|outcome| matches!(outcome, Outcome::Got(_))).count();
    assert!(got <= 1, "{one:?}\n{other:?}");
    Ok(())
}
