//! A Lease that goes from one holder to another: never without a proof that the first is gone. None of these may pass with the proof made
//! always true; `make mutants` tries that.

use super::place::{Place, nobody_looks, past_silence};
use super::{NOW, told, waits};
use anyhow::Result;
use lab::api::{Api, Spec};
use quorate::lock::{self, CONTROL_PLANE, Taken, take};
use quorate::upgrade::sub_step::SubStep;
use quorum_safety::lock::{LeaseView, Step, Wait};
use quorum_safety::{Code, Fact, Mine};
use serde_json::Value;
use std::sync::Arc;

#[tokio::test]
async fn r34_a_killed_holder_is_adopted_once_its_pod_is_seen_to_have_ended_and_not_before() -> Result<()> {
    let place = Place::with_pods("r34", ["cp1", "cp2", "cp3"])?;
    let holder = place.process(CONTROL_PLANE, "cp1", "upgrade", "cp2")?;
    holder.says("got")?;
    holder.process.kill()?;
    // Its deadline passes; its pod still counts as running, as after a power cut. Expiry alone hands nothing over.
    let taken = place.take(CONTROL_PLANE, "cp3", "upgrade", "cp2", past_silence()).await?;
    // Whoever is woken by it finds the pod.
    let pod_runs = "control-plane-disruption: the pod of the holder, r34/cp1 on node r34-cp1, has not ended";
    assert!(told(&taken).contains(pod_runs), "{}", told(&taken));
    assert!(!waits(&taken).contains(&Wait::DeadlineNotPassed), "{taken:?}");
    assert!(waits(&taken).iter().any(|wait| wait.reason(CONTROL_PLANE).code == Code::LeaseHeld), "{taken:?}");
    // Somebody else than the kubelet says so.
    place.pod_given_up("cp1")?;
    let taken = place.take(CONTROL_PLANE, "cp3", "upgrade", "cp2", NOW).await?;
    assert!(told(&taken).contains(pod_runs), "{}", told(&taken));
    place.pod_ended("cp1")?;
    // Half done: nobody else may have it, not even with the proof.
    let taken = place.take(CONTROL_PLANE, "cp3", "defragment", "cp3", NOW).await?;
    assert!(matches!(waits(&taken), [Wait::HalfDone { step, .. }] if step == "drain"), "{taken:?}");
    let Taken::Got(guard) = place.take(CONTROL_PLANE, "cp3", "upgrade", "cp2", NOW).await? else { panic!("held") };
    assert_eq!(guard.adopted(), Some(&Step::touching("drain")));
    assert_eq!(guard.mine(), Mine::Adopted(guard.identity().await));
    guard.release().await?;
    Ok(())
}

/// Safety review, finding 2: what has touched nothing may not be finished on a control plane that is not whole.
#[tokio::test]
async fn an_adopted_lease_that_has_touched_nothing_counts_as_newly_taken() -> Result<()> {
    let place = Place::with_pods("untouched", ["cp1", "cp3"])?;
    let Taken::Got(guard) = place.take(CONTROL_PLANE, "cp1", "upgrade", "cp2", NOW).await? else { panic!("held") };
    guard.step(Step::looking("judge")).await?;
    drop(guard);
    let taken = place.take(CONTROL_PLANE, "cp3", "upgrade", "cp2", past_silence()).await?;
    assert!(matches!(waits(&taken), [Wait::PodRuns { .. }, ..]), "{taken:?}");
    place.pod_ended("cp1")?;
    let Taken::Got(guard) = place.take(CONTROL_PLANE, "cp3", "upgrade", "cp2", NOW).await? else { panic!("held") };
    assert_eq!(guard.step_so_far().await, Step::looking("judge"), "it is the operation of cp1 that goes on");
    assert_eq!((guard.adopted(), guard.mine()), (None, Mine::Taken(guard.identity().await)));
    guard.release().await?;
    Ok(())
}

