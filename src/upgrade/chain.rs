//! What every step of an upgrade has in common: who it is, what it looks at, how it ends, how it starts the next.

use crate::access::Access;
use crate::clock::Clock;
use crate::config::Config;
use crate::job::{self, JobError, Jobs, Placement, Request};
use crate::lock::{self, Leases};
use crate::node::Preflight;
use crate::output;
use crate::place::{self, OwnPod};
use crate::quiesce::{self, QuiesceError};
use crate::report::{Outcome, Report};
use crate::seen::{self, Seen};
use crate::upgrade::fleet::Fleet;
use crate::upgrade::kubeadm_config::ClusterConfiguration;
use crate::upgrade::plan::Plan;
use crate::upgrade::record::{ChainRecord, Stored};
use crate::version::Version;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use quorum_safety::{Disruption, Fact, Mine, NodeName, Policy, Reason, Record, Verdict};
use std::time::Duration;

/// How long the kubelet may take to report this pod's own container.
const OWN_STATUS: Duration = Duration::from_secs(60);
/// How long a kill switch that cannot be read is asked for again.
const UNREAD: Duration = Duration::from_secs(20);

/// A step of an upgrade, in its pod.
pub struct Chain<'a> {
    /// The API.
    pub access: &'a Access,
    /// The configuration.
    pub config: &'a Config,
    /// Time.
    pub clock: Clock,
    /// The pod it runs in.
    pub pod: OwnPod,
    /// The target.
    pub to: Version,
    /// Whether only what is half done is finished or undone, and nothing else begun.
    pub finish_only: bool,
    /// When the step began, by the clock's time since boot.
    pub began: Duration,
}

/// What the name of an upgrade begins with; its version follows.
pub const OPERATION: &str = "upgrade-";

/// The name of an upgrade to a version, in Leases, labels and annotations.
pub fn operation(to: Version) -> String {
    format!("{OPERATION}{to}")
}

/// How a step ended, when nothing went wrong that it could not name.
pub type End = Report;

/// An end without reasons of the rule.
pub fn end(outcome: Outcome, summary: impl Into<String>) -> End {
    Report::new(outcome, summary, &[])
}

/// Not now, or not like this, for these reasons.
pub fn not_permitted(summary: impl Into<String>, reasons: &[Reason]) -> End {
    Report::new(Outcome::of_reasons(reasons), summary, reasons)
}

/// Something needed could not be seen.
pub fn unknown(summary: impl Into<String>) -> End {
    end(Outcome::Unknown, summary)
}

impl<'a> Chain<'a> {
    /// A step in this pod.
    pub fn new(access: &'a Access, config: &'a Config, clock: Clock, pod: OwnPod, to: Version) -> Self {
        Self { access, config, clock, pod, to, finish_only: false, began: clock.boottime() }
    }

    /// The name of this upgrade.
    pub fn operation(&self) -> String {
        operation(self.to)
    }

    /// A step's end, when another goes on.
    pub fn goes_on(&self, what: &str, next: String) -> End {
        let mut report = end(Outcome::Ok, format!("{what}; {next} goes on"));
        report.next = Some(next);
        report
    }

    /// A line of progress, with the time since the step began.
    pub fn say(&self, text: &str) {
        let seconds = self.clock.boottime().saturating_sub(self.began).as_secs();
        output::progress(&format!("{:>2}:{:02} {text}", seconds / 60, seconds % 60));
    }

    /// Seconds since the step began.
    pub fn seconds(&self) -> u64 {
        self.clock.boottime().saturating_sub(self.began).as_secs()
    }

    /// Looks at everything, and publishes what was seen for `quorate status`.
    pub async fn look(&self, mine: Mine) -> Seen {
        let seen = seen::look(&place::in_pod(self.access), self.config, mine, self.clock).await;
        seen.show(self.access).await;
        seen
    }

