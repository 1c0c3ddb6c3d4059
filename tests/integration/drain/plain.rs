//! Without controllers: cordons, filters, and what the API itself answers.

use super::*;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use quorate::drain::cordon::{ANNOTATION, foreign_writer, read};
use quorate::drain::filters::SkipReason;
use quorate::drain::{BlockKind, Cordoned, Owner, Uncordoned, cordon, drain, rehearse, uncordon};
use quorum_safety::Cordon;
use std::time::Instant;

static API: Shared = Shared::new();

fn api() -> Arc<Api> {
    API.get(Spec {
        audit: true,
        apiserver_args: vec!["--disable-admission-plugins=ServiceAccount".to_owned()],
        ..Spec::default()
    })
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn owner(operation: &str, identity: &str) -> Owner {
    Owner { operation: operation.to_owned(), identity: identity.to_owned(), adopted: false }
}

fn get_node(api: &Api, name: &str) -> Node {
    serde_json::from_value(api.request("GET", &format!("/api/v1/nodes/{name}"), None).unwrap()).unwrap()
}

/// A pod bound to a node, as its controller and the scheduler leave it.
fn bound(api: &Api, namespace: &str, name: &str, node: &str, change: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "main"}]},
    });
    for (key, value) in change.as_object().unwrap() {
        for (inner, value) in value.as_object().unwrap() {
            pod[key][inner] = value.clone();
        }
    }
    api.request("POST", &format!("/api/v1/namespaces/{namespace}/pods"), Some(&pod)).unwrap()
}

fn owned_by(kind: &str, name: &str, uid: &str) -> Value {
    json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true}])
}

#[test]
fn a_foreign_cordon_stays_and_ours_goes() {
    let api = api();
    node(&api, "ours", "cordons");
    node(&api, "foreign", "cordons");
    api.kubectl(["cordon", "foreign"]).unwrap();
    assert_eq!(read(&get_node(&api, "foreign")), Cordon::Foreign);
    let writer = foreign_writer(&get_node(&api, "foreign")).expect("the API says who has cordoned it");
    assert!(writer.manager.starts_with("kubectl") && writer.at.is_some(), "{writer:?}");
    run(async {
        let access = access(&api).await;
        let me = owner("upgrade-v1.36.3", "step-a");
        let fence = Lives::for_ever();
        for (name, after) in [("ours", Uncordoned::Schedulable), ("foreign", Uncordoned::StaysCordoned)] {
            let Cordoned::Done(first) = cordon(&access, name, &me, now(), &Lives::for_ever()).await.unwrap() else {
                panic!()
            };
            assert_eq!(read(&get_node(&api, name)), Cordon::Ours("upgrade-v1.36.3".to_owned()));
            assert_eq!(first.prior_unschedulable, name == "foreign");
            // Again, and by the one that adopts: what was there before must not be lost.
            let adopter = Owner { adopted: true, ..owner("upgrade-v1.36.3", "step-b") };
            for again in [&me, &adopter] {
                let Cordoned::Done(record) = cordon(&access, name, again, now(), &fence).await.unwrap() else {
                    panic!()
                };
                assert_eq!(record.prior_unschedulable, first.prior_unschedulable);
                assert_eq!(record.owner, again.identity);
            }
            // Neither another operation, nor the one that was late and does not know that it has a successor.
            for stranger in [owner("upgrade-v1.36.2", "step-b"), me.clone()] {
                assert_eq!(uncordon(&access, name, &stranger, &fence).await.unwrap(), Uncordoned::NotOurs);
            }
            assert_eq!(read(&get_node(&api, name)), Cordon::Ours("upgrade-v1.36.3".to_owned()));
            // Adopted again, by one that goes on after the drain and has not written its own name there.
            let next = Owner { adopted: true, ..owner("upgrade-v1.36.3", "step-c") };
            assert_eq!(uncordon(&access, name, &next, &fence).await.unwrap(), after);
            assert_eq!(uncordon(&access, name, &next, &fence).await.unwrap(), Uncordoned::NotOurs);
            assert!(!get_node(&api, name).metadata.annotations.unwrap_or_default().contains_key(ANNOTATION));
        }
        assert_eq!(cordon(&access, "nobody", &me, now(), &Lives::for_ever()).await.unwrap(), Cordoned::NoSuchNode);
    });
    assert_eq!(read(&get_node(&api, "ours")), Cordon::None);
    assert_eq!(read(&get_node(&api, "foreign")), Cordon::Foreign);
}

