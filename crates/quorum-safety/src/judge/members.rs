//! What is wrong with each etcd member, asked on its own connection (design.md "What a healthy voter is", etcd-notes 3d).

use super::agreement::Agreement;
use super::case::{Case, Listed};
use crate::disruption::Disruption;
use crate::membership::{ClusterId, MemberId, Role};
use crate::observation::{Alarm, AlarmKind, Fact, MemberView, StatusSample, UnixSeconds};
use crate::policy::Policy;
use crate::reason::{Code, Reason};

/// A voter, and all that is wrong with it as an etcd member.
#[derive(Debug)]
pub(super) struct Voter<'a> {
    pub(super) listed: Listed<'a>,
    /// Empty for the target of an operation that mends it: its health does not count.
    pub(super) faults: Vec<Reason>,
}

/// What the voters agree on. The member that is being mended has no say in it.
#[derive(Debug)]
pub(super) struct Agreed {
    cluster: Agreement<ClusterId>,
    leader: Agreement<MemberId>,
    term: Agreement<u64>,
    /// The leader that they agree on did not answer, so nobody knows whether it leads (etcd-notes 2b row 13).
    leader_silent: bool,
    /// The highest committed index among them, first and second sample: the leader's, or one that came from it.
    highest: Option<(u64, u64)>,
}

/// All voters with their faults.
pub(super) fn judged<'a>(case: &Case<'a>) -> Vec<Voter<'a>> {
    let agreed = Agreed::among(case);
    case.voters()
        .map(|listed| {
            let faults = if case.excuses_member(listed) { Vec::new() } else { voter_faults(case, listed, &agreed) };
            Voter { listed: *listed, faults }
        })
        .collect()
}

/// All that keeps this voter from being healthy.
fn voter_faults(case: &Case<'_>, voter: &Listed<'_>, agreed: &Agreed) -> Vec<Reason> {
    let name = voter.name();
    let mut faults = Vec::from_iter(node_unknown(case, voter));
    let Some(view) = voter.view else {
        faults.push(Reason::new(Code::MemberUnanswered, format!("{name} was not asked")));
        return faults;
    };
    if voter.views > 1 {
        faults.push(Reason::new(Code::MemberIdUnexpected, format!("{name} answered at {} addresses", voter.views)));
    }
    if let (Fact::Unknown(why), Fact::Unknown(_)) = (&view.first, &view.second) {
        // That nothing else of it is known goes without saying.
        faults.push(Reason::new(Code::MemberUnanswered, format!("{name} does not answer: {why}")));
        return faults;
    }
    faults.extend(answered(&name, view));
    for sample in [&view.first, &view.second].into_iter().filter_map(Fact::known) {
        faults.extend(identity(&name, voter, sample, agreed));
        faults.extend(leader(case, &name, sample, agreed));
    }
    if let Some((first, second)) = voter.samples() {
        faults.extend(term(&name, first, second, agreed));
        faults.extend(behind(&name, second, agreed, case.policy.healthy_lag, Code::MemberLagging));
        faults.extend(slow_to_apply(&name, second, case.policy.healthy_lag, Code::MemberApplyLagging));
        faults.extend(stalled(&name, first, second, agreed, case.policy));
    }
    faults.extend(own_list(case, &name, view));
    if let Fact::Unknown(why) = &view.linearizable_read {
        faults.push(Reason::new(Code::ReadUnanswered, format!("{name}: {why}")));
    }
    if let Fact::Unknown(why) = &view.alarms {
        faults.push(Reason::new(Code::AlarmsUnknown, format!("{name}: {why}")));
    }
    faults.extend(alarms(case).iter().filter(|alarm| alarm.member == voter.id).map(|alarm| alarm_reason(case, alarm)));
    faults.extend(certificate(case, &format!("etcd of {name}"), &view.certificate_expires));
    faults
}

