//! The cordon: one PATCH that makes a node unschedulable and records whose doing that is and what was there before. What is
//! to be done is decided by pure functions from the Node; the PATCH carries the resourceVersion that they saw, so two that
//! decide at the same time do not both win.

use super::DrainError;
use super::link::{Failure, Link, bounded};
use crate::access::{ATTEMPT, Access};
use crate::lock::Fence;
use crate::lock::lease::FIELD_MANAGER;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::{Patch, PatchParams};
use kube::core::{PartialObjectMeta, Request};
use kube::{Api, Resource};
use quorum_safety::lock::TooLate;
use quorum_safety::{Cordon, UnixSeconds, Writer};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// Annotation that says whose cordon it is; its value is a [`CordonRecord`] as JSON.
pub const ANNOTATION: &str = crate::observe::cluster::CORDON;
/// How often a conflict is met with another look. The kubelet and the node controller write to a Node too.
const ATTEMPTS: usize = 8;
/// How long to look for an answer to a read, if the fence leaves as much.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who cordons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The operation, such as `upgrade-v1.36.3`: what is compared.
    pub operation: String,
    /// The actor, as in its Lease.
    pub identity: String,
    /// Whether it goes on with what another actor of the operation began: then that one's cordon is its own too.
    pub adopted: bool,
}

impl Owner {
    /// Whether this actor may take a cordon back. One that has lost its Lease, and does not know it yet, must not uncordon a node on
    /// which its successor works: the successor has put its own name there.
    fn owns(&self, record: &CordonRecord) -> bool {
        record.operation == self.operation && (self.adopted || record.owner == self.identity)
    }
}

/// What the annotation says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CordonRecord {
    /// The operation that cordoned.
    pub operation: String,
    /// The actor that cordoned for it.
    pub owner: String,
    /// When.
    pub since: Timestamp,
    /// Whether the node was unschedulable before: somebody else's cordon, which stays.
    pub prior_unschedulable: bool,
}

/// How a cordon ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cordoned {
    /// The node is cordoned by this operation.
    Done(CordonRecord),
    /// Another operation of ours has cordoned it; [`CordonRecord::held`] says it in words.
    HeldBy(CordonRecord),
    /// There is no such node.
    NoSuchNode,
}

impl CordonRecord {
    /// Whose cordon it is and how it goes away, for people.
    pub fn held(&self, node: &str) -> String {
        let Self { operation, owner, since, .. } = self;
        format!(
            "{node} is cordoned by {operation} ({owner}, since {since}): run that again, which finishes or undoes it; if it was given \
             up, see that the node is well and lift the cordon with `kubectl uncordon {node}`"
        )
    }
}

/// How an uncordon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncordoned {
    /// The node is schedulable again.
    Schedulable,
    /// Our record is off; the cordon that was there before stays.
    StaysCordoned,
    /// There was no cordon of this actor: nothing was done.
    NotOurs,
    /// There is no such node.
    NoSuchNode,
}

/// Whether a node is cordoned, and by whom. A cordon whose record cannot be read counts as somebody else's, and so does one that was
/// made anew over what is left of ours.
pub fn read(node: &Node) -> Cordon {
    if !unschedulable(node) {
        return Cordon::None;
    }
    match record(node) {
        Ok(Some(record)) if !is_anew(node, &record) => Cordon::Ours(record.operation),
        Ok(_) | Err(_) => Cordon::Foreign,
    }
}

/// Who has written a foreign cordon, by the node's managed fields: of several the one that wrote last. None where there is none, and
/// where they do not tell.
pub fn foreign_writer(node: &Node) -> Option<Writer> {
    if read(node) != Cordon::Foreign {
        return None;
    }
    let last = writers(node, UNSCHEDULABLE).into_iter().max_by_key(|entry| entry.time.as_ref().map(|time| time.0))?;
    Some(Writer {
        manager: last.manager.clone().filter(|manager| !manager.is_empty())?,
        at: last.time.as_ref().map(|time| UnixSeconds(time.0.as_second())),
    })
}

