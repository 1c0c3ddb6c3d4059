//! What a person at a workstation is told, by the program itself and a real API server in which nobody runs a pod.

use lab::api::{Api, Spec};
use quorate::access::Access;
use quorate::upgrade::record;
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::time::Duration;

/// What is installed, and some control plane nodes.
pub(crate) fn installed(spec: Spec, nodes: &[&str]) -> Api {
    let api = Api::start(spec).unwrap();
    api.kubectl(["apply", "-k", concat!(env!("CARGO_MANIFEST_DIR"), "/manifests")]).unwrap();
    let labels = json!({"node-role.kubernetes.io/control-plane": ""});
    for (number, name) in (1..).zip(nodes) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
        api.apply(&node.to_string()).unwrap();
        api.set_node_ready(name, api.address(number)).unwrap();
    }
    api
}

fn quorate(api: &Api, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.arg("--kubeconfig").arg(api.kubeconfig().unwrap()).args(args);
    command.env_remove("KUBERNETES_SERVICE_HOST").output().unwrap()
}

/// Who asks for a document gets one, whatever it says.
#[test]
fn a_look_that_nobody_could_take_is_a_document_too() {
    let api = installed(Spec::default(), &["k1"]);
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), "times: {jobStart: 1s}").unwrap();
    let config = format!("--config={}", config.path().display());
    let said = quorate(&api, &["status", "--fresh", "--output=json", &config]);
    let words = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(12), "{words}");
    let document: Value = serde_json::from_slice(&said.stdout).unwrap_or_else(|error| panic!("{error}: {words}"));
    assert_eq!((&document["apiVersion"], &document["kind"]), (&json!("quorate.dev/v1"), &json!("Report")));
    assert_eq!((&document["outcome"], &document["summary"]), (&json!("unknown"), &json!("nobody could look")));
    assert!(document["blockers"][0].as_str().is_some_and(|why| why.contains("did not start")), "{document}");
    // The same for people.
    let said = quorate(&api, &["status", "--fresh", &config]);
    assert_eq!(said.status.code(), Some(12));
    assert!(String::from_utf8_lossy(&said.stdout).starts_with("nobody could look\n"), "{said:?}");
}

/// The one that was begun last is the best measure, whatever its number.
#[test]
fn upgrades_that_were_measured_are_found_the_last_one_first() {
    let api = installed(Spec::default(), &["k1"]);
    let write = |to: &str, state: &str| {
        let name = format!("quorate-upgrade-{to}");
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "quorate"},
            "data": {"state.json": state}});
        api.apply(&map.to_string()).unwrap();
        // Times of creation are whole seconds.
        std::thread::sleep(Duration::from_millis(1_100));
    };
    write("v1.36.2", r#"{"seconds": {"k1": 300, "w1": 40}}"#);
    write("v1.36.1", r#"{"seconds": {"k1": 200}, "kubeadm": {"k1": "v1.36.1"}}"#);
    write("v1.36.3", r#"{"image": "sha256:1"}"#);
    write("v1.36.4", "not a record");
    write("whatever", r#"{"seconds": {"k1": 1}}"#);
    drop(rustls::crypto::ring::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let measured = runtime.block_on(async {
        let access = Access::from_file(api.kubeconfig().unwrap(), "quorate").await.unwrap();
        record::measured(&access.live(&[]).await.unwrap(), "quorate").await.unwrap()
    });
    let told: Vec<(String, usize)> = measured.iter().map(|it| (it.to.to_string(), it.seconds.len())).collect();
    assert_eq!(told, [("v1.36.1".to_owned(), 1), ("v1.36.2".to_owned(), 2)]);
}
