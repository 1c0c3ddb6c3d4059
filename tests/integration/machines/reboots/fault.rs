//! What goes wrong while kured works on a node: each fault strikes when kured has come to a step there, and waits; and is over before the
//! round goes on.

use super::fleet::Fleet;
use lab::Machine;
use lab::kured::Step;
use lab::prober::monitor::rule::{Hit, Part};
use std::fmt;
use std::time::Duration;

/// Longer than everything that a sentinel waits for: kured's period and the margin, a Lease, a rest.
const LONG: Duration = Duration::from_secs(120);
/// Until a sentinel has seen what is wrong and has ended what kured has begun.
const LIMIT: Duration = Duration::from_secs(300);
const BUDGET: &str = "
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: keeps-all, namespace: shop}
spec: {maxUnavailable: 0, selector: {matchLabels: {app: till}}}
";
/// The file system in memory gets as large as what is in it.
const FILL: &str = r#"
used=$(df --output=used -k /run | tail -n 1)
mount -o remount,size=$((used + 64))k /run
dd if=/dev/zero of=/run/lab-fill bs=4k 2>/dev/null || true"#;
const EMPTY: &str = "mount -o remount,size=20% /run; rm -f /run/lab-fill";

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// SIGKILL of the node's sentinel.
    SentinelKilled,
    /// kured stands still for longer than everything.
    KuredStandsStill,
    /// The power is cut, and comes back at once.
    PowerCut,
    /// The power is cut, and the node does not come back while it may be waited for.
    StaysAway,
    /// The node reaches no apiserver but its own.
    ApiCut,
    /// The etcd member of another node stands still.
    MemberPaused,
    /// Somebody else takes kured's lock.
    ForeignHolder,
    /// The sentinels cannot write to the host any more.
    ReadOnly,
    /// The file system of the gate is full.
    FullRun,
    /// A budget allows no eviction: kured gives its drain up.
    DrainAborted,
}

impl Fault {
    /// All of them.
    pub(super) const ALL: [Self; 10] = [
        Self::SentinelKilled,
        Self::KuredStandsStill,
        Self::PowerCut,
        Self::StaysAway,
        Self::ApiCut,
        Self::MemberPaused,
        Self::ForeignHolder,
        Self::ReadOnly,
        Self::FullRun,
        Self::DrainAborted,
    ];

    /// The steps at which it strikes.
    pub(super) const fn steps(self) -> &'static [Step] {
        match self {
            Self::SentinelKilled | Self::KuredStandsStill | Self::ApiCut | Self::MemberPaused => &[
                Step::Seen,
                Step::Locked,
                Step::Cordoned,
                Step::Drained,
                Step::Rebooting,
                Step::Back,
                Step::Uncordoned,
            ],
            Self::PowerCut => &[Step::Seen, Step::Locked, Step::Cordoned, Step::Drained, Step::Rebooting, Step::Back],
            Self::StaysAway => &[Step::Seen, Step::Locked, Step::Drained, Step::Rebooting],
            Self::ForeignHolder | Self::ReadOnly => &[Step::Seen],
            Self::FullRun => &[Step::Seen, Step::Locked],
            Self::DrainAborted => &[Step::Locked],
        }
    }

    /// Lets it strike a node on which kured waits at that step, and ends it. kured goes on, on all nodes. Gives what it has taken away.
    pub(super) fn strike(self, fleet: &Fleet, target: &Machine, at: Step, now_ms: impl Fn() -> u64) -> Vec<Hit> {
        let from_ms = now_ms();
        let hit = |machine: &Machine| Hit {
            one_of: vec![machine.name()],
            part: Part::Voter,
            from_ms,
            healed_ms: Some(now_ms()),
        };
        let kured = fleet.kureds_pod(target);
        let gives_up = || gives_up(fleet, target, kured.as_deref());
        match self {
            Self::SentinelKilled => {
                target.kill_command(&["quorate", "sentinel", "run"]).unwrap();
                if on_the_way(at) {
                    gives_up();
                }
                fleet.let_go(target);
            }
            Self::KuredStandsStill => {
                std::thread::sleep(LONG);
                fleet.let_go(target);
            }
            Self::PowerCut | Self::StaysAway => {
                target.crash().unwrap();
                if self == Self::StaysAway {
                    std::thread::sleep(LONG);
                }
                target.start().unwrap();
                fleet.let_go(target);
                return vec![hit(target)];
            }
            Self::ApiCut => {
                target.lose_to_others(6443).unwrap();
                std::thread::sleep(LONG);
                target.lose_nothing().unwrap();
                fleet.let_go(target);
            }
            Self::MemberPaused => {
                let other = fleet.control_plane().into_iter().find(|it| it.name() != target.name()).unwrap();
                other.pause("etcd").unwrap();
                // A worker's sentinel sees it by the apiserver that loses its own member.
                if on_the_way(at) {
                    gives_up();
                } else {
                    std::thread::sleep(LONG / 4);
                }
                fleet.let_go(target);
                other.resume("etcd").unwrap();
                return vec![hit(&other)];
            }
            Self::ForeignHolder => {
                fleet.lock(Some("an-administrator"));
                gives_up();
                fleet.lock(None);
                fleet.let_go(target);
            }
            Self::ReadOnly => {
                fleet.read_only(target);
                gives_up();
                fleet.writable();
                fleet.let_go(target);
            }
            Self::FullRun => {
                target.run_checked(["sh", "-ec", FILL]).unwrap();
                fleet.within(LIMIT, "the gate to be closed on a full /run", || fleet.is_closed(target));
                target.run_checked(["sh", "-ec", EMPTY]).unwrap();
                fleet.let_go(target);
            }
            Self::DrainAborted => {
                fleet.stage.apply(BUDGET);
                // Where kured has released its lock and has not uncordoned yet.
                fleet.hold(target, Step::Freed);
                fleet.within(LIMIT, "kured to give its drain up", || {
                    if fleet.steps(target).last() == Some(&Step::Freed) { Ok(()) } else { Err("it drains".to_owned()) }
                });
                fleet.within(LIMIT, "the gate to be closed", || fleet.is_closed(target));
                fleet.let_go(target);
                fleet.stage.kubectl(["-n", "shop", "delete", "pdb", "keeps-all"]);
            }
        }
        Vec::new()
    }
}

/// kured has not rebooted yet.
fn on_the_way(at: Step) -> bool {
    at <= Step::Rebooting
}

/// Waits until the sentinel has closed the gate and has ended the process of kured that has seen it open.
fn gives_up(fleet: &Fleet, target: &Machine, kured: Option<&str>) {
    fleet.within(LIMIT, "the gate to be closed", || fleet.is_closed(target));
    fleet.within(LIMIT, "kured's process to be ended", || {
        let now = fleet.kureds_pod(target).ok_or("it has no pod, or the API does not answer")?;
        if Some(now.as_str()) == kured { Err("it runs".to_owned()) } else { Ok(()) }
    });
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
