//! One eviction: the request, and what its answer means.

use super::PodRef;
use super::link::{bounded, chain};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, EvictParams, PostParams, Preconditions};
use kube::core::{Request, Status};
use kube::{Client, Resource};
use std::time::Duration;

/// Cause of a 429 that comes from a budget.
const BUDGET_CAUSE: &str = "DisruptionBudget";

/// Whether an eviction is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Admitted and checked against the budget, not carried out.
    DryRun,
    /// For real.
    Real,
}

/// What an eviction was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It goes, or would.
    Accepted,
    /// That pod, by its UID, does not exist any more.
    Gone,
    /// Its budget refuses; what the server said of it.
    Refused { said: String, after: Option<Duration> },
    /// It is in several budgets: never.
    SeveralBudgets { said: String },
    /// Refused for another reason.
    Denied { said: String },
    /// The server is too busy.
    Busy { said: String, after: Option<Duration> },
    /// No answer, or none that says anything of the pod.
    NoAnswer { said: String },
}

/// Asks for the eviction of one pod, of this UID and no other; the server has `limit` for it. It has to be given up by the caller.
pub(super) async fn evict(client: Client, pod: PodRef, mode: Mode, limit: Duration) -> Outcome {
    ask(client, &pod, mode, limit).await.unwrap_or_else(|said| Outcome::NoAnswer { said })
}

async fn ask(client: Client, pod: &PodRef, mode: Mode, limit: Duration) -> Result<Outcome, String> {
    let post = PostParams { dry_run: mode == Mode::DryRun, field_manager: None };
    let params = EvictParams { delete_options: None, post_options: post };
    let url = Pod::url_path(&(), Some(&pod.namespace));
    let request = Request::new(url).evict(&pod.name, &params).map_err(|error| error.to_string())?;
    // kube writes `delete_options`, which the API server does not know and drops, the UID with it: the body is ours.
    let body = serde_json::json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": { "namespace": pod.namespace, "name": pod.name },
        "deleteOptions": { "preconditions": { "uid": pod.uid } },
    });
    let body = serde_json::to_vec(&body).map_err(|error| error.to_string())?;
    let request = bounded(request.map(|_| kube::client::Body::from(body)), limit).map_err(|error| error.to_string())?;

    let response = client.send(request).await.map_err(|error| chain(&error))?;
    let code = response.status().as_u16();
    let header = response.headers().get("retry-after").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = response.into_body().collect_bytes().await.map_err(|error| chain(&error))?;
    Ok(outcome(code, header.as_deref(), &body))
}

/// What an answer means. Pure.
fn outcome(code: u16, retry_after: Option<&str>, body: &[u8]) -> Outcome {
    let status = serde_json::from_slice::<Status>(body).ok();
    let details = status.as_ref().and_then(|status| status.details.as_ref());
    let text = match &status {
        Some(status) if !status.message.is_empty() => status.message.clone(),
        Some(_) | None => String::from_utf8_lossy(body).trim().chars().take(200).collect(),
    };
    // Seconds; the other form, a date, is not used by the API server.
    let in_header = retry_after.and_then(|value| value.trim().parse::<u64>().ok());
    let in_body = details.map(|details| u64::from(details.retry_after_seconds)).filter(|seconds| *seconds > 0);
    let after = in_header.max(in_body).map(Duration::from_secs);
    match code {
        200..=299 => Outcome::Accepted,
        404 => Outcome::Gone,
        // The precondition: a pod of that name is there, and it is another one.
        409 if text.contains("UID in precondition") => Outcome::Gone,
        409 => Outcome::Busy { said: text, after },
        429 => {
            let causes = details.into_iter().flat_map(|details| &details.causes);
            let budget: Vec<_> = causes.filter(|cause| cause.reason == BUDGET_CAUSE).collect();
            if budget.is_empty() {
                return Outcome::Busy { said: text, after };
            }
            let said: Vec<_> = budget.iter().map(|cause| cause.message.as_str()).filter(|m| !m.is_empty()).collect();
            Outcome::Refused { said: if said.is_empty() { text } else { said.join("; ") }, after }
        }
        500 if text.contains("more than one PodDisruptionBudget") => Outcome::SeveralBudgets { said: text },
        500..=599 => Outcome::NoAnswer { said: format!("{code}: {text}") },
        _ => Outcome::Denied { said: format!("{code}: {text}") },
    }
}

/// Deletes one pod, of this UID and no other, with the grace that its spec asks for; the server has `limit` for it.
pub(super) async fn delete(client: Client, pod: PodRef, limit: Duration) -> Result<(), kube::Error> {
    let preconditions = Preconditions { resource_version: None, uid: Some(pod.uid.clone()) };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let request = Request::new(Pod::url_path(&(), Some(&pod.namespace))).delete(&pod.name, &params);
    client.request_text(bounded(request.map_err(kube::Error::BuildRequest)?, limit)?).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(causes: &str, seconds: u32) -> String {
        format!(
            r#"{{"kind":"Status","status":"Failure","message":"Cannot evict pod as it would violate the pod's disruption budget.",
               "reason":"TooManyRequests","code":429,"details":{{"causes":{causes},"retryAfterSeconds":{seconds}}}}}"#
        )
    }

    #[test]
    fn a_budget_is_told_from_a_busy_server() {
        let body =
            refused(r#"[{"reason":"DisruptionBudget","message":"The disruption budget web needs 2 healthy pods"}]"#, 0);
        let said = "The disruption budget web needs 2 healthy pods".to_owned();
        assert_eq!(outcome(429, None, body.as_bytes()), Outcome::Refused { said, after: None });
        let busy = outcome(429, Some("1"), b"Too many requests, please try again later.\n");
        let said = "Too many requests, please try again later.".to_owned();
        assert_eq!(busy, Outcome::Busy { said, after: Some(Duration::from_secs(1)) });
    }

    #[test]
    fn the_longer_of_header_and_body_is_the_time_to_wait() {
        let body = refused(r#"[{"reason":"DisruptionBudget","message":"still being processed"}]"#, 10);
        for (header, seconds) in [(None, 10), (Some("3"), 10), (Some("30"), 30), (Some("soon"), 10)] {
            let Outcome::Refused { after, .. } = outcome(429, header, body.as_bytes()) else { panic!("not refused") };
            assert_eq!(after, Some(Duration::from_secs(seconds)), "{header:?}");
        }
    }

    #[test]
    fn another_pod_of_the_name_counts_as_gone() {
        let body = br#"{"message":"Operation cannot be fulfilled on pods \"db-0\": Precondition failed: UID in precondition: a, UID in object meta: b","reason":"Conflict","code":409}"#;
        assert_eq!(outcome(409, None, body), Outcome::Gone);
        assert!(matches!(outcome(409, None, br#"{"message":"the object has been modified"}"#), Outcome::Busy { .. }));
    }
}
