//! What is typed on the other control plane nodes. Pure.

use super::node::Peer;
use crate::etcd::members::words::{data_dir, join};
use quorum_safety::NodeName;

/// The names of the four as the kernel shortens them.
const PROCESSES: &str = "'etcd|kube-apiserver|kube-controller|kube-scheduler'";
const FOUR: &str = "etcd kube-apiserver kube-controller-manager kube-scheduler";

/// What stops the four on a node; may be typed again.
pub(super) fn stop(node: &NodeName) -> Vec<String> {
    vec![
        format!("on {node}, as root:"),
        "  mkdir -p /var/lib/quorate/aside".to_owned(),
        format!(
            "  for it in {FOUR}; do test ! -e /etc/kubernetes/manifests/$it.yaml || mv /etc/kubernetes/manifests/$it.yaml /var/lib/quorate/aside/; done"
        ),
        format!(
            "  while pgrep -x {PROCESSES}; do sleep 1; done     # until their processes are gone: an apiserver takes a minute"
        ),
    ]
}

/// What makes a node that is stopped join the restored cluster. Its data is put aside once: typed a second time it does not take the new.
pub(super) fn rejoin(peer: &Peer, id: &str) -> Vec<String> {
    let Peer { name, address } = peer;
    let mut lines = stop(name);
    lines.push(format!("  {}", data_dir("/var/lib/quorate/aside")));
    lines.push(format!("  test -e \"$data/member-before-{id}\" || mv \"$data/member\" \"$data/member-before-{id}\"     # aside, never deleted"));
    lines.extend(join(name, address));
    // Only now: an apiserver without etcd ends again and again, and is then started later and later.
    lines.push("  for it in kube-apiserver kube-controller-manager kube-scheduler; do cp -p /var/lib/quorate/aside/$it.yaml /etc/kubernetes/manifests/; done".to_owned());
    lines.push("  systemctl restart kubelet".to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_deletes_nothing_and_names_the_node_and_its_address() {
        let peer = Peer { name: "k3".into(), address: "10.10.0.13".into() };
        let text = rejoin(&peer, "20261127-004500").join("\n");
        for part in [
            "on k3, as root:",
            r#"data=$(sed -n "s/^ *- --data-dir=//p" /var/lib/quorate/aside/etcd.yaml)"#,
            r#"mv "$data/member" "$data/member-before-20261127-004500""#,
            "advertiseAddress: \"10.10.0.13\"",
            "nodeRegistration: {name: k3}",
            "kubeadm join phase etcd-join",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(!text.contains("rm "), "{text}");
        // In this order.
        let at = |part: &str| text.find(part).unwrap();
        assert!(
            at("mv /etc/kubernetes") < at("pgrep")
                && at("pgrep") < at("member-before")
                && at("member-before") < at("kubeadm join")
        );
        assert!(at("kubeadm join") < at("cp -p"));
    }
}
