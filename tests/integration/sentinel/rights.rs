//! What the account of the sentinels may do and never did (incident R03), by the word of the real authorizer: in the audit log it names the
//! binding that allowed each request. A right that two roles give is used when either is.

use crate::manifests::with_component;
use anyhow::{Result, ensure};
use lab::api::Api;
use serde_json::Value;
use std::collections::BTreeSet;

const ACCOUNT: &str = "quorate-sentinel";

/// Rights that the test may do without, each with what needs it.
const ELSEWHERE: [(&str, &str); 4] = [
    ("create configmaps in quorate", "the first observation: a patch that makes the object"),
    ("get configmaps kubeadm-config in kube-system", "proven recovery where `loadBalancer` is `balances`"),
    ("get daemonsets", "a configuration that names kured's DaemonSet"),
    ("list endpointslices in default", "the way to the apiservers from inside a pod; the test's process is no pod"),
];

/// One verb on one resource that the account has, and where; everywhere when that is none.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    verb: String,
    group: String,
    resource: String,
    names: Vec<String>,
    namespace: Option<String>,
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().map_or_else(Vec::new, |all| all.iter().map(|one| one.as_str().unwrap().to_owned()).collect())
}

/// All of them, in what is installed.
fn given() -> BTreeSet<Right> {
    let objects = with_component("sentinel");
    let mut rights = BTreeSet::new();
    for binding in objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("Binding")) {
        let subjects = binding["subjects"].as_array();
        if !subjects.is_some_and(|all| all.iter().any(|subject| subject["name"] == ACCOUNT)) {
            continue;
        }
        let role = objects
            .iter()
            .find(|object| {
                object["kind"] == binding["roleRef"]["kind"]
                    && object["metadata"]["name"] == binding["roleRef"]["name"]
                    && object["metadata"]["namespace"] == binding["metadata"]["namespace"]
            })
            .unwrap();
        for rule in role["rules"].as_array().unwrap() {
            for (verb, group) in product(&texts(&rule["verbs"]), &texts(&rule["apiGroups"])) {
                rights.extend(texts(&rule["resources"]).into_iter().map(|resource| Right {
                    verb: verb.clone(),
                    group: group.clone(),
                    resource,
                    names: texts(&rule["resourceNames"]),
                    namespace: binding["metadata"]["namespace"].as_str().map(str::to_owned),
                }));
            }
        }
    }
    rights
}

fn product(a: &[String], b: &[String]) -> Vec<(String, String)> {
    a.iter().flat_map(|one| b.iter().map(|other| (one.clone(), other.clone()))).collect()
}

impl Right {
    fn text(&self) -> String {
        let names = if self.names.is_empty() { String::new() } else { format!(" {}", self.names.join("|")) };
        let place = self.namespace.as_ref().map_or_else(String::new, |namespace| format!(" in {namespace}"));
        format!("{} {}{names}{place}", self.verb, self.resource)
    }

    fn allowed(&self, event: &Value) -> bool {
        let object = &event["objectRef"];
        let text = |key: &str| object[key].as_str().unwrap_or("");
        event["verb"] == self.verb.as_str()
            && text("apiGroup") == self.group
            && text("resource") == self.resource
            && self.namespace.as_deref().is_none_or(|namespace| namespace == text("namespace"))
            && (self.names.is_empty() || self.names.iter().any(|name| name == text("name")))
    }
}

/// Every request of that account.
pub(super) fn asked(api: &Api) -> Result<Vec<Value>> {
    let own = format!("system:serviceaccount:quorate:{ACCOUNT}");
    Ok(api.audit_events()?.into_iter().filter(|event| event["user"]["username"] == own.as_str()).collect())
}

/// What the authorizer has denied to it, but for /readyz of an apiserver that has just begun and knows no role yet.
pub(super) fn denied(api: &Api) -> Result<Vec<Value>> {
    let denied = |event: &Value| event["responseStatus"]["code"] == 403 && event["requestURI"] != "/readyz";
    Ok(asked(api)?.into_iter().filter(denied).collect())
}

/// The rights that no request has needed.
pub(super) fn unused(api: &Api) -> Result<Vec<String>> {
    let asked = asked(api)?;
    let ours: Vec<&Value> = asked
        .iter()
        .filter(|event| {
            // `RBAC: allowed by RoleBinding "quorate-sentinel/quorate" of Role …`: one of ours, and not one that everybody has.
            let why = event["annotations"]["authorization.k8s.io/reason"].as_str().unwrap_or_default();
            why.contains(&format!("Binding \"{ACCOUNT}"))
        })
        .collect();
    ensure!(!ours.is_empty(), "the audit log names no binding of ours");
    let given = given();
    for (right, what_for) in ELSEWHERE {
        ensure!(given.iter().any(|one| one.text() == right), "{right} ({what_for}) is not given any more");
    }
    let unused = given.iter().filter(|right| !ours.iter().any(|event| right.allowed(event))).map(Right::text);
    Ok(unused.filter(|right| !ELSEWHERE.iter().any(|(elsewhere, _)| elsewhere == right)).collect())
}
