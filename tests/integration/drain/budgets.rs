//! With the real controller-manager and scheduler: budgets are counted, pods come back elsewhere.

use super::*;
use quorate::drain::{BlockKind, drain, rehearse};
use quorum_safety::{BudgetPods, Fact};
use std::time::Instant;

static API: Shared = Shared::new();

fn api() -> Arc<Api> {
    // Nobody renews the nodes' heartbeats.
    let args = vec!["--node-monitor-grace-period=2h".to_owned()];
    API.get(Spec { controllers: true, controller_manager_args: args, audit: true, ..Spec::default() })
}

/// A Deployment on the test's nodes with a budget that wants this many of its replicas.
fn workload(api: &Api, namespace: &str, name: &str, replicas: usize, needed: usize) {
    let labels = json!({"app": name});
    let template = json!({"metadata": {"labels": labels}, "spec": {
        "nodeSelector": {"test": namespace}, "containers": [{"name": "main", "image": "main"}]}});
    let deployment = json!({"metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": labels}, "template": template}});
    api.request("POST", &format!("/apis/apps/v1/namespaces/{namespace}/deployments"), Some(&deployment)).unwrap();
    // By expression: the incumbent looked at matchLabels only.
    let selector = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": [name, "other"]}]});
    let budget = json!({"metadata": {"name": name}, "spec": {"minAvailable": needed, "selector": selector}});
    api.request("POST", &format!("/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"), Some(&budget))
        .unwrap();
}

/// Waits until the budget's controller has seen that many healthy pods of that many.
fn standing(api: &Api, namespace: &str, name: &str, healthy: usize, expected: usize) {
    let path = format!("/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/{name}");
    wait(&format!("budget {name}: {healthy} of {expected}"), || {
        let budget = api.request("GET", &path, None).ok()?;
        let status = &budget["status"];
        (status["currentHealthy"] == healthy && status["expectedPods"] == expected).then_some(())
    });
}

fn of_app(api: &Api, namespace: &str, app: &str, count: usize) -> Vec<String> {
    wait(&format!("{count} pods of {app} on a node"), || {
        let pods: Vec<_> = items(api, namespace)
            .iter()
            .filter(|pod| pod["metadata"]["labels"]["app"] == app && pod["spec"]["nodeName"].is_string())
            .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        (pods.len() == count).then_some(pods)
    })
}

fn all_ready(api: &Api, namespace: &str, app: &str, count: usize) -> Vec<String> {
    let pods = of_app(api, namespace, app, count);
    for name in &pods {
        api.set_pod_ready(namespace, name).unwrap();
    }
    standing(api, namespace, app, count, count);
    pods
}

#[test]
fn a_rehearsal_counts_budgets_although_each_dry_run_alone_passes() {
    let api = api();
    let ns = "counted";
    namespace(&api, ns);
    node(&api, "counted", ns);
    workload(&api, ns, "web", 3, 2);
    workload(&api, ns, "single", 1, 1);
    let web = all_ready(&api, ns, "web", 3);
    let single = all_ready(&api, ns, "single", 1);
    let seen = || {
        let budgets =
            api.request("GET", &format!("/apis/policy/v1/namespaces/{ns}/poddisruptionbudgets"), None).unwrap();
        let node = api.request("GET", "/api/v1/nodes/counted", None).unwrap();
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        let budgets: Vec<_> = budgets["items"].as_array().unwrap().iter().map(version).collect();
        (items(&api, ns).iter().map(version).collect::<Vec<_>>(), budgets, version(&node))
    };
    // What an observation tells of them. Another test's budgets are there, too.
    let observed = run(async {
        let client = access(&api).await.live(&[]).await.unwrap();
        quorate::observe::budgets::observe(&client, Duration::from_secs(5)).await
    });
    let budgets = observed.known().unwrap();
    let closed: Vec<_> = budgets.named.iter().filter(|budget| budget.namespace == ns).collect();
    let single_stands = Fact::Known(BudgetPods { healthy: 1, desired: 1, expected: 1 });
    assert!(budgets.count >= 2, "{budgets:?}");
    assert_eq!(closed.len(), 1, "{budgets:?}");
    assert_eq!((closed[0].name.as_str(), &closed[0].pods), ("single", &single_stands));

    let before = seen();
    for name in &web {
        let eviction =
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": ns}});
        let path = format!("/api/v1/namespaces/{ns}/pods/{name}/eviction?dryRun=All");
        api.request("POST", &path, Some(&eviction)).expect("each dry run alone passes");
    }
    let rehearsal = run(async { rehearse(&access(&api).await, "counted", &options()).await.unwrap() });
    assert_eq!(seen(), before, "a rehearsal changed something");
    assert_eq!(rehearsal.pods.len(), 4);
    let kinds: Vec<_> = rehearsal.blockers.iter().map(|b| (b.budget.as_deref().unwrap(), b.kind)).collect();
    let expected =
        [("single", BlockKind::BudgetNeverAllows), ("web", BlockKind::BudgetInTurn), ("web", BlockKind::BudgetInTurn)];
    assert_eq!(kinds, expected, "{rehearsal:#?}");
    let stopping: Vec<_> = rehearsal.stopping().iter().map(|b| b.pod.name.clone()).collect();
    assert_eq!(stopping, single);
    let escalating = Options { namespaces: deleting_after_half(ns), ..options() };
    let rehearsal = run(async { rehearse(&access(&api).await, "counted", &escalating).await.unwrap() });
    assert!(rehearsal.stopping().is_empty(), "{rehearsal:#?}");
    let text = serde_json::to_string(&rehearsal).unwrap();
    assert_eq!(serde_json::from_str::<quorate::drain::Rehearsal>(&text).unwrap(), rehearsal);
}

