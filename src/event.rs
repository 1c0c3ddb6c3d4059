//! What quorate did on its own, as Events: `kubectl describe node k2` shows them. They are told to people and decide nothing, so one that
//! cannot be written is a line in the log.

use crate::access::Access;
use crate::clock::Clock;
use crate::job::short_hash;
use crate::report::{Outcome, Report};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use quorum_safety::NodeName;
use std::time::Duration;

/// Most bytes of a note that the API takes.
const NOTE: usize = 1024;
/// Events about a Node, which is in no namespace, are kept here.
const OF_NODES: &str = "default";
/// How long writing one may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whether somebody should look.
    pub warning: bool,
    /// One word in CamelCase, stable.
    pub reason: &'static str,
    /// A sentence.
    pub note: String,
}

/// What the end of a step that finishes or undoes is told as.
pub fn finished(report: &Report) -> Told {
    let done = report.outcome == Outcome::Ok;
    let reason = if done { "QuorateFinished" } else { "QuorateNotFinished" };
    Told { warning: !done, reason, note: report.text() }
}

/// Who tells: what it was doing, and its name.
type By = (&'static str, &'static str);
const RECONCILE: By = ("Reconcile", "quorate.dev/reconcile");
const SENTINEL: By = ("Reboot", "quorate.dev/sentinel");

/// Tells something about a node.
pub async fn about_node(access: &Access, node: &NodeName, told: Told, clock: Clock) {
    tell(access, OF_NODES, of_node(node), told, RECONCILE, clock).await;
}

/// The same, as what its sentinel did.
pub async fn by_sentinel(access: &Access, node: &NodeName, told: Told, clock: Clock) {
    tell(access, OF_NODES, of_node(node), told, SENTINEL, clock).await;
}

fn of_node(node: &NodeName) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.0.clone()),
        // What the kubelet's own Events say too, and `kubectl describe node` looks for.
        uid: Some(node.0.clone()),
        ..ObjectReference::default()
    }
}

/// Tells something about a Lease of ours.
pub async fn about_lease(access: &Access, lease: &str, told: Told, clock: Clock) {
    let about = ObjectReference {
        api_version: Some("coordination.k8s.io/v1".to_owned()),
        kind: Some("Lease".to_owned()),
        name: Some(lease.to_owned()),
        namespace: Some(access.namespace.clone()),
        ..ObjectReference::default()
    };
    tell(access, &access.namespace, about, told, RECONCILE, clock).await;
}

async fn tell(access: &Access, namespace: &str, about: ObjectReference, told: Told, by: By, clock: Clock) {
    let event = event(namespace, about, &told, by, clock.now());
    let written = tokio::time::timeout(LIMIT, async {
        let client = access.live(&[]).await.map_err(|error| error.to_string())?;
        let events: Api<Event> = Api::namespaced(client, namespace);
        match events.create(&PostParams::default(), &event).await {
            Ok(_) => Ok(()),
            // The same was told within the hour that Events are kept: once is enough.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    });
    let said = match written.await {
        Ok(Ok(())) => return,
        Ok(Err(said)) => said,
        Err(_) => format!("no answer in {LIMIT:?}"),
    };
    tracing::warn!(said, reason = told.reason, note = told.note, "An Event could not be written");
}

fn event(namespace: &str, about: ObjectReference, told: &Told, by: By, now: Timestamp) -> Event {
    let (action, controller) = by;
    let mut note = told.note.clone();
    crate::report::shorten(&mut note, NOTE - '…'.len_utf8());
    // The same words about the same object have the same name.
    let name = format!("{}.{}", about.name.as_deref().unwrap_or("quorate"), short_hash(&format!("{told:?}")));
    Event {
        metadata: ObjectMeta { name: Some(name), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() },
        event_time: Some(MicroTime(now)),
        action: Some(action.to_owned()),
        reason: Some(told.reason.to_owned()),
        note: Some(note),
        type_: Some(if told.warning { "Warning" } else { "Normal" }.to_owned()),
        regarding: Some(about),
        reporting_controller: Some(controller.to_owned()),
        reporting_instance: Some("quorate".to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_fits_and_the_same_words_have_the_same_name() {
        let about = |name: &str| ObjectReference { name: Some(name.to_owned()), ..ObjectReference::default() };
        let told = |note: &str| Told { warning: true, reason: "QuorateNotFinished", note: note.to_owned() };
        let long = event("default", about("k1"), &told(&"ü".repeat(2000)), SENTINEL, Timestamp::UNIX_EPOCH);
        assert!(long.note.unwrap().len() <= NOTE);
        let name = |note: &str, node: &str| {
            event("default", about(node), &told(note), RECONCILE, Timestamp::UNIX_EPOCH).metadata.name.unwrap()
        };
        assert_eq!(name("a", "k1"), name("a", "k1"));
        assert_ne!(name("a", "k1"), name("b", "k1"));
        assert_ne!(name("a", "k1"), name("a", "k2"));
    }
}
