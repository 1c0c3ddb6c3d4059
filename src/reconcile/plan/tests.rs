use super::*;
use quorum_safety::lock::{Proof, Record, Stage, Step, Wait};
use quorum_safety::{UnixSeconds, fixture};

const UPGRADE: &str = "upgrade-v1.36.3";

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn ago(minutes: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() - 60 * minutes).unwrap()
}

fn nodes(change: impl Fn(&mut NodeView)) -> Vec<NodeView> {
    let mut nodes = fixture::healthy(3).seen.nodes.known().unwrap().clone();
    nodes.iter_mut().for_each(change);
    nodes
}

fn cordoned(name: &'static str, operation: &'static str) -> Vec<NodeView> {
    nodes(|node| {
        if node.name.0 == name {
            node.cordon = Cordon::Ours(operation.to_owned());
        }
    })
}

fn record(operation: &str, target: &str, step: Step) -> Record {
    Record {
        identity: format!("{operation}/{target}/1"),
        operation: operation.to_owned(),
        target: target.into(),
        actor: "step control-plane".to_owned(),
        pod: None,
        node: "k1".into(),
        boot_id: "b".to_owned(),
        step,
        since: UnixSeconds(0),
        step_since: UnixSeconds(0),
    }
}

fn held(record: Record, release: Option<Release>, life: Life) -> LeaseLook {
    LeaseLook {
        name: "control-plane-disruption".to_owned(),
        view: LeaseView::Held {
            version: "1".to_owned(),
            identity: record.identity.clone(),
            record: Fact::Known(record),
            release: Fact::Known(release),
        },
        life,
        abandoned: None,
    }
}

fn half_done(step: &str, life: Life) -> LeaseLook {
    held(record(UPGRADE, "k2", Step::touching(step)), None, life)
}

fn gone() -> Life {
    Life::Gone(Proof::PodEnded)
}

fn job(state: JobState, attempt: Option<u32>) -> StepJob {
    StepJob {
        name: "quorate-control-plane-v1-36-3-0123abcd".to_owned(),
        operation: UPGRADE.to_owned(),
        target: Some("k2".into()),
        attempt,
        state,
    }
}

fn finishes(acts: &[Act]) -> Vec<(&str, u32)> {
    acts.iter()
        .filter_map(|act| match act {
            Act::Finish(finish) => Some((finish.node.0.as_str(), finish.attempt)),
            Act::Free { .. } | Act::Leave(_) | Act::Hand(..) => None,
        })
        .collect()
}

