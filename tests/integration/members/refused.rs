//! What etcd allows and loses its quorum by, and what is refused; each with its reason.

use super::*;

/// The promotion of a dead learner while a voter is down: quorate refuses, and then plain etcd on the very same
/// members does it, and has lost its quorum for good.
fn plain_etcd_loses_its_quorum_where_we_refuse(version: EtcdVersion) -> Result<()> {
    let mut host = Host::of(version, 3)?;
    let learner = host.cluster.add_learner()?;
    let id = host.id(learner)?;
    // etcd compares absolute indexes: of a log of ten entries, one is too many to lack.
    for _ in 0..200 {
        host.cluster.member(1)?.call("/v3/kv/put", &json!({"key": "YQ==", "value": "YQ=="}))?;
    }
    host.comes_to(0, &[], || host.members(&[&["promote", id.as_str(), "--dry-run"], WITHOUT_API.as_slice()].concat()))?;
    host.cluster.member(learner)?.kill()?;
    host.comes_to(10, &["Q034"], || host.change("promote", &id, &[]))?;
    // A follower: with a new leader etcd would not know of the learner's index, and refuse by luck.
    let dead = host.followers()?[0];
    host.cluster.member(dead)?.kill()?;
    host.comes_to(10, &["Q030", "Q034", "Q004"], || host.change("promote", &id, &[]))?;
    // And no override helps.
    let refused = host.change("promote", &id, &["--lift", "Q034"])?;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("nothing lifts Q034-learner-not-alive"), "{refused:?}");

    let leader = host.cluster.member(host.leader()?)?;
    leader.health()?;
    let target = json!({"ID": host.cluster.member(learner)?.id().to_string()});
    leader.call("/v3/cluster/member/promote", &target).context("plain etcd promotes it")?;
    until("quorum is lost", PATIENCE, || {
        let alive = host.cluster.members().iter().filter(|member| member.process().running().is_ok());
        let healthy: Vec<_> = alive.filter(|member| member.health().is_ok()).map(|member| member.name()).collect();
        Ok(if healthy.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("{healthy:?}")) })
    })?;
    // Nor can it be taken back: a removal needs a majority, too.
    assert!(leader.call("/v3/cluster/member/remove", &target).is_err());
    // We see it, and say so.
    let lost = host.members(&["list", "--here"])?;
    assert_eq!(lost.code, Some(12), "{lost:?}");
    assert_eq!(lost.document()["members"].as_array().map(Vec::len), Some(4), "{lost:?}");
    host.change("remove", &id, &[])?.ended_for(12, &["Q001"]);
    Ok(())
}

#[test]
fn plain_etcd_3_5_loses_its_quorum_by_a_dead_learner_and_we_refuse_it() -> Result<()> {
    plain_etcd_loses_its_quorum_where_we_refuse(EtcdVersion::V3_5)
}

#[test]
fn plain_etcd_3_6_loses_its_quorum_by_a_dead_learner_and_we_refuse_it() -> Result<()> {
    plain_etcd_loses_its_quorum_where_we_refuse(EtcdVersion::V3_6)
}

#[test]
fn plain_etcd_3_7_loses_its_quorum_by_a_dead_learner_and_we_refuse_it() -> Result<()> {
    plain_etcd_loses_its_quorum_where_we_refuse(EtcdVersion::V3_7)
}

/// A frozen learner has its connections, and etcd takes it for one that has caught up.
#[test]
fn a_frozen_learner_is_refused_and_promoted_when_it_goes_on() -> Result<()> {
    let mut host = Host::of(EtcdVersion::V3_6, 3)?;
    let learner = host.cluster.add_learner()?;
    let id = host.id(learner)?;
    host.cluster.member(learner)?.pause()?;
    host.comes_to(10, &["Q034"], || host.change("promote", &id, &[]))?;
    host.cluster.member(learner)?.resume()?;
    host.change("promote", &id, &[])?.ended_for(0, &[]);
    host.voters(4)?;
    // It is over: whoever asks again is told so, and nothing happens.
    host.change("promote", &id, &[])?.ended_for(10, &["Q035"]);
    Ok(())
}