/// Whoever uncordons by hand leaves our record on the node, and what they cordon after that is theirs. (Found by crates/quorum-model.)
#[test]
fn a_cordon_made_after_ours_was_lifted_by_hand_stays() {
    let api = api();
    node(&api, "anew", "cordons");
    let me = owner("upgrade-v1.36.3", "step-a");
    run(async {
        let access = access(&api).await;
        cordon(&access, "anew", &me, now(), &Lives::for_ever()).await.unwrap();
        api.kubectl(["uncordon", "anew"]).unwrap();
        assert_eq!(read(&get_node(&api, "anew")), Cordon::None);
        api.kubectl(["cordon", "anew"]).unwrap();
        assert_eq!(read(&get_node(&api, "anew")), Cordon::Foreign);
        assert!(foreign_writer(&get_node(&api, "anew")).is_some_and(|writer| writer.manager.starts_with("kubectl")));
        assert_eq!(uncordon(&access, "anew", &me, &Lives::for_ever()).await.unwrap(), Uncordoned::StaysCordoned);
        assert_eq!(read(&get_node(&api, "anew")), Cordon::Foreign);
        // And with a cordon of ours over it in between.
        api.kubectl(["uncordon", "anew"]).unwrap();
        cordon(&access, "anew", &me, now(), &Lives::for_ever()).await.unwrap();
        api.kubectl(["uncordon", "anew"]).unwrap();
        api.kubectl(["cordon", "anew"]).unwrap();
        let Cordoned::Done(record) = cordon(&access, "anew", &me, now(), &Lives::for_ever()).await.unwrap() else {
            panic!()
        };
        assert!(record.prior_unschedulable);
        assert_eq!(uncordon(&access, "anew", &me, &Lives::for_ever()).await.unwrap(), Uncordoned::StaysCordoned);
    });
    assert_eq!(read(&get_node(&api, "anew")), Cordon::Foreign);
}

#[test]
fn of_two_that_cordon_at_the_same_time_one_wins() {
    let api = api();
    for round in 0..10 {
        let name = format!("raced-{round}");
        node(&api, &name, "race");
        let (a, b) = run(async {
            let (one, two) = (access(&api).await, access(&api).await);
            let (a, b) = (owner("a", "a"), owner("b", "b"));
            let fence = Lives::for_ever();
            futures::join!(cordon(&one, &name, &a, now(), &fence), cordon(&two, &name, &b, now(), &fence))
        });
        let (winner, loser) = match (a.unwrap(), b.unwrap()) {
            (Cordoned::Done(winner), Cordoned::HeldBy(seen)) | (Cordoned::HeldBy(seen), Cordoned::Done(winner)) => {
                (winner, seen)
            }
            both => panic!("{both:?}"),
        };
        assert_eq!(winner, loser);
        assert_eq!(read(&get_node(&api, &name)), Cordon::Ours(winner.operation));
    }
}

