//! Asking for a Lease: read, look at its holder, decide, write; again while there is patience.

use super::guard::Guard;
use super::holder::{self, Claimant};
use super::lease::{LeaseError, Leases, SeenLease, Write};
use quorum_safety::lock::{Decision, Held, HolderFacts, LeaseView, Sighting, Step, Wait, decide};
use quorum_safety::{Fact, NodeName, UnixSeconds};
use std::future::Future;
use std::time::Duration;

/// Longest pause between two looks at a Lease that another holds.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What came of asking.
#[derive(Debug)]
#[must_use]
pub enum Taken {
    /// It is held, and renewed in the background.
    Got(Box<Guard>),
    /// Not to be had within the patience; why, as last seen. Never empty.
    Held(Vec<Wait>),
}

/// Takes, adopts or takes over a Lease, or goes on with one that this identity holds already.
///
/// With a patience of nothing it asks once. `unit` tells whether a node's host runs the unit `quorate-node-step`: a privileged look,
/// so it is asked only once the holder's own deadline has passed.
pub async fn take<F: Future<Output = Fact<bool>>>(
    leases: &Leases,
    name: &str,
    who: &Claimant,
    patience: Duration,
    unit: impl Fn(NodeName) -> F,
) -> Taken {
    let clock = leases.clock;
    let end = clock.boottime().saturating_add(patience);
    let mut sighting: Option<Sighting> = None;
    loop {
        let waits = match attempt(leases, name, who, &mut sighting, &unit).await {
            Ok(Ok(guard)) => return Taken::Got(Box::new(guard)),
            Ok(Err(waits)) => waits,
            // Somebody else was faster: who that is decides what comes next.
            Err(LeaseError::Conflict(_)) if clock.boottime() < end => continue,
            Err(error) => vec![Wait::LeaseUnknown(error.to_string())],
        };
        let left = end.saturating_sub(clock.boottime());
        if left.is_zero() {
            return Taken::Held(waits);
        }
        tracing::info!(lease = name, waits = ?waits, "Waiting for the Lease");
        tokio::time::sleep(left.min(LOOK_AGAIN).min(leases.timings.renew)).await;
    }
}

async fn attempt<F: Future<Output = Fact<bool>>>(
    leases: &Leases,
    name: &str,
    who: &Claimant,
    sighting: &mut Option<Sighting>,
    unit: impl Fn(NodeName) -> F,
) -> Result<Result<Guard, Vec<Wait>>, LeaseError> {
    let clock = leases.clock;
    let seen = leases.read(name).await?;
    let now = clock.boottime();
    let sighted = match sighting.take() {
        Some(before) => before.again(&seen.view, now),
        None => Sighting::first(&seen.view, now),
    };
    let silent = sighted.silent(now, &leases.timings);
    *sighting = Some(sighted);
    let facts = facts(leases, &seen, who, silent, unit).await?;
    let decision = decide(&Fact::Known(seen.view.clone()), &who.claim, &facts);
    tracing::debug!(lease = name, ?decision, "Decided about the Lease");
    let now = clock.unix();
    let (step, since, adopted) = match (decision, &seen.view) {
        (Decision::Wait(waits), _) => return Ok(Err(waits)),
        (Decision::Renew, LeaseView::Held { record: Fact::Known(record), .. }) => {
            // It went on after a pause: what it had begun counts as adopted from itself.
            (record.step.clone(), record.since, record.step.touched.then(|| record.step.clone()))
        }
        (Decision::Adopt { proof, step }, LeaseView::Held { record: Fact::Known(record), .. }) => {
            tracing::info!(lease = name, from = record.identity, %step, %proof, "Adopting what was left behind");
            // One that has touched nothing is judged as a new one is.
            (step.clone(), record.since, step.touched.then_some(step))
        }
        (Decision::TakeOver { proof }, _) => {
            tracing::info!(lease = name, %proof, "Taking the Lease over");
            (Step::acquired(), now, None)
        }
        (Decision::Create | Decision::Acquire | Decision::Renew | Decision::Adopt { .. }, _) => {
            (Step::acquired(), now, None)
        }
    };
    let guard = write(leases, &seen, who, (step, since), adopted).await?;
    Ok(Ok(guard))
}

async fn facts<F: Future<Output = Fact<bool>>>(
    leases: &Leases,
    seen: &SeenLease,
    who: &Claimant,
    silent: bool,
    unit: impl Fn(NodeName) -> F,
) -> Result<HolderFacts, LeaseError> {
    let LeaseView::Held { identity, record, .. } = &seen.view else {
        return Ok(HolderFacts::unknown("", "nobody holds the Lease"));
    };
    match record {
        Fact::Known(record) if record.identity != who.claim.identity => {
            let unit = if silent {
                unit(record.target.clone()).await
            } else {
                Fact::Unknown("not looked at before the holder's deadline has passed".to_owned())
            };
            Ok(holder::look(&leases.client().await?, record, unit, silent, leases.request_limit()).await)
        }
        // A hand may still release a holder whose record cannot be read, once its deadline has passed.
        Fact::Known(_) | Fact::Unknown(_) => {
            Ok(HolderFacts { silent, ..HolderFacts::unknown(identity, "the record could not be read") })
        }
    }
}

async fn write(
    leases: &Leases,
    seen: &SeenLease,
    who: &Claimant,
    (step, since): (Step, UnixSeconds),
    adopted: Option<Step>,
) -> Result<Guard, LeaseError> {
    let record = who.record(step, since, leases.clock.unix());
    // Before it is sent: the holder's deadline counts from here.
    let sent = leases.clock.boottime();
    let end = sent.saturating_add(leases.request_limit());
    let seen = leases.write(seen, &Write::Take(&record), end).await?;
    Ok(Guard::start(leases.clone(), seen, record, Held::since(sent, leases.timings), adopted))
}
