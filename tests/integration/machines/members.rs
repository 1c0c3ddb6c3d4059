//! `quorate etcd members` on the machines: the list, leadership that is moved by a Job under the locks, a removal that is refused.

use super::stage::{Said, Stage};
use super::story::story;
use serde_json::Value;

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
    Members { chosen, list, moved, after, removed, lease }
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
