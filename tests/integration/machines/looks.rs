//! The commands that only look: status, plan, explain, and the gate in place while the API is away.

use super::stage::{Said, Stage};
use super::story::{TO, story};
use serde_json::Value;
use std::path::Path;

/// What they said of a whole cluster before the upgrade.
pub(super) struct Looks {
    fresh: Said,
    published: Said,
    here: Said,
    plan: Said,
    gate: Said,
    explained: Said,
    altered: Said,
    /// `gate --here` with a kubeconfig that leads nowhere.
    without_api: Said,
}

pub(super) fn looks(stage: &Stage) -> Looks {
    let machine = stage.lab.machine(1).unwrap();
    let nowhere = "sed -E 's|server: .*|server: https://127.0.0.1:1|' /etc/kubernetes/admin.conf >/root/nowhere.conf";
    machine.run_checked(["sh", "-ec", nowhere]).unwrap();
    let here = |args: &[&str]| -> Said { machine.run([&["/root/quorate"], args].concat()).unwrap().into() };
    let gate = stage.gate();
    let record: Value = gate.document();
    let mut other = record.clone();
    other["verdict"]["answer"] = "refused".into();
    let explain = |record: &Value| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), record.to_string()).unwrap();
        stage.quorate(["explain", file.path().to_str().unwrap()])
    };
    Looks {
        fresh: stage.quorate(["status", "--fresh", "-o", "yaml"]),
        published: stage.quorate(["status"]),
        here: here(&["status", "--here", "-o", "json"]),
        plan: stage.quorate(["plan", "--to", TO, "-o", "yaml"]),
        explained: explain(&record),
        altered: explain(&other),
        gate,
        without_api: here(&["gate", "--here", "--node", "k2", "--kubeconfig", "/root/nowhere.conf", "-o", "json"]),
    }
}

/// The path of a program of the lab, built beside this one.
pub(super) fn program(name: &str) -> std::path::PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().and_then(Path::parent).unwrap();
    let path = folder.join(name);
    assert!(path.is_file(), "{} is not there: `cargo build -p lab` makes it", path.display());
    path
}

fn yaml(said: &Said) -> Value {
    serde_saphyr::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

#[test]
fn status_shows_the_control_plane_and_the_age_of_what_was_seen() {
    let looks = &story().looks;
    let fresh = yaml(&looks.fresh);
    assert_eq!((looks.fresh.code, &fresh["kind"], &fresh["healthyVoters"]), (0, &"Status".into(), &3.into()));
    let may = fresh["nodes"].as_array().unwrap().iter().filter(|node| node["verdict"]["answer"] == "permitted").count();
    assert_eq!(may, 4, "{fresh}");
    let published = &looks.published;
    assert_eq!(published.code, 0, "{published:?}");
    assert!(published.out.starts_with("observed ") && published.out.contains(" s ago"), "{published:?}");
    let rows: Vec<&str> = published.out.lines().filter(|line| line.trim_start().starts_with('k')).collect();
    assert_eq!(rows.len(), 4, "{published:?}");
    assert_eq!(rows.iter().filter(|row| row.contains("leader")).count(), 1, "{published:?}");
    assert_eq!((looks.here.code, &looks.here.document()["healthyVoters"]), (0, &3.into()), "{:?}", looks.here);
}

#[test]
fn a_plan_names_every_node_in_order_and_nothing_that_blocks() {
    let plan = yaml(&story().looks.plan);
    let steps = plan["steps"].as_array().unwrap();
    assert_eq!(story().looks.plan.code, 0, "{plan}");
    assert_eq!(steps.len(), 4, "{plan}");
    let modes: Vec<&str> = steps.iter().map(|step| step["mode"].as_str().unwrap()).collect();
    assert_eq!(modes, ["apply", "node", "node", "node"], "{plan}");
    assert_eq!(steps[3]["node"], "k4", "{plan}");
}

#[test]
fn a_stored_verdict_is_judged_again_and_another_answer_is_told() {
    let looks = &story().looks;
    assert_eq!((looks.gate.code, looks.explained.code, looks.altered.code), (0, 0, 0), "{:?}", looks.altered);
    let said = "the stored answer was another one";
    assert!(!looks.explained.out.contains(said), "{:?}", looks.explained);
    assert!(looks.altered.out.contains(said) && looks.altered.out.contains("permitted"), "{:?}", looks.altered);
}

#[test]
fn with_the_api_away_the_members_are_known_all_the_same_and_the_rest_is_unknown() {
    let said = &story().looks.without_api;
    // On which node a member is only the API knows: so none can be told from the one that would go down.
    assert_eq!(said.code, 10, "{said:?}");
    said.has_reason("Q019-member-node-unknown", "");
    said.has_reason("Q050-nodes-unknown", "");
    said.has_reason("Q071-lease-unknown", "");
    let etcd = &said.document()["observation"]["etcd"];
    let members = etcd["members"].as_array().unwrap();
    assert_eq!(members.len(), 3, "{etcd}");
    let reasons = said.document()["verdict"]["reasons"].to_string();
    assert!(!reasons.contains("Q004-member-unanswered"), "{reasons}");
}
