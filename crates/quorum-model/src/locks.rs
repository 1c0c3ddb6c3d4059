//! What an actor does about the Lease and kured's lock, before it looks at anything else.

use crate::defect::Defect;
use crate::world::{Decided, Holder, Kind, KuredLock, LEASE, MARGIN, Phase, REQUEST, Scenario, State, Step};
use quorum_safety::lock::KuredStep;

impl Scenario {
    pub(crate) fn read(&self, next: &mut State, actor: usize) -> Option<()> {
        if !self.connected(next, actor) || !matches!(next.lives[actor].phase, Phase::Idle | Phase::Decided(_)) {
            return None;
        }
        if self.is_sentinel(actor) && !self.sentinel_asks(next, actor) {
            return None;
        }
        if self.wants_kured_first(actor) && next.kured != KuredLock::Ours(actor) {
            return None;
        }
        let holder = next.lease.is_some_and(|holder| holder.actor != actor);
        if self.torn && holder && !(next.lives[actor].glimpse.is_some() && next.lives[actor].fresh) {
            return None;
        }
        let waited = self.is(Defect::WhoHasWaitedDoesNotAdopt) && next.lives[actor].sighted.is_some();
        next.lives[actor].sighted.get_or_insert(0);
        let permitted = !self.is(Defect::JudgedBeforeTheLease) || self.permits(next, actor, true);
        let adopts = |decided: &Decided| matches!(decided, Decided::Adopt(_));
        let decided = self.decided(next, actor).filter(|one| permitted && !(waited && adopts(one)));
        if decided == Some(Decided::Told) && self.is_sentinel(actor) {
            next.lives[actor].told = Some(self.count(next, actor));
        }
        let decided = decided.filter(|one| *one != Decided::Told);
        next.lives[actor].phase = decided.map_or(Phase::Idle, Phase::Decided);
        next.lives[actor].fresh = decided.is_some();
        next.lives[actor].glimpse = None;
        Some(())
    }

    pub(crate) fn write(&self, next: &mut State, actor: usize) -> Option<()> {
        let Phase::Decided(decided) = next.lives[actor].phase else { return None };
        if !self.connected(next, actor) {
            return None;
        }
        if !next.lives[actor].fresh && !self.is(Defect::NoPrecondition) {
            next.lives[actor].phase = Phase::Idle;
            return Some(());
        }
        let step = match decided {
            Decided::Take => Step::Acquired,
            Decided::Adopt(step) => step,
            Decided::Mine => next.lease.map_or(Step::Acquired, |holder| holder.step),
            Decided::Told => return None,
        };
        let boot = next.nodes[self.actors[actor].runner].boot;
        let was = next.lease.filter(|_| decided != Decided::Take).map(|holder| (step, holder.boot));
        next.wrong.ghost |= step != Step::Acquired && next.begun & self.bit(actor) == 0;
        next.lease = Some(Holder { actor, boot, count: self.count(next, actor), step, released: None });
        next.lease_written();
        let life = &mut next.lives[actor];
        // Its own clock was read before it sent this.
        let late = if self.is(Defect::DeadlineFromTheAnswer) { MARGIN + REQUEST } else { 0 };
        life.left = Some(LEASE + late);
        life.drifted = false;
        // What has changed nothing on the host is judged like a new target.
        life.adopted = matches!(step, Step::AtWork | Step::Open | Step::Recover);
        life.phase = Phase::Holding;
        next.adopted |= matches!(decided, Decided::Adopt(_));
        if self.is_sentinel(actor) {
            self.sentinel_holds(next, actor, was);
        }
        Some(())
    }

    pub(crate) fn renew(&self, next: &mut State, actor: usize) -> Option<()> {
        let due = next.lives[actor].left.is_some_and(|left| left < LEASE);
        if !due || !self.connected(next, actor) || !self.holds(next, actor) {
            return None;
        }
        next.lease_written();
        let life = &mut next.lives[actor];
        (life.left, life.drifted) = (Some(LEASE), false);
        Some(())
    }

    fn wants_kured_first(&self, actor: usize) -> bool {
        self.is(Defect::LocksInEitherOrder) && self.actors[actor].kind == Kind::Defragment
    }

    pub(crate) fn take_kured(&self, next: &mut State, actor: usize) -> Option<()> {
        let first = self.wants_kured_first(actor) && next.lives[actor].phase == Phase::Idle;
        if first && next.kured == KuredLock::Free && self.connected(next, actor) {
            next.kured = KuredLock::Ours(actor);
            return Some(());
        }
        let asks = next.lives[actor].phase == Phase::Holding && !self.is_sentinel(actor);
        if !asks || !self.connected(next, actor) || !self.holds(next, actor) {
            return None;
        }
        if self.is(Defect::KuredIgnored) {
            next.lives[actor].phase = Phase::Locked;
            return Some(());
        }
        let half_done = next.lease.is_some_and(|holder| holder.step != Step::Acquired);
        match self.kured_step(next, actor) {
            KuredStep::Nothing | KuredStep::Mine => next.lives[actor].phase = Phase::Locked,
            KuredStep::Take => {
                next.kured = KuredLock::Ours(actor);
                next.lives[actor].phase = Phase::Locked;
            }
            // Nobody waits for kured with the Lease; but what is half done keeps it.
            KuredStep::GiveLeaseBack(_) if half_done || self.is(Defect::LocksInEitherOrder) => return None,
            KuredStep::GiveLeaseBack(_) => {
                next.lease = None;
                next.lease_written();
                let life = &mut next.lives[actor];
                (life.phase, life.left) = (Phase::Idle, None);
            }
        }
        Some(())
    }
}
