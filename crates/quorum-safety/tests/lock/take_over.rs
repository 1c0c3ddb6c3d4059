//! Taking a Lease over: on which proof, and from whom not. With the proof made always true each test here and in `world` fails, which
//! scripts/mutants sees to.

use super::*;

/// One row: the facts that prove, what they prove, and the twins: each takes one part of the proof away.
struct Row {
    name: &'static str,
    facts: HolderFacts,
    released: bool,
    proof: Proof,
    twins: Vec<(&'static str, HolderFacts, bool)>,
}

fn rows() -> Vec<Row> {
    let ended = HolderFacts { pod: Fact::Known(PodState::Terminal), ..alive() };
    let deleted = HolderFacts { pod: Fact::Known(PodState::NotFound), silent: true, ..alive() };
    let rebooted = HolderFacts { node: node(true, "boot-2"), ..alive() };
    let silent = HolderFacts {
        pod: Fact::Known(PodState::NotFound),
        node: node(false, "boot-1"),
        unit: Fact::Known(false),
        silent: true,
        ..alive()
    };
    let by_hand = HolderFacts { node: node(false, "boot-1"), silent: true, ..alive() };
    vec![
        Row {
            name: "its pod has ended on a Ready node",
            released: false,
            proof: Proof::PodEnded,
            twins: vec![
                ("the pod runs", HolderFacts { pod: Fact::Known(PodState::Running), ..ended.clone() }, false),
                (
                    "the pod is terminating",
                    HolderFacts { pod: Fact::Known(PodState::Terminating), ..ended.clone() },
                    false,
                ),
                ("the pod is unknown", HolderFacts { pod: Fact::Unknown("403".into()), ..ended.clone() }, false),
                ("the node is not Ready", HolderFacts { node: node(false, "boot-1"), ..ended.clone() }, false),
                ("the node is gone", HolderFacts { node: Fact::Known(NodeState::Gone), ..ended.clone() }, false),
                ("the node is unknown", HolderFacts { node: Fact::Unknown("timeout".into()), ..ended.clone() }, false),
                ("the facts are of another holder", HolderFacts { of: "x".into(), ..ended.clone() }, false),
            ],
            facts: ended,
        },
        Row {
            name: "its pod is deleted on a Ready node",
            released: false,
            proof: Proof::PodDeleted,
            twins: vec![
                ("deleted by force a moment ago", HolderFacts { silent: false, ..deleted.clone() }, false),
                ("on an unreachable node", HolderFacts { node: node(false, "boot-1"), ..deleted.clone() }, false),
                (
                    "on a node that is gone",
                    HolderFacts { node: Fact::Known(NodeState::Gone), ..deleted.clone() },
                    false,
                ),
                ("on a node unknown", HolderFacts { node: Fact::Unknown("timeout".into()), ..deleted.clone() }, false),
                ("there it is again", HolderFacts { pod: Fact::Known(PodState::Running), ..deleted.clone() }, false),
            ],
            facts: deleted,
        },
        Row {
            name: "its node has rebooted",
            released: false,
            proof: Proof::NodeRebooted { boot_id: "boot-2".to_owned() },
            twins: vec![
                ("the same boot id", HolderFacts { node: node(true, "boot-1"), ..rebooted.clone() }, false),
                (
                    "the boot id is unknown",
                    HolderFacts { node: Fact::Unknown("timeout".into()), ..rebooted.clone() },
                    false,
                ),
            ],
            facts: rebooted,
        },
        Row {
            name: "its deadline has passed and the target runs no unit",
            released: false,
            proof: Proof::SilentWithoutUnit,
            twins: vec![
                ("the unit runs", HolderFacts { unit: Fact::Known(true), ..silent.clone() }, false),
                (
                    "nobody looked for the unit",
                    HolderFacts { unit: Fact::Unknown("no".into()), ..silent.clone() },
                    false,
                ),
                ("its deadline has not passed", HolderFacts { silent: false, ..silent.clone() }, false),
            ],
            facts: silent,
        },
        Row {
            name: "it was released by hand",
            released: true,
            proof: Proof::Released { because: "cp1 burnt down".to_owned() },
            twins: vec![
                ("not released: expiry alone", by_hand.clone(), false),
                ("released, and it may not have seen it", HolderFacts { silent: false, ..by_hand.clone() }, true),
            ],
            facts: by_hand,
        },
    ]
}

#[test]
fn every_proof_lets_the_same_operation_adopt_and_every_twin_waits() {
    let me = claim("upgrade-v1.36.3", "cp2");
    let step = Step::touching("node-step");
    let view = |is_released| {
        let record = record(step.clone());
        Fact::Known(if is_released { released(record, Stage::Told) } else { held(record) })
    };
    for row in rows() {
        let wanted = Decision::Adopt { proof: row.proof.clone(), step: step.clone() };
        assert_eq!(decide(&view(row.released), &me, &row.facts), wanted, "{}", row.name);
        for (twin, facts, is_released) in &row.twins {
            let decision = decide(&view(*is_released), &me, facts);
            assert!(waits(&decision), "{}, but {twin}: {decision:?}", row.name);
        }
    }
}

#[test]
fn every_proof_lets_another_operation_take_an_untouched_lease_and_every_twin_waits() {
    let me = claim("defragment", "cp3");
    let view = |is_released| {
        let record = record(Step::acquired());
        Fact::Known(if is_released { released(record, Stage::Told) } else { held(record) })
    };
    for row in rows() {
        let wanted = Decision::TakeOver { proof: row.proof.clone() };
        assert_eq!(decide(&view(row.released), &me, &row.facts), wanted, "{}", row.name);
        for (twin, facts, is_released) in &row.twins {
            let decision = decide(&view(*is_released), &me, facts);
            assert!(waits(&decision), "{}, but {twin}: {decision:?}", row.name);
        }
    }
}

#[test]
fn another_operation_never_takes_what_is_half_done() {
    let named = Wait::HalfDone {
        operation: "upgrade-v1.36.3".to_owned(),
        target: NodeName::from("cp2"),
        step: "drain".to_owned(),
    };
    for me in [claim("defragment", "cp2"), claim("upgrade-v1.36.3", "cp3"), claim("upgrade-v1.36.4", "cp2")] {
        for row in rows() {
            let half = record(Step::touching("drain"));
            let view = Fact::Known(if row.released { released(half, Stage::Told) } else { held(half) });
            let Decision::Wait(reasons) = decide(&view, &me, &row.facts) else { panic!("{}", row.name) };
            assert_eq!(reasons, std::slice::from_ref(&named), "{}", row.name);
            // Without the proof both stand in the way.
            for (twin, facts, is_released) in &row.twins {
                let half = record(Step::touching("drain"));
                let view = Fact::Known(if *is_released { released(half, Stage::Told) } else { held(half) });
                let Decision::Wait(reasons) = decide(&view, &me, facts) else { panic!("{}, but {twin}", row.name) };
                assert_ne!(reasons, std::slice::from_ref(&named), "{}, but {twin}", row.name);
            }
        }
    }
}

#[test]
fn what_is_half_done_is_given_up_only_by_an_explicit_release() {
    let me = claim("defragment", "cp3");
    let facts = HolderFacts { silent: true, ..alive() };
    let half = record(Step::touching("drain"));
    let because = "cp1 burnt down".to_owned();
    assert_eq!(
        decide(&Fact::Known(released(half.clone(), Stage::Abandoned)), &me, &facts),
        Decision::TakeOver { proof: Proof::Released { because } }
    );
    assert!(waits(&decide(&Fact::Known(released(half.clone(), Stage::Stopped)), &me, &facts)));
    let fresh = HolderFacts { silent: false, ..facts.clone() };
    assert!(waits(&decide(&Fact::Known(released(half.clone(), Stage::Abandoned)), &me, &fresh)));
    // A release names the holder it releases: it is of no use against the next one.
    let LeaseView::Held { version, identity, record, release: Fact::Known(Some(release)) } =
        released(half, Stage::Abandoned)
    else {
        panic!("constructed")
    };
    let of_another = Release { identity: "another".to_owned(), ..release };
    let view = LeaseView::Held { version, identity, record, release: Fact::Known(Some(of_another)) };
    assert!(waits(&decide(&Fact::Known(view), &me, &facts)));
}

#[test]
fn a_hand_gives_up_only_what_a_stopped_holder_left() {
    let half = record(Step::touching("drain"));
    let silent = HolderFacts { silent: true, ..alive() };
    let ended = HolderFacts { pod: Fact::Known(PodState::Terminal), ..alive() };
    let rows = [
        // However much it is wished: the holder may act until its deadline.
        (held(half.clone()), alive(), true, Stage::Told),
        (held(half.clone()), silent.clone(), true, Stage::Told),
        (released(half.clone(), Stage::Told), alive(), true, Stage::Told),
        (released(half.clone(), Stage::Told), silent.clone(), true, Stage::Stopped),
        (held(half.clone()), ended.clone(), true, Stage::Stopped),
        (released(half.clone(), Stage::Stopped), alive(), true, Stage::Abandoned),
        // Nothing is given up that was not said to be, and nothing said is taken back.
        (released(half.clone(), Stage::Stopped), silent, false, Stage::Stopped),
        (released(half.clone(), Stage::Abandoned), alive(), false, Stage::Abandoned),
    ];
    for (view, facts, abandon, wanted) in rows {
        assert_eq!(by_hand(&view, &facts, abandon), Some(wanted), "{view:?} {facts:?}");
    }
    let stopped = released(half, Stage::Stopped);
    assert_eq!(by_hand(&stopped, &HolderFacts { of: "another".to_owned(), ..ended.clone() }, true), None);
    assert_eq!(by_hand(&LeaseView::Absent, &ended, true), None);
    // That another was stopped says nothing of this one.
    let LeaseView::Held { version, identity, record, release: Fact::Known(Some(release)) } = stopped else {
        panic!("constructed")
    };
    let of_another = Fact::Known(Some(Release { identity: "another".to_owned(), ..release }));
    let view = LeaseView::Held { version, identity, record, release: of_another };
    assert_eq!(by_hand(&view, &alive(), true), Some(Stage::Told));
}

#[test]
fn an_unreadable_record_is_released_only_by_hand_and_as_a_whole() {
    let me = claim("defragment", "cp3");
    let view = |release: Option<Release>| {
        Fact::Known(LeaseView::Held {
            version: "7".to_owned(),
            identity: "somebody".to_owned(),
            record: Fact::Unknown("no annotation".to_owned()),
            release: Fact::Known(release),
        })
    };
    let release = Release {
        identity: "somebody".to_owned(),
        because: "a test object".to_owned(),
        by: "admin".to_owned(),
        at: UnixSeconds(0),
        stage: Stage::Abandoned,
    };
    let gone = HolderFacts {
        of: "somebody".to_owned(),
        pod: Fact::Known(PodState::Terminal),
        unit: Fact::Known(false),
        silent: true,
        ..alive()
    };
    assert!(waits(&decide(&view(None), &me, &gone)));
    let kept = Release { stage: Stage::Stopped, ..release.clone() };
    assert!(waits(&decide(&view(Some(kept)), &me, &gone)));
    let proof = Proof::Released { because: "a test object".to_owned() };
    assert_eq!(decide(&view(Some(release)), &me, &gone), Decision::TakeOver { proof });
}

#[test]
fn a_running_unit_outweighs_a_record_that_says_untouched() {
    let me = claim("defragment", "cp3");
    let view = Fact::Known(held(record(Step::acquired())));
    assert!(waits(&decide(&view, &me, &alive())));
    let ended = HolderFacts { pod: Fact::Known(PodState::Terminal), ..alive() };
    assert!(matches!(decide(&view, &me, &ended), Decision::TakeOver { .. }));
    let runs = HolderFacts { unit: Fact::Known(true), ..ended };
    assert_eq!(decide(&view, &me, &runs), Decision::Wait(vec![Wait::UnitRuns]));
}

#[test]
fn a_holder_without_a_pod_is_proven_gone_by_a_reboot_or_a_look_at_the_host_only() {
    let me = claim("upgrade-v1.36.3", "cp2");
    let view = Fact::Known(held(Record { pod: None, ..record(Step::touching("drain")) }));
    for pod in [PodState::Terminal, PodState::NotFound] {
        let facts = HolderFacts { pod: Fact::Known(pod), silent: true, ..alive() };
        let Decision::Wait(reasons) = decide(&view, &me, &facts) else { panic!("taken: {pod:?}") };
        assert!(reasons.contains(&Wait::NoPod { node: NodeName::from("cp1") }), "{reasons:?}");
    }
    let looked = HolderFacts { unit: Fact::Known(false), silent: true, ..alive() };
    assert!(matches!(decide(&view, &me, &looked), Decision::Adopt { .. }));
}

#[test]
fn life_tells_alive_gone_and_unproven_apart() {
    let view = held(record(Step::acquired()));
    assert_eq!(life(&view, &alive()), Life::Alive);
    let ended = HolderFacts { pod: Fact::Known(PodState::Terminal), ..alive() };
    assert_eq!(life(&view, &ended), Life::Gone(Proof::PodEnded));
    let unreachable = Wait::NodeUnreachable { node: NodeName::from("cp1"), pod: Some(pod_ref()) };
    let cut_off = HolderFacts { node: node(false, "boot-1"), ..alive() };
    assert!(matches!(life(&view, &cut_off), Life::Unproven(doubts) if doubts.contains(&unreachable)));
    assert_eq!(life(&LeaseView::Absent, &alive()), Life::Nobody);
}

#[test]
fn all_that_stands_in_the_way_is_said() {
    let me = claim("upgrade-v1.36.3", "cp2");
    let view = Fact::Known(held(record(Step::acquired())));
    let unit_unknown = || Wait::UnitUnknown("nobody looked".to_owned());
    let cp1 = || NodeName::from("cp1");
    let rows = [
        (alive(), vec![pod_runs(), unit_unknown(), Wait::DeadlineNotPassed]),
        (HolderFacts { silent: true, ..alive() }, vec![pod_runs(), unit_unknown()]),
        (HolderFacts { unit: Fact::Known(false), ..alive() }, vec![pod_runs(), Wait::DeadlineNotPassed]),
        (
            HolderFacts { node: Fact::Known(NodeState::Gone), unit: Fact::Known(true), ..alive() },
            vec![Wait::NodeGone { node: cp1() }, Wait::UnitRuns, Wait::DeadlineNotPassed],
        ),
        (
            HolderFacts { pod: Fact::Known(PodState::NotFound), unit: Fact::Known(false), ..alive() },
            vec![Wait::MayStillRun { pod: pod_ref(), node: cp1() }, Wait::DeadlineNotPassed],
        ),
        (
            HolderFacts { node: node(false, "boot-1"), silent: true, ..alive() },
            vec![Wait::NodeUnreachable { node: cp1(), pod: Some(pod_ref()) }, unit_unknown()],
        ),
    ];
    for (facts, wanted) in rows {
        assert_eq!(decide(&view, &me, &facts), Decision::Wait(wanted), "{facts:?}");
    }
}