#[test]
fn mirror_daemon_set_and_node_job_pods_stay() {
    let api = api();
    namespace(&api, "staying");
    node(&api, "staying", "staying");
    let template =
        json!({"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    let set = json!({"metadata": {"name": "agent"}, "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": template}});
    let set = api.request("POST", "/apis/apps/v1/namespaces/staying/daemonsets", Some(&set)).unwrap();
    let uid = set["metadata"]["uid"].as_str().unwrap();
    bound(
        &api,
        "staying",
        "agent",
        "staying",
        json!({"metadata": {"ownerReferences": owned_by("DaemonSet", "agent", uid)}}),
    );
    bound(
        &api,
        "staying",
        "etcd-staying",
        "staying",
        json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "hash"}}}),
    );
    let job = json!({"metadata": {"labels": {"quorate.dev/operation": "upgrade"}},
        "spec": {"containers": [{"name": "quorate", "image": "q", "args": ["node", "upgrade", "--to", "v1.36.3"]}]}});
    bound(&api, QUORATE, "node-job", "staying", job.clone());
    // The label means nothing outside quorate's namespace.
    bound(&api, "staying", "impostor", "staying", job);
    let orphan = json!({"metadata": {"ownerReferences": owned_by("DaemonSet", "deleted", "6c2f")}});
    bound(&api, "staying", "orphan", "staying", orphan);
    let (rehearsal, blocked, report, watcher) = confirm_deletions(&api, "staying", Bound::StaysPending, || {
        run(async {
            let access = access(&api).await;
            let rehearsal = rehearse(&access, "staying", &options()).await.unwrap();
            let strict = Options { unmanaged: UnmanagedPods::Block, ..options() };
            let mut watcher = Watcher::new();
            let blocked = drain(&access, "staying", &strict, &Lives::for_ever(), &mut watcher).await.unwrap_err();
            assert_eq!(watcher.evicted(), Vec::<String>::new(), "what can never go is said before the first eviction");
            let report = drain(&access, "staying", &options(), &Lives::for_ever(), &mut watcher).await.unwrap();
            (rehearsal, blockers(blocked), report, watcher)
        })
    });
    let stayed = |skipped: &[quorate::drain::filters::Skipped]| {
        skipped.iter().map(|s| (s.pod.name.clone(), s.reason.clone())).collect::<BTreeMap<_, _>>()
    };
    let expected = BTreeMap::from([
        ("agent".to_owned(), SkipReason::DaemonSet("agent".to_owned())),
        ("etcd-staying".to_owned(), SkipReason::Mirror),
        ("node-job".to_owned(), SkipReason::NodeJob),
    ]);
    assert_eq!(stayed(&rehearsal.skipped), expected);
    assert_eq!(stayed(&report.stayed), expected);
    let mut evicted = watcher.evicted();
    evicted.sort();
    assert_eq!(evicted, ["impostor", "orphan"]);
    assert_eq!(blocked.iter().map(|b| b.pod.name.as_str()).collect::<Vec<_>>(), ["impostor", "orphan"]);
    assert!(blocked.iter().all(|b| b.kind == BlockKind::Unmanaged), "{blocked:?}");
    assert!(pod(&api, "staying", "agent").is_some() && pod(&api, QUORATE, "node-job").is_some());
}

#[test]
fn r01_a_step_on_its_own_target_blocks_before_anything_is_evicted() {
    let api = api();
    namespace(&api, "r01");
    node(&api, "r01", "r01");
    bound(&api, "r01", "web", "r01", json!({}));
    let step = json!({"metadata": {"labels": {"quorate.dev/operation": "upgrade"}},
        "spec": {"containers": [{"name": "quorate", "image": "q", "args": ["step", "control-plane", "--node", "r01"]}]}});
    bound(&api, QUORATE, "step", "r01", step);
    let plain = bound(&api, QUORATE, "not-labelled", "r01", json!({}));
    let own_uid = plain["metadata"]["uid"].as_str().map(str::to_owned);
    run(async {
        let access = access(&api).await;
        let options = Options { own_uid, ..options() };
        let rehearsal = rehearse(&access, "r01", &options).await.unwrap();
        let mut watcher = Watcher::new();
        let refused = blockers(drain(&access, "r01", &options, &Lives::for_ever(), &mut watcher).await.unwrap_err());
        assert_eq!(refused.len(), 2);
        assert!(refused.iter().all(|b| b.kind == BlockKind::OwnActor), "{refused:?}");
        assert_eq!(rehearsal.blockers, refused);
        assert_eq!(watcher.evicted(), Vec::<String>::new());
    });
    assert!(pod(&api, "r01", "web").unwrap()["metadata"]["deletionTimestamp"].is_null());
}

