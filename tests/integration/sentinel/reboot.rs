//! A reboot from Lease to Lease, and the ways in which it is given up.

use super::*;
use std::process::Command;

/// Three nodes, two of them flagged at once; R27 and H03 before, H04 throughout, H06 and R30 after the boot.
#[test]
fn r30_the_first_node_that_was_rebooted_is_proven_whole_before_the_next() -> Result<()> {
    let mut fleet = Fleet::new()?;
    for number in [2, 3] {
        fleet.wants_reboot(number)?;
    }
    (1..=3).try_for_each(|number| fleet.start(number))?;

    // R27: kured looks at another file, and an hour is too long for the control plane's Lease.
    for number in [2, 3] {
        fleet.says(
            number,
            "S021-kured-elsewhere: kured looks at /run/reboot-required, the gate is /run/quorate-reboot-required",
        )?;
        fleet.says(number, "S026-kured-period")?;
    }
    fleet.says(1, "No reboot is wanted")?;
    // H03: an administrator is at work on another node.
    fleet.stage.api.kubectl(["cordon", "k1"])?;
    let from = fleet.log(3)?.len();
    fleet.kured(&["--period=10m", "--reboot-sentinel=/sentinel/quorate-reboot-required"])?;
    fleet.says_after(3, from, "S012-node-cordoned: k1")?;
    assert!((1..=3).all(|number| !fleet.is_open(number)));
    assert_eq!(fleet.stage.holder()?, "");
    fleet.stage.api.kubectl(["uncordon", "k1"])?;

    // H04: one of the two.
    let first = fleet.opens(&[2, 3])?;
    let second = 5 - first;
    assert_eq!(fleet.step()?, format!("k{first} open in boot boot1"));
    let gate: Value = serde_json::from_str(&fs::read_to_string(fleet.host(first).join(GATE))?)?;
    assert_eq!(gate["node"], format!("k{first}"));
    assert!(
        gate["judged"].is_string() && gate["by"].as_str().unwrap().starts_with(&format!("reboot/k{first}/")),
        "{gate}"
    );
    fleet.says(second, "Q070-lease-held")?;

    // What each shows of itself.
    let metrics = fleet.asked(first, "/metrics")?;
    assert!(metrics.contains("quorate_sentinel_open 1\n"), "{metrics}");
    let metrics = fleet.asked(second, "/metrics")?;
    assert!(metrics.contains("quorate_sentinel_open 0\n"), "{metrics}");
    assert!(metrics.contains("quorate_sentinel_reason{code=\"Q070-lease-held\"} 1"), "{metrics}");
    assert!(fleet.asked(first, "/readyz")?.starts_with("HTTP/1.1 200"));

    // kured acts: its own cordon and lock are what was asked for.
    fleet.kureds_pod(first, "kured-a", Clock::system().now() - jiff::SignedDuration::from_hours(1))?;
    fleet.kured_takes(first)?;
    fleet.says(second, "Q073-kured-lock-held")?;
    assert!(fleet.is_open(first), "{}", fleet.log(first)?);
    fleet.reboot(first, "boot-2")?;

    // Its kubelet is Ready, kured is done; etcd is not back.
    fleet.kureds_pod(first, "kured-a", Clock::system().now() + jiff::SignedDuration::from_secs(2))?;
    fleet.kured_releases(first)?;
    fleet.says(first, "S034-recovering: etcd of k")?;
    assert_eq!(fleet.step()?, format!("k{first} recover"));
    // R30: all of it is back but its pods have no network.
    let from = fleet.log(first)?.len();
    fleet.network(2)?;
    fleet.back(first)?;
    fleet.says_after(first, from, "S034-recovering: DaemonSet kube-system/cilium: 2 of 3 pods are ready")?;
    assert_eq!(fleet.step()?, format!("k{first} recover"));
    assert!(!fleet.is_open(first) && !fleet.is_open(second));
    let node: Value =
        serde_json::from_str(&fleet.stage.api.kubectl(["get", "node", &format!("k{first}"), "-o", "json"])?)?;
    let boot = node["metadata"]["annotations"]["quorate.dev/boot"]
        .as_str()
        .context("its sentinel says since when it is up")?;
    assert!(boot.contains("boot-2"), "{boot}");

    // Whole: the next one goes.
    fleet.network(3)?;
    assert_eq!(fleet.opens(&[second])?, second);
    assert_eq!(fleet.step()?, format!("k{second} open in boot boot1"));

    // H05, from here: kured drains the second when a voter fails. The gate closes, and kured's process that has seen it is ended.
    fleet.kureds_pod(second, "kured-b", Clock::system().now() - jiff::SignedDuration::from_hours(1))?;
    fleet.kured_takes(second)?;
    fleet.stage.api.etcd().member(first)?.kill()?;
    fleet.closes(second)?;
    fleet.says(second, "Q030-quorum-would-be-lost")?;
    fleet.kured_is_deleted("kured-b")?;
    assert_eq!(fleet.step()?, format!("k{second} open in boot boot1"), "nothing is given back before it has ended");
    fleet.stage.api.finish_pod_deletion("kube-system", "kured-b")?;
    // The next process of kured uncordons and releases.
    fleet.kureds_pod(second, "kured-c", Clock::system().now() + jiff::SignedDuration::from_secs(2))?;
    fleet.kured_releases(second)?;
    fleet.stage.api.etcd().member(first)?.restart()?;
    fleet.lease_is_free()?;
    fleet.says(second, "S032-resting")?;
    assert!((1..=3).all(|number| !fleet.is_open(number)));

    // Once more on the first, and its new process begins before the API has heard of the boot: it takes itself for the one that had opened the
    // gate, and is put right.
    fleet.wants_reboot(first)?;
    fleet.opens(&[first])?;
    fleet.kured_takes(first)?;
    fleet.sentinel(first)?.kill()?;
    for file in [GATE, REQUIRED] {
        fs::remove_file(fleet.host(first).join(file))?;
    }
    fleet.start(first)?;
    fleet.says(first, "The Lease is held step=open in boot boot2")?;
    fleet.kured_is_ended("kured-a")?;
    let boot = json!({"nodeInfo": {"bootID": "boot-3"}});
    fleet.stage.patch("node", &format!("k{first}"), "default", &boot)?;
    fleet.says(first, "The node has been down under an open gate")?;
    fleet.kureds_pod(first, "kured-d", Clock::system().now() + jiff::SignedDuration::from_secs(2))?;
    fleet.kured_releases(first)?;
    fleet.lease_is_free()?;
    fleet.says(first, "The Lease is given back rebooted=true")?;

    // The fleet in one table: the pods of this test are none of the DaemonSets', so no sentinel counts as ready.
    let mut status = Command::new(env!("CARGO_BIN_EXE_quorate"));
    status.arg("--kubeconfig").arg(fleet.stage.api.kubeconfig()?).args(["sentinel", "status"]);
    let said = status.env_remove("KUBERNETES_SERVICE_HOST").output()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.status.code(), Some(12), "{said:?}");
    assert!(text.contains(&format!("k{second}: S032-resting")), "{text}");
    let events = fleet.stage.api.kubectl(["get", "events.events.k8s.io", "-n", "default", "-o", "json"])?;
    for reason in ["QuorateGateOpen", "QuorateRebooted", "QuorateGateClosed", "QuorateKuredEnded", "QuorateNotRebooted"]
    {
        assert!(events.contains(reason), "no Event {reason}: {events}");
    }

    // The account: nothing was denied to it.
    assert_eq!(rights::denied(&fleet.stage.api)?, Vec::<Value>::new());
    Ok(())
}

