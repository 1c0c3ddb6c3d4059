//! The control plane node that is restored, as kubeadm's manifests describe it, and the manifest that its etcd gets.

use crate::node::manifests;
use crate::observe::etcd::host;
use quorum_safety::NodeName;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// What has to be known of the node. It is kept in the journal: its manifests are aside while it is worked on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Node {
    /// The name of its member, which is the node's: kubeadm gives it that.
    pub(super) name: NodeName,
    /// The image of its etcd.
    pub(super) image: String,
    /// Where etcd keeps its data.
    pub(super) data_dir: PathBuf,
    /// Where its peers reach its etcd.
    pub(super) peer_url: String,
    /// Where clients do.
    pub(super) client_url: String,
    /// The address that its apiserver advertises.
    pub(super) address: IpAddr,
    /// The port of its apiserver.
    pub(super) port: u16,
    /// Of each of the four that is there, the words by which its process is told from others of that name.
    pub(super) processes: Vec<Running>,
    /// The members that its etcd once joined.
    pub(super) joined: Vec<Peer>,
}

/// A static pod of this node, as its process is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Running {
    /// Such as `kube-apiserver`.
    pub(super) component: String,
    /// A word of its command line that no other process of that name has; none where its manifest has no such flag: then each of that
    /// name counts.
    pub(super) word: Option<String>,
}

/// Another control plane node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Peer {
    /// Its name.
    pub(super) name: NodeName,
    /// Its address.
    pub(super) address: String,
}

/// The flag by which the process of each of the four is told.
const TELLING: [(&str, &str); 4] = [
    ("etcd", "data-dir"),
    ("kube-apiserver", "advertise-address"),
    ("kube-controller-manager", "kubeconfig"),
    ("kube-scheduler", "kubeconfig"),
];

impl Node {
    /// Reads the manifests below kubeadm's folder.
    ///
    /// # Errors
    /// In words, when etcd's or the apiserver's is not there, or lacks a flag that kubeadm writes.
    pub(super) fn read(kubernetes: &Path) -> Result<Self, String> {
        let folder = kubernetes.join("manifests");
        let path = |component: &str| folder.join(format!("{component}.yaml"));
        let (image, etcd) = manifests::of(&path("etcd"), "etcd")?;
        let (_, apiserver) = manifests::of(&path("kube-apiserver"), "kube-apiserver")?;
        let flag = |pod: &manifests::StaticPod, component: &str, name: &str| {
            let found = pod.flag(name).map(str::to_owned);
            found.ok_or_else(|| format!("{}: it has no --{name}", path(component).display()))
        };
        let own = |name: &str| flag(&etcd, "etcd", name);
        let name = NodeName(own("name")?);
        let address = flag(&apiserver, "kube-apiserver", "advertise-address")?;
        let address = address.parse().map_err(|_| format!("--advertise-address={address} is no address"))?;
        let port = apiserver.flag("secure-port").unwrap_or("6443");
        let port = port.parse().map_err(|_| format!("--secure-port={port} is no port"))?;
        let mut processes = Vec::new();
        for (component, telling) in TELLING {
            if !path(component).exists() {
                continue;
            }
            let (_, pod) = manifests::of(&path(component), component)?;
            let word = pod.flag(telling).map(|value| format!("--{telling}={value}"));
            processes.push(Running { component: component.to_owned(), word });
        }
        if let Some(wal) = etcd.flag("wal-dir") {
            return Err(format!(
                "{}: --wal-dir={wal}: expected etcd's log in its data directory; a restored member does not start on a log of before",
                path("etcd").display()
            ));
        }
        let joined = etcd.flag("initial-cluster").unwrap_or_default();
        let joined = joined
            .split(',')
            .filter_map(|member| member.split_once('='))
            .filter_map(|(name, url)| Some(Peer { name: NodeName(name.to_owned()), address: host(url)? }));
        Ok(Self {
            joined: joined.filter(|peer| peer.name != name).collect(),
            data_dir: own("data-dir")?.into(),
            peer_url: own("initial-advertise-peer-urls")?,
            client_url: own("advertise-client-urls")?,
            name,
            image,
            address,
            port,
            processes,
        })
    }
}

