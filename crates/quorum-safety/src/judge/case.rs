//! One question put to the rule: what is asked, by whom, about which node and member, and how much of the control plane has
//! to be whole for it.

use crate::disruption::Disruption;
use crate::in_flight::{Holder, InFlight, Lock, Mine};
use crate::membership::{Member, MemberId, Membership, NodeName, Role};
use crate::observation::{AlarmKind, Fact, MemberView, NodeView, Observation, StatusSample};
use crate::policy::Policy;
use crate::quorum::Quorum;
use crate::reason::Code;

/// How much of the control plane must be as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// All of it, the target included: a new target is taken.
    Whole,
    /// A majority of it without the target: what has begun is finished, a member is repaired, a worker goes.
    Majority,
}

/// A member of the list beside what was seen of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed<'a> {
    pub(super) id: MemberId,
    /// Its entry in the list; none when the list could not be read.
    pub(super) entry: Option<&'a Member>,
    /// What was seen of it; none when it was not asked.
    pub(super) view: Option<&'a MemberView>,
    /// How many views there are of it: more than one means that an address is shared.
    pub(super) views: usize,
}

impl<'a> Listed<'a> {
    /// Its name for people: as in the list, else its node's, else its id.
    pub(super) fn name(&self) -> String {
        match (self.entry.filter(|entry| entry.has_started()), self.node()) {
            (Some(entry), _) => entry.name.clone(),
            (None, Some(node)) => node.to_string(),
            (None, None) => format!("member {}", self.id),
        }
    }

    pub(super) fn role(&self) -> Role {
        // Without a list everybody might vote.
        self.entry.map_or(Role::Voter, |entry| entry.role)
    }

    pub(super) fn node(&self) -> Option<&'a NodeName> {
        self.view.and_then(|view| view.node.known())
    }

    /// Both samples, when both were answered.
    pub(super) fn samples(&self) -> Option<(&'a StatusSample, &'a StatusSample)> {
        let view = self.view?;
        Some((view.first.known()?, view.second.known()?))
    }
}

/// The question.
pub(super) struct Case<'a> {
    pub(super) seen: &'a Observation,
    pub(super) in_flight: &'a InFlight,
    pub(super) wanted: &'a Disruption,
    pub(super) policy: &'a Policy,
    pub(super) demand: Demand,
    /// The member list beside the views; without a list, all views.
    pub(super) members: Vec<Listed<'a>>,
    /// The node that is taken down, if the disruption takes one down or acts on a member whose node is known.
    pub(super) target: Option<&'a NodeName>,
    /// The target is known to be neither a control plane node nor the node of a member.
    pub(super) worker: bool,
    /// The record of the asker's own Lease, if it holds one.
    pub(super) own: Option<&'a Holder>,
}

impl<'a> Case<'a> {
    pub(super) fn of(
        seen: &'a Observation,
        in_flight: &'a InFlight,
        wanted: &'a Disruption,
        policy: &'a Policy,
    ) -> Self {
        let members = listed(seen);
        let target_member = match wanted {
            Disruption::Defragment(member) | Disruption::Remove(member) | Disruption::Replace(member) => Some(*member),
            Disruption::Reboot(_)
            | Disruption::Upgrade(_)
            | Disruption::MoveLeader(_)
            | Disruption::AddLearner
            | Disruption::Promote(_)
            | Disruption::Restore => None,
        };
        let target = match wanted {
            Disruption::Reboot(node) | Disruption::Upgrade(node) => Some(node),
            _ => target_member.and_then(|id| members.iter().find(|member| member.id == id)).and_then(Listed::node),
        };
        let worker = target_member.is_none() && target.is_some_and(|target| is_worker(seen, &members, target));
        let adopted = matches!(in_flight.mine, Mine::Adopted(_));
        let repair = matches!(wanted, Disruption::Promote(_) | Disruption::Remove(_) | Disruption::Replace(_));
        let demand = if adopted || repair || worker { Demand::Majority } else { Demand::Whole };
        let own = own_lease(in_flight, worker);
        Self { seen, in_flight, wanted, policy, demand, members, target, worker, own }
    }