/// A worker: without a certificate of etcd, under a slot of its own; and no gate stays open where the API is not to be reached.
#[test]
fn r25_a_worker_goes_by_its_own_slot_and_its_gate_closes_when_the_api_is_away() -> Result<()> {
    let mut fleet = Fleet::new()?;
    fleet.kured(&["--period=1h", "--concurrency=1", "--reboot-sentinel=/sentinel/quorate-reboot-required"])?;
    for number in 1..=3 {
        let boot = json!({"id": "boot-1", "since": 0}).to_string();
        fleet.stage.api.kubectl(["annotate", "node", &format!("k{number}"), &format!("quorate.dev/boot={boot}")])?;
    }
    fleet.worker()?;
    fleet.wants_reboot(4)?;
    // An account that may only look: that is said before anything depends on it, and the probe of the pod fails.
    let right = std::mem::replace(&mut fleet.kubeconfig, fleet.stage.api.kubeconfig_for("quorate", "quorate-observe")?);
    fleet.start(4)?;
    fleet.says(4, "S006-not-allowed: ")?;
    for lacks in ["patch nodes w1", "update leases.coordination.k8s.io in quorate", "delete pods in kube-system"] {
        assert!(fleet.log(4)?.contains(&format!("{lacks}: not allowed")), "{}", fleet.log(4)?);
    }
    assert!(fleet.asked(4, "/readyz")?.starts_with("HTTP/1.1 503"));
    fleet.sentinel(4)?.kill()?;
    fleet.kubeconfig = right;
    fleet.start(4)?;
    fleet.worker_opens()?;
    let gate: Value = serde_json::from_str(&fs::read_to_string(fleet.host(4).join(GATE))?)?;
    assert_eq!(gate["judged"], json!({"readyApiservers": ["k1", "k2", "k3"]}));
    // What would be a reason on a control plane node is none here, and is said.
    fleet.says(4, "Of kured's configuration advice=S026-kured-period: --period is 60 min")?;
    let said = ["get", "node", "w1", "-o", "jsonpath={.metadata.annotations.quorate\\.dev/sentinel}"];
    let said: Value = serde_json::from_str(&fleet.stage.api.kubectl(said)?)?;
    assert_eq!(said["advice"][0]["code"], "S026-kured-period", "{said}");
    let slot = fleet.stage.api.kubectl(["get", "lease", "worker-disruption-0", "-n", "quorate", "-o", "json"])?;
    assert!(slot.contains("reboot/w1/") && slot.contains("open in boot boot1"), "{slot}");
    assert_eq!(fleet.stage.holder().unwrap_or_default(), "", "the control plane's is free");
    fleet.stage.api.apiserver(1)?.pause()?;
    fleet.closes(4)?;
    fleet.stage.api.apiserver(1)?.resume()?;
    fleet.stage.api.wait_ready(1, PATIENCE)?;
    // It owes the end of a kured that has no pod there, and gives the slot back.
    fleet.slot_is_free()?;
    fleet.says(4, "S032-resting")?;
    assert!(!fleet.is_open(4));

    // Its next process has another try, and kured gives that up: it uncordons, and does not reboot.
    fleet.sentinel(4)?.kill()?;
    fleet.start(4)?;
    fleet.worker_opens()?;
    fleet.kureds_pod(4, "kured-w", Clock::system().now() - jiff::SignedDuration::from_hours(1))?;
    fleet.kured_takes(4)?;
    fleet.has_looked(4, fleet.looks(4)? + 3)?;
    assert!(fleet.is_open(4), "{}", fleet.log(4)?);
    // It releases, then uncordons: ended in between it would leave the node cordoned for ever.
    fleet.kured_gives_its_lock_back()?;
    fleet.closes(4)?;
    fleet.says(4, "S031-drain-aborted")?;
    fleet.has_looked(4, fleet.looks(4)? + 3)?;
    let pod = fleet.stage.api.kubectl(["get", "pod", "kured-w", "-n", "kube-system", "-o", "json"])?;
    assert!(!pod.contains("deletionTimestamp"), "{pod}");
    fleet.stage.api.kubectl(["uncordon", "w1"])?;
    fleet.kured_is_ended("kured-w")?;
    fleet.slot_is_free()?;

    // kured is uninstalled while its process drains: that one is ended before anything is given back.
    fleet.sentinel(4)?.kill()?;
    fleet.start(4)?;
    fleet.worker_opens()?;
    fleet.kureds_pod(4, "kured-x", Clock::system().now() - jiff::SignedDuration::from_hours(1))?;
    fleet.stage.api.kubectl(["delete", "daemonset", "kured", "-n", "kube-system"])?;
    fleet.closes(4)?;
    fleet.says(4, "S020-kured-absent")?;
    fleet.kured_is_deleted("kured-x")?;
    let slot = fleet.stage.api.kubectl(["get", "lease", "worker-disruption-0", "-n", "quorate", "-o", "json"])?;
    assert!(slot.contains("open in boot boot1"), "{slot}");
    fleet.stage.api.finish_pod_deletion("kube-system", "kured-x")?;
    fleet.slot_is_free()
}