#[test]
fn r33_the_deadline_names_what_blocks_and_nothing_loops_for_ever() {
    let api = api();
    let ns = "r33";
    namespace(&api, ns);
    node(&api, "r33", ns);
    workload(&api, ns, "single", 1, 1);
    let name = all_ready(&api, ns, "single", 1).remove(0);
    // So often that one is due when the time is up: what it is not answered any more must not take the place of what was.
    let often = Duration::from_millis(1);
    let options = Options { deadline: Duration::from_secs(15), retry: often, poll: often, ..options() };
    let begin = Instant::now();
    let mut watcher = Watcher::new();
    let error =
        run(async { drain(&access(&api).await, "r33", &options, &Lives::for_ever(), &mut watcher).await.unwrap_err() });
    let took = begin.elapsed();
    assert!(took >= options.deadline && took < options.deadline + Duration::from_secs(60), "{took:?}");
    let text = error.to_string();
    assert!(text.contains(&format!("r33/{name}")) && text.contains("budget single"), "{text}");
    let blockers = blockers(error);
    assert_eq!(blockers.len(), 1, "{blockers:?}");
    assert_eq!(blockers[0].budget.as_deref(), Some("single"));
    assert!(pod(&api, ns, &name).unwrap()["metadata"]["deletionTimestamp"].is_null(), "honoured means honoured");
    // Told once, not at each of the tries.
    let waiting = watcher.events.iter().filter(|event| matches!(event, Progress::Waiting(_))).count();
    assert_eq!(waiting, 1, "{:?}", watcher.events);
}

#[test]
fn a_budget_lets_pods_go_in_turn_and_is_never_undercut() {
    let api = api();
    let ns = "turns";
    namespace(&api, ns);
    node(&api, "turns-a", ns);
    workload(&api, ns, "web", 4, 3);
    all_ready(&api, ns, "web", 4);
    node(&api, "turns-b", ns);
    api.kubectl(["cordon", "turns-a"]).unwrap();
    let fewest = Mutex::new(usize::MAX);
    let done = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let ready = |pod: &&Value| {
                    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
                    pod["metadata"]["deletionTimestamp"].is_null()
                        && conditions.any(|c| c["type"] == "Ready" && c["status"] == "True")
                };
                let count = items(&api, ns).iter().filter(ready).count();
                let mut fewest = fewest.lock().unwrap();
                *fewest = count.min(*fewest);
            }
        });
        let report = confirm_deletions(&api, ns, Bound::BecomesReady, || {
            run(async {
                drain(&access(&api).await, "turns-a", &options(), &Lives::for_ever(), &mut Watcher::new()).await
            })
        });
        done.store(true, Ordering::Relaxed);
        report.unwrap()
    });
    assert_eq!(report.gone.len(), 4);
    assert_eq!(*fewest.lock().unwrap(), 3);
    assert!(
        of_app(&api, ns, "web", 4).iter().all(|name| pod(&api, ns, name).unwrap()["spec"]["nodeName"] == "turns-b")
    );
}

#[test]
fn r33_delete_after_half_never_touches_a_degraded_workload() {
    let api = api();
    let ns = "half";
    namespace(&api, ns);
    node(&api, "half", ns);
    workload(&api, ns, "single", 1, 1);
    workload(&api, ns, "quorum", 3, 2);
    let single = all_ready(&api, ns, "single", 1).remove(0);
    let quorum = of_app(&api, ns, "quorum", 3);
    // One of three ready where two are needed.
    api.set_pod_ready(ns, &quorum[0]).unwrap();
    for name in &quorum[1..] {
        api.set_pod_ready(ns, name).unwrap();
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        api.kubectl(["-n", ns, "patch", "pod", name, "--subresource=status", "-p", &status.to_string()]).unwrap();
    }
    standing(&api, ns, "quorum", 1, 3);
    node(&api, "half-b", ns);
    api.kubectl(["cordon", "half"]).unwrap();
    let options = Options { deadline: Duration::from_secs(12), namespaces: deleting_after_half(ns), ..options() };
    let mut watcher = Watcher::new();
    // By the account of a step: past a budget it deletes.
    api.kubectl(["apply", "-k", concat!(env!("CARGO_MANIFEST_DIR"), "/manifests")]).unwrap();
    let account = api.kubeconfig_for(QUORATE, "quorate-step").unwrap();
    let begin = Instant::now();
    let error = confirm_deletions(&api, ns, Bound::StaysPending, || {
        run(async {
            let access = Access::from_file(&account, QUORATE).await.unwrap();
            drain(&access, "half", &options, &Lives::for_ever(), &mut watcher).await.unwrap_err()
        })
    });
    assert!(begin.elapsed() >= Duration::from_secs(12));
    let deleted: Vec<_> = watcher
        .events
        .iter()
        .filter_map(|event| match event {
            Progress::Deleting(pod) => Some(pod.name.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(deleted, [single]);
    let mut left: Vec<_> = blockers(error).into_iter().map(|b| (b.pod.name, b.budget)).collect();
    left.sort();
    let mut expected: Vec<_> = quorum.iter().map(|name| (name.clone(), Some("quorum".to_owned()))).collect();
    expected.sort();
    assert_eq!(left, expected);
    for name in &quorum {
        assert!(pod(&api, ns, name).unwrap()["metadata"]["deletionTimestamp"].is_null(), "{name}");
    }
}
