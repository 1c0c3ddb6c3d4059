//! Real machines: three control plane nodes and a worker, kubelet, containerd, kubeadm, HAProxy. One cluster serves all of these
//! tests: the story is told once, in order, and each test asserts what it is about.

mod backup;
mod clients;
mod defrag;
mod etcd;
mod experiments;
mod faults;
mod left;
mod long;
mod looks;
mod members;
mod reboots;
mod restore;
mod stage;
mod story;
mod templates;

use lab::prober::monitor::rule;
use serde_json::Value;
use story::{HandedOver, TO, story};

#[test]
fn h05_three_seconds_after_a_power_cut_the_gate_refuses_although_every_node_is_ready() {
    let cut = &story().power_cut;
    assert!(
        cut.all_ready_before && cut.all_ready_after,
        "the nodes were to be Ready still: the lab is too slow for this case"
    );
    cut.gate.refused_with("Q030-quorum-would-be-lost", "k1");
    cut.gate.refused_with("Q041-apiserver-unanswered", "k1");
    // What a tool that asks only the API comes to know most of a minute later.
    cut.noticed.refused_with("Q053-node-ready-unknown", "k1");
    cut.noticed.refused_with("Q030-quorum-would-be-lost", "k1");
}

#[test]
fn a_lab_that_is_up_is_left_up_and_another_is_refused() {
    let single = &story().single;
    assert!(single.left_up);
    assert!(single.other.contains("another lab is up already"), "{}", single.other);
}

#[test]
fn h05_a_frozen_member_is_refused_and_named() {
    story().frozen.refused_with("Q004-member-unanswered", "k3");
    story().frozen.refused_with("Q030-quorum-would-be-lost", "k3");
}

#[test]
fn h03_an_administrators_cordon_on_another_control_plane_node_is_refused() {
    story().cordoned.refused_with("Q054-foreign-cordon", "k3");
}

#[test]
fn a_node_that_is_not_there_is_refused() {
    let said = &story().nobody;
    assert_eq!((said.code, said.out.as_str()), (2, ""), "{said:?}");
    assert!(said.err.contains("no node is called `k9`: there are k1, k2, k3, k4"), "{said:?}");
}

#[test]
fn r10_a_lock_that_cannot_be_parsed_is_unknown_and_holds() {
    let said = &story().unparsable;
    assert_eq!(said.code, 12, "{said:?}");
    said.has_reason("Q074-kured-unknown", "");
}

#[test]
fn h01_the_target_is_not_counted() {
    // With one of three down, two are Ready "including the target": the published plan would take the second.
    story().power_cut.gate.refused_with("Q030-quorum-would-be-lost", "1 of 3");
}

#[test]
fn the_gate_reads_in_place_on_a_node() {
    let here = &story().here;
    assert_eq!(here.code, 0, "{here:?}");
    assert_eq!(here.document()["verdict"]["answer"], "permitted", "{here:?}");
}

#[test]
fn r31_the_kill_switch_stops_an_upgrade_from_beginning() {
    let said = &story().kill_switch;
    assert_eq!(said.code, 11, "{said:?}");
    assert!(said.out.contains("Q075-kill-switch-engaged: paused by hand"), "{said:?}");
}

#[test]
fn r33_a_budget_that_never_allows_is_named_before_anything_is_cordoned() {
    let said = &story().budget;
    assert_eq!(said.code, 11, "{said:?}");
    assert!(said.out.contains("shop/"), "{said:?}");
    assert!(said.out.contains("keeps-all"), "{said:?}");
}

#[test]
fn r21_a_copy_of_a_manifest_is_found_before_the_upgrade() {
    let said = &story().stray;
    assert_eq!(said.code, 11, "{said:?}");
    assert!(said.out.contains("k2") && said.out.contains("kube-scheduler.yaml.bak"), "{said:?}");
}

#[test]
fn refusals_leave_every_node_as_it_was() {
    assert_eq!(story().nodes_before_refusals, story().nodes_after_refusals);
}

