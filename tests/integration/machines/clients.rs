//! What clients outside see while one node is worked on.

use super::looks::program;
use super::stage::{Stage, until};
use super::story::story;
use lab::prober::{Class, Report};
use std::process::Stdio;

/// At a few requests a second the longest gap is little more than the pause between two.
pub(super) const RATES: &str = "--new-rate 15 --kept-rate 15 --http2-rate 10 --write-rate 5 --connections 6";

/// Runs something beside a prober that asks through the balancer, a few times a second, without any retry.
pub(super) fn probed<T>(stage: &Stage, work: impl FnOnce() -> T) -> (T, Report) {
    probed_at(stage, "--new-rate 4 --kept-rate 2 --http2-rate 2 --write-rate 2 --connections 3", work)
}

/// The same at other rates.
pub(super) fn probed_at<T>(stage: &Stage, rates: &str, work: impl FnOnce() -> T) -> (T, Report) {
    let folder = tempfile::tempdir().unwrap();
    let (report, prober) = (folder.path().join("report.json"), program("prober"));
    stage.kubectl(["create", "namespace", "clients"]);
    let script =
        r#"exec "$1" --server https://10.10.0.10:6443 --kubeconfig "$KUBECONFIG" --namespace clients --report "$2" $3"#;
    let words = ["sh", "-c", script, "sh", prober.to_str().unwrap(), report.to_str().unwrap(), rates];
    let mut command = stage.lab.client(words);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let read = || -> Result<Report, String> {
        let text = std::fs::read_to_string(&report).map_err(|error| error.to_string())?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    };
    until("the prober to count", || {
        let classes = read()?.classes;
        if classes.len() == Class::ALL.len() { Ok(()) } else { Err(format!("{classes:?}")) }
    });
    let done = work();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    child.wait().unwrap();
    stage.kubectl(["delete", "namespace", "clients"]);
    (done, read().unwrap())
}

/// No new connection, no write and no request on HTTP/2 has failed, and there were enough of each to tell.
pub(super) fn assert_unnoticed(report: &Report) {
    for class in [Class::New, Class::Write, Class::Http2] {
        assert!(report.classes[&class].requests > 50, "{report:?}");
        assert_eq!(report.failed(class), Some(0), "{class:?}: {:?}", report.failures);
    }
}

#[test]
fn nothing_but_kept_connections_may_fail_while_kubeadm_upgrades_a_node() {
    assert_unnoticed(&story().clients);
}
