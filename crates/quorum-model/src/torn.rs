//! Looks at more than one thing: each is seen at its own time. What an actor makes of it is put together here.
//!
//! Where looks are torn, one part is of before, and anything may happen until the other: of a look at everything the machines and members,
//! or the objects of the API and the hosts, which are asked at the same time; of a look at the holder of the Lease its pod and the target's
//! host, before its node.

use crate::defect::Defect;
use crate::few::Few;
use crate::world::{Cordon, Glimpse, KuredLock, NODES, Phase, Role, Scenario, State, Unit};

/// A node as an actor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeSeen {
    /// Whether everything that runs on it is as it should.
    pub(crate) well: bool,
    pub(crate) cordon: Cordon,
    pub(crate) role: Role,
}

fn bits(nodes: impl Iterator<Item = bool>) -> u8 {
    nodes.enumerate().fold(0, |mask, (at, yes)| mask | u8::from(yes) << at)
}

impl Scenario {
    /// The first part of a look: at machines and members.
    pub(crate) fn looks_at_members(&self, next: &mut State, actor: usize) -> Option<()> {
        self.looks_at_all(next, actor).then_some(())?;
        next.lives[actor].glimpse = Some(Glimpse::Members(bits(next.nodes.iter().map(|node| !node.is_well()))));
        Some(())
    }

    /// The first part of a look: at the objects of the API, and the hosts.
    pub(crate) fn looks_at_objects(&self, next: &mut State, actor: usize) -> Option<()> {
        self.looks_at_all(next, actor).then_some(())?;
        let cordoned = |cordon| bits(next.nodes.iter().map(|node| self.seen_as(node.cordons) == cordon));
        let at_work = bits(next.nodes.iter().map(|node| node.unit != Unit::None));
        let (ours, foreign) = (cordoned(Cordon::Ours), cordoned(Cordon::Foreign));
        next.lives[actor].glimpse = Some(Glimpse::Objects { ours, foreign, at_work, kured: next.kured });
        Some(())
    }

    fn looks_at_all(&self, state: &State, actor: usize) -> bool {
        let looks = match state.lives[actor].phase {
            Phase::Locked | Phase::Drained | Phase::Cordoning | Phase::Sent => true,
            Phase::Holding => self.is_sentinel(actor),
            _ => false,
        };
        // What it has asked for has been answered before.
        let waits = state.lives[actor].under_way > 0 && !self.is(Defect::LooksBeforeTheAnswer);
        looks && !waits && self.connected(state, actor) && self.holds(state, actor)
    }

    /// The first part of a look at the holder of the Lease, and at the Lease.
    pub(crate) fn looks_at_holder(&self, next: &mut State, actor: usize) -> Option<()> {
        let looks = matches!(next.lives[actor].phase, Phase::Idle | Phase::Decided(_)) && self.connected(next, actor);
        let holder = next.lease.filter(|holder| looks && holder.actor != actor)?;
        let life = &mut next.lives[actor];
        life.sighted.get_or_insert(0);
        (life.phase, life.fresh) = (Phase::Idle, true);
        let seen = self.sees_holder(next, &holder, actor);
        next.lives[actor].glimpse = Some(Glimpse::Holder(seen));
        Some(())
    }

    /// Whether it has seen the first part of what it looks at, where there is one.
    pub(crate) fn may_see(&self, state: &State, actor: usize) -> bool {
        !self.torn || state.lives[actor].glimpse.is_some()
    }

    /// The nodes, put together from what it sees now and what it has seen before.
    pub(crate) fn sees(&self, state: &State, actor: usize) -> Few<NodeSeen, NODES> {
        let glimpse = state.lives[actor].glimpse;
        let nodes = state.nodes.iter().enumerate().map(|(at, node)| {
            let is = |mask: u8| mask & 1 << at != 0;
            let (mut well, mut cordon) = (node.is_well(), self.seen_as(node.cordons));
            match glimpse {
                Some(Glimpse::Members(unwell)) => well = !is(unwell),
                Some(Glimpse::Objects { ours, .. }) if is(ours) => cordon = Cordon::Ours,
                Some(Glimpse::Objects { foreign, .. }) if is(foreign) => cordon = Cordon::Foreign,
                Some(Glimpse::Objects { .. }) => cordon = Cordon::None,
                Some(Glimpse::Holder(_)) | None => {}
            }
            NodeSeen { well, cordon, role: node.role }
        });
        Few::of(NodeSeen { well: false, cordon: Cordon::None, role: Role::None }, nodes)
    }

    /// kured's lock as it sees it.
    pub(crate) fn sees_kured(&self, state: &State, actor: usize) -> KuredLock {
        match state.lives[actor].glimpse {
            Some(Glimpse::Objects { kured, .. }) => kured,
            Some(Glimpse::Members(_) | Glimpse::Holder(_)) | None => state.kured,
        }
    }

    /// Whether it sees a step at work on the host of its target.
    pub(crate) fn sees_at_work(&self, state: &State, actor: usize) -> bool {
        let target = self.actors[actor].target;
        match state.lives[actor].glimpse {
            Some(Glimpse::Objects { at_work, .. }) => at_work & 1 << target != 0,
            Some(Glimpse::Members(_) | Glimpse::Holder(_)) | None => state.nodes[target].unit != Unit::None,
        }
    }

    /// The voters beside its target that are not well, one bit each, and whether anything beside it is not as it should be; as it sees them.
    pub(crate) fn sees_beside(&self, state: &State, actor: usize) -> (u8, bool) {
        let seen = self.sees(state, actor);
        let others = || seen.iter().enumerate().filter(|(at, _)| *at != self.actors[actor].target);
        let down = others().filter(|(_, node)| node.role == Role::Voter && !node.well);
        let down = down.fold(0, |mask, (at, _)| mask | 1 << at);
        // The truth: what it takes for none is still somebody's.
        let cordoned = |at: usize| match state.lives[actor].glimpse {
            Some(Glimpse::Objects { .. }) => seen[at].cordon != Cordon::None,
            Some(Glimpse::Members(_) | Glimpse::Holder(_)) | None => state.nodes[at].cordons.unschedulable,
        };
        let odd = others().any(|(at, node)| cordoned(at) || node.role != Role::Voter);
        (down, down != 0 || odd)
    }
}