#[tokio::test]
async fn a_frozen_holder_loses_the_lease_only_after_a_look_at_the_host_and_stops_when_it_wakes() -> Result<()> {
    let place = Place::with_pods("frozen", ["cp1", "cp3"])?;
    let holder = place.process(CONTROL_PLANE, "cp1", "upgrade", "cp2")?;
    holder.says("acted")?;
    holder.process.pause()?;
    let leases = place.leases().await?;
    let who = place.claimant("cp3", "upgrade", "cp2").await?;
    for (unit, reason) in [
        (Fact::Unknown("nobody looked".to_owned()), Wait::UnitUnknown("nobody looked".to_owned())),
        (Fact::Known(true), Wait::UnitRuns),
    ] {
        let taken = take(&leases, CONTROL_PLANE, &who, past_silence(), |_| async { unit.clone() }).await;
        assert!(waits(&taken).contains(&reason), "{taken:?}");
    }
    let taken = take(&leases, CONTROL_PLANE, &who, past_silence(), |_| async { Fact::Known(false) }).await;
    let Taken::Got(guard) = taken else { panic!("{taken:?}") };
    let handed_over = leases.clock.boottime();
    holder.process.resume()?;
    let last_words = holder.says("stopped")?;
    assert!(last_words.contains("the deadline passed"), "{last_words}");
    let after = holder.acted()?.into_iter().filter(|at| *at >= handed_over).count();
    assert_eq!(after, 0, "it acted after the Lease was handed over");
    guard.check()?;
    guard.release().await?;
    Ok(())
}

#[tokio::test]
async fn a_pod_deleted_on_a_ready_node_hands_the_lease_over_and_on_an_unreachable_one_it_does_not() -> Result<()> {
    let place = Place::with_pods("deleted", ["cp1", "cp3"])?;
    // Gone without a word, before it touched anything.
    let Taken::Got(guard) = place.take(CONTROL_PLANE, "cp1", "upgrade", "cp2", NOW).await? else { panic!("held") };
    drop(guard);
    place.api.finish_pod_deletion("deleted", "cp1")?;
    place.not_ready("cp1")?;
    let taken = place.take(CONTROL_PLANE, "cp3", "defragment", "cp3", past_silence()).await?;
    let unreachable = "node deleted-cp1 of the holder is not Ready: that its pod deleted/cp1 is missing";
    assert!(told(&taken).contains(unreachable), "{}", told(&taken));
    place.api.set_node_ready(&place.node("cp1").0, place.api.address(1))?;
    let taken = place.take(CONTROL_PLANE, "cp3", "defragment", "cp3", NOW).await?;
    // Deleted by force a moment ago, as far as we know.
    let may_run = "deleted/cp1, is not there, but its processes may still run on node deleted-cp1";
    assert!(told(&taken).contains(may_run), "{}", told(&taken));
    let Taken::Got(guard) = place.take(CONTROL_PLANE, "cp3", "defragment", "cp3", past_silence()).await? else {
        panic!("held")
    };
    assert_eq!((guard.adopted(), guard.step_so_far().await), (None, Step::acquired()));
    guard.release().await?;
    Ok(())
}

#[tokio::test]
async fn a_new_boot_id_proves_at_once_and_the_same_one_does_not() -> Result<()> {
    let place = Place::with_pods("rebooted", ["cp1", "cp3"])?;
    let Taken::Got(guard) = place.take(CONTROL_PLANE, "cp1", "upgrade", "cp2", NOW).await? else { panic!("held") };
    drop(guard);
    assert!(!waits(&place.take(CONTROL_PLANE, "cp3", "upgrade", "cp2", NOW).await?).is_empty());
    place.boot("cp1", "boot-2")?;
    let taken = place.take(CONTROL_PLANE, "cp3", "upgrade", "cp2", NOW).await?;
    assert!(matches!(taken, Taken::Got(_)), "{taken:?}");
    Ok(())
}