/// All that keeps a learner from being promoted. It answers only Status and serializable reads: no list, no alarms, no
/// linearizable read can be asked of it (etcd `v3rpc/util.go`, isRPCSupportedForLearner).
pub(super) fn learner_faults(case: &Case<'_>, learner: &Listed<'_>) -> Vec<Reason> {
    let name = learner.name();
    let agreed = Agreed::among(case);
    let Some((first, second)) = learner.samples() else {
        let why = match learner.view.map(|view| (&view.first, &view.second)) {
            Some((Fact::Unknown(why), _) | (_, Fact::Unknown(why))) => why.as_str(),
            _ => "it was not asked",
        };
        return vec![Reason::new(Code::LearnerNotAlive, format!("{name} did not answer twice: {why}"))];
    };
    let mut faults = Vec::from_iter(node_unknown(case, learner));
    if learner.views > 1 {
        faults.push(Reason::new(Code::MemberIdUnexpected, format!("{name} answered at {} addresses", learner.views)));
    }
    for sample in [first, second] {
        faults.extend(identity(&name, learner, sample, &agreed));
        faults.extend(leader(case, &name, sample, &agreed));
    }
    faults.extend(term(&name, first, second, &agreed));
    faults.extend(behind(&name, second, &agreed, case.policy.recovered_lag, Code::LearnerLagging));
    faults.extend(slow_to_apply(&name, second, case.policy.recovered_lag, Code::LearnerLagging));
    // etcd lets a learner pass that has 90 % of the leader's index and stands still (etcd-notes, 2b rows 1 and 11).
    let advances = second.raft_index > first.raft_index;
    let has_caught_up = agreed.highest.is_some_and(|(highest_first, _)| second.raft_index >= highest_first);
    if !advances && !has_caught_up {
        faults.push(Reason::new(Code::MemberStalled, format!("{name} stands at index {}", second.raft_index)));
    }
    faults
        .extend(alarms(case).iter().filter(|alarm| alarm.member == learner.id).map(|alarm| alarm_reason(case, alarm)));
    faults
}

impl Agreed {
    pub(super) fn among(case: &Case<'_>) -> Self {
        let heard: Vec<(&Listed<'_>, &StatusSample, &StatusSample)> = case
            .voters()
            .filter(|voter| !case.excuses_member(voter))
            .filter_map(|voter| voter.samples().map(|(first, second)| (voter, first, second)))
            .collect();
        let quorum = case.quorum_of_who_has_a_say();
        let clusters: Vec<ClusterId> = heard.iter().map(|(_, _, second)| second.cluster_id).collect();
        let leaders: Vec<MemberId> = heard.iter().filter_map(|(_, _, second)| second.leader).collect();
        let terms: Vec<u64> = heard.iter().map(|(_, _, second)| second.term).collect();
        let leader = Agreement::of(&leaders, quorum);
        let silent = |id: MemberId| {
            let voter = case.voters().find(|voter| voter.id == id);
            voter.is_some_and(|voter| !case.excuses_member(voter) && voter.samples().is_none())
        };
        let first = heard.iter().map(|(_, first, _)| first.raft_index).max();
        let second = heard.iter().map(|(_, _, second)| second.raft_index).max();
        Self {
            cluster: Agreement::of(&clusters, quorum),
            leader,
            term: Agreement::of(&terms, quorum),
            leader_silent: leader.value().is_some_and(silent),
            highest: first.zip(second),
        }
    }

    /// The leader that the voters agree on.
    pub(super) fn leader(&self) -> Option<MemberId> {
        self.leader.value()
    }
}

/// Whether etcd takes a member for one that is up: it answered as itself, and its data is not known to be corrupt. Wider than
/// healthy: a removal must not take away what still works.
pub(super) fn is_alive(case: &Case<'_>, member: &Listed<'_>) -> bool {
    let Some((first, second)) = member.samples() else { return false };
    let agreed = Agreed::among(case);
    let itself = [first, second].into_iter().all(|sample| identity("", member, sample, &agreed).is_empty());
    let corrupt = told_alarms(case).any(|alarm| alarm.member == member.id && alarm.kind == AlarmKind::Corrupt);
    itself && !corrupt
}

/// The alarms that any member tells of, each once, less the one that the disruption cures.
pub(super) fn alarms<'a>(case: &Case<'a>) -> Vec<&'a Alarm> {
    let mut alarms: Vec<&Alarm> = told_alarms(case).filter(|alarm| !cures(case.wanted, alarm)).collect();
    alarms.sort();
    alarms.dedup();
    alarms
}

