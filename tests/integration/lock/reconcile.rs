//! What `quorate reconcile` tells people, as Events. Its Job's own command runs here as its own account, against a real API server; what it
//! starts runs on machines (`machines::left`).

use super::NOW;
use super::place::Place;
use super::text;
use anyhow::{Context, Result};
use lab::api::{Api, Spec};
use quorate::lock::{self, CONTROL_PLANE, Taken};
use quorum_safety::lock::{LeaseView, Step};
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::sync::Arc;

/// One pass, as in the pod of that name.
pub(super) fn reconcile(place: &Place, pod: &str) -> Result<Output> {
    let uid = place.api.kubectl(["get", "pod", pod, "-n", place.namespace, "-o", "jsonpath={.metadata.uid}"])?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.arg("--kubeconfig").arg(place.api.kubeconfig_for(place.namespace, "quorate-reconcile")?);
    command.args(["--namespace", place.namespace, "reconcile", "--in-job"]);
    command.env("QUORATE_NODE_NAME", place.node(pod).0).env("QUORATE_POD_NAME", pod).env("QUORATE_POD_UID", uid);
    Ok(command.env_remove("KUBERNETES_SERVICE_HOST").output()?)
}

/// Events as `reason type kind/name`, with their note.
pub(super) fn events(place: &Place) -> Result<Vec<(String, String)>> {
    let list = place.api.kubectl(["get", "events.events.k8s.io", "-A", "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    let events = list["items"].as_array().context("no items")?.iter();
    let of = |event: &Value, pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or("-").to_owned();
    let ours = events.filter(|event| of(event, "/reportingController") == "quorate.dev/reconcile");
    Ok(ours
        .map(|event| {
            let [reason, kind, about, name] =
                ["/reason", "/type", "/regarding/kind", "/regarding/name"].map(|p| of(event, p));
            (format!("{reason} {kind} {about}/{name}"), of(event, "/note"))
        })
        .collect())
}

/// The note of the one Event that is told so.
pub(super) fn note(events: &[(String, String)], told: &str) -> String {
    let notes: Vec<&str> = events.iter().filter(|event| event.0 == told).map(|event| event.1.as_str()).collect();
    let [note] = notes.as_slice() else { panic!("not one Event `{told}` among {events:#?}") };
    (*note).to_owned()
}

#[tokio::test]
async fn reconcile_tells_what_it_gave_back_what_needs_a_hand_and_what_it_could_not_finish() -> Result<()> {
    let place = Place::new(Arc::new(Api::start(Spec::default())?), "quorate")?;
    place.api.kubectl(["apply", "-k", concat!(env!("CARGO_MANIFEST_DIR"), "/manifests")])?;
    for pod in ["cp1", "w1", "w2"] {
        place.node_with_pod(pod, "boot-1")?;
    }
    let slot = lock::worker(0);
    // Of a holder that is gone and has changed nothing.
    let taken = place.take(&slot, "w2", "upgrade-v1.36.3", "w1", NOW).await?;
    let Taken::Got(guard) = taken else { panic!("{taken:?}") };
    drop(guard);
    place.pod_ended("w2")?;
    // Of nobody knows whom.
    let unreadable = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": CONTROL_PLANE, "namespace": "quorate"}, "spec": {"holderIdentity": "somebody"},
    });
    place.api.apply(&unreadable.to_string())?;
    let said = reconcile(&place, "cp1")?;
    assert_eq!(said.status.code(), Some(0), "{}", text(&said));
    let told = events(&place)?;
    let released = note(&told, &format!("QuorateReleased Normal Lease/{slot}"));
    assert!(released.contains("upgrade-v1.36.3 on quorate-w1") && released.ends_with("it is free"), "{released}");
    let hand = note(&told, &format!("QuorateNeedsAHand Warning Lease/{CONTROL_PLANE}"));
    assert!(hand.contains("`somebody`") && hand.contains("quorate lease release"), "{hand}");
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(matches!(place.lease(&slot).await?, LeaseView::Free { .. }));
    assert!(matches!(place.lease(CONTROL_PLANE).await?, LeaseView::Held { identity, .. } if identity == "somebody"));
    // Half done, and no node on which a step could be started.
    place.api.finish_pod_deletion("quorate", "w2")?;
    place.pod("w2")?;
    let taken = place.take(&slot, "w2", "upgrade-v1.36.3", "w1", NOW).await?;
    let Taken::Got(guard) = taken else { panic!("{taken:?}") };
    guard.step(Step::touching("drain")).await?;
    drop(guard);
    place.pod_ended("w2")?;
    let said = reconcile(&place, "cp1")?;
    assert_eq!(said.status.code(), Some(0), "{}", text(&said));
    let told = events(&place)?;
    let left = note(&told, "QuorateNotFinished Warning Node/quorate-w1");
    assert!(left.contains("upgrade to v1.36.3 is half done on quorate-w1"), "{left}");
    // The hand is asked for again in the same words, which is the same Event.
    assert_eq!(told.len(), 3, "{told:#?}");
    assert!(matches!(place.lease(&slot).await?, LeaseView::Held { .. }));
    Ok(())
}
