//! What strikes a backup's member in mid-stream, on machines. The backup stands still (SIGSTOP) meanwhile, so that the middle is where it
//! strikes; and it has its pod on the leader's node, so that the stream comes from another machine.

use super::super::defrag::fill;
use super::super::items;
use super::super::stage::{Stage, machines, stage, until};
use super::{FOLDER, ended, somewhere_to_go, stored};
use lab::{Lab, Machine, Spec};
use serde_json::{Value, json};

const BACKUP: [&str; 3] = ["quorate", "etcd", "backup"];
/// Enough to be struck in the middle of: sockets and HTTP/2 windows hold a part of it only.
const VALUES: u32 = 800;
const MIDWAY: u64 = 8_000_000;

/// What strikes.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// SIGKILL of its etcd, which its kubelet starts again.
    Killed,
    /// SIGSTOP of its etcd, until the backup is done.
    Paused,
    /// Its machine reaches nobody, until the backup is done.
    Cut,
}

/// A Job of the template whose pod has begun to write, on this machine, and stands still.
struct Begun<'a> {
    stage: &'a Stage,
    machine: &'a Machine,
    job: String,
}

impl<'a> Begun<'a> {
    /// Its pods tolerate cordons: only a selector keeps them to one node.
    fn begin(stage: &'a Stage, machine: &'a Machine, job: &str) -> Self {
        let from =
            ["-n", "quorate", "create", "job", "--from=cronjob/quorate-backup", job, "--dry-run=client", "-ojson"];
        let mut made: Value = serde_json::from_str(&stage.kubectl(from)).unwrap();
        made["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": machine.name()});
        stage.apply(&made.to_string());
        until("the backup to run", || {
            if machine.runs_command(&BACKUP).unwrap() { Ok(()) } else { Err("it does not".to_owned()) }
        });
        // The middle lasts a second.
        while partial(machine).iter().all(|(_, bytes)| *bytes < MIDWAY) {
            assert!(machine.runs_command(&BACKUP).unwrap(), "it was over before it could be struck");
        }
        machine.pause_command(&BACKUP).unwrap();
        let written = partial(machine);
        assert!(written.iter().all(|(_, bytes)| *bytes < u64::from(VALUES) << 19), "it was still writing: {written:?}");
        Self { stage, machine, job: job.to_owned() }
    }

    fn go_on(&self) {
        assert_eq!(self.machine.resume_command(&BACKUP).unwrap(), 1);
    }

    /// What its pods said, the first one first.
    fn logs(&self) -> Vec<String> {
        let of_job = format!("job-name={}", self.job);
        let pods = self.stage.get(["pods", "-n", "quorate", "-l", &of_job, "--sort-by=.metadata.creationTimestamp"]);
        let names = items(&pods).iter().map(|pod| pod["metadata"]["name"].as_str().unwrap());
        names.map(|pod| self.stage.kubectl(["-n", "quorate", "logs", pod])).collect()
    }

    /// The machine of the member that its first pod takes the snapshot from.
    fn giver(&self) -> Machine {
        let logs = self.logs();
        let (_, rest) = logs[0].split_once("taking the snapshot from ").unwrap_or_else(|| panic!("{logs:?}"));
        self.stage.machine(rest.split(' ').next().unwrap())
    }
}

/// What has no name yet in a machine's folder, with its size in bytes.
fn partial(machine: &Machine) -> Vec<(String, u64)> {
    let list = format!("find {FOLDER} -name '.*.partial' -printf '%f %s\\n' 2>/dev/null || true");
    let list = machine.run_checked(["sh", "-c", &list]).unwrap();
    let parts = list.lines().filter_map(|line| line.split_once(' '));
    parts.map(|(name, bytes)| (name.to_owned(), bytes.parse().unwrap())).collect()
}

fn leader(stage: &Stage) -> String {
    let members = stage.quorate(["etcd", "members", "list", "-o", "json"]).document();
    let leads = members["members"].as_array().unwrap().iter().find(|member| member["leads"] == true);
    leads.unwrap_or_else(|| panic!("{members}"))["name"].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "a cluster of its own: 5 minutes"]
fn a_member_that_is_struck_in_mid_stream_costs_a_try_and_another_one_gives_the_snapshot() {
    let _alone = machines();
    let stage = stage(Spec::default());
    stage.whole();
    somewhere_to_go(&stage);
    stage.configure("backup: {directory: /backup, compression: none, stall: 5s}");
    fill(&stage, VALUES);
    for (number, fault) in [Fault::Killed, Fault::Paused, Fault::Cut].into_iter().enumerate() {
        stage.whole();
        let node = leader(&stage);
        let (machine, before) = (stage.machine(&node), stored(&stage));
        let begun = Begun::begin(&stage, &machine, &format!("backup-{number}"));
        let giver = begun.giver();
        assert_ne!(giver.name(), node, "a follower gives it");
        println!("{fault:?}: {}, which gives its snapshot to a pod on {node}", giver.name());
        match fault {
            Fault::Killed => giver.kill("etcd").unwrap(),
            Fault::Paused => giver.pause("etcd").unwrap(),
            Fault::Cut => giver.cut().unwrap(),
        }
        begun.go_on();
        // What lasts is there still when another one has given it.
        assert!(ended(&stage, &begun.job), "{fault:?}: {:?}", begun.logs());
        let logs = begun.logs();
        let why = if matches!(fault, Fault::Killed) { "no snapshot from" } else { "nothing came for 5 s" };
        assert!(logs[0].contains(why) && logs[0].contains("nothing was stored"), "{fault:?}: {logs:?}");
        assert!(logs.last().unwrap().contains("Backup done"), "{fault:?}: {logs:?}");
        match fault {
            Fault::Killed => (),
            Fault::Paused => giver.resume("etcd").unwrap(),
            Fault::Cut => giver.heal().unwrap(),
        }
        let after = stored(&stage);
        assert!(after.len() == before.len() + 1 && before.iter().all(|it| after.contains(it)), "{fault:?}: {after:?}");
        assert_eq!(partial(&machine), [], "{fault:?}");
    }
    stage.whole();
    a_disk_gets_full(&stage);
    Lab::down().unwrap();
}

/// First in the middle of a backup, then before its Job's next tries begin: nothing is left, and each says why.
fn a_disk_gets_full(stage: &Stage) {
    let node = leader(stage);
    let machine = stage.machine(&node);
    let mount = format!("mkdir -p {FOLDER} && mount -t tmpfs -o size=1g tmpfs {FOLDER}");
    machine.run_checked(["sh", "-ec", &mount]).unwrap();
    let begun = Begun::begin(stage, &machine, "backup-into-a-full-disk");
    machine.run_checked(["sh", "-c", &format!("! dd if=/dev/zero of={FOLDER}/else bs=1M 2>/dev/null")]).unwrap();
    begun.go_on();
    assert!(!ended(stage, &begun.job), "{:?}", begun.logs());
    let logs = begun.logs();
    assert!(logs[0].contains("No space left") && logs[0].contains("nothing was stored"), "{logs:?}");
    assert!(logs.len() > 1 && logs[1..].iter().all(|log| log.contains("there is no room")), "{logs:?}");
    assert_eq!(machine.run_checked(["ls", "-A", FOLDER]).unwrap().trim(), "else");
    machine.run_checked(["umount", FOLDER]).unwrap();
}
