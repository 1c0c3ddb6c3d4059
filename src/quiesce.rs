//! Workloads that are at zero while a control plane node is worked on, and have their replicas back afterwards (incidents R04, R13).
//!
//! Whoever holds the Lease of the control plane may scale them to zero, and restores every workload that has our mark, whoever made
//! it; where nobody holds that Lease, whoever looks may restore. Mark and zero are one PATCH with the resourceVersion that was read:
//! there is none without the other, and of two that decide at the same time only one succeeds.

use crate::access::{ATTEMPT, Access};
use crate::clock::Clock;
use crate::config::{Config, Workload, WorkloadKind};
use crate::drain::link::{Failure, Link, bounded};
use crate::lock::{self, Fence, Leases};
use crate::observe::cluster::complete;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, Request};
use kube::{Api, Resource};
use plan::{Change, MARK, Quiesce, Restore, Seen};
use quorum_safety::Fact;
use quorum_safety::lock::TooLate;
use std::time::Duration;
use tokio::time::Instant;

pub mod plan;

/// How often a conflict is met with another look. The controllers write to a workload too.
const ATTEMPTS: usize = 8;
/// How long to look for an answer, if the fence leaves as much.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a workload could not be scaled. What was done is safe to do again.
#[derive(Debug, thiserror::Error)]
pub enum QuiesceError {
    /// The API could not be asked, or answered something unexpected.
    #[error("cannot {what}: {said}")]
    Api {
        /// What was asked.
        what: String,
        /// The last answer.
        said: String,
    },
    /// The API refuses it for good, such as by a webhook.
    #[error("cannot {what}: {said}")]
    Refused {
        /// What was asked.
        what: String,
        /// The answer.
        said: String,
    },
    /// The account lacks a right.
    #[error("cannot {what}: {said}; `upgrade.quiesce` needs the rights of kustomize/components/quiesce")]
    Denied {
        /// What was asked.
        what: String,
        /// The last answer.
        said: String,
    },
    /// Its mark cannot be read: a hand is needed, which is named.
    #[error("{0}")]
    Hand(String),
    /// Somebody else changed it each time that we tried.
    #[error("{workload} was changed by somebody else whenever it was to be written")]
    Contended {
        /// The workload.
        workload: Workload,
    },
}

impl QuiesceError {
    /// Whether it is not known what is so, rather than known that it does not go.
    pub const fn is_unknown(&self) -> bool {
        match self {
            Self::Api { .. } => true,
            Self::Refused { .. } | Self::Denied { .. } | Self::Hand(_) | Self::Contended { .. } => false,
        }
    }
}

/// What quiescing would meet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rehearsal {
    /// What would be done, a line each.
    pub told: Vec<String>,
    /// What stands in the way, a line each.
    pub blockers: Vec<String>,
}

/// What came of restoring.
#[derive(Debug, Default)]
#[must_use]
pub struct Restored {
    /// What was done, a line each.
    pub told: Vec<String>,
    /// Why others are still at zero, or it is not known.
    pub failed: Vec<QuiesceError>,
}

/// Asks for every scale of the configuration as a dry run. Changes nothing.
///
/// # Errors
/// When there is no answer. A refusal is not an error: it is in the rehearsal.
pub async fn rehearse(access: &Access, config: &Config, clock: Clock) -> Result<Rehearsal, QuiesceError> {
    let fence = NoLease(clock);
    let mut hand = Hand::new(access, &fence)?;
    let mut rehearsal = Rehearsal::default();
    // A mark that cannot be read would keep the first node from going back into service.
    match hand.marked(config).await {
        Ok(marked) => rehearsal.blockers.extend(marked.iter().filter_map(|seen| plan::restore(seen).err())),
        Err(error) if error.is_unknown() => return Err(error),
        Err(error) => rehearsal.blockers.push(error.to_string()),
    }
    for workload in &config.upgrade.quiesce {
        match hand.quiesce(workload, "rehearsal", clock.now(), Mode::DryRun).await {
            Ok(told) => rehearsal.told.push(told),
            Err(error) if error.is_unknown() => return Err(error),
            Err(error) => rehearsal.blockers.push(error.to_string()),
        }
    }
    rehearsal.blockers.sort();
    rehearsal.blockers.dedup();
    Ok(rehearsal)
}