/// A host's folder on a file system of its own.
struct OwnFileSystem(PathBuf);

impl OwnFileSystem {
    fn mount(args: &[&str], at: &Path) -> Result<()> {
        let mounted = Command::new("/bin/mount").args(args).arg(at).status()?;
        anyhow::ensure!(mounted.success(), "mount {args:?} {}: {mounted}", at.display());
        Ok(())
    }

    fn at(path: PathBuf) -> Result<Self> {
        Self::mount(&["-t", "tmpfs", "tmpfs"], &path)?;
        Ok(Self(path))
    }

    fn remount(&self, how: &str) -> Result<()> {
        Self::mount(&["-o", &format!("remount,{how}")], &self.0)
    }
}

impl Drop for OwnFileSystem {
    fn drop(&mut self) {
        // The folder's own removal would say that it is busy.
        let _status = Command::new("/bin/umount").arg("--lazy").arg(&self.0).status();
    }
}

/// What it opened under its Lease and cannot close any more is open: the Lease is kept, whoever waits for it, until the file is gone.
#[test]
fn r26_a_gate_that_cannot_be_removed_keeps_its_lease() -> Result<()> {
    let mut fleet = Fleet::new()?;
    fleet.kured(&["--period=10m", "--reboot-sentinel=/sentinel/quorate-reboot-required"])?;
    let run = OwnFileSystem::at(fleet.host(2).join("var/run"))?;
    fleet.wants_reboot(2)?;
    (1..=3).try_for_each(|number| fleet.start(number))?;
    assert_eq!(fleet.opens(&[2])?, 2);
    // The sentinel itself may have its probe open for writing.
    until("a read-only file system", PATIENCE, || match run.remount("ro") {
        Ok(()) => Ok(ControlFlow::Break(())),
        Err(busy) => Ok(ControlFlow::Continue(busy)),
    })?;
    fleet.says(2, "S003-file-stays")?;
    // It is renewed, and tried again: nobody takes it over, although nothing else stands in the way.
    fleet.wants_reboot(3)?;
    fleet.says(3, "Q070-lease-held")?;
    fleet.has_looked(2, fleet.looks(2)? + 20)?;
    assert!(fleet.is_open(2) && !fleet.is_open(3));
    assert_eq!(fleet.step()?, "k2 open in boot boot1");
    assert!(fleet.asked(2, "/metrics")?.contains("quorate_sentinel_open 1\n"));
    let ready = fleet.asked(2, "/readyz")?;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("S003-file-stays"), "{ready}");
    run.remount("rw")?;
    fleet.closes(2)?;
    assert_eq!(fleet.opens(&[3])?, 3, "what is closed is given back");
    Ok(())
}

impl Fleet {
    pub(super) fn worker_opens(&self) -> Result<()> {
        until("the gate of w1 opens", PATIENCE, || {
            Ok(if self.is_open(4) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(anyhow!("{}", self.log(4)?))
            })
        })
    }

    pub(super) fn slot_is_free(&self) -> Result<()> {
        until("the slot is free", PATIENCE, || {
            let holder =
                ["get", "lease", "worker-disruption-0", "-n", "quorate", "-o", "jsonpath={.spec.holderIdentity}"];
            let holder = self.stage.api.kubectl(holder)?;
            Ok(if holder.is_empty() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(anyhow!("{}", self.log(4)?))
            })
        })
    }
}