#[test]
fn a_pod_of_the_same_name_elsewhere_counts_as_gone() {
    let api = api();
    namespace(&api, "renamed");
    node(&api, "renamed-a", "renamed");
    node(&api, "renamed-b", "renamed");
    let set = json!({"metadata": {"ownerReferences": owned_by("StatefulSet", "db", "91141")}});
    bound(&api, "renamed", "db-0", "renamed-a", set.clone());
    let report = std::thread::scope(|scope| {
        let api = &api;
        scope.spawn(move || {
            wait("db-0 told to go", || {
                pod(api, "renamed", "db-0")?["metadata"]["deletionTimestamp"].as_str().map(drop)
            });
            api.finish_pod_deletion("renamed", "db-0").unwrap();
            bound(api, "renamed", "db-0", "renamed-b", set);
        });
        run(async {
            drain(&access(api).await, "renamed-a", &options(), &Lives::for_ever(), &mut Watcher::new()).await.unwrap()
        })
    });
    assert_eq!(report.gone.len(), 1);
    let again = pod(&api, "renamed", "db-0").unwrap();
    assert_ne!(again["metadata"]["uid"].as_str().unwrap(), report.gone[0].uid);
    assert!(again["metadata"]["deletionTimestamp"].is_null(), "the new db-0 was evicted too: {again}");
}

#[test]
fn r31_the_kill_switch_stops_a_drain_that_waits() {
    let api = api();
    namespace(&api, "stopped");
    node(&api, "stopped", "stopped");
    bound(&api, "stopped", "slow", "stopped", json!({}));
    let mut watcher = Watcher { stop_at: 2, ..Watcher::new() };
    let begin = Instant::now();
    let error = run(async {
        drain(&access(&api).await, "stopped", &options(), &Lives::for_ever(), &mut watcher).await.unwrap_err()
    });
    assert!(begin.elapsed() >= Duration::from_secs(5), "asked every 5 s: {:?}", begin.elapsed());
    assert_eq!(watcher.asked, 2);
    let DrainError::Stopped { left, because, .. } = error else { panic!("{error}") };
    assert_eq!(left.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["slow"]);
    assert!(because.contains("maintenance"));
    // Engaged from the start, or without time under its Lease: nothing is evicted.
    bound(&api, "stopped", "untouched", "stopped", json!({}));
    for (stop_at, fence) in [(1, Lives::for_ever()), (usize::MAX, Lives::until_question(1))] {
        let mut watcher = Watcher { stop_at, ..Watcher::new() };
        let error =
            run(async { drain(&access(&api).await, "stopped", &options(), &fence, &mut watcher).await.unwrap_err() });
        assert!(matches!(error, DrainError::Stopped { .. }), "{error}");
    }
    assert!(pod(&api, "stopped", "untouched").unwrap()["metadata"]["deletionTimestamp"].is_null());
}

/// Safety review, finding 15: the deadline was asked for long before what it should stop was sent.
#[test]
fn a_holder_that_loses_its_lease_between_the_look_and_the_write_writes_nothing() {
    let api = api();
    node(&api, "late", "late");
    let me = owner("upgrade-v1.36.3", "step-a");
    run(async {
        let access = access(&api).await;
        let before = get_node(&api, "late").metadata.resource_version;
        let error = cordon(&access, "late", &me, now(), &Lives::until_question(2)).await.unwrap_err();
        assert!(error.to_string().contains("`another` holds it"), "{error}");
        assert_eq!(get_node(&api, "late").metadata.resource_version, before);
        assert!(matches!(cordon(&access, "late", &me, now(), &Lives::for_ever()).await.unwrap(), Cordoned::Done(_)));
        for question in [1, 2] {
            let error = uncordon(&access, "late", &me, &Lives::until_question(question)).await.unwrap_err();
            assert!(error.to_string().contains("`another` holds it"), "{error}");
            assert_eq!(read(&get_node(&api, "late")), Cordon::Ours("upgrade-v1.36.3".to_owned()));
        }
    });
}

