//! What a change of members comes to, spelt out for people. Pure.

use super::list::called;
use super::plan::{Order, Wanted, leader};
use crate::observe::etcd::host;
use crate::seen::Seen;
use quorum_safety::{Disruption, Fact, Member, MemberId, Membership, NodeName, Policy, Quorum, Role, Verdict, judge};

/// What will happen, a line each.
pub fn story(order: &Order, seen: &Seen, policy: &Policy) -> Vec<String> {
    let Some(membership) = seen.observation.etcd.membership.known() else { return Vec::new() };
    let voters = membership.voters().count();
    let healthy = quorum_safety::healthy_voters(&seen.observation, &seen.in_flight, policy);
    let counts = |then: usize| {
        let (now, after) = (Quorum::of_voters(voters).size(), Quorum::of_voters(then).size());
        format!(
            "voters: {voters} now, {healthy} of them healthy and {now} a majority; {then} afterwards, {after} a majority"
        )
    };
    let node = &order.node;
    match &order.wanted {
        Wanted::Add { peer_url } => vec![
            format!("a learner is added to etcd for node {node}, at {peer_url}; it votes only once it is promoted"),
            "until then, or until it is removed again, no other node may go down".to_owned(),
        ],
        Wanted::Promote(id) => {
            let mut lines = vec![format!("{} becomes a voter", who(membership, *id, seen))];
            lines.push(counts(voters.saturating_add(1)));
            lines
        }
        Wanted::Remove(id) => {
            let mut lines = vec![leaves(membership, *id, seen)];
            if membership.get(*id).is_some_and(|member| member.role == Role::Voter) {
                lines.push(counts(voters.saturating_sub(1)));
                lines.push("its place stays empty: to fill it, use `quorate etcd members replace` instead".to_owned());
            }
            lines.push(format!("on node {node} nothing is changed: an etcd that runs there ends itself, and its apiserver has none any more"));
            lines
        }
        Wanted::Replace { old, peer_url } => {
            let mut lines = Vec::new();
            if membership.get(*old).is_some() {
                lines.push(format!("1. {}", leaves(membership, *old, seen)));
            }
            lines.push(format!("2. a learner is added for node {node}, at {peer_url}"));
            lines.push(format!("3. you start it on {node}: the commands are printed then; this waits for it"));
            lines.push(
                "4. once it has caught up, and would not be needed from its first moment, it is promoted".to_owned(),
            );
            lines.push(counts(if membership.get(*old).is_some() { voters } else { voters.saturating_add(1) }));
            lines.push("while it lasts, no other node may go down, and each step is judged again".to_owned());
            lines
        }
        Wanted::MoveLeader(id) => {
            let from =
                leader(&seen.observation.etcd).map_or_else(|| "nobody".to_owned(), |id| who(membership, id, seen));
            vec![format!("leadership goes from {from} to {}; writes wait for a moment", who(membership, *id, seen))]
        }
    }
}

fn leaves(membership: &Membership, id: MemberId, seen: &Seen) -> String {
    format!(
        "{} leaves etcd for good: its id is never used again, and its data is worth nothing after it",
        who(membership, id, seen)
    )
}

/// A member with what matters of it: `k2 (8e9e05c52164694d: voter, on node k2, does not answer)`.
fn who(membership: &Membership, id: MemberId, seen: &Seen) -> String {
    let Some(member) = membership.get(id) else { return format!("member {id}") };
    let role = match member.role {
        Role::Voter => "voter",
        Role::Learner => "learner",
    };
    let view = seen.observation.etcd.members.iter().find(|view| view.id == id);
    let place = match view.map(|view| &view.node) {
        Some(Fact::Known(node)) => format!("on node {node}"),
        Some(Fact::Unknown(_)) | None => "on a node that is not known".to_owned(),
    };
    let life = match view.map(|view| &view.second) {
        Some(Fact::Known(sample)) => format!("answers as {}", sample.version),
        Some(Fact::Unknown(_)) | None if member.has_started() => "does not answer".to_owned(),
        Some(Fact::Unknown(_)) | None => "has never started".to_owned(),
    };
    let name = if member.has_started() { member.name.as_str() } else { "a member" };
    format!("{name} ({id}: {role}, {place}, {life})")
}

