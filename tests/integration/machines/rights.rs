//! What our accounts may do and never did, by the audit logs of everything that happened on the machines (incident R03).

use super::stage::Stage;
use super::story::story;
use crate::rights::{ELSEWHERE, Right, of_base, unused_in};
use std::collections::BTreeSet;

/// Accounts that do nothing on the machines of the story, each with the test that shows that it needs what it has.
const NOT_IN_THE_STORY: [(&str, &str); 2] = [
    ("quorate-backup", "backups_are_taken_under_their_lease_one_at_a_time"),
    ("quorate-defrag", "what_strikes_in_the_middle_of_a_defragmentation_takes_nobody_else_down"),
];

/// The rights that nobody has used.
pub(super) fn unused(stage: &Stage) -> BTreeSet<String> {
    let elsewhere =
        |right: &String| NOT_IN_THE_STORY.iter().any(|(account, _)| right.starts_with(&format!("{account}: ")));
    unused_in(&stage.asked()).into_iter().filter(|right| !elsewhere(right)).collect()
}

#[test]
fn r03_no_right_is_given_that_nobody_uses() {
    let unused = &story().unused_rights;
    let given: BTreeSet<String> = of_base().iter().map(Right::text).collect();
    for (right, what_for) in ELSEWHERE {
        assert!(given.contains(right), "{right} ({what_for}) is not given any more");
    }
    let nobodys: Vec<&String> =
        unused.iter().filter(|right| !ELSEWHERE.iter().any(|(elsewhere, _)| elsewhere == right)).collect();
    assert!(nobodys.is_empty(), "{nobodys:?}");
    assert!(unused.len() < given.len() / 2, "the audit log shows what was asked: {unused:?}");
}
