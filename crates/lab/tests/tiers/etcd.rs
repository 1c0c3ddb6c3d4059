//! `lab::etcd` on every version it offers.

use std::path::Path;
use std::time::{Duration, Instant};

use lab::etcd::{Cluster, Etcd, EtcdVersion, Join, Spec};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// One life of a cluster: kill, freeze and stop a member, add a learner and a member that never starts.
fn members_can_be_taken_down_and_added(version: EtcdVersion) {
    let start = Instant::now();
    let mut cluster = Etcd::start(Spec::new(version, 3)).unwrap();
    println!("etcd {}: three members healthy after {:?}", version.number(), start.elapsed());
    for (number, member) in (1..).zip(cluster.members()) {
        assert_eq!(member.name(), format!("k{number}"));
        assert_eq!(member.endpoint(), format!("https://{}:2379", member.address()));
        let status = status(&cluster, number);
        assert_eq!(status["version"], version.number());
        assert_eq!(status["header"]["member_id"], member.id().to_string());
    }

    let (killed, other) = (cluster.member(2).unwrap(), cluster.member(3).unwrap());
    killed.kill().unwrap();
    assert!(killed.health().is_err(), "a killed member answers");
    other.wait_healthy(SOON).unwrap();
    killed.restart().unwrap();
    killed.wait_healthy(SOON).unwrap();

    let frozen = cluster.member(1).unwrap();
    frozen.pause().unwrap();
    frozen.process().running().expect("a frozen process has not ended");
    assert!(frozen.health().is_err(), "a frozen member answers");
    other.wait_healthy(SOON).unwrap();
    killed.kill().unwrap();
    assert!(other.health().is_err(), "one of three members answers a linearizable read");
    frozen.resume().unwrap();
    killed.restart().unwrap();
    cluster.wait_healthy(SOON).unwrap();

    other.stop().unwrap();
    assert!(other.process().running().is_err());
    other.restart().unwrap();
    cluster.wait_healthy(SOON).unwrap();

    let learner = cluster.add_learner().unwrap();
    assert_eq!(status(&cluster, learner)["isLearner"], true);
    assert_eq!(cluster.member(learner).unwrap().name(), "k4");
    let id = cluster.add_member_unstarted(Join::Voter).unwrap().to_string();
    let list = cluster.member(1).unwrap().call("/v3/cluster/member/list", &json!({"linearizable": true})).unwrap();
    let listed = list["members"].as_array().unwrap();
    assert_eq!(listed.len(), 5, "{list}");
    let unstarted = listed.iter().find(|member| member["ID"] == id.as_str()).unwrap();
    assert_eq!((unstarted.get("name"), unstarted.get("isLearner")), (None, None), "{list}");
    println!("etcd {}: all of it took {:?}", version.number(), start.elapsed());
}

fn status(cluster: &Cluster, number: usize) -> Value {
    cluster.member(number).unwrap().call("/v3/maintenance/status", &json!({})).unwrap()
}

#[test]
fn members_of_3_5_can_be_taken_down_and_added() {
    members_can_be_taken_down_and_added(EtcdVersion::V3_5);
}

#[test]
fn members_of_3_6_can_be_taken_down_and_added() {
    members_can_be_taken_down_and_added(EtcdVersion::V3_6);
}

#[test]
fn members_of_3_7_can_be_taken_down_and_added() {
    members_can_be_taken_down_and_added(EtcdVersion::V3_7);
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let cluster = Etcd::start(Spec::new(EtcdVersion::V3_6, 1)).unwrap();
    let curl = |with_certificate: bool| {
        let pki = cluster.pki_dir();
        let mut command = std::process::Command::new("curl");
        command.args(["--silent", "--show-error", "--cacert"]).arg(pki.join("ca.crt"));
        if with_certificate {
            command.arg("--cert").arg(pki.join("healthcheck-client.crt"));
            command.arg("--key").arg(pki.join("healthcheck-client.key"));
        }
        command.arg(format!("{}/health", cluster.member(1).unwrap().endpoint())).output().unwrap()
    };
    let with = curl(true);
    assert!(String::from_utf8_lossy(&with.stdout).contains(r#""health":"true""#), "{with:?}");
    assert!(!curl(false).status.success(), "answered without a client certificate");
}

#[test]
fn a_member_that_does_not_start_says_why_at_once() {
    let start = Instant::now();
    let extra_args = vec!["--no-such-flag=1".to_owned()];
    let error = Etcd::start(Spec { extra_args, ..Spec::new(EtcdVersion::V3_6, 1) }).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("flag provided but not defined: -no-such-flag"), "{error}");
    assert!(start.elapsed() < SOON, "waited {:?} for a process that had ended", start.elapsed());
    let folder = Path::new(error.split_once("end of ").unwrap().1.split_once("/k1/etcd.log").unwrap().0);
    let kept = folder.with_file_name(format!("kept-{}-{}", std::process::id(), folder.file_name().unwrap().display()));
    assert!(kept.join("k1/etcd.log").exists());
    std::fs::remove_dir_all(kept).unwrap();
}
