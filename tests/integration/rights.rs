//! What our accounts may do, by the roles and bindings that are installed, and what of it these events of an audit log show (incident R03). A
//! right that two roles give is used when either is.

use crate::manifests::build;
use serde_json::Value;
use std::collections::BTreeSet;

/// Rights of kustomize/base that tests may do without, each with what needs it.
pub(crate) const ELSEWHERE: [(&str, &str); 16] = [
    ("quorate-backup: create configmaps in quorate", "the first observation: a patch that makes the object"),
    ("quorate-backup: get daemonsets", "a configuration that names kured's DaemonSet"),
    ("quorate-backup: list endpointslices in default", "a Job that the CronJob makes is not told the apiservers"),
    ("quorate-defrag: create configmaps in quorate", "the first observation: a patch that makes the object"),
    ("quorate-defrag: get daemonsets", "a configuration that names kured's DaemonSet"),
    ("quorate-defrag: list endpointslices in default", "a Job that plain kubectl makes is not told the apiservers"),
    ("quorate-members: create configmaps in quorate", "the first observation: a patch that makes the object"),
    ("quorate-members: get daemonsets", "a configuration that names kured's DaemonSet"),
    ("quorate-members: list endpointslices in default", "a Job that plain kubectl makes is not told the apiservers"),
    ("quorate-observe: create configmaps in quorate", "the first observation: a patch that makes the object"),
    ("quorate-observe: get daemonsets", "a configuration that names kured's DaemonSet"),
    ("quorate-reconcile: get daemonsets", "the same"),
    ("quorate-reconcile: list endpointslices in default", "a Job that the CronJob makes is not told the apiservers"),
    ("quorate-step: delete pods", "a namespace whose policy is deleteAfterHalf"),
    ("quorate-step: list endpointslices in default", "a step that plain kubectl makes is not told the apiservers"),
    ("quorate-step: list endpointslices in kube-system", "cluster DNS, which the machines have not"),
];

/// One thing that an account may do.
pub(crate) struct Right {
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
pub(crate) fn given(objects: &[Value]) -> Vec<Right> {
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
    pub(crate) fn text(&self) -> String {
        let place = self.namespace.as_ref().map_or(String::new(), |namespace| format!(" in {namespace}"));
        match &self.what {
            What::Url(url) => format!("{}: {} {url}", self.account, self.verb),
            What::Resource { resource, names, .. } => {
                let names = if names.is_empty() { String::new() } else { format!(" {}", names.join("|")) };
                format!("{}: {} {resource}{names}{place}", self.account, self.verb)
            }
        }
    }

    /// Whether a request of the audit log, which was not refused, is one that this right allows.
    fn used_by(&self, event: &Value) -> bool {
        let object = &event["objectRef"];
        let text = |key: &str| object[key].as_str().unwrap_or("");
        let account = format!("system:serviceaccount:quorate:{}", self.account);
        if event["user"]["username"] != account.as_str() || event["verb"] != self.verb.as_str() {
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

/// Every right that kustomize/base gives.
pub(crate) fn of_base() -> Vec<Right> {
    given(&build("kustomize/base"))
}

/// The rights of one account that these events of an audit log do not show, but for those that are for elsewhere.
pub(crate) fn unused_by(account: &str, asked: &[Value]) -> Vec<String> {
    let own = |right: &String| right.starts_with(&format!("{account}: "));
    unused_in(asked)
        .into_iter()
        .filter(own)
        .filter(|right| !ELSEWHERE.iter().any(|(elsewhere, _)| elsewhere == right))
        .collect()
}

/// The rights of kustomize/base that no event shows which was not refused.
pub(crate) fn unused_in(asked: &[Value]) -> BTreeSet<String> {
    let allowed: Vec<&Value> = asked.iter().filter(|event| event["responseStatus"]["code"] != 403).collect();
    unused_of(&of_base(), &allowed)
}

/// Those of these rights that no event shows.
pub(crate) fn unused_of(rights: &[Right], allowed: &[&Value]) -> BTreeSet<String> {
    rights.iter().filter(|right| !allowed.iter().any(|event| right.used_by(event))).map(Right::text).collect()
}