    /// What is judged against now: the configuration's, without the checks that are lifted for this upgrade.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub async fn policy(&self) -> anyhow::Result<Policy> {
        Ok(self.recorded().await?.policy(self.config.policy(), self.clock.now()))
    }

    /// Judges on what was seen and stores the verdict in the upgrade's record.
    ///
    /// # Errors
    /// When the record cannot be read, or the verdict not be stored: what is not recorded is not done.
    pub async fn judge(&self, seen: &Seen, wanted: Disruption) -> anyhow::Result<Verdict> {
        let (observation, in_flight) = (seen.observation.clone(), seen.in_flight.clone());
        let (verdict, record) = Record::judged(observation, in_flight, wanted, self.policy().await?);
        let line = serde_json::to_string(&record)?;
        let client = self.access.live(&[]).await?;
        Stored::update(&client, &self.access.namespace, self.to, Some(&line), |_| {}).await?;
        Ok(verdict)
    }

    /// Changes the upgrade's record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn record(&self, change: impl Fn(&mut ChainRecord)) -> anyhow::Result<ChainRecord> {
        let client = self.access.live(&[]).await?;
        Ok(Stored::update(&client, &self.access.namespace, self.to, None, change).await?)
    }

    /// The upgrade's record.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn recorded(&self) -> anyhow::Result<ChainRecord> {
        let client = self.access.live(&[]).await?;
        Ok(Stored::read(&client, &self.access.namespace, self.to).await?.record)
    }

    /// The live fleet and what is left to do; or how the step ends, since that is not known or not possible.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub async fn plan(&self, seen: &Seen) -> anyhow::Result<Result<(Fleet, Plan), End>> {
        let fleet = match Fleet::of(seen) {
            Ok(fleet) => fleet,
            Err(error) => return Ok(Err(unknown(error.to_string()))),
        };
        let record = self.recorded().await?;
        let configured = match ClusterConfiguration::read(&self.access.live(&[]).await?).await {
            Ok(configuration) => configuration.configured(),
            Err(why) => return Ok(Err(unknown(why))),
        };
        match Plan::make(&fleet, self.to, &record, &configured) {
            Ok(plan) => Ok(Ok((fleet, plan))),
            Err(error) => Ok(Err(end(Outcome::Refused, error.to_string()))),
        }
    }

    /// Why nothing new may be disrupted now: the kill switch, read afresh. Unreadable means engaged; one answer that is late is asked
    /// for again.
    pub async fn stopped(&self) -> Option<Reason> {
        let limit = self.config.times.answer.get();
        let end = self.clock.boottime() + UNREAD;
        loop {
            let read = match self.access.live(&[]).await {
                Ok(client) => crate::lock::kill_switch::read(&client, &self.access.namespace, limit).await,
                Err(error) => Fact::Unknown(error.to_string()),
            };
            if matches!(read, Fact::Known(_)) || self.clock.boottime() >= end {
                return crate::lock::stopped_by(&read);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Gives workloads their replicas back that were left at zero by what is over (incident R13); says which not, and why.
    pub async fn restore_left(&self) -> Vec<QuiesceError> {
        let leases = Leases::new(self.access.clone(), Vec::new(), lock::timings(self.config), self.clock);
        let restored = quiesce::restore_left(self.access, self.config, &leases).await;
        restored.told.iter().for_each(|line| self.say(line));
        restored.failed
    }

    /// The image id of this pod; the kubelet reports it a moment after the container has started.
    async fn own_image(&self) -> anyhow::Result<Option<String>> {
        let end = self.clock.boottime() + OWN_STATUS;
        loop {
            let client = self.access.live(&[]).await?;
            let pods: Api<Pod> = Api::namespaced(client, &self.access.namespace);
            let statuses = pods.get(&self.pod.name).await?.status.and_then(|status| status.container_statuses);
            let own = statuses.unwrap_or_default().into_iter().find(|status| status.name == job::CONTAINER);
            if let Some(image) = own.map(|status| status.image_id).filter(|image| !image.is_empty()) {
                return Ok(Some(image));
            }
            if self.clock.boottime() >= end {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// A chain keeps the image that it began with; until a node was touched, it has not begun.
    ///
    /// # Errors
    /// When the own pod or the record cannot be read.
    pub async fn same_image(&self) -> anyhow::Result<Option<End>> {
        let Some(own) = self.own_image().await? else {
            return Ok(Some(unknown("the image of this pod is not known")));
        };
        let record = self.record(|record| {
            if !record.begun() || record.image.is_none() {
                record.image = Some(own.clone());
            }
        });
        let began_with = record.await?.image;
        Ok(match began_with {
            Some(image) if image != own => Some(end(
                Outcome::Refused,
                format!(
                    "this upgrade began with image {image} and this pod runs {own}: finish it with the first one, or delete \
                     ConfigMap {} to go on with this one, what is half done included",
                    crate::upgrade::record::name(self.to)
                ),
            )),
            _ => None,
        })
    }

    /// Starts what comes next by the live fleet: the next node's step, or postflight.
    ///
    /// # Errors
    /// When no node could run it: why each could not.
    pub async fn start_next(&self, seen: &Seen, plan: &Plan) -> Result<String, JobError> {
        let jobs = Jobs::new(self.access, Vec::new());
        let nodes = seen.observation.nodes.known().map(Vec::as_slice).unwrap_or_default();
        let next = plan.steps.first();
        let target = next.map(|step| step.node.clone());
        let name = match next {
            Some(step) => {
                let kind = kind_of_step(step.control_plane);
                (kind, job::name(kind, Some(&self.to.to_string()), Some(&step.node)))
            }
            None => ("postflight", job::name("postflight", Some(&self.to.to_string()), None)),
        };
        let make = |place: &NodeName| step_request(self.to, name.0, &name.1, target.as_ref(), place);
        let candidates = job::candidates(nodes, target.as_ref());
        self.say(&match &target {
            Some(node) => format!("next: {node}"),
            None => "next: postflight".to_owned(),
        });
        jobs.start_somewhere(&candidates, make, self.config.times.job_start.get()).await
    }

    /// The name of the Job that works on a node's host: one for each target, so that whoever comes next follows it.
    pub fn node_job(&self, node: &NodeName) -> String {
        job::name("node", Some(&self.to.to_string()), Some(node))
    }

    /// Runs a read-only node Job and reads its answer.
    pub async fn node_preflight(&self, node: &NodeName) -> Fact<Preflight> {
        let jobs = Jobs::new(self.access, Vec::new());
        let request = Request {
            template: "quorate-node",
            // A name of its own: an answer that was asked for earlier says nothing of a unit that has begun since.
            name: job::unique_name("look", Some(node), self.clock),
            args: vec![
                "node".to_owned(),
                "preflight".to_owned(),
                format!("--to={}", self.to),
                format!("--certificate-margin={}", self.config.rule.certificate_margin.get().as_secs()),
            ],
            operation: self.operation(),
            target: Some(node.clone()),
            placement: Placement::OnTarget,
        };
        let run = async {
            jobs.start(&request).await?;
            jobs.wait_started(&request.name, self.config.times.job_start.get() * 3).await?;
            jobs.wait_end(&request.name, Duration::from_secs(300)).await
        };
        let ended = run.await;
        if let Err(error) = jobs.discard(&request.name).await {
            tracing::warn!(%error, "The look's Job stays until its time to live is over");
        }
        match ended {
            Ok(end) => serde_json::from_str(&end.message)
                .map_err(|error| {
                    let code = end.exit_code;
                    format!("the node Job on {node} ended with {code} and no answer ({error}): {}", end.message)
                })
                .into(),
            Err(error) => Fact::Unknown(format!("node Job on {node}: {error}")),
        }
    }
}

/// The step of a node's kind.
pub const fn kind_of_step(control_plane: bool) -> &'static str {
    if control_plane { "control-plane" } else { "worker" }
}

/// The Job of a step.
pub fn step_request(to: Version, kind: &str, name: &str, target: Option<&NodeName>, place: &NodeName) -> Request {
    let mut args = vec!["step".to_owned(), kind.to_owned(), format!("--to={to}")];
    args.extend(target.map(|node| format!("--node={node}")));
    Request {
        template: "quorate-step",
        name: name.to_owned(),
        args,
        operation: operation(to),
        target: target.cloned(),
        placement: Placement::On(place.clone()),
    }
}
