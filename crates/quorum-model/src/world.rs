//! What there is: nodes, one Lease, kured's lock, and actors. Small on purpose: each field multiplies the states.

use crate::defect::Defect;
use crate::ends::Ends;
use crate::eyes::HolderSeen;
use crate::few::Few;
use quorum_safety::sentinel::Act;

/// Nodes of the largest scenario.
pub(crate) const NODES: usize = 5;
/// Actors of the largest one, with the next run of each and the removals of a repair.
pub(crate) const LIVES: usize = 11;

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
    /// Lets kured reboot the node on which it runs.
    Sentinel,
    /// Changes which member the node has.
    Members(Plan),
}

/// A change of members on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plan {
    /// Its member goes.
    Remove,
    /// It gets one: a learner that is promoted.
    Join,
    /// One after the other.
    Replace,
}

/// One process that will ask for the Lease once: a pod of a Job. The next pod of the same operation is another actor. A sentinel's process
/// is started again in its pod; its next pod is another actor on the same node.
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
    /// Cordons of an administrator, and uncordons of what is ours.
    pub cordons: u8,
    /// Drains of a node by an administrator.
    pub drains: u8,
    /// Releases by hand.
    pub releases: u8,
    /// Reboots by kured.
    pub kured: u8,
    /// Ticks by which a clock falls behind.
    pub drifts: u8,
    /// Restores of etcd from a snapshot.
    pub restores: u8,
}

/// What is searched.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// How many nodes have a voter at the beginning.
    pub voters: usize,
    /// What further nodes have then.
    pub joiners: Vec<Role>,
    /// Who acts.
    pub actors: Vec<Actor>,
    /// What may happen.
    pub budget: Budget,
    /// Nodes without power at the beginning.
    pub dead: Vec<usize>,
    /// Nodes that want to be rebooted.
    pub flagged: Vec<usize>,
    /// Whether a look takes time: one part of it is of before, and whatever may happen happens before the other.
    pub torn: bool,
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

    /// How many nodes there are.
    pub(crate) fn nodes(&self) -> usize {
        self.voters + self.joiners.len()
    }

    /// The operation of an actor as one bit.
    pub(crate) fn bit(&self, actor: usize) -> u8 {
        let own = self.actors[actor].operation();
        let first = self.actors.iter().position(|other| other.operation() == own);
        first.map_or(0, |first| 1 << first)
    }

    pub(crate) fn is(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }
}

/// Whether the node's member votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It has none.
    None,
    /// It is in the list and has never started.
    Unstarted,
    /// It hears everything and counts for nothing.
    Learner,
    /// It counts.
    Voter,
}

/// What is done to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Change {
    Remove,
    Add,
    Promote,
}

/// A cordon as a Node shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cordon {
    None,
    Ours,
    Foreign,
}

/// What there is of cordons on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Cordons {
    pub(crate) unschedulable: bool,
    /// Our record on it, which nobody else takes away: whether the node was unschedulable before.
    pub(crate) record: Option<bool>,
    /// That it is unschedulable is the doing of somebody else. The API knows, by the fields' managers.
    pub(crate) theirs: bool,
}

impl Cordons {
    /// Somebody else cordons; one that is there already stays as it is.
    pub(crate) fn by_others(&mut self) {
        self.theirs |= !self.unschedulable;
        self.unschedulable = true;
    }

    /// Somebody else uncordons, whosever it is: our record stays.
    pub(crate) fn lifted(&mut self) {
        (self.unschedulable, self.theirs) = (false, false);
    }
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

/// How far the pod of kured on a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum KuredPod {
    /// It will look at its file.
    Idle,
    /// It has looked, and found it. It does not look again before it reboots.
    Looked,
    /// It has its lock.
    Locked,
    /// It has cordoned, and drains.
    Drains,
    /// It is a new one, and its node has the lock.
    Starts,
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
    pub(crate) cordons: Cordons,
    /// Its member in the list.
    pub(crate) role: Role,
    /// That member has come in place of another.
    pub(crate) renewed: bool,
    /// It wants to be rebooted.
    pub(crate) pending: bool,
    /// The file for which kured looks is there.
    pub(crate) file: bool,
    pub(crate) kured: KuredPod,
}

impl Node {
    /// Whether everything that runs on it is as it should; its member counts if it is a voter.
    pub(crate) fn is_well(&self) -> bool {
        self.powered && !self.cut && self.unit != Unit::Down && !self.rebooting && !self.behind
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.powered && !self.cut
    }

    /// Whether its member is on the way in.
    pub(crate) fn is_joining(&self) -> bool {
        matches!(self.role, Role::Unstarted | Role::Learner)
    }
}

/// How far a holder says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Acquired,
    Drain,
    AtWork,
    /// A sentinel's: from before its file is there until kured cannot act on it any more.
    Open,
    /// A sentinel's: its node has been down.
    Recover,
}

/// Who the Lease names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Holder {
    pub(crate) actor: usize,
    pub(crate) boot: u8,
    /// Which holder of that pod and boot it is; only a sentinel's process comes back as the next one.
    pub(crate) count: u8,
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
    /// It was evicted, and its processes may live for a while; once they are seen to have ended it is gone.
    Evicted,
    /// The node controller has given it up, and nobody has seen anything.
    GivenUp,
    Missing,
    /// Made when the one before is gone: the next pod of a DaemonSet.
    NotYet,
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
    /// It would be mine, and a hand has told me to stop: never as this holder.
    Told,
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
    /// A sentinel that has looked at everything, and does this next.
    Does(Act),
    /// It is over for this process: done, given up, or told to stop.
    Over,
}

