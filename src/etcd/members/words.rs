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
            let mut lines = vec![format!("learner {} becomes a voter", who(membership, *id, seen))];
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
            lines.push(counts(voters));
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

/// A member with what matters of it.
fn who(membership: &Membership, id: MemberId, seen: &Seen) -> String {
    let Some(member) = membership.get(id) else { return format!("member {id}") };
    let role = match member.role {
        Role::Voter => "a voter",
        Role::Learner => "a learner",
    };
    let view = seen.observation.etcd.members.iter().find(|view| view.id == id);
    let (place, life) = match view {
        Some(view) => (
            match &view.node {
                Fact::Known(node) => format!("on node {node}"),
                Fact::Unknown(_) => "on a node that is not known".to_owned(),
            },
            match &view.second {
                Fact::Known(sample) => format!("answers, {}", sample.version),
                Fact::Unknown(_) if member.has_started() => "does not answer".to_owned(),
                Fact::Unknown(_) => "has never started".to_owned(),
            },
        ),
        None => ("not asked".to_owned(), "nothing is known of it".to_owned()),
    };
    format!("{}, {role} {place}, which {life}", called(member))
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
    let say = |verb: &str, member: &Member| format!("`quorate etcd members {verb} {}` ({})", member.id, called(member));
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

/// What is typed on the node so that the new member starts there: kubeadm's own way, which promotes by itself.
pub fn on_the_node(node: &NodeName, peer_url: &str, old: Option<MemberId>) -> Vec<String> {
    let address = host(peer_url).unwrap_or_else(|| "ADDRESS".to_owned());
    let aside = old.map_or_else(|| "before".to_owned(), |old| old.to_string());
    let mut lines = vec![format!("on {node}, as root:")];
    lines.extend(
        [
            // The kubelet ends etcd when its manifest is gone. The mirror of it may be missing already.
            format!("  mkdir -p /var/lib/quorate/aside && mv /etc/kubernetes/manifests/etcd.yaml /var/lib/quorate/aside/etcd-{aside}.yaml"),
            "  while pgrep -x etcd; do sleep 1; done     # until its process is gone".to_owned(),
            // Within the folder, which may be a mount point; never deleted.
            format!("  mv /var/lib/etcd/member /var/lib/etcd/member-{aside}     # aside, never deleted"),
            "  cat >/var/lib/quorate/join.yaml <<END".to_owned(),
            "apiVersion: kubeadm.k8s.io/v1beta4".to_owned(),
            "kind: JoinConfiguration".to_owned(),
            format!("nodeRegistration: {{name: {node}}}"),
            format!("controlPlane: {{localAPIEndpoint: {{advertiseAddress: \"{address}\"}}}}"),
            "discovery: {file: {kubeConfigPath: /etc/kubernetes/admin.conf}}".to_owned(),
            "END".to_owned(),
            "  kubeadm join phase etcd-join --config /var/lib/quorate/join.yaml     # before v1.34: phase control-plane-join etcd".to_owned(),
        ],
    );
    lines
}
