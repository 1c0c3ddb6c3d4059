//! The rights that a sentinel will need, asked of the API server before they are needed (incidents R25, R26): what is missing is told
//! while nothing depends on it.

use super::look::Look;
use super::reason::{Code, Reason};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use std::time::Duration;

/// One right: verb, group, resource, namespace, name.
struct Right<'a>(&'a str, &'a str, &'a str, Option<&'a str>, Option<&'a str>);

/// Asks for all of them, in quorate's namespace and in that of the sentinels' pods; what cannot be asked is lacking.
///
/// # Errors
/// What is lacking, in one line.
pub async fn all(
    look: &Look,
    (namespace, pods): (&str, &str),
    (control_plane, node): (bool, &str),
    limit: Duration,
) -> Result<(), Reason> {
    let mut needed = vec![
        Right("patch", "", "nodes", None, Some(node)),
        Right("get", "", "pods", Some(pods), None),
        Right("get", "", "configmaps", Some(namespace), None),
        Right("get", "coordination.k8s.io", "leases", Some(namespace), None),
        Right("create", "coordination.k8s.io", "leases", Some(namespace), None),
        Right("update", "coordination.k8s.io", "leases", Some(namespace), None),
        Right("create", "events.k8s.io", "events", Some("default"), None),
    ];
    if control_plane {
        needed.extend([
            Right("list", "", "pods", Some("kube-system"), None),
            Right("get", "coordination.k8s.io", "leases", Some("kube-system"), Some("kube-scheduler")),
        ]);
    }
    let kured = look.kured.as_ref().ok().and_then(Option::as_ref).map(|kured| kured.found.namespace.as_str());
    if let Some(kured) = kured {
        needed.extend([Right("list", "", "pods", Some(kured), None), Right("delete", "", "pods", Some(kured), None)]);
    }
    let mut lacking = Vec::new();
    for right in &needed {
        if let Err(why) = allowed(&look.client, right, limit).await {
            let Right(verb, group, resource, namespace, name) = right;
            let dot = if group.is_empty() { "" } else { "." };
            let of = name.map_or_else(String::new, |name| format!(" {name}"));
            let place = namespace.map_or_else(String::new, |namespace| format!(" in {namespace}"));
            lacking.push(format!("{verb} {resource}{dot}{group}{of}{place}: {why}"));
        }
    }
    if lacking.is_empty() { Ok(()) } else { Err(Reason::new(Code::NotAllowed, lacking.join("; "))) }
}

/// Whether they have to be asked for: nobody has, or kured is in another namespace than it was then.
pub fn to_be_asked(asked: Option<&Option<String>>, kureds: Option<&str>) -> bool {
    asked.is_none_or(|asked| kureds.is_some_and(|kureds| asked.as_deref() != Some(kureds)))
}

async fn allowed(client: &Client, right: &Right<'_>, limit: Duration) -> Result<(), String> {
    let Right(verb, group, resource, namespace, name) = right;
    let owned = |text: &Option<&str>| text.map(str::to_owned);
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some((*verb).to_owned()),
                group: Some((*group).to_owned()),
                resource: Some((*resource).to_owned()),
                namespace: owned(namespace),
                name: owned(name),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = crate::observe::cluster::within(limit, api.create(&PostParams::default(), &review)).await?;
    match answer.status {
        Some(status) if status.allowed => Ok(()),
        Some(_) | None => Err("not allowed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r25_the_rights_are_asked_again_when_kured_is_in_another_namespace() {
        let kured = |namespace: &str| Some(namespace.to_owned());
        assert!(to_be_asked(None, None) && to_be_asked(None, Some("kured")));
        assert!(to_be_asked(Some(&None), Some("kured")), "there was none");
        assert!(!to_be_asked(Some(&kured("kured")), Some("kured")));
        assert!(to_be_asked(Some(&kured("kube-system")), Some("kured")));
        assert!(!to_be_asked(Some(&kured("kured")), None), "there is none to be ended");
    }
}
