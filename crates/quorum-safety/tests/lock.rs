//! The lock protocol: who gets a Lease, on what proof, and until when a holder may act.

#[cfg(test)]
#[path = "lock/take_over.rs"]
mod take_over;
#[cfg(test)]
#[path = "lock/world.rs"]
mod world;

use quorum_safety::lock::{
    Claim, Decision, Held, HolderFacts, KuredBlock, KuredLock, KuredStep, LeaseView, Life, NodeState, PodRef, PodState,
    Proof, Record, Release, Sighting, Stage, Step, Timings, TooLate, Wait, by_hand, decide, kured_step, life,
};
use quorum_safety::{Code, Fact, Kured, Lock, NodeName, UnixSeconds};
use std::time::Duration;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn pod_ref() -> PodRef {
    PodRef { namespace: "quorate".into(), name: "quorate-upgrade-x".into(), uid: "uid-1".into() }
}

/// What is said of the holder of [`record`] while its pod runs.
fn pod_runs() -> Wait {
    Wait::PodRuns { pod: pod_ref(), node: NodeName::from("cp1") }
}

fn record(step: Step) -> Record {
    Record {
        identity: "upgrade-v1.36.3/cp2/aaaa".to_owned(),
        operation: "upgrade-v1.36.3".to_owned(),
        target: NodeName::from("cp2"),
        actor: "step control-plane".to_owned(),
        pod: Some(pod_ref()),
        node: NodeName::from("cp1"),
        boot_id: "boot-1".to_owned(),
        step,
        since: UnixSeconds(1_700_000_000),
        step_since: UnixSeconds(1_700_000_100),
    }
}

fn held(record: Record) -> LeaseView {
    LeaseView::Held {
        version: "41".to_owned(),
        identity: record.identity.clone(),
        record: Fact::Known(record),
        release: Fact::Known(None),
    }
}

fn released(record: Record, stage: Stage) -> LeaseView {
    let release = Release {
        identity: record.identity.clone(),
        because: "cp1 burnt down".to_owned(),
        by: "admin".to_owned(),
        at: UnixSeconds(1_700_000_200),
        stage,
    };
    LeaseView::Held {
        version: "42".to_owned(),
        identity: record.identity.clone(),
        record: Fact::Known(record),
        release: Fact::Known(Some(release)),
    }
}

fn claim(operation: &str, target: &str) -> Claim {
    Claim {
        identity: format!("{operation}/{target}/bbbb"),
        operation: operation.to_owned(),
        target: NodeName::from(target),
    }
}

/// The facts of a holder that lives: every test of a take-over changes some of them.
fn alive() -> HolderFacts {
    HolderFacts {
        of: "upgrade-v1.36.3/cp2/aaaa".to_owned(),
        pod: Fact::Known(PodState::Running),
        node: Fact::Known(NodeState::Present { ready: true, boot_id: "boot-1".to_owned() }),
        unit: Fact::Unknown("nobody looked".to_owned()),
        silent: false,
    }
}

fn node(ready: bool, boot_id: &str) -> Fact<NodeState> {
    Fact::Known(NodeState::Present { ready, boot_id: boot_id.to_owned() })
}

fn waits(decision: &Decision) -> bool {
    matches!(decision, Decision::Wait(reasons) if !reasons.is_empty())
}

#[test]
fn r10_what_cannot_be_read_is_unknown_and_waits() {
    let me = claim("defragment", "cp3");
    let gone = HolderFacts { pod: Fact::Known(PodState::Terminal), silent: true, ..alive() };
    let unreadable = Fact::Unknown("403 Forbidden".to_owned());
    assert_eq!(decide(&unreadable, &me, &gone), Decision::Wait(vec![Wait::LeaseUnknown("403 Forbidden".to_owned())]));
    let view = LeaseView::Held {
        version: "1".to_owned(),
        identity: alive().of,
        record: Fact::Known(record(Step::acquired())),
        release: Fact::Unknown("not JSON".to_owned()),
    };
    let Decision::Wait(reasons) = decide(&Fact::Known(view), &me, &gone) else { panic!("took it") };
    assert_eq!(reasons.iter().map(Wait::code).collect::<Vec<_>>(), [Code::LeaseUnknown]);
}

