//! What our accounts may do, by the roles and bindings that are installed, and what of it the audit logs of a whole test run show (incident
//! R03). A right that two roles give is used when either is.

use crate::manifests::{build, with_component};
use lab::audit;
use serde_json::Value;
use std::collections::BTreeSet;

/// Components whose accounts' rights every run shows.
const COMPONENTS: [&str; 2] = ["quiesce", "sentinel"];
/// The components that `make test-long` shows besides, each by a test with a cluster of its own.
const LONG: [&str; 2] = ["backup-node", "defrag"];

/// One thing that an account may do.
struct Right {
    account: String,
    verb: String,
    /// Only there; everywhere when it is of a ClusterRole.
    namespace: Option<String>,
    what: What,
}

enum What {
    Resource { group: String, resource: String, names: Vec<String> },
    Url(String),
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().map_or_else(Vec::new, |all| all.iter().map(|one| one.as_str().unwrap().to_owned()).collect())
}

/// Every right that the roles and bindings among these objects give.
fn given(objects: &[Value]) -> Vec<Right> {
    let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let mut rights = Vec::new();
    for (kind, of) in [("RoleBinding", "Role"), ("ClusterRoleBinding", "ClusterRole")] {
        let roles: Vec<&Value> = of_kind(of).collect();
        for binding in of_kind(kind) {
            let namespace = binding["metadata"]["namespace"].as_str().map(str::to_owned);
            let role = roles
                .iter()
                .find(|role| {
                    role["metadata"]["name"] == binding["roleRef"]["name"]
                        && role["metadata"]["namespace"] == binding["metadata"]["namespace"]
                })
                .unwrap();
            for (subject, rule) in product(&binding["subjects"], &role["rules"]) {
                let account = subject["name"].as_str().unwrap();
                for verb in texts(&rule["verbs"]) {
                    let mut add = |what| {
                        let (account, namespace) = (account.to_owned(), namespace.clone());
                        rights.push(Right { account, verb: verb.clone(), namespace, what });
                    };
                    texts(&rule["nonResourceURLs"]).into_iter().for_each(|url| add(What::Url(url)));
                    for group in texts(&rule["apiGroups"]) {
                        for resource in texts(&rule["resources"]) {
                            let names = texts(&rule["resourceNames"]);
                            add(What::Resource { group: group.clone(), resource, names });
                        }
                    }
                }
            }
        }
    }
    rights
}

fn product<'a>(a: &'a Value, b: &'a Value) -> impl Iterator<Item = (&'a Value, &'a Value)> {
    let b = b.as_array().unwrap();
    a.as_array().unwrap().iter().flat_map(move |one| b.iter().map(move |other| (one, other)))
}

impl Right {
    /// For people: `quorate-step: delete pods`.
    fn text(&self) -> String {
        let place = self.namespace.as_ref().map_or(String::new(), |namespace| format!(" in {namespace}"));
        match &self.what {
            What::Url(url) => format!("{}: {} {url}", self.account, self.verb),
            What::Resource { resource, names, .. } => {
                let names = if names.is_empty() { String::new() } else { format!(" {}", names.join("|")) };
                format!("{}: {} {resource}{names}{place}", self.account, self.verb)
            }
        }
    }

    /// Whether a request of the audit log, which was not refused, is one that this right allows. A patch that made its object took
    /// two: the API server asks for `create`, too.
    fn used_by(&self, event: &Value) -> bool {
        let object = &event["objectRef"];
        let text = |key: &str| object[key].as_str().unwrap_or("");
        let account = format!("system:serviceaccount:quorate:{}", self.account);
        let verb = event["verb"] == self.verb.as_str()
            || (self.verb == "create" && event["verb"] == "patch" && event["responseStatus"]["code"] == 201);
        if event["user"]["username"] != account.as_str() || !verb {
            return false;
        }
        match &self.what {
            What::Url(url) => {
                event["requestURI"].as_str().is_some_and(|uri| uri.split('?').next() == Some(url.as_str()))
            }
            What::Resource { group, resource, names } => {
                let asked = match text("subresource") {
                    "" => text("resource").to_owned(),
                    sub => format!("{}/{sub}", text("resource")),
                };
                (group.as_str(), resource.as_str()) == (text("apiGroup"), asked.as_str())
                    && self.namespace.as_deref().is_none_or(|namespace| namespace == text("namespace"))
                    && (names.is_empty() || names.iter().any(|name| name == text("name")))
            }
        }
    }
}

#[test]
#[ignore = "of what all other tests have asked: scripts/test runs it when they have ended"]
fn r03_no_right_is_given_that_nobody_uses() {
    let asked = audit::kept().unwrap();
    let long = std::env::var_os("QUORATE_LONG").is_some();
    let components = COMPONENTS.iter().chain(LONG.iter().filter(|_| long));
    let objects = components.map(|component| with_component(component)).chain([build("kustomize/base")]);
    let given: Vec<Right> = objects.flat_map(|objects| given(&objects)).collect();
    let unused: BTreeSet<String> = given
        .iter()
        .filter(|right| !asked.iter().any(|event| event["decision"] == "allow" && right.used_by(event)))
        .map(Right::text)
        .collect();
    assert_eq!(unused, BTreeSet::new());
    // What was denied before a component that gives it was there is not missing.
    let missing: Vec<&Value> = asked
        .iter()
        .filter(|event| event["decision"] == "forbid" && !given.iter().any(|right| right.used_by(event)))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