/// Scales every workload of the configuration to zero, once however often it is called; says what was done, a line each. `holder` is the
/// identity in the Lease of the control plane, whose guard is `fence`: it is asked right before each PATCH. `now` is for people.
///
/// # Errors
/// At the first that could not be scaled; those before it are at zero, and [`restore`] takes them back.
pub async fn quiesce(
    access: &Access,
    config: &Config,
    holder: &str,
    now: Timestamp,
    fence: &impl Fence,
) -> Result<Vec<String>, QuiesceError> {
    let mut hand = Hand::new(access, fence)?;
    let mut told = Vec::new();
    for workload in &config.upgrade.quiesce {
        told.push(hand.quiesce(workload, holder, now, Mode::InEarnest).await?);
    }
    Ok(told)
}

/// Gives every workload with our mark its replicas back, under the Lease of the control plane. One that fails keeps none of the others.
pub async fn restore(access: &Access, config: &Config, fence: &impl Fence) -> Restored {
    let mut restored = Restored::default();
    let mut hand = match Hand::new(access, fence) {
        Ok(hand) => hand,
        Err(error) => {
            restored.failed.push(error);
            return restored;
        }
    };
    match hand.marked(config).await {
        Ok(marked) => {
            for seen in marked {
                match hand.restore(seen).await {
                    Ok(told) => restored.told.extend(told),
                    Err(error) => restored.failed.push(error),
                }
            }
        }
        Err(error) => restored.failed.push(error),
    }
    restored
}

/// The same for what was left at zero although nobody holds the Lease of the control plane. To be asked only where nothing is half done:
/// whoever finishes that restores them too.
pub async fn restore_left(access: &Access, config: &Config, leases: &Leases) -> Restored {
    let mut restored = Restored::default();
    if let Err(error) = restore_without_holder(access, config, leases, &mut restored).await {
        restored.failed.push(error);
    }
    restored
}

async fn restore_without_holder(
    access: &Access,
    config: &Config,
    leases: &Leases,
    restored: &mut Restored,
) -> Result<(), QuiesceError> {
    let fence = NoLease(leases.clock);
    let mut hand = Hand::new(access, &fence)?;
    // The workloads before the holder: one that takes the Lease after this look writes its own name into the mark, and our write fails.
    let marked = hand.marked(config).await?;
    if marked.is_empty() {
        return Ok(());
    }
    match leases.holders(&[lock::CONTROL_PLANE.to_owned()]).await {
        Fact::Known(holders) if holders.is_empty() => {}
        Fact::Known(_) => return Ok(()),
        Fact::Unknown(said) => return Err(QuiesceError::Api { what: "see who holds the Leases".to_owned(), said }),
    }
    for seen in marked {
        match hand.restore_once(&seen).await {
            Ok(Some(told)) => restored.told.push(format!("{told}: its mark was left without a Lease")),
            Ok(None) => restored.failed.push(QuiesceError::Contended { workload: seen.workload }),
            Err(error) => restored.failed.push(error),
        }
    }
    Ok(())
}

/// What is at zero for us now, a line each, for people.
pub async fn seen(access: &Access, config: &Config, clock: Clock) -> Fact<Vec<String>> {
    let fence = NoLease(clock);
    let limit = config.times.answer.get();
    let marked = match tokio::time::timeout(limit, async { Hand::new(access, &fence)?.marked(config).await }).await {
        Ok(marked) => marked,
        Err(_) => return Fact::Unknown(format!("no answer in {} s", limit.as_secs_f32())),
    };
    let line = |seen: &Seen| match (seen.record(), seen.replicas) {
        (Ok(Some(record)), 0) => format!("{} (from {}, by {})", seen.workload, record.replicas, record.holder),
        (Err(_), 0) => format!("{} (its mark cannot be read)", seen.workload),
        (_, replicas) => format!("{} (scaled to {replicas} by somebody else meanwhile)", seen.workload),
    };
    marked.map(|marked| marked.iter().map(line).collect()).into()
}

/// For writes that need no Lease, since a resourceVersion alone makes them safe.
pub(crate) struct NoLease(pub(crate) Clock);

