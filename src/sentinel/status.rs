//! `quorate sentinel status`: the gates of the whole fleet in one table, from what the sentinels have left on their Nodes.

use super::OPERATION;
use super::answer::{ANNOTATION, Answer};
use super::soak;
use crate::access::Access;
use crate::cli::Global;
use crate::clock::Clock;
use crate::exit::ExitStatus;
use crate::lock::{self, Leases};
use crate::observe::cluster::{complete, within};
use crate::{output, place};
use comfy_table::{Table, presets};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;
use quorum_safety::lock::LeaseView;
use quorum_safety::{Fact, NodeName, UnixSeconds};
use serde::Serialize;
use std::collections::BTreeMap;

/// The label of sentinels' pods.
const LABEL: &str = "quorate.dev/sentinel";

/// Runs the command.
///
/// # Errors
/// When the nodes cannot be read.
pub async fn run(global: &Global, clock: Clock) -> anyhow::Result<ExitStatus> {
    let access = Access::new(global).await?;
    let config = place::configuration(global, &access).await?;
    let limit = config.times.answer.get();
    let client = access.live(&[]).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::namespaced(client, config.sentinel.namespace.as_deref().unwrap_or(&access.namespace));
    let read = async {
        let nodes = within(limit, nodes.list(&ListParams::default())).await?;
        let pods = within(limit, pods.list(&ListParams::default().labels(LABEL))).await?;
        complete(&nodes.metadata).and_then(|()| complete(&pods.metadata))?;
        Ok::<_, String>((nodes.items, pods.items))
    };
    let (nodes, pods) = read.await.map_err(|why| anyhow::anyhow!("the sentinels cannot be seen: {why}"))?;
    let leases = Leases::new(access, Vec::new(), lock::timings(&config), clock);
    let mut steps = BTreeMap::new();
    for name in lock::names(&config) {
        if let LeaseView::Held { record: Fact::Known(record), .. } = leases.read(&name).await?.view
            && record.operation == OPERATION
        {
            steps.insert(record.target, record.step.name);
        }
    }
    let fleet = Fleet::of(&nodes, &pods, &steps);
    output::answer(global.output, &fleet, || fleet.text(clock.unix()))?;
    Ok(fleet.status())
}

/// All sentinels.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fleet {
    api_version: &'static str,
    kind: &'static str,
    nodes: Vec<Row>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    node: NodeName,
    control_plane: bool,
    /// Whether its sentinel runs and is ready.
    ready: bool,
    /// What it last said; unknown when it has said nothing that can be read.
    answer: Fact<Answer>,
    /// How far the Lease says that its reboot is; none while none is held for it.
    step: Option<String>,
    /// Since when it is up, as its sentinel says.
    up_since: Option<UnixSeconds>,
}

impl Fleet {
    fn of(nodes: &[Node], pods: &[Pod], steps: &BTreeMap<NodeName, String>) -> Self {
        let row = |node: &Node| {
            let seen = soak::Seen::of(node).ok()?;
            let annotation = node.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION));
            let answer = match annotation {
                None => Fact::Unknown("no sentinel has said anything on it".to_owned()),
                Some(text) => {
                    serde_json::from_str(text).map_err(|error| format!("annotation {ANNOTATION}: {error}")).into()
                }
            };
            let up_since = seen.boot.known().and_then(Option::as_ref).map(|boot| boot.since);
            let ready = pods.iter().any(|pod| runs_on(pod, &seen.name));
            let step = steps.get(&seen.name).cloned();
            Some(Row { control_plane: seen.control_plane, ready, answer, step, up_since, node: seen.name })
        };
        let nodes = nodes.iter().filter_map(row).collect();
        Self { api_version: quorum_safety::record::API_VERSION, kind: "Sentinels", nodes }
    }

    fn status(&self) -> ExitStatus {
        let known = self.nodes.iter().all(|row| row.ready && row.answer.known().is_some());
        if known { ExitStatus::Ok } else { ExitStatus::Unknown }
    }

    fn text(&self, now: UnixSeconds) -> String {
        let ago = |at: UnixSeconds| match now.0.saturating_sub(at.0) {
            seconds @ ..=7199 => format!("{} min", seconds / 60),
            seconds => format!("{} h", seconds / 3600),
        };
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["NODE", "ROLE", "SENTINEL", "UP FOR", "REBOOT WANTED FOR", "GATE", "LEASE"]);
        let mut why = String::new();
        for row in &self.nodes {
            let answer = row.answer.known();
            let gate = match answer {
                Some(answer) if answer.open => "open",
                Some(_) => "closed",
                None => "unknown",
            };
            let pending = answer.and_then(|answer| answer.pending_since).map_or_else(|| "-".to_owned(), ago);
            table.add_row([
                row.node.to_string(),
                if row.control_plane { "control plane" } else { "worker" }.to_owned(),
                if row.ready { "ready" } else { "not ready" }.to_owned(),
                row.up_since.map_or_else(|| "unknown".to_owned(), ago),
                pending,
                gate.to_owned(),
                row.step.clone().unwrap_or_else(|| "-".to_owned()),
            ]);
            match &row.answer {
                Fact::Known(answer) => {
                    answer.reasons.iter().for_each(|reason| why.push_str(&format!("\n{}: {reason}", row.node)));
                    answer.advice.iter().for_each(|one| why.push_str(&format!("\n{}: advice, {one}", row.node)));
                }
                Fact::Unknown(unknown) => why.push_str(&format!("\n{}: {unknown}", row.node)),
            }
        }
        format!("{}{why}", table.trim_fmt())
    }
}

fn runs_on(pod: &Pod, node: &NodeName) -> bool {
    let on = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node.0.as_str());
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    on && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_fleet_is_shown_with_what_is_not_known() {
        let node = |name: &str, annotations: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": name, "annotations": annotations}})).unwrap()
        };
        let answer = json!({"open": false, "pendingSince": 400, "since": 500, "reasons": [{"code": "S013-soak", "detail": "k1 is up"}],
            "advice": [{"code": "S022-kured-concurrency", "detail": "--concurrency=2: expected 1"}]});
        let nodes = [
            node("k1", json!({ANNOTATION: answer.to_string(), soak::BOOT: "{\"id\":\"b\",\"since\":40}"})),
            node("k2", json!({})),
        ];
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {}, "spec": {"nodeName": "k1", "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        let steps = BTreeMap::from([(NodeName::from("k1"), "recover".to_owned())]);
        let fleet = Fleet::of(&nodes, &[pod], &steps);
        assert_eq!(fleet.status(), ExitStatus::Unknown);
        let text = fleet.text(UnixSeconds(1000));
        let line = |name: &str| {
            text.lines().find(|line| line.trim_start().starts_with(&format!("{name} "))).unwrap().to_owned()
        };
        for word in ["ready", "16 min", "10 min", "closed", "recover"] {
            assert!(line("k1").contains(word), "no {word} in {text}");
        }
        assert!(line("k2").contains("not ready") && line("k2").contains("unknown"), "{text}");
        assert!(text.contains("k1: advice, S022-kured-concurrency: --concurrency=2"), "{text}");
        assert!(
            text.contains("k1: S013-soak: k1 is up") && text.contains("k2: no sentinel has said anything"),
            "{text}"
        );
    }
}