/// The same in the middle of a batch: what has not been sent is not.
#[test]
fn a_drain_that_loses_its_lease_in_the_middle_of_a_batch_evicts_no_more() {
    let api = api();
    namespace(&api, "late-drain");
    node(&api, "late-drain", "late-drain");
    for name in ["one", "two", "three"] {
        bound(&api, "late-drain", name, "late-drain", json!({}));
    }
    // Asked once for the round and once for each of the three.
    let fence = Lives::until_question(4);
    let error = run(async {
        drain(&access(&api).await, "late-drain", &options(), &fence, &mut Watcher::new()).await.unwrap_err()
    });
    let DrainError::Stopped { because, left, .. } = error else { panic!("{error}") };
    assert!(because.contains("`another` holds it"), "{because}");
    assert_eq!(left.len(), 3);
    let going = items(&api, "late-drain").iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_string()).count();
    assert_eq!(going, 2, "one was evicted after the Lease was lost");
}

#[test]
fn retry_after_of_a_refusal_is_respected() {
    let api = api();
    namespace(&api, "patient");
    node(&api, "patient", "patient");
    bound(&api, "patient", "web", "patient", json!({}));
    api.set_pod_ready("patient", "web").unwrap();
    // No controller works it out: the API server refuses and asks for 10 s.
    let budget =
        json!({"metadata": {"name": "web"}, "spec": {"minAvailable": 0, "selector": {"matchLabels": {"app": "web"}}}});
    api.request("POST", "/apis/policy/v1/namespaces/patient/poddisruptionbudgets", Some(&budget)).unwrap();
    let options = Options { deadline: Duration::from_secs(14), ..options() };
    let error = run(async {
        drain(&access(&api).await, "patient", &options, &Lives::for_ever(), &mut Watcher::new()).await.unwrap_err()
    });
    let blockers = blockers(error);
    assert_eq!(blockers.len(), 1);
    assert_eq!(blockers[0].budget.as_deref(), Some("web"));
    let evictions: Vec<_> = api
        .audit_events()
        .unwrap()
        .into_iter()
        .filter(|e| e["objectRef"]["subresource"] == "eviction" && e["objectRef"]["namespace"] == "patient")
        .map(|e| {
            (
                e["responseStatus"]["code"].clone(),
                e["requestReceivedTimestamp"].as_str().unwrap().parse::<Timestamp>().unwrap(),
            )
        })
        .collect();
    assert_eq!(evictions.len(), 2, "{evictions:?}");
    assert!(evictions.iter().all(|(code, _)| code == 429), "{evictions:?}");
    assert!(evictions[1].1.duration_since(evictions[0].1).as_secs() >= 10, "{evictions:?}");
}

#[test]
fn the_restart_of_an_apiserver_does_not_fail_a_drain() {
    let api = Api::start(Spec {
        apiserver_args: vec!["--disable-admission-plugins=ServiceAccount".to_owned()],
        ..Spec::default()
    })
    .unwrap();
    namespace(&api, "restarted");
    node(&api, "restarted", "restarted");
    for name in ["one", "two"] {
        bound(&api, "restarted", name, "restarted", json!({}));
    }
    let mut watcher = Watcher::new();
    let report = std::thread::scope(|scope| {
        let api = &api;
        scope.spawn(move || {
            wait("one told to go", || {
                pod(api, "restarted", "one")?["metadata"]["deletionTimestamp"].as_str().map(drop)
            });
            api.apiserver(1).unwrap().kill().unwrap();
            std::thread::sleep(Duration::from_secs(2));
            api.apiserver(1).unwrap().restart().unwrap();
            api.wait_ready(1, Duration::from_secs(60)).unwrap();
            for name in ["one", "two"] {
                wait("told to go", || pod(api, "restarted", name)?["metadata"]["deletionTimestamp"].as_str().map(drop));
                api.finish_pod_deletion("restarted", name).unwrap();
            }
        });
        let options = Options { parallel: 1, deadline: Duration::from_secs(120), ..options() };
        run(async { drain(&access(api).await, "restarted", &options, &Lives::for_ever(), &mut watcher).await.unwrap() })
    });
    assert_eq!(report.gone.len(), 2);
    assert!(watcher.events.iter().any(|event| matches!(event, Progress::Trouble(_))), "it did not meet the restart");
}

