//! Makes what a snapshot held of quorate harmless, before anything acts on it: it may have been taken in the middle of an upgrade, whose Jobs
//! would go on, and whose locks and marks speak of what is over. Everything here can be done again.

use crate::access::Access;
use crate::clock::Clock;
use crate::config::Config;
use crate::drain::cordon::{self, Owner, Uncordoned};
use crate::lock::kill_switch;
use crate::lock::lease::{FIELD_MANAGER, Write};
use crate::lock::{self, Leases, kured};
use crate::quiesce::{self, NoLease};
use anyhow::Context;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use quorum_safety::UnixSeconds;
use quorum_safety::lock::{LeaseView, Release, Stage};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Key of the kill switch: the CronJobs that ran before a restore suspended them.
pub(super) const SUSPENDED: &str = "suspended";
/// The label of a Job's pods.
const JOB_NAME: &str = "batch.kubernetes.io/job-name";

/// What was found and made harmless, a line each.
///
/// # Errors
/// At the first that could not be done; those before it are.
pub(super) async fn make(access: &Access, config: &Config, why: &str, clock: Clock) -> anyhow::Result<Vec<String>> {
    let client = access.live(&[]).await?;
    let namespace = access.namespace.as_str();
    let mut told = Vec::new();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    if namespaces.get_opt(namespace).await?.is_none() {
        told.push(format!("the snapshot has no namespace {namespace}: nothing of quorate was in it"));
    } else {
        told.extend(switch_off(&client, namespace, why).await?);
        told.extend(end_jobs(&client, namespace).await?);
        let leases = Leases::new(access.clone(), Vec::new(), lock::timings(config), clock);
        told.extend(free_leases(&leases, config, why, clock).await?);
        let cleared = kured::clear_stale(&leases, &config.kured, &lock::names(config)).await;
        let cleared = cleared.map_err(|why| anyhow::anyhow!("kured's lock: {why}"))?;
        told.extend(cleared.map(|block| format!("kured's lock was held by {block}: it is free")));
        let restored = quiesce::restore_left(access, config, &leases).await;
        told.extend(restored.told);
        if let Some(error) = restored.failed.into_iter().next() {
            return Err(error.into());
        }
    }
    told.extend(uncordon(access, &client, clock).await?);
    Ok(told)
}

/// The kill switch first of all, then nothing of ours is started by the clock any more. What ran is written down before it is suspended.
async fn switch_off(client: &Client, namespace: &str, why: &str) -> anyhow::Result<Vec<String>> {
    let cron_jobs: Api<CronJob> = Api::namespaced(client.clone(), namespace);
    let all = cron_jobs.list(&ListParams::default()).await.context("list the CronJobs")?.items;
    let runs = |it: &CronJob| it.spec.as_ref().is_some_and(|spec| spec.suspend != Some(true));
    let running: BTreeSet<String> =
        all.iter().filter(|it| runs(it)).filter_map(|it| it.metadata.name.clone()).collect();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let there = maps.get_opt(kill_switch::NAME).await.context("read the kill switch")?;
    let data = there.as_ref().and_then(|map| map.data.as_ref());
    let known = data.and_then(|data| data.get(SUSPENDED)).map(String::as_str).unwrap_or_default();
    let suspended: BTreeSet<String> =
        known.split(' ').filter(|name| !name.is_empty()).map(str::to_owned).chain(running.iter().cloned()).collect();
    let suspended = suspended.into_iter().collect::<Vec<_>>().join(" ");
    let mut told = Vec::new();
    match there {
        None => {
            let data =
                BTreeMap::from([("reason".to_owned(), why.to_owned()), (SUSPENDED.to_owned(), suspended.clone())]);
            let metadata = ObjectMeta { name: Some(kill_switch::NAME.to_owned()), ..ObjectMeta::default() };
            let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            maps.create(&PostParams::default(), &map).await.context("engage the kill switch")?;
            told.push("the kill switch is engaged".to_owned());
        }
        Some(_) => {
            let patch = json!({"data": {SUSPENDED: suspended}});
            maps.patch(kill_switch::NAME, &params(), &Patch::Merge(&patch)).await.context("write the kill switch")?;
            told.push("the kill switch was engaged already, and stays so".to_owned());
        }
    }
    for name in running {
        let patch = json!({"spec": {"suspend": true}});
        cron_jobs
            .patch(&name, &params(), &Patch::Merge(&patch))
            .await
            .with_context(|| format!("suspend CronJob {name}"))?;
        told.push(format!("CronJob {name} is suspended"));
    }
    Ok(told)
}

