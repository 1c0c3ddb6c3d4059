//! A restore throws the cluster's data away: it is refused over a cluster that has quorum, and over one that may have it.

use super::case::Case;
use super::under_way;
use crate::membership::Role;
use crate::observation::Fact;
use crate::quorum::Quorum;
use crate::reason::{Class, Code, Reason};

/// The Leases, the kill switch and kured's lock live in the very store that is lost: what cannot be read of them holds nobody
/// once etcd cannot be read either. What can be read counts.
pub(super) fn judged(case: &Case<'_>) -> Vec<Reason> {
    let mut reasons: Vec<Reason> = under_way::leases(case);
    reasons.extend(under_way::cluster_unknown(case));
    reasons.extend(under_way::kured(case));
    reasons.extend(under_way::kill_switch(case));
    reasons.extend(under_way::snapshot(case));
    if case.membership().is_none() {
        reasons.retain(|reason| reason.class != Class::Unknown);
    }
    reasons.extend(quorum_may_be_there(case));
    reasons
}

/// Quorum is known to be lost when so many members say that they have no leader that the others cannot have one: members
/// that do not answer may be a majority elsewhere, seen from a cut-off node.
fn quorum_may_be_there(case: &Case<'_>) -> Option<Reason> {
    let present = |text: String| Some(Reason::new(Code::RestoreOverQuorum, text));
    if let Some(membership) = case.membership() {
        return present(format!("a majority of {} voters agrees on the member list", membership.voters().count()));
    }
    if let Some(member) =
        case.members.iter().find(|member| member.view.is_some_and(|view| view.linearizable_read == Fact::Known(())))
    {
        return present(format!("{} answers linearizable reads", member.name()));
    }
    let leaderless = case
        .members
        .iter()
        .filter(|member| member.samples().is_some_and(|(first, second)| first.leader.or(second.leader).is_none()))
        .count();
    let lists = case.seen.etcd.members.iter().filter_map(|view| view.member_list.known());
    let Some(listed) = lists.map(|list| list.iter().filter(|member| member.role == Role::Voter).count()).max() else {
        return present("no member tells a member list: it is not known to be lost".to_owned());
    };
    let voters = listed.max(case.members.len());
    if voters.saturating_sub(leaderless) < Quorum::of_voters(voters).size() {
        return None;
    }
    present(format!("it is not known to be lost: {leaderless} of {voters} voters say that they have no leader"))
}
