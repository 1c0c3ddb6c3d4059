//! What a sentinel looks at, the cheap first: what etcd and the apiservers say is asked only where nothing cheaper says no.

use super::told::annotate;
use super::{Link, Seen, Work, announced};
use crate::lock::{self, Guard, Leases};
use crate::place;
use crate::sentinel::look::{self, KuredPod, Look};
use crate::sentinel::plan::Facts;
use crate::sentinel::reason::{Code, Reason};
use crate::sentinel::whole::Question;
use crate::sentinel::{alerts, rights, soak, whole, workloads};
use quorum_safety::sentinel::{Lease, Lock, Step};
use quorum_safety::{Fact, Mine, UnixSeconds};
use std::time::Duration;

impl Work<'_> {
    /// Looks at everything that is needed for the next act, the cheap first. Given up when the Lease is lost meanwhile.
    pub(super) async fn look(
        &mut self,
        required: Fact<bool>,
        file: Fact<bool>,
        jumped: bool,
    ) -> Result<Box<Seen>, Reason> {
        let guard = self.memory.guard.take();
        let looked = match &guard {
            Some(guard) => {
                tokio::select! {
                    looked = self.look_with(Some(guard), required, file, jumped) => looked,
                    late = guard.stopped() => {
                        Err(quorum_safety::Reason::new(quorum_safety::Code::LeaseNotMine, late.to_string()).into())
                    }
                }
            }
            None => self.look_with(None, required, file, jumped).await,
        };
        self.memory.guard = guard;
        looked
    }

    async fn look_with(
        &mut self,
        guard: Option<&Guard>,
        required: Fact<bool>,
        file: Fact<bool>,
        jumped: bool,
    ) -> Result<Box<Seen>, Reason> {
        let unknown = |why: String| Reason::new(Code::ApiUnknown, why);
        let link = self.link().await?;
        let (node, limit) = (self.pod.node.clone(), link.config.times.answer.get());
        let look = match look::look(&link.access, &link.config).await {
            Ok(look) => look,
            Err(why) => {
                // The addresses of the apiservers may have changed.
                self.link = None;
                return Err(unknown(why));
            }
        };
        self.memory.saw = true;
        // While a gate is open, or its end is owed, it is the kured of then that counts.
        let counts = self.memory.kured.is_some() && (self.memory.opened.is_some() || self.memory.owes_end);
        if let (Ok(Some(kured)), false) = (&look.kured, counts) {
            self.memory.kured = kured.pods.clone().ok();
        }
        let own = look.nodes.iter().find(|seen| seen.name == node).cloned();
        let own = own.ok_or_else(|| Reason::new(Code::NodeUnknown, format!("the API lists no node {node}")))?;
        let kureds = look.kured.as_ref().ok().and_then(Option::as_ref).map(|kured| kured.found.namespace.clone());
        if rights::to_be_asked(self.memory.rights_seen.as_ref(), kureds.as_deref()) {
            let namespaces = (link.access.namespace.as_str(), link.pods());
            rights::all(&look, namespaces, (own.control_plane, &node.0), limit).await?;
            if own.control_plane {
                let files = self.etcd.test().await;
                files.map_err(|error| Reason::new(Code::EtcdFiles, error.to_string()))?;
            }
            self.memory.rights_seen = Some(kureds);
        }
        if !jumped {
            self.write_boot(&look, &own, limit).await?;
        }
        let slots = look::slots(own.control_plane, &link.config);
        let leases = Leases::new(link.access.clone(), Vec::new(), lock::timings(&link.config), self.clock);
        let (lease, held) = match guard {
            Some(guard) => (Lease::Held(announced(&guard.step_so_far().await)), None),
            None => match look::held_for(&leases, &slots, &node).await {
                Ok(Some(held)) => (Lease::Ours, Some(held)),
                Ok(None) => (Lease::NotOurs, None),
                Err(why) => return Err(why),
            },
        };
        self.memory.nothing_held = lease == Lease::NotOurs;
        let (kured, pod) = self.kureds_lock(&look, lease, limit).await;
        let open = matches!(lease, Lease::Held(Step::Open));
        let under_way = open && matches!(kured, Fact::Known(Lock::Here));
        let mut facts = Facts {
            required,
            file,
            lease,
            kured,
            reasons: self.memory.clocks.reason(link.config.sentinel.soak.get()).into_iter().collect(),
            whole: false,
            waited: self.waited(&look),
            owes_end: self.memory.owes_end,
            gives_up: self.memory.gives_up.clone(),
            rests: self.rests(),
            not_recovered: Vec::new(),
        };
        self.cheap(&look, &link, under_way, &mut facts);
        self.dear(&look, &link, &own, guard, &mut facts).await;
        Ok(Box::new(Seen { link, look, own, leases, slots, held, pod, facts }))
    }

    /// Says on the Node since when it is up, if that is not there.
    async fn write_boot(&mut self, look: &Look, own: &soak::Seen, limit: Duration) -> Result<(), Reason> {
        let now = self.clock.unix();
        let up = i64::try_from(self.clock.boottime().as_secs()).unwrap_or(i64::MAX);
        let Some(boot) = own.unwritten(&look.nodes, now, UnixSeconds(now.0.saturating_sub(up))) else {
            if own.boot_id.known().is_some() {
                self.memory.settled.get_or_insert(self.clock.boottime());
            }
            return Ok(());
        };
        self.memory.settled = None;
        let undone = |why: String| Reason::new(Code::Undone, why);
        let text = serde_json::to_string(&boot).map_err(|error| undone(error.to_string()))?;
        annotate(&look.client, &own.name.0, soak::BOOT, text, limit).await.map_err(undone)
    }

    async fn kureds_lock(&mut self, look: &Look, lease: Lease, limit: Duration) -> (Fact<Lock>, Option<KuredPod>) {
        let node = &self.pod.node;
        let kured = match &look.kured {
            Err(why) => return (Fact::Unknown(why.clone()), None),
            Ok(None) => return (Fact::Known(Lock::Free), None),
            Ok(Some(kured)) => kured,
        };
        let named = kured.names(node);
        if !named && !self.memory.owes_end && lease != Lease::Ours {
            if self.memory.ending.take().is_some() {
                tracing::info!("kured has given its lock back");
            }
            return (kured.lock(node, None, None), None);
        }
        let pod = match &kured.pods {
            Ok(pods) => pods.pod(&look.client, node, limit).await,
            Err(why) => Err(why.clone()),
        };
        match pod {
            Err(why) => (Fact::Unknown(why), None),
            Ok(pod) => (kured.lock(node, pod.as_ref(), self.memory.ending.as_deref()), pod),
        }
    }

    fn waited(&self, look: &Look) -> bool {
        let Some(opened) = self.memory.opened else { return false };
        let period =
            look.kured.as_ref().ok().and_then(Option::as_ref).and_then(|kured| kured.settings.period.clone().ok());
        // Without a known period it is over when it may be.
        let patience =
            period.map_or(Duration::ZERO, |period| period.saturating_add(self.config().sentinel.margin.get()));
        self.clock.boottime().saturating_sub(opened) >= patience
    }

    fn rests(&self) -> Option<String> {
        let left = self.memory.rests?.checked_sub(self.clock.boottime()).filter(|left| !left.is_zero())?;
        Some(format!("for another {} min", left.as_secs().div_ceil(60)))
    }

    /// What nodes and DaemonSets say.
    fn cheap(&mut self, look: &Look, link: &Link, under_way: bool, facts: &mut Facts) {
        let config = &link.config.sentinel;
        let node = &self.pod.node;
        facts.reasons.extend(self.host.test());
        facts.reasons.extend(soak::reasons(&look.nodes, node, under_way, config.soak.get(), self.clock.unix()));
        match &look.sets {
            Ok(sets) => facts.reasons.extend(workloads::reasons(sets, &config.daemon_sets, 0)),
            Err(why) => facts.reasons.push(Reason::new(Code::WorkloadUnknown, why.clone())),
        }
        let control_plane = look.nodes.iter().any(|seen| seen.name == *node && seen.control_plane);
        let about_kured = look.about_kured(self.host.gate(), control_plane);
        self.memory.advice = look.advice(&about_kured);
        facts.reasons.extend(about_kured);
        if !under_way {
            facts.reasons.extend(look.about_window(self.clock.now()));
        }
        facts.reasons.extend(of_another(look, facts));
        // Between two looks with an open gate it took its lock and gave it back: nothing was rebooted.
        match &facts.kured {
            Fact::Known(Lock::Here) if self.memory.opened.is_some() => self.memory.acted = true,
            Fact::Known(Lock::Free) if self.memory.acted && self.memory.gives_up.is_none() => {
                let why = "it took its lock for this node, and has given it back";
                self.memory.gives_up = Some(Reason::new(Code::DrainAborted, why));
                self.memory.aborted = Some(self.clock.boottime());
            }
            Fact::Known(_) | Fact::Unknown(_) => {}
        }
        facts.gives_up = self.memory.gives_up.clone();
    }

    /// What etcd and the apiservers say: asked only where nothing cheaper says no, or what was begun needs it.
    async fn dear(&mut self, look: &Look, link: &Link, own: &soak::Seen, guard: Option<&Guard>, facts: &mut Facts) {
        let node = self.pod.node.clone();
        let question = |mine: Mine, open: bool| Question {
            access: &link.access,
            config: &link.config,
            clock: self.clock,
            node: &node,
            mine,
            open,
        };
        let sources = place::in_pod_with(&link.access, self.etcd.clone());
        let closed = facts.file == Fact::Known(false);
        self.memory.hand_over = None;
        let back = matches!(facts.lease, Lease::Held(Step::Recover))
            || (closed && !facts.owes_end && facts.gives_up.is_some() && facts.lease == Lease::Held(Step::Open));
        if let Some(guard) = guard.filter(|_| back) {
            let faults = self.own_faults(look, link, own);
            facts.not_recovered = if own.control_plane {
                let mine = Mine::Adopted(guard.identity().await);
                let stability = &mut self.memory.stability;
                let open = question(mine, true).control_plane_back(&sources, stability).await;
                whole::and_own(stability, open, faults)
            } else {
                let required = i64::try_from(link.config.times.stable.get().as_secs()).unwrap_or(i64::MAX);
                self.memory.steady.look(faults, required, self.clock.unix())
            };
        }
        let wants = facts.required == Fact::Known(true) && facts.reasons.is_empty() && facts.rests.is_none();
        let asks = match facts.lease {
            Lease::Held(Step::Acquired | Step::Open) => wants && facts.gives_up.is_none(),
            Lease::NotOurs => wants && !facts.owes_end && facts.kured == Fact::Known(Lock::Free),
            Lease::Held(Step::Recover) | Lease::Ours | Lease::Unknown => false,
        };
        if !asks {
            return;
        }
        // kured's drain raises alerts of its own; it, too, looks at them before it takes its lock and never after.
        let drains = matches!(facts.lease, Lease::Held(Step::Open)) && facts.kured == Fact::Known(Lock::Here);
        if !drains {
            facts.reasons.extend(alerts::reasons(&link.config.sentinel.alerts, link.config.times.answer.get()).await);
            if !facts.reasons.is_empty() {
                return;
            }
        }
        let mine = guard.map_or(Mine::Nothing, Guard::mine);
        let question = question(mine, matches!(facts.lease, Lease::Held(Step::Open)));
        let judged = if own.control_plane {
            question.control_plane(&sources, closed).await
        } else {
            question.worker(&look.client, &look.nodes).await
        };
        facts.reasons.extend(judged.reasons);
        facts.whole = true;
        self.memory.judged = judged.observed;
        self.memory.hand_over = judged.hand_over;
    }

    /// What of this node itself keeps it from being back: its own condition, and the workloads that must be whole (incident R30). What is
    /// missing on another node that is down is that node's: the Lease would be kept for as long, and nothing be mended under it.
    fn own_faults(&self, look: &Look, link: &Link, own: &soak::Seen) -> Vec<Reason> {
        let mut faults = Vec::new();
        match &own.ready {
            Fact::Known((true, _)) => {}
            Fact::Known((false, _)) => faults.push(Reason::new(Code::Recovering, format!("{} is not Ready", own.name))),
            Fact::Unknown(why) => faults.push(Reason::new(Code::Recovering, format!("{}: {why}", own.name))),
        }
        let others = look.nodes.iter().filter(|node| node.name != own.name);
        let down = others.filter(|node| !matches!(node.ready, Fact::Known((true, _)))).count();
        match &look.sets {
            Ok(sets) => faults.extend(
                workloads::reasons(sets, &link.config.sentinel.daemon_sets, down)
                    .into_iter()
                    .map(|reason| Reason::new(Code::Recovering, reason.detail)),
            ),
            Err(why) => faults.push(Reason::new(Code::Recovering, why.clone())),
        }
        faults
    }
}

/// kured's lock while it is not what an open gate of this node has asked for.
fn of_another(look: &Look, facts: &Facts) -> Option<Reason> {
    let not_asked_for = match &facts.kured {
        Fact::Known(Lock::Elsewhere) => true,
        Fact::Known(Lock::Here | Lock::Returning) => !matches!(facts.lease, Lease::Held(_)),
        Fact::Known(Lock::Free) | Fact::Unknown(_) => false,
    };
    let kured = look.kured.as_ref().ok().and_then(Option::as_ref).filter(|_| not_asked_for)?;
    let blocks = kured.found.lock.known().and_then(Option::as_ref).map(|lock| lock.blocks()).unwrap_or_default();
    let owners: Vec<&str> = blocks.iter().map(|block| block.node_id.as_str()).collect();
    let held = format!("held by {}", owners.join(", "));
    Some(quorum_safety::Reason::new(quorum_safety::Code::KuredLockHeld, held).into())
}