const UNSCHEDULABLE: &str = "/f:spec/f:unschedulable";

/// Who has written a field, by the node's managed fields.
fn writers<'a>(node: &'a Node, field: &str) -> Vec<&'a ManagedFieldsEntry> {
    let entries = node.metadata.managed_fields.iter().flatten();
    entries.filter(|entry| entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer(field).is_some())).collect()
}

/// Whether somebody else has cordoned over a record that knows of no cordon but ours: whoever uncordons by hand leaves our record on the
/// node, and a cordon of theirs after that looks like ours but for who has written it. Ours is written together with its record. Where
/// managed fields tell nothing it is ours. (Found by crates/quorum-model.)
fn is_anew(node: &Node, record: &CordonRecord) -> bool {
    let field = format!("/f:metadata/f:annotations/f:{}", ANNOTATION.replace('/', "~1"));
    let by = |field: &str| writers(node, field).into_iter().map(|entry| entry.manager.as_deref()).collect::<Vec<_>>();
    let (cordon, ours) = (by(UNSCHEDULABLE), by(&field));
    let told = unschedulable(node) && !cordon.is_empty() && !ours.is_empty();
    told && !record.prior_unschedulable && !cordon.iter().any(|manager| ours.contains(manager))
}

/// The record on a node.
///
/// # Errors
/// When there is one that cannot be read.
pub fn record(node: &Node) -> Result<Option<CordonRecord>, String> {
    let Some(text) = node.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ANNOTATION)) else {
        return Ok(None);
    };
    serde_json::from_str(text).map(Some).map_err(|error| error.to_string())
}

fn unschedulable(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

/// What a cordon has to do. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Write(CordonRecord),
    Nothing(CordonRecord),
    HeldBy(CordonRecord),
}

fn plan(node: &Node, owner: &Owner, now: Timestamp) -> Result<Plan, String> {
    let fresh = |since, prior_unschedulable| CordonRecord {
        operation: owner.operation.clone(),
        owner: owner.identity.clone(),
        since,
        prior_unschedulable,
    };
    // Uncordoned by hand in between, so that is how they want it afterwards. What a record without a cordon says is nobody's, be it of
    // another operation or of another version.
    if !unschedulable(node) {
        return Ok(Plan::Write(fresh(now, false)));
    }
    Ok(match record(node)? {
        Some(left) if is_anew(node, &left) => Plan::Write(fresh(now, true)),
        Some(other) if other.operation != owner.operation => Plan::HeldBy(other),
        Some(ours) if ours.owner == owner.identity => Plan::Nothing(ours),
        // Adopted from an actor that is gone: what was there before is what it saw.
        Some(ours) => Plan::Write(fresh(ours.since, ours.prior_unschedulable)),
        None => Plan::Write(fresh(now, true)),
    })
}

/// Cordons a node for an operation, once however often it is called. `now` is for people. The fence is asked right before the PATCH
/// is sent.
///
/// # Errors
/// When the API does not answer before the fence, others keep changing the node, or the record on it cannot be read.
pub async fn cordon(
    access: &Access,
    node: &str,
    owner: &Owner,
    now: Timestamp,
    fence: &impl Fence,
) -> Result<Cordoned, DrainError> {
    let mut hand = Hand::new(access, node, fence).map_err(|said| not_in_time("cordon", node, said))?;
    for _ in 0..ATTEMPTS {
        let Some(seen) = hand.look().await? else { return Ok(Cordoned::NoSuchNode) };
        let record = match plan(&seen, owner, now).map_err(|because| unreadable(node, because))? {
            Plan::Nothing(record) => return Ok(Cordoned::Done(record)),
            Plan::HeldBy(record) => return Ok(Cordoned::HeldBy(record)),
            Plan::Write(record) => record,
        };
        let text = serde_json::to_string(&record).map_err(|error| unreadable(node, error.to_string()))?;
        if hand.write(&seen, true, Some(&text)).await? {
            return Ok(Cordoned::Done(record));
        }
    }
    Err(DrainError::Contended { node: node.to_owned(), attempts: ATTEMPTS })
}

