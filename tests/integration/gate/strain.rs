//! Real members under strain (incident R19): one that is slow, and databases that are nearly full.

use super::reasons::{around, judged, leader, other_than};
use super::*;
use lab::etcd::Member;
use lab::process::until;
use quorum_safety::Quota;
use quorum_safety::fixture::Cluster as Whole;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;

/// A quota that is soon full.
const QUOTA: u64 = 16 << 20;

/// Lets a member run for a moment and stops it for longer, again and again: it answers everything, late.
fn starve(member: &Member, done: &AtomicBool) -> anyhow::Result<()> {
    while !done.load(Ordering::Relaxed) {
        member.pause()?;
        sleep(Duration::from_millis(400));
        member.resume()?;
        sleep(Duration::from_millis(4));
    }
    Ok(())
}

/// What is seen around this etcd once the rule holds an upgrade of k2 for just this, and for nothing else.
fn held_for_just(cluster: &Cluster, code: Code, policy: impl Fn(&mut Whole)) -> anyhow::Result<Record> {
    until(&format!("{code} alone holds"), PATIENCE, || {
        let mut whole = around(cluster);
        policy(&mut whole);
        let record = judged(whole, Disruption::Upgrade("k2".into()));
        let verdict = &record.verdict;
        let just = verdict.answer == Answer::Held && verdict.reasons.iter().all(|reason| reason.code == code);
        Ok(if just { ControlFlow::Break(record) } else { ControlFlow::Continue(anyhow::anyhow!("{verdict:?}")) })
    })
}

/// What has begun is finished all the same.
fn is_finished_all_the_same(record: Record) {
    let whole = fixture::healthy(3).adopted("k2");
    let finishing = Record::judged(record.observation, whole.in_flight, record.disruption, record.policy).1;
    assert_eq!(finishing.verdict.answer, Answer::Permitted, "{:?}", finishing.verdict);
}

#[test]
fn r19_a_member_that_is_slow_holds_an_upgrade_until_it_is_quick_again() {
    let cluster = three(EtcdVersion::V3_6);
    permitted_in_time(&cluster, "k2");
    let number = other_than(&[leader(&cluster), 2]);
    let slow = cluster.member(number).unwrap();
    let done = AtomicBool::new(false);
    let bound = 200;
    let held = std::thread::scope(|scope| {
        let starving = scope.spawn(|| starve(slow, &done));
        let held = held_for_just(&cluster, Code::ReadSlow, |whole| whole.policy.slow_read = bound);
        done.store(true, Ordering::Relaxed);
        starving.join().unwrap().unwrap();
        held.unwrap()
    });
    let reasons = &held.verdict.reasons;
    assert!(
        reasons.iter().all(|reason| reason.detail.starts_with(&format!("k{number} on k{number}: "))),
        "{reasons:?}"
    );
    let view = held.observation.etcd.members.iter().find(|view| view.id.0 == slow.id()).unwrap();
    for read in [&view.first_read, &view.second_read] {
        assert!(read.known().is_some_and(|took| *took > bound), "{read:?}");
    }
    is_finished_all_the_same(held);
    permitted_in_time(&cluster, "k2");
}

fn size(member: &Member) -> anyhow::Result<u64> {
    let status = member.call("/v3/maintenance/status", &json!({}))?;
    Ok(status.get("dbSize").and_then(Value::as_str).unwrap_or_default().parse()?)
}

/// Three members whose databases fill more than nine tenths of a small quota, which etcd bears without an alarm.
fn nearly_full(version: EtcdVersion) -> Cluster {
    let flag = format!("--quota-backend-bytes={QUOTA}");
    let cluster = Etcd::start(Spec { extra_args: vec![flag], ..Spec::new(version, 3) }).unwrap();
    let smallest = || {
        let sizes: anyhow::Result<Vec<u64>> = cluster.members().iter().map(size).collect();
        Ok::<u64, anyhow::Error>(sizes?.into_iter().min().unwrap_or_default())
    };
    let mut number = 0;
    // etcd commits every 100 ms: what it tells lags by some of these values, all of which have room in the last tenth.
    while smallest().unwrap() <= QUOTA * 9 / 10 {
        // Both are base64 as they stand: four digits, and zeros of 48 KiB.
        let body = json!({"key": format!("{number:04}"), "value": "A".repeat(64 << 10)});
        cluster.member(1).unwrap().call("/v3/kv/put", &body).unwrap();
        number += 1;
    }
    cluster
}

/// What the advice says: away with what nobody needs, then one member after the other.
fn emptied(cluster: &Cluster) {
    let one = cluster.member(1).unwrap();
    let everything = json!({"key": "AA==", "range_end": "AA=="});
    let deleted = one.call("/v3/kv/deleterange", &everything).unwrap();
    let revision = deleted.pointer("/header/revision").unwrap();
    one.call("/v3/kv/compaction", &json!({"revision": revision, "physical": true})).unwrap();
    for member in cluster.members() {
        member.call("/v3/maintenance/defragment", &json!({})).unwrap();
    }
}

fn a_database_that_is_nearly_full_holds(version: EtcdVersion) {
    let cluster = nearly_full(version);
    let held = held_for_just(&cluster, Code::DatabaseNearlyFull, |_| {}).unwrap();
    for view in &held.observation.etcd.members {
        assert_eq!(view.second.known().unwrap().db_quota, Fact::Known(Quota::Bytes(QUOTA)));
    }
    for member in ["k1 on k1: 1", "k2 on k2: 1", "k3 on k3: 1"] {
        assert!(has(&held, Code::DatabaseNearlyFull, member), "{:?}", held.verdict);
    }
    is_finished_all_the_same(held);
    emptied(&cluster);
    permitted_in_time(&cluster, "k2");
}

#[test]
fn r19_a_database_that_is_nearly_full_holds_an_upgrade() {
    a_database_that_is_nearly_full_holds(EtcdVersion::V3_6);
}

#[test]
fn r19_a_database_of_etcd_3_7_that_is_nearly_full_holds_an_upgrade() {
    a_database_that_is_nearly_full_holds(EtcdVersion::V3_7);
}

/// etcd 3.5 does not tell its quota: what the configuration says counts.
#[test]
fn r19_a_quota_that_etcd_3_5_does_not_tell_is_the_one_of_the_configuration() {
    let cluster = nearly_full(EtcdVersion::V3_5);
    let says = |bytes: u64| move |whole: &mut Whole| whole.policy.assumed_quota = bytes;
    let held = held_for_just(&cluster, Code::DatabaseNearlyFull, says(QUOTA)).unwrap();
    for view in &held.observation.etcd.members {
        let quota = &view.second.known().unwrap().db_quota;
        assert!(matches!(quota, Fact::Unknown(why) if why.contains("etcd 3.5.")), "{quota:?}");
    }
    // etcd's default, which the flag of these members is not.
    permitted_in_time(&cluster, "k2");
}

/// Where no flag sets it, etcd from 3.6.6 on tells the default.
#[test]
fn r19_the_default_quota_is_told_and_reads_are_timed_both_times() {
    let cluster = three(EtcdVersion::V3_6);
    for view in look(&cluster).members {
        assert_eq!(view.second.known().unwrap().db_quota, Fact::Known(Quota::Bytes(2 << 30)));
        assert!(view.first_read.known().is_some() && view.second_read.known().is_some(), "{view:?}");
    }
}
