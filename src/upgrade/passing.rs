//! What is worth waiting for: nothing refuses, an answer was late, an election is going on, a disk is busy for a moment.

use crate::upgrade::chain::Chain;
use quorum_safety::{Class, Code, NodeName, Reason};
use std::time::Duration;

/// How long is waited for a permit.
const PASSING: Duration = Duration::from_secs(90);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);

/// Looks again at one node as long as what is against its disruption may pass.
pub(super) struct Passing<'a, 'c> {
    chain: &'a Chain<'c>,
    node: &'a NodeName,
    end: Duration,
}

impl<'a, 'c> Passing<'a, 'c> {
    /// From now on.
    pub(super) fn of(chain: &'a Chain<'c>, node: &'a NodeName) -> Self {
        Self { chain, node, end: chain.clock.boottime() + PASSING }
    }

    /// Whether it is worth another look; then it has said so, and waited a moment.
    pub(super) async fn another_look(&self, reasons: &[Reason]) -> bool {
        let Self { chain, node, end } = self;
        if !passes(reasons) || chain.clock.boottime() >= *end || chain.stopped().await.is_some() {
            return false;
        }
        let lines = reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        chain.say(&format!("{node}: not now, looking again: {lines}"));
        tokio::time::sleep(PAUSE).await;
        true
    }
}

/// Whether what is said against a disruption may pass by itself: somebody is unknown, or not well just now. That without him there would be
/// no quorum, or no other apiserver, is only what follows from it. A switch is somebody's doing, and a database does not shrink.
pub(crate) fn passes(reasons: &[Reason]) -> bool {
    let follows = |code| matches!(code, Code::QuorumWouldBeLost | Code::NoOtherApiserver);
    let stays = |code| matches!(code, Code::KillSwitchEngaged | Code::DatabaseNearlyFull);
    let lasts = |reason: &&Reason| reason.class == Class::Refusal || stays(reason.code);
    let (lasting, passing): (Vec<&Reason>, Vec<&Reason>) = reasons.iter().partition(lasts);
    !passing.is_empty() && lasting.iter().all(|reason| follows(reason.code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::{Fact, KillSwitch, Quota, fixture};

    #[test]
    fn a_member_that_does_not_answer_just_now_is_waited_for_and_a_membership_that_is_too_small_is_not() {
        let waited_for = |cluster: &fixture::Cluster| passes(cluster.judge(&fixture::upgrade(1)).reasons());
        let silent = || fixture::healthy(3).member_dead(2);
        assert!(waited_for(&silent()), "{:?}", silent().judge(&fixture::upgrade(1)));
        let no_apiserver = fixture::healthy(3).with(|cluster| {
            for server in &mut cluster.seen.apiservers {
                server.ready = fixture::unknown();
            }
        });
        assert!(waited_for(&no_apiserver));
        let slow = fixture::healthy(3).on_member(2, |view| {
            (view.first_read, view.second_read) = (Fact::Known(1_500), Fact::Known(2_500));
        });
        assert!(waited_for(&slow));
        assert!(!waited_for(&fixture::healthy(1)));
        let full = fixture::healthy(3).on_samples(2, |sample| sample.db_quota = Fact::Known(Quota::Bytes(1)));
        assert!(!waited_for(&full), "{:?}", full.judge(&fixture::upgrade(1)));
        let engaged = Fact::Known(KillSwitch::Engaged("stop".to_owned()));
        assert!(!waited_for(&silent().with(|cluster| cluster.in_flight.kill_switch = engaged)));
        assert!(!waited_for(&fixture::healthy(3)), "nothing is said against it");
    }
}
