//! How a hand releases a Lease.

use super::facts::{HolderFacts, prove_gone};
use super::record::{LeaseView, Stage};

/// The furthest stage at which a hand may record a release of the holder that `facts` are about; none when that holder does not hold
/// the Lease. It is written with the resourceVersion of `view` as its precondition.
///
/// A release stops nobody at once. A holder that has not seen it goes on with what it announced before, until its deadline, and such a
/// request leaves no trace in the Lease: neither a step nor a resourceVersion tells what was done before the release from what was
/// done after it. So nobody can say that what is half done was put right while it may still grow. It is given up only on top of a
/// release that already says that the holder has stopped: whoever gives it up could look at the target after the last request.
pub fn by_hand(view: &LeaseView, facts: &HolderFacts, abandon: bool) -> Option<Stage> {
    let LeaseView::Held { identity, record, release, .. } = view else { return None };
    if facts.of != *identity {
        return None;
    }
    // One that cannot be read says nothing, and is replaced.
    let standing = release.known().and_then(Option::as_ref).filter(|release| release.identity == *identity);
    Some(match standing.map(|release| release.stage) {
        Some(Stage::Abandoned) => Stage::Abandoned,
        Some(Stage::Stopped) if abandon => Stage::Abandoned,
        Some(Stage::Stopped) => Stage::Stopped,
        Some(Stage::Told) | None if prove_gone(record, standing, facts).is_ok() => Stage::Stopped,
        Some(Stage::Told) | None => Stage::Told,
    })
}
