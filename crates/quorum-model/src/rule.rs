//! The rule, asked about a moment.

use crate::defect::Defect;
use crate::eyes::{Identity, number, operation};
use crate::few::Few;
use crate::torn::NodeSeen;
use crate::world::{Actor, Change, Cordon, Kind, KuredLock, NODES, Plan, Role, Scenario, State, Step};
use ahash::HashMap;
use quorum_safety::fixture::{self, Cluster, name, unknown};
use quorum_safety::{Code, Cordon as SeenCordon, Disruption, Fact, KillSwitch, Kured, Lock, Mine, Verdict};
use std::sync::{LazyLock, Mutex, PoisonError};

impl Scenario {
    /// Whether the rule permits what this actor wants.
    pub(crate) fn permits(&self, state: &State, actor: usize, adopted: bool) -> bool {
        self.asks(state, actor, None, adopted)
    }

    /// Whether it permits this step of a change of members, begun when it is not the first; the first one of a replacement only if it
    /// permits the whole of it, too.
    pub(crate) fn permits_change(&self, state: &State, actor: usize, change: Change, begun: bool) -> bool {
        let replaces = self.actors[actor].kind == Kind::Members(Plan::Replace) && change == Change::Remove;
        let whole = begun || !replaces || self.permits(state, actor, false);
        whole && self.asks(state, actor, Some(change), begun)
    }

    fn asks(&self, state: &State, actor: usize, change: Option<Change>, adopted: bool) -> bool {
        let wants = self.actors[actor];
        let joins = state.nodes.iter().any(|node| node.is_joining());
        if joins && change == Some(Change::Remove) && self.is(Defect::JoinHoldsRemovals) {
            return false;
        }
        // What kured does on this node is what the open gate has asked for.
        let own = state.lease.is_some_and(|holder| holder.actor == actor && holder.step == Step::Open);
        let kured = self.sees_kured(state, actor);
        let asked_for = own && wants.kind == Kind::Sentinel && kured == KuredLock::Node(wants.target);
        let asked = Asked {
            nodes: self.sees(state, actor),
            lease: state.lease.map(|holder| (self.holder_identity(&holder), self.actors[holder.actor])),
            kured: match kured {
                _ if self.is(Defect::KuredIgnored) || asked_for => KuredOwner::Nobody,
                KuredLock::Free => KuredOwner::Nobody,
                KuredLock::Ours(of) => KuredOwner::Ours(self.actors[of].kind),
                KuredLock::Node(at) => KuredOwner::Node(at),
            },
            kill_switch: state.kill_switch,
            me: self.me(state, actor),
            wants,
            change,
            adopted: adopted || self.is(Defect::WholenessNotAsked),
            defect: self.defect.filter(|defect| {
                use Defect::{JoinHoldsNobody, LearnerCountedAsVoter, LearnerMayBeNeeded, TargetCountedAsUp};
                matches!(defect, JoinHoldsNobody | LearnerCountedAsVoter | LearnerMayBeNeeded | TargetCountedAsUp)
            }),
        };
        let mut answers = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry(asked).or_insert_with(|| {
            let kured = self.kured(kured).filter(|_| asked.kured != KuredOwner::Nobody);
            asked.judge(self.view(state).lock(), kured.map_or(Kured::Free, |lock| lock.in_flight()))
        })
    }
}

/// Everything that the rule's answer depends on: a search asks the same a hundred thousand times.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Asked {
    nodes: Few<NodeSeen, NODES>,
    /// Who holds the Lease.
    lease: Option<(Identity, Actor)>,
    kured: KuredOwner,
    kill_switch: bool,
    /// Who asks.
    me: Identity,
    wants: Actor,
    /// For which change of members.
    change: Option<Change>,
    adopted: bool,
    /// What is done wrong in asking.
    defect: Option<Defect>,
}

/// Whom kured's lock names, as far as the rule is told.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum KuredOwner {
    Nobody,
    Ours(Kind),
    Node(usize),
}

static ANSWERS: LazyLock<Mutex<HashMap<Asked, bool>>> = LazyLock::new(Mutex::default);

