//! The files that make a Debian root one particular machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Parts;
use crate::build::PAUSE_TAGS;
use crate::command::write;
use crate::kubeadm::{AUDIT_POLICY, AUDIT_POLICY_PATH};
use crate::network::{MOST_MACHINES, address, namespace, pod_network};

fn hosts() -> String {
    let mut text = String::from("127.0.0.1 localhost\n");
    for machine in 1..=MOST_MACHINES {
        text += &format!("{} k{machine}\n", address(machine));
    }
    text
}

/// `restrict_oom_score_adj`: the host may not grant CAP_SYS_RESOURCE. cgroupfs, because each kubelet has a subtree.
fn containerd() -> String {
    let pause = PAUSE_TAGS.last().copied().unwrap_or_default();
    format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "registry.k8s.io/pause:{pause}"
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#
    )
}

/// Routed pods: the kernel here may lack br_netfilter, which bridged ones need.
fn cni(machine: u8) -> String {
    let subnet = pod_network(machine);
    format!(
        r#"{{"cniVersion":"1.0.0","name":"lab","plugins":[{{"type":"ptp","mtu":1500,"ipam":{{"type":"host-local","dataDir":"/run/cni","ranges":[[{{"subnet":"{subnet}"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}},{{"type":"portmap","capabilities":{{"portMappings":true}}}}]}}
"#
    )
}

/// The v1 controllers are shared by all machines: each kubelet gets a subtree. What the pods of the last boot had in it would stay, as on no
/// real machine, and the kubelet would ask for each of those containers for three seconds before it starts the first. The sysctls that the
/// kubelet would set are the host's: files stand in for them.
const HOST_UNIT: &str = r#"[Unit]
Before=containerd.service kubelet.service
DefaultDependencies=no
After=local-fs.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /etc/lab-host.sh
[Install]
WantedBy=multi-user.target
"#;

/// How long a machine may run ahead of its part of the processors, microseconds: short beside what clients notice.
const PERIOD: u32 = 20_000;
/// The file in a machine's group that bounds its part of the processors.
pub(super) const QUOTA: &str = "cpu.cfs_quota_us";

/// A machine's group of processes, as the scheduler has it.
pub(super) fn group_folder(machine: u8) -> PathBuf {
    Path::new("/sys/fs/cgroup/cpu").join(namespace(machine))
}

/// What [`QUOTA`] says for so many percent of one processor.
pub(super) const fn quota(percent: u32) -> u32 {
    PERIOD / 100 * percent
}

fn host_script(machine: u8, processor: Option<u32>) -> String {
    let group = namespace(machine);
    let most = processor.map_or_else(String::new, |percent| {
        let folder = group_folder(machine);
        let (folder, quota) = (folder.display(), quota(percent));
        format!("echo {PERIOD} >{folder}/cpu.cfs_period_us\necho {quota} >{folder}/{QUOTA}\n")
    });
    format!(
        r#"controllers="cpu cpuacct cpuset memory devices freezer blkio pids hugetlb"
for c in $controllers; do mount -o remount,bind,rw /sys/fs/cgroup/$c; done
for c in $controllers systemd; do
  mkdir -p /sys/fs/cgroup/$c/{group}
  find /sys/fs/cgroup/$c/{group} -mindepth 1 -depth -type d -exec rmdir {{}} +
done
# All of a machine shares its part of the processors, as on hosts of their own: its services beside its pods. Left at the root each service
# would weigh as much as another machine's whole control plane. (The kubelet cannot tell metrics of its own group then, and says so.)
mkdir /sys/fs/cgroup/cpu/{group}/system
for p in /proc/[0-9]*; do echo ${{p#/proc/}} >/sys/fs/cgroup/cpu/{group}/system/cgroup.procs; done 2>/dev/null
{most}for f in cpus mems; do cat /sys/fs/cgroup/cpuset/cpuset.$f >/sys/fs/cgroup/cpuset/{group}/cpuset.$f; done
mkdir -p /run/fake
for f in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  p=${{f%%=*}}; n=$(echo $p | tr / _)
  echo ${{f##*=}} >/run/fake/$n
  mount --bind /run/fake/$n /proc/sys/$p
done
mount --make-rshared /
"#
    )
}

/// Writes a machine's files below its root.
pub(super) fn lay_out(root: &Path, machine: u8, parts: &Parts<'_>) -> Result<()> {
    let group = namespace(machine);
    let put = |path: &str, text: &str| write(&root.join(path), text);
    put("etc/hostname", &format!("k{machine}\n"))?;
    put("etc/machine-id", "")?;
    put("etc/hosts", &hosts())?;
    put("etc/resolv.conf", "nameserver 127.0.0.1\n")?;
    put("etc/containerd/config.toml", &containerd())?;
    put("etc/cni/net.d/10-lab.conflist", &cni(machine))?;
    fs::create_dir_all(root.join("opt/cni"))?;
    symlink("/usr/lib/cni", root.join("opt/cni/bin"))?;
    let arguments = format!("KUBELET_EXTRA_ARGS=--cgroup-root=/{group} --node-ip={}\n", address(machine));
    put("etc/default/kubelet", &arguments)?;
    put("etc/lab-host.sh", &host_script(machine, parts.processor))?;
    put("etc/systemd/system/lab-host.service", HOST_UNIT)?;
    // systemd trims the empty group at boot.
    let drop_in = format!("[Service]\nExecStartPre=-/bin/mkdir -p /sys/fs/cgroup/systemd/{group}\n");
    put("etc/systemd/system/kubelet.service.d/20-lab.conf", &drop_in)?;
    let wants = root.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    symlink("/etc/systemd/system/lab-host.service", wants.join("lab-host.service"))?;
    if parts.audit {
        put(AUDIT_POLICY_PATH.trim_start_matches('/'), AUDIT_POLICY)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_configuration_is_json_with_the_machines_own_pods() {
        let value: serde_json::Value = serde_json::from_str(&cni(2)).unwrap();
        assert_eq!(value["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.244.2.0/24");
    }

    #[test]
    fn a_machine_has_its_own_cgroup_and_every_name_of_the_others() {
        assert!(host_script(3, None).contains("mkdir -p /sys/fs/cgroup/$c/qk3\n"));
        assert!(
            host_script(3, None).contains("find /sys/fs/cgroup/$c/qk3 -mindepth 1 -depth -type d -exec rmdir {} +\n")
        );
        assert!(host_script(3, None).contains("p=${f%%=*}; n=$(echo $p | tr / _)"));
        assert!(hosts().contains("10.10.0.19 k9\n"));
        assert!(!host_script(3, None).contains(QUOTA));
        assert!(host_script(3, Some(75)).contains("echo 15000 >/sys/fs/cgroup/cpu/qk3/cpu.cfs_quota_us\n"));
    }
}
