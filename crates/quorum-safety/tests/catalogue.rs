//! The catalogue, its codes as they are stored, and the documentation page that is made from it.

use quorum_safety::{Class, Code, Seen};
use std::collections::BTreeSet;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reasons.md");

fn rendered() -> String {
    let mut page = String::from(
        "# Reasons\n\n\
         Every verdict that is not a permit carries all of its reasons. A code never changes its meaning and is never used again.\n\
         This page is made from the catalogue in `crates/quorum-safety/src/reason.rs`; a test compares the two, and\n\
         `UPDATE=1 cargo test -p quorum-safety --test catalogue` writes it anew.\n\n\
         - *hold*: not now; waiting or mending may change the answer.\n\
         - *unknown*: something needed could not be read; it counts as a hold.\n\
         - *refusal*: not like this.\n\n\
         The worst class among the reasons decides whether the verdict is Held or Refused. \"May be lifted\" means that an override\n\
         of that single check is thinkable: `quorate upgrade … --lift CODE --because …` takes one, and so do `quorate etcd members …`\n\
         and `quorate etcd defrag --cure-nospace`. \"Seen\" names a test that gets the reason from a real etcd,\n\
         apiserver or machine; \"constructed\" says that none does, and what it would take. Constructed cases exist for all of them.\n",
    );
    for code in Code::ALL {
        let class = match code.class() {
            Class::Hold => "hold",
            Class::Unknown => "unknown",
            Class::Refusal => "refusal",
        };
        let lifting = if code.liftable() { "may be lifted" } else { "is never lifted" };
        let (sentence, advice) = (code.sentence(), code.advice());
        let seen = match code.seen() {
            Seen::Real(test) => format!("Seen: `{test}`"),
            Seen::Constructed(why) => format!("Constructed: {why}."),
        };
        page.push_str(&format!("\n## {code}\n\n{sentence} (*{class}*, {lifting})\n\n{advice}\n\n{seen}\n"));
    }
    page
}

#[test]
fn the_page_is_the_catalogue() {
    let rendered = rendered();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(PAGE, &rendered).unwrap();
    }
    let page = std::fs::read_to_string(PAGE).unwrap();
    assert!(page == rendered, "docs/reasons.md is not what the catalogue says: UPDATE=1 writes it");
}

#[test]
fn codes_are_stored_as_they_are_printed() {
    let mut numbers = BTreeSet::new();
    for code in Code::ALL {
        let text = serde_json::to_string(code).unwrap();
        assert_eq!(text, format!("\"{code}\""));
        assert_eq!(serde_json::from_str::<Code>(&text).unwrap(), *code);
        let (number, words) = code.as_str().split_at(5);
        assert!(number.starts_with('Q') && number.ends_with('-') && number[1..4].parse::<u16>().is_ok(), "{code}");
        assert!(words.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-'), "{code}");
        assert!(numbers.insert(number), "{number} is there twice");
        assert!(code.sentence().ends_with('.') && code.advice().ends_with(['.', ')']), "{code}");
    }
    assert!(Code::ALL.is_sorted_by_key(|code| code.as_str()));
    assert_eq!(numbers.len(), Code::ALL.len());
}

#[test]
fn what_nothing_may_lift() {
    for code in [
        Code::QuorumWouldBeLost,
        Code::NoOtherApiserver,
        Code::SingleVoter,
        Code::MembershipUnknown,
        Code::LearnerNotAlive,
        Code::LeaseNotMine,
        Code::KillSwitchEngaged,
    ] {
        assert!(!code.liftable(), "{code}");
    }
}
