//! The three questions that need more than nodes and DaemonSets: may this node go, is a worker's control plane well enough, and is this
//! node back. Asked only when nothing cheaper says no.

use super::reason::{Code, Reason};
use super::soak;
use crate::access::Access;
use crate::clock::Clock;
use crate::config::{Config, LoadBalancer as Kind};
use crate::etcd::members::leadership::{first_permitted, leader_on};
use crate::lock;
use crate::observe::{Sources, apiserver, leaders};
use crate::report::ObservationDigest;
use crate::seen::{self, Seen};
use crate::upgrade::recover::balancer_serves;
use kube::Client;
use quorum_safety::recovery::{ConfigHash, Expectation, ExpectedPod, LoadBalancer, Recovery, Stability};
use quorum_safety::{
    ApiserverView, Code as Rule, Disruption, Fact, InFlight, KillSwitch, Kured, Lock, Member, MemberId, Mine, NodeName,
    Permit, UnixSeconds, Verdict, judge,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// Who asks, and about which node.
pub struct Question<'a> {
    /// The API.
    pub access: &'a Access,
    /// The configuration.
    pub config: &'a Config,
    /// The clock.
    pub clock: Clock,
    /// The node.
    pub node: &'a NodeName,
    /// What it holds.
    pub mine: Mine,
    /// Its gate is open: kured's lock for this node is what was asked for.
    pub open: bool,
}

/// What was judged, and the answer; none: permitted.
pub struct Judged {
    /// Why not.
    pub reasons: Vec<Reason>,
    /// What was seen, as the gate's file names it.
    pub observed: Option<Observed>,
    /// What comes first.
    pub hand_over: Option<HandOver>,
}

/// On what a gate is opened.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Observed {
    /// Of a control plane node: the name of the observation, which is published.
    Whole(ObservationDigest),
    /// Of a worker, which asks no etcd: the apiservers that were ready, each asked by itself.
    #[serde(rename_all = "camelCase")]
    Apiservers {
        /// Their nodes.
        ready_apiservers: Vec<NodeName>,
    },
}

/// Leadership of etcd goes to another member before the node of the leader does: else its reboot costs everybody an election.
pub struct HandOver {
    /// The member of this node.
    pub from: Member,
    /// To whom.
    pub to: MemberId,
    /// For that move.
    pub permit: Permit,
}