    /// The member list, when it could be read.
    pub(super) fn membership(&self) -> Option<&'a Membership> {
        self.seen.etcd.membership.known()
    }

    pub(super) fn voters(&self) -> impl Iterator<Item = &Listed<'a>> {
        self.members.iter().filter(|member| member.role() == Role::Voter)
    }

    pub(super) fn member(&self, id: MemberId) -> Option<&Listed<'a>> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The majority that the voters need now.
    pub(super) fn quorum(&self) -> Quorum {
        match self.membership() {
            Some(membership) => Quorum::of(membership),
            None => Quorum::of_voters(self.members.len()),
        }
    }

    /// The majority that must say the same: of those voters that remain when one is removed, else of all.
    pub(super) fn quorum_of_who_has_a_say(&self) -> Quorum {
        match self.wanted {
            Disruption::Remove(_) | Disruption::Replace(_) => {
                Quorum::of_voters(self.voters().filter(|voter| !self.excuses_member(voter)).count())
            }
            Disruption::Reboot(_)
            | Disruption::Upgrade(_)
            | Disruption::MoveLeader(_)
            | Disruption::Defragment(_)
            | Disruption::AddLearner
            | Disruption::Promote(_)
            | Disruption::Restore => self.quorum(),
        }
    }

    pub(super) fn nodes(&self) -> &'a [NodeView] {
        self.seen.nodes.known().map_or(&[], Vec::as_slice)
    }

    /// Whether the asker says that it finishes what it has begun; its Lease has to say so too, and on which node.
    pub(super) fn adopted(&self) -> bool {
        matches!(self.in_flight.mine, Mine::Adopted(_))
    }

    /// Whether the operation is about this node: its target, or the one that the asker's own Lease names.
    pub(super) fn is_own_node(&self, node: &NodeName) -> bool {
        self.target == Some(node) || self.own.is_some_and(|own| own.target == *node)
    }

    /// The member that the disruption mends, if it mends one: what is wrong with it does not count.
    fn mended(&self) -> Option<MemberId> {
        match self.wanted {
            Disruption::Promote(id) => {
                Some(*id).filter(|id| self.member(*id).is_some_and(|m| m.role() == Role::Learner))
            }
            Disruption::Remove(id) | Disruption::Replace(id) => Some(*id),
            Disruption::Reboot(_)
            | Disruption::Upgrade(_)
            | Disruption::MoveLeader(_)
            | Disruption::Defragment(_)
            | Disruption::AddLearner
            | Disruption::Restore => None,
        }
    }

    /// Whether what is wrong with this node does not count: it is what an adopted operation is there to finish, or it is the
    /// node of a member that is mended, and of no other, or the one that the learner is added for: without a member of its own it has no
    /// apiserver that is ready, and is a control plane node all the same.
    pub(super) fn excuses_node(&self, node: &NodeName) -> bool {
        let own = self.own.is_some_and(|own| own.target == *node);
        let mut on_it = self.members.iter().filter(|member| member.node() == Some(node)).peekable();
        let joins = own && *self.wanted == Disruption::AddLearner && on_it.peek().is_none();
        let mended =
            self.mended().is_some() && on_it.peek().is_some() && on_it.all(|member| Some(member.id) == self.mended());
        (self.adopted() && own) || joins || mended
    }

    /// The same for a member.
    pub(super) fn excuses_member(&self, member: &Listed<'_>) -> bool {
        self.mended() == Some(member.id) || member.node().is_some_and(|node| self.excuses_node(node))
    }

    /// Whether the disruption takes this member down or away.
    pub(super) fn takes_down(&self, member: &Listed<'_>) -> bool {
        match self.wanted {
            Disruption::Reboot(node) | Disruption::Upgrade(node) => member.node() == Some(node),
            Disruption::Defragment(id) | Disruption::Remove(id) | Disruption::Replace(id) => member.id == *id,
            Disruption::MoveLeader(_) | Disruption::AddLearner | Disruption::Promote(_) | Disruption::Restore => false,
        }
    }

    /// Whether an override lifts this check.
    pub(super) fn lifts(&self, code: Code) -> bool {
        code.liftable() && self.policy.lifted.contains(&code)
    }

    /// Whether it goes without the API: an override says so, and nothing that was read denies it. etcd commits a change of members, and has
    /// no room for a Lease, whoever serves the API; what would tell of others is not to be had (design.md, "Where things run").
    pub(super) fn is_without_api(&self) -> bool {
        let may_go_without = match self.wanted {
            Disruption::MoveLeader(_)
            | Disruption::AddLearner
            | Disruption::Promote(_)
            | Disruption::Remove(_)
            | Disruption::Replace(_) => true,
            Disruption::Defragment(_) => self.has_no_space(),
            Disruption::Reboot(_) | Disruption::Upgrade(_) | Disruption::Restore => false,
        };
        let servers = &self.seen.apiservers;
        let is_away = self.seen.nodes.known().is_none()
            && !servers.is_empty()
            && servers.iter().all(|apiserver| apiserver.ready != Fact::Known(true));
        self.policy.without_api && may_go_without && is_away
    }

    /// Whether any member tells of an alarm NOSPACE, on whomever.
    fn has_no_space(&self) -> bool {
        let mut told = self.seen.etcd.members.iter().filter_map(|view| view.alarms.known()).flatten();
        told.any(|alarm| alarm.kind == AlarmKind::NoSpace)
    }

    /// Whether this only says that the API is away, where that was said before.
    pub(super) fn says_that_the_api_is_away(&self, code: Code) -> bool {
        let of_the_api = matches!(
            code,
            Code::ApiserverUnanswered
                | Code::ApiserverNotReady
                | Code::NodesUnknown
                | Code::LeaseUnknown
                | Code::KuredUnknown
                | Code::KillSwitchUnknown
                | Code::SnapshotLeaseUnknown
                | Code::ClusterUnknown
        );
        of_the_api && self.is_without_api()
    }
}