#[test]
fn free_absent_and_own() {
    let nobody = HolderFacts::unknown("", "nobody to look at");
    let me = claim("upgrade-v1.36.3", "cp2");
    assert_eq!(decide(&Fact::Known(LeaseView::Absent), &me, &nobody), Decision::Create);
    let free = LeaseView::Free { version: "1".to_owned() };
    assert_eq!(decide(&Fact::Known(free), &me, &nobody), Decision::Acquire);
    let mine = Record { identity: me.identity.clone(), ..record(Step::touching("drain")) };
    assert_eq!(decide(&Fact::Known(held(mine.clone())), &me, &nobody), Decision::Renew);
    // Mine, but released by hand: stop.
    assert!(waits(&decide(&Fact::Known(released(mine.clone(), Stage::Told)), &me, &nobody)));
    // My identity with another purpose is not mine.
    let other = Record { target: NodeName::from("cp3"), ..mine };
    assert!(waits(&decide(&Fact::Known(held(other)), &me, &nobody)));
}

#[test]
fn judge_sees_a_holder_even_when_its_record_is_unreadable() {
    let view = LeaseView::Held {
        version: "1".to_owned(),
        identity: "somebody".to_owned(),
        record: Fact::Unknown("not JSON".to_owned()),
        release: Fact::Known(None),
    };
    assert!(matches!(view.lock(), Lock::Held(holder) if holder.identity == "somebody"));
    assert_eq!(LeaseView::Free { version: "1".to_owned() }.lock(), Lock::Free);
}

#[test]
fn a_record_round_trips_and_an_unknown_field_makes_it_unreadable() {
    let json = serde_json::to_value(record(Step::touching("drain"))).unwrap();
    assert_eq!(json["bootId"], "boot-1");
    assert_eq!(serde_json::from_value::<Record>(json.clone()).unwrap(), record(Step::touching("drain")));
    let mut newer = json;
    newer["fence"] = 7.into();
    assert!(serde_json::from_value::<Record>(newer).is_err());
}

#[test]
fn a_wait_is_a_reason_that_names_its_lease() {
    let reason = pod_runs().reason("control-plane-disruption");
    let told = "Q070-lease-held: control-plane-disruption: the pod of the holder, quorate/quorate-upgrade-x on node cp1, has not ended";
    assert_eq!(reason.to_string(), told);
    let (pod, node) = (pod_ref, || NodeName::from("cp1"));
    for named in [
        Wait::MayStillRun { pod: pod(), node: node() },
        Wait::NodeUnreachable { node: node(), pod: Some(pod()) },
        Wait::NodeUnreachable { node: node(), pod: None },
        Wait::NodeGone { node: node() },
        Wait::NoPod { node: node() },
    ] {
        let told = named.reason("control-plane-disruption").to_string();
        assert!(told.starts_with("Q070-lease-held: ") && told.contains("node cp1"), "{told}");
        let of_a_pod =
            !matches!(named, Wait::NodeUnreachable { pod: None, .. } | Wait::NodeGone { .. } | Wait::NoPod { .. });
        assert_eq!(told.contains("quorate/quorate-upgrade-x"), of_a_pod, "{told}");
    }
    let why = || "403".to_owned();
    for unknown in [
        Wait::LeaseUnknown(why()),
        Wait::RecordUnknown(why()),
        Wait::ReleaseUnknown(why()),
        Wait::PodUnknown(why()),
        Wait::NodeUnknown(why()),
        Wait::UnitUnknown(why()),
    ] {
        assert_eq!(unknown.code(), Code::LeaseUnknown, "{unknown}");
    }
    assert_eq!(Wait::MineReleased(why()).code(), Code::LeaseNotMine);
}

