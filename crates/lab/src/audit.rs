//! What was asked of all apiservers of a test run, by their audit logs: each leaves what it has in one folder when it goes, and one test
//! reads all of it at the end.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// Names the folder; nothing is kept where it is not set.
const FOLDER: &str = "LAB_AUDIT";
/// Whose requests are kept: a name in the lab's clusters, and the accounts of one namespace.
const WHOSE: &str = "system:serviceaccount:quorate:";

/// Whether anything is kept.
pub(crate) fn wanted() -> bool {
    folder().is_some()
}

fn folder() -> Option<PathBuf> {
    env::var_os(FOLDER).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// Keeps what the accounts of namespace `quorate` asked: who, verb, what of, the answer's code, what the authorizer decided; each once, with
/// the name of the test that was the last to use this apiserver.
///
/// # Errors
/// When it cannot be written.
pub fn keep<'a>(events: impl IntoIterator<Item = &'a Value>) -> Result<()> {
    let Some(folder) = folder() else { return Ok(()) };
    let left_by = std::thread::current().name().unwrap_or("-").to_owned();
    let at = |event: &Value, pointer: &str| event.pointer(pointer).cloned().unwrap_or_default();
    let lines: BTreeSet<String> = events
        .into_iter()
        .filter(|event| at(event, "/user/username").as_str().is_some_and(|name| name.starts_with(WHOSE)))
        .map(|event| {
            let object = |key: &str| at(event, &format!("/objectRef/{key}"));
            let uri = at(event, "/requestURI");
            let kept = json!({
                "user": {"username": at(event, "/user/username")}, "verb": at(event, "/verb"),
                "requestURI": uri.as_str().and_then(|uri| uri.split('?').next()),
                "objectRef": {"apiGroup": object("apiGroup"), "resource": object("resource"), "subresource": object("subresource"),
                    "namespace": object("namespace"), "name": object("name")},
                "responseStatus": {"code": at(event, "/responseStatus/code")},
                "decision": at(event, "/annotations/authorization.k8s.io~1decision"), "left_by": left_by,
            });
            kept.to_string()
        })
        .collect();
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let text: String = lines.into_iter().flat_map(|line| [line, "\n".to_owned()]).collect();
    // Some tests run as process 1 of a namespace: its number names nobody.
    let mut file = tempfile::Builder::new()
        .suffix(".jsonl")
        .tempfile_in(&folder)
        .with_context(|| format!("make a file in {}", folder.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", file.path().display()))?;
    file.keep().map(drop).with_context(|| format!("keep a file in {}", folder.display()))
}

/// All that was kept.
///
/// # Errors
/// When no folder is named, or something in it cannot be read.
pub fn kept() -> Result<Vec<Value>> {
    let folder = folder().with_context(|| format!("{FOLDER} names no folder"))?;
    let mut events = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let file = entry?.path();
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        for line in text.lines() {
            events.push(serde_json::from_str(line).with_context(|| format!("a line of {}", file.display()))?);
        }
    }
    Ok(events)
}