/// The first part of a look that is torn, one bit for each node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Glimpse {
    /// Of machines and members: which are not well.
    Members(u8),
    /// Of the objects of the API and of the hosts.
    Objects { ours: u8, foreign: u8, at_work: u8, kured: KuredLock },
    /// Of the holder of the Lease; its node is looked at after that.
    Holder(HolderSeen),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Life {
    pub(crate) process: bool,
    pub(crate) paused: bool,
    pub(crate) pod: Pod,
    pub(crate) phase: Phase,
    /// Whether nobody wrote the Lease since it was read.
    pub(crate) fresh: bool,
    /// For how many ticks the Lease was seen unchanged.
    pub(crate) sighted: Option<u8>,
    /// What it has seen already of what it looks at.
    pub(crate) glimpse: Option<Glimpse>,
    /// Ticks until its own deadline; none when it does not hold the Lease.
    pub(crate) left: Option<u8>,
    /// Ticks in which its request may still have its effect.
    pub(crate) under_way: u8,
    /// Whether that request cordons; else it takes the target down, changes its member, or makes its file.
    pub(crate) cordons: bool,
    /// Which change of its member is permitted or under way.
    pub(crate) change: Option<Change>,
    /// Its clock fell behind since the deadline was set.
    pub(crate) drifted: bool,
    /// Voters that were not well at its last look, one bit each.
    pub(crate) saw_down: u8,
    /// Whether anything but the target was not as it should be then.
    pub(crate) saw_odd: bool,
    /// Whether what it does now was begun by another.
    pub(crate) adopted: bool,
    /// A sentinel's: kured may have seen a file that this process made or found, or that was announced before it.
    pub(crate) owes_end: bool,
    /// A sentinel's: it lets nobody reboot any more before it has asked for the Lease anew.
    pub(crate) gives_up: bool,
    /// A sentinel's: it has had its try. What is left of its own node it takes up all the same.
    pub(crate) rests: bool,
    /// A sentinel's: as which holder of its pod and boot it was last told to stop.
    pub(crate) told: Option<u8>,
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
            glimpse: None,
            left: None,
            under_way: 0,
            cordons: false,
            change: None,
            drifted: false,
            saw_down: 0,
            saw_odd: false,
            adopted: false,
            owes_end: false,
            gives_up: false,
            rests: false,
            told: None,
        }
    }

    /// A pod that is not there yet.
    pub(crate) fn not_yet() -> Self {
        Self { process: false, pod: Pod::NotYet, ..Self::new() }
    }
}

/// What must never be; once true it stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Wrong {
    pub(crate) two_down: bool,
    pub(crate) below_quorum: bool,
    pub(crate) not_whole: bool,
    pub(crate) given_back_unwell: bool,
    pub(crate) uncovered: bool,
    pub(crate) uncovered_reboot: bool,
    pub(crate) ghost: bool,
    pub(crate) lifted: bool,
}

/// What of the API a snapshot keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Saved {
    pub(crate) lease: Option<Holder>,
    pub(crate) kured: KuredLock,
    pub(crate) cordons: Few<Cordons, NODES>,
}

/// One moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(crate) nodes: Few<Node, NODES>,
    pub(crate) lease: Option<Holder>,
    pub(crate) kured: KuredLock,
    pub(crate) lives: Few<Life, LIVES>,
    /// For how many ticks the hand that may release has seen the Lease unchanged.
    pub(crate) hand: Option<u8>,
    pub(crate) left: Budget,
    /// Operations that have announced something and not given the Lease back, one bit each: in truth, whatever the API says.
    pub(crate) begun: u8,
    pub(crate) snapshot: Option<Saved>,
    /// For how many ticks etcd's data has been lost.
    pub(crate) lost: Option<u8>,
    pub(crate) kill_switch: bool,
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
            cordons: Cordons::default(),
            role: at.checked_sub(scenario.voters).map_or(Role::Voter, |further| scenario.joiners[further]),
            renewed: false,
            pending: scenario.flagged.contains(&at),
            file: false,
            kured: KuredPod::Idle,
        };
        let is_next_pod = |at: usize, actor: &Actor| {
            actor.kind == Kind::Sentinel
                && scenario.actors.iter().take(at).any(|other| other.operation() == actor.operation())
        };
        let life = |(at, actor)| if is_next_pod(at, actor) { Life::not_yet() } else { Life::new() };
        Self {
            nodes: Few::of(node(0), (0..scenario.nodes()).map(node)),
            lease: None,
            kured: KuredLock::Free,
            lives: Few::of(Life::new(), scenario.actors.iter().enumerate().map(life)),
            hand: None,
            left: scenario.budget,
            begun: 0,
            snapshot: None,
            lost: None,
            kill_switch: false,
            wrong: Wrong::default(),
            done: false,
            adopted: false,
        }
    }

    /// How many voters there are.
    pub(crate) fn voters(&self) -> usize {
        self.nodes.iter().filter(|node| node.role == Role::Voter).count()
    }

    /// How many of them are well.
    pub(crate) fn well(&self) -> usize {
        self.nodes.iter().filter(|node| node.role == Role::Voter && node.is_well()).count()
    }

    /// Whether etcd, and so the API, can be written and read.
    pub(crate) fn api(&self) -> bool {
        self.lost.is_none() && self.well() > self.voters() / 2
    }

    /// Everybody's last look at the Lease is of before this write.
    pub(crate) fn lease_written(&mut self) {
        for life in self.lives.iter_mut() {
            life.fresh = false;
            life.sighted = None;
        }
        self.hand = None;
    }
}