impl Fence for NoLease {
    fn clock(&self) -> Clock {
        self.0
    }

    fn left(&self) -> Result<Duration, TooLate> {
        Ok(PATIENCE)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    DryRun,
    InEarnest,
}

/// What reads and writes workloads.
struct Hand<'a, F> {
    link: Link<'a>,
    fence: &'a F,
    /// When looking ends; writing ends at the fence.
    until: Instant,
}

impl<'a, F: Fence> Hand<'a, F> {
    fn new(access: &'a Access, fence: &'a F) -> Result<Self, QuiesceError> {
        let late = |late: TooLate| QuiesceError::Api { what: "scale anything".to_owned(), said: late.to_string() };
        let patience = fence.left().map_err(late)?.min(PATIENCE);
        Ok(Self { link: Link::new(access, ATTEMPT), fence, until: Instant::now() + patience })
    }

    /// Scales one to zero, and says what came of it.
    async fn quiesce(
        &mut self,
        workload: &Workload,
        holder: &str,
        now: Timestamp,
        mode: Mode,
    ) -> Result<String, QuiesceError> {
        for _ in 0..ATTEMPTS {
            let Some(seen) = self.look(workload).await? else {
                return Ok(format!(
                    "{workload}, which `upgrade.quiesce` names, does not exist: there is nothing to scale"
                ));
            };
            let down = |replicas| format!("{workload}: scaled from {replicas} to zero for the time being");
            let record = match plan::quiesce(&seen, holder, now).map_err(QuiesceError::Hand)? {
                Quiesce::AtZero => return Ok(format!("{workload}: at zero before, and left alone")),
                Quiesce::Done(record) => return Ok(down(record.replicas)),
                Quiesce::Write(record) => record,
            };
            let replicas = record.replicas;
            if self.write(&seen, &Change { record: Some(record), replicas: Some(0) }, mode).await? {
                return Ok(match mode {
                    Mode::InEarnest => down(replicas),
                    Mode::DryRun => format!("{workload} would be scaled from {replicas} to zero"),
                });
            }
        }
        Err(QuiesceError::Contended { workload: workload.clone() })
    }

    /// Gives one back its replicas, and says what came of it; nothing when it is gone.
    async fn restore(&mut self, mut seen: Seen) -> Result<Option<String>, QuiesceError> {
        for _ in 0..ATTEMPTS {
            if let Some(told) = self.restore_once(&seen).await? {
                return Ok(Some(told));
            }
            seen = match self.look(&seen.workload).await? {
                Some(seen) => seen,
                None => return Ok(None),
            };
        }
        Err(QuiesceError::Contended { workload: seen.workload })
    }

    /// The same in one attempt; nothing when it was not as it was seen.
    async fn restore_once(&mut self, seen: &Seen) -> Result<Option<String>, QuiesceError> {
        let workload = &seen.workload;
        let (replicas, told) = match plan::restore(seen).map_err(QuiesceError::Hand)? {
            Restore::Scale(replicas) => (Some(replicas.get()), format!("{workload}: scaled back to {replicas}")),
            Restore::Unmark => {
                (None, format!("{workload}: scaled to {} by somebody else meanwhile, and stays so", seen.replicas))
            }
            // A write of ours that was not answered.
            Restore::Nothing => {
                return Ok(Some(format!("{workload}: its mark is gone, and it has {} replicas", seen.replicas)));
            }
        };
        let written = self.write(seen, &Change { record: None, replicas }, Mode::InEarnest).await?;
        Ok(written.then_some(told))
    }

    async fn look(&mut self, workload: &Workload) -> Result<Option<Seen>, QuiesceError> {
        let Workload { namespace, name, kind } = workload;
        let of = resource(*kind);
        let request = async |client| Api::<DynamicObject>::namespaced_with(client, namespace, &of).get_opt(name).await;
        let failed = |failure| failed(format!("read {workload}"), failure);
        let found = self.link.answer(self.until, request).await.map_err(failed)?;
        let unexpected = |said| QuiesceError::Api { what: format!("read {workload}"), said };
        found.map(|object| Seen::of(*kind, &object)).transpose().map_err(unexpected)
    }