/// Incident R34, each boundary: what was announced before a kill is what the successor goes on with, and so it knows whether the host may
/// have been changed.
#[tokio::test]
async fn r34_a_holder_killed_at_any_sub_step_is_adopted_there_under_either_lease() -> Result<()> {
    let place = Place::with_pods("sub-steps", ["cp1", "cp3"])?;
    let leases = [(CONTROL_PLANE.to_owned(), "cp2"), (lock::worker(0), "w1")];
    for (round, sub_step) in SubStep::ALL.into_iter().enumerate() {
        let name = sub_step.name();
        let mut holders = Vec::new();
        for (lease, target) in &leases {
            let pod = format!("{target}-{round}");
            place.pod_on("cp1", &pod)?;
            holders.push((lease, target, place.process_at(&sub_step.into(), lease, &pod, "upgrade", target)?, pod));
        }
        for (lease, target, holder, pod) in holders {
            holder.says("got")?;
            holder.process.kill()?;
            let taken = place.take(lease, "cp3", "upgrade", target, NOW).await?;
            assert!(matches!(waits(&taken), [Wait::PodRuns { pod: p, .. }, ..] if p.name == pod), "{name}: {taken:?}");
            place.pod_ended(&pod)?;
            let taken = place.take(lease, "cp3", "upgrade", target, NOW).await?;
            let Taken::Got(guard) = taken else { panic!("{lease} at {name}: {taken:?}") };
            assert_eq!(guard.step_so_far().await, Step::from(sub_step), "{lease}");
            // Nothing is touched before the first one: that is begun anew, and judged so.
            let adopted = guard.adopted().map(|step| (step.name.as_str(), SubStep::may_be_on_host(step)));
            let wanted = match name {
                "acquired" => None,
                "cordon" | "drain" => Some((name, false)),
                _ => Some((name, true)),
            };
            assert_eq!(adopted, wanted, "{lease}");
            guard.release().await?;
        }
    }
    Ok(())
}

/// The other operations under the Lease: each of their sub-steps is found as it was announced, by the same operation and by no other.
#[tokio::test]
async fn r34_a_holder_of_any_operation_killed_at_any_sub_step_is_adopted_there() -> Result<()> {
    let place = Place::with_pods("operations", ["cp1", "cp3"])?;
    let members = ["remove", "add", "promote", "move-leader"].map(Step::touching);
    let defragment = [Step::looking("move-leader"), Step::touching("defragment")];
    let reboot = [Step::touching("open in boot 2f0c9c1a"), Step::touching("recover")];
    let operations: [(&str, &[Step]); 3] = [
        ("members-replace-8e9e05c52164694d", &members),
        ("defragment-8e9e05c52164694d", &defragment),
        ("reboot", &reboot),
    ];
    for (operation, steps) in operations {
        for (number, step) in steps.iter().enumerate() {
            let pod = format!("{}-{number}", operation.split('-').next().unwrap());
            place.pod_on("cp1", &pod)?;
            let holder = place.process_at(step, CONTROL_PLANE, &pod, operation, "cp2")?;
            holder.says("got")?;
            holder.process.kill()?;
            place.pod_ended(&pod)?;
            if step.touched {
                let taken = place.take(CONTROL_PLANE, "cp3", "upgrade", "cp2", NOW).await?;
                let half_done = |wait: &Wait| matches!(wait, Wait::HalfDone { step: name, .. } if *name == step.name);
                assert!(waits(&taken).iter().any(half_done), "{operation} at {step}: {taken:?}");
            }
            let taken = place.take(CONTROL_PLANE, "cp3", operation, "cp2", NOW).await?;
            let Taken::Got(guard) = taken else { panic!("{operation} at {step}: {taken:?}") };
            assert_eq!(guard.step_so_far().await, *step, "{operation}");
            assert_eq!(guard.adopted(), Some(step).filter(|step| step.touched), "{operation}");
            guard.release().await?;
        }
    }
    Ok(())
}

/// As after a cut network cable: what the controllers write of the pods of that node says nothing of its processes.
#[tokio::test]
async fn r34_a_holder_on_an_unreachable_node_is_adopted_once_that_node_is_back_from_a_reboot() -> Result<()> {
    let place = Place::with_pods("cut-off", ["cp1", "cp3"])?;
    let Taken::Got(guard) = place.take(CONTROL_PLANE, "cp1", "upgrade", "cp2", NOW).await? else { panic!("held") };
    guard.step(Step::touching("drain")).await?;
    drop(guard);
    place.not_ready("cp1")?;
    place.pod_given_up("cp1")?;
    let unreachable = "node cut-off-cp1 of the holder is not Ready: that its pod cut-off/cp1 is missing or ended there proves nothing";
    let taken = place.take(CONTROL_PLANE, "cp3", "upgrade", "cp2", past_silence()).await?;
    assert!(told(&taken).contains(unreachable), "{}", told(&taken));
    assert!(!waits(&taken).contains(&Wait::DeadlineNotPassed), "{taken:?}");
    place.api.finish_pod_deletion("cut-off", "cp1")?;
    let taken = place.take(CONTROL_PLANE, "cp3", "upgrade", "cp2", NOW).await?;
    assert!(told(&taken).contains(unreachable), "{}", told(&taken));
    place.boot("cp1", "boot-2")?;
    place.api.set_node_ready(&place.node("cp1").0, place.api.address(1))?;
    let taken = place.take(CONTROL_PLANE, "cp3", "upgrade", "cp2", NOW).await?;
    let Taken::Got(guard) = taken else { panic!("{taken:?}") };
    assert_eq!(guard.adopted(), Some(&Step::touching("drain")));
    guard.release().await?;
    Ok(())
}

