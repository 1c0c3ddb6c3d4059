//! Changes that are carried out: on the host of a member, with the API away.

use super::*;
use std::io::Write;
use std::process::Stdio;

/// One voter is down: the dead one is removed, added anew, started, promoted; killed in the middle, wherever that is, and gone on with.
fn a_dead_member_is_replaced_and_whoever_is_killed_meanwhile_is_gone_on_from(version: EtcdVersion) -> Result<()> {
    let mut host = Host::of(version, 3)?;
    let (dead, old) = (host.followers()?[0], host.id(host.followers()?[0])?);
    let name = format!("k{dead}");
    host.cluster.member(dead)?.kill()?;
    host.comes_to(0, &[], || host.members(&[&["replace", &name, "--dry-run"], WITHOUT_API.as_slice()].concat()))?;
    // The first is killed as soon as the old member is gone: before it has asked for the new one, or after.
    let first = host.begin("replace", &name)?;
    let gone = |list: &[Value]| list.iter().all(|member| member.get("name") != Some(&name.clone().into()));
    host.listed("the dead member is gone", gone)?;
    first.kill()?;
    // Nothing else is begun on this host meanwhile.
    let other = format!("k{}", host.leader()?);
    let held = host.change("move-leader", &other, &["--wait", "1s"])?;
    assert!(held.code == Some(11) && held.out.contains(&format!("members replace {old}")), "{held:?}");
    // The second is killed while it waits for the new member to start.
    let second = host.begin("replace", &name)?;
    let log = || Ok::<String, anyhow::Error>(fs::read_to_string(host.state.path().join("background.log"))?);
    until("it says what is to be typed on the node", PATIENCE, || {
        second.running()?;
        let said = log()?;
        Ok(if said.contains("kubeadm join phase") {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(anyhow!(said))
        })
    })?;
    host.listed("the new member is added", unstarted)?;
    second.kill()?;
    let third = host.begin("replace", &name)?;
    host.cluster.start_added(dead)?;
    host.voters(3)?;
    ended(&third)?;
    let said = fs::read_to_string(host.state.path().join("background.log"))?;
    // How many are healthy is what they are at that moment: another one may be slow just then.
    assert!(said.contains(&format!("member {old} is replaced on node {name}; 3 voters, ")), "{said}");
    // What was to be typed on the node.
    assert!(said.contains("kubeadm join phase etcd-join"), "{said}");
    assert_eq!(host.list()?["members"].as_array().map(Vec::len), Some(3));
    assert_ne!(host.row(&name)?["id"], old.as_str());
    // It is over, also for this host: the name is the new member's again.
    host.cluster.wait_healthy(PATIENCE)?;
    host.change("replace", &name, &[])?.ended_for(10, &["Q032"]);
    Ok(())
}

#[test]
fn a_dead_member_of_etcd_3_5_is_replaced_through_kills() -> Result<()> {
    a_dead_member_is_replaced_and_whoever_is_killed_meanwhile_is_gone_on_from(EtcdVersion::V3_5)
}

#[test]
fn a_dead_member_of_etcd_3_6_is_replaced_through_kills() -> Result<()> {
    a_dead_member_is_replaced_and_whoever_is_killed_meanwhile_is_gone_on_from(EtcdVersion::V3_6)
}

#[test]
fn a_dead_member_of_etcd_3_7_is_replaced_through_kills() -> Result<()> {
    a_dead_member_is_replaced_and_whoever_is_killed_meanwhile_is_gone_on_from(EtcdVersion::V3_7)
}

/// From the host of the member that is dead: its own manifest says who the others are.
#[test]
fn members_are_found_from_the_host_of_a_dead_one_and_changed_one_by_one() -> Result<()> {
    let mut host = Host::of(EtcdVersion::V3_6, 3)?;
    // The host is k1's; its leadership goes first, as it would before its etcd is stopped.
    if host.leader()? == 1 {
        host.change("move-leader", "k2", &[])?.ended_for(0, &[]);
        assert_eq!(host.leader()?, 2);
    }
    let old = host.id(1)?;
    host.cluster.member(1)?.kill()?;
    host.comes_to(10, &["Q030", "Q033", "Q004"], || host.change("remove", "k3", &[]).map(without_leader))?;
    host.comes_to(0, &[], || host.change("remove", &old, &[]))?;
    host.voters(2)?;
    let url = host.cluster.peer_url(1);
    let add = ["add", "--node", "k1", "--peer-url", &url, "--yes", "k1"];
    // Within five seconds of a change etcd itself refuses, which is waited for.
    host.members(&[add.as_slice(), WITHOUT_API.as_slice()].concat())?.ended_for(0, &[]);
    host.cluster.start_added(1)?;
    let id = host.id(1)?;
    // It is waited for until it has caught up.
    host.comes_to(0, &[], || host.change("promote", &id, &[]))?;
    host.voters(3)?;
    // What was gone without is on record.
    let recorded = fs::read_to_string(host.state.path().join("overrides.jsonl"))?;
    for command in [format!("remove {old}"), format!("add --node=k1 --peer-url={url}"), format!("promote {id}")] {
        assert!(recorded.contains(&command) && recorded.contains("no apiserver runs"), "{command}: {recorded}");
    }
    assert!(!host.state.path().join("members.begun").exists());
    Ok(())
}

