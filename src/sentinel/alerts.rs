//! The alerts that keep a gate closed, asked of Prometheus by the query that kured itself asks (`ALERTS`). What cannot be read closes. Pure
//! but for [`reasons`], which asks.

use super::kured::ALERTS;
use super::reason::{Code, Reason};
use crate::config::Alerts;
use crate::observe::certificate::words;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long an answer may be: a storm of alerts must not cost the sentinel its memory.
const LONGEST: usize = 1 << 20;

/// Prometheus' answer to a query (`/api/v1/query`).
#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    /// Of Thanos, such as that not everybody was heard.
    #[serde(default)]
    warnings: Vec<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: Vec<Sample>,
}

/// One alert: when it was looked at, and what came of it.
#[derive(Deserialize)]
struct Sample {
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

/// Why alerts keep the gate closed; none where nobody configured them, or none is active.
pub async fn reasons(config: &Alerts, limit: Duration) -> Vec<Reason> {
    let Some(prometheus) = &config.prometheus else { return Vec::new() };
    let answer = match tokio::time::timeout(limit, ask(prometheus)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer in {} s", limit.as_secs_f32())),
    };
    match answer.and_then(|answer| active(&answer, config)) {
        Ok(active) => active.iter().map(|alert| Reason::new(Code::AlertActive, alert)).collect(),
        Err(why) => vec![Reason::new(Code::AlertsUnknown, format!("{prometheus}: {why}"))],
    }
}

async fn ask(prometheus: &str) -> Result<Vec<u8>, String> {
    let url = format!("{}/api/v1/query?query=ALERTS", prometheus.trim_end_matches('/'));
    let client = reqwest::Client::builder().no_proxy().build().map_err(|error| words(&error))?;
    let mut answer = client.get(url).send().await.map_err(|error| words(&error.without_url()))?;
    let status = answer.status();
    if !status.is_success() {
        return Err(format!("it answered {status}"));
    }
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(|error| words(&error.without_url()))? {
        if body.len().saturating_add(part.len()) > LONGEST {
            return Err(format!("its answer is longer than {LONGEST} bytes"));
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

/// The names of the alerts that are active and not to be ignored, by an answer.
fn active(answer: &[u8], config: &Alerts) -> Result<BTreeSet<String>, String> {
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|error| format!("its answer cannot be understood: {error}"))?;
    if answer.status != "success" {
        return Err(format!("it answered {}: {}", answer.status, answer.error));
    }
    if let Some(warning) = answer.warnings.first() {
        return Err(format!("its answer is not whole: {warning}"));
    }
    let data = answer.data.ok_or("it answered without data")?;
    if data.result_type != "vector" {
        return Err(format!("it answered with a {}, and not a vector", data.result_type));
    }
    let (mut active, mut beats) = (BTreeSet::new(), false);
    for sample in &data.result {
        let name = sample.metric.get("alertname").ok_or("it has an alert without a name")?;
        let fires = sample.metric.get("alertstate").is_some_and(|state| state == "firing");
        // As kured has it: zero is an alert that has ended.
        if sample.value.1 == "0" {
            continue;
        }
        if config.heartbeat.as_ref() == Some(name) {
            beats |= fires;
        } else if (fires || !config.firing_only) && !config.ignore.contains(name) && !ALERTS.contains(&name.as_str()) {
            active.insert(name.clone());
        }
    }
    match &config.heartbeat {
        Some(heartbeat) if !beats => Err(format!("{heartbeat} does not fire: its rules are not evaluated")),
        Some(_) | None => Ok(active),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn sample(name: &str, state: &str, value: &str) -> Value {
        json!({"metric": {"__name__": "ALERTS", "alertname": name, "alertstate": state}, "value": [1764216000.123, value]})
    }

    fn answer(result: Value) -> Value {
        json!({"status": "success", "data": {"resultType": "vector", "result": result}})
    }

    fn of(answer: &Value, config: &Alerts) -> Result<Vec<String>, String> {
        active(answer.to_string().as_bytes(), config).map(|names| names.into_iter().collect())
    }

    #[test]
    fn an_alert_that_is_active_counts_unless_it_is_to_be_ignored() {
        let config = Alerts::default();
        let all = answer(json!([
            sample("Watchdog", "firing", "1"),
            sample("KubeNodeUnreachable", "firing", "1"),
            sample("KubeNodeUnreachable", "firing", "1"),
            sample("KubePodCrashLooping", "pending", "1"),
            sample("NodeClockSkew", "firing", "0"),
        ]));
        assert_eq!(of(&all, &config).unwrap(), ["KubeNodeUnreachable", "KubePodCrashLooping"]);
        assert_eq!(
            of(&all, &Alerts { firing_only: true, ..config.clone() }).unwrap(),
            ["KubeNodeUnreachable"],
            "pending ones are not to count"
        );
        let ignore = vec!["KubeNodeUnreachable".to_owned(), "KubePodCrashLooping".to_owned()];
        assert_eq!(of(&all, &Alerts { ignore, ..config.clone() }).unwrap(), ["Watchdog"], "the list is what it says");
        assert_eq!(of(&answer(json!([])), &config).unwrap(), [""; 0]);
    }

    #[test]
    fn r29_no_alert_that_quorate_ships_keeps_a_gate_closed() {
        let ours: Vec<Value> = ALERTS.iter().map(|alert| sample(alert, "firing", "1")).collect();
        let config = Alerts { ignore: Vec::new(), ..Alerts::default() };
        assert_eq!(of(&answer(json!(ours)), &config).unwrap(), [""; 0]);
    }

    #[test]
    fn without_its_heartbeat_prometheus_knows_nothing() {
        let config = Alerts { heartbeat: Some("Watchdog".to_owned()), ..Alerts::default() };
        assert_eq!(of(&answer(json!([sample("Watchdog", "firing", "1")])), &config).unwrap(), [""; 0]);
        for silent in
            [json!([]), json!([sample("Watchdog", "pending", "1")]), json!([sample("Watchdog", "firing", "0")])]
        {
            assert!(of(&answer(silent.clone()), &config).unwrap_err().contains("Watchdog does not fire"), "{silent}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_not_silence() {
        for (said, word) in [
            (json!({}), "cannot be understood"),
            (json!("ALERTS"), "cannot be understood"),
            (json!({"status": "error", "error": "query timed out"}), "query timed out"),
            (json!({"status": "success"}), "without data"),
            (json!({"status": "success", "data": {"resultType": "matrix", "result": []}}), "matrix"),
            (
                json!({"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "1"]}]}}),
                "without a name",
            ),
            (
                json!({"status": "success", "warnings": ["a store is away"], "data": {"resultType": "vector", "result": []}}),
                "a store is away",
            ),
        ] {
            let why = of(&said, &Alerts::default()).unwrap_err();
            assert!(why.contains(word), "{said}: {why}");
        }
    }
}
