//! What is half done on a node whose record is gone: its Lease was deleted, emptied by hand, or given back while this step waited for it.

use crate::job::{self, Jobs};
use crate::lock::Hold;
use crate::node::Preflight;
use crate::report::Outcome;
use crate::upgrade::chain::{Chain, End, end, unknown};
use crate::upgrade::fleet::FleetNode;
use crate::upgrade::sub_step::SubStep;
use quorum_safety::{Fact, InFlight, Lock, Mine};
use std::time::Duration;

/// How long is waited for what cannot be read just now.
const PASSING: Duration = Duration::from_secs(90);

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Its host may have been changed.
    OnHost,
    /// Its host is as it was.
    Begun,
    /// Nothing runs on its host, it is on target, and no lock and no cordon of ours is on it: whoever held the lock has finished it.
    Finished,
}

/// Asks the host and the fleet. What may have been changed is recorded at once: whoever adopts this after us must not undo it either. An
/// end when what must be known is not.
///
/// # Errors
/// When it cannot be recorded.
pub async fn look(chain: &Chain<'_>, node: &FleetNode, hold: &Hold) -> anyhow::Result<Result<Found, End>> {
    let said = chain.node_preflight(&node.name).await;
    if matches!(&said, Fact::Known(answer) if answer.running == Fact::Known(None)) {
        match finished(chain, node, hold).await {
            Ok(true) => return Ok(Ok(Found::Finished)),
            Ok(false) => {}
            Err(stop) => return Ok(Err(stop)),
        }
    }
    let why = match changed(said) {
        Some(why) => why,
        None => match ordered(chain, node).await {
            Some(why) => why,
            None => return Ok(Ok(Found::Begun)),
        },
    };
    chain.say(&format!("{}: going on with what a step began whose lock is gone: {why}", node.name));
    hold.guard.step(SubStep::NodeStep.into()).await?;
    Ok(Ok(Found::OnHost))
}

/// Whether the fleet shows the node done, apart from the lock that we hold ourselves.
async fn finished(chain: &Chain<'_>, node: &FleetNode, hold: &Hold) -> Result<bool, End> {
    let until = chain.clock.boottime() + PASSING;
    let identity = hold.guard.identity().await;
    loop {
        let mut seen = chain.look(Mine::Taken(identity.clone())).await;
        seen.in_flight = without(seen.in_flight, &identity);
        let stop = match chain.plan(&seen).await {
            Ok(Ok((_, plan))) => return Ok(plan.done.contains(&node.name)),
            Ok(Err(stop)) => stop,
            Err(error) => unknown(format!("{error:#}")),
        };
        if chain.clock.boottime() >= until {
            return Err(stop);
        }
        chain.say(&format!("{}: looking again: {}", node.name, stop.summary));
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// What is under way but for what somebody holds himself.
fn without(mut in_flight: InFlight, identity: &str) -> InFlight {
    let free = |lock| match lock {
        Lock::Held(holder) if holder.identity == identity => Lock::Free,
        other => other,
    };
    in_flight.control_plane = in_flight.control_plane.map(free);
    in_flight.workers = in_flight.workers.map(|slots| slots.into_iter().map(free).collect());
    in_flight
}

/// Gives the locks back, since there is nothing to go on with, and ends so; with nothing to say when the node is finished.
pub async fn leave(chain: &Chain<'_>, node: &FleetNode, hold: Hold, stop: Option<End>) -> Option<End> {
    match (hold.release().await, stop) {
        (Ok(()), None) => {
            chain.say(&format!("{}: whoever held its lock has finished it", node.name));
            None
        }
        (Ok(()), stop) => stop,
        (Err(error), stop) => {
            let what = stop.map_or_else(|| "it is finished".to_owned(), |stop| stop.summary);
            Some(end(Outcome::Midway, format!("{}: {what}; its lock could not be given back: {error}", node.name)))
        }
    }
}

/// Why its host may be changed any moment although nothing runs on it: an order was given, and its pod has not started or not ended.
/// None when there is no such order.
async fn ordered(chain: &Chain<'_>, node: &FleetNode) -> Option<String> {
    let name = chain.node_job(&node.name);
    match Jobs::new(chain.access, Vec::new()).get(&name).await {
        Ok(job) => job.filter(|job| job::ended(job).is_none()).map(|_| format!("Job {name} has not ended")),
        Err(error) => Some(error.to_string()),
    }
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
    use quorum_safety::{Holder, fixture};

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

    #[test]
    fn only_ones_own_hold_is_left_out() {
        let held = |identity: &str| {
            let holder =
                Holder { identity: identity.to_owned(), operation: "upgrade-v1.36.3".to_owned(), target: "k2".into() };
            Lock::Held(holder)
        };
        let mut in_flight = fixture::healthy(3).in_flight;
        in_flight.control_plane = Fact::Known(held("me"));
        in_flight.workers = Fact::Known(vec![held("me"), held("you"), Lock::Free]);
        let left = without(in_flight.clone(), "me");
        assert_eq!(left.control_plane, Fact::Known(Lock::Free));
        assert_eq!(left.workers, Fact::Known(vec![Lock::Free, held("you"), Lock::Free]));
        let nobody = without(in_flight.clone(), "somebody");
        assert_eq!(nobody, in_flight);
        in_flight.workers = fixture::unknown();
        assert_eq!(without(in_flight, "me").workers, fixture::unknown());
    }
}