/// Of what may be done to the members now, what would mend something; to be told beside a refusal.
pub fn ways(seen: &Seen, policy: &Policy) -> Vec<String> {
    let Some(membership) = seen.observation.etcd.membership.known() else { return Vec::new() };
    let may = |wanted: Disruption| {
        matches!(judge(&seen.observation, &seen.in_flight, &wanted, policy), Verdict::Permitted(_))
    };
    let answers = |member: &Member| {
        seen.observation.etcd.members.iter().any(|view| view.id == member.id && view.second.known().is_some())
    };
    let say = |verb: &str, member: &Member| {
        format!("permitted now: `quorate etcd members {verb} {}` ({})", member.id, called(member))
    };
    let mut ways = Vec::new();
    for member in membership.members() {
        let (role, id) = (member.role, member.id);
        if role == Role::Learner && may(Disruption::Promote(id)) {
            ways.push(say("promote", member));
        } else if (role == Role::Learner || !answers(member)) && may(Disruption::Remove(id)) {
            let verb = if role == Role::Voter && may(Disruption::Replace(id)) { "replace" } else { "remove" };
            ways.push(say(verb, member));
        }
    }
    ways
}

/// What is typed on the node so that the new member starts there: kubeadm's own way, which promotes by itself. Once: what a member has
/// written may not be taken from it, it has promised it to the others. So a second time it stops at its folder, before anything.
pub fn on_the_node(node: &NodeName, peer_url: &str, new: MemberId) -> Vec<String> {
    let address = host(peer_url).unwrap_or_else(|| "ADDRESS".to_owned());
    let mut lines = vec![format!("on {node}, as root:")];
    lines.extend([
        "sh -e <<'QUORATE'".to_owned(),
        "mkdir -p /var/lib/quorate/aside".to_owned(),
        format!("aside=/var/lib/quorate/aside/etcd-for-{new}; mkdir $aside     # a second time it stops here"),
        // etcd that is started again has no process between two tries, and an empty one would begin a cluster of its own.
        "systemctl stop kubelet     # it would start the old etcd again".to_owned(),
        "for pod in etcd kube-apiserver; do".to_owned(),
        "  test ! -e /etc/kubernetes/manifests/$pod.yaml || mv /etc/kubernetes/manifests/$pod.yaml $aside/".to_owned(),
        "done".to_owned(),
        "data=/var/lib/etcd".to_owned(),
        format!("test ! -e $aside/etcd.yaml || {}", data_dir("$aside")),
        r#"while pkill -f -- "^etcd .*--data-dir=$data( |\$)"; do sleep 1; done     # until its process is gone"#
            .to_owned(),
        // Without etcd it answers nothing and lets everybody wait, the kubelet too, which then starts no pod for minutes.
        r#"while pkill -KILL -f -- "^kube-apiserver "; do sleep 1; done     # told to stop, it waits for what hangs"#
            .to_owned(),
        // Within the folder, which may be a mount point; never deleted.
        format!("test ! -e $data/member || mv $data/member $data/member-before-{new}     # aside, never deleted"),
        "systemctl start kubelet".to_owned(),
    ]);
    // However kubeadm ends: it waits two minutes for etcd, which may come later and is promoted from here then.
    lines.push(
        "trap 'test ! -e $aside/kube-apiserver.yaml || mv $aside/kube-apiserver.yaml /etc/kubernetes/manifests/' EXIT"
            .to_owned(),
    );
    lines.extend(join(node, &address));
    lines.push("QUORATE".to_owned());
    lines
}

