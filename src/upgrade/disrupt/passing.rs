//! What is worth waiting for.

use quorum_safety::{Class, Code, Reason};

/// Whether what is said against a disruption may pass by itself: somebody is unknown, or not well just now. That without him there would be
/// no quorum, or no other apiserver, is only what follows from it.
pub(super) fn passes(reasons: &[Reason]) -> bool {
    let follows = |code| matches!(code, Code::QuorumWouldBeLost | Code::NoOtherApiserver);
    let lasts = |reason: &&Reason| reason.class == Class::Refusal || reason.code == Code::KillSwitchEngaged;
    let (lasting, passing): (Vec<&Reason>, Vec<&Reason>) = reasons.iter().partition(lasts);
    !passing.is_empty() && lasting.iter().all(|reason| follows(reason.code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::{Fact, KillSwitch, fixture};

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
        assert!(!waited_for(&fixture::healthy(1)));
        let engaged = Fact::Known(KillSwitch::Engaged("stop".to_owned()));
        assert!(!waited_for(&silent().with(|cluster| cluster.in_flight.kill_switch = engaged)));
        assert!(!waited_for(&fixture::healthy(3)), "nothing is said against it");
    }
}
