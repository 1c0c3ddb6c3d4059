//! What is to be done with a workload, by what it says of itself. Pure.

use crate::config::{Workload, WorkloadKind};
use jiff::Timestamp;
use kube::core::DynamicObject;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::num::NonZeroU32;

/// The mark of a workload that is at zero for us: an annotation, whose value is a [`Record`] as JSON, and a label to find it by.
pub const MARK: &str = "quorate.dev/quiesced";
/// The value of the label.
const YES: &str = "true";

/// What the annotation says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// How many replicas it had.
    pub replicas: NonZeroU32,
    /// Who has scaled it to zero, as in its Lease: `upgrade-v1.36.3/k2/0123abcd`.
    pub holder: String,
    /// Since when it is at zero.
    pub since: Timestamp,
}

/// A workload as it was read.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which.
    pub workload: Workload,
    /// How many replicas it is to have.
    pub replicas: u32,
    resource_version: String,
    annotation: Option<String>,
    labelled: bool,
}

/// What is written, in one patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The mark; none takes it off.
    pub record: Option<Record>,
    /// The replicas; none leaves them.
    pub replicas: Option<u32>,
}

/// What quiescing has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quiesce {
    /// Scale it to zero and mark it so, or put our name on the mark of a holder before us.
    Write(Record),
    /// It is at zero, and marked by us.
    Done(Record),
    /// Its owner has it at zero.
    AtZero,
}

/// What restoring has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restore {
    /// Give it back its replicas, and take the mark off.
    Scale(NonZeroU32),
    /// Somebody has scaled it meanwhile, and his number stays; take the mark off.
    Unmark,
    /// It has no mark.
    Nothing,
}

impl Seen {
    /// Reads what is needed of an object.
    ///
    /// # Errors
    /// When the API left out what it always sends.
    pub fn of(kind: WorkloadKind, object: &DynamicObject) -> Result<Self, String> {
        let metadata = &object.metadata;
        let absent = |what: &str| format!("a {} of the API has no {what}", kind.name());
        let replicas = object.data.pointer("/spec/replicas").and_then(Value::as_u64);
        Ok(Self {
            workload: Workload {
                namespace: metadata.namespace.clone().ok_or_else(|| absent("namespace"))?,
                name: metadata.name.clone().ok_or_else(|| absent("name"))?,
                kind,
            },
            replicas: replicas.and_then(|n| u32::try_from(n).ok()).ok_or_else(|| absent("spec.replicas"))?,
            resource_version: metadata.resource_version.clone().ok_or_else(|| absent("resourceVersion"))?,
            annotation: metadata.annotations.as_ref().and_then(|all| all.get(MARK)).cloned(),
            labelled: metadata.labels.as_ref().is_some_and(|all| all.contains_key(MARK)),
        })
    }

    /// What its mark says; none when it has none.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn record(&self) -> Result<Option<Record>, String> {
        let because = match &self.annotation {
            None if !self.labelled => return Ok(None),
            None => "it is not there, and the label is".to_owned(),
            Some(text) => match serde_json::from_str(text) {
                Ok(record) => return Ok(Some(record)),
                Err(error) => error.to_string(),
            },
        };
        let Workload { namespace, name, kind } = &self.workload;
        Err(format!(
            "{} is at zero, and annotation {MARK}, which says how many replicas it had, cannot be read: {because}; give it back what it \
             should have with `kubectl -n {namespace} scale {} {name} --replicas=…`",
            self.workload,
            kind.name().to_lowercase()
        ))
    }

    /// The patch of a change. It is taken only if the workload is still as it was read.
    ///
    /// # Errors
    /// When the record cannot be written as JSON.
    pub fn patch(&self, change: &Change) -> Result<Value, serde_json::Error> {
        let text = change.record.as_ref().map(serde_json::to_string).transpose()?;
        let label = change.record.as_ref().map(|_| YES);
        let mut patch = json!({"metadata": {
            "resourceVersion": self.resource_version,
            "annotations": {MARK: text},
            "labels": {MARK: label},
        }});
        if let (Some(replicas), Some(patch)) = (change.replicas, patch.as_object_mut()) {
            patch.insert("spec".to_owned(), json!({"replicas": replicas}));
        }
        Ok(patch)
    }
}

/// Plans to scale it to zero for a holder.
///
/// # Errors
/// When its mark cannot be read: nothing is guessed.
pub fn quiesce(seen: &Seen, holder: &str, now: Timestamp) -> Result<Quiesce, String> {
    let fresh = |replicas, since| Record { replicas, holder: holder.to_owned(), since };
    // Scaled up since it was marked, or never marked: what it has now is what it is to have again.
    if let Some(replicas) = NonZeroU32::new(seen.replicas) {
        return Ok(Quiesce::Write(fresh(replicas, now)));
    }
    Ok(match seen.record()? {
        None => Quiesce::AtZero,
        Some(ours) if ours.holder == holder => Quiesce::Done(ours),
        // Of a holder that is gone. Written anew: whoever restores what is left, and does not know of us yet, must not succeed.
        Some(left) => Quiesce::Write(fresh(left.replicas, left.since)),
    })
}