/// Takes back the cordon of an actor and puts back what was there before; what belongs to anybody else is left alone. Safe to call
/// again, and by another actor of the same operation that has adopted it.
///
/// # Errors
/// As [`cordon`].
pub async fn uncordon(
    access: &Access,
    node: &str,
    owner: &Owner,
    fence: &impl Fence,
) -> Result<Uncordoned, DrainError> {
    let mut hand = Hand::new(access, node, fence).map_err(|said| not_in_time("uncordon", node, said))?;
    for _ in 0..ATTEMPTS {
        let Some(seen) = hand.look().await? else { return Ok(Uncordoned::NoSuchNode) };
        let ours = match record(&seen) {
            Ok(Some(ours)) if owner.owns(&ours) => ours,
            Ok(_) => return Ok(Uncordoned::NotOurs),
            Err(_) if !unschedulable(&seen) => return Ok(Uncordoned::NotOurs),
            Err(because) => return Err(unreadable(node, because)),
        };
        // Uncordoned by hand in between: it stays that way. Cordoned by hand after that: so does this.
        let stays = unschedulable(&seen) && (ours.prior_unschedulable || is_anew(&seen, &ours));
        if hand.write(&seen, stays, None).await? {
            return Ok(if stays { Uncordoned::StaysCordoned } else { Uncordoned::Schedulable });
        }
    }
    Err(DrainError::Contended { node: node.to_owned(), attempts: ATTEMPTS })
}

fn unreadable(node: &str, because: String) -> DrainError {
    DrainError::Unreadable { node: node.to_owned(), because }
}

fn not_in_time(verb: &str, node: &str, late: TooLate) -> DrainError {
    DrainError::Api { what: format!("{verb} node {node}"), said: late.to_string() }
}

/// One node, looked at and written to.
struct Hand<'a, F> {
    link: Link<'a>,
    node: &'a str,
    fence: &'a F,
    /// When looking ends; writing ends at the fence.
    until: Instant,
}

impl<'a, F: Fence> Hand<'a, F> {
    fn new(access: &'a Access, node: &'a str, fence: &'a F) -> Result<Self, TooLate> {
        let patience = fence.left()?.min(PATIENCE);
        Ok(Self { link: Link::new(access, ATTEMPT), node, fence, until: Instant::now() + patience })
    }

    async fn look(&mut self) -> Result<Option<Node>, DrainError> {
        let (node, until) = (self.node, self.until);
        self.link
            .ask(&format!("read node {node}"), until, |client| async move { Api::all(client).get_opt(node).await })
            .await
    }