fn told_alarms<'a>(case: &Case<'a>) -> impl Iterator<Item = &'a Alarm> {
    case.seen.etcd.members.iter().filter_map(|view| view.alarms.known()).flatten()
}

fn cures(wanted: &Disruption, alarm: &Alarm) -> bool {
    match alarm.kind {
        // The leader hands over before its own turn.
        AlarmKind::NoSpace => matches!(wanted, Disruption::Defragment(_) | Disruption::MoveLeader(_)),
        AlarmKind::Corrupt => {
            matches!(wanted, Disruption::Remove(member) | Disruption::Replace(member) if *member == alarm.member)
        }
        AlarmKind::Other(_) => false,
    }
}

/// An alarm in words.
pub(super) fn alarm_reason(case: &Case<'_>, alarm: &Alarm) -> Reason {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => "NOSPACE".to_owned(),
        AlarmKind::Corrupt => "CORRUPT".to_owned(),
        AlarmKind::Other(number) => format!("alarm {number}"),
    };
    let name = case.member(alarm.member).map_or_else(|| format!("member {}", alarm.member), Listed::name);
    Reason::new(Code::AlarmActive, format!("{kind} on {name}"))
}

/// Whether it is known where the member runs, among the nodes that the API lists.
pub(super) fn node_unknown(case: &Case<'_>, member: &Listed<'_>) -> Option<Reason> {
    if case.is_without_api() {
        return None;
    }
    let name = member.name();
    match member.view.map(|view| &view.node) {
        None => Some(Reason::new(Code::MemberNodeUnknown, format!("{name} was not asked"))),
        Some(Fact::Unknown(why)) => Some(Reason::new(Code::MemberNodeUnknown, format!("{name}: {why}"))),
        Some(Fact::Known(node)) => {
            let nodes = case.seen.nodes.known()?;
            let listed = nodes.iter().any(|other| other.name == *node);
            (!listed).then(|| Reason::new(Code::MemberNodeUnknown, format!("{name}: the API lists no node {node}")))
        }
    }
}

/// Whether a served certificate lasts long enough.
pub(super) fn certificate(case: &Case<'_>, whose: &str, expires: &Fact<UnixSeconds>) -> Option<Reason> {
    match expires {
        Fact::Known(at) => {
            let left = at.0.saturating_sub(case.seen.taken_at.0);
            (left < case.policy.certificate_margin)
                .then(|| Reason::new(Code::CertificateExpiring, format!("{whose}: {}", time_left(left))))
        }
        Fact::Unknown(why) => Some(Reason::new(Code::CertificateUnknown, format!("{whose}: {why}"))),
    }
}

fn time_left(seconds: i64) -> String {
    let days = seconds.checked_div(24 * 3600).unwrap_or(0);
    if seconds <= 0 { "it has expired".to_owned() } else { format!("{days} days are left") }
}

fn answered(name: &str, view: &MemberView) -> Vec<Reason> {
    let unanswered = |fact: &Fact<StatusSample>, which| match fact {
        Fact::Known(_) => None,
        Fact::Unknown(why) => {
            Some(Reason::new(Code::MemberUnanswered, format!("{name} did not answer {which}: {why}")))
        }
    };
    [unanswered(&view.first, "the first time"), unanswered(&view.second, "the second time")]
        .into_iter()
        .flatten()
        .collect()
}

