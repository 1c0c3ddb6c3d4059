//! The rule. Read from the top: first what is asked and of what, then what is under way, then what is wrong with whom, then
//! whether enough remains. Every part returns all its reasons; none ends the judgment early.

mod agreement;
mod case;
mod members;
mod membership;
mod nodes;
mod remains;
mod restore;
mod strain;
mod under_way;

use crate::disruption::Disruption;
use crate::in_flight::InFlight;
use crate::membership::MemberId;
use crate::observation::Observation;
use crate::policy::Policy;
use crate::reason::{Class, Reason};
use crate::verdict::{Permit, Reasons, Verdict};
use case::{Case, Demand};

/// Decides whether a disruption may start, from what was seen and what is under way.
///
/// A check that `policy.lifted` names is dropped if the catalogue calls it liftable. A voter that is not healthy stays
/// uncounted all the same, unless what was lifted only says that it may go away later (a foreign cordon, a certificate).
pub fn judge(seen: &Observation, in_flight: &InFlight, wanted: &Disruption, policy: &Policy) -> Verdict {
    let case = Case::of(seen, in_flight, wanted, policy);
    let (mut reasons, margin) = match wanted {
        Disruption::Restore => (restore::judged(&case), 0),
        Disruption::Reboot(_)
        | Disruption::Upgrade(_)
        | Disruption::MoveLeader(_)
        | Disruption::Defragment(_)
        | Disruption::AddLearner
        | Disruption::Promote(_)
        | Disruption::Remove(_)
        | Disruption::Replace(_) => over_a_living_cluster(&case),
    };
    reasons.retain(|reason| !case.lifts(reason.code) && !case.says_that_the_api_is_away(reason.code));
    match Reasons::new(reasons) {
        None => Verdict::Permitted(Permit { disruption: wanted.clone(), margin }),
        Some(reasons) if reasons.worst() == Class::Refusal => Verdict::Refused(reasons),
        Some(reasons) => Verdict::Held(reasons),
    }
}

/// How many voters are healthy by the rule, with nobody taken down: an answer alone does not make one. To be asked for somebody who holds
/// nothing; without a member list everybody who was asked counts as a voter.
pub fn healthy_voters(seen: &Observation, in_flight: &InFlight, policy: &Policy) -> usize {
    // Of all that may be wanted, what takes nobody down and mends nobody.
    let case = Case::of(seen, in_flight, &Disruption::AddLearner, policy);
    remains::count(&case, &members::judged(&case), &nodes::judged(&case))
}

/// The voters, each with all that is wrong with it as a member of etcd; what is wrong with its node is not asked. For who wants to
/// know whom to trust, and takes nobody down; to be asked as [`healthy_voters`] is.
pub fn voters(seen: &Observation, in_flight: &InFlight, policy: &Policy) -> Vec<(MemberId, Vec<Reason>)> {
    let case = Case::of(seen, in_flight, &Disruption::AddLearner, policy);
    members::judged(&case).into_iter().map(|voter| (voter.listed.id, voter.faults)).collect()
}

/// Everything but a restore needs a cluster that has quorum, and must leave it one.
fn over_a_living_cluster(case: &Case<'_>) -> (Vec<Reason>, usize) {
    let voters = members::judged(case);
    let nodes = nodes::judged(case);

    let mut reasons = Vec::new();
    reasons.extend(under_way::cluster_unknown(case));
    reasons.extend(under_way::leases(case));
    reasons.extend(under_way::kured(case));
    reasons.extend(under_way::kill_switch(case));
    reasons.extend(under_way::snapshot(case));
    reasons.extend(under_way::cordons(case));

    reasons.extend(nodes::target(case));
    reasons.extend(nodes::places(case));
    reasons.extend(membership::unreadable(case));
    reasons.extend(membership::join_under_way(case));
    reasons.extend(membership::alarms(case));

    // Strain of etcd holds whoever would take a new target. It keeps nobody from finishing or mending: its voter counts.
    if case.demand == Demand::Whole {
        reasons.extend(strain::judged(case));
    }

    let remaining = remains::judged(case, &voters, &nodes);
    // A new target needs a whole control plane. An operation that has begun, a repair and a worker need a majority of it
    // only; what is wrong with the others is told when it is the cause of a refusal.
    if case.demand == Demand::Whole || remaining.is_too_little() {
        reasons.extend(voters.into_iter().flat_map(|voter| voter.faults));
        reasons.extend(nodes.into_iter().flat_map(|node| node.told(case)));
    }
    reasons.extend(remaining.reasons);
    (reasons, remaining.margin)
}