fn listed(seen: &Observation) -> Vec<Listed<'_>> {
    let views = &seen.etcd.members;
    let beside = |id: MemberId, entry| {
        let mut of_it = views.iter().filter(|view| view.id == id);
        let view = of_it.next();
        Listed { id, entry, view, views: usize::from(view.is_some()).saturating_add(of_it.count()) }
    };
    match &seen.etcd.membership {
        Fact::Known(membership) => membership.members().iter().map(|entry| beside(entry.id, Some(entry))).collect(),
        Fact::Unknown(_) => {
            let mut ids: Vec<MemberId> = views.iter().map(|view| view.id).collect();
            ids.sort();
            ids.dedup();
            ids.into_iter().map(|id| beside(id, None)).collect()
        }
    }
}

/// A worker is only who is known to be one: the node is listed without the label, and every member is known to run elsewhere.
fn is_worker(seen: &Observation, members: &[Listed<'_>], target: &NodeName) -> bool {
    let Fact::Known(nodes) = &seen.nodes else { return false };
    let mut named = nodes.iter().filter(|node| node.name == *target).peekable();
    named.peek().is_some()
        && named.all(|node| !node.control_plane)
        && members.iter().all(|member| member.node().is_some_and(|node| node != target))
}

fn own_lease(in_flight: &InFlight, worker: bool) -> Option<&Holder> {
    let identity = match &in_flight.mine {
        Mine::Nothing => return None,
        Mine::Taken(identity) | Mine::Adopted(identity) => identity,
    };
    let mut held = if worker {
        in_flight.workers.known().map_or(&[][..], Vec::as_slice)
    } else {
        in_flight.control_plane.known().map_or(&[][..], std::slice::from_ref)
    }
    .iter();
    held.find_map(|lock| match lock {
        Lock::Held(holder) if holder.identity == *identity => Some(holder),
        Lock::Held(_) | Lock::Free => None,
    })
}
