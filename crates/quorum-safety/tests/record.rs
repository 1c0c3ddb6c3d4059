//! A verdict on disk: what `quorate explain FILE` reads.

use quorum_safety::fixture::{healthy, reboot};
use quorum_safety::{Answer, Code, Fact, Record};
use serde_json::{Value, json};

fn record() -> Record {
    let cluster = healthy(3).member_dead(2);
    Record::judged(cluster.seen, cluster.in_flight, reboot(1), cluster.policy).1
}

#[test]
fn its_shape_is_public() {
    let value = serde_json::to_value(record()).unwrap();
    assert_eq!(value["apiVersion"], "quorate.dev/v1");
    assert_eq!(value["kind"], "Verdict");
    assert_eq!(value["disruption"], json!({ "reboot": "k1" }));
    assert_eq!(value["verdict"]["answer"], "refused");
    assert_eq!(value["verdict"]["reasons"][0]["code"], "Q030-quorum-would-be-lost");
    assert_eq!(value["verdict"]["reasons"][0]["class"], "refusal");
    assert_eq!(value["observation"]["etcd"]["members"][0]["id"], "a1");
    let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["apiVersion", "disruption", "inFlight", "kind", "observation", "policy", "verdict"]);
}

/// Who has cordoned is told since, and in records that are older nobody is named.
#[test]
fn a_record_of_before_cordons_had_a_name_is_judged_again() {
    let mut record = record();
    let node = |record: &mut Record| match &mut record.observation.nodes {
        quorum_safety::Fact::Known(nodes) => nodes[2].cordoned_by.take(),
        quorum_safety::Fact::Unknown(_) => None,
    };
    let text = serde_json::to_string(&record).unwrap();
    assert!(!text.contains("cordonedBy"), "{text}");
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value["observation"]["nodes"]["known"][2]["cordonedBy"] =
        json!({ "manager": "kubectl-cordon", "at": 1_795_348_000 });
    let mut told: Record = serde_json::from_value(value).unwrap();
    assert_eq!(told.judge_again(), record.judge_again());
    assert_eq!(node(&mut told).unwrap().manager, "kubectl-cordon");
    assert_eq!(node(&mut record), None);
    assert_eq!(told, record);
}

/// What has been asked of etcd since is unknown in records that are older: how long the reads took holds, since it is judged.
#[test]
fn a_record_of_before_reads_were_timed_is_read_and_judged_by_the_rule_of_today() {
    let cluster = healthy(5);
    let (_, new) = Record::judged(cluster.seen, cluster.in_flight, reboot(1), cluster.policy);
    let mut value = serde_json::to_value(&new).unwrap();
    let mut drop_key = |pointer: &str, key: &str| {
        let object = value.pointer_mut(pointer).and_then(Value::as_object_mut).unwrap();
        assert!(object.remove(key).is_some(), "{pointer} has no {key}");
    };
    for key in ["slowRead", "databaseFill", "assumedQuota"] {
        drop_key("/policy", key);
    }
    for member in 0..5 {
        let member = format!("/observation/etcd/members/{member}");
        drop_key(&member, "firstRead");
        drop_key(&member, "secondRead");
        for sample in ["first", "second"] {
            drop_key(&format!("{member}/{sample}/known"), "dbQuota");
        }
    }
    let old: Record = serde_json::from_value(value).unwrap();
    assert_eq!(old.policy, new.policy);
    let view = &old.observation.etcd.members[0];
    assert_eq!(view.second_read, Fact::Unknown("not asked for".to_owned()));
    assert_eq!(view.second.known().unwrap().db_quota, Fact::Unknown("not asked for".to_owned()));
    assert_eq!(old.verdict.answer, Answer::Permitted);
    let again = old.judge_again();
    assert_eq!(again.answer, Answer::Held);
    assert!(again.reasons.iter().all(|reason| reason.code == Code::ReadUnanswered), "{again:?}");
}

#[test]
fn a_verdict_is_printed_as_it_is_stored() {
    let cluster = healthy(5);
    let (verdict, record) = Record::judged(cluster.seen, cluster.in_flight, reboot(1), cluster.policy);
    let value = serde_json::to_value(&verdict).unwrap();
    assert_eq!(value, json!({ "answer": "permitted", "reasons": [], "margin": 1 }));
    assert_eq!(value, serde_json::to_value(&record.verdict).unwrap());
}

#[test]
fn an_answer_that_was_changed_in_the_file_is_found_out() {
    let mut record = record();
    assert_eq!(record.judge_again(), record.verdict);
    record.verdict.answer = Answer::Permitted;
    record.verdict.reasons.clear();
    assert_ne!(record.judge_again(), record.verdict);
    assert_eq!(record.judge_again().answer, Answer::Refused);
}

#[test]
fn what_cannot_be_judged_again_is_refused() {
    let with = |change: fn(&mut Value)| {
        let mut value = serde_json::to_value(record()).unwrap();
        change(&mut value);
        serde_json::from_value::<Record>(value).map_err(|error| error.to_string())
    };
    assert!(with(|_| {}).is_ok());
    for (change, expected) in [
        ((|v| v["apiVersion"] = "quorate.dev/v2".into()) as fn(&mut Value), "only `quorate.dev/v1`"),
        (|v| v["kind"] = "Pod".into(), "only `Verdict`"),
        (|v| v["surprise"] = 1.into(), "unknown field `surprise`"),
        (|v| v["observation"]["etcd"]["membership"]["known"] = json!([]), "the member list has no voter"),
        (
            |v| {
                let list = &mut v["observation"]["etcd"]["membership"]["known"];
                list[1] = list[0].clone();
            },
            "has member a1 twice",
        ),
        (|v| v["observation"]["etcd"]["members"][0]["id"] = "xyz".into(), "is not an etcd id"),
        (|v| v["verdict"]["reasons"][0]["code"] = "Q999-no-such-reason".into(), "unknown variant"),
    ] {
        let error = with(change).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
