//! An operation on etcd by a Job: started from its template on a control plane node that is not its target, followed to its end.

use crate::access::Access;
use crate::config::Config;
use crate::job::{self, JobError, Jobs, Request, State};
use crate::output;
use crate::place;
use crate::report::{Outcome, Report};
use quorum_safety::NodeName;
use std::time::Duration;

/// How often the Job is looked at.
const EVERY: Duration = Duration::from_millis(700);
/// How many looks in a row may fail before following is given up; the Job goes on without us.
const AWAY: u32 = 250;

/// Starts the Job that `make` makes for a node, or follows the one of that name that runs, and gives its report. What it says
/// meanwhile is shown.
///
/// # Errors
/// When it could not be started for another reason than that no node runs it, or not be followed.
pub(super) async fn run<'a>(
    access: &Access,
    config: &Config,
    target: impl Into<Option<&'a NodeName>>,
    make: impl Fn(&NodeName) -> Request,
) -> anyhow::Result<Report> {
    let (nodes, target) = (place::nodes(access, config).await?, target.into());
    let candidates = job::candidates(&nodes, target);
    if candidates.is_empty() {
        let but = target.map_or_else(String::new, |target| format!(" but {target}"));
        return Ok(not_started("on any control plane node", format!("there is no control plane node{but}")));
    }
    run_on(access, config, &candidates, "on any control plane node", make).await
}

/// The same on this node and no other: it is about what only that node can see, and takes it down for nobody.
///
/// # Errors
/// As above.
pub(super) async fn run_there(
    access: &Access,
    config: &Config,
    node: &NodeName,
    make: impl Fn(&NodeName) -> Request,
) -> anyhow::Result<Report> {
    run_on(access, config, std::slice::from_ref(node), &format!("on {node}"), make).await
}

async fn run_on(
    access: &Access,
    config: &Config,
    candidates: &[NodeName],
    place: &str,
    make: impl Fn(&NodeName) -> Request,
) -> anyhow::Result<Report> {
    let jobs = Jobs::new(access, Vec::new());
    match jobs.start_somewhere(candidates, make, config.times.job_start.get()).await {
        Ok(name) => follow(&jobs, &name).await,
        Err(JobError::NotStarted(why)) => Ok(not_started(place, why)),
        Err(error) => Err(error.into()),
    }
}

fn not_started(place: &str, why: String) -> Report {
    let summary = format!("the Job did not start {place}; nothing was changed by it");
    Report::with_blockers(Outcome::Unknown, summary, &[], &[why])
}

async fn follow(jobs: &Jobs<'_>, name: &str) -> anyhow::Result<Report> {
    let (mut shown, mut failed) = (Shown::default(), 0);
    loop {
        shown.show(jobs, name).await;
        match jobs.look(name).await {
            Ok(State::Ended(end)) => {
                shown.show(jobs, name).await;
                let report = serde_json::from_str::<Report>(&end.message);
                return Ok(report.unwrap_or_else(|_| {
                    lost(&format!("pod {} on {} ended with {}: {}", end.pod, end.node, end.exit_code, end.message))
                }));
            }
            Ok(State::Stranded(why)) => return Ok(lost(&format!("Job {name}: {why}"))),
            Ok(State::Going(_)) => failed = 0,
            Err(error) if failed >= AWAY => {
                let error = anyhow::Error::new(error);
                return Err(error.context(format!("the API does not answer; Job {name} may go on without us")));
            }
            // The apiserver that was asked may be the one that restarts.
            Err(_) => failed += 1,
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// A Job that ended without a report was killed: what it left is found and finished by the next one.
fn lost(what: &str) -> Report {
    Report::unfinished("nothing more is heard of the Job", what)
}

/// How much of which pod's log has been shown.
#[derive(Default)]
struct Shown {
    pod: String,
    lines: usize,
}

impl Shown {
    /// Shows what is new.
    async fn show(&mut self, jobs: &Jobs<'_>, name: &str) {
        let Ok(Some(pod)) = jobs.pod_name(name).await else { return };
        if self.pod != pod {
            *self = Self { pod, lines: 0 };
        }
        let new = jobs.new_lines(&self.pod, &mut self.lines).await;
        new.iter().for_each(|line| output::progress(line));
    }
}
