//! What we do about cordons, as `src/drain/cordon.rs` of quorate does it: the plan of its one PATCH, and of the one that takes it back.

use crate::defect::Defect;
use crate::world::{Cordon, Cordons, Scenario};

impl Scenario {
    /// As it is read: ours if our record is on it, unless somebody has lifted ours and cordoned anew, which leaves that record behind.
    pub(crate) fn seen_as(&self, cordons: Cordons) -> Cordon {
        match cordons.record {
            _ if !cordons.unschedulable => Cordon::None,
            Some(_) if !self.is_anew(cordons) => Cordon::Ours,
            Some(_) | None if self.is(Defect::ForeignCordonIgnored) => Cordon::None,
            Some(_) | None => Cordon::Foreign,
        }
    }

    /// Whether it is somebody else's over a record of ours that knew of none.
    fn is_anew(&self, cordons: Cordons) -> bool {
        let anew = cordons.unschedulable && cordons.theirs && cordons.record == Some(false);
        anew && !self.is(Defect::RecordOutlivesTheCordon)
    }

    /// What a cordon makes of it.
    pub(crate) fn cordoned(&self, before: Cordons) -> Cordons {
        let prior = match before.record {
            _ if !before.unschedulable => false,
            Some(prior) => prior || self.is_anew(before),
            None => true,
        };
        Cordons { unschedulable: true, record: Some(prior), ..before }
    }

    /// What is left when ours is taken back, and whether that has lifted somebody else's.
    pub(crate) fn uncordoned(&self, before: Cordons) -> (Cordons, bool) {
        let Some(prior) = before.record else { return (before, false) };
        let stays = before.unschedulable && (prior || self.is_anew(before));
        let lifted = before.unschedulable && before.theirs && !stays;
        (Cordons { unschedulable: stays, record: None, theirs: before.theirs && stays }, lifted)
    }
}