#[test]
fn the_upgrade_brings_every_node_to_the_target_and_leaves_nothing_behind() {
    let story = story();
    assert_eq!(story.upgrade.code, 0, "{:?}", story.upgrade);
    let nodes = items(&story.nodes);
    assert_eq!(nodes.len(), 4);
    for node in nodes {
        assert_eq!(node["status"]["nodeInfo"]["kubeletVersion"], TO);
        assert!(node["spec"]["unschedulable"].is_null(), "{}", node["metadata"]["name"]);
        assert!(node["metadata"]["annotations"]["quorate.dev/cordon"].is_null(), "{}", node["metadata"]["name"]);
    }
    let images: Vec<&str> = items(&story.static_pods)
        .iter()
        .filter_map(|pod| pod["spec"]["containers"][0]["image"].as_str())
        .filter(|image| !image.contains("etcd"))
        .collect();
    assert_eq!(images.len(), 9);
    assert!(images.iter().all(|image| image.ends_with(TO)), "{images:?}");
    for lease in items(&story.leases) {
        assert!(lease["spec"]["holderIdentity"].as_str().unwrap_or("").is_empty(), "{lease}");
    }
    assert!(story.kured["metadata"]["annotations"]["weave.works/kured-node-lock"].is_null(), "{}", story.kured);
}

#[test]
fn r35_a_complete_preflight_of_an_earlier_run_skips_nothing() {
    let complete_preflights = |jobs: &Value| -> Vec<(Value, Value)> {
        let steps = items(jobs).iter().filter(|job| {
            let args = &job["spec"]["template"]["spec"]["containers"][0]["args"];
            args[0] == "step" && args[1] == "preflight" && job["status"]["succeeded"] == 1
        });
        steps.map(|job| (job["metadata"]["name"].clone(), job["metadata"]["uid"].clone())).collect()
    };
    let before = complete_preflights(&story().jobs_of_refusals);
    assert!(!before.is_empty(), "{}", story().jobs_of_refusals);
    // The next run made its own, of the same name.
    let after = complete_preflights(&story().jobs);
    for (name, uid) in &before {
        assert!(after.iter().any(|(other, another)| other == name && another != uid), "{before:?} {after:?}");
    }
}

/// With kubeadm's etcd left as it is, not even the node that is worked on may be missed.
#[test]
fn a_quorum_and_an_apiserver_are_there_throughout_the_upgrade() {
    let (account, frozen) = &story().monitored;
    assert!(account.samples > 100 && frozen.is_some(), "{account:?}");
    let breaches = rule::breaches(account, frozen.as_slice(), &[]);
    assert!(breaches.is_empty(), "{breaches:#?} {account:#?}");
    // It sees what is missing: the one that was frozen.
    assert_eq!(account.fewest_voters(), Some(2));
}

#[test]
fn one_control_plane_node_is_refused() {
    let single = &story().single;
    for said in [&single.gate, &single.upgrade] {
        assert_eq!(said.code, 10, "{said:?}");
        let reasons = &said.document()["reasons"];
        assert!(reasons.to_string().contains("Q031-single-voter"), "{said:?}");
    }
    assert_eq!(single.before, single.after);
}

#[test]
fn a_node_step_that_fails_names_the_sub_step_and_the_last_lines_of_the_tool() {
    let (report, code) = &story().single.tool;
    assert_eq!((code, &report["failedStep"]), (&20.into(), &"kubeadm-package".into()), "{report}");
    assert!(report["message"].as_str().unwrap().contains("apt-get install"), "{report}");
    let last = report["lastLines"].to_string();
    assert!(last.contains("no space is left, says the disk"), "{report}");
}

#[test]
fn r14_a_step_killed_while_kubeadm_works_is_finished_by_the_next_run() {
    let story = story();
    let on = story.killed_on.as_str();
    assert_eq!(story.killed.code, 20, "{on}: {:?}", story.killed);
    assert!(story.killed.out.contains(&format!("{on} is half done")), "{:?}", story.killed);
    // It stays locked and cordoned: nobody else takes what is half done.
    let node = items(&story.nodes_after_kill).iter().find(|node| node["metadata"]["name"] == on).unwrap();
    assert_eq!(node["spec"]["unschedulable"], true);
    assert!(!story.lease_after_kill["spec"]["holderIdentity"].as_str().unwrap_or("").is_empty());
    for reason in ["Q055-other-disrupted", "Q070-lease-held"] {
        story.gate_after_kill.has_reason(reason, on);
    }
    // The next run went on from there (see R34 for what it did), and no other node got `apply` (see H02).
    assert_eq!(story.finished.said.code, 0, "{:?}", story.finished.said);
}

