//! Whole upgrades that `make test` has no time for: five control plane nodes, another etcd, another minor version. Each on a cluster of
//! its own, with a monitor over etcd and apiservers and a prober outside.

use super::clients;
use super::items;
use super::stage::{LEASES, Said, Stage, machines, stage};
use super::story::TO;
use lab::image::{self, Image};
use lab::prober::Report;
use lab::prober::monitor::{Account, Monitor, rule};
use lab::{Lab, Spec, Version, build};
use serde_json::Value;

/// The newest patch release of the minor version before the target's that is known to work here.
const MINOR_BEFORE: &str = "v1.35.4";
/// Another etcd than the machines', and the tag of its image.
const OTHER_ETCD: (&str, &str) = ("3.7.2", "3.7.2-0");

struct Upgraded {
    said: Said,
    clients: Report,
    monitored: Account,
}

/// Brings a cluster up, prepares it, upgrades it to [`TO`] and looks at what must be so after every upgrade.
fn upgraded(spec: Spec, prepare: impl FnOnce(&Stage)) -> (Stage, Upgraded) {
    let nodes = usize::from(spec.control_planes) + usize::from(spec.workers);
    let stage = stage(spec);
    stage.whole();
    prepare(&stage);
    stage.whole();
    let monitor = Monitor::start(&stage.lab, LEASES).unwrap();
    let (said, clients) = clients::probed_at(&stage, clients::RATES, || stage.quorate(["upgrade", "--to", TO]));
    let monitored = monitor.stop().unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let kubelets = stage.get(["nodes"]);
    for node in items(&kubelets) {
        assert_eq!(node["status"]["nodeInfo"]["kubeletVersion"], TO, "{}", node["metadata"]["name"]);
        assert!(node["spec"]["unschedulable"].is_null(), "{}", node["metadata"]["name"]);
    }
    assert_eq!(items(&kubelets).len(), nodes);
    stage.whole();
    let again = stage.quorate(["upgrade", "--to", TO]);
    assert!(again.code == 0 && again.out.contains("nothing to do"), "{again:?}");
    stage.keep_what_was_asked();
    println!("{:#?}\nfewest voters: {:?}", clients.classes, monitored.fewest_voters());
    (stage, Upgraded { said, clients, monitored })
}

impl Upgraded {
    /// There was a quorum and a ready apiserver at each look, and nothing failed but on kept connections.
    fn nobody_noticed(&self) {
        let breaches = rule::breaches(&self.monitored, &[], &[]);
        assert!(breaches.is_empty(), "{breaches:?}: {:?}", self.monitored);
        clients::assert_unnoticed(&self.clients);
    }

    /// The nodes in the order in which their steps were made.
    fn order(&self) -> Vec<&str> {
        let lines = self.said.err.lines().filter_map(|line| line.split_once(": cordoned")?.0.rsplit(' ').next());
        lines.collect()
    }
}

#[test]
#[ignore = "an upgrade of five control plane nodes: 20 minutes on two cores"]
fn five_control_plane_nodes_are_upgraded_one_after_the_other() {
    let _alone = machines();
    let (_stage, upgraded) = upgraded(Spec { control_planes: 5, audit: true, ..Spec::default() }, |_| ());
    upgraded.nobody_noticed();
    let mut order = upgraded.order();
    assert_eq!(order.len(), 5, "{order:?}");
    order.sort_unstable();
    assert_eq!(order, ["k1", "k2", "k3", "k4", "k5"]);
    Lab::down().unwrap();
}

#[test]
#[ignore = "an upgrade of its own: 10 minutes"]
fn another_etcd_is_brought_in_by_the_upgrade() {
    let _alone = machines();
    let (stage, upgraded) = upgraded(Spec { audit: true, ..Spec::default() }, |stage| {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("etcd.tar");
        let contents = Image::of_binary(&build::etcd(OTHER_ETCD.0).unwrap().join("etcd")).unwrap();
        image::write(&format!("registry.k8s.io/etcd:{}", OTHER_ETCD.1), &archive, &contents).unwrap();
        stage.lab.load_image(&archive).unwrap();
        let mut map = stage.get(["configmap", "-n", "kube-system", "kubeadm-config"]);
        let configuration = map["data"]["ClusterConfiguration"].as_str().unwrap();
        let other = configuration.replace(build::ETCD_TAG, OTHER_ETCD.1);
        assert_ne!(configuration, other);
        map["data"]["ClusterConfiguration"] = Value::String(other);
        stage.apply(&map.to_string());
    });
    upgraded.nobody_noticed();
    let pods = stage.get(["pods", "-n", "kube-system", "-l", "component=etcd"]);
    let images: Vec<&Value> = items(&pods).iter().map(|pod| &pod["spec"]["containers"][0]["image"]).collect();
    assert_eq!(images, vec![format!("registry.k8s.io/etcd:{}", OTHER_ETCD.1).as_str(); 3]);
    let status = stage.quorate(["status", "--fresh", "-o", "json"]).document();
    let members = status["seen"]["observation"]["etcd"]["members"].as_array().unwrap().clone();
    let versions: Vec<&Value> = members.iter().map(|member| &member["second"]["known"]["version"]).collect();
    assert_eq!(versions, [OTHER_ETCD.0; 3]);
    Lab::down().unwrap();
}

#[test]
#[ignore = "builds a third Kubernetes version, and upgrades: 20 minutes"]
fn a_minor_version_is_upgraded() {
    let _alone = machines();
    let before: Version = MINOR_BEFORE.parse().unwrap();
    let spec =
        Spec { version: before, upgrades_to: vec![TO.parse().unwrap()], workers: 1, audit: true, ..Spec::default() };
    let (_stage, upgraded) = upgraded(spec, |_| ());
    upgraded.nobody_noticed();
    Lab::down().unwrap();
}
