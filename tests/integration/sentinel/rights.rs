//! What the account of the sentinels may do and never did (incident R03), by the word of the real authorizer: in the audit log it names the
//! binding that allowed each request.

use crate::manifests::with_component;
use crate::rights::{Right, given, unused_of};
use anyhow::{Result, ensure};
use lab::api::Api;
use serde_json::Value;

const ACCOUNT: &str = "quorate-sentinel";

/// Rights that the test may do without, each with what needs it.
const ELSEWHERE: [(&str, &str); 4] = [
    ("quorate-sentinel: create configmaps in quorate", "the first observation: a patch that makes the object"),
    (
        "quorate-sentinel: get configmaps kubeadm-config in kube-system",
        "proven recovery where `loadBalancer` is `balances`",
    ),
    ("quorate-sentinel: get daemonsets", "a configuration that names kured's DaemonSet"),
    (
        "quorate-sentinel: list endpointslices in default",
        "the way to the apiservers from inside a pod; the test's process is no pod",
    ),
];

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
    let own = |right: &Right| right.text().starts_with(&format!("{ACCOUNT}: "));
    let given: Vec<Right> = given(&with_component("sentinel")).into_iter().filter(own).collect();
    for (right, what_for) in ELSEWHERE {
        ensure!(given.iter().any(|one| one.text() == right), "{right} ({what_for}) is not given any more");
    }
    let unused = unused_of(&given, &ours).into_iter();
    Ok(unused.filter(|right| !ELSEWHERE.iter().any(|(elsewhere, _)| elsewhere == right)).collect())
}
