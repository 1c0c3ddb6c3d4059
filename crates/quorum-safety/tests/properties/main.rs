//! The rule against an independent, deliberately naive oracle, over generated clusters that are mostly whole. More cases:
//! `PROPTEST_CASES=100000`.

mod generate;
mod oracle;
mod worse;

use generate::{Question, question};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use quorum_safety::{AlarmKind, Answer, Code, Disruption, Record, StoredVerdict, Verdict, judge};
use std::collections::BTreeMap;

fn ask(question: &Question) -> Verdict {
    let Question { cluster, wanted } = question;
    judge(&cluster.seen, &cluster.in_flight, wanted, &cluster.policy)
}

proptest! {
    #![proptest_config(Config { cases: Config::default().cases.max(1_500), failure_persistence: None, max_global_rejects: u32::MAX, ..Config::default() })]

    #[test]
    fn what_the_oracle_forbids_is_not_permitted(question in question()) {
        if let Verdict::Permitted(permit) = ask(&question) {
            let forbidden = oracle::forbids(&question.cluster.seen, &question.cluster.in_flight, &question.wanted, &question.cluster.policy);
            prop_assert!(forbidden.is_empty(), "permitted with margin {}, but {forbidden:?}", permit.margin());
        }
    }

    #[test]
    fn a_worse_fact_never_turns_a_no_into_a_yes(question in question(), worse in worse::worse()) {
        prop_assume!(worse::is_worse_for(&worse, &question));
        let before = ask(&question);
        let mut after = question.clone();
        worse.apply(&mut after.cluster);
        if let Verdict::Permitted(_) = ask(&after) {
            // The lag of the others is measured against the furthest of those who answered.
            prop_assume!(oracle::furthest(&after.cluster.seen) >= oracle::furthest(&question.cluster.seen));
            prop_assert!(matches!(before, Verdict::Permitted(_)), "{worse:?} turned {before:?} into a permit");
        }
    }

    #[test]
    fn the_order_of_what_was_seen_does_not_matter(question in question(), seed in any::<u64>()) {
        let mut shuffled = question.clone();
        generate::shuffle(&mut shuffled.cluster, seed);
        prop_assert_eq!(StoredVerdict::from(&ask(&question)), StoredVerdict::from(&ask(&shuffled)));
    }

    #[test]
    fn a_stored_verdict_is_read_back_and_judged_alike(question in question()) {
        let Question { cluster, wanted } = question;
        let (_, record) = Record::judged(cluster.seen, cluster.in_flight, wanted, cluster.policy);
        let text = serde_json::to_string_pretty(&record).unwrap();
        let read: Record = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&read, &record);
        prop_assert_eq!(read.judge_again(), record.verdict);
    }

    #[test]
    fn lifting_never_lifts_quorum_or_the_last_apiserver(question in question()) {
        let mut lifted = question.clone();
        lifted.cluster.policy.lifted = Code::ALL.to_vec();
        let may_go_away = [Code::ForeignCordon, Code::CertificateExpiring, Code::CertificateUnknown];
        let has = |verdict: &Verdict, code| verdict.reasons().iter().any(|reason| reason.code == code);
        let hard = [Code::QuorumWouldBeLost, Code::NoOtherApiserver, Code::SingleVoter];
        // Nothing lifts these, but that a voter which only may go away later is counted.
        let mut strict = lifted.clone();
        strict.cluster.policy.lifted.retain(|code| !may_go_away.contains(code));
        let (plain, strict) = (ask(&question), ask(&strict));
        if question.cluster.policy.lifted.iter().all(|code| !may_go_away.contains(code)) {
            for code in hard {
                prop_assert_eq!(has(&plain, code), has(&strict, code), "{}", code);
            }
        }
        if let Verdict::Permitted(_) = ask(&lifted) {
            let Question { cluster, wanted } = &lifted;
            let forbidden = oracle::forbids(&cluster.seen, &cluster.in_flight, wanted, &cluster.policy);
            prop_assert!(forbidden.is_empty(), "{forbidden:?}");
        }
    }

    /// The override takes the place of an API in which all is well, of locks that are free, and of nothing in etcd.
    #[test]
    fn without_the_api_no_more_is_permitted_than_with_one_in_which_all_is_well(question in question(), begun in any::<bool>()) {
        let Question { mut cluster, wanted } = question;
        generate::take_the_api_away(&mut cluster, begun);
        cluster.policy.without_api = true;
        let verdict = ask(&Question { cluster: cluster.clone(), wanted: wanted.clone() });
        if let (Verdict::Permitted(_), false) = (&verdict, wanted == Disruption::Restore) {
            generate::bring_a_whole_api(&mut cluster);
            cluster.policy.without_api = false;
            let forbidden = oracle::forbids(&cluster.seen, &cluster.in_flight, &wanted, &cluster.policy);
            // What has begun is finished on a control plane that is not whole; and a voter that was not asked counts for nothing, wherever
            // it runs.
            let counts = |what: &&str| !(begun && oracle::is_strain(what)) && *what != oracle::NOWHERE;
            let forbidden: Vec<_> = forbidden.into_iter().filter(counts).collect();
            prop_assert!(forbidden.is_empty(), "{forbidden:?}");
            let mut alarms = cluster.seen.etcd.members.iter().filter_map(|view| view.alarms.known()).flatten();
            let other = match wanted {
                Disruption::Reboot(_) | Disruption::Upgrade(_) => true,
                Disruption::Defragment(_) => !alarms.any(|alarm| alarm.kind == AlarmKind::NoSpace),
                _ => false,
            };
            prop_assert!(!other, "{wanted} without the API");
        }
    }

    #[test]
    fn what_decides_is_the_worst_reason(question in question()) {
        let verdict = ask(&question);
        let refusal = verdict.reasons().iter().any(|reason| reason.class == quorum_safety::Class::Refusal);
        let expected = match (verdict.reasons().is_empty(), refusal) {
            (true, _) => Answer::Permitted,
            (false, true) => Answer::Refused,
            (false, false) => Answer::Held,
        };
        prop_assert_eq!(StoredVerdict::from(&verdict).answer, expected);
        prop_assert!(verdict.reasons().iter().all(|reason| reason.class == reason.code.class()));
        prop_assert!(verdict.reasons().is_sorted());
    }
}

