//! The last step: everything is on target, every apiserver serves, nothing of ours is left behind.

use crate::lock;
use crate::observe::cluster::within;
use crate::report::{Outcome, Report};
use crate::seen::Seen;
use crate::upgrade::chain::{Chain, End, end};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};
use quorum_safety::{Cordon, Fact, InFlight, Kured, Lock, Mine};
use std::time::Duration;

/// How long to wait until what has just restarted is Ready everywhere.
const SETTLE: Duration = Duration::from_secs(180);

/// Checks until all is well, or says what is not.
///
/// # Errors
/// When the record cannot be read.
pub async fn run(chain: &Chain<'_>) -> anyhow::Result<End> {
    let until = chain.clock.boottime() + SETTLE;
    loop {
        let seen = chain.look(Mine::Nothing).await;
        let (fleet, plan) = match chain.plan(&seen).await? {
            Ok(planned) => planned,
            Err(stop) => return Ok(stop),
        };
        if let Some(left) = plan.steps.first() {
            let next = chain.start_next(&seen, &plan).await?;
            return Ok(chain.goes_on(&format!("{} is not on {} after all", left.node, chain.to), next));
        }
        let wrong = wrong(chain, &seen).await;
        if wrong.is_empty() {
            let summary = format!("all {} nodes are on {}", fleet.nodes.len(), chain.to);
            chain.say(&format!("postflight: {summary}"));
            return Ok(end(Outcome::Ok, summary));
        }
        if chain.clock.boottime() >= until {
            let summary = format!("all nodes are on {}, but not everything is well", chain.to);
            return Ok(Report::with_blockers(Outcome::Midway, summary, &[], &wrong));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

async fn wrong(chain: &Chain<'_>, seen: &Seen) -> Vec<String> {
    let mut wrong = seen_wrong(seen, &chain.operation());
    wrong.extend(chain.restore_left().await.iter().map(ToString::to_string));
    let nodes = seen.observation.nodes.known().map(Vec::as_slice).unwrap_or_default();
    for node in nodes.iter().filter(|node| node.control_plane) {
        if let Some(address) = node.address.known()
            && let Err(why) = livez(chain, address).await
        {
            wrong.push(format!("apiserver of {}: /livez: {why}", node.name));
        }
    }
    match chain.access.live(&[]).await {
        Ok(client) => wrong.extend(dns(&client, chain.config.times.answer.get()).await.err()),
        Err(error) => wrong.push(error.to_string()),
    }
    wrong
}

/// What is not well by what was seen: nodes, control plane pods, apiservers, marks and locks of the operation that are left.
fn seen_wrong(seen: &Seen, operation: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let nodes = match &seen.observation.nodes {
        Fact::Known(nodes) => nodes.as_slice(),
        Fact::Unknown(why) => {
            wrong.push(format!("the nodes are not known: {why}"));
            &[]
        }
    };
    for node in nodes {
        if node.ready != Fact::Known(true) {
            wrong.push(format!("{} is not Ready", node.name));
        }
        if node.cordon == Cordon::Ours(operation.to_owned()) {
            wrong.push(format!("{} is still cordoned by {operation}", node.name));
        }
        match &node.static_pods {
            Fact::Known(pods) => wrong.extend(
                pods.iter()
                    .filter(|pod| !pod.ready)
                    .map(|pod| format!("{} of {} is not ready", pod.component.name(), node.name)),
            ),
            Fact::Unknown(why) => wrong.push(format!("static pods of {}: {why}", node.name)),
        }
    }
    for server in &seen.observation.apiservers {
        match &server.ready {
            Fact::Known(true) => {}
            Fact::Known(false) => wrong.push(format!("apiserver of {}: /readyz is not ok", server.node)),
            Fact::Unknown(why) => wrong.push(format!("apiserver of {}: {why}", server.node)),
        }
    }
    wrong.extend(locks(&seen.in_flight, operation));
    wrong
}

/// What of the locks still names this operation, or cannot be read.
fn locks(in_flight: &InFlight, operation: &str) -> Vec<String> {
    let mut left = Vec::new();
    let mut look = |name: &str, lock: &Lock| match lock {
        Lock::Held(holder) if holder.operation == operation => {
            left.push(format!("Lease {name} is still held for {}", holder.target));
        }
        Lock::Held(_) | Lock::Free => {}
    };
    let mut unknown = Vec::new();
    match &in_flight.control_plane {
        Fact::Known(lock) => look(lock::CONTROL_PLANE, lock),
        Fact::Unknown(why) => unknown.push(format!("Lease {}: {why}", lock::CONTROL_PLANE)),
    }
    match &in_flight.workers {
        Fact::Known(slots) => (0..).zip(slots).for_each(|(slot, lock)| look(&lock::worker(slot), lock)),
        Fact::Unknown(why) => unknown.push(format!("the Leases of workers: {why}")),
    }
    match &in_flight.kured {
        Fact::Known(Kured::Held(by)) if *by == format!("quorate/{operation}") => {
            left.push(format!("kured's lock is still held by {by}"));
        }
        Fact::Known(_) => {}
        Fact::Unknown(why) => unknown.push(format!("kured's lock: {why}")),
    }
    left.extend(unknown);
    left
}

async fn livez(chain: &Chain<'_>, address: &str) -> Result<(), String> {
    let client = chain.access.client_at(address).map_err(|error| error.to_string())?;
    let request = http::Request::get("/livez").body(Vec::new()).map_err(|error| error.to_string())?;
    within(chain.config.times.answer.get(), client.request_text(request)).await.map(|_| ())
}

/// Cluster DNS, where there is one: the Service kube-dns has an address that is ready.
async fn dns(client: &Client, limit: Duration) -> Result<(), String> {
    let services: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    if within(limit, services.get_opt("kube-dns")).await?.is_none() {
        return Ok(());
    }
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "kube-system");
    let params = ListParams::default().labels("kubernetes.io/service-name=kube-dns");
    let list = within(limit, slices.list(&params)).await?;
    let ready = list
        .items
        .iter()
        .flat_map(|slice| slice.endpoints.iter())
        .any(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true));
    if ready { Ok(()) } else { Err("cluster DNS: Service kube-system/kube-dns has no ready endpoint".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::fixture::{Cluster, healthy, unknown};
    use quorum_safety::{Component, Holder};

    const OPERATION: &str = "upgrade-v1.36.3";

    fn said(cluster: Cluster) -> String {
        seen_wrong(&Seen { observation: cluster.seen, in_flight: cluster.in_flight }, OPERATION).join("; ")
    }

    /// Each row breaks one thing.
    #[test]
    fn what_is_not_well_is_said() {
        let of_k2 = |change: fn(&mut quorum_safety::NodeView)| said(healthy(3).on_node("k2", change));
        let with = |change: fn(&mut Cluster)| said(healthy(3).with(change));
        let held = |operation: &str| {
            let holder = Holder { identity: "me".to_owned(), operation: operation.to_owned(), target: "k2".into() };
            Fact::Known(Lock::Held(holder))
        };
        let lease = |operation: &str| said(healthy(3).with(|it| it.in_flight.control_plane = held(operation)));
        for (said, wanted) in [
            (said(healthy(3)), ""),
            (of_k2(|node| node.ready = Fact::Known(false)), "k2 is not Ready"),
            (of_k2(|node| node.ready = unknown()), "k2 is not Ready"),
            (of_k2(|node| node.cordon = Cordon::Ours(OPERATION.to_owned())), "k2 is still cordoned by upgrade-v1.36.3"),
            // Somebody else's.
            (of_k2(|node| node.cordon = Cordon::Foreign), ""),
            (of_k2(|node| node.static_pods = unknown()), "static pods of k2: no answer within 3 s"),
            (
                of_k2(|node| {
                    if let Fact::Known(pods) = &mut node.static_pods {
                        pods.iter_mut()
                            .filter(|pod| pod.component == Component::Scheduler)
                            .for_each(|pod| pod.ready = false);
                    }
                }),
                "kube-scheduler of k2 is not ready",
            ),
            (with(|it| it.seen.nodes = unknown()), "the nodes are not known: no answer within 3 s"),
            (
                said(healthy(3).on_apiserver(2, |server| server.ready = Fact::Known(false))),
                "apiserver of k2: /readyz is not ok",
            ),
            (
                said(healthy(3).on_apiserver(2, |server| server.ready = unknown())),
                "apiserver of k2: no answer within 3 s",
            ),
            (lease(OPERATION), "Lease control-plane-disruption is still held for k2"),
            (lease("reboot"), ""),
            (with(|it| it.in_flight.control_plane = unknown()), "Lease control-plane-disruption: no answer within 3 s"),
            (with(|it| it.in_flight.workers = unknown()), "the Leases of workers: no answer within 3 s"),
            (
                with(|it| it.in_flight.kured = Fact::Known(Kured::Held(format!("quorate/{OPERATION}")))),
                "kured's lock is still held by quorate/upgrade-v1.36.3",
            ),
            (with(|it| it.in_flight.kured = Fact::Known(Kured::Held("k3".to_owned()))), ""),
            (with(|it| it.in_flight.kured = unknown()), "kured's lock: no answer within 3 s"),
        ] {
            assert_eq!(said, wanted);
        }
    }
}