impl Asked {
    fn is(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    fn judge(&self, lease: Lock, kured: Kured) -> bool {
        let whole = fixture::healthy(u64::try_from(self.nodes.len()).unwrap_or(u64::MAX));
        let idle = whole.in_flight.clone();
        let mut seen = whole;
        for (at, NodeSeen { well, cordon, .. }) in self.nodes.iter().enumerate() {
            let number = number(at);
            if !well {
                seen = seen.power_cut(number);
            }
            let cordon = match cordon {
                Cordon::None => SeenCordon::None,
                // Ours is on the target of whoever holds the Lease.
                Cordon::Ours => {
                    SeenCordon::Ours(operation(self.lease.as_ref().map_or(self.wants.kind, |(_, holder)| holder.kind)))
                }
                Cordon::Foreign => SeenCordon::Foreign,
            };
            seen = seen.on_node(&name(number).0, |node| node.cordon = cordon);
        }
        seen.in_flight.control_plane = Fact::Known(lease);
        seen.in_flight.kured = Fact::Known(kured);
        if self.kill_switch {
            seen.in_flight.kill_switch = Fact::Known(KillSwitch::Engaged("restored".to_owned()));
        }
        let holds = self.lease.as_ref().is_some_and(|(holder, _)| *holder == self.me);
        seen.in_flight.mine = match (holds, self.adopted) {
            (false, _) => Mine::Nothing,
            (true, false) => Mine::Taken(self.me.to_string()),
            (true, true) => Mine::Adopted(self.me.to_string()),
        };
        let target = number(self.wants.target);
        let wanted = match (self.change, self.wants.kind) {
            _ if self.is(Defect::TargetCountedAsUp) => {
                // As if nobody of the control plane went down, and nothing was under way.
                seen.in_flight = idle;
                seen = seen.on_node(&name(target).0, |node| node.cordon = SeenCordon::None);
                Disruption::Upgrade("w1".into())
            }
            (Some(Change::Remove), _) => Disruption::Remove(fixture::id(target)),
            (Some(Change::Add), _) => Disruption::AddLearner,
            (Some(Change::Promote), _) => Disruption::Promote(fixture::id(target)),
            (None, Kind::Upgrade) => fixture::upgrade(target),
            (None, Kind::Reboot | Kind::Sentinel) => fixture::reboot(target),
            (None, Kind::Defragment) => Disruption::Defragment(fixture::id(target)),
            (None, Kind::Members(_)) => Disruption::Replace(fixture::id(target)),
        };
        // Somebody leads who can; whoever is taken down has handed over before.
        let votes = |at: usize| self.nodes.get(at).is_some_and(|node| node.well && node.role == Role::Voter);
        let led_by = (0..self.nodes.len()).filter(|at| votes(*at)).map(number).rev().find(|leader| *leader != target);
        for at in 0..self.nodes.len() {
            seen = seen.on_samples(number(at), |sample| sample.leader = led_by.map(fixture::id));
        }
        for (at, node) in self.nodes.iter().enumerate() {
            seen = self.with_role(seen, at, node.role);
        }
        // A machine that is there for a member counts as a control plane node before it has one, and holds the very join that it waits for.
        if self.change == Some(Change::Add) && !self.adopted {
            seen = seen.lifting(&[Code::NodeWithoutMember]);
        }
        if self.change == Some(Change::Promote) && self.is(Defect::LearnerMayBeNeeded) {
            seen = seen.lifting(&[Code::LearnerWouldBeNeeded]);
        }
        matches!(seen.judge(&wanted), Verdict::Permitted(_))
    }

    /// The member of that node as the list and its own answers show it.
    fn with_role(&self, seen: Cluster, at: usize, role: Role) -> Cluster {
        let id = fixture::id(number(at));
        match role {
            Role::Voter => seen,
            Role::Learner if self.is(Defect::LearnerCountedAsVoter) => seen,
            Role::Learner | Role::Unstarted if self.is(Defect::JoinHoldsNobody) => {
                let seen = without(seen, at);
                seen.on_node(&name(number(at)).0, |node| node.control_plane = false)
            }
            Role::Learner => seen
                .on_list(|list| {
                    if let Some(entry) = list.iter_mut().find(|entry| entry.id == id) {
                        entry.role = quorum_safety::Role::Learner;
                    }
                })
                .on_samples(number(at), |sample| sample.is_learner = true)
                // What a learner does not answer.
                .on_member(number(at), |view| {
                    view.member_list = unknown();
                    view.linearizable_read = unknown();
                    view.alarms = unknown();
                }),
            Role::Unstarted => seen
                .on_list(|list| {
                    if let Some(entry) = list.iter_mut().find(|entry| entry.id == id) {
                        entry.role = quorum_safety::Role::Learner;
                        entry.name.clear();
                        entry.client_urls.clear();
                    }
                })
                .member_dead(number(at)),
            Role::None => without(seen, at),
        }
    }
}

/// The node has no member.
fn without(seen: Cluster, at: usize) -> Cluster {
    let id = fixture::id(number(at));
    let seen = seen.with(|seen| seen.seen.etcd.members.retain(|view| view.id != id));
    seen.on_list(|list| list.retain(|entry| entry.id != id))
}
