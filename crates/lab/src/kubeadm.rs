//! kubeadm's configuration, the audit policy, and reading what `kubeadm init` prints.

use anyhow::{Context, Result};

use crate::build::ETCD_TAG;
use crate::network::{API_PORT, VIP, address};
use crate::version::Version;

/// Ignored by name, never `all`: `SystemVerification` fails on hosts with cgroup v1.
pub(crate) const PREFLIGHT: &str = "--ignore-preflight-errors=SystemVerification";
/// The container runtime's socket.
pub(crate) const CRI: &str = "unix:///run/containerd/containerd.sock";
/// Where the audit policy lies on a control plane node: kubeadm mounts that folder into the apiserver anyway.
pub(crate) const AUDIT_POLICY_PATH: &str = "/etc/kubernetes/pki/audit-policy.yaml";
/// The folder of `audit.log` on a control plane node, and in its apiserver.
pub(crate) const AUDIT_FOLDER: &str = "/var/log/kubernetes";

/// Who did what to which object, once a request: bodies are left out.
pub(crate) const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
";

fn api_server(audit: bool) -> String {
    if !audit {
        return String::new();
    }
    format!(
        "apiServer:
  extraArgs:
  - {{name: audit-policy-file, value: {AUDIT_POLICY_PATH}}}
  - {{name: audit-log-path, value: {AUDIT_FOLDER}/audit.log}}
  extraVolumes:
  - {{name: audit-log, hostPath: {AUDIT_FOLDER}, mountPath: {AUDIT_FOLDER}, pathType: DirectoryOrCreate}}
"
    )
}

/// The configuration of `kubeadm init` on a machine. Cluster DNS is disabled: there is no CoreDNS image here.
pub(crate) fn config(machine: u8, version: Version, certificate_key: &str, audit: bool) -> String {
    format!(
        "apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{advertiseAddress: {}, bindPort: {API_PORT}}}
nodeRegistration: {{criSocket: {CRI}, name: k{machine}}}
certificateKey: {certificate_key}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: {version}
controlPlaneEndpoint: \"{VIP}:{API_PORT}\"
networking: {{podSubnet: 10.244.0.0/16}}
dns: {{disabled: true}}
etcd: {{local: {{imageTag: {ETCD_TAG}}}}}
{}---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
evictionHard: {{}}
imageGCHighThresholdPercent: 100
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
",
        address(machine),
        api_server(audit),
    )
}

/// The words of the join command that `kubeadm init` printed, without those of a control plane: address, token, hash.
///
/// # Errors
/// There is none in the text.
pub(crate) fn join_words(printed: &str) -> Result<Vec<String>> {
    let (_, after) = printed.split_once("kubeadm join ").context("kubeadm init printed no join command")?;
    let words = after.split_whitespace().take_while(|word| *word != "--control-plane");
    Ok(words.filter(|word| *word != "\\").take(5).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_what_is_known_to_work() {
        let plain = config(1, Version::new(36, 1), "00ff", false);
        let expected = "apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: 10.10.0.11, bindPort: 6443}
nodeRegistration: {criSocket: unix:///run/containerd/containerd.sock, name: k1}
certificateKey: 00ff
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v1.36.1
controlPlaneEndpoint: \"10.10.0.10:6443\"
networking: {podSubnet: 10.244.0.0/16}
dns: {disabled: true}
etcd: {local: {imageTag: 3.6.8-0}}
---
";
        assert!(plain.starts_with(expected), "{plain}");
        assert!(!plain.contains("audit"));
    }

    #[test]
    fn auditing_adds_to_the_apiserver_only() {
        let plain = config(1, Version::new(36, 1), "00ff", false);
        let audited = config(1, Version::new(36, 1), "00ff", true);
        let added = "apiServer:
  extraArgs:
  - {name: audit-policy-file, value: /etc/kubernetes/pki/audit-policy.yaml}
  - {name: audit-log-path, value: /var/log/kubernetes/audit.log}
  extraVolumes:
  - {name: audit-log, hostPath: /var/log/kubernetes, mountPath: /var/log/kubernetes, pathType: DirectoryOrCreate}
";
        assert_eq!(audited.replace(added, ""), plain);
        assert_ne!(audited, plain);
    }

    #[test]
    fn the_join_command_is_read_from_either_form() {
        let control_plane = "run:\n\n  kubeadm join 10.10.0.10:6443 --token a.b \\\n\t--discovery-token-ca-cert-hash sha256:c \\\n\t--control-plane --certificate-key d\n\nThen\n";
        let words = ["10.10.0.10:6443", "--token", "a.b", "--discovery-token-ca-cert-hash", "sha256:c"];
        assert_eq!(join_words(control_plane).unwrap(), words);
        let worker = "kubeadm join 10.10.0.10:6443 --token a.b \\\n\t--discovery-token-ca-cert-hash sha256:c \nbye";
        assert_eq!(join_words(worker).unwrap(), words);
        assert!(join_words("nothing").is_err());
    }
}
