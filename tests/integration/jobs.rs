//! Jobs of ours against the real job controller: which is followed, which is replaced, and why one does not start. No kubelet runs: what
//! one writes about a pod is written by the test.

use crate::workstation::installed;
use lab::api::{Api, Spec};
use lab::process::until;
use quorate::access::Access;
use quorate::job::{JobError, Jobs, Placement, Request, Started};
use quorum_safety::NodeName;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::time::Duration;

const NAMESPACE: &str = "quorate";
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a pod may take to start: long enough for the test to write why it does not.
const START: Duration = Duration::from_secs(10);

/// Everything that is installed, controllers and nodes k1 and k2.
fn cluster() -> Api {
    drop(rustls::crypto::ring::default_provider().install_default());
    let controller_manager_args = vec!["--node-monitor-grace-period=2h".to_owned()];
    let api = installed(Spec { controllers: true, controller_manager_args, ..Spec::default() }, &["k1", "k2"]);
    // Its Jobs would come between.
    let suspend = r#"{"spec":{"suspend":true}}"#;
    api.kubectl(["-n", NAMESPACE, "patch", "cronjob", "quorate-reconcile", "-p", suspend]).unwrap();
    api
}

fn run<T>(api: &Api, of: impl AsyncFnOnce(Jobs<'_>) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let access = Access::from_file(api.kubeconfig().unwrap(), NAMESPACE).await.unwrap();
        of(Jobs::new(&access, Vec::new())).await
    })
}

fn on(node: &str) -> Request {
    Request {
        template: "quorate-gate",
        name: "quorate-asked".to_owned(),
        args: vec!["gate".to_owned(), "--in-job".to_owned()],
        operation: "asked".to_owned(),
        target: None,
        placement: Placement::On(node.into()),
    }
}

fn wait<T>(what: &str, look: impl Fn() -> Result<T, String>) -> T {
    until(what, PATIENCE, || {
        Ok(match look() {
            Ok(found) => ControlFlow::Break(found),
            Err(said) => ControlFlow::Continue(anyhow::anyhow!("{said}")),
        })
    })
    .unwrap()
}

fn pods(api: &Api) -> Vec<Value> {
    let list = api.request("GET", &format!("/api/v1/namespaces/{NAMESPACE}/pods"), None).unwrap();
    list["items"].as_array().unwrap().clone()
}

/// The pod of a Job by the Job's UID, once it is there.
fn pod_of(api: &Api, uid: &str) -> String {
    wait("the Job's pod", || {
        let pods = pods(api);
        let of_job = |pod: &&Value| pod["metadata"]["labels"]["batch.kubernetes.io/controller-uid"] == uid;
        let name = pods.iter().find(of_job).map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned());
        name.ok_or_else(|| format!("{} pods, none of it", pods.len()))
    })
}

fn patch_status(api: &Api, kind: &str, name: &str, status: &Value) {
    let patch = json!({"status": status}).to_string();
    let words = ["patch", kind, name, "-n", NAMESPACE, "--subresource=status", "--type=strategic", "-p", &patch];
    api.kubectl(words).unwrap();
}

