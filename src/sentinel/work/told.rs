//! What a sentinel tells: metrics, a line of the log when the answer changes, a note on its Node, Events.

use super::{Memory, Work};
use crate::event::{self, Told};
use crate::lock;
use crate::lock::lease::FIELD_MANAGER;
use crate::observe::cluster::within;
use crate::sentinel::answer::{ANNOTATION, Answer};
use crate::sentinel::plan::Plan;
use crate::sentinel::reason::Reason;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use std::time::Duration;

impl Work<'_> {
    /// Asks the API for nothing, unless the Node says something else than this answer.
    pub(super) async fn publish_while_quiet(&mut self) {
        let Some(link) = self.link.clone().filter(|_| self.is_unpublished()) else { return };
        match link.access.live(&[]).await {
            Ok(client) => self.publish(&client, link.config.times.answer.get()).await,
            Err(error) => tracing::warn!(%error, "The answer could not be left on the node"),
        }
    }

    fn is_unpublished(&self) -> bool {
        let Memory { answer, published, .. } = &self.memory;
        let same = |answer: &Answer| published.as_ref().is_some_and(|published| published.same(answer));
        answer.as_ref().is_some_and(|answer| !same(answer))
    }

    /// Leaves the answer on the Node, when it is another one. Told to people, it decides nothing.
    pub(super) async fn publish(&mut self, client: &Client, limit: Duration) {
        if !self.is_unpublished() {
            return;
        }
        let Some(answer) = self.memory.answer.take() else { return };
        let written = match serde_json::to_string(&answer) {
            Ok(text) => annotate(client, &self.pod.node.0, ANNOTATION, text, limit).await,
            Err(error) => Err(error.to_string()),
        };
        match written {
            Ok(()) => self.memory.published = Some(answer),
            Err(why) => tracing::warn!(why, "The answer could not be left on the node"),
        }
    }

    /// Tells people what was done, beside the work.
    pub(super) fn event(&self, warning: bool, reason: &'static str, note: String) {
        let Some(link) = &self.link else { return };
        let (access, node, clock) = (link.access.clone(), self.pod.node.clone(), self.clock);
        tokio::spawn(async move { event::by_sentinel(&access, &node, Told { warning, reason, note }, clock).await });
    }

    /// Tells the answer: always by the metrics, and in the log when it is another one.
    pub(super) fn tell(&mut self, plan: &Plan) {
        let now = self.clock.unix();
        self.memory.pending_since = plan.pending.then(|| {
            let since = self.host.required_since(now);
            self.memory.pending_since.map_or(since, |first| first.min(since))
        });
        let config = &self.memory.config;
        let proof = lock::timings(config).silence();
        let within = config.sentinel.interval.get().saturating_mul(2).saturating_add(proof);
        self.shown.look(plan, self.memory.pending_since, self.memory.saw, now, within);
        self.memory.answer = Some(Answer::of(plan, &self.memory.advice, self.memory.pending_since, now));
        let advice = self.memory.advice.clone();
        let told = (plan.open, plan.reasons.iter().map(Reason::without_figures).collect(), advice);
        if self.memory.told.as_ref() == Some(&told) {
            return;
        }
        if self.memory.told.as_ref().is_none_or(|before| before.2 != told.2) {
            told.2.iter().for_each(|advice| tracing::warn!(%advice, "Of kured's configuration"));
        }
        let why: Vec<String> = plan.reasons.iter().map(ToString::to_string).collect();
        let why = why.join("; ");
        match (plan.open, plan.pending, plan.reasons.is_empty()) {
            (true, ..) => tracing::warn!(why, "The gate is open"),
            (false, false, true) => tracing::info!("No reboot is wanted"),
            (false, true, true) => tracing::info!("A reboot is wanted, and nothing stands in its way"),
            (false, _, false) => tracing::warn!(why, "The gate is closed"),
        }
        self.memory.told = Some(told);
    }
}

/// Writes an annotation of this node.
pub(super) async fn annotate(
    client: &Client,
    node: &str,
    key: &str,
    text: String,
    limit: Duration,
) -> Result<(), String> {
    let patch = serde_json::json!({"metadata": {"annotations": {key: text}}});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let nodes: Api<Node> = Api::all(client.clone());
    let patch = Patch::Merge(&patch);
    let written = nodes.patch_metadata(node, &params, &patch);
    within(limit, written).await.map(drop).map_err(|why| format!("node {node}: {why}"))
}