impl Question<'_> {
    /// Asks the rule whether this control plane node may be rebooted; before its gate is open, whether it can hand leadership over, too.
    pub async fn control_plane(&self, sources: &Sources<'_>, closed: bool) -> Judged {
        let mut seen = seen::look(sources, self.config, self.mine.clone(), self.clock).await;
        seen.show(self.access).await;
        self.as_asked_for(&mut seen.in_flight);
        let wanted = Disruption::Reboot(self.node.clone());
        let observed = Some(Observed::Whole(ObservationDigest::of(&seen.observation)));
        let judged = match judge(&seen.observation, &seen.in_flight, &wanted, &self.config.policy()) {
            Verdict::Permitted(_) if closed => self.hand_over(&seen),
            Verdict::Permitted(_) => Ok(None),
            verdict => Err(verdict.reasons().to_vec()),
        };
        let (reasons, hand_over) = judged.map_or_else(
            |reasons| (reasons.iter().map(Reason::from).collect(), None),
            |hand_over| (Vec::new(), hand_over),
        );
        Judged { reasons, observed, hand_over }
    }

    /// To whom leadership goes, where this node's member has it; else why it cannot go.
    fn hand_over(&self, seen: &Seen) -> Result<Option<HandOver>, Vec<quorum_safety::Reason>> {
        let Some(own) = leader_on(seen, self.node) else { return Ok(None) };
        let list = seen.observation.etcd.membership.as_result();
        let list = list.map_err(|why| vec![quorum_safety::Reason::new(Rule::MembershipUnknown, why)])?;
        let others = list.voters().map(|voter| voter.id).filter(|voter| *voter != own);
        match first_permitted(seen, others, &self.config.policy()) {
            Ok((to, permit)) => Ok(list.get(own).cloned().map(|from| HandOver { from, to, permit })),
            Err(mut refused) => {
                let nobody = format!("{}: nobody else may lead", self.node);
                refused.push(quorum_safety::Reason::new(Rule::TargetLeads, nobody));
                Err(refused)
            }
        }
    }

    /// What a worker can tell without etcd's certificate: nobody else disrupts, and every apiserver is ready, which asks its own etcd.
    pub async fn worker(&self, client: &Client, nodes: &[soak::Seen]) -> Judged {
        let mut in_flight = lock::observe(client, &self.access.namespace, self.config, self.mine.clone()).await;
        self.as_asked_for(&mut in_flight);
        let servers: Vec<(NodeName, String)> = nodes
            .iter()
            .filter(|node| node.control_plane)
            .filter_map(|node| Some((node.name.clone(), node.address.clone()?)))
            .collect();
        let answers = apiserver::observe(self.access, &servers, self.config.times.answer.get()).await;
        let expected = nodes.iter().filter(|node| node.control_plane).count();
        let reasons = for_worker(&in_flight, &answers, expected, self.config.rule.worker_slots);
        let ready = answers.iter().filter(|server| server.ready == Fact::Known(true));
        let observed =
            Some(Observed::Apiservers { ready_apiservers: ready.map(|server| server.node.clone()).collect() });
        Judged { reasons: reasons.iter().map(Reason::from).collect(), observed, hand_over: None }
    }

    fn as_asked_for(&self, in_flight: &mut InFlight) {
        if self.open && in_flight.kured == Fact::Known(Kured::Held(self.node.0.clone())) {
            in_flight.kured = Fact::Known(Kured::Free);
        }
    }

    /// What of this control plane node is not as it was, by every clause of proven recovery.
    pub async fn control_plane_back(&self, sources: &Sources<'_>, stability: &mut Stability) -> Vec<Reason> {
        let seen = seen::look(sources, self.config, self.mine.clone(), self.clock).await;
        seen.show(self.access).await;
        let limit = self.config.times.answer.get();
        let leaders = leaders::observe(self.access, self.clock, limit).await;
        let expected = Expectation {
            target: self.node.clone(),
            static_pods: as_they_are(&seen, self.node),
            load_balancer: self.config.load_balancer == Kind::Balances,
        };
        let address = seen
            .observation
            .nodes
            .known()
            .and_then(|nodes| nodes.iter().find(|node| node.name == *self.node)?.address.known().cloned());
        let balancer = match (expected.load_balancer, address) {
            (true, Some(address)) => balancer_serves(self.access, &seen.observation.nodes, &address, limit).await,
            (true, None) => LoadBalancer { serves_node: Fact::Unknown("this node has no known address".to_owned()) },
            (false, _) => {
                LoadBalancer { serves_node: Fact::Unknown("not asked: loadBalancer is not `balances`".to_owned()) }
            }
        };
        let required = i64::try_from(self.config.times.stable.get().as_secs()).unwrap_or(i64::MAX);
        let policy = self.config.policy();
        match stability.observe(&expected, &seen.observation, &leaders, &balancer, &policy, required) {
            Recovery::Recovered => Vec::new(),
            Recovery::NotYet(clauses) => {
                clauses.into_iter().map(|clause| Reason::new(Code::Recovering, clause.detail)).collect()
            }
        }
    }
}

/// A reboot changes no image and no manifest: each static pod must be there and ready as it is.
fn as_they_are(seen: &Seen, node: &NodeName) -> BTreeMap<quorum_safety::Component, ExpectedPod> {
    let nodes = seen.observation.nodes.known().map(Vec::as_slice).unwrap_or_default();
    let pods = nodes.iter().find(|view| view.name == *node).and_then(|view| view.static_pods.known());
    let pods = pods.map(Vec::as_slice).unwrap_or_default();
    pods.iter()
        .map(|pod| (pod.component, ExpectedPod { image: pod.image.clone(), config_hash: ConfigHash::Any }))
        .collect()
}

