//! What strains etcd though each voter is healthy: reads that take long, a database that is nearly full (incident R19).

use super::case::{Case, Listed};
use crate::disruption::Disruption;
use crate::observation::{Fact, MemberView, Quota};
use crate::reason::{Code, Reason};

/// All of it, of every voter, the target's included: what it lacks the others have to carry.
pub(super) fn judged(case: &Case<'_>) -> Vec<Reason> {
    let seen = || case.voters().filter_map(|voter| Some((voter, voter.view?)));
    let mut reasons: Vec<Reason> = seen().filter_map(|(voter, view)| slow_read(case, voter, view)).collect();
    // Defragmentation is the cure.
    if !matches!(case.wanted, Disruption::Defragment(_)) {
        reasons.extend(seen().filter_map(|(voter, view)| nearly_full(case, voter, view)));
    }
    reasons
}

/// Both reads are late: one may be a hiccup. One that was not answered at all is none.
fn slow_read(case: &Case<'_>, voter: &Listed<'_>, view: &MemberView) -> Option<Reason> {
    // A voter through which nothing could be read is not healthy, and that is told.
    view.linearizable_read.known()?;
    let (first, second) = match (&view.first_read, &view.second_read) {
        (Fact::Known(first), Fact::Known(second)) => (*first, *second),
        (Fact::Unknown(why), _) | (_, Fact::Unknown(why)) => {
            let text = format!("{}, one of two: {why}", voter.name());
            return Some(Reason::new(Code::ReadUnanswered, text));
        }
    };
    let bound = case.policy.slow_read;
    (first.min(second) > bound).then(|| {
        let text = format!("{}: {first} and {second} ms, at most {bound} ms are well", whose(voter));
        Reason::new(Code::ReadSlow, text)
    })
}

/// The later sample's size against the quota. A quota that etcd does not tell is taken to be the one of the configuration.
fn nearly_full(case: &Case<'_>, voter: &Listed<'_>, view: &MemberView) -> Option<Reason> {
    let sample = view.second.known()?;
    let (quota, told) = match &sample.db_quota {
        Fact::Known(Quota::Disabled) => return None,
        Fact::Known(Quota::Bytes(quota)) => (*quota, String::new()),
        Fact::Unknown(why) => (case.policy.assumed_quota, format!(" (`rule.assumedQuota`: {why})")),
    };
    let (size, fill) = (sample.db_size, case.policy.database_fill);
    let full = u128::from(size).saturating_mul(100) > u128::from(quota).saturating_mul(u128::from(fill));
    full.then(|| {
        let mebi = |bytes: u64| bytes >> 20;
        let text = format!(
            "{}: {} MiB, {} MiB of them in use, are more than {fill} % of its quota of {} MiB{told}",
            whose(voter),
            mebi(size),
            mebi(sample.db_size_in_use),
            mebi(quota)
        );
        Reason::new(Code::DatabaseNearlyFull, text)
    })
}

/// A member and where it runs.
fn whose(voter: &Listed<'_>) -> String {
    match voter.node() {
        Some(node) => format!("{} on {node}", voter.name()),
        None => voter.name(),
    }
}