    /// The one PATCH. False when the node is not as it was seen, or when it is not known whether it was written: look again.
    async fn write(&mut self, seen: &Node, unschedulable: bool, record: Option<&str>) -> Result<bool, DrainError> {
        let node = self.node;
        let patch = serde_json::json!({
            "metadata": {
                "resourceVersion": seen.metadata.resource_version,
                "annotations": { ANNOTATION: record },
            },
            // null takes the key away, which is how a schedulable node looks.
            "spec": { "unschedulable": unschedulable.then_some(true) },
        });
        let failed = |said: String| DrainError::Api {
            what: format!("{} node {node}", if record.is_some() { "cordon" } else { "uncordon" }),
            said,
        };
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let request = Request::new(Node::url_path(&(), None))
            .patch_metadata(node, &params, &Patch::Merge(&patch))
            .map_err(|error| failed(error.to_string()))?;
        let written = self
            .link
            .send(self.fence, |client, limit| async move {
                client.request::<PartialObjectMeta<Node>>(bounded(request, limit)?).await
            })
            .await;
        match written {
            Ok(_) => Ok(true),
            Err(Failure::Conflict(_) | Failure::NotFound) => Ok(false),
            // It may have been written: the next look tells, and the fence ends this.
            Err(Failure::NoAnswer(said)) if Instant::now() < self.until => {
                tracing::info!(node, said, "A change of the cordon was not answered");
                Ok(false)
            }
            Err(failure) => Err(failed(failure.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(unschedulable: bool, annotation: Option<&str>) -> Node {
        let mut node = json!({"metadata": {"name": "k1"}, "spec": {"unschedulable": unschedulable}});
        if let Some(text) = annotation {
            node["metadata"]["annotations"] = json!({ANNOTATION: text});
        }
        serde_json::from_value(node).unwrap()
    }

    fn text(operation: &str, owner: &str, prior: bool) -> String {
        json!({"operation": operation, "owner": owner, "since": "2026-11-22T18:00:00Z", "priorUnschedulable": prior})
            .to_string()
    }

    #[test]
    fn what_was_there_before_is_never_lost() {
        let me = owner("up", "me", false);
        let now: Timestamp = "2026-11-22T19:00:00Z".parse().unwrap();
        let (mine, adopted, other) = (text("up", "me", true), text("up", "gone", true), text("down", "me", false));
        for (unschedulable, annotation, expected) in [
            (false, None, "write false"),
            (true, None, "write true"),
            (true, Some(&mine), "nothing true"),
            (true, Some(&adopted), "write true"),
            (false, Some(&adopted), "write false"),
            (true, Some(&other), "held false"),
            // Review, A6: lifted by hand and never taken up again. It is nobody's cordon.
            (false, Some(&other), "write false"),
            (false, Some(&"{}".to_owned()), "write false"),
        ] {
            let found = match plan(&node(unschedulable, annotation.map(String::as_str)), &me, now).unwrap() {
                Plan::Write(record) => format!("write {}", record.prior_unschedulable),
                Plan::Nothing(record) => format!("nothing {}", record.prior_unschedulable),
                Plan::HeldBy(record) => format!("held {}", record.prior_unschedulable),
            };
            assert_eq!(found, expected, "{unschedulable} {annotation:?}");
        }
        assert!(plan(&node(true, Some("{}")), &me, now).is_err(), "what cannot be read is not overwritten");
    }

    fn owner(operation: &str, identity: &str, adopted: bool) -> Owner {
        Owner { operation: operation.to_owned(), identity: identity.to_owned(), adopted }
    }

    /// One that was late takes nothing from under its successor, and the successor takes over what it finds.
    #[test]
    fn a_cordon_is_taken_back_by_who_made_or_adopted_it() {
        let record: CordonRecord = serde_json::from_str(&text("up", "me", false)).unwrap();
        for (operation, identity, adopted, owns) in [
            ("up", "me", false, true),
            ("up", "me", true, true),
            ("up", "late", false, false),
            ("up", "adopter", true, true),
            ("down", "me", false, false),
            ("down", "me", true, false),
        ] {
            assert_eq!(owner(operation, identity, adopted).owns(&record), owns, "{operation} {identity} {adopted}");
        }
        let said = record.held("k2");
        assert!(said.contains("cordoned by up") && said.contains("kubectl uncordon k2"), "{said}");
    }

    #[test]
    fn whose_a_foreign_cordon_is_is_told_by_the_nodes_managed_fields() {
        let field = |manager: &str, time: &str, field: &str| {
            let fields = json!({"f:spec": {field: {}}, "f:metadata": {}});
            json!({"manager": manager, "operation": "Update", "time": time, "fieldsType": "FieldsV1", "fieldsV1": fields})
        };
        let with = |cordon: Node, fields: Vec<Value>| {
            let mut cordon = cordon;
            cordon.metadata.managed_fields = Some(serde_json::from_value(Value::from(fields)).unwrap());
            foreign_writer(&cordon)
        };
        let (early, late) = ("2026-11-22T18:00:00Z", "2026-11-22T19:00:00Z");
        let fields = || {
            vec![
                field("kured", early, "f:unschedulable"),
                field("kubectl-cordon", late, "f:unschedulable"),
                field("kubelet", late, "f:podCIDR"),
            ]
        };
        let at: Timestamp = late.parse().unwrap();
        let expected = Writer { manager: "kubectl-cordon".to_owned(), at: Some(UnixSeconds(at.as_second())) };
        assert_eq!(with(node(true, None), fields()), Some(expected));
        assert_eq!(with(node(true, None), fields().split_off(2)), None, "it is not told");
        assert_eq!(foreign_writer(&node(true, None)), None);
        // Ours is told by its annotation, and of none there is nothing to tell.
        assert_eq!(with(node(true, Some(&text("up", "me", false))), fields()), None);
        assert_eq!(with(node(false, None), fields()), None);
    }

    #[test]
    fn a_cordon_made_anew_over_a_record_of_ours_is_not_ours() {
        let record = format!("f:{ANNOTATION}");
        let ours = |fields: &[&str]| {
            let mut owned = json!({"f:metadata": {"f:annotations": {}}, "f:spec": {}});
            for field in fields {
                let path = if *field == "f:unschedulable" { "/f:spec" } else { "/f:metadata/f:annotations" };
                owned.pointer_mut(path).unwrap()[*field] = json!({});
            }
            owned
        };
        let cordoned = |prior: bool, managed: &[(&str, &[&str])]| {
            let entries = managed.iter().map(|(manager, fields)| json!({"manager": manager, "fieldsV1": ours(fields)}));
            let mut node = node(true, Some(&text("up", "me", prior)));
            node.metadata.managed_fields = Some(serde_json::from_value(entries.collect()).unwrap());
            node
        };
        let both = ["f:unschedulable", record.as_str()];
        let [cordon, record] = both.map(|field| [field]);
        let theirs: &[(&str, &[&str])] = &[("quorate", &record), ("kubectl-cordon", &cordon)];
        let (me, now) = (owner("up", "me", false), "2026-11-22T19:00:00Z".parse().unwrap());
        let anew = cordoned(false, theirs);
        assert_eq!(read(&anew), Cordon::Foreign);
        for operation in ["up", "down"] {
            let found = plan(&anew, &owner(operation, "me", false), now).unwrap();
            assert!(matches!(found, Plan::Write(record) if record.prior_unschedulable), "{operation}");
        }
        for (node, why) in [
            (cordoned(true, theirs), "theirs was there before, and we have written nothing but the record"),
            (cordoned(false, &[("quorate", &both)]), "ours, as we write it"),
            (cordoned(false, &[("quorate", &record)]), "nobody says who has cordoned"),
            (cordoned(false, &[("kubectl-cordon", &cordon)]), "nobody says who has written the record"),
        ] {
            assert_eq!(read(&node), Cordon::Ours("up".to_owned()), "{why}");
            assert!(matches!(plan(&node, &me, now).unwrap(), Plan::Nothing(_)), "{why}");
        }
    }

    #[test]
    fn a_cordon_that_cannot_be_read_is_somebody_elses() {
        assert_eq!(read(&node(false, None)), Cordon::None);
        assert_eq!(read(&node(true, None)), Cordon::Foreign);
        assert_eq!(read(&node(true, Some("{}"))), Cordon::Foreign);
        assert_eq!(read(&node(true, Some(&text("up", "me", false)))), Cordon::Ours("up".to_owned()));
        assert_eq!(read(&node(false, Some(&text("up", "me", false)))), Cordon::None);
        // A key that a later version adds does not make it somebody else's.
        let later = text("up", "me", false).replace("\"owner\"", "\"new\":1,\"owner\"");
        assert_eq!(read(&node(true, Some(&later))), Cordon::Ours("up".to_owned()));
    }
}
