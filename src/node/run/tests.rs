use super::*;
use crate::cli::node::{Mode, Role};
use crate::node::packages::PackageManager;

fn order(to: &str, role: Option<Role>) -> Upgrade {
    Upgrade { role, ..Upgrade::bare(to, Mode::Node) }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Whether a report says `untouched` after a run on a bare host that cannot but be refused: no node is ever at v1.0.0, and without
/// static pods it is no control plane node.
fn refused_on(root: &Path) -> Report {
    let order = order("v1.0.0", Some(Role::ControlPlane));
    let host = Host::at(root.to_owned(), PackageManager::Apt);
    let mut work = Work::new(&order, Clock::system(), host, Mark::new(root, order.to));
    wait(work.all());
    // Without systemd not even the look succeeds.
    assert!(matches!(work.report.outcome, Outcome::Refused | Outcome::Unknown), "{:?}", work.report);
    assert_eq!(work.report.failed_step, Some(Step::Checks));
    work.report
}

#[test]
fn a_refusal_says_untouched_unless_an_earlier_run_has_begun() {
    let root = tempfile::tempdir().unwrap();
    assert!(refused_on(root.path()).untouched);
    let mark = Mark::new(root.path(), "v1.0.0".parse().unwrap());
    assert!(!mark.names_target(), "a refusal leaves no mark");
    // A pod died and its unit ended midway: the next pod's unit is refused, and the node is not what it was.
    mark.begin().unwrap();
    assert!(!refused_on(root.path()).untouched);
    // That run was finished, and nobody heard of it.
    mark.done().unwrap();
    assert!(!refused_on(root.path()).untouched);
    // A run to another target is another matter.
    Mark::new(root.path(), "v1.36.3".parse().unwrap()).begin().unwrap();
    assert!(refused_on(root.path()).untouched);
}

#[test]
fn what_failed_after_the_first_touch_is_midway_and_never_untouched() {
    // (changed, what failed, outcome, untouched)
    let table = [
        (false, Outcome::Refused, Outcome::Refused, true),
        (false, Outcome::Unknown, Outcome::Unknown, true),
        (false, Outcome::Midway, Outcome::Unknown, true),
        (true, Outcome::Refused, Outcome::Midway, false),
        (true, Outcome::Unknown, Outcome::Midway, false),
        (true, Outcome::Midway, Outcome::Midway, false),
    ];
    for (changed, failure, outcome, untouched) in table {
        let root = tempfile::tempdir().unwrap();
        let order = order("v1.36.3", None);
        let host = Host::at(root.path().to_owned(), PackageManager::Apt);
        let mark = Mark::new(root.path(), order.to);
        let mut work = Work::new(&order, Clock::system(), host, mark.clone());
        if changed {
            work.touch().unwrap();
        }
        assert_eq!(mark.unfinished(), changed, "the host knows it before it is changed");
        work.failed(Step::Repository, Failure { outcome: failure, message: String::new(), last: Vec::new() });
        assert_eq!((work.report.outcome, work.report.untouched), (outcome, untouched), "{changed} {failure:?}");
    }
}

#[test]
fn a_host_that_cannot_be_marked_is_not_touched() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("var"), "").unwrap();
    let order = order("v1.36.3", None);
    let host = Host::at(root.path().to_owned(), PackageManager::Apt);
    let mut work = Work::new(&order, Clock::system(), host, Mark::new(root.path(), order.to));
    assert!(work.touch().is_err());
    assert!(!work.changed);
}

#[test]
fn an_order_is_not_begun_from_its_time_on() {
    let root = tempfile::tempdir().unwrap();
    let mark = Mark::new(root.path(), "v1.36.3".parse().unwrap());
    let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
    let late = |start_before| Upgrade { start_before, ..order("v1.36.3", None) };
    for start_before in [None, Some(1_800_000_001), Some(i64::MAX)] {
        assert_eq!(too_late(&late(start_before), now, &mark), None, "{start_before:?}");
    }
    for start_before in [1_800_000_000, 1_799_999_990, 0, i64::MIN] {
        let report = too_late(&late(Some(start_before)), now, &mark).unwrap();
        assert_eq!(report.outcome, Outcome::Refused);
        assert!(report.message.as_ref().unwrap().contains("nothing was started"), "{report:?}");
        assert!(report.untouched && !report.done && report.steps.is_empty());
    }
    // An earlier pod's unit has changed the node, and perhaps finished it: not the same as before.
    for set in [Mark::begin, Mark::done] {
        set(&mark).unwrap();
        let report = too_late(&late(Some(0)), now, &mark).unwrap();
        assert!(!report.untouched && report.late);
    }
}

#[test]
fn what_kubeadm_lost_is_put_back_and_the_host_counts_as_changed() {
    let root = tempfile::tempdir().unwrap();
    let order = order("v1.36.3", Some(Role::ControlPlane));
    let host = Host::at(root.path().to_owned(), PackageManager::Apt);
    let manifest = root.path().join("etc/kubernetes/manifests/kube-scheduler.yaml");
    std::fs::create_dir_all(manifest.parent().unwrap()).unwrap();
    let pod = "metadata: {name: kube-scheduler}\nspec: {containers: [{name: a, image: 'x/kube-scheduler:v1.36.1'}]}\n";
    std::fs::write(&manifest, pod).unwrap();
    host.keep_manifests(true).unwrap();
    let mut work = Work::new(&order, Clock::system(), host, Mark::new(root.path(), order.to));
    work.put_back().unwrap();
    assert!(!work.changed);
    std::fs::remove_file(&manifest).unwrap();
    work.put_back().unwrap();
    assert!(manifest.exists() && work.changed);
}
