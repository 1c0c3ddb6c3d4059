//! What is to be done about what was left half done. Pure: made from the Leases, the cordons and the Jobs as they were seen, Jobs first.

use crate::etcd::{defrag, members};
use crate::job;
use crate::sentinel;
use crate::upgrade::chain::OPERATION;
use crate::version::Version;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use quorum_safety::lock::{LeaseView, Life, Release};
use quorum_safety::{Cordon, Fact, NodeName, NodeView};
use std::time::Duration;

/// How long a release by hand is left to the hand that recorded it.
const HANDS: Duration = Duration::from_secs(30 * 60);
/// What is waited after the first attempt that did not finish; twice as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(10 * 60);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(4 * 3600);

/// A Lease of ours and whether its holder lives.
#[derive(Clone, Debug)]
pub struct LeaseLook {
    /// Its name.
    pub name: String,
    /// What it says.
    pub view: LeaseView,
    /// Whether its holder lives, by one look.
    pub life: Life,
    /// The release by hand that emptied it.
    pub abandoned: Option<Release>,
}

/// A step's Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepJob {
    /// Its name.
    pub name: String,
    /// The operation on its label.
    pub operation: String,
    /// The node it is about; none for preflight and postflight.
    pub target: Option<NodeName>,
    /// The attempt of ours that it is; none for a step of a chain.
    pub attempt: Option<u32>,
    /// How it stands.
    pub state: JobState,
}

/// How a step's Job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It runs, or will.
    Going,
    /// It has not ended, and its node is silent or gone; which, in words.
    Stranded(String),
    /// It has ended; when, as far as its status says.
    Ended(Option<Timestamp>),
}

impl StepJob {
    /// A Job as a step's; none when it is no step. `state` is the caller's.
    pub fn of(job: &Job, state: JobState) -> Option<Self> {
        if !job::is_step(job) {
            return None;
        }
        let args = job::args(job);
        let attempt = job::finishes_only(job).then(|| {
            let number = args.iter().find_map(|arg| arg.strip_prefix("--attempt="));
            number.and_then(|number| number.parse().ok()).unwrap_or(1)
        });
        let label = |key| job.metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
        let annotation = |key| job.metadata.annotations.as_ref().and_then(|all| all.get(key)).cloned();
        Some(Self {
            name: job.metadata.name.clone()?,
            operation: label(job::OPERATION)?,
            target: annotation(job::TARGET).map(NodeName),
            attempt,
            state,
        })
    }
}

/// One thing to do, or to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Start a step that finishes or undoes what is half done on a node.
    Finish(Finish),
    /// Give back a Lease under which nothing was changed and whose holder does not live.
    Free {
        /// The Lease.
        lease: String,
        /// The operation that it was held for.
        operation: String,
        /// Its target.
        target: NodeName,
    },
    /// Nothing now, and why: somebody is at it, or it was tried a moment ago.
    Leave(String),
    /// A person has to do something: about what it is, and what.
    Hand(About, String),
}

/// Where somebody who looks for it would look first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// A Lease.
    Lease(String),
    /// A node that is cordoned although no Lease is held.
    Node(NodeName),
}

/// A step that finishes or undoes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// The target of the upgrade.
    pub to: Version,
    /// The node.
    pub node: NodeName,
    /// Whether it is a control plane node.
    pub control_plane: bool,
    /// How it shows, in words.
    pub what: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
}

/// Something half done.
struct Half<'a> {
    about: About,
    operation: &'a str,
    target: &'a NodeName,
    what: String,
}

/// Decides. Leases first, in their order, then cordons without a Lease; at most one step is started at a time, so that whatever comes
/// after it is looked at anew.
pub fn decide(leases: &[LeaseLook], nodes: &[NodeView], jobs: &[StepJob], now: Timestamp) -> Vec<Act> {
    let mut acts = Vec::new();
    let mut halves = Vec::new();
    for lease in leases {
        let LeaseView::Held { identity, record, release, .. } = &lease.view else { continue };
        let record = match (record, release) {
            (_, Fact::Unknown(why)) | (Fact::Unknown(why), _) => {
                let what = format!(
                    "Lease {} is held by `{identity}` and cannot be understood ({why}): see what that was about, then `quorate lease \
                     release {} --because …`",
                    lease.name, lease.name
                );
                acts.push(Act::Hand(About::Lease(lease.name.clone()), what));
                continue;
            }
            (Fact::Known(record), Fact::Known(Some(release))) if in_hand(release, now) => {
                acts.push(Act::Leave(format!(
                    "Lease {}: it is being released by hand ({}): {} on {} is left to that hand",
                    lease.name, release.because, record.operation, record.target
                )));
                continue;
            }
            (Fact::Known(record), Fact::Known(_)) => record,
        };
        if lease.life == Life::Alive {
            acts.push(Act::Leave(format!(
                "{} on {} goes on ({}, held by `{identity}`)",
                record.operation, record.target, record.step
            )));
        } else if record.step.touched || cordoned(nodes, &record.target, &record.operation) {
            // Nothing touched, and cordoned: the record of what was done before is lost. The step asks the host.
            let what = format!("Lease {} is held for it ({})", lease.name, record.step);
            let about = About::Lease(lease.name.clone());
            halves.push(Half { about, operation: &record.operation, target: &record.target, what });
        } else {
            let (operation, target) = (record.operation.clone(), record.target.clone());
            acts.push(Act::Free { lease: lease.name.clone(), operation, target });
        }
    }
    for node in nodes {
        let Cordon::Ours(operation) = &node.cordon else { continue };
        let given_up = leases.iter().filter_map(|lease| lease.abandoned.as_ref()).find(|release| {
            // <operation>/<target>/<attempt>
            release.identity.starts_with(&format!("{operation}/{}/", node.name)) && in_hand(release, now)
        });
        if let Some(release) = given_up {
            acts.push(Act::Leave(format!(
                "{}: {operation} was given up by hand ({}): it is left to that hand",
                node.name, release.because
            )));
        } else if !leases.iter().any(|lease| names(&lease.view, operation, &node.name)) {
            let what = "it is cordoned for it, and no Lease is held".to_owned();
            halves.push(Half { about: About::Node(node.name.clone()), operation, target: &node.name, what });
        }
    }
    for half in &halves {
        let starts = acts.iter().any(|act| matches!(act, Act::Finish(_)));
        acts.push(match finish(half, nodes, jobs, now) {
            Act::Finish(Finish { node, .. }) if starts => Act::Leave(format!(
                "{node}: {} is half done too, and is looked at when the first is over",
                half.operation
            )),
            act => act,
        });
    }
    acts
}

