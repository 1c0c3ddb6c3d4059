//! Whether enough remains: voters and apiservers without the target.

use super::case::{Case, Listed};
use super::members::{self, Agreed, Voter};
use super::nodes::Judged;
use crate::disruption::Disruption;
use crate::membership::{MemberId, NodeName, Role};
use crate::observation::Fact;
use crate::quorum::Quorum;
use crate::reason::{Code, Reason};
use std::collections::BTreeSet;

/// What remains, and what is wrong with that.
#[derive(Debug, Default)]
pub(super) struct Remaining {
    pub(super) reasons: Vec<Reason>,
    /// How many more voters may fail meanwhile.
    pub(super) margin: usize,
}

impl Remaining {
    /// Whether too little remains, which nothing lifts.
    pub(super) fn is_too_little(&self) -> bool {
        self.reasons.iter().any(|reason| matches!(reason.code, Code::QuorumWouldBeLost | Code::NoOtherApiserver))
    }
}

/// The rule of each disruption (etcd-notes 2b and 3d). `up` are the healthy voters.
pub(super) fn judged(case: &Case<'_>, voters: &[Voter<'_>], nodes: &[Judged<'_>]) -> Remaining {
    let mut remaining = match case.wanted {
        Disruption::Reboot(_) | Disruption::Upgrade(_) => taken_down(case, voters, nodes),
        Disruption::Defragment(member) => {
            let mut remaining = taken_down(case, voters, nodes);
            remaining.reasons.extend(is_listed(case, *member));
            remaining.reasons.extend(leads(case, *member));
            remaining
        }
        Disruption::MoveLeader(member) => {
            let mut remaining = taken_down(case, voters, nodes);
            remaining.reasons.extend(transferee(case, voters, nodes, *member));
            remaining
        }
        Disruption::AddLearner => taken_down(case, voters, nodes),
        Disruption::Promote(member) => promoted(case, voters, nodes, *member),
        Disruption::Remove(member) => removed(case, voters, nodes, *member),
        Disruption::Replace(member) => {
            let mut remaining = removed(case, voters, nodes, *member);
            remaining.reasons.extend(promoted_after_replacement(case, voters, nodes));
            remaining
        }
        Disruption::Restore => Remaining::default(),
    };
    remaining.reasons.extend(another_apiserver(case));
    remaining
}

/// Healthy, and not taken down: the voter's own faults and its node's. A lifted check does not make it healthy, but for those
/// that only say that it may go away later.
fn is_up(case: &Case<'_>, voter: &Voter<'_>, nodes: &[Judged<'_>]) -> bool {
    !case.takes_down(&voter.listed)
        && !case.excuses_member(&voter.listed)
        && disqualifying(case, voter, nodes).next().is_none()
}

fn disqualifying<'v>(
    case: &'v Case<'_>,
    voter: &'v Voter<'_>,
    nodes: &'v [Judged<'_>],
) -> impl Iterator<Item = Code> + 'v {
    let of_node = nodes.iter().filter(|node| voter.listed.node() == Some(node.name)).flat_map(|node| &node.faults);
    voter.faults.iter().chain(of_node).map(|fault| fault.code).filter(|code| {
        let may_go_away = matches!(code, Code::ForeignCordon | Code::CertificateExpiring | Code::CertificateUnknown);
        !(may_go_away && case.lifts(*code))
    })
}