fn left(acts: &[Act]) -> &str {
    match acts {
        [Act::Leave(why)] => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_half_done_is_nothing_to_do() {
    let free = LeaseLook {
        name: "control-plane-disruption".to_owned(),
        view: LeaseView::Free { version: "1".to_owned() },
        life: Life::Nobody,
        abandoned: None,
    };
    assert_eq!(decide(&[free], &nodes(|_| {}), &[], now()), []);
    // An administrator's cordon is theirs.
    assert_eq!(decide(&[], &nodes(|node| node.cordon = Cordon::Foreign), &[], now()), []);
}

#[test]
fn what_a_dead_holder_left_is_finished_once_and_a_living_one_is_left_alone() {
    let unproven = Life::Unproven(vec![Wait::DeadlineNotPassed]);
    for (life, jobs, finished) in [
        (gone(), vec![], true),
        (unproven.clone(), vec![], true),
        (Life::Alive, vec![], false),
        (gone(), vec![job(JobState::Going, None)], false),
        (gone(), vec![job(JobState::Ended(Some(ago(1))), None)], true),
        // A silent node says nothing of the step that runs there: its Job is not taken away.
        (unproven, vec![job(JobState::Stranded("its node k1 has not been heard of".to_owned()), None)], false),
    ] {
        let acts = decide(&[half_done("drain", life.clone())], &nodes(|_| {}), &jobs, now());
        let expected: &[(&str, u32)] = if finished { &[("k2", 1)] } else { &[] };
        assert_eq!(finishes(&acts), expected, "{life:?} {jobs:?}: {acts:?}");
        assert_eq!(acts.len(), 1);
    }
}

#[test]
fn another_upgrades_step_is_no_reason_to_wait() {
    let mut other = job(JobState::Going, None);
    other.operation = "upgrade-v1.36.2".to_owned();
    assert_eq!(finishes(&decide(&[half_done("drain", gone())], &nodes(|_| {}), &[other], now())), [("k2", 1)]);
}

#[test]
fn a_cordon_whose_lease_is_gone_is_found_and_one_that_a_lease_covers_is_not_told_twice() {
    let acts = decide(&[], &cordoned("k3", UPGRADE), &[], now());
    assert_eq!(finishes(&acts), [("k3", 1)]);
    let acts = decide(&[half_done("drain", gone())], &cordoned("k2", UPGRADE), &[], now());
    assert_eq!((finishes(&acts), acts.len()), (vec![("k2", 1)], 1));
    // Two nodes: one after the other.
    let acts = decide(&[half_done("drain", gone())], &cordoned("k3", UPGRADE), &[], now());
    assert_eq!((finishes(&acts), acts.len()), (vec![("k2", 1)], 2));
}

#[test]
fn a_lease_under_which_nothing_was_changed_is_given_back() {
    let untouched = record(UPGRADE, "k2", Step::acquired());
    let acts = decide(&[held(untouched.clone(), None, gone())], &nodes(|_| {}), &[], now());
    assert_eq!(
        acts,
        [Act::Free {
            lease: "control-plane-disruption".to_owned(),
            operation: UPGRADE.to_owned(),
            target: "k2".into()
        }]
    );
    assert!(left(&decide(&[held(untouched, None, Life::Alive)], &nodes(|_| {}), &[], now())).contains("goes on"));
}

#[test]
fn a_release_by_hand_is_left_to_the_hand_for_half_an_hour() {
    let release = |minutes| Release {
        identity: format!("{UPGRADE}/k2/1"),
        because: "I look at it myself".to_owned(),
        by: "me".to_owned(),
        at: UnixSeconds(ago(minutes).as_second()),
        stage: Stage::Told,
    };
    let look = |minutes| held(record(UPGRADE, "k2", Step::touching("drain")), Some(release(minutes)), gone());
    assert!(left(&decide(&[look(1)], &nodes(|_| {}), &[], now())).contains("I look at it myself"));
    assert_eq!(finishes(&decide(&[look(31)], &nodes(|_| {}), &[], now())), [("k2", 1)]);
}

#[test]
fn what_was_given_up_by_hand_is_left_to_the_hand_for_half_an_hour_too() {
    let free = |minutes, target: &str| LeaseLook {
        name: "control-plane-disruption".to_owned(),
        view: LeaseView::Free { version: "1".to_owned() },
        life: Life::Nobody,
        abandoned: Some(Release {
            identity: format!("{UPGRADE}/{target}/1"),
            because: "I mend it myself".to_owned(),
            by: "me".to_owned(),
            at: UnixSeconds(ago(minutes).as_second()),
            stage: Stage::Abandoned,
        }),
    };
    let nodes = cordoned("k2", UPGRADE);
    assert!(left(&decide(&[free(1, "k2")], &nodes, &[], now())).contains("I mend it myself"));
    assert_eq!(finishes(&decide(&[free(31, "k2")], &nodes, &[], now())), [("k2", 1)]);
    assert_eq!(finishes(&decide(&[free(1, "k3")], &nodes, &[], now())), [("k2", 1)]);
}

#[test]
fn a_lease_that_says_nothing_was_changed_is_not_believed_of_a_node_that_is_cordoned() {
    let untouched = held(record(UPGRADE, "k2", Step::acquired()), None, gone());
    assert_eq!(finishes(&decide(&[untouched], &cordoned("k2", UPGRADE), &[], now())), [("k2", 1)]);
}

#[test]
fn a_preflight_made_by_plain_kubectl_counts_as_running() {
    let mut preflight = job(JobState::Going, None);
    (preflight.operation, preflight.target) = ("step".to_owned(), None);
    assert!(left(&decide(&[half_done("drain", gone())], &nodes(|_| {}), &[preflight], now())).contains("goes on"));
}

#[test]
fn attempts_that_do_not_end_it_are_further_and_further_apart() {
    // The number of the attempt that ended, minutes since, and the attempt that is made.
    for (number, minutes, made) in [
        (1, 5, None),
        (1, 9, Some(2)),
        (2, 15, None),
        (2, 19, Some(3)),
        (5, 158, None),
        (5, 159, Some(6)),
        (9, 200, None),
        (9, 239, Some(10)),
        (400, 239, Some(401)),
        (9, 481, Some(1)),
    ] {
        let jobs = [job(JobState::Ended(Some(ago(minutes))), Some(number))];
        let acts = decide(&[half_done("node-step", gone())], &nodes(|_| {}), &jobs, now());
        assert_eq!(
            finishes(&acts),
            made.map(|made| ("k2", made)).into_iter().collect::<Vec<_>>(),
            "{number} {minutes}"
        );
    }
}

#[test]
fn what_cannot_be_understood_or_finished_asks_for_a_hand() {
    let mut unreadable = half_done("drain", gone());
    if let LeaseView::Held { record, .. } = &mut unreadable.view {
        *record = Fact::Unknown("unknown field `later`".to_owned());
    }
    let defrag = held(record("etcd-defrag", "k2", Step::touching("defragment")), None, gone());
    let nowhere = held(record(UPGRADE, "k9", Step::touching("drain")), None, gone());
    for (look, said) in [(unreadable, "unknown field `later`"), (defrag, "etcd-defrag on k2"), (nowhere, "k9")] {
        let acts = decide(&[look], &nodes(|_| {}), &[], now());
        assert!(
            matches!(acts.as_slice(), [Act::Hand(About::Lease(lease), what)]
            if lease == "control-plane-disruption" && what.contains(said)),
            "{acts:?}"
        );
    }
    let acts = decide(&[], &cordoned("k2", "etcd-defrag"), &[], now());
    assert!(matches!(acts.as_slice(), [Act::Hand(About::Node(node), _)] if node.0 == "k2"), "{acts:?}");
}

#[test]
fn a_change_of_members_is_gone_on_with_by_a_hand_that_is_told_how() {
    let looks = [held(record("members-replace-a2", "k2", Step::touching("add")), None, gone())];
    let acts = decide(&looks, &nodes(|_| {}), &[], now());
    let [Act::Hand(About::Lease(_), what)] = acts.as_slice() else { panic!("{acts:?}") };
    assert!(what.ends_with("gone on with by `quorate etcd members replace a2 --node=k2`"), "{what}");
}

#[test]
fn a_defragmentation_is_gone_on_with_by_a_hand_that_is_told_how() {
    let looks = [held(record("defrag-a2", "k2", Step::touching("defragment")), None, gone())];
    let acts = decide(&looks, &nodes(|_| {}), &[], now());
    let [Act::Hand(About::Lease(_), what)] = acts.as_slice() else { panic!("{acts:?}") };
    assert!(what.ends_with("gone on with by `quorate etcd defrag`"), "{what}");
}

#[test]
fn steps_are_told_from_other_jobs_and_attempts_from_steps_of_a_chain() {
    let made = |args: &[&str]| -> Job {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "j", "labels": {"quorate.dev/operation": UPGRADE}, "annotations": {"quorate.dev/target": "k2"}},
            "spec": {"template": {"spec": {"containers": [{"name": "quorate", "args": args}]}}},
        }))
        .unwrap()
    };
    let attempt = |args: &[&str]| StepJob::of(&made(args), JobState::Going).map(|job| job.attempt);
    assert_eq!(attempt(&["step", "control-plane", "--to=v1.36.3", "--node=k2"]), Some(None));
    let ours = ["step", "control-plane", "--to=v1.36.3", "--node=k2", "--finish-only", "--attempt=3"];
    assert_eq!(attempt(&ours), Some(Some(3)));
    assert_eq!(attempt(&["node", "upgrade"]), None);
    assert_eq!(attempt(&["gate", "--in-job"]), None);
}

/// A sentinel that is silent, with its gate possibly open: nobody but its own node's ends that, and no other node is begun with.
#[test]
fn a_reboot_that_is_under_way_is_left_to_its_own_node() {
    let open = || record("reboot", "k2", Step::touching("open in boot 2f0c9c1a"));
    let silent = Life::Unproven(vec![Wait::DeadlineNotPassed]);
    let decided = decide(&[held(open(), None, silent.clone())], &nodes(|_| {}), &[], now());
    assert!(matches!(&*decided, [Act::Leave(why)] if why.contains("its own sentinel")), "{decided:?}");
    let decided = decide(&[held(open(), None, Life::Alive)], &nodes(|_| {}), &[], now());
    assert!(matches!(&*decided, [Act::Leave(why)] if why.contains("goes on")), "{decided:?}");
    let gone =
        decide(&[held(record("reboot", "k9", Step::touching("recover")), None, silent)], &nodes(|_| {}), &[], now());
    assert!(matches!(&*gone, [Act::Hand(..)]), "{gone:?}");
}
