//! Nothing outlives its owner: neither the handle nor the program.

use std::fs;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::anyhow;
use lab::etcd::{Etcd, EtcdVersion, Spec};
use lab::process::until;

/// Set for the program that holds a cluster until it is killed.
const HOLD: &str = "QUORATE_TEST_HOLD";

/// Where the folder goes when it is kept.
fn kept(dir: &Path) -> PathBuf {
    dir.with_file_name(format!("kept-{}-{}", std::process::id(), dir.file_name().unwrap().display()))
}

/// Gone, or a zombie that only waits for its new parent to read its status.
fn is_gone(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(_) => true,
        Ok(stat) => matches!(stat.rsplit_once(") ").unwrap().1.chars().next(), Some('Z' | 'X')),
    }
}

fn wait_until_gone(pids: &[u32]) {
    until(&format!("{pids:?} are gone"), Duration::from_secs(5), || {
        let left: Vec<_> = pids.iter().filter(|pid| !is_gone(**pid)).collect();
        Ok(if left.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("{left:?} are left")) })
    })
    .unwrap();
}

#[test]
fn processes_and_folder_are_gone_after_drop() {
    let cluster = Etcd::start(Spec::new(EtcdVersion::V3_6, 3)).unwrap();
    cluster.member(2).unwrap().pause().unwrap();
    let pids: Vec<_> = cluster.members().iter().map(|member| member.process().pid().unwrap()).collect();
    let dir = cluster.dir().to_owned();
    assert!(pids.iter().all(|pid| !is_gone(*pid)));
    drop(cluster);
    assert!(pids.iter().all(|pid| is_gone(*pid)), "left of {pids:?} after drop");
    assert!(!dir.exists() && !kept(&dir).exists());
}

#[test]
fn the_folder_is_kept_when_a_test_panics() {
    let dir = std::thread::spawn(|| {
        let cluster = Etcd::start(Spec::new(EtcdVersion::V3_6, 1)).unwrap();
        std::panic::panic_any(kept(cluster.dir()));
    })
    .join()
    .unwrap_err()
    .downcast::<PathBuf>()
    .unwrap();
    assert!(fs::read_to_string(dir.join("k1/etcd.log")).unwrap().contains("ready to serve client requests"));
    fs::remove_dir_all(*dir).unwrap();
}

/// Not a test: the program that the next one kills.
#[test]
#[ignore = "holds a cluster until it is killed"]
fn hold_a_cluster() {
    if std::env::var_os(HOLD).is_none() {
        return; // a run of all ignored tests
    }
    // In a thread that ends: members must live as long as the program, not as long as the thread that started them.
    let cluster = std::thread::spawn(|| Etcd::start(Spec::new(EtcdVersion::V3_6, 3)).unwrap()).join().unwrap();
    cluster.wait_healthy(Duration::from_secs(5)).unwrap();
    cluster.member(2).unwrap().pause().unwrap();
    for member in cluster.members() {
        println!("\npid {}", member.process().pid().unwrap());
    }
    println!("\ndir {}", cluster.dir().display());
    loop {
        std::thread::park();
    }
}

#[test]
fn processes_are_gone_after_their_parent_was_killed() {
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "gone::hold_a_cluster", "--ignored", "--nocapture"])
        .env(HOLD, "yes")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut pids, mut dir) = (Vec::new(), String::new());
    for line in BufReader::new(parent.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(pid) = line.strip_prefix("pid ") {
            pids.push(pid.parse().unwrap());
        }
        if let Some(path) = line.strip_prefix("dir ") {
            dir = path.to_owned();
            break;
        }
    }
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| !is_gone(*pid)));
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_until_gone(&pids);
    // Its net is free again and the next holder clears what it left; here nobody may come.
    if Path::new(&dir).exists() {
        fs::remove_dir_all(dir).unwrap();
    }
}