#[test]
fn a_rehearsal_waits_for_the_step_before_it_to_end() {
    let api = api();
    namespace(&api, "settling");
    node(&api, "settling", "settling");
    let step = json!({"metadata": {"labels": {"quorate.dev/operation": "upgrade"}},
        "spec": {"containers": [{"name": "quorate", "image": "q", "args": ["step", "preflight"]}]}});
    bound(&api, QUORATE, "before", "settling", step);
    let options = Options { settle: Duration::from_secs(30), ..options() };
    let rehearsal = std::thread::scope(|scope| {
        let api = &api;
        scope.spawn(move || {
            std::thread::sleep(Duration::from_secs(1));
            api.kubectl([
                "-n",
                QUORATE,
                "patch",
                "pod",
                "before",
                "--subresource=status",
                "-p",
                r#"{"status":{"phase":"Succeeded"}}"#,
            ])
            .unwrap();
        });
        run(async { rehearse(&access(api).await, "settling", &options).await.unwrap() })
    });
    assert_eq!(rehearsal.blockers, []);
    assert_eq!(rehearsal.skipped[0].reason, SkipReason::Record);
}

/// A controller that binds its pod to the node by name brings it back each time; one whose pod tolerates the cordon has the
/// scheduler do it. Neither keeps a drain from ending, and both are named.
#[test]
fn pods_that_come_back_to_a_cordoned_node_do_not_keep_it_from_ending() {
    let api = api();
    namespace(&api, "returning");
    node(&api, "returning", "returning");
    let pinned = json!({"metadata": {"ownerReferences": owned_by("ReplicaSet", "pinned", "1")}});
    let tolerant = json!({"metadata": {"ownerReferences": owned_by("ReplicaSet", "tolerant", "2")},
        "spec": {"tolerations": [{"operator": "Exists"}]}});
    bound(&api, "returning", "pinned-0", "returning", pinned.clone());
    bound(&api, "returning", "tolerant-0", "returning", tolerant.clone());
    let mut watcher = Watcher::new();
    let done = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        let (api, done) = (&api, &done);
        scope.spawn(move || {
            let mut made = 0;
            while !done.load(Ordering::Relaxed) {
                for gone in items(api, "returning").iter().filter(|p| p["metadata"]["deletionTimestamp"].is_string()) {
                    let name = gone["metadata"]["name"].as_str().unwrap();
                    made += 1;
                    let (kind, pod) =
                        if name.starts_with("pinned") { ("pinned", &pinned) } else { ("tolerant", &tolerant) };
                    bound(api, "returning", &format!("{kind}-{made}"), "returning", pod.clone());
                    api.finish_pod_deletion("returning", name).unwrap();
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let report =
            run(async { drain(&access(api).await, "returning", &options(), &Lives::for_ever(), &mut watcher).await });
        done.store(true, Ordering::Relaxed);
        report.unwrap()
    });
    let count = |kind: &str| watcher.evicted().iter().filter(|name| name.starts_with(kind)).count();
    assert_eq!((count("pinned"), count("tolerant")), (4, 1), "{:?}", watcher.evicted());
    let mut stayed: Vec<_> = report.stayed.into_iter().map(|skipped| skipped.reason).collect();
    stayed.sort();
    assert_eq!(stayed, [SkipReason::ToleratesCordon, SkipReason::KeepsReturning]);
}
