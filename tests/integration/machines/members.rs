//! `quorate etcd members` on the machines: the list, leadership that is moved by a Job under the locks, a removal that is refused, a member
//! whose data is spoiled that is replaced by what is printed for its node.

use super::etcd;
use super::stage::{Said, Stage, followed, until};
use super::story::story;
use serde_json::Value;

/// Nothing reads a log of etcd's that begins like this: its etcd ends, and ends again.
const SPOIL: &str =
    "for file in /var/lib/etcd/member/wal/*.wal; do head -c 4096 /dev/urandom | dd of=\"$file\" conv=notrunc; done";

/// What was asked, and said.
pub(super) struct Members {
    /// The member that was to lead.
    chosen: String,
    list: Said,
    moved: Said,
    after: Said,
    /// A removal of a healthy member.
    removed: Said,
    /// The Lease when it was over.
    lease: Value,
    replaced: Replaced,
}

/// A member that was replaced.
struct Replaced {
    /// Its node.
    node: String,
    said: Said,
    /// What was printed to be typed on the node, and was.
    typed: String,
    /// What the node says to that when it is typed a second time.
    again: Said,
    /// Whether the data of the old one is on the node still.
    kept: bool,
    after: Said,
    lease: Value,
}

pub(super) fn members(stage: &Stage) -> Members {
    let list = stage.quorate(["etcd", "members", "list", "-o", "json"]);
    let document = list.document();
    let follows = document["members"].as_array().unwrap().iter().find(|member| member["leads"] == false).unwrap();
    let chosen = follows["name"].as_str().unwrap().to_owned();
    let moved = stage.quorate(["etcd", "members", "move-leader", &chosen, "--yes", &chosen, "-o", "json"]);
    let after = stage.quorate(["etcd", "members", "list", "-o", "json"]);
    let removed = stage.quorate(["etcd", "members", "remove", &chosen, "--yes", &chosen, "-o", "json"]);
    let lease = stage.get(["lease", "-n", "quorate", "control-plane-disruption"]);
    stage.whole();
    let replaced = replaced(stage, &chosen);
    Members { chosen, list, moved, after, removed, lease, replaced }
}

/// Spoils the data of a follower, replaces it, and types on its node what is printed.
fn replaced(stage: &Stage, leader: &str) -> Replaced {
    let node = ["k1", "k2", "k3"].into_iter().find(|node| *node != leader).unwrap().to_owned();
    let machine = stage.machine(&node);
    machine.run_checked(["sh", "-ec", SPOIL]).unwrap();
    machine.kill("etcd").unwrap();
    until("the list to say that it does not answer", || {
        let listed = stage.quorate(["etcd", "members", "list", "-o", "json"]).document();
        let it = listed["members"].as_array().unwrap().iter().find(|member| member["name"] == *node).unwrap().clone();
        if it["status"]["known"].is_null() { Ok(()) } else { Err(it.to_string()) }
    });
    let binary = stage.binary.to_str().unwrap();
    let command = stage.lab.client([binary, "etcd", "members", "replace", &node, "--yes", &node, "-o", "json"]);
    let (said, script) = followed(command, &machine, "QUORATE");
    // Without it the cluster is never whole again: that would be waited for instead of told.
    assert_eq!(said.code, 0, "{node} was not replaced: {}\n{}", said.out, said.err);
    let kept = machine.run(["sh", "-c", "test -d /var/lib/etcd/member-*/wal"]).unwrap().status.success();
    // Typed once more by somebody who is not sure: nothing is done to the new member.
    let again: Said = machine.run(["sh", "-ec", &script]).unwrap().into();
    stage.whole();
    etcd::all_ready(stage);
    let after = stage.quorate(["etcd", "members", "list", "-o", "json"]);
    let lease = stage.get(["lease", "-n", "quorate", "control-plane-disruption"]);
    Replaced { node, said, typed: script, again, kept, after, lease }
}

#[test]
fn a_member_whose_data_is_spoiled_is_replaced_by_what_is_printed_for_its_node() {
    let Members { list, replaced, .. } = &story().members;
    assert_eq!(replaced.said.code, 0, "{:?}", replaced.said);
    assert!(replaced.typed.contains("kubeadm join phase etcd-join"), "{}", replaced.typed);
    assert!(replaced.again.code != 0 && replaced.again.err.contains("File exists"), "{:?}", replaced.again);
    assert!(replaced.kept, "the old data is gone from {}", replaced.node);
    let of = |said: &Said| {
        let listed = said.document();
        let mut ids: Vec<(String, String)> = listed["members"]
            .as_array()
            .unwrap()
            .iter()
            .map(|member| {
                assert_eq!(
                    (&member["role"], &member["strange"]),
                    (&"voter".into(), &Value::Array(Vec::new())),
                    "{member}"
                );
                (member["name"].as_str().unwrap().to_owned(), member["id"].as_str().unwrap().to_owned())
            })
            .collect();
        ids.sort();
        ids
    };
    let (before, after) = (of(list), of(&replaced.after));
    let changed: Vec<&str> =
        before.iter().zip(&after).filter(|(old, new)| old.1 != new.1).map(|(_, new)| new.0.as_str()).collect();
    assert_eq!((after.len(), changed), (3, vec![replaced.node.as_str()]), "{before:?} {after:?}");
    assert_eq!(replaced.lease["spec"]["holderIdentity"], Value::Null, "{}", replaced.lease);
}

#[test]
fn members_are_listed_with_their_nodes_and_nothing_is_strange() {
    let members = &story().members;
    let document = members.list.document();
    assert_eq!((members.list.code, &document["kind"]), (0, &"EtcdMembers".into()), "{:?}", members.list);
    for member in document["members"].as_array().unwrap() {
        assert_eq!((&member["role"], &member["strange"]), (&"voter".into(), &Value::Array(Vec::new())), "{member}");
        assert_eq!(member["node"]["known"], member["name"], "{member}");
    }
}

#[test]
fn leadership_is_moved_by_a_job_under_the_lease_which_is_free_afterwards() {
    let members = &story().members;
    assert_eq!(members.moved.code, 0, "{:?}", members.moved);
    let after = members.after.document();
    let leads: Vec<&Value> = after["members"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|member| member["leads"] == true)
        .map(|it| &it["name"])
        .collect();
    assert_eq!(leads, [members.chosen.as_str()], "{after}");
    assert_eq!(members.lease["spec"]["holderIdentity"], Value::Null, "{}", members.lease);
}

#[test]
fn a_member_that_is_well_is_not_removed() {
    let said = &story().members.removed;
    assert_eq!(said.code, 10, "{said:?}");
    let reasons = said.document()["reasons"].to_string();
    assert!(reasons.contains("Q032-tolerance-would-fall"), "{said:?}");
}
