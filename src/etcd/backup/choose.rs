//! From whom a snapshot is taken: a healthy voter that does not lead. Pure.

use quorum_safety::{
    AlarmKind, Code, Fact, Holder, InFlight, Lock, Member, MemberId, MemberView, Observation, Policy, Reason,
    StatusSample, voters,
};
use std::cmp::Reverse;

/// Operations that no snapshot is taken beside: a stalled snapshot freezes a member that is defragmented or reconfigured.
/// They look at the Lease of a snapshot once they hold theirs, and we at theirs once we hold ours: so one of two sees the other.
const OF_ETCD: [&str; 3] = ["defrag", "members", "restore"];
/// What is wrong with a member and says nothing of what a snapshot of it holds; of alarms only [`differs`] counts: a database that is full is
/// one more reason to have a copy of it.
const OF_NO_MATTER: [Code; 4] =
    [Code::AlarmActive, Code::CertificateExpiring, Code::CertificateUnknown, Code::MemberNodeUnknown];

/// What a snapshot may be taken beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Of no change of etcd.
    NoChange,
    /// Of whatever the Lease says is done: its holder may have ended half way, and the Lease is not to be written. An override.
    Anything,
}

/// Who was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The member.
    pub member: Member,
    /// What it said of itself last.
    pub status: StatusSample,
    /// Why not another one.
    pub passed_over: Vec<Reason>,
}

/// Chooses the healthy voter that has applied most and does not lead; the leader only where it is the only voter.
///
/// # Errors
/// With all reasons, when there is none.
pub fn choose(
    seen: &Observation,
    in_flight: &InFlight,
    policy: &Policy,
    beside: Beside,
) -> Result<Chosen, Vec<Reason>> {
    let membership = match &seen.etcd.membership {
        Fact::Known(membership) => membership,
        Fact::Unknown(why) => return Err(vec![Reason::new(Code::MembershipUnknown, why.clone())]),
    };
    let holder = match &in_flight.control_plane {
        Fact::Known(Lock::Held(holder)) => Some(holder),
        Fact::Known(Lock::Free) => None,
        Fact::Unknown(_) if policy.without_api => None,
        Fact::Unknown(why) => return Err(vec![Reason::new(Code::LeaseUnknown, why.clone())]),
    };
    if beside == Beside::NoChange
        && let Some(holder) = holder.filter(|holder| OF_ETCD.iter().any(|verb| holder.operation.starts_with(verb)))
    {
        let what = format!("{} works on etcd of {}: no snapshot beside it", holder.operation, holder.target);
        return Err(vec![Reason::new(Code::LeaseHeld, what)]);
    }
    let alone = membership.voters().count() == 1;
    let (mut fit, mut passed_over) = (Vec::new(), Vec::new());
    for (id, faults) in voters(seen, in_flight, policy) {
        let Some(member) = membership.voters().find(|member| member.id == id) else { continue };
        let view = seen.etcd.members.iter().find(|view| view.id == id);
        let mut against: Vec<Reason> =
            faults.into_iter().filter(|reason| !OF_NO_MATTER.contains(&reason.code)).collect();
        against.extend(differs(member, seen));
        against.extend(holder.and_then(|holder| worked_on(member, view, holder)));
        if !alone && leads(seen, id) {
            against.push(Reason::new(Code::TargetLeads, format!("{} leads: a snapshot would slow it", member.name)));
        }
        match view.and_then(|view| view.second.known()) {
            Some(status) if against.is_empty() => fit.push((member, status)),
            _ => passed_over.extend(against),
        }
    }
    passed_over.sort();
    passed_over.dedup();
    match fit.into_iter().min_by_key(|(member, status)| (Reverse(status.applied_index), &member.name)) {
        Some((member, status)) => Ok(Chosen { member: member.clone(), status: status.clone(), passed_over }),
        None => Err(passed_over),
    }
}

/// Whether its data may be other than those of the others. etcd that cannot tell whose are names member 0 (`etcdserver/corrupt.go`).
fn differs(member: &Member, seen: &Observation) -> Option<Reason> {
    let mut told = seen.etcd.members.iter().filter_map(|view| view.alarms.known()).flatten();
    let alarm =
        told.find(|alarm| alarm.kind != AlarmKind::NoSpace && [member.id, MemberId(0)].contains(&alarm.member))?;
    let whose = if alarm.member == member.id { "it names" } else { "it names nobody, and may mean" };
    Some(Reason::new(Code::AlarmActive, format!("{:?}: {whose} {}", alarm.kind, member.name)))
}

fn worked_on(member: &Member, view: Option<&MemberView>, holder: &Holder) -> Option<Reason> {
    let here = view.and_then(|view| view.node.known()) == Some(&holder.target);
    here.then(|| Reason::new(Code::LeaseHeld, format!("{} works on the node of {}", holder.operation, member.name)))
}

