//! Where a fault can strike: everything that is announced in the Lease, every sub-step on the host, and every step of the chain while it
//! holds no Lease. The lists are the program's own, so what is added is struck, too.

use lab::Machine;
use quorate::cli::step::StepCommand;
use quorate::node::Step;
use quorate::upgrade::sub_step::SubStep;
use serde_json::Value;
use std::fmt;

/// A moment in the work on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boundary {
    /// The step has announced this in the Lease.
    Lease(SubStep),
    /// The unit on the host has come to this.
    Host(Step),
    /// This step's process runs, and nobody holds a Lease: before it has one, or when it has given it back.
    Chain(&'static str),
}

impl Boundary {
    /// All of them, in the order in which a node goes through them.
    pub(super) fn all() -> Vec<Self> {
        let on_host = || Step::ALL.into_iter().map(Self::Host);
        SubStep::ALL
            .into_iter()
            .flat_map(|step| {
                let inside = (step == SubStep::NodeStep).then(on_host);
                std::iter::once(Self::Lease(step)).chain(inside.into_iter().flatten())
            })
            .chain(StepCommand::NAMES.into_iter().map(Self::Chain))
            .collect()
    }

    /// The machine of these on which a step of the chain runs.
    pub(super) fn runner<'m>(step: &str, machines: &'m [Machine]) -> Option<&'m Machine> {
        machines.iter().find(|machine| machine.runs_command(&["quorate", "step", step]).unwrap_or(false))
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|it| it.to_string() == name)
    }

    /// How many come before it.
    pub(super) fn position(self) -> usize {
        Self::all().into_iter().position(|it| it == self).expect("every boundary is in the list")
    }

    /// Whether it is not after a sub-step on the host.
    pub(super) fn until(self, step: Step) -> bool {
        self.position() <= Self::Host(step).position()
    }
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lease(step) => write!(f, "lease:{}", step.name()),
            Self::Host(step) => write!(f, "host:{step}"),
            Self::Chain(step) => write!(f, "chain:{step}"),
        }
    }
}

/// Who holds a Lease of ours, and how far he is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) lease: String,
    pub(super) target: String,
    /// The node that the step's pod runs on.
    pub(super) runner: String,
    pub(super) step: SubStep,
}

/// The holder of the first Lease in a list that has one.
pub(super) fn holder(leases: &Value) -> Option<Holder> {
    let one = |lease: &Value| {
        let record = super::super::record(lease)?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some(Holder {
            lease: text(&lease["metadata"]["name"])?,
            target: text(&record["target"])?,
            runner: text(&record["node"])?,
            step: SubStep::named(record["step"]["name"].as_str()?)?,
        })
    };
    super::super::items(leases).iter().find_map(one)
}

/// How far the unit on a host has come in its present run; none when it does not run, or the machine is off.
pub(super) fn on_host(machine: &Machine) -> Option<Step> {
    // Lines of an earlier run say nothing of this one. Some sub-steps last a few tenths of a second: two programs, no more.
    const LOOK: &str = "eval $(systemctl show --property=ActiveState,InvocationID quorate-node-step); \
        case $ActiveState in active | activating) ;; *) exit 0 ;; esac; \
        journalctl --quiet --no-pager --output=cat _SYSTEMD_INVOCATION_ID=$InvocationID";
    let said = machine.run(["sh", "-c", LOOK]).ok()?;
    last_step(&String::from_utf8_lossy(&said.stdout))
}

/// A unit on a host whose main process is stopped at a boundary: some sub-steps are over before a fault would have struck. It goes on when
/// this is dropped.
pub(super) struct AtBoundary {
    machine: Machine,
    process: String,
}

impl AtBoundary {
    /// Waits for the sub-step in the unit's present run, for some seconds; none when it did not come, or no unit runs.
    pub(super) fn wait(machine: &Machine, step: Step) -> Option<Self> {
        const HOLD: &str = r#"
            eval $(systemctl show --property=ActiveState,InvocationID,MainPID quorate-node-step)
            case $ActiveState in active | activating) ;; *) exit 0 ;; esac
            while read -r line; do
              case $line in "$1: begins" | "$1: skipped, "*) kill -STOP $MainPID && echo $MainPID; exit ;; esac
            done < <(timeout 5 journalctl --follow --lines=all --quiet --output=cat _SYSTEMD_INVOCATION_ID=$InvocationID 2>/dev/null)"#;
        let said = machine.run(["bash", "-c", HOLD, "bash", &step.to_string()]).ok()?;
        let process = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        (!process.is_empty()).then(|| Self { machine: machine.clone(), process })
    }
}

impl Drop for AtBoundary {
    fn drop(&mut self) {
        // The fault may have taken the machine away, and the process with it.
        if let Err(error) = self.machine.run(["kill", "-CONT", &self.process]) {
            println!("{}: process {} cannot be continued: {error:#}", self.machine.name(), self.process);
        }
    }
}

fn last_step(journal: &str) -> Option<Step> {
    let begun = |line: &str| {
        let (name, what) = line.split_once(": ")?;
        let comes = what == "begins" || what.starts_with("skipped, ");
        Step::ALL.into_iter().find(|step| comes && step.to_string() == name)
    };
    journal.lines().rev().find_map(begun)
}

#[test]
fn boundaries_are_those_of_the_program_in_their_order() {
    let all = Boundary::all();
    assert_eq!(all.len(), SubStep::ALL.len() + Step::ALL.len() + 4);
    let names: Vec<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!((names[0].as_str(), names.last().unwrap().as_str()), ("lease:acquired", "chain:postflight"));
    assert!(Boundary::Host(Step::Kubeadm).position() > Boundary::Lease(SubStep::NodeStep).position());
    assert!(Boundary::Host(Step::HandBack).position() < Boundary::Lease(SubStep::Recovery).position());
    assert!(all.iter().all(|it| Boundary::named(&it.to_string()) == Some(*it)));
}

#[test]
fn what_lease_and_journal_say_is_read() {
    let record = r#"{"target":"k2","node":"k1","step":{"name":"drain","touched":true}}"#;
    let leases = serde_json::json!({"items": [
        {"metadata": {"name": "etcd-snapshot"}},
        {"metadata": {"name": "control-plane-disruption", "annotations": {"quorate.dev/holder": record}}},
    ]});
    let held = holder(&leases).unwrap();
    assert_eq!((held.target.as_str(), held.runner.as_str(), held.step), ("k2", "k1", SubStep::Drain));
    let journal =
        "checks: begins\nchecks: done in 1 s\nhand-over: skipped, no apiserver here\n[upgrade] kubeadm: hello\n";
    assert_eq!(last_step(journal), Some(Step::HandOver));
    assert_eq!(last_step("Started quorate node step to v1.36.3.\n"), None);
}