/// The pod of a stopped process is deleted by force, and the process wakes with the Lease in another's hands.
#[tokio::test]
async fn r34_a_stopped_holder_is_adopted_when_its_pod_is_gone_and_writes_nothing_when_it_wakes() -> Result<()> {
    let api = Arc::new(Api::start(Spec { audit: true, ..Spec::default() })?);
    let place = Place::with_pods_on(api, "stopped", ["cp1", "cp3"])?;
    let holder = place.process(CONTROL_PLANE, "cp1", "upgrade", "cp2")?;
    holder.says("acted")?;
    holder.process.pause()?;
    let leases = place.leases().await?;
    let who = place.claimant("cp3", "upgrade", "cp2").await?;
    // While it may act, not even a look at the host that finds nothing running makes way.
    let taken = take(&leases, CONTROL_PLANE, &who, NOW, |_| async { Fact::Known(false) }).await;
    assert!(waits(&taken).contains(&Wait::DeadlineNotPassed), "{taken:?}");
    // Longer than its Lease, and nobody looks at the host.
    let taken = take(&leases, CONTROL_PLANE, &who, past_silence(), nobody_looks).await;
    assert!(
        told(&taken).contains("the pod of the holder, stopped/cp1 on node stopped-cp1, has not ended"),
        "{}",
        told(&taken)
    );
    assert!(!waits(&taken).contains(&Wait::DeadlineNotPassed), "{taken:?}");
    place.api.finish_pod_deletion("stopped", "cp1")?;
    let taken = take(&leases, CONTROL_PLANE, &who, past_silence(), nobody_looks).await;
    let Taken::Got(guard) = taken else { panic!("{taken:?}") };
    assert_eq!(guard.adopted(), Some(&Step::touching("drain")));
    // The successor falls silent, so that whatever is written from here on is the first one's.
    let successor = guard.identity().await;
    drop(guard);
    let (seen, handed_over) = (place.lease(CONTROL_PLANE).await?, leases.clock.now());
    let woken = leases.clock.boottime();
    holder.process.resume()?;
    let last_words = holder.says("stopped")?;
    assert!(last_words.contains("the deadline passed"), "{last_words}");
    let ended = holder.says("ended")?;
    assert_eq!(holder.acted()?.into_iter().filter(|at| *at >= woken).count(), 0, "its request was not refused");
    assert!(matches!(&seen, LeaseView::Held { identity, .. } if *identity == successor), "{seen:?}");
    assert_eq!(place.lease(CONTROL_PLANE).await?, seen, "with its resourceVersion");
    assert_eq!(writes_since(&place.api, handed_over)?, Vec::<String>::new());
    assert!(ended.contains("step Err(") && ended.contains("release Err("), "{ended}");
    Ok(())
}

/// What others than the API server itself wrote, by its own log: it has each request before its answer is sent.
fn writes_since(api: &Api, time: jiff::Timestamp) -> Result<Vec<String>> {
    let mut writes = Vec::new();
    for event in api.audit_events()? {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let reads = matches!(text("/verb"), "get" | "list" | "watch");
        let own = text("/user/username") == "system:apiserver";
        let done = event.pointer("/responseStatus/code").and_then(Value::as_u64).is_none_or(|code| code < 300);
        if !reads && !own && done && text("/requestReceivedTimestamp").parse::<jiff::Timestamp>()? >= time {
            writes.push(format!("{} {} by {}", text("/verb"), text("/requestURI"), text("/user/username")));
        }
    }
    Ok(writes)
}