/// Why a worker may not be rebooted, by who else disrupts and by the apiservers.
fn for_worker(
    in_flight: &InFlight,
    apiservers: &[ApiserverView],
    control_plane: usize,
    slots: usize,
) -> Vec<quorum_safety::Reason> {
    let mut reasons = Vec::new();
    let mut say = |code, detail: String| reasons.push(quorum_safety::Reason::new(code, detail));
    match &in_flight.control_plane {
        Fact::Unknown(why) => say(Rule::LeaseUnknown, why.clone()),
        Fact::Known(Lock::Held(holder)) => {
            say(Rule::LeaseHeld, format!("{} holds the control plane's for {}", holder.identity, holder.target));
        }
        Fact::Known(Lock::Free) => {}
    }
    let own = match &in_flight.mine {
        Mine::Nothing => None,
        Mine::Taken(identity) | Mine::Adopted(identity) => Some(identity),
    };
    match &in_flight.workers {
        Fact::Unknown(why) => say(Rule::LeaseUnknown, why.clone()),
        Fact::Known(all) => {
            let held: Vec<_> = all
                .iter()
                .filter_map(|lock| match lock {
                    Lock::Free => None,
                    Lock::Held(holder) => Some(holder),
                })
                .collect();
            match own {
                Some(own) if !held.iter().any(|holder| holder.identity == *own) => {
                    say(Rule::LeaseNotMine, format!("{own} does not hold it"));
                }
                None if held.len() >= slots => {
                    for holder in held {
                        say(Rule::LeaseHeld, format!("{} holds a worker's for {}", holder.identity, holder.target));
                    }
                }
                Some(_) | None => {}
            }
        }
    }
    match &in_flight.kured {
        Fact::Unknown(why) => say(Rule::KuredUnknown, why.clone()),
        Fact::Known(Kured::Held(by)) => say(Rule::KuredLockHeld, format!("held by {by}")),
        Fact::Known(Kured::Absent | Kured::Free) => {}
    }
    match &in_flight.kill_switch {
        Fact::Unknown(why) => say(Rule::KillSwitchUnknown, why.clone()),
        Fact::Known(KillSwitch::Engaged(why)) => say(Rule::KillSwitchEngaged, why.clone()),
        Fact::Known(KillSwitch::Off) => {}
    }
    if control_plane == 0 || apiservers.len() < control_plane {
        let answered = apiservers.len();
        say(Rule::ApiserverUnanswered, format!("{answered} of {control_plane} have a known address"));
    }
    for server in apiservers {
        match &server.ready {
            Fact::Known(true) => {}
            Fact::Known(false) => say(Rule::ApiserverNotReady, server.node.to_string()),
            Fact::Unknown(why) => say(Rule::ApiserverUnanswered, format!("{}: {why}", server.node)),
        }
    }
    reasons
}

/// What recovery says of a control plane node, and what the node says beside it: that, too, begins the time of `good` anew.
pub fn and_own<T: Default>(good: &mut T, mut open: Vec<Reason>, faults: Vec<Reason>) -> Vec<Reason> {
    if !faults.is_empty() {
        *good = T::default();
    }
    open.extend(faults);
    open
}

/// Since when a worker has been good without a break, by the clock of who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steady(Option<UnixSeconds>);