/// The manifest of etcd with nobody but this member in its initial cluster: what was there before is of the cluster that is gone, and
/// would be believed by whoever looks for peers.
pub(super) fn alone(manifest: &str, name: &NodeName, peer_url: &str) -> String {
    let mut text: Vec<String> = Vec::new();
    for line in manifest.lines() {
        let set = |flag: &str, value: &str| {
            let (before, after) = line.split_once(flag)?;
            // Whatever quotes the line ends with.
            let end: String = after.chars().rev().take_while(|letter| matches!(letter, '"' | '\'')).collect();
            Some(format!("{before}{flag}{value}{end}"))
        };
        let changed = set("--initial-cluster=", &format!("{name}={peer_url}"))
            .or_else(|| set("--initial-cluster-state=", "new"))
            .unwrap_or_else(|| line.to_owned());
        text.push(changed);
    }
    let mut text = text.join("\n");
    text.push('\n');
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const ETCD: &str = "apiVersion: v1
kind: Pod
metadata:
  name: etcd
spec:
  containers:
  - command:
    - etcd
    - --advertise-client-urls=https://10.10.0.12:2379
    - --data-dir=/var/lib/etcd
    - --initial-advertise-peer-urls=https://10.10.0.12:2380
    - --initial-cluster=k1=https://10.10.0.11:2380,k2=https://10.10.0.12:2380
    - --initial-cluster-state=existing
    - --name=k2
    image: registry.k8s.io/etcd:3.6.8-0
    name: etcd
";

    fn pod(name: &str, flags: &[&str]) -> String {
        let flags: String = flags.iter().map(|flag| format!("    - {flag}\n")).collect();
        format!(
            "metadata: {{name: {name}}}\nspec:\n  containers:\n  - image: registry.k8s.io/{name}:v1.36.1\n    command:\n    - {name}\n{flags}"
        )
    }

    /// A node as kubeadm describes k2 of three.
    pub(in super::super) fn k2(kubernetes: &Path) -> Node {
        let folder = kubernetes.join("manifests");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("etcd.yaml"), ETCD).unwrap();
        let flags = ["--advertise-address=10.10.0.12", "--secure-port=6443"];
        std::fs::write(folder.join("kube-apiserver.yaml"), pod("kube-apiserver", &flags)).unwrap();
        let flags = ["--kubeconfig=/etc/kubernetes/scheduler.conf"];
        std::fs::write(folder.join("kube-scheduler.yaml"), pod("kube-scheduler", &flags)).unwrap();
        Node::read(kubernetes).unwrap()
    }

    #[test]
    fn a_node_is_read_from_what_kubeadm_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let node = k2(folder.path());
        assert_eq!((node.name.0.as_str(), node.image.as_str()), ("k2", "registry.k8s.io/etcd:3.6.8-0"));
        assert_eq!((node.address.to_string().as_str(), node.port), ("10.10.0.12", 6443));
        assert_eq!(node.joined, [Peer { name: "k1".into(), address: "10.10.0.11".into() }]);
        let words: Vec<_> = node.processes.iter().map(|it| (it.component.as_str(), it.word.as_deref())).collect();
        assert_eq!(
            words,
            [
                ("etcd", Some("--data-dir=/var/lib/etcd")),
                ("kube-apiserver", Some("--advertise-address=10.10.0.12")),
                ("kube-scheduler", Some("--kubeconfig=/etc/kubernetes/scheduler.conf")),
            ]
        );
        let journal = serde_json::to_string(&node).unwrap();
        assert_eq!(serde_json::from_str::<Node>(&journal).unwrap(), node);
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Node::read(folder.path()).unwrap_err().contains("etcd.yaml"));
        k2(folder.path());
        let etcd = folder.path().join("manifests/etcd.yaml");
        std::fs::write(&etcd, ETCD.replace("    - --data-dir=/var/lib/etcd\n", "")).unwrap();
        assert!(Node::read(folder.path()).unwrap_err().ends_with("etcd.yaml: it has no --data-dir"));
        std::fs::write(&etcd, ETCD.replace("    - --data-dir", "    - --wal-dir=/wal\n    - --data-dir")).unwrap();
        assert!(Node::read(folder.path()).unwrap_err().contains("etcd.yaml: --wal-dir=/wal: expected"));
        std::fs::write(&etcd, ETCD.replace("name: etcd", "name: other")).unwrap();
        assert!(Node::read(folder.path()).unwrap_err().contains("the manifest of other"));
    }

    #[test]
    fn the_manifest_that_goes_back_names_nobody_else_and_is_otherwise_as_it_was() {
        let alone = alone(ETCD, &"k2".into(), "https://10.10.0.12:2380");
        let changed: Vec<(&str, &str)> =
            ETCD.lines().zip(alone.lines()).filter(|(before, after)| before != after).collect();
        assert_eq!(
            changed,
            [
                (
                    "    - --initial-cluster=k1=https://10.10.0.11:2380,k2=https://10.10.0.12:2380",
                    "    - --initial-cluster=k2=https://10.10.0.12:2380"
                ),
                ("    - --initial-cluster-state=existing", "    - --initial-cluster-state=new"),
            ]
        );
        assert_eq!(ETCD.lines().count(), alone.lines().count());
        let quoted =
            super::alone("    - \"--initial-cluster=a=https://1:2380\"\n", &"k2".into(), "https://[fd00::2]:2380");
        assert_eq!(quoted, "    - \"--initial-cluster=k2=https://[fd00::2]:2380\"\n");
    }
}