/// Why it does not count, in short.
fn codes(case: &Case<'_>, voter: &Voter<'_>, nodes: &[Judged<'_>]) -> String {
    let codes: BTreeSet<Code> = disqualifying(case, voter, nodes).collect();
    codes.into_iter().map(Code::as_str).collect::<Vec<&str>>().join(", ")
}

/// `up − [m up] ≥ q(N)`: reboot, upgrade and defragmentation of one of N; for what takes nobody down, the same without m.
fn taken_down(case: &Case<'_>, voters: &[Voter<'_>], nodes: &[Judged<'_>]) -> Remaining {
    let mut remaining = enough(case, voters, nodes, case.quorum());
    let disturbs = !case.worker && !matches!(case.wanted, Disruption::AddLearner);
    remaining.reasons.extend(disturbs.then(|| single_voter(case)).flatten());
    remaining
}

/// A single voter has nobody to stand in for it.
fn single_voter(case: &Case<'_>) -> Option<Reason> {
    let mut voters = case.membership()?.voters();
    match (voters.next(), voters.next()) {
        (Some(only), None) => Some(Reason::new(Code::SingleVoter, format!("{} is the only voter", only.name))),
        (Some(_) | None, _) => None,
    }
}

/// Compares who is up with a quorum, and names everybody who is not counted.
fn enough(case: &Case<'_>, voters: &[Voter<'_>], nodes: &[Judged<'_>], quorum: Quorum) -> Remaining {
    // Without a member list there is no number to compare with; that is a reason of its own.
    if case.membership().is_none() {
        return Remaining::default();
    }
    match quorum.tolerance(count(case, voters, nodes)) {
        Some(margin) => Remaining { reasons: Vec::new(), margin },
        None => {
            let text = figures(case, voters, nodes, quorum);
            Remaining { reasons: vec![Reason::new(Code::QuorumWouldBeLost, text)], margin: 0 }
        }
    }
}

/// How many voters are up.
pub(super) fn count(case: &Case<'_>, voters: &[Voter<'_>], nodes: &[Judged<'_>]) -> usize {
    voters.iter().filter(|voter| is_up(case, voter, nodes)).count()
}

/// How many remain of how many, how many are needed, and every voter that is not counted with what is wrong with it.
fn figures(case: &Case<'_>, voters: &[Voter<'_>], nodes: &[Judged<'_>], quorum: Quorum) -> String {
    let mut uncounted: Vec<String> = voters
        .iter()
        .filter(|voter| !case.takes_down(&voter.listed) && !is_up(case, voter, nodes))
        .map(|voter| {
            let name = voter.listed.name();
            if case.excuses_member(&voter.listed) {
                return format!("; {name} is what the operation is about");
            }
            format!("; {name} does not count ({})", codes(case, voter, nodes))
        })
        .collect();
    uncounted.sort();
    let (up, of, needed) = (count(case, voters, nodes), voters.len(), quorum.size());
    format!("{up} of {of} voters would remain healthy, {needed} are needed{}", uncounted.concat())
}

/// One apiserver that is ready and not the target's: nobody else may be needed to see what happens and to end it.
fn another_apiserver(case: &Case<'_>) -> Option<Reason> {
    if case.is_without_api() {
        return None;
    }
    let asked: BTreeSet<&NodeName> = case.seen.apiservers.iter().map(|apiserver| &apiserver.node).collect();
    let mut others = asked.into_iter().filter(|node| case.target != Some(node));
    let ready = others.any(|node| {
        let mut views = case.seen.apiservers.iter().filter(|apiserver| apiserver.node == *node);
        views.all(|apiserver| apiserver.ready == Fact::Known(true))
    });
    let without = case.target.map_or_else(String::new, |target| format!(" without {target}"));
    (!ready).then(|| Reason::new(Code::NoOtherApiserver, format!("none is ready{without}")))
}

fn is_listed(case: &Case<'_>, id: MemberId) -> Option<Reason> {
    let membership = case.membership()?;
    membership
        .get(id)
        .is_none()
        .then(|| Reason::new(Code::TargetNotAMember, format!("member {id} is not in the member list")))
}

/// The leader serves everybody's writes: it hands over first.
fn leads(case: &Case<'_>, id: MemberId) -> Option<Reason> {
    let named_by_itself =
        case.member(id).and_then(Listed::samples).is_some_and(|(_, second)| second.leader == Some(id));
    let named_by_others = Agreed::among(case).leader() == Some(id);
    let name = case.member(id).map_or_else(|| format!("member {id}"), Listed::name);
    (named_by_itself || named_by_others)
        .then(|| Reason::new(Code::TargetLeads, format!("{name} leads: move leadership to another voter first")))
}

/// etcd does not look at the lag of who should lead, nor whether it is about to go down (etcd-notes 2a rule 5).
fn transferee(case: &Case<'_>, voters: &[Voter<'_>], nodes: &[Judged<'_>], id: MemberId) -> Option<Reason> {
    case.membership()?;
    let Some(listed) = case.member(id) else { return is_listed(case, id) };
    let name = listed.name();
    let unfit = |why: String| Some(Reason::new(Code::TransfereeUnfit, format!("{name} {why}")));
    let Some(voter) = voters.iter().find(|voter| voter.listed.id == id) else {
        return unfit("is a learner".to_owned());
    };
    if let Some(own) = case.own.filter(|own| listed.node() == Some(&own.target)) {
        return unfit(format!("is the target of {}", own.operation));
    }
    disqualifying(case, voter, nodes).next()?;
    unfit(format!("is not a healthy voter ({})", codes(case, voter, nodes)))
}

/// `up ≥ q(N+1)`: the learner may die the moment it votes. etcd asks nothing of the kind, and a dead learner's promotion loses
/// quorum for good (etcd-notes 2b row 1).
fn promoted(case: &Case<'_>, voters: &[Voter<'_>], nodes: &[Judged<'_>], id: MemberId) -> Remaining {
    let Some(membership) = case.membership() else { return Remaining::default() };
    let mut reasons = Vec::new();
    let learner = case.member(id);
    let faults = match learner {
        None => vec![Reason::new(Code::TargetNotAMember, format!("member {id} is not in the member list"))],
        Some(member) if member.role() == Role::Voter => vec![Reason::new(Code::NotALearner, member.name())],
        Some(member) => members::learner_faults(case, member),
    };
    let sound = faults.is_empty();
    reasons.extend(faults);
    let quorum = Quorum::of_voters(membership.voters().count().saturating_add(1));
    let mut remaining = needed_from_the_start(case, voters, nodes, quorum, sound);
    reasons.append(&mut remaining.reasons);
    Remaining { reasons, margin: remaining.margin }
}

/// Compares who is up with the quorum that a promotion leads to. If a sound learner itself makes the majority, that alone is
/// told, and may be lifted.
fn needed_from_the_start(
    case: &Case<'_>,
    voters: &[Voter<'_>],
    nodes: &[Judged<'_>],
    quorum: Quorum,
    sound: bool,
) -> Remaining {
    if sound && count(case, voters, nodes).saturating_add(1) == quorum.size() {
        let text = format!("once it votes, {}", figures(case, voters, nodes, quorum));
        return Remaining { reasons: vec![Reason::new(Code::LearnerWouldBeNeeded, text)], margin: 0 };
    }
    enough(case, voters, nodes, quorum)
}

/// The last step of a replacement, with the voters that are there now: the new one will be needed, or not.
fn promoted_after_replacement(case: &Case<'_>, voters: &[Voter<'_>], nodes: &[Judged<'_>]) -> Vec<Reason> {
    if case.membership().is_none() || voters.len() < 2 {
        return Vec::new();
    }
    needed_from_the_start(case, voters, nodes, case.quorum(), true).reasons
}

/// `up − [m up] ≥ q(N−1)`, tolerance must not fall, and never one that is up while another is not (etcd-notes 2b rows 4 to 9).
fn removed(case: &Case<'_>, voters: &[Voter<'_>], nodes: &[Judged<'_>], id: MemberId) -> Remaining {
    let Some(membership) = case.membership() else { return Remaining::default() };
    let before = membership.voters().count();
    let Some(member) = case.member(id) else {
        return Remaining { reasons: is_listed(case, id).into_iter().collect(), margin: 0 };
    };
    if member.role() == Role::Learner {
        return enough(case, voters, nodes, Quorum::of_voters(before));
    }
    if let Some(single) = single_voter(case) {
        return Remaining { reasons: vec![single], margin: 0 };
    }
    let quorum = Quorum::of_voters(before.saturating_sub(1));
    let mut remaining = enough(case, voters, nodes, quorum);
    let others = count(case, voters, nodes);
    let alive = members::is_alive(case, member);
    let name = member.name();
    // With who is really up: 0 to 0 is no fall (decisions.md, "Facts").
    let now = Quorum::of_voters(before).tolerance(others.saturating_add(usize::from(alive))).unwrap_or(0);
    let then = quorum.tolerance(others).unwrap_or(0);
    if then < now {
        let text = format!("without {name} {then} failures would be tolerated, now it is {now}");
        remaining.reasons.push(Reason::new(Code::ToleranceWouldFall, text));
    }
    if alive && others.saturating_add(1) < before {
        let text = format!("{name} is up while another voter is not");
        remaining.reasons.push(Reason::new(Code::RemovalOfUpMember, text));
    }
    remaining.reasons.extend(leads(case, id));
    remaining
}