/// A learner that is stopped most of the time answers, and is behind what the others write meanwhile.
#[test]
fn a_learner_that_lags_waits_and_is_named() -> Result<()> {
    let mut host = Host::of(EtcdVersion::V3_6, 3)?;
    let learner = host.cluster.add_learner()?;
    let id = host.id(learner)?;
    // A bound that the little which is written here exceeds.
    let config = host.state.path().join("config.yaml");
    fs::write(&config, "rule: {recoveredLag: 2}\n")?;
    let config = format!("--config={}", config.display());
    let done = std::sync::atomic::AtomicBool::new(false);
    let (member, writer) = (host.cluster.member(learner)?, host.cluster.member(host.leader()?)?);
    let go_on = || !done.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        let starved = scope.spawn(|| -> Result<()> {
            while go_on() {
                member.pause()?;
                std::thread::sleep(Duration::from_millis(700));
                member.resume()?;
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        let written = scope.spawn(|| -> Result<()> {
            while go_on() {
                writer.call("/v3/kv/put", &json!({"key": "bGFn", "value": "bGFn"}))?;
            }
            Ok(())
        });
        let args = [&["promote", id.as_str(), "--dry-run", config.as_str()], WITHOUT_API.as_slice()].concat();
        let held = until("the lag is seen", PATIENCE, || {
            let said = host.members(&args)?;
            let lags = said.code == Some(11) && said.codes().contains(&"Q012".to_owned());
            Ok(if lags { ControlFlow::Break(said) } else { ControlFlow::Continue(anyhow!("{said:?}")) })
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        starved.join().unwrap()?;
        written.join().unwrap()?;
        let held = held?;
        assert!(held.out.contains("Q012-learner-lagging") && held.out.contains("at most 2 are healthy"), "{held:?}");
        Ok::<(), anyhow::Error>(())
    })?;
    host.change("promote", &id, &[])?.ended_for(0, &[]);
    Ok(())
}

#[test]
fn each_refusal_of_a_change_names_its_reason_and_changes_nothing() -> Result<()> {
    let host = Host::of(EtcdVersion::V3_6, 3)?;
    let (leader, followers) = (host.leader()?, host.followers()?);
    let (lead, other, third) = (format!("k{leader}"), format!("k{}", followers[0]), format!("k{}", followers[1]));
    host.change("remove", &other, &[])?.ended_for(10, &["Q032"]);
    host.change("remove", &lead, &[])?.ended_for(10, &["Q032", "Q023"]);
    host.change("promote", &other, &[])?.ended_for(10, &["Q035"]);
    host.change("replace", &other, &[])?.ended_for(10, &["Q032"]);
    for (args, words) in [
        (vec!["remove", "k9", "--yes", "k9"], "no etcd member is called `k9`: there are"),
        (vec!["move-leader", &other, "--yes", &third], "is not what this is about"),
        (vec!["remove", &other, "--lift", "Q032"], "this is no terminal: confirm with --yes="),
        (vec!["add", "--node", "k4", "--yes", "k4"], "name it by --peer-url"),
        (vec!["add", "--node", "k4", "--peer-url", "10.0.0.1", "--yes", "k4"], "expected one such as https://"),
    ] {
        let said = host.members(&[args, WITHOUT_API.to_vec()].concat())?;
        assert_eq!(said.code, Some(2), "{said:?}");
        let line = said.err.lines().last().unwrap_or_default();
        assert!(line.starts_with("error: ") && line.contains(words), "{said:?}");
    }
    // One that is down: it may go, and nobody else; that way is spelt out.
    host.cluster.member(followers[0])?.kill()?;
    let refused = host.comes_to(10, &["Q030", "Q033", "Q004"], || host.change("remove", &third, &[]))?;
    let way = format!("permitted now: `quorate etcd members replace {}` ({other} (", host.id(followers[0])?);
    assert!(refused.document()["blockers"].to_string().contains(&way), "{refused:?}");
    host.change("move-leader", &other, &["--wait", "1s"])?.ended_for(12, &["Q004", "Q037"]);
    let add = ["add", "--node", "k4", "--peer-url", "https://127.0.0.99:2380", "--yes", "k4", "--wait", "1s"];
    host.members(&[add.as_slice(), WITHOUT_API.as_slice()].concat())?.ended_for(12, &["Q004"]);
    host.voters(3)?;
    // The last voter never.
    let alone = Host::of(EtcdVersion::V3_6, 1)?;
    alone.change("remove", "k1", &[])?.ended_for(10, &["Q031"]);
    alone.change("replace", "k1", &[])?.ended_for(10, &["Q031"]);
    Ok(())
}

#[test]
fn a_member_that_never_started_is_strange_holds_the_others_and_goes() -> Result<()> {
    let host = Host::of(EtcdVersion::V3_6, 3)?;
    let id = format!("{:x}", host.cluster.add_member_unstarted(Join::Learner)?);
    let row = host.row(&id)?;
    assert_eq!((&row["started"], &row["role"]), (&false.into(), &"learner".into()), "{row}");
    assert!(row["strange"].to_string().contains("has never started"), "{row}");
    host.change("promote", &id, &["--wait", "1s"])?.ended_for(10, &["Q034", "Q017", "Q018"]);
    let add = ["add", "--node", "k5", "--peer-url", "https://127.0.0.99:2380", "--yes", "k5", "--wait", "1s"];
    host.members(&[add.as_slice(), WITHOUT_API.as_slice()].concat())?.ended_for(11, &["Q017", "Q018"]);
    let follower = format!("k{}", host.followers()?[0]);
    host.change("move-leader", &follower, &["--wait", "1s"])?.ended_for(11, &["Q017", "Q018"]);
    host.change("remove", &id, &[])?.ended_for(0, &[]);
    host.voters(3)
}
