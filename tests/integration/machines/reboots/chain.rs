//! Reboots that are wanted while a chain of Jobs upgrades the cluster: each waits for its turn.

use super::super::items;
use super::super::stage::Said;
use super::super::story::TO;
use super::fleet::Fleet;
use super::watch::Watched;
use super::{LIMIT, are_rebooted};
use lab::prober::monitor::Monitor;

/// Upgrades the cluster, and flags two nodes once the first step holds the Lease: the one that it works on, and another of the control plane.
/// Gives what the upgrade said, when nothing is left of all three.
pub(super) fn play(fleet: &Fleet, monitor: &Monitor) -> Said {
    let before = fleet.boots().expect("the API answers");
    let (said, flagged) = std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| fleet.stage.quorate(["upgrade", "--to", TO]));
        let mut first = None;
        fleet.within(LIMIT, "the first step to work on its host", || {
            first = fleet.control_plane().into_iter().find(|machine| machine.runs_command(&["kubeadm"]).unwrap());
            assert!(first.is_some() || !upgrade.is_finished(), "the upgrade is over");
            first.is_some().then_some(()).ok_or_else(|| "no kubeadm runs".to_owned())
        });
        let first = first.expect("it was waited for");
        let other = fleet.control_plane().into_iter().find(|machine| machine.name() != first.name()).unwrap();
        let flagged = [first, other];
        for machine in &flagged {
            fleet.flag(machine);
            println!("{:4} s: {} wants a reboot", monitor.now_ms() / 1000, machine.name());
        }
        (upgrade.join().unwrap(), flagged.map(|machine| machine.name()))
    });
    println!("{:4} s: the upgrade is over", monitor.now_ms() / 1000);
    are_rebooted(fleet, &before, &flagged);
    let nodes = fleet.stage.get(["nodes"]);
    for node in items(&nodes) {
        assert_eq!(node["status"]["nodeInfo"]["kubeletVersion"], TO, "{}", node["metadata"]["name"]);
    }
    said
}

/// The reboots of control plane nodes in a turn that the Lease gave to somebody else.
pub(super) fn out_of_turn(watched: &Watched, members: &[String]) -> Vec<String> {
    let of_members = watched.reboots.iter().filter(|(name, _)| members.contains(name));
    let wrong = of_members.filter_map(|(name, at_ms)| {
        let turn = watched.targets.iter().rfind(|turn| turn.from_ms <= *at_ms);
        let whose = turn.map_or("nobody", |turn| &turn.node);
        (whose != name).then(|| format!("{name} was rebooted in the turn of {whose}"))
    });
    wrong.collect()
}