// The holder's own side.

#[test]
fn a_request_ends_before_the_deadline_or_is_not_sent() {
    let mut held = Held::since(s(100), Timings::default());
    assert_eq!(held.deadline(), s(160));
    assert_eq!(held.renew_at(), s(120));
    let end = held.may_act(s(150), s(10)).unwrap();
    assert_eq!(end.at(), s(160));
    assert_eq!([s(150), s(159), s(160), s(161)].map(|now| end.left(now)), [Some(s(10)), Some(s(1)), None, None]);
    assert_eq!(held.may_act(s(151), s(10)), Err(TooLate::TooLong { request: s(10), left: s(9) }));
    assert!(held.may_act(s(151), s(9)).is_ok(), "too long for one request is not late");
}

#[test]
fn a_holder_that_finds_itself_late_stays_stopped() {
    let mut held = Held::since(s(100), Timings::default());
    assert_eq!(held.may_act(s(160), s(0)), Err(TooLate::Passed(s(0))));
    assert!(held.renewed(s(161)).is_err());
    assert!(held.may_act(s(159), s(1)).is_err(), "late is final, whatever the clock says afterwards");
    let mut held = Held::since(s(100), Timings::default());
    assert!(held.renewed(s(160)).is_err(), "a renewal that was sent late does not bring the hold back");
    assert!(held.still(s(101)).is_err());
}

#[test]
fn a_renewal_counts_from_when_it_was_sent_and_a_loss_is_final() {
    let mut held = Held::since(s(100), Timings::default());
    held.renewed(s(120)).unwrap();
    assert_eq!((held.deadline(), held.renew_at()), (s(180), s(140)));
    held.renewed(s(110)).unwrap();
    assert_eq!(held.deadline(), s(180), "an older answer does not shorten it");
    held.renewal_failed(s(150));
    assert_eq!((held.deadline(), held.renew_at()), (s(180), s(150) + s(20) / 3), "tried again soon");
    held.lost("409");
    assert_eq!(held.may_act(s(121), s(1)), Err(TooLate::Lost("409".to_owned())));
    assert_eq!(held.renewed(s(122)), Err(TooLate::Lost("409".to_owned())));
}

#[test]
fn an_observer_waits_longer_than_the_holder() {
    let timings = Timings::default();
    let view = held(record(Step::acquired()));
    let seen = Sighting::first(&view, s(1000));
    assert!(!seen.silent(s(1000) + timings.lease, &timings));
    assert!(!seen.silent(s(1064), &timings));
    assert!(seen.silent(s(1065), &timings));
    assert!(!seen.silent(s(10), &timings), "a clock that went back proves nothing");
    let LeaseView::Held { identity, record, release, .. } = view.clone() else { panic!("constructed") };
    let written = LeaseView::Held { version: "43".to_owned(), identity, record, release };
    assert!(seen.clone().again(&view, s(1065)).silent(s(1065), &timings));
    assert!(!seen.again(&written, s(1065)).silent(s(1065), &timings), "any write starts the wait anew");
}

// kured.

fn block(json: &str) -> Fact<Option<Option<KuredLock>>> {
    Fact::from(serde_json::from_str(json).map(|lock| Some(Some(lock))))
}

