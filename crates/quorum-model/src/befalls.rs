//! What befalls processes, pods, machines and nodes.

use crate::defect::Defect;
use crate::moves::{Move, spend};
use crate::world::{KuredLock, Pod, Scenario, State, Unit};

impl Scenario {
    pub(crate) fn befalls(&self, next: &mut State, taken: Move) -> Option<()> {
        match taken {
            Move::Kill(actor) if next.lives[actor].process => {
                // The kubelet does that to whoever is evicted.
                if next.lives[actor].pod != Pod::Evicted {
                    spend(&mut next.left.kills)?;
                }
                Self::end(next, actor);
            }
            // That of a sentinel is started again: its pod has not ended.
            Move::ReportEnd(actor) if !self.is_sentinel(actor) => {
                let heard = next.nodes[self.actors[actor].runner].is_reached();
                let life = next.lives.get_mut(actor).filter(|life| heard && !life.process && life.under_way == 0)?;
                life.pod = match life.pod {
                    Pod::Running | Pod::GivenUp => Pod::Ended,
                    Pod::Evicted => Pod::Missing,
                    Pod::Ended | Pod::Missing | Pod::NotYet => return None,
                };
            }
            Move::Pause(actor) if next.lives[actor].process && !next.lives[actor].paused => {
                spend(&mut next.left.pauses)?;
                next.lives[actor].paused = true;
            }
            Move::Resume(actor) if next.lives[actor].paused => next.lives[actor].paused = false,
            Move::DeletePod(actor) if next.lives[actor].process && next.lives[actor].pod == Pod::Running => {
                spend(&mut next.left.deletions)?;
                next.lives[actor].pod = Pod::Missing;
            }
            Move::GiveUpPod(actor)
                if next.lives[actor].pod == Pod::Running && !next.nodes[self.actors[actor].runner].is_reached() =>
            {
                spend(&mut next.left.deletions)?;
                next.lives[actor].pod = Pod::GivenUp;
            }
            Move::PowerCut(node) if next.nodes[node].powered && !next.nodes[node].rebooting => {
                spend(&mut next.left.power_cuts)?;
                self.goes_down(next, node);
                next.nodes[node].powered = false;
            }
            Move::PowerOn(node) if !next.nodes[node].powered && self.is_quiet(next, node) => {
                next.nodes[node].powered = true;
                Self::comes_up(next, node);
            }
            Move::CutOff(node) if next.nodes[node].is_reached() => {
                spend(&mut next.left.partitions)?;
                next.nodes[node].cut = true;
            }
            Move::Reconnect(node) if next.nodes[node].cut => {
                next.nodes[node].cut = false;
            }
            Move::Cordon(node) if !next.nodes[node].cordons.unschedulable => {
                spend(&mut next.left.cordons)?;
                next.nodes[node].cordons.by_others();
            }
            Move::Uncordon(node) if next.nodes[node].cordons.unschedulable && next.kured != KuredLock::Node(node) => {
                if !next.nodes[node].cordons.theirs {
                    spend(&mut next.left.cordons)?;
                }
                next.nodes[node].cordons.lifted();
            }
            Move::Drain(node) if next.nodes[node].cordons.unschedulable && next.nodes[node].is_reached() => {
                spend(&mut next.left.drains)?;
                for (actor, wants) in self.actors.iter().enumerate() {
                    // Those of DaemonSets stay: the sentinels', and kured's.
                    if wants.runner == node && !self.is_sentinel(actor) && next.lives[actor].pod == Pod::Running {
                        next.lives[actor].pod = Pod::Evicted;
                    }
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Everything that runs on a machine ends with it.
    pub(crate) fn goes_down(&self, next: &mut State, node: usize) {
        next.nodes[node].unit = Unit::None;
        next.nodes[node].pending = false;
        next.nodes[node].file &= self.is(Defect::FileSurvivesTheBoot);
        Self::kured_begins(next, node);
        for (actor, wants) in self.actors.iter().enumerate() {
            if wants.runner == node && next.lives[actor].process {
                Self::end(next, actor);
            }
            if wants.runner == node && self.is_sentinel(actor) {
                // What it does it does on its own machine.
                next.lives[actor].under_way = 0;
            }
        }
    }

    /// The node is back after kured's reboot.
    pub(crate) fn kured_returns(&self, next: &mut State, node: usize) -> Option<()> {
        if !next.nodes[node].rebooting || !self.is_quiet(next, node) {
            return None;
        }
        next.nodes[node].rebooting = false;
        Self::comes_up(next, node);
        Some(())
    }

    fn comes_up(next: &mut State, node: usize) {
        next.nodes[node].boot = next.nodes[node].boot.saturating_add(1);
        next.nodes[node].behind = true;
    }

    /// Whether everything that was sent from a machine has had its effect, or never will.
    fn is_quiet(&self, state: &State, node: usize) -> bool {
        self.actors.iter().zip(state.lives.iter()).all(|(wants, life)| wants.runner != node || life.under_way == 0)
    }
}