/// Takes `$data`, where etcd's data is, from its manifest in this folder.
pub fn data_dir(aside: &str) -> String {
    format!(r#"data=$(sed -n "s/^ *- --data-dir=//p" {aside}/etcd.yaml)"#)
}

/// What is typed on a node whose etcd and its data are aside: kubeadm adds a learner, writes the manifest, and promotes it.
pub fn join(node: &NodeName, address: &str) -> Vec<String> {
    vec![
        // However it is indented where it is read.
        format!(
            "printf '%s\\n' 'apiVersion: kubeadm.k8s.io/v1beta4' 'kind: JoinConfiguration' 'nodeRegistration: {{name: {node}}}' \
             'controlPlane: {{localAPIEndpoint: {{advertiseAddress: \"{address}\"}}}}' \
             'discovery: {{file: {{kubeConfigPath: /etc/kubernetes/admin.conf}}}}' >/var/lib/quorate/join.yaml"
        ),
        "kubeadm join phase etcd-join --config /var/lib/quorate/join.yaml     # before v1.34: phase control-plane-join etcd".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::fixture::{Cluster, healthy, id, name};

    fn seen(cluster: Cluster) -> Seen {
        Seen { observation: cluster.seen, in_flight: cluster.in_flight }
    }

    fn told(cluster: Cluster, wanted: Wanted) -> String {
        story(&Order { wanted, node: name(2) }, &seen(cluster), &Policy::default()).join("\n")
    }

    #[test]
    fn what_will_happen_names_who_where_and_the_figures_before_and_after() {
        let text = told(healthy(3).member_dead(2), Wanted::Remove(id(2)));
        for part in [
            "k2 (a2: voter, on node k2, does not answer) leaves etcd for good",
            "voters: 3 now, 2 of them healthy and 2 a majority; 2 afterwards, 2 a majority",
            "on node k2 nothing is changed",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        let replaced = Wanted::Replace { old: id(2), peer_url: "https://10.10.0.12:2380".into() };
        let text = told(healthy(3).member_dead(2), replaced);
        assert!(
            text.contains("1. k2 (a2: ") && text.contains("3 afterwards") && text.contains("4. once it has caught up"),
            "{text}"
        );
        let text = told(healthy(3), Wanted::MoveLeader(id(2)));
        assert!(text.contains("from k3 (a3: voter, on node k3") && text.contains("to k2 (a2: "), "{text}");
        let text = told(healthy(3).learner(), Wanted::Promote(id(4)));
        assert!(
            text.contains("k4 (a4: learner, on node k4, answers as 3.6.15) becomes a voter")
                && text.contains("4 afterwards, 3 a majority"),
            "{text}"
        );
    }

    #[test]
    fn the_way_that_is_open_is_told_and_none_that_is_not() {
        let ways = |cluster: Cluster| ways(&seen(cluster), &Policy::default());
        assert_eq!(ways(healthy(3)), Vec::<String>::new());
        assert_eq!(ways(healthy(3).member_dead(2)), ["permitted now: `quorate etcd members replace a2` (k2 (a2))"]);
        assert_eq!(ways(healthy(3).learner()), ["permitted now: `quorate etcd members promote a4` (k4 (a4))"]);
        // The learner is in the way of what is needed, and would itself be needed: it goes first.
        let stuck = healthy(3).member_dead(2).learner().power_cut(4);
        assert_eq!(ways(stuck), ["permitted now: `quorate etcd members remove a4` (k4 (a4))"]);
        // Too few for anything.
        assert_eq!(ways(healthy(3).member_dead(1).member_dead(2)), Vec::<String>::new());
    }

    #[test]
    fn the_commands_for_a_node_put_its_data_aside_and_name_its_address() {
        let text = on_the_node(&name(2), "https://10.10.0.12:2380", id(4)).join("\n");
        for part in [
            "mv $data/member $data/member-before-a4",
            "pkill -KILL -f -- \"^kube-apiserver \"",
            "advertiseAddress: \"10.10.0.12\"",
            "nodeRegistration: {name: k2}",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(!text.contains("rm "), "{text}");
    }
}
