use super::*;
use crate::node::manifests;

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

fn order(mode: Mode) -> Upgrade {
    Upgrade {
        peers: vec!["10.10.0.12".parse().unwrap()],
        etcd_image_tag: Some("default".to_owned()),
        timeout: std::time::Duration::from_secs(1800),
        ..Upgrade::bare("v1.36.3", mode)
    }
}

/// A node at a version; `tag` of its static pods, none for a worker.
fn state(packages: &str, running: &str, tag: Option<&str>) -> State {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join(manifests::FOLDER);
    std::fs::create_dir_all(&folder).unwrap();
    for name in manifests::COMPONENTS.into_iter().filter(|_| tag.is_some()) {
        let tag = if name == "etcd" { "3.6.8-0" } else { tag.unwrap() };
        let text = format!(
            "metadata: {{name: {name}}}\nspec: {{containers: [{{name: {name}, image: 'registry.k8s.io/{name}:{tag}'}}]}}\n"
        );
        std::fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
    }
    State {
        packages: ["kubeadm", "kubectl", "kubelet"].map(|name| (name.to_owned(), version(packages))).into(),
        held: ["kubeadm", "kubectl", "kubelet"].map(str::to_owned).into(),
        running_kubelet: Some(version(running)),
        manifests: manifests::read(root.path()).unwrap(),
        etcd_tag: Some("3.6.8-0".to_owned()),
        ..State::default()
    }
}

fn todo(state: &State, order: &Upgrade) -> Vec<Step> {
    Step::ALL.into_iter().filter(|step| need(*step, state, order) == Need::Do).collect()
}

#[test]
fn a_control_plane_node_goes_through_all_of_it() {
    let mut node = state("v1.36.1", "v1.36.1", Some("v1.36.1"));
    node.scratch = 2;
    node.held.clear();
    let all_but = |left_out: &[Step]| Step::ALL.into_iter().filter(|step| !left_out.contains(step)).collect::<Vec<_>>();
    let begins = [Step::PutBack, Step::Empty, Step::EtcdCertificates, Step::HandBack];
    assert_eq!(todo(&node, &order(Mode::Apply)), all_but(&begins));
    node.torn = vec!["kube-scheduler"];
    node.handed_over = true;
    assert_eq!(todo(&node, &order(Mode::Apply)), all_but(&[Step::EtcdCertificates]));
    // kubeadm is kept from etcd: nothing hangs, and what kubeadm would have renewed is renewed.
    (node.etcd_stays, node.etcd_outlived) = (true, vec!["etcd-server"]);
    assert_eq!(todo(&node, &order(Mode::Apply)), all_but(&[Step::Empty]));
}

/// Killed between the restart of the kubelet and the end of what that does.
#[test]
fn a_run_that_finds_static_pods_about_to_be_replaced_hands_over_and_empties_nothing() {
    let mut node = state("v1.36.3", "v1.36.3", Some("v1.36.3"));
    assert_eq!(todo(&node, &order(Mode::Node)), [Step::Recovery]);
    node.unsettled = true;
    assert_eq!(todo(&node, &order(Mode::Node)), [Step::HandOver, Step::Recovery]);
    node.handed_over = true;
    assert_eq!(todo(&node, &order(Mode::Node)), [Step::HandOver, Step::Recovery, Step::HandBack]);
    // Killed inside kubeadm, which restarts etcd still: its apiserver must have no clients then, whatever the kubelet does.
    let mut node = state("v1.36.1", "v1.36.1", Some("v1.36.1"));
    (node.unsettled, node.handed_over) = (true, true);
    assert!(todo(&node, &order(Mode::Node)).contains(&Step::Empty));
}

#[test]
fn certificates_of_a_node_on_target_are_left_alone() {
    let mut node = state("v1.36.3", "v1.36.3", Some("v1.36.3"));
    node.etcd_outlived = vec!["etcd-server"];
    assert_eq!(todo(&node, &order(Mode::Node)), [Step::Recovery]);
    // Killed after kubeadm and before its certificates: the kubelet's package comes after both.
    node.packages.insert("kubelet".to_owned(), version("v1.36.1"));
    assert!(todo(&node, &order(Mode::Node)).contains(&Step::EtcdCertificates));
    // Somebody has upgraded the kubelet by hand, and kubeadm is kept from etcd by this very run.
    let mut node = state("v1.36.3", "v1.36.3", Some("v1.36.1"));
    (node.etcd_stays, node.etcd_outlived) = (true, vec!["etcd-server"]);
    assert!(todo(&node, &order(Mode::Node)).contains(&Step::EtcdCertificates));
}

