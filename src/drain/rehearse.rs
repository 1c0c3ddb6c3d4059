//! The rehearsal: what a drain would meet, found out without changing anything.

use super::eviction::{Mode, Outcome, evict};
use super::filters::{self, Fate, Skipped};
use super::link::Link;
use super::{BlockKind, Blocker, DrainError, Options, PodRef, budget, pod_ref};
use crate::access::Access;
use futures::stream::{FuturesUnordered, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long a rehearsal may take; it may be repeated at will.
const REHEARSAL: Duration = Duration::from_secs(120);
/// How often a dry run that was not answered is asked again.
const TRIES: usize = 3;

/// What a drain of a node would do, and what stands in its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rehearsal {
    /// The node.
    pub node: String,
    /// The pods that would go, by namespace and name.
    pub pods: Vec<Departing>,
    /// The pods that would stay, which is in order.
    pub skipped: Vec<Skipped>,
    /// What stands in the way, by namespace and name; some of it only makes the drain slower.
    pub blockers: Vec<Blocker>,
}

impl Rehearsal {
    /// What would keep the drain from ending; empty when it may begin.
    pub fn stopping(&self) -> Vec<&Blocker> {
        self.blockers.iter().filter(|blocker| blocker.kind.stops()).collect()
    }
}

/// A pod that would go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Departing {
    /// The pod.
    pub pod: PodRef,
    /// What brings it back, as `Kind/name`; none for a finished pod or one that is gone for good.
    pub controller: Option<String>,
    /// Its emptyDir volumes: their data goes with it.
    pub empty_dirs: Vec<String>,
}

/// Asks for the eviction of every pod that would go as a dry run, and counts the pods of each budget. Changes nothing.
///
/// # Errors
/// When the pods, their DaemonSets or their budgets cannot be read. A refusal is not an error: it is in the rehearsal.
pub async fn rehearse(access: &Access, node: &str, options: &Options) -> Result<Rehearsal, DrainError> {
    let until = Instant::now() + REHEARSAL + options.settle;
    let settled = Instant::now() + options.settle;
    let mut link = Link::new(access, options.request);
    let (mut rehearsal, going) = loop {
        let (rehearsal, going) = sort(&mut link, node, options, until).await?;
        let own = options.own_uid.as_ref();
        let ending = |blocker: &Blocker| blocker.kind == BlockKind::OwnActor && own != Some(&blocker.pod.uid);
        if Instant::now() >= settled || !rehearsal.blockers.iter().any(ending) {
            break (rehearsal, going);
        }
        tokio::time::sleep(options.poll).await;
    };

    let namespaces: BTreeSet<&str> = going.iter().map(|(pod, _)| pod.namespace.as_str()).collect();
    let budgets = link.budgets(&namespaces, until).await?;
    let borrowed: Vec<(&PodRef, &Pod)> = going.iter().map(|(reference, pod)| (reference, pod)).collect();
    let counted = budget::count(&borrowed, &budgets, |namespace| options.policy(namespace));
    let mut counted: BTreeMap<PodRef, Blocker> =
        counted.into_iter().map(|blocker| (blocker.pod.clone(), blocker)).collect();

    let answers = dry_runs(&mut link, going.iter().map(|(pod, _)| pod.clone()).collect(), options).await;
    for (reference, pod) in &going {
        let answer = answers.get(reference);
        if answer == Some(&Outcome::Gone) {
            counted.remove(reference);
            continue;
        }
        rehearsal.pods.push(Departing {
            pod: reference.clone(),
            controller: filters::controller(pod).map(|owner| format!("{}/{}", owner.kind, owner.name)),
            empty_dirs: filters::empty_dirs(pod),
        });
        let names = || budget::names(&budget::of(pod, &budgets));
        // The count comes first: it knows whether waiting helps, which the server does not say.
        let blocker = counted.remove(reference).or_else(|| {
            let (kind, reason) = refusal(answer)?;
            Some(Blocker { pod: reference.clone(), budget: names(), kind, reason })
        });
        rehearsal.blockers.extend(blocker);
    }
    rehearsal.skipped.sort();
    rehearsal.blockers.sort();
    Ok(rehearsal)
}