fn cordoned(nodes: &[NodeView], name: &NodeName, operation: &str) -> bool {
    nodes.iter().any(|node| node.name == *name && node.cordon == Cordon::Ours(operation.to_owned()))
}

/// Whether whoever released a Lease by hand may still be about it. By the clocks of two machines: only a courtesy.
fn in_hand(release: &Release, now: Timestamp) -> bool {
    let age = now.as_second().saturating_sub(release.at.0);
    age < HANDS.as_secs().cast_signed()
}

fn names(view: &LeaseView, operation: &str, target: &NodeName) -> bool {
    match view {
        LeaseView::Held { record: Fact::Known(record), .. } => {
            record.operation == operation && record.target == *target
        }
        // It may be this one: a hand is asked for already.
        LeaseView::Held { record: Fact::Unknown(_), .. } => true,
        LeaseView::Free { .. } | LeaseView::Absent => false,
    }
}

fn finish(half: &Half<'_>, nodes: &[NodeView], jobs: &[StepJob], now: Timestamp) -> Act {
    let Half { about, operation, target, what } = half;
    // Which member it is about may be gone from etcd by now, and a node may have to be worked on: nobody does that on their own.
    let command = members::plan::command_of(operation, target).or_else(|| defrag::plan::command_of(operation));
    if let Some(command) = command {
        let what = format!("{operation} on {target} is half done ({what}), and is gone on with by `{command}`");
        return Act::Hand(about.clone(), what);
    }
    if *operation == sentinel::OPERATION && nodes.iter().any(|node| node.name == **target) {
        return Act::Leave(format!(
            "{operation} of {target} is half done ({what}): its own sentinel closes the gate, or proves that the node is back; if that node \
             never comes back, `quorate lease release … --abandon --because …`"
        ));
    }
    let Some(to) = operation.strip_prefix(OPERATION).and_then(|to| to.parse::<Version>().ok()) else {
        let what = format!(
            "{operation} on {target} is half done ({what}), and is nothing that this version of quorate can finish"
        );
        return Act::Hand(about.clone(), what);
    };
    let Some(node) = nodes.iter().find(|node| node.name == **target) else {
        let what = format!(
            "{operation} on {target} is half done ({what}), and no such node is in the API: bring it back, or, if it is gone for good, \
             `quorate lease release … --abandon --because …`"
        );
        return Act::Hand(about.clone(), what);
    };
    let mut attempt = 1;
    // A preflight that somebody has made from the template by plain kubectl has the template's own label.
    for job in jobs.iter().filter(|job| job.operation == *operation || job.target.is_none()) {
        match &job.state {
            JobState::Going => return Act::Leave(format!("{operation} on {target}: Job {} goes on", job.name)),
            JobState::Stranded(why) => {
                return Act::Leave(format!(
                    "{operation} on {target} is half done ({what}), and Job {} may go on: {why}; it is left alone until that node is \
                     heard of, or `quorate upgrade --to {to}` is run",
                    job.name
                ));
            }
            JobState::Ended(at) => {
                if let (Some(number), true) = (job.attempt, job.target.as_ref() == Some(*target)) {
                    match next(number, *at, now) {
                        Ok(next) => attempt = next,
                        Err(seconds) => {
                            return Act::Leave(format!(
                                "{operation} on {target} is half done ({what}), and attempt {number} did not end it (Job {}): the next \
                                 one is in {} min",
                                job.name,
                                seconds.div_ceil(60)
                            ));
                        }
                    }
                }
            }
        }
    }
    let (node, control_plane) = ((*target).clone(), node.control_plane);
    Act::Finish(Finish { to, node, control_plane, what: what.clone(), attempt })
}

/// The number of the attempt after one that ended, or how many seconds are left until it is due. One that ended long ago was about
/// something else.
fn next(number: u32, ended: Option<Timestamp>, now: Timestamp) -> Result<u32, u64> {
    let Some(ended) = ended else { return Ok(number.saturating_add(1)) };
    let since = u64::try_from(now.as_second().saturating_sub(ended.as_second())).unwrap_or(0);
    if since > 2 * LONGEST_PAUSE.as_secs() {
        return Ok(1);
    }
    let doubled = FIRST_PAUSE.as_secs().saturating_mul(1_u64.checked_shl(number.saturating_sub(1)).unwrap_or(u64::MAX));
    let pause = doubled.min(LONGEST_PAUSE.as_secs());
    // The schedule that asks is every ten minutes, give or take: the first attempt must not miss its turn by seconds.
    let pause = pause.saturating_sub(60);
    if since >= pause { Ok(number.saturating_add(1)) } else { Err(pause - since) }
}

#[cfg(test)]
mod tests;