impl Steady {
    /// Another look: what is not as it must be, or for how long it has been.
    pub fn look(&mut self, mut open: Vec<Reason>, required: i64, now: UnixSeconds) -> Vec<Reason> {
        if !open.is_empty() {
            self.0 = None;
            return open;
        }
        let lasted = match self.0.filter(|since| *since <= now) {
            Some(since) => now.0.saturating_sub(since.0),
            None => {
                self.0 = Some(now);
                -1
            }
        };
        if lasted < required {
            open.push(Reason::new(Code::Recovering, format!("it has been good for {} of {required} s", lasted.max(0))));
        }
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::Holder;

    fn holder(identity: &str) -> Lock {
        Lock::Held(Holder { identity: identity.to_owned(), operation: "reboot".to_owned(), target: "w1".into() })
    }

    /// Each row changes one thing of a worker that may go.
    #[test]
    fn h04_a_worker_goes_only_while_nobody_else_disrupts_and_every_apiserver_is_ready() {
        let codes = |change: fn(&mut InFlight, &mut Vec<ApiserverView>)| {
            let mut in_flight = InFlight {
                control_plane: Fact::Known(Lock::Free),
                workers: Fact::Known(vec![Lock::Free]),
                snapshot: Fact::Known(Lock::Free),
                kured: Fact::Known(Kured::Free),
                kill_switch: Fact::Known(KillSwitch::Off),
                mine: Mine::Nothing,
            };
            let view = |name: &str| ApiserverView {
                node: name.into(),
                ready: Fact::Known(true),
                certificate_expires: Fact::Known(UnixSeconds(0)),
            };
            let mut apiservers = vec![view("k1"), view("k2")];
            change(&mut in_flight, &mut apiservers);
            let reasons = for_worker(&in_flight, &apiservers, 2, 1);
            reasons.iter().map(|reason| reason.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(|_, _| {}), []);
        assert_eq!(codes(|all, _| all.control_plane = Fact::Known(holder("x"))), [Rule::LeaseHeld]);
        assert_eq!(codes(|all, _| all.workers = Fact::Known(vec![holder("x")])), [Rule::LeaseHeld]);
        assert_eq!(codes(|all, _| all.mine = Mine::Taken("me".to_owned())), [Rule::LeaseNotMine]);
        let mine: fn(&mut InFlight, &mut Vec<ApiserverView>) = |all, _| {
            all.mine = Mine::Taken("me".to_owned());
            all.workers = Fact::Known(vec![holder("me")]);
        };
        assert_eq!(codes(mine), []);
        assert_eq!(codes(|all, _| all.kured = Fact::Known(Kured::Held("w2".to_owned()))), [Rule::KuredLockHeld]);
        let engaged: fn(&mut InFlight, &mut Vec<ApiserverView>) =
            |all, _| all.kill_switch = Fact::Known(KillSwitch::Engaged(String::new()));
        assert_eq!(codes(engaged), [Rule::KillSwitchEngaged]);
        assert_eq!(codes(|_, servers| servers[1].ready = Fact::Known(false)), [Rule::ApiserverNotReady]);
        assert_eq!(codes(|_, servers| servers.truncate(1)), [Rule::ApiserverUnanswered]);
    }

    #[test]
    fn a_worker_is_back_when_it_has_been_good_for_a_while_without_a_break() {
        let mut steady = Steady::default();
        let sick = || vec![Reason::new(Code::Recovering, "x")];
        assert_eq!(steady.look(Vec::new(), 10, UnixSeconds(100)).len(), 1);
        assert_eq!(steady.look(Vec::new(), 10, UnixSeconds(109)).len(), 1);
        assert_eq!(steady.look(sick(), 10, UnixSeconds(110)).len(), 1);
        assert_eq!(steady.look(Vec::new(), 10, UnixSeconds(111)).len(), 1);
        assert_eq!(steady.look(Vec::new(), 10, UnixSeconds(121)), []);
        let mut steady = Steady::default();
        assert_eq!(steady.look(Vec::new(), 0, UnixSeconds(100)).len(), 1, "two looks at least");
        assert_eq!(steady.look(Vec::new(), 0, UnixSeconds(100)), []);
    }

    #[test]
    fn r30_what_is_missing_on_a_control_plane_node_itself_begins_the_time_anew() {
        let mut good = Steady(Some(UnixSeconds(100)));
        let clause = || vec![Reason::new(Code::Recovering, "etcd is behind")];
        assert_eq!(and_own(&mut good, clause(), Vec::new()), clause());
        assert_eq!(good, Steady(Some(UnixSeconds(100))));
        assert_eq!(and_own(&mut good, Vec::new(), clause()), clause());
        assert_eq!(good, Steady(None));
    }
}