/// Who goes, who stays and who stands in the way by the filters alone.
async fn sort(
    link: &mut Link<'_>,
    node: &str,
    options: &Options,
    until: Instant,
) -> Result<(Rehearsal, Vec<(PodRef, Pod)>), DrainError> {
    let pods = link.pods(node, until).await?;
    let mut daemon_sets = BTreeMap::new();
    link.daemon_sets(&pods, &mut daemon_sets, until).await;
    let mut rehearsal =
        Rehearsal { node: node.to_owned(), pods: Vec::new(), skipped: Vec::new(), blockers: Vec::new() };
    let mut going = Vec::new();
    for (pod, fate) in link.fates(&pods, &daemon_sets, options) {
        let reference = reference(pod, node)?;
        match fate {
            Fate::Evict => going.push((reference, pod.clone())),
            Fate::Skip(reason) => rehearsal.skipped.push(Skipped { pod: reference, reason }),
            Fate::Block(kind, reason) => {
                rehearsal.blockers.push(Blocker { pod: reference, budget: None, kind, reason });
            }
        }
    }
    going.sort_by(|a, b| a.0.cmp(&b.0));
    Ok((rehearsal, going))
}

/// What an answer to a dry run says of the real one; none when nothing speaks against it.
fn refusal(answer: Option<&Outcome>) -> Option<(BlockKind, String)> {
    match answer {
        Some(Outcome::Accepted | Outcome::Gone) => None,
        Some(Outcome::Refused { said, .. }) => Some((BlockKind::BudgetExhausted, said.clone())),
        Some(Outcome::SeveralBudgets { said }) => Some((BlockKind::SeveralBudgets, said.clone())),
        Some(Outcome::Denied { said }) => {
            Some((BlockKind::Denied, format!("the API server refuses its eviction: {said}")))
        }
        Some(Outcome::Busy { said, .. } | Outcome::NoAnswer { said }) => {
            Some((BlockKind::Unknown, format!("whether it may be evicted is not known: {said}")))
        }
        None => Some((BlockKind::Unknown, "whether it may be evicted was not asked".to_owned())),
    }
}

/// The answers to a dry-run eviction of each pod.
async fn dry_runs(link: &mut Link<'_>, pods: Vec<PodRef>, options: &Options) -> BTreeMap<PodRef, Outcome> {
    let mut answers = BTreeMap::new();
    let mut left = pods;
    for attempt in 1..=TRIES {
        let client = match link.client().await {
            Ok(client) => client,
            Err(said) => {
                answers.extend(left.iter().map(|pod| (pod.clone(), Outcome::NoAnswer { said: said.clone() })));
                continue;
            }
        };
        let mut waiting = left.drain(..);
        let mut asked = FuturesUnordered::new();
        let mut again = Vec::new();
        let ask = |pod: PodRef| {
            let client = client.clone();
            async move {
                let limit = options.request;
                let asked = timeout(limit, evict(client, pod.clone(), Mode::DryRun, limit)).await;
                let silent = |_| Outcome::NoAnswer { said: format!("no answer in {} s", limit.as_secs()) };
                (pod, asked.unwrap_or_else(silent))
            }
        };
        asked.extend(waiting.by_ref().take(options.parallel.max(1)).map(ask));
        while let Some((pod, outcome)) = asked.next().await {
            asked.extend(waiting.next().map(ask));
            if matches!(outcome, Outcome::Busy { .. } | Outcome::NoAnswer { .. }) {
                again.push(pod.clone());
            }
            answers.insert(pod, outcome);
        }
        drop(waiting);
        left = again;
        if left.is_empty() {
            break;
        }
        link.lost();
        if attempt < TRIES {
            tokio::time::sleep(longest_wait(&left, &answers)).await;
        }
    }
    answers
}

/// How long busy servers asked us to wait, within reason; at least a second.
fn longest_wait(pods: &[PodRef], answers: &BTreeMap<PodRef, Outcome>) -> Duration {
    let asked = pods.iter().filter_map(|pod| match answers.get(pod) {
        Some(Outcome::Busy { after, .. }) => *after,
        _ => None,
    });
    asked.max().unwrap_or_default().clamp(Duration::from_secs(1), Duration::from_secs(10))
}

/// A pod's name and UID, which the API always sends.
pub(super) fn reference(pod: &Pod, node: &str) -> Result<PodRef, DrainError> {
    pod_ref(pod).ok_or_else(|| DrainError::Api {
        what: format!("list the pods of node {node}"),
        said: "a pod without namespace, name or UID".to_owned(),
    })
}
