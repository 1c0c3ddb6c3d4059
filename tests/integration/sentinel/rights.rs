//! What the account of the sentinels asked, by the audit log of a real apiserver.

use anyhow::Result;
use lab::api::Api;
use serde_json::Value;

const ACCOUNT: &str = "quorate-sentinel";

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
