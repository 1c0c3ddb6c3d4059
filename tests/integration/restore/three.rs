//! Three members: what is refused while they live, the restore of one when the others are stopped, and the join of another.

use super::*;

/// What a Job of the plan is to kubeadm: adds a learner, starts it on an empty folder, promotes it.
fn kubeadm_joins(place: &mut Place, number: u8) -> Result<()> {
    let url = place.api.etcd().peer_url(number);
    let member = |place: &Place, path: &str, body: &Value| place.api.etcd().member(1)?.call(path, body);
    let added = until("the learner is added", PATIENCE, || {
        let body = json!({"peerURLs": [url], "isLearner": true});
        Ok(member(place, "/v3/cluster/member/add", &body).map_or_else(ControlFlow::Continue, ControlFlow::Break))
    })?;
    let id = added["member"]["ID"].clone();
    place.api.etcd_mut().start_added(usize::from(number))?;
    until("it is promoted", PATIENCE, || {
        let promoted = member(place, "/v3/cluster/member/promote", &json!({"ID": id}));
        Ok(promoted.map_or_else(ControlFlow::Continue, |_| ControlFlow::Break(())))
    })
}

#[test]
fn three_members_are_refused_while_they_live_and_one_is_restored_and_another_joins() -> Result<()> {
    let mut place = Place::new(EtcdVersion::V3_6, 3, false)?;
    let file = place.snapshot()?;
    place.map("after")?;
    place.hand_over()?;
    place.served()?;
    refused::everything_that_is_wrong_is_told(&place, &file)?;

    // Who is not restored yet has nobody to join it.
    let join = |place: &Place, node: &str, wait: &str| -> Result<Said> {
        Ok(quorate(&place.args(&["join", node, "--here", "--wait", wait]))?.into())
    };
    join(&place, "k2", "1s")?.ended(2, "nothing was restored on this host");

    // The others are stopped, as was printed; then it is known that there is no quorum, and no override is needed.
    for number in [2, 3] {
        place.api.etcd().member(number)?.kill()?;
    }
    place.restore(&file, &["--yes=k1"])?.ended(0, "as a cluster of one member");
    place.is_restored()?;

    // One after the other: gated, printed, waited for.
    join(&place, "k4", "1s")?.ended(2, "(k2, k3 were there before the restore): say --address");
    let said = join(&place, "k2", "1s")?.ended(11, "k2 has not joined yet");
    assert!(said.err.contains("on k2, as root:") && said.err.contains("kubeadm join phase etcd-join"), "{said:?}");
    let log = place.state.path().join("join.log");
    let waits = Process::new(
        "quorate",
        env!("CARGO_BIN_EXE_quorate").into(),
        place.args(&["join", "k2", "--here"]),
        log.clone(),
    );
    waits.start()?;
    until("it says what is to be typed", PATIENCE, || {
        waits.running()?;
        let said = fs::read_to_string(&log)?;
        Ok(if said.contains("etcd-join") { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!(said)) })
    })?;
    kubeadm_joins(&mut place, 2)?;
    until("it has seen that", PATIENCE, || {
        let said = fs::read_to_string(&log)?;
        let over = waits.running().is_err();
        Ok(if over { ControlFlow::Break(said) } else { ControlFlow::Continue(anyhow!(said)) })
    })
    .map(|said| assert!(said.contains("k2 takes part: 2 voters, each healthy"), "{said}"))?;
    // Nobody joins while one of those that are there does not take part.
    place.api.etcd().member(2)?.pause()?;
    let said = join(&place, "k3", "1s")?;
    assert!(said.code == Some(11) && !said.err.contains("etcd-join"), "{said:?}");
    place.api.etcd().member(2)?.resume()?;
    // What it has is what was restored.
    place.api.etcd().member(2)?.wait_healthy(PATIENCE)?;
    let ids: Vec<Value> = [1, 2]
        .map(|number| place.api.etcd().member(number)?.call("/v3/maintenance/status", &json!({})))
        .into_iter()
        .map(|status| Ok(status?["header"]["cluster_id"].clone()))
        .collect::<Result<_>>()?;
    assert_eq!(ids[0], ids[1]);
    Ok(())
}

#[test]
fn a_plan_names_every_node_from_what_is_known_and_changes_nothing() -> Result<()> {
    let place = Place::new(EtcdVersion::V3_6, 3, false)?;
    let file = place.snapshot()?.display().to_string();
    let labels = json!({"node-role.kubernetes.io/control-plane": ""});
    for number in 1..=3_u8 {
        let name = format!("k{number}");
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
        place.api.apply(&node.to_string())?;
        place.api.set_node_ready(&name, place.api.address(number))?;
    }
    let order = |said: &Said| -> Vec<String> {
        let steps = said.document()["steps"].as_array().cloned().unwrap_or_default();
        steps.iter().map(|step| step["node"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let kubeconfig = format!("--kubeconfig={}", place.api.kubeconfig()?.display());
    let plan = |more: &[&str]| -> Result<Said> { Ok(quorate(&place.args(&[&["plan", &file], more].concat()))?.into()) };
    // The API tells them.
    let said = plan(&[&kubeconfig])?.ended(0, "those of the API");
    assert_eq!(order(&said), ["k2", "k3", "k1", "k2", "k3"]);
    let said = plan(&[&kubeconfig, "--on=k3"])?.ended(0, "RestorePlan");
    assert_eq!(order(&said), ["k1", "k2", "k3", "k1", "k2"]);
    plan(&[&kubeconfig, "--on=k7"])?.ended(2, "no node is called `k7`: there are k1, k2, k3");
    // Without it, those that were typed, or the members that the snapshot names.
    let said = plan(&["--node=cp=10.0.0.1"])?.ended(0, "those that were typed");
    assert_eq!(order(&said), ["cp"]);
    plan(&["--node=cp=10.0.0.1", "--node=cp=10.0.0.2"])?
        .ended(2, "--node cp=10.0.0.2: its name or its address was typed before");
    plan(&["--node=a=10.0.0.1", "--node=b=10.0.0.1"])?
        .ended(2, "--node b=10.0.0.1: its name or its address was typed before");
    let nowhere = "--kubeconfig=/nowhere";
    let said = plan(&[nowhere])?.ended(0, "the members that the snapshot names");
    assert_eq!(order(&said), ["k2", "k3", "k1", "k2", "k3"]);
    // The copies of what was unpacked have no names.
    assert_eq!(fs::read_dir(place.state.path())?.count(), 0);
    Ok(())
}
