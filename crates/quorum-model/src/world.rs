//! What there is: nodes, one Lease, kured's lock, and actors. Small on purpose: each field multiplies the states.

use crate::defect::Defect;
use crate::ends::Ends;

/// Ticks for which a holder may act after it sent its last write.
pub(crate) const LEASE: u8 = 3;
/// Ticks that an observer waits longer.
pub(crate) const MARGIN: u8 = 1;
/// Ticks that a request may take.
pub(crate) const REQUEST: u8 = 1;

/// What an actor wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Takes a node down in the way of an upgrade step.
    Upgrade,
    /// Takes a node down for a reboot.
    Reboot,
    /// Takes the member of a node out of service.
    Defragment,
}

/// One process that will ask for the Lease once: a pod of a Job. The next pod of the same operation is another actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Actor {
    /// What it wants.
    pub kind: Kind,
    /// On which node; nodes count from 0, and k1 is node 0.
    pub target: usize,
    /// The node that it runs on.
    pub runner: usize,
}

impl Actor {
    /// What makes two of them runs of the same operation: one may adopt what the other has begun.
    pub(crate) fn operation(&self) -> (Kind, usize) {
        (self.kind, self.target)
    }
}

/// How often each may happen in one history, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Processes that are killed.
    pub kills: u8,
    /// Processes that stop for a while.
    pub pauses: u8,
    /// Pods that are deleted by force, or given up by the node controller, while their processes live.
    pub deletions: u8,
    /// Machines that lose power.
    pub power_cuts: u8,
    /// Nodes that nobody reaches, and that reach nobody.
    pub partitions: u8,
    /// Writes that are done and not answered.
    pub lost_answers: u8,
    /// Cordons of an administrator.
    pub cordons: u8,
    /// Releases by hand.
    pub releases: u8,
    /// Reboots by kured.
    pub kured: u8,
    /// Ticks by which a clock falls behind.
    pub drifts: u8,
}

/// What is searched.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// How many voters there are.
    pub voters: usize,
    /// Who acts.
    pub actors: Vec<Actor>,
    /// What may happen.
    pub budget: Budget,
    /// Nodes without power at the beginning.
    pub dead: Vec<usize>,
    /// What is done wrong; nothing in earnest.
    pub defect: Option<Defect>,
    /// Whether it is tried from every state whether everything can be ended: takes most of the time.
    pub searches_ends: bool,
    /// What was found out about that already.
    pub ends: Ends,
}

impl Scenario {
    /// Whether one actor could take up what another has left.
    pub(crate) fn has_successor(&self) -> bool {
        self.operations().len() < self.actors.len()
    }

    /// One actor of each operation.
    pub(crate) fn operations(&self) -> Vec<Actor> {
        let mut first: Vec<Actor> = Vec::new();
        for actor in &self.actors {
            if !first.iter().any(|other| other.operation() == actor.operation()) {
                first.push(*actor);
            }
        }
        first
    }

    pub(crate) fn is(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cordon {
    None,
    Ours,
    Foreign,
}

/// The step of an operation on its target's host. It outlives the process that has begun it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Unit {
    None,
    /// It is at work, and the member still serves: nothing shows but on the host.
    Quiet,
    /// The member serves nobody.
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) powered: bool,
    pub(crate) boot: u8,
    pub(crate) cut: bool,
    /// Our step on the host.
    pub(crate) unit: Unit,
    /// kured reboots it.
    pub(crate) rebooting: bool,
    /// Its member runs and has not caught up.
    pub(crate) behind: bool,
    pub(crate) cordon: Cordon,
}

impl Node {
    /// Whether it counts as a voter.
    pub(crate) fn is_well(&self) -> bool {
        self.powered && !self.cut && self.unit != Unit::Down && !self.rebooting && !self.behind
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.powered && !self.cut
    }
}

/// How far a holder says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Acquired,
    Drain,
    AtWork,
}