/// A rule that always refuses, and a generator that never reaches it, would pass everything above.
#[test]
fn sometimes_it_is_permitted_held_and_refused() {
    let mut runner = TestRunner::deterministic();
    let strategy = question();
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut adopted_though_broken = 0;
    let mut permitted = 0;
    let all = 3_000;
    for _ in 0..all {
        let question = strategy.new_tree(&mut runner).unwrap().current();
        let verdict = ask(&question);
        let answer = match &verdict {
            Verdict::Permitted(_) => "permitted",
            Verdict::Held(_) => "held",
            Verdict::Refused(_) => "refused",
        };
        if matches!(verdict, Verdict::Permitted(_)) {
            permitted += 1;
            let dead = question.cluster.seen.etcd.members.iter().any(|view| view.second.known().is_none());
            if dead && matches!(question.cluster.in_flight.mine, quorum_safety::Mine::Adopted(_)) {
                adopted_though_broken += 1;
            }
        }
        *counts.entry((generate::kind(&question.wanted), answer)).or_default() += 1;
    }
    for kind in generate::KINDS {
        for answer in ["permitted", "refused"] {
            assert!(counts.get(&(kind, answer)).copied().unwrap_or(0) > 0, "{kind} was never {answer}: {counts:?}");
        }
    }
    let share = permitted * 100 / all;
    assert!((20..=70).contains(&share), "{share} % were permitted: {counts:?}");
    assert!(adopted_though_broken > 10, "{adopted_though_broken}");
}

/// A whole cluster, nothing under way: exactly what the arithmetic says, for every size and node.
#[test]
fn a_whole_cluster_is_judged_by_arithmetic_alone() {
    for n in 1..=7 {
        for target in 1..=n {
            for wanted in [quorum_safety::fixture::reboot(target), quorum_safety::fixture::upgrade(target)] {
                let cluster = quorum_safety::fixture::healthy(n);
                let verdict = ask(&Question { cluster, wanted });
                let may = (n - 1) * 2 > n;
                assert_eq!(matches!(verdict, Verdict::Permitted(_)), may, "{n} voters: {verdict:?}");
            }
        }
    }
    let cluster = quorum_safety::fixture::healthy(3);
    assert!(matches!(ask(&Question { cluster, wanted: Disruption::AddLearner }), Verdict::Permitted(_)));
}
