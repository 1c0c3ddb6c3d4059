//! What the binary refuses before it asks any cluster.

use std::process::{Command, Output};

fn quorate(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(args).env_clear().envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn r01_a_step_that_finds_itself_on_its_target_refuses_to_run() {
    let step = ["step", "control-plane", "--to=v1.36.3", "--node=k2"];
    let on = |node: &'static str| {
        [("QUORATE_NODE_NAME", node), ("QUORATE_POD_NAME", "p"), ("QUORATE_POD_UID", "u"), ("KUBECONFIG", "/nowhere")]
    };
    let said = quorate(&step, &on("k2"));
    assert_eq!(said.status.code(), Some(2), "{said:?}");
    let line = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(line.trim_end(), "error: this pod runs on k2, the node that it would take down");
    // From another node it goes on, as far as there is a cluster.
    let said = quorate(&step, &on("k1"));
    assert!(!String::from_utf8_lossy(&said.stderr).contains("would take down"), "{said:?}");
}

#[test]
fn a_step_outside_of_its_pod_says_where_it_belongs() {
    let said = quorate(&["step", "preflight"], &[]);
    assert_eq!(said.status.code(), Some(2), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains("templates of kustomize/base"), "{said:?}");
}