/// Who the Lease names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Holder {
    pub(crate) actor: usize,
    pub(crate) boot: u8,
    pub(crate) step: Step,
    /// A hand has told it to stop; true inside once it is proven to have.
    pub(crate) released: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum KuredLock {
    Free,
    /// Ours, with the actor in it.
    Ours(usize),
    /// kured's own, for that node.
    Node(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pod {
    Running,
    /// The kubelet has seen its containers end.
    Ended,
    /// The node controller has given it up, and nobody has seen anything.
    GivenUp,
    Missing,
}

/// What was decided at the last look at the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Decided {
    /// Take it: it is free, or its holder is gone and has touched nothing.
    Take,
    /// Go on with what was half done, from this step.
    Adopt(Step),
    /// It is mine: an answer was lost.
    Mine,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Not begun.
    Idle,
    /// Knows what to do about the Lease.
    Decided(Decided),
    /// Holds the Lease.
    Holding,
    /// Holds kured's lock, too.
    Locked,
    /// May touch the target: permitted under the Lease.
    MayDrain,
    /// Has announced the drain, and cordons.
    Cordoning,
    /// Has cordoned.
    Drained,
    /// May take the node down: permitted again.
    MayStep,
    /// Has announced that.
    Announced,
    /// The request is out.
    Sent,
    /// It is over for this process: done, given up, or told to stop.
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Life {
    pub(crate) process: bool,
    pub(crate) paused: bool,
    pub(crate) pod: Pod,
    pub(crate) phase: Phase,
    /// Whether nobody wrote the Lease since it was read.
    pub(crate) fresh: bool,
    /// For how many ticks the Lease was seen unchanged.
    pub(crate) sighted: Option<u8>,
    /// Ticks until its own deadline; none when it does not hold the Lease.
    pub(crate) left: Option<u8>,
    /// Ticks in which its request may still have its effect.
    pub(crate) under_way: u8,
    /// Whether that request cordons; else it takes the target down.
    pub(crate) cordons: bool,
    /// Its clock fell behind since the deadline was set.
    pub(crate) drifted: bool,
    /// Voters that were not well at its last look, one bit each.
    pub(crate) saw_down: u8,
    /// Whether anything but the target was not as it should be then.
    pub(crate) saw_odd: bool,
    /// Whether what it does now was begun by another.
    pub(crate) adopted: bool,
}

impl Life {
    /// A process that has just begun.
    pub(crate) fn new() -> Self {
        Self {
            process: true,
            paused: false,
            pod: Pod::Running,
            phase: Phase::Idle,
            fresh: false,
            sighted: None,
            left: None,
            under_way: 0,
            cordons: false,
            drifted: false,
            saw_down: 0,
            saw_odd: false,
            adopted: false,
        }
    }
}

/// What must never be; once true it stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Wrong {
    pub(crate) two_down: bool,
    pub(crate) below_quorum: bool,
    pub(crate) not_whole: bool,
    pub(crate) given_back_unwell: bool,
    pub(crate) uncovered_cordon: bool,
}

/// One moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(crate) nodes: Vec<Node>,
    pub(crate) lease: Option<Holder>,
    pub(crate) kured: KuredLock,
    pub(crate) lives: Vec<Life>,
    /// For how many ticks the hand that may release has seen the Lease unchanged.
    pub(crate) hand: Option<u8>,
    pub(crate) left: Budget,
    pub(crate) wrong: Wrong,
    pub(crate) done: bool,
    pub(crate) adopted: bool,
}

// The budget is part of a state: two states that differ in it have different futures.
impl State {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let node = |at: usize| Node {
            powered: !scenario.dead.contains(&at),
            boot: 0,
            cut: false,
            unit: Unit::None,
            rebooting: false,
            behind: false,
            cordon: Cordon::None,
        };
        Self {
            nodes: (0..scenario.voters).map(node).collect(),
            lease: None,
            kured: KuredLock::Free,
            lives: vec![Life::new(); scenario.actors.len()],
            hand: None,
            left: scenario.budget,
            wrong: Wrong::default(),
            done: false,
            adopted: false,
        }
    }

    /// How many voters are well.
    pub(crate) fn well(&self) -> usize {
        self.nodes.iter().filter(|node| node.is_well()).count()
    }

    /// Whether etcd, and so the API, can be written and read.
    pub(crate) fn api(&self) -> bool {
        self.well() > self.nodes.len() / 2
    }

    /// Everybody's last look at the Lease is of before this write.
    pub(crate) fn lease_written(&mut self) {
        for life in &mut self.lives {
            life.fresh = false;
            life.sighted = None;
        }
        self.hand = None;
    }
}