fn ended(api: &Api, pod: &str, phase: &str, exit_code: i32) {
    let terminated = json!({"exitCode": exit_code, "reason": "Ended", "message": "said", "startedAt": "2026-11-26T00:00:00Z",
        "finishedAt": "2026-11-26T00:00:01Z"});
    let container = json!({"name": "quorate", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": terminated}});
    patch_status(api, "pod", pod, &json!({"phase": phase, "containerStatuses": [container]}));
}

fn uid(started: Started) -> String {
    match started {
        Started::New(uid) => uid.unwrap(),
        Started::Running => panic!("one of that name is followed"),
    }
}

#[test]
fn r09_a_job_of_that_name_is_followed_while_it_runs_and_replaced_when_it_has_ended() {
    let api = cluster();
    run(&api, async |jobs| {
        let request = on("k1");
        let first = uid(jobs.start(&request).await.unwrap());
        assert_eq!(jobs.start(&request).await.unwrap(), Started::Running, "its pod is not there yet, or Pending");
        let pod = pod_of(&api, &first);
        api.set_pod_ready(NAMESPACE, &pod).unwrap();
        assert_eq!(jobs.start(&request).await.unwrap(), Started::Running, "it runs");

        // A refusal is an answer to an earlier question.
        ended(&api, &pod, "Succeeded", 0);
        let second = uid(jobs.start(&request).await.unwrap());
        assert_ne!(first, second);
        let job = jobs.get(&request.name).await.unwrap().unwrap();
        assert_eq!(job.metadata.uid.as_deref(), Some(second.as_str()));

        // A failure is tried again, once it is the whole Job's.
        ended(&api, &pod_of(&api, &second), "Failed", 1);
        let end = jobs.wait_end(&request.name, PATIENCE).await.unwrap();
        assert_eq!((end.exit_code, end.node.as_str(), end.message.as_str()), (1, "k1", "said"));
        let third = uid(jobs.start(&request).await.unwrap());
        assert_ne!(second, third);

        // Nothing more will be heard of a pod whose kubelet is silent.
        api.set_pod_ready(NAMESPACE, &pod_of(&api, &third)).unwrap();
        assert_eq!(jobs.start(&request).await.unwrap(), Started::Running);
        patch_status(&api, "node", "k1", &json!({"conditions": [{"type": "Ready", "status": "Unknown"}]}));
        let fourth = uid(jobs.start(&on("k2")).await.unwrap());
        assert_ne!(third, fourth);
    });
}

/// What a kubelet writes of a container that waits.
fn waits(api: &Api, pod: &str, reason: &str, message: &str) {
    let waiting = json!({"reason": reason, "message": message});
    let container = json!({"name": "quorate", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": waiting}});
    patch_status(api, "pod", pod, &json!({"phase": "Pending", "containerStatuses": [container]}));
}

fn pod_on(api: &Api, node: &str) -> String {
    wait(&format!("a pod on {node}"), || {
        let pods = pods(api);
        let there = pods.iter().find(|pod| pod["spec"]["nodeName"] == node);
        there.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).ok_or_else(|| "none".to_owned())
    })
}

#[test]
fn a_kubelet_that_is_slow_is_given_more_time_than_one_that_is_silent() {
    let api = cluster();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let pod = pod_on(&api, "k1");
            waits(&api, &pod, "ContainerCreating", "");
            // The slowness itself: longer than a silent kubelet is given.
            std::thread::sleep(START + Duration::from_secs(3));
            api.set_pod_ready(NAMESPACE, &pod).unwrap();
        });
        run(&api, async |jobs| {
            let candidates = ["k1", "k2"].map(NodeName::from);
            jobs.start_somewhere(&candidates, |node| on(&node.0), START).await.unwrap();
        });
    });
    let nodes: Vec<String> =
        pods(&api).iter().map(|pod| pod["spec"]["nodeName"].as_str().unwrap().to_owned()).collect();
    assert_eq!(nodes, ["k1"]);
}

#[test]
fn r23_a_job_that_does_not_start_says_why_for_each_node_that_was_tried() {
    let api = cluster();
    let error = std::thread::scope(|scope| {
        // The kubelet of k1 says why; that of k2 says nothing.
        scope.spawn(|| {
            waits(&api, &pod_on(&api, "k1"), "ErrImageNeverPull", "the image is not there");
        });
        run(&api, async |jobs| {
            let candidates = ["k1", "k2"].map(NodeName::from);
            jobs.start_somewhere(&candidates, |node| on(&node.0), START).await.unwrap_err()
        })
    });
    let JobError::NotStarted(why) = error else { panic!("{error}") };
    assert!(why.contains("Pending on k1: ErrImageNeverPull the image is not there"), "{why}");
    assert!(why.contains("Pending on k2: the kubelet has said nothing yet"), "{why}");
    // Neither starts late.
    wait("both Jobs to go", || {
        let path = format!("/apis/batch/v1/namespaces/{NAMESPACE}/jobs");
        let jobs = api.request("GET", &path, None).map_err(|error| error.to_string())?;
        let left = jobs["items"].as_array().unwrap().len();
        if left == 0 { Ok(()) } else { Err(format!("{left} are there")) }
    });
}