/// Jobs that had not ended go, and their pods with them at once: nothing collects what is orphaned while the controller-manager is away,
/// and a kubelet would start a pod anew that it does not know any more.
async fn end_jobs(client: &Client, namespace: &str) -> anyhow::Result<Vec<String>> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let ended = |job: &Job| {
        let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|it| matches!(it.type_.as_str(), "Complete" | "Failed") && it.status == "True")
    };
    let mut told = Vec::new();
    for job in jobs.list(&ListParams::default()).await.context("list the Jobs")?.items {
        let Some(name) = job.metadata.name.clone().filter(|_| !ended(&job)) else { continue };
        gone(jobs.delete(&name, &DeleteParams::background()).await).with_context(|| format!("delete Job {name}"))?;
        told.push(format!("Job {name} had not ended: it is deleted"));
    }
    for pod in pods.list(&ListParams::default().labels(JOB_NAME)).await.context("list the pods of Jobs")?.items {
        let over = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let Some(name) = pod.metadata.name.clone().filter(|_| !matches!(over, Some("Succeeded" | "Failed"))) else {
            continue;
        };
        let at_once = DeleteParams::default().grace_period(0);
        gone(pods.delete(&name, &at_once).await).with_context(|| format!("delete pod {name}"))?;
        told.push(format!("pod {name} had not ended: it is deleted"));
    }
    Ok(told)
}

/// Whoever held a Lease is of the past.
async fn free_leases(leases: &Leases, config: &Config, why: &str, clock: Clock) -> anyhow::Result<Vec<String>> {
    let mut told = Vec::new();
    for name in lock::names(config) {
        let seen = leases.read(&name).await?;
        let LeaseView::Held { identity, .. } = &seen.view else { continue };
        let release = Release {
            identity: identity.clone(),
            because: why.to_owned(),
            by: "quorate etcd restore".to_owned(),
            at: UnixSeconds(clock.now().as_second()),
            stage: Stage::Abandoned,
        };
        let end = clock.boottime().saturating_add(leases.request_limit());
        leases.write(&seen, &Write::Abandon(&release), end).await?;
        told.push(format!("Lease {name} was held by {identity}: it is free"));
    }
    Ok(told)
}

async fn uncordon(access: &Access, client: &Client, clock: Clock) -> anyhow::Result<Vec<String>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut told = Vec::new();
    for node in nodes.list(&ListParams::default()).await.context("list the nodes")?.items {
        let Some(name) = node.metadata.name.clone() else { continue };
        let record = match cordon::record(&node) {
            Ok(None) => continue,
            Ok(Some(record)) => record,
            Err(why) => {
                told.push(format!(
                    "{name}: whose cordon it has cannot be read ({why}): it stays; `kubectl uncordon {name}`"
                ));
                continue;
            }
        };
        let owner = Owner { operation: record.operation.clone(), identity: record.owner.clone(), adopted: true };
        match cordon::uncordon(access, &name, &owner, &NoLease(clock)).await? {
            Uncordoned::Schedulable => {
                told.push(format!("{name} was cordoned by {}: it is not any more", record.operation))
            }
            Uncordoned::StaysCordoned => {
                told.push(format!("{name} was cordoned by somebody else before {}: it stays so", record.operation));
            }
            Uncordoned::NotOurs | Uncordoned::NoSuchNode => {}
        }
    }
    Ok(told)
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

/// Deleted, or gone before.
fn gone<T>(answer: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match answer {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}