#[test]
fn r06_the_plan_names_what_is_half_done_first_and_the_worker_that_lags() {
    let story = story();
    let plan = story.plan_after_kill.document();
    let steps = plan["steps"].as_array().unwrap();
    assert_eq!(plan["from"], "v1.36.1", "the oldest kubelet: {plan}");
    assert_eq!(
        (steps[0]["node"].as_str(), &steps[0]["begun"]),
        (Some(story.killed_on.as_str()), &true.into()),
        "{plan}"
    );
    assert_eq!(steps.last().unwrap()["node"], "k4", "{plan}");
    // Every control plane node is on target, and the worker lags: the fleet runs what the oldest kubelet runs.
    let plan = story.plan_of_the_worker.as_ref().expect("a plan while the worker was worked on").document();
    let left: Vec<&str> = plan["steps"].as_array().unwrap().iter().map(|step| step["node"].as_str().unwrap()).collect();
    assert_eq!((&plan["from"], left), (&"v1.36.1".into(), vec!["k4"]), "{plan}");
}

#[test]
fn new_connections_are_handed_to_a_peer_while_kubeadm_works_and_the_rule_goes_with_a_crash() {
    let HandedOver { rule, names, address } = &story().handed_over;
    let rule = rule.as_deref().expect("the rule was in force");
    assert!(rule.contains(address.as_str()), "{rule}");
    let peers: Vec<String> = (11..=13).map(|host| format!("10.10.0.{host}")).filter(|peer| peer != address).collect();
    assert!(peers.iter().any(|peer| names.contains(peer.as_str())), "{names}");
    assert!(!names.contains(address.as_str()), "it answered itself: {names}");
    assert_eq!(story().rules_left, Vec::<String>::new());
}

#[test]
fn h06_nothing_is_given_back_while_etcd_has_not_caught_up() {
    let looks = &story().frozen_in_recovery;
    assert!(looks.len() >= 5, "{looks:?}");
    for look in looks {
        assert_eq!((&look["cordoned"], &look["held"]), (&true.into(), &true.into()), "{looks:?}");
    }
    assert!(looks.iter().any(|look| look["ready"] == "True"), "the node was to be Ready: {looks:?}");
}

#[test]
fn interrupting_the_command_leaves_the_chain_and_the_next_one_follows_it() {
    let story = story();
    assert_ne!(story.interrupted.code, 0, "{:?}", story.interrupted);
    assert!(story.upgrade.err.contains("an upgrade to v1.36.3 is running: following it"), "{:?}", story.upgrade);
    assert_eq!(story.upgrade.code, 0, "{:?}", story.upgrade);
}

#[test]
fn an_apiserver_that_was_told_to_stop_is_not_waited_for_until_the_kubelet_kills_it() {
    let said = "kube-apiserver: ended after its time to stop";
    // On k2 and k3 kubeadm restarts the apiserver, and nobody before it.
    let journals = story().journals[1..3].concat();
    assert!(journals.contains(said), "{journals}");
}

#[test]
fn idle_clients_are_sent_away_before_an_apiserver_stops() {
    let journals = story().journals[..3].concat();
    assert!(journals.contains("idle connections from outside were ended"), "{journals}");
    assert!(!journals.contains("idle connections from outside are not ended"), "{journals}");
    // To them it is a server that closes what is idle.
    let said: Vec<&str> = story().clients.failures.iter().map(|failure| failure.error.as_str()).collect();
    assert!(!said.iter().any(|error| error.contains("shutting down")), "{said:?}");
}

#[test]
fn a_node_pod_killed_midway_is_followed_by_one_that_attaches() {
    let story = story();
    let ends: Vec<(&Value, &str)> = items(&story.worker_pods)
        .iter()
        .filter(|pod| pod["spec"]["containers"][0]["args"][1] == "upgrade")
        .map(|pod| &pod["status"]["containerStatuses"][0]["state"]["terminated"])
        .map(|end| (&end["exitCode"], end["message"].as_str().unwrap_or("")))
        .collect();
    assert_eq!(ends.len(), 2, "{ends:?}");
    assert!(ends.iter().any(|(code, _)| **code == 137), "{ends:?}");
    let (_, report) = ends.iter().find(|(code, _)| **code == 0).unwrap_or_else(|| panic!("{ends:?}"));
    let report: Value = serde_json::from_str(report).unwrap();
    assert_eq!((&report["attached"], &report["done"]), (&Value::from(true), &Value::from(true)), "{report}");
    assert_eq!(story.worker_units, 1, "the step was started once on the host");
}

