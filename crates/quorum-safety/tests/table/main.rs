//! The rule as a table: a cluster, what is asked of it, the answer with every reason's number.

mod membership;
mod strain;
mod taking_down;
mod under_way;

use quorum_safety::fixture::{self, Cluster, healthy, id, name, reboot, stranger, unknown, upgrade};
use quorum_safety::*;
use std::collections::BTreeSet;

/// The answer in short: `permitted 1` (the margin), `held Q004 Q041`, `refused Q030`.
fn short(verdict: &Verdict) -> String {
    let codes: BTreeSet<&str> = verdict.reasons().iter().map(|reason| &reason.code.as_str()[..4]).collect();
    let codes: Vec<&str> = codes.into_iter().collect();
    match verdict {
        Verdict::Permitted(permit) => format!("permitted {}", permit.margin()),
        Verdict::Held(_) => format!("held {}", codes.join(" ")),
        Verdict::Refused(_) => format!("refused {}", codes.join(" ")),
    }
}

type Row = (&'static str, Cluster, Disruption, &'static str);

fn check(rows: impl IntoIterator<Item = Row>) {
    let wrong: Vec<String> = rows
        .into_iter()
        .filter_map(|(what, cluster, wanted, expected)| {
            let verdict = cluster.judge(&wanted);
            let got = short(&verdict);
            (got != expected).then(|| {
                let reasons: Vec<String> = verdict.reasons().iter().map(|reason| format!("    {reason}")).collect();
                format!("{what} | {wanted}\n  expected {expected}\n  got      {got}\n{}", reasons.join("\n"))
            })
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn defragment(n: u64) -> Disruption {
    Disruption::Defragment(id(n))
}
fn promote(n: u64) -> Disruption {
    Disruption::Promote(id(n))
}
fn remove(n: u64) -> Disruption {
    Disruption::Remove(id(n))
}
fn replace(n: u64) -> Disruption {
    Disruption::Replace(id(n))
}
fn move_leader(n: u64) -> Disruption {
    Disruption::MoveLeader(id(n))
}
fn worker() -> Disruption {
    Disruption::Reboot("w1".into())
}

fn first_without_leader(view: &mut MemberView) {
    if let Fact::Known(sample) = &mut view.first {
        sample.leader = None;
    }
}

fn old_list(view: &mut MemberView) {
    if let Fact::Known(list) = &mut view.member_list {
        list.pop();
    }
}

fn back(sample: &mut StatusSample, by: u64) {
    sample.raft_index -= by;
    sample.applied_index -= by;
}

fn still(view: &mut MemberView) {
    view.first = view.second.clone();
}

fn answered_twice(cluster: Cluster, n: u64) -> Cluster {
    cluster.with(|cluster| {
        let again: Vec<MemberView> =
            cluster.seen.etcd.members.iter().filter(|view| view.id == id(n)).cloned().collect();
        cluster.seen.etcd.members.extend(again);
    })
}

fn days(days: i64) -> Fact<UnixSeconds> {
    Fact::Known(UnixSeconds(fixture::NOW.0 + days * 24 * 3600))
}

fn leaders(cluster: Cluster, leader: u64) -> Cluster {
    (1..=3).fold(cluster, |cluster, n| cluster.on_samples(n, |sample| sample.leader = Some(id(leader))))
}

fn nothing_known(cluster: &mut Cluster) {
    *cluster = (1..=3).fold(cluster.clone(), |cluster, n| cluster.power_cut(n).on_member(n, |v| v.node = unknown()));
    cluster.seen.etcd.membership = unknown();
    cluster.seen.cluster_uid = unknown();
    cluster.seen.nodes = unknown();
    cluster.in_flight.control_plane = unknown();
    cluster.in_flight.kured = unknown();
    cluster.in_flight.kill_switch = unknown();
}

fn ours(node: &str, cluster: Cluster) -> Cluster {
    cluster.on_node(node, |node| node.cordon = Cordon::Ours(fixture::OPERATION.into()))
}

fn whole_learner(n: u64) -> Cluster {
    healthy(n)
        .learner()
        .on_node(&format!("k{}", n + 1), |node| node.ready = Fact::Known(true))
        .on_apiserver(n + 1, |view| view.ready = Fact::Known(true))
}
