//! Changes of who is a member: removed, added as a learner, promoted; each judged as what it is.

use crate::defect::Defect;
use crate::world::{Change, Kind, Life, Phase, Plan, Role, Scenario, State, Step};

impl Scenario {
    fn plan(&self, actor: usize) -> Option<Plan> {
        match self.actors[actor].kind {
            Kind::Members(plan) => Some(plan),
            Kind::Upgrade | Kind::Reboot | Kind::Defragment | Kind::Sentinel => None,
        }
    }

    /// The next step of the plan, read from the member list alone: whoever takes it up needs to know no more. None when it is carried out.
    fn next_change(&self, state: &State, actor: usize, undoing: bool) -> Option<Change> {
        let node = state.nodes[self.actors[actor].target];
        // What will not come any more is taken away again.
        if undoing {
            return (node.is_joining() && !node.powered).then_some(Change::Remove);
        }
        match (self.plan(actor)?, node.role) {
            (Plan::Remove, Role::None) | (Plan::Join, Role::Voter) => None,
            (Plan::Replace, Role::Voter) if node.renewed => None,
            (Plan::Remove, _) | (Plan::Replace, Role::Voter) => Some(Change::Remove),
            (Plan::Join | Plan::Replace, Role::None) => Some(Change::Add),
            (Plan::Join | Plan::Replace, Role::Unstarted | Role::Learner) => Some(Change::Promote),
        }
    }

    /// Looks at everything and asks the rule for the next step.
    pub(crate) fn judge_change(&self, next: &mut State, actor: usize, undoing: bool) -> Option<()> {
        let Life { phase, under_way, .. } = next.lives[actor];
        let looks = matches!(phase, Phase::Locked | Phase::Sent) && under_way == 0;
        if !looks || !self.connected(next, actor) || !self.holds(next, actor) {
            return None;
        }
        let change = self.next_change(next, actor, undoing)?;
        let begun = next.lease?.step == Step::AtWork;
        let unasked = begun && self.is(Defect::StepsOfAPlanNotJudged);
        if !unasked && !self.permits_change(next, actor, change, begun) {
            return None;
        }
        let (down, odd) = self.sees_beside(next, actor);
        let life = &mut next.lives[actor];
        // What has begun is ended on whatever is left.
        (life.saw_down, life.saw_odd) = (down, odd && !begun);
        (life.change, life.phase) = (Some(change), Phase::MayStep);
        Some(())
    }

    /// A majority of etcd takes it. It asks less than the rule does, and is not modelled: it takes everything.
    pub(crate) fn change_lands(&self, next: &mut State, actor: usize, change: Change) -> Option<()> {
        let target = self.actors[actor].target;
        next.lives[actor].change = None;
        if !next.api() {
            return Some(());
        }
        let role = next.nodes[target].role;
        let (becomes, voters) = match (change, role) {
            (Change::Remove, Role::Voter) => (Role::None, next.voters() - 1),
            (Change::Remove, Role::Learner | Role::Unstarted) => (Role::None, next.voters()),
            (Change::Add, Role::None) => (Role::Unstarted, next.voters()),
            (Change::Promote, Role::Learner) => (Role::Voter, next.voters() + 1),
            // etcd knows no such member, or it is that already.
            (Change::Remove, Role::None)
            | (Change::Add, Role::Unstarted | Role::Learner | Role::Voter)
            | (Change::Promote, Role::None | Role::Unstarted | Role::Voter) => return Some(()),
        };
        let Life { saw_down, saw_odd, .. } = next.lives[actor];
        let others = next.voters() - usize::from(role == Role::Voter);
        // The one that is promoted may die the moment it votes, and counts for nothing here.
        let well = others.saturating_sub(saw_down.count_ones() as usize);
        next.wrong.below_quorum |= well < voters / 2 + 1;
        // Whoever is added is one more that may be missing; who goes, or is promoted, mends something.
        next.wrong.not_whole |= saw_odd && change == Change::Add;
        next.wrong.uncovered |= !self.is_covered(next, actor);
        let node = &mut next.nodes[target];
        node.role = becomes;
        node.renewed |= becomes == Role::Voter;
        Some(())
    }

    /// It starts where a machine is there to start it.
    pub(crate) fn member_starts(next: &mut State, at: usize) -> Option<()> {
        let api = next.api();
        let node = next.nodes.get_mut(at).filter(|node| node.role == Role::Unstarted && node.is_reached())?;
        api.then(|| (node.role, node.behind) = (Role::Learner, true))
    }

    /// Whether the change is over, and whether it was carried out: true when it was, false when nothing is left of it.
    pub(crate) fn change_is_over(&self, state: &State, actor: usize, phase: Phase) -> Option<bool> {
        let Life { under_way, .. } = state.lives[actor];
        if !matches!(phase, Phase::Locked | Phase::Sent) || under_way > 0 {
            return None;
        }
        let node = state.nodes[self.actors[actor].target];
        let begun = state.lease?.step == Step::AtWork;
        match self.next_change(state, actor, false) {
            None if node.role == Role::Voter => node.is_well().then_some(true),
            None => Some(true),
            // What was to come will not, and is taken away again.
            Some(Change::Add) if begun => (phase == Phase::Sent && !node.powered).then_some(false),
            // Nothing of it has been done: not begun, or what was announced never came to pass and is not wanted any more, such as the
            // removal of a member that is back.
            Some(change) => {
                let untouched = !begun || (change == Change::Remove && node.role == Role::Voter);
                (untouched && !self.permits_change(state, actor, change, begun)).then_some(false)
            }
        }
    }
}
