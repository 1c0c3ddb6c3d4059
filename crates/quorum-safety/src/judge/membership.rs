//! What the member list says before any member is asked.

use super::case::Case;
use super::members;
use crate::disruption::Disruption;
use crate::membership::{Member, Role};
use crate::observation::Fact;
use crate::reason::{Code, Reason};

/// Without a list of a linearizable read there is no proof of a quorum; a view of a member that is not in it is of a stranger.
pub(super) fn unreadable(case: &Case<'_>) -> Vec<Reason> {
    match &case.seen.etcd.membership {
        Fact::Unknown(why) => vec![Reason::new(Code::MembershipUnknown, why.clone())],
        Fact::Known(membership) => {
            let strangers = case.seen.etcd.members.iter().filter(|view| membership.get(view.id).is_none());
            strangers
                .map(|view| {
                    Reason::new(Code::MemberIdUnexpected, format!("member {} is not in the member list", view.id))
                })
                .collect()
        }
    }
}

/// A learner or a member that has never started holds everything but what ends that state.
pub(super) fn join_under_way(case: &Case<'_>) -> Vec<Reason> {
    let Some(membership) = case.membership() else { return Vec::new() };
    let mut reasons = Vec::new();
    for member in membership.members().iter().filter(|member| !ends_the_join_of(case.wanted, member)) {
        if member.role == Role::Learner {
            reasons.push(Reason::new(Code::LearnerPresent, name(member)));
        }
        if !member.has_started() {
            reasons.push(Reason::new(Code::MemberNotStarted, name(member)));
        }
    }
    reasons
}

fn ends_the_join_of(wanted: &Disruption, member: &Member) -> bool {
    match wanted {
        Disruption::Promote(id) => member.id == *id && member.has_started(),
        Disruption::Remove(id) => member.id == *id,
        Disruption::Restore => true,
        Disruption::Reboot(_)
        | Disruption::Upgrade(_)
        | Disruption::MoveLeader(_)
        | Disruption::Defragment(_)
        | Disruption::AddLearner
        | Disruption::Replace(_) => false,
    }
}

fn name(member: &Member) -> String {
    if member.has_started() { member.name.clone() } else { format!("member {} has no name yet", member.id) }
}

/// NOSPACE or CORRUPT anywhere holds everything but what cures it.
pub(super) fn alarms(case: &Case<'_>) -> Vec<Reason> {
    members::alarms(case).into_iter().map(|alarm| members::alarm_reason(case, alarm)).collect()
}