#[test]
fn h02_apply_runs_on_one_node_and_node_on_all_others() {
    let orders: Vec<Vec<String>> = node_orders(&story().jobs);
    let apply = orders.iter().filter(|order| order.iter().any(|word| word == "--mode=apply")).count();
    let node = orders.iter().filter(|order| order.iter().any(|word| word == "--mode=node")).count();
    assert_eq!((apply, node), (1, 3), "{orders:?}");
    // Incident R18: the target is always said.
    assert!(orders.iter().all(|order| order.iter().any(|word| *word == format!("--to={TO}"))), "{orders:?}");
    // What kubeadm was told on each host. The one where it was killed was told twice.
    let said = |what: &str| -> Vec<String> {
        let hosts = (1..).zip(&story().journals).filter(|(_, journal)| journal.contains(what));
        hosts.map(|(number, _)| format!("k{number}")).collect()
    };
    assert_eq!(said(&format!("$ kubeadm upgrade apply {TO} ")), [story().killed_on.as_str()]);
    let others: Vec<&str> = ["k1", "k2", "k3", "k4"].into_iter().filter(|name| *name != story().killed_on).collect();
    assert_eq!(said("$ kubeadm upgrade node "), others);
}

#[test]
fn r01_no_step_ran_on_the_node_that_it_took_down() {
    let mut steps = 0;
    for pod in items(&story().pods) {
        let target = pod["metadata"]["annotations"]["quorate.dev/target"].as_str();
        let is_step = pod["spec"]["containers"][0]["args"][0] == "step";
        if let (Some(target), true) = (target, is_step) {
            steps += 1;
            assert_ne!(pod["spec"]["nodeName"], target);
        }
    }
    assert!(steps >= 4, "{steps}");
}

#[test]
fn r12_nodes_come_from_the_api() {
    // No pod can look a node's name up: the machines have no DNS. All four were found, each by its name in the API, and addressed
    // by what the API says of it.
    let jobs = &story().jobs;
    let orders = items(jobs).iter().filter(|job| order_of(job).is_some());
    let mut targets: Vec<&str> =
        orders.map(|job| job["spec"]["template"]["spec"]["nodeName"].as_str().unwrap()).collect();
    targets.sort_unstable();
    assert_eq!(targets, ["k1", "k2", "k3", "k4"]);
}

#[test]
fn r02_a_finished_cluster_is_success() {
    let again = &story().again;
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.out.contains("nothing to do: all 4 nodes are on v1.36.3"), "{again:?}");
}

#[test]
fn r07_finished_nodes_are_left_alone() {
    let story = story();
    assert_eq!(
        story.untouched_before, story.untouched_after,
        "nodes, pods outside of our namespace and their start times"
    );
    assert_eq!(story.writes_of_second_run, Vec::<String>::new(), "writes beyond our own namespace in the audit log");
    assert!(story.writes_of_first_run > 0, "the audit log shows what the first run wrote");
}

#[test]
fn r03_nothing_that_our_accounts_asked_was_denied() {
    let (denied, asked) = &story().denied;
    assert!(denied.is_empty(), "{denied:?}");
    assert!(*asked > 100, "the audit log shows what was asked: {asked}");
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

/// What a Lease says of who holds it; none when nobody does, or in words that cannot be read.
fn record(lease: &Value) -> Option<Value> {
    serde_json::from_str(lease["metadata"]["annotations"]["quorate.dev/holder"].as_str()?).ok()
}

/// The arguments of the node Jobs that changed something.
fn node_orders(jobs: &Value) -> Vec<Vec<String>> {
    items(jobs).iter().filter_map(order_of).collect()
}

/// The arguments of a node Job that changes something; none of another Job.
fn order_of(job: &Value) -> Option<Vec<String>> {
    let args = &job["spec"]["template"]["spec"]["containers"][0]["args"];
    (args[0] == "node" && args[1] == "upgrade")
        .then(|| args.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect())
}
