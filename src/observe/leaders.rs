//! Whether somebody leads among controller-managers and schedulers: their Leases in kube-system, renewed in time.

use crate::access::Access;
use crate::clock::Clock;
use crate::observe::cluster::within;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use quorum_safety::UnixSeconds;
use quorum_safety::recovery::LeaderLeases;
use std::time::Duration;

/// Reads both, each request with its own deadline.
pub async fn observe(access: &Access, clock: Clock, deadline: Duration) -> LeaderLeases {
    let read = async |name: &str| -> Result<bool, String> {
        let client = access.live(&[]).await.map_err(|error| error.to_string())?;
        let leases: Api<Lease> = Api::namespaced(client, "kube-system");
        let lease = within(deadline, leases.get(name)).await;
        lease.and_then(|lease| held(&lease, clock.unix())).map_err(|why| format!("Lease kube-system/{name}: {why}"))
    };
    let (controller_manager, scheduler) = tokio::join!(read("kube-controller-manager"), read("kube-scheduler"));
    LeaderLeases { controller_manager: controller_manager.into(), scheduler: scheduler.into() }
}

/// Whether somebody holds it and has renewed it in time.
fn held(lease: &Lease, now: UnixSeconds) -> Result<bool, String> {
    let spec = lease.spec.as_ref().ok_or("it has no spec")?;
    let renewed = spec.renew_time.as_ref().ok_or("it was never renewed")?;
    // Another node's clock wrote it: twice the duration leaves room for skew, and a dead leader is out of it all the same.
    let room = i64::from(spec.lease_duration_seconds.ok_or("it has no duration")?) * 2;
    let age = now.0.saturating_sub(renewed.0.as_second());
    // It would look as if it were held for so long, whoever has died since.
    if age < -room {
        return Err(format!("it was renewed {} s in the future: one of the clocks is wrong", age.unsigned_abs()));
    }
    Ok(age <= room && spec.holder_identity.as_ref().is_some_and(|holder| !holder.is_empty()))
}