    /// Every workload with our mark.
    async fn marked(&mut self, config: &Config) -> Result<Vec<Seen>, QuiesceError> {
        let mut marked = Vec::new();
        for kind in WorkloadKind::ALL {
            let listed = config.upgrade.quiesce.iter().any(|workload| workload.kind == kind);
            // Nothing is asked that would be denied: where this is not used, nobody has the right, and nobody had it to make a mark.
            if !listed && !self.may_list(kind).await? {
                continue;
            }
            let of = resource(kind);
            let what = format!("list the {} with label {MARK}", of.plural);
            let with_mark = ListParams::default().labels(MARK);
            let request = async |client| Api::<DynamicObject>::all_with(client, &of).list(&with_mark).await;
            let list = self.link.answer(self.until, request).await.map_err(|failure| failed(what.clone(), failure))?;
            let seen: Result<Vec<Seen>, String> = complete(&list.metadata)
                .and_then(|()| list.items.iter().map(|object| Seen::of(kind, object)).collect());
            marked.extend(seen.map_err(|said| QuiesceError::Api { what, said })?);
        }
        Ok(marked)
    }

    async fn may_list(&mut self, kind: WorkloadKind) -> Result<bool, QuiesceError> {
        let of = resource(kind);
        let wanted = ResourceAttributes {
            group: Some(of.group.clone()),
            resource: Some(of.plural.clone()),
            verb: Some("list".to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(wanted), ..Default::default() },
            ..SelfSubjectAccessReview::default()
        };
        let request = async |client| Api::all(client).create(&PostParams::default(), &review).await;
        let what = format!("ask whether the {} may be listed", of.plural);
        let answer: Result<SelfSubjectAccessReview, Failure> = self.link.answer(self.until, request).await;
        match answer.map_err(|failure| failed(what.clone(), failure))?.status {
            Some(status) if status.allowed => Ok(true),
            Some(status) => match status.evaluation_error {
                None => Ok(false),
                Some(said) => Err(QuiesceError::Api { what, said }),
            },
            None => Err(QuiesceError::Api { what, said: "the answer has no status".to_owned() }),
        }
    }

    /// The one PATCH. False when the workload is not as it was seen, or when it is not known whether it was written: look again.
    async fn write(&mut self, seen: &Seen, change: &Change, mode: Mode) -> Result<bool, QuiesceError> {
        let Workload { namespace, name, kind } = &seen.workload;
        let what = format!("{} {}", if change.record.is_some() { "scale to zero" } else { "restore" }, seen.workload);
        let unfit = |said: String| QuiesceError::Api { what: what.clone(), said };
        let patch = seen.patch(change).map_err(|error| unfit(error.to_string()))?;
        let params = PatchParams { dry_run: mode == Mode::DryRun, ..PatchParams::default() };
        let request = Request::new(DynamicObject::url_path(&resource(*kind), Some(namespace)))
            .patch(name, &params, &Patch::Merge(&patch))
            .map_err(|error| unfit(error.to_string()))?;
        let written =
            self.link
                .send(self.fence, |client, limit| async move {
                    client.request::<DynamicObject>(bounded(request, limit)?).await
                })
                .await;
        match written {
            Ok(_) => Ok(true),
            Err(Failure::Conflict(_) | Failure::NotFound) => Ok(false),
            // It may have been written: the next look tells, and the fence ends this.
            Err(Failure::NoAnswer(said)) if Instant::now() < self.until => {
                tracing::info!(workload = %seen.workload, said, "A change of the replicas was not answered");
                Ok(false)
            }
            Err(failure) => Err(failed(what, failure)),
        }
    }
}

fn resource(kind: WorkloadKind) -> ApiResource {
    match kind {
        WorkloadKind::Deployment => ApiResource::erase::<Deployment>(&()),
        WorkloadKind::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
    }
}

fn failed(what: String, failure: Failure) -> QuiesceError {
    let said = failure.to_string();
    match failure {
        Failure::Denied(_) => QuiesceError::Denied { what, said },
        Failure::Other(_) => QuiesceError::Refused { what, said },
        Failure::NoAnswer(_) | Failure::NotFound | Failure::Conflict(_) | Failure::Late(_) => {
            QuiesceError::Api { what, said }
        }
    }
}