/// Plans to give it back what it had.
///
/// # Errors
/// When its mark cannot be read: nothing is guessed.
pub fn restore(seen: &Seen) -> Result<Restore, String> {
    if seen.replicas != 0 {
        let marked = seen.labelled || seen.annotation.is_some();
        return Ok(if marked { Restore::Unmark } else { Restore::Nothing });
    }
    Ok(seen.record()?.map_or(Restore::Nothing, |record| Restore::Scale(record.replicas)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-22T19:00:00Z";
    const BEFORE: &str = "2026-11-22T18:00:00Z";

    fn text(replicas: i64, holder: &str) -> String {
        json!({"replicas": replicas, "holder": holder, "since": BEFORE}).to_string()
    }

    fn seen(replicas: u32, annotation: Option<&str>, labelled: bool) -> Seen {
        let mut metadata = json!({"namespace": "shop", "name": "operator", "resourceVersion": "7"});
        if let Some(text) = annotation {
            metadata["annotations"] = json!({MARK: text});
        }
        if labelled {
            metadata["labels"] = json!({MARK: "true"});
        }
        let object = json!({"metadata": metadata, "spec": {"replicas": replicas}});
        Seen::of(WorkloadKind::Deployment, &serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn the_number_that_its_owner_gave_it_is_never_lost() {
        let (mine, left, zero) = (text(2, "me"), text(2, "gone"), text(0, "gone"));
        for (replicas, annotation, expected) in [
            (2, None, "write 2 now"),
            (0, None, "at zero"),
            (0, Some(mine.as_str()), "done 2"),
            // Never the zero that is there now.
            (0, Some(left.as_str()), "write 2 before"),
            // Scaled up by hand in between: that is what they want.
            (5, Some(left.as_str()), "write 5 now"),
            (5, Some("{}"), "write 5 now"),
            (0, Some("{}"), "unreadable"),
            (0, Some(zero.as_str()), "unreadable"),
        ] {
            let planned = quiesce(&seen(replicas, annotation, annotation.is_some()), "me", NOW.parse().unwrap());
            let found = match planned {
                Ok(Quiesce::Write(record)) => {
                    assert_eq!(record.holder, "me");
                    let since = if record.since == NOW.parse().unwrap() { "now" } else { "before" };
                    format!("write {} {since}", record.replicas)
                }
                Ok(Quiesce::Done(record)) => format!("done {}", record.replicas),
                Ok(Quiesce::AtZero) => "at zero".to_owned(),
                Err(_) => "unreadable".to_owned(),
            };
            assert_eq!(found, expected, "{replicas} {annotation:?}");
        }
        // Its annotation was taken off, and only the label says that the zero is not its owner's.
        assert!(quiesce(&seen(0, None, true), "me", NOW.parse().unwrap()).is_err());
    }

    #[test]
    fn what_was_recorded_comes_back_and_what_somebody_else_wrote_stays() {
        let left = text(2, "gone");
        let scale = |replicas| Ok(Restore::Scale(NonZeroU32::new(replicas).unwrap()));
        for (replicas, annotation, labelled, expected) in [
            (0, Some(left.as_str()), true, scale(2)),
            (0, Some(left.as_str()), false, scale(2)),
            (3, Some(left.as_str()), true, Ok(Restore::Unmark)),
            (3, Some("{}"), true, Ok(Restore::Unmark)),
            (3, None, true, Ok(Restore::Unmark)),
            (3, None, false, Ok(Restore::Nothing)),
            (0, None, false, Ok(Restore::Nothing)),
            (0, Some("two"), true, Err("expected ident")),
            (0, Some(&text(-1, "gone")), true, Err("-1")),
            (0, None, true, Err("the label is")),
        ] {
            match (restore(&seen(replicas, annotation, labelled)), expected) {
                (Err(said), Err(part)) => {
                    assert!(said.contains(part), "{said}");
                    assert!(said.contains("`kubectl -n shop scale deployment operator --replicas=…`"), "{said}");
                }
                (found, expected) => assert_eq!(found, expected.map_err(str::to_owned), "{replicas} {annotation:?}"),
            }
        }
    }

    #[test]
    fn mark_and_scale_are_one_patch_on_what_was_read() {
        let seen = seen(2, None, false);
        let record: Record = serde_json::from_str(&text(2, "me")).unwrap();
        let down = seen.patch(&Change { record: Some(record.clone()), replicas: Some(0) }).unwrap();
        assert_eq!(down["metadata"]["resourceVersion"], "7");
        assert_eq!((&down["metadata"]["labels"][MARK], &down["spec"]["replicas"]), (&json!("true"), &json!(0)));
        let written = down["metadata"]["annotations"][MARK].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Record>(written).unwrap(), record);
        let up = seen.patch(&Change { record: None, replicas: Some(2) }).unwrap();
        assert_eq!(
            up,
            json!({"metadata": {"resourceVersion": "7", "annotations": {MARK: null}, "labels": {MARK: null}}, "spec": {"replicas": 2}})
        );
        assert_eq!(seen.patch(&Change { record: None, replicas: None }).unwrap().get("spec"), None);
    }

    #[test]
    fn what_the_api_left_out_is_not_made_up() {
        let object = json!({"metadata": {"namespace": "shop", "name": "a", "resourceVersion": "7"}, "spec": {}});
        let said = Seen::of(WorkloadKind::StatefulSet, &serde_json::from_value(object).unwrap()).unwrap_err();
        assert_eq!(said, "a StatefulSet of the API has no spec.replicas");
    }
}