#[test]
fn kured_rows() {
    let me = "upgrade-v1.36.3/cp2/bbbb";
    let live = Fact::Known(vec![me.to_owned(), "reboot/worker1/cccc".to_owned()]);
    let by = |node: &str| KuredStep::GiveLeaseBack(Fact::Known(node.to_owned()));
    let rows = [
        (Fact::Known(None), KuredStep::Nothing),
        (Fact::Known(Some(None)), KuredStep::Take),
        (
            block(r#"{"nodeID":"cp3","metadata":{"unschedulable":false},"created":"2026-11-22T10:00:00Z","TTL":0}"#),
            by("cp3"),
        ),
        (block(r#"{"nodeID":"quorate/upgrade-v1.36.3","quorateHolder":"upgrade-v1.36.3/cp2/bbbb"}"#), KuredStep::Mine),
        // Of an attempt that holds nothing any more: cleared by taking it.
        (block(r#"{"nodeID":"quorate/upgrade-v1.36.3","quorateHolder":"upgrade-v1.36.3/cp2/aaaa"}"#), KuredStep::Take),
        // Of an operation that lives.
        (block(r#"{"nodeID":"quorate/reboot","quorateHolder":"reboot/worker1/cccc"}"#), by("quorate/reboot")),
        (block(r#"{"nodeID":"quorate/reboot"}"#), by("quorate/reboot")),
        (block(r#"{"maxOwners":2,"locks":null}"#), KuredStep::Take),
        (
            block(r#"{"maxOwners":2,"locks":[{"nodeID":"worker1","created":"2026-11-22T10:00:00Z","TTL":0}]}"#),
            by("worker1"),
        ),
    ];
    for (seen, wanted) in rows {
        assert_eq!(kured_step(&seen, me, &live), wanted, "{seen:?}");
    }
    // A block of ours without its holder's name may be of any other operation that lives, and of no other than mine.
    let nameless = block(r#"{"nodeID":"quorate/reboot"}"#);
    assert_eq!(kured_step(&nameless, me, &Fact::Known(vec![me.to_owned()])), KuredStep::Take);
    let another = Fact::Known(vec!["reboot/worker1/cccc".to_owned()]);
    assert_eq!(kured_step(&nameless, me, &another), by("quorate/reboot"));
    for unreadable in ["", "{}", "cp3", r#"{"nodeID":7}"#] {
        let step = kured_step(&block(unreadable), me, &live);
        assert!(matches!(step, KuredStep::GiveLeaseBack(Fact::Unknown(_))), "{unreadable}: {step:?}");
    }
    let stale = block(r#"{"nodeID":"quorate/upgrade-v1.36.3","quorateHolder":"upgrade-v1.36.3/cp2/aaaa"}"#);
    let step = kured_step(&stale, me, &Fact::Unknown("403".to_owned()));
    assert!(matches!(step, KuredStep::GiveLeaseBack(Fact::Unknown(_))), "{step:?}");
}

#[test]
fn our_block_outlives_every_lock_ttl_of_kured_and_fills_all_places() {
    let ours = KuredBlock::ours("upgrade-v1.36.3", "me", "2026-11-22T10:00:00Z".to_owned());
    let one = serde_json::to_value(KuredLock::filled(ours.clone(), 1)).unwrap();
    assert_eq!(one["nodeID"], "quorate/upgrade-v1.36.3");
    assert_eq!(one["TTL"], i64::MAX);
    let many = KuredLock::filled(ours, 3);
    assert_eq!(many.blocks().len(), 3);
    let json = serde_json::to_string(&many).unwrap();
    assert_eq!(serde_json::from_str::<KuredLock>(&json).unwrap(), many);
    assert_eq!(many.in_flight(), Kured::Held("quorate/upgrade-v1.36.3".to_owned()));
}

/// As Go reads it: a time that is not there is that of the year 1, not an empty text, which kured could not read back.
#[test]
fn a_block_without_a_time_is_of_the_year_one() {
    let block: KuredBlock = serde_json::from_str(r#"{"nodeID":"worker1"}"#).unwrap();
    let json = serde_json::json!({"nodeID": "worker1", "created": "0001-01-01T00:00:00Z", "TTL": 0});
    assert_eq!(serde_json::to_value(block).unwrap(), json);
}

#[test]
fn a_foreign_owner_is_told_before_ours() {
    let json = r#"{"maxOwners":2,"locks":[{"nodeID":"quorate/upgrade"},{"nodeID":"worker1"}]}"#;
    let lock: KuredLock = serde_json::from_str(json).unwrap();
    assert_eq!(lock.in_flight(), Kured::Held("worker1".to_owned()));
}