#[test]
fn a_worker_has_nothing_to_hand_over() {
    let steps = todo(&state("v1.36.1", "v1.36.1", None), &order(Mode::Node));
    assert!(steps.contains(&Step::Kubeadm) && !steps.contains(&Step::HandOver), "{steps:?}");
}

#[test]
fn r14_a_half_done_node_goes_on_where_it_stopped() {
    let done = Step::Recovery;
    // Killed after kubeadm's package: everything from kubeadm on.
    let mut node = state("v1.36.1", "v1.36.1", Some("v1.36.1"));
    node.packages.insert("kubeadm".to_owned(), version("v1.36.3"));
    let steps = todo(&node, &order(Mode::Node));
    assert!(!steps.contains(&Step::KubeadmPackage) && steps.contains(&Step::Kubeadm), "{steps:?}");
    // Killed when the static pods were swapped, kubeadm's later phases unknown: kubeadm again, it is idempotent.
    let mut node = state("v1.36.1", "v1.36.1", Some("v1.36.3"));
    node.packages.insert("kubeadm".to_owned(), version("v1.36.3"));
    assert!(todo(&node, &order(Mode::Node)).contains(&Step::Kubeadm));
    // Killed before kubelet's restart: that and the proof.
    let node = state("v1.36.3", "v1.36.1", Some("v1.36.3"));
    assert_eq!(todo(&node, &order(Mode::Node)), [Step::RestartKubelet, done]);
    // Killed before the packages were held.
    let mut node = state("v1.36.3", "v1.36.3", Some("v1.36.3"));
    node.held.clear();
    assert_eq!(todo(&node, &order(Mode::Node)), [Step::Hold, done]);
}

#[test]
fn a_kubelet_of_another_minor_version_is_restarted_under_a_hand_over_with_an_empty_apiserver() {
    // Killed after kubeadm, before the kubelet's restart: that one takes all static pods away, etcd too.
    let mut node = state("v1.36.3", "v1.35.4", Some("v1.36.3"));
    assert_eq!(todo(&node, &order(Mode::Node))[..2], [Step::HandOver, Step::RestartKubelet]);
    node.handed_over = true;
    assert!(todo(&node, &order(Mode::Node)).contains(&Step::Empty));
    // It cannot start an apiserver again while it does not run.
    node.running_kubelet = None;
    assert!(!todo(&node, &order(Mode::Node)).contains(&Step::Empty));
    node.handed_over = false;
    assert_eq!(todo(&node, &order(Mode::Node))[..2], [Step::HandOver, Step::RestartKubelet]);
    // Killed before the kubelet's package: kubeadm, which would restart the apiserver, finds nothing to write.
    let mut node = state("v1.35.4", "v1.35.4", Some("v1.36.3"));
    (node.handed_over, node.etcd_stays) = (true, true);
    assert!(todo(&node, &order(Mode::Node)).contains(&Step::Empty));
}

#[test]
fn a_node_on_target_is_only_looked_at() {
    for tag in [None, Some("v1.36.3")] {
        assert_eq!(todo(&state("v1.36.3", "v1.36.3", tag), &order(Mode::Node)), [Step::Recovery]);
    }
}

#[test]
fn packages_alone_do_not_make_a_node_done() {
    // The kubelet alone is never "on target": an administrator may have upgraded the packages by hand.
    let node = state("v1.36.3", "v1.36.3", Some("v1.36.1"));
    assert!(todo(&node, &order(Mode::Node)).contains(&Step::Kubeadm));
    let mut node = state("v1.36.3", "v1.36.3", Some("v1.36.3"));
    node.etcd_tag = Some("3.7.2-0".to_owned());
    assert!(todo(&node, &order(Mode::Node)).contains(&Step::Kubeadm));
}

#[test]
fn a_worker_without_kubectl_does_not_get_one() {
    let mut node = state("v1.36.1", "v1.36.1", None);
    node.packages.remove("kubectl");
    assert_eq!(node.kubelet_packages_behind(version("v1.36.3")), ["kubelet"]);
}

#[test]
fn what_cannot_work_is_said_before_anything_is_touched() {
    let mut wrong = order(Mode::Apply);
    wrong.role = Some(Role::ControlPlane);
    let worker = state("v1.36.1", "v1.36.1", None);
    assert_eq!(objections(&worker, &wrong).len(), 2);
    wrong.role = Some(Role::Worker);
    assert_eq!(objections(&state("v1.36.1", "v1.36.1", Some("v1.36.1")), &wrong).len(), 1);

    let mut newer = state("v1.36.1", "v1.36.1", Some("v1.36.1"));
    newer.packages.insert("kubelet".to_owned(), version("v1.37.0"));
    assert!(objections(&newer, &order(Mode::Node))[0].contains("kubelet v1.37.0 is newer"));

    let mut bare = state("v1.36.1", "v1.36.1", None);
    bare.packages.clear();
    assert_eq!(objections(&bare, &order(Mode::Node)).len(), 2);
    assert!(objections(&state("v1.36.1", "v1.36.1", Some("v1.36.1")), &order(Mode::Node)).is_empty());
}

