//! What is seen of the machines from outside while they reboot: gates, power, boots. Nothing runs in a machine for it.

use super::super::{items, record};
use super::fleet::GATE;
use lab::Machine;
use lab::prober::monitor::Monitor;
use lab::prober::monitor::rule::{Hit, Part, Target};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A shutdown takes less.
const SHUTDOWN_MS: u64 = 5_000;
const LOOK: Duration = Duration::from_millis(300);

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// How many looks.
    pub(super) looks: usize,
    /// Control plane nodes whose gates were open at the same time, more than one. A worker's may be for a moment, until it sees that a control
    /// plane node goes first.
    pub(super) gates: BTreeSet<Vec<String>>,
    /// Nodes that were off at the same time, more than one.
    pub(super) off: BTreeSet<Vec<String>>,
    /// The boots of each, in their order.
    pub(super) boots: BTreeMap<String, Vec<String>>,
    /// Whose turn it was, by the control plane's Lease.
    pub(super) targets: Vec<Target>,
    /// When each new boot was seen.
    pub(super) reboots: Vec<(String, u64)>,
    /// What happened when, for whoever reads a failure.
    pub(super) story: Vec<String>,
}

/// Watches until it is over. The first `control_plane` machines are those of the control plane.
pub(super) fn watch(machines: &[Machine], control_plane: usize, monitor: &Monitor, over: &AtomicBool) -> Watched {
    let (mut seen, mut last, mut read) = (Watched::default(), BTreeMap::new(), 0);
    while !over.load(Ordering::Relaxed) {
        if let Some((at_ms, leases)) = monitor.glance().filter(|(at_ms, _)| *at_ms != read) {
            read = at_ms;
            note(&mut seen.targets, target(&leases), at_ms);
        }
        look(machines, control_plane, &mut seen, &mut last, monitor.now_ms());
        std::thread::sleep(LOOK);
    }
    seen
}

/// The node for which the control plane's Lease is held.
fn target(leases: &Value) -> Option<String> {
    let lease = items(leases).iter().find(|lease| lease["metadata"]["name"] == "control-plane-disruption")?;
    if lease["spec"]["holderIdentity"].as_str().unwrap_or_default().is_empty() {
        return None;
    }
    record(lease)?["target"].as_str().map(str::to_owned)
}

/// A turn begins when the Lease names another node than before; one that is given back and taken again for the same node goes on.
fn note(targets: &mut Vec<Target>, target: Option<String>, at_ms: u64) {
    let Some(node) = target else { return };
    if targets.last().is_none_or(|last| last.node != node) {
        targets.push(Target { node, from_ms: at_ms, down_ms: None });
    }
}

fn look(
    machines: &[Machine],
    control_plane: usize,
    seen: &mut Watched,
    last: &mut BTreeMap<String, (bool, bool)>,
    now_ms: u64,
) {
    seen.looks += 1;
    let (mut open, mut off) = (Vec::new(), Vec::new());
    for (number, machine) in machines.iter().enumerate() {
        let name = machine.name();
        let (is_on, gate) = (machine.is_on().unwrap(), machine.peek(GATE).unwrap().is_some());
        if gate && number < control_plane {
            open.push(name.clone());
        }
        if !is_on {
            off.push(name.clone());
        }
        if last.insert(name.clone(), (is_on, gate)) != Some((is_on, gate)) {
            let (power, gate) = (if is_on { "on" } else { "off" }, if gate { ", its gate open" } else { "" });
            seen.story.push(format!("{:4} s: {name} is {power}{gate}", now_ms / 1000));
            if !is_on && let Some(turn) = seen.targets.last_mut().filter(|turn| turn.node == name) {
                turn.down_ms.get_or_insert(now_ms);
            }
        }
        if let Some(boot) = machine.peek_boot_id().unwrap() {
            let boots = seen.boots.entry(name.clone()).or_default();
            if boots.last() != Some(&boot) {
                if !boots.is_empty() {
                    seen.story.push(format!("{:4} s: {name} is rebooted", now_ms / 1000));
                    // A quick reboot is never seen to be off.
                    if let Some(turn) = seen.targets.last_mut().filter(|turn| turn.node == name) {
                        turn.down_ms.get_or_insert(now_ms.saturating_sub(SHUTDOWN_MS));
                    }
                    seen.reboots.push((name, now_ms));
                }
                boots.push(boot);
            }
        }
    }
    if open.len() > 1 {
        seen.gates.insert(open);
    }
    if off.len() > 1 {
        seen.off.insert(off);
    }
}

impl Watched {
    /// A sentinel does not move leadership away before it lets its node go, so each reboot of a voter may begin an election. It explains no
    /// other voter that is missing.
    pub(super) fn elections(&self, members: &[String]) -> Vec<Hit> {
        let voters = self.reboots.iter().filter(|(name, _)| members.contains(name));
        let hit = |(name, at_ms): &(String, u64)| Hit {
            one_of: vec![name.clone()],
            part: Part::Voter,
            from_ms: at_ms.saturating_sub(SHUTDOWN_MS),
            healed_ms: Some(*at_ms),
        };
        voters.map(hit).collect()
    }
}