fn leads(seen: &Observation, id: MemberId) -> bool {
    seen.etcd.members.iter().filter_map(|view| view.second.known()).any(|sample| sample.leader == Some(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::fixture::{Cluster, healthy, id, unknown};
    use quorum_safety::{Alarm, UnixSeconds};

    fn chosen(cluster: &Cluster) -> Result<String, Vec<Code>> {
        choose(&cluster.seen, &cluster.in_flight, &cluster.policy, Beside::NoChange)
            .map(|chosen| chosen.member.name)
            .map_err(|reasons| reasons.iter().map(|reason| reason.code).collect())
    }

    fn held(operation: &str, target: &str) -> impl FnOnce(&mut Cluster) {
        let holder = Holder { identity: "they-1".into(), operation: operation.into(), target: target.into() };
        move |cluster| cluster.in_flight.control_plane = Fact::Known(Lock::Held(holder))
    }

    fn alarm(kind: AlarmKind) -> impl FnOnce(&mut MemberView) {
        move |view| view.alarms = Fact::Known(vec![Alarm { member: id(1), kind }])
    }

    /// k3 leads in every fixture.
    #[test]
    fn a_healthy_follower_is_chosen_and_nobody_else() {
        let of = |cluster: Cluster| chosen(&cluster);
        assert_eq!(of(healthy(3)), Ok("k1".to_owned()));
        // Each alone takes k1 out.
        for (what, worse) in [
            ("dead", healthy(3).member_dead(1)),
            ("of another cluster", healthy(3).on_samples(1, |s| s.cluster_id = quorum_safety::ClusterId(9))),
            ("lags", healthy(3).on_samples(1, |s| s.raft_index -= 2_000)),
            ("applies late", healthy(3).on_samples(1, |s| s.applied_index -= 2_000)),
            ("stands still", healthy(3).on_second(1, |s| s.raft_index -= 20)),
            ("cannot read", healthy(3).on_member(1, |v| v.linearizable_read = unknown())),
            ("has no leader", healthy(3).on_samples(1, |s| s.leader = None)),
            ("has another leader", healthy(3).on_samples(1, |s| s.leader = Some(id(1)))),
            ("answered once", healthy(3).on_member(1, |v| v.second = unknown())),
            ("has other data", healthy(3).on_member(2, alarm(AlarmKind::Corrupt))),
            ("is upgraded", healthy(3).with(held("upgrade-v1.36.3", "k1"))),
            (
                "has applied less",
                healthy(3).on_samples(2, |s| {
                    s.applied_index += 1;
                    s.raft_index += 1;
                }),
            ),
        ] {
            assert_eq!(of(worse), Ok("k2".to_owned()), "{what}");
        }
        // None of these says anything of what it holds.
        for (what, same) in [
            ("a full database", healthy(3).on_member(2, alarm(AlarmKind::NoSpace))),
            ("an old certificate", healthy(3).on_member(1, |v| v.certificate_expires = Fact::Known(UnixSeconds(0)))),
            ("a node that is not known", healthy(3).on_member(1, |v| v.node = unknown())),
            ("work elsewhere", healthy(3).with(held("upgrade-v1.36.3", "k2"))),
        ] {
            assert_eq!(of(same), Ok("k1".to_owned()), "{what}");
        }
    }

    #[test]
    fn r32_any_follower_serves_and_where_none_does_every_reason_is_told() {
        for gone in [1, 2] {
            let other = format!("k{}", 3 - gone);
            assert_eq!(chosen(&healthy(3).member_dead(gone)), Ok(other));
        }
        let none = healthy(3).member_dead(1).member_dead(2);
        assert_eq!(
            choose(&none.seen, &none.in_flight, &none.policy, Beside::NoChange)
                .unwrap_err()
                .iter()
                .map(|reason| reason.code)
                .collect::<Vec<_>>(),
            [Code::MemberUnanswered, Code::MemberUnanswered, Code::TargetLeads]
        );
        // The leader where nobody else votes, learners beside it or not.
        assert_eq!(chosen(&healthy(1)), Ok("k1".to_owned()));
        assert_eq!(chosen(&healthy(1).learner()), Ok("k1".to_owned()));
    }

    /// Not even the member that is alone: a snapshot of it may hold anything.
    #[test]
    fn data_that_differ_nobody_knows_whose_take_everybody_out() {
        let nobody = |view: &mut MemberView| {
            view.alarms = Fact::Known(vec![Alarm { member: MemberId(0), kind: AlarmKind::Corrupt }]);
        };
        let reasons = chosen(&healthy(3).on_member(2, nobody)).unwrap_err();
        assert_eq!(reasons.iter().filter(|code| **code == Code::AlarmActive).count(), 3, "{reasons:?}");
    }

    /// A change of members that is half done keeps its Lease; that nobody is at it is for whoever uses the override to know.
    #[test]
    fn a_change_that_is_half_done_is_gone_past_only_by_the_override() {
        let beside = |operation: &str, target: &str| {
            let cluster = healthy(3).with(held(operation, target));
            choose(&cluster.seen, &cluster.in_flight, &cluster.policy, Beside::Anything)
                .map(|chosen| chosen.member.name)
        };
        assert_eq!(beside("members-replace-a2", "k2"), Ok("k1".to_owned()));
        // Still from nobody whose node is worked on.
        assert_eq!(beside("defrag", "k1"), Ok("k2".to_owned()));
    }

    #[test]
    fn what_is_not_known_and_work_on_etcd_block() {
        let blocked = [
            (healthy(3).with(|c| c.seen.etcd.membership = unknown()), Code::MembershipUnknown),
            (healthy(3).with(|c| c.in_flight.control_plane = unknown()), Code::LeaseUnknown),
            (healthy(3).with(held("defrag", "k3")), Code::LeaseHeld),
            (healthy(3).with(held("members-remove-a2", "k2")), Code::LeaseHeld),
            (healthy(3).with(held("restore", "k2")), Code::LeaseHeld),
        ];
        for (cluster, code) in blocked {
            assert_eq!(chosen(&cluster), Err(vec![code]), "{code}");
        }
        // Without the API no Lease can be read, which was said.
        let mut away = healthy(3).with(|c| c.in_flight.control_plane = unknown());
        away.policy.without_api = true;
        assert_eq!(chosen(&away), Ok("k1".to_owned()));
    }
}
