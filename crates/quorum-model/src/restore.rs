//! A restore of etcd: the API goes back to what it was when the snapshot was taken, and the machines do not.
//!
//! What lies outside of the API goes on meanwhile: processes with a Lease in their memory, steps on hosts, files for kured, and pods of kured
//! that have looked. So a restore goes to every machine that has power, as it has to in order to move the static pods aside, and there it
//! ends all of that; it lets a whole Lease and the margin pass between the end of the old apiservers and the first of the new; and it
//! sets the kill switch and clears our Leases, our cordons and our block in kured's lock before anybody else reaches the restored API.

use crate::defect::Defect;
use crate::few::Few;
use crate::moves::spend;
use crate::world::{Cordons, KuredLock, LEASE, MARGIN, Role, Saved, Scenario, State, Unit};

impl Scenario {
    pub(crate) fn takes_snapshot(next: &mut State) -> Option<()> {
        if next.left.restores == 0 || next.snapshot.is_some() || !next.api() {
            return None;
        }
        let cordons = Few::of(Cordons::default(), next.nodes.iter().map(|node| node.cordons));
        next.snapshot = Some(Saved { lease: next.lease, kured: next.kured, cordons });
        Some(())
    }

    /// etcd's data is lost, or so broken that somebody decides for a restore.
    pub(crate) fn loses_data(next: &mut State) -> Option<()> {
        next.snapshot.is_some().then_some(())?;
        spend(&mut next.left.restores)?;
        next.lost = Some(0);
        Some(())
    }

    pub(crate) fn restores(&self, next: &mut State) -> Option<()> {
        let away = next.lost?;
        if away < LEASE + MARGIN && !self.is(Defect::RestoreDoesNotWait) {
            return None;
        }
        let saved = next.snapshot.take()?;
        next.lost = None;
        let cleared = !self.is(Defect::RestoreKeepsTheLeases);
        next.lease = saved.lease.filter(|_| !cleared);
        next.kured = match saved.kured {
            KuredLock::Ours(_) if cleared => KuredLock::Free,
            lock => lock,
        };
        for (at, cordons) in saved.cordons.iter().copied().enumerate() {
            let node = &mut next.nodes[at];
            // The list is a new one, and nobody joins by it.
            if node.is_joining() {
                node.role = Role::None;
            }
            node.cordons = if cleared { self.uncordoned(cordons).0 } else { cordons };
            if !self.is(Defect::RestoreLeavesTheUnits) {
                node.behind |= node.unit == Unit::Down;
                node.unit = Unit::None;
            }
            if !self.is(Defect::RestoreLeavesTheGate) {
                node.file = false;
                Self::kured_begins(next, at);
            }
        }
        // Nothing is half done any more. Of what comes back with its Lease, that which was over stays over in truth.
        if cleared {
            next.begun = 0;
        }
        next.kill_switch = true;
        next.lease_written();
        Some(())
    }
}
