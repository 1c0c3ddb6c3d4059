//! What is half done on a node whose record is gone: the cordon is there, and its Lease was deleted, or emptied by hand.

use crate::lock::Hold;
use crate::node::Preflight;
use crate::upgrade::chain::Chain;
use crate::upgrade::fleet::FleetNode;
use crate::upgrade::sub_step::SubStep;
use quorum_safety::Fact;

/// Whether the host may have been changed, by what it says itself. If so it is recorded at once: whoever adopts this after us must not
/// undo it either.
///
/// # Errors
/// When it cannot be recorded.
pub async fn on_host(chain: &Chain<'_>, node: &FleetNode, hold: &Hold) -> anyhow::Result<bool> {
    let Some(why) = changed(chain.node_preflight(&node.name).await) else { return Ok(false) };
    chain.say(&format!("{}: going on with what a step began whose lock is gone: {why}", node.name));
    hold.guard.step(SubStep::NodeStep.into()).await?;
    Ok(true)
}

/// Why the host counts as changed; none when it is known not to be.
fn changed(said: Fact<Preflight>) -> Option<String> {
    match said {
        Fact::Known(answer) if answer.begun => Some("a step has begun to change the host".to_owned()),
        Fact::Known(answer) => match answer.running {
            Fact::Known(None) => None,
            Fact::Known(Some(unit)) => Some(format!("{unit} runs")),
            Fact::Unknown(why) => Some(why),
        },
        Fact::Unknown(why) => Some(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_that_says_so_is_unchanged() {
        let answer = |begun: bool, running: Fact<Option<String>>| {
            let mut answer = Preflight::unseen("v1.36.3".parse().unwrap());
            (answer.begun, answer.running) = (begun, running);
            changed(Fact::Known(answer))
        };
        assert_eq!(answer(false, Fact::Known(None)), None);
        for changed in [
            answer(true, Fact::Known(None)),
            answer(false, Fact::Known(Some("quorate node step to v1.36.3".to_owned()))),
            answer(false, Fact::Unknown("systemd does not answer".to_owned())),
            changed(Fact::Unknown("its pod did not start".to_owned())),
        ] {
            assert!(changed.is_some());
        }
    }
}
