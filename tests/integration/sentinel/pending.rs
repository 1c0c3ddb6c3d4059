//! A node that waits for a day: what that costs.

use super::*;
use crate::image::dist;

/// A day of looks, 300 s apart.
const LOOKS: usize = 288;

/// What it may take, in KiB: anonymous, and resident at most.
const ANONYMOUS: u64 = 6 * 1024;
const RESIDENT: u64 = 14 * 1024;

/// A line of its status, in KiB.
fn memory(process: &Process, what: &str) -> Result<u64> {
    let pid = process.pid().context("it runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).context("no such line")?;
    Ok(line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn r28_a_node_that_is_pending_for_a_day_costs_no_more_at_its_end() -> Result<()> {
    let mut fleet = Fleet::new()?;
    // What ships: the one for tests has other sizes.
    fleet.program = dist("QUORATE_BIN", "quorate");
    fleet.kured(&["--period=10m", "--reboot-sentinel=/sentinel/quorate-reboot-required"])?;
    fleet.configure("sentinel: {interval: 30ms, watch: 30ms, soak: 24h}\n")?;
    fleet.wants_reboot(3)?;
    // Their sentinels have said since when they are up, and are not started here.
    for number in [1, 2] {
        let boot = json!({"id": "boot-1", "since": 0}).to_string();
        fleet.stage.api.kubectl(["annotate", "node", &format!("k{number}"), &format!("quorate.dev/boot={boot}")])?;
    }
    fleet.start(3)?;
    fleet.says(3, "S013-soak: k1 is up since")?;
    fleet.has_looked(3, LOOKS / 4)?;
    let early = memory(fleet.sentinel(3)?, "RssAnon")?;
    fleet.has_looked(3, LOOKS)?;
    let (late, most) = (memory(fleet.sentinel(3)?, "RssAnon")?, memory(fleet.sentinel(3)?, "VmHWM")?);
    println!("anonymous memory: {early} KiB after {} looks, {late} KiB after {LOOKS}; resident {most} KiB", LOOKS / 4);
    assert!(late <= ANONYMOUS && most <= RESIDENT, "{late} of {ANONYMOUS} KiB, {most} of {RESIDENT} KiB");
    assert!(late <= early + 512, "it grows: {early} KiB, then {late} KiB");
    // What one look asks, and that none asks for all pods. /readyz finds an apiserver that answers.
    let asked = rights::asked(&fleet.stage.api)?;
    let lists = |event: &&Value| event["verb"] == "list" && event["objectRef"]["resource"] == "nodes";
    let (looks, all) = (asked.iter().filter(lists).count(), asked.len());
    assert!(looks >= LOOKS, "{looks}");
    let everywhere =
        |event: &&Value| event["objectRef"]["resource"] == "pods" && event["objectRef"]["namespace"].is_null();
    assert_eq!(asked.iter().filter(everywhere).count(), 0);
    assert!(all <= looks * 5 + 40, "{all} requests in {looks} looks");
    assert!(!fleet.is_open(3));
    Ok(())
}