#[test]
fn names_are_the_same_in_json_and_text() {
    for step in Step::ALL {
        assert_eq!(serde_json::to_string(&step).unwrap(), format!("\"{step}\""));
    }
}

/// A node on whose packages a step to v1.36.3 was killed, after kubeadm had ended.
fn killed_in_packages(half_done: &str, state_: &'static str, torn: bool, tag: Option<&str>) -> State {
    let mut node = state("v1.36.1", "v1.36.1", tag);
    node.packages.insert("kubeadm".to_owned(), version("v1.36.3"));
    node.packages.remove(half_done);
    let at = if torn { "v1.36.1" } else { "v1.36.3" };
    node.half_done.insert(half_done.to_owned(), HalfDone { state: state_, version: Some(version(at)), torn });
    node
}

#[test]
fn r14_a_step_killed_inside_the_package_manager_is_resumed() {
    for tag in [None, Some("v1.36.3")] {
        for (word, torn) in [("half installed", true), ("unpacked", false), ("half configured", false)] {
            let node = killed_in_packages("kubelet", word, torn, tag);
            assert_eq!(objections(&node, &order(Mode::Node)), Vec::<String>::new(), "{word}");
            assert_eq!(
                todo(&node, &order(Mode::Node)),
                [Step::Checks, Step::Repository, Step::KubeletPackages, Step::RestartKubelet, Step::Recovery],
                "{word}: nothing restarts again, and a kubelet that cannot run is mended first"
            );
            assert_eq!(node.kubelet_packages_behind(version("v1.36.3")), ["kubelet", "kubectl"]);
        }
    }
    // kubectl is half done and the kubelet on target: no reason for kubeadm.
    let mut node = killed_in_packages("kubectl", "unpacked", false, Some("v1.36.3"));
    node.packages.insert("kubelet".to_owned(), version("v1.36.3"));
    assert_eq!(node.kubelet_packages_behind(version("v1.36.3")), ["kubectl"]);
    assert!(!todo(&node, &order(Mode::Node)).contains(&Step::Kubeadm));
    // kubeadm's own package: the first of them, so all of it is to come.
    let mut node = state("v1.36.1", "v1.36.1", Some("v1.36.1"));
    node.packages.remove("kubeadm");
    node.half_done.insert("kubeadm".to_owned(), HalfDone { state: "half installed", version: None, torn: true });
    assert!(objections(&node, &order(Mode::Apply)).is_empty());
    let steps = todo(&node, &order(Mode::Apply));
    assert!(steps.contains(&Step::KubeadmPackage) && steps.contains(&Step::Kubeadm), "{steps:?}");
}

#[test]
fn a_package_that_somebody_else_left_torn_is_refused_before_anything_is_touched() {
    let mut node = killed_in_packages("kubelet", "half installed", true, None);
    node.packages.insert("kubeadm".to_owned(), version("v1.36.1"));
    let said = objections(&node, &order(Mode::Node));
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("package kubelet is half installed"), "{said:?}");
    // Whole and not configured: apt does it on the way.
    node.half_done.get_mut("kubelet").unwrap().torn = false;
    assert!(objections(&node, &order(Mode::Node)).is_empty());
    // Static pods that are not there yet: kubeadm has work, whatever the kubelet's package says.
    let node = killed_in_packages("kubelet", "unpacked", false, Some("v1.36.1"));
    assert!(todo(&node, &order(Mode::Node)).contains(&Step::Kubeadm));
    // A half done package may be too new as well.
    let mut node = killed_in_packages("kubelet", "unpacked", false, None);
    node.half_done.get_mut("kubelet").unwrap().version = Some(version("v1.37.0"));
    assert!(objections(&node, &order(Mode::Node))[0].contains("kubelet v1.37.0 is newer"));
}

/// Whoever goes through all sub-steps, the step itself and the faults of the tests, goes through every one of them.
#[test]
fn the_list_of_sub_steps_is_whole() {
    use clap::ValueEnum as _;
    assert_eq!(Step::ALL, Step::value_variants());
    for step in Step::ALL {
        assert_eq!(step.to_possible_value().unwrap().get_name(), step.to_string());
    }
}