/// Who of the two that are left leads does not matter here.
fn without_leader(mut said: Said) -> Said {
    let mut document = said.document();
    if let Some(reasons) = document["reasons"].as_array_mut() {
        reasons.retain(|reason| reason["code"] != "Q023-target-leads");
    }
    said.out = document.to_string();
    said
}

#[test]
fn leadership_goes_where_it_is_told_and_a_second_time_is_no_change() -> Result<()> {
    let host = Host::of(EtcdVersion::V3_6, 3)?;
    let to = host.followers()?[1];
    let name = format!("k{to}");
    host.change("move-leader", &name, &[])?.ended_for(0, &[]);
    assert_eq!(host.leader()?, to);
    let again = host.change("move-leader", &name, &[])?.ended_for(0, &[]);
    assert!(!again.err.contains("permitted: moving leadership"), "{again:?}");
    Ok(())
}

/// `script` of util-linux gives it a terminal, and types what it reads.
#[test]
fn on_a_terminal_what_is_typed_decides() -> Result<()> {
    let host = Host::of(EtcdVersion::V3_6, 3)?;
    let to = host.followers()?[0];
    let name = format!("k{to}");
    let args = [&["move-leader", name.as_str()], WITHOUT_API.as_slice()].concat();
    let words: Vec<String> = host.args(&args).iter().map(|word| format!("'{word}'")).collect();
    let command = format!("{} {}", env!("CARGO_BIN_EXE_quorate"), words.join(" "));
    let typed = |word: &str| -> Result<Said> {
        let mut terminal = Command::new("script");
        terminal.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
        terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = terminal.spawn()?;
        writeln!(running.stdin.take().context("no input")?, "{word}")?;
        Ok(running.wait_with_output()?.into())
    };
    let refused = typed("yes")?;
    assert!(refused.code == Some(2) && refused.out.contains("`yes` is not what this is about"), "{refused:?}");
    assert!(refused.out.contains(&format!("type `{name}` to go on: ")), "{refused:?}");
    assert_ne!(host.leader()?, to);
    let done = typed(&name)?;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(host.leader()?, to);
    Ok(())
}

#[test]
fn a_list_shows_each_member_as_it_says_of_itself() -> Result<()> {
    let host = Host::of(EtcdVersion::V3_7, 3)?;
    let list = host.list()?;
    let rows = list["members"].as_array().context("no members")?;
    assert_eq!((&list["kind"], rows.len()), (&"EtcdMembers".into(), 3));
    for (row, member) in rows.iter().map(|row| (row, row["name"].as_str().unwrap_or_default())) {
        let known = &row["status"]["known"];
        let of = host.cluster.members().iter().find(|it| it.name() == member).context("no such member")?;
        assert_eq!(row["id"], format!("{:x}", of.id()));
        assert_eq!(row["clientUrls"], json!([of.endpoint()]));
        assert!(known["version"].as_str().is_some_and(|version| version.starts_with("3.7.")), "{row}");
        assert!(known["raftIndex"].as_u64() > Some(0) && known["dbSize"].as_u64() > Some(0), "{row}");
        // Only the API knows the nodes.
        assert!(row["node"]["unknown"].is_string(), "{row}");
    }
    assert_eq!(rows.iter().filter(|row| row["leads"] == true).count(), 1);
    let args: Vec<String> = host.args(&["list", "--here"]).into_iter().filter(|arg| arg != "-ojson").collect();
    let text = Said::from(Command::new(env!("CARGO_BIN_EXE_quorate")).args(args).output()?);
    let header = text.out.lines().next().unwrap_or_default().trim_start();
    assert!(header.starts_with("ID") && header.contains("IN USE") && header.contains("ALARMS"), "{text:?}");
    assert_eq!(text.out.lines().filter(|line| line.contains(" voter ")).count(), 3, "{text:?}");
    Ok(())
}
