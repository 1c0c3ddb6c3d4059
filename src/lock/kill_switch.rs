//! The kill switch: a ConfigMap that anybody with kubectl makes in seconds (incident R31).

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use quorum_safety::{Fact, KillSwitch};
use std::time::Duration;

/// Name of the ConfigMap; that it exists means engaged.
pub const NAME: &str = "quorate-kill-switch";

/// Reads it. Only the API server's "not found" means off: whatever else went wrong is unknown, and that counts as engaged.
pub async fn read(client: &Client, namespace: &str, limit: Duration) -> Fact<KillSwitch> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    match tokio::time::timeout(limit, api.get_opt(NAME)).await {
        Ok(Ok(None)) => Fact::Known(KillSwitch::Off),
        Ok(Ok(Some(map))) => {
            let reason = map.data.as_ref().and_then(|data| data.get("reason")).cloned();
            Fact::Known(KillSwitch::Engaged(reason.unwrap_or_else(|| "no reason was given".to_owned())))
        }
        Ok(Err(error)) => Fact::Unknown(super::lease::said(&error)),
        Err(_) => Fact::Unknown(format!("ConfigMap {NAME}: no answer in {limit:?}")),
    }
}