fn identity(name: &str, member: &Listed<'_>, sample: &StatusSample, agreed: &Agreed) -> Vec<Reason> {
    let mut faults = Vec::new();
    if agreed.cluster.is_against(sample.cluster_id) {
        faults.push(Reason::new(Code::ClusterIdDiffers, format!("{name} is in cluster {}", sample.cluster_id)));
    }
    if sample.member_id != member.id {
        let text = format!("member {} answered for {name}, which is {}", sample.member_id, member.id);
        faults.push(Reason::new(Code::MemberIdUnexpected, text));
    }
    if let Some(entry) = member.entry
        && sample.is_learner != (entry.role == Role::Learner)
    {
        let (says, list) = if sample.is_learner { ("a learner", "a voter") } else { ("a voter", "a learner") };
        faults.push(Reason::new(Code::RoleDisagrees, format!("{name} says it is {says}, the list says {list}")));
    }
    faults
}

fn leader(case: &Case<'_>, name: &str, sample: &StatusSample, agreed: &Agreed) -> Vec<Reason> {
    let Some(leader) = sample.leader else {
        return vec![Reason::new(Code::NoLeader, format!("{name} knows no leader"))];
    };
    let mut faults = Vec::new();
    if agreed.leader_silent && agreed.leader() == Some(leader) {
        faults.push(Reason::new(Code::NoLeader, format!("{name}'s leader, member {leader}, does not answer")));
    }
    if agreed.leader.is_against(leader) {
        faults.push(Reason::new(Code::LeadersDisagree, format!("{name} names member {leader}")));
    }
    if let Some(membership) = case.membership()
        && !membership.voters().any(|voter| voter.id == leader)
    {
        faults.push(Reason::new(Code::LeaderNotAVoter, format!("{name} names member {leader}")));
    }
    faults
}

fn term(name: &str, first: &StatusSample, second: &StatusSample, agreed: &Agreed) -> Option<Reason> {
    let (was, is) = (first.term, second.term);
    if was != is {
        Some(Reason::new(Code::TermUnsettled, format!("{name}'s term went from {was} to {is}")))
    } else if agreed.term.is_against(is) {
        Some(Reason::new(Code::TermUnsettled, format!("{name} is in term {is}, others are not")))
    } else {
        None
    }
}

fn behind(name: &str, second: &StatusSample, agreed: &Agreed, bound: u64, code: Code) -> Option<Reason> {
    let (_, highest) = agreed.highest?;
    let lag = highest.saturating_sub(second.raft_index);
    (lag > bound).then(|| Reason::new(code, format!("{name} is {lag} entries behind, at most {bound} are healthy")))
}

fn slow_to_apply(name: &str, second: &StatusSample, bound: u64, code: Code) -> Option<Reason> {
    let lag = second.raft_index.saturating_sub(second.applied_index);
    (lag > bound)
        .then(|| Reason::new(code, format!("{name} has {lag} committed entries to apply, at most {bound} are healthy")))
}

/// A member that stands still while the leader advances. Samples of two members are not taken in the same instant, so an entry
/// or two that another had a moment earlier prove nothing: it must lack what was committed one sample before, or be
/// further behind than a member that has recovered may be.
fn stalled(
    name: &str,
    first: &StatusSample,
    second: &StatusSample,
    agreed: &Agreed,
    policy: &Policy,
) -> Option<Reason> {
    let (highest_first, highest_second) = agreed.highest?;
    let stands_still = second.raft_index <= first.raft_index && highest_second > highest_first;
    let behind = highest_second.saturating_sub(second.raft_index);
    let stalled = stands_still && (second.raft_index < highest_first || behind > policy.recovered_lag);
    stalled.then(|| {
        let at = second.raft_index;
        Reason::new(Code::MemberStalled, format!("{name} stands at index {at}, others went on to {highest_second}"))
    })
}

fn own_list(case: &Case<'_>, name: &str, view: &MemberView) -> Option<Reason> {
    match (&view.member_list, case.membership()) {
        (Fact::Unknown(why), _) => {
            Some(Reason::new(Code::MemberUnanswered, format!("{name} does not tell its member list: {why}")))
        }
        (Fact::Known(list), Some(membership)) => {
            let detail = || format!("{name} lists {} members", list.len());
            (!membership.is(list)).then(|| Reason::new(Code::MembershipDisagrees, detail()))
        }
        (Fact::Known(_), None) => None,
    }
}
