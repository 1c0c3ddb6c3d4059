//! The drain itself: look at what is on the node, evict what is due, until nothing is left or the time is up. Each round starts
//! from what the API shows now, so an answer that was lost, an apiserver that restarts or a pod that comes back under the
//! same name needs no code of its own.

use super::eviction::{Mode, Outcome, delete, evict};
use super::filters::{self, DaemonSetKey, Fate, SkipReason, Skipped};
use super::link::{Failure, Link};
use super::rehearse::reference;
use super::{BlockKind, Blocker, DrainError, Options, PodRef, STOP_EVERY, budget};
use crate::access::Access;
use crate::config::BudgetPolicy;
use crate::lock::{Fence, GuardError, fenced};
use k8s_openapi::api::core::v1::Pod;
use quorum_safety::Fact;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How many pods of one controller that came after the drain began are evicted, or as many as it had at first if that is
/// more: a controller that binds pods to the node by name would never be done.
const RETURNS: usize = 3;
/// How long the answer to "stop?" may take: enough for each of three apiservers to be tried.
const STOP_ANSWER: Duration = Duration::from_secs(15);

/// Whoever runs a drain: asked whether it may go on, told what happens.
pub trait Overseer {
    /// Why to stop, if the drain is to stop: the kill switch (incident R31). Asked before the first eviction and every
    /// [`STOP_EVERY`] after. What cannot be read is a reason to stop.
    fn should_stop(&mut self) -> impl Future<Output = Option<String>> + Send;

    /// Told once for each change.
    fn progress(&mut self, event: &Progress);
}

/// What happens while a node is drained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Progress {
    /// A pod was told to go.
    Evicting(PodRef),
    /// A pod was deleted past its budget, as the policy of its namespace says.
    Deleting(PodRef),
    /// A pod is gone.
    Gone(PodRef),
    /// A pod does not go yet; told again when the reason changes.
    Waiting(Blocker),
    /// The API could not be asked; told again when the reason changes.
    Trouble(String),
}

/// What a drain did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    /// The pods that are gone.
    pub gone: Vec<PodRef>,
    /// Those of them that were deleted past their budget.
    pub deleted: Vec<PodRef>,
    /// The pods that stayed, which is in order.
    pub stayed: Vec<Skipped>,
    /// Whole seconds that it took.
    pub seconds: u64,
}

/// Evicts every pod that has to go and waits until each is gone by its UID. The fence is asked right before each eviction and
/// deletion is sent, and none outlasts it.
///
/// # Errors
/// [`DrainError::Blocked`] before anything is evicted, or when only pods are left that waiting does not remove;
/// [`DrainError::Deadline`] with every pod that is left and what keeps it; [`DrainError::Stopped`]. The cordon stays in each
/// case: [`super::uncordon`] is the caller's.
pub async fn drain(
    access: &Access,
    node: &str,
    options: &Options,
    fence: &impl Fence,
    overseer: &mut impl Overseer,
) -> Result<Report, DrainError> {
    let start = Instant::now();
    let mut drain = Drain {
        node,
        options,
        fence,
        link: Link::new(access, options.request),
        start,
        end: start + options.deadline,
        begun: false,
        daemon_sets: BTreeMap::new(),
        pods: BTreeMap::new(),
        arrivals: BTreeMap::new(),
        blocked: Vec::new(),
        trouble: None,
        report: Report::default(),
    };
    let mut asked: Option<Instant> = None;
    loop {
        if asked.is_none_or(|at| at.elapsed() >= STOP_EVERY) {
            match timeout(STOP_ANSWER, overseer.should_stop()).await {
                Ok(None) => {}
                Ok(Some(because)) => return Err(drain.stopped(because)),
                Err(_) => return Err(drain.stopped("whether to stop could not be found out".to_owned())),
            }
            asked = Some(Instant::now());
        }
        if Instant::now() >= drain.end {
            return Err(drain.late());
        }
        // A look may take as long as one request, not longer: the kill switch is asked in between.
        let pause = match drain.look().await {
            Ok(seen) => match drain.round(&seen, overseer).await? {
                Round::Done => return Ok(drain.finished()),
                Round::More => Duration::ZERO,
                Round::Wait => options.poll,
            },
            Err(error) => {
                drain.trouble(error.to_string(), overseer);
                options.poll
            }
        };
        sleep(pause.min(drain.end.saturating_duration_since(Instant::now()))).await;
    }
}

/// What is known of one pod that has to go.
#[derive(Debug)]
struct Track {
    pod: PodRef,
    /// No eviction before this.
    next: Instant,
    tries: u32,
    /// What keeps it; none when it has been told to go.
    blocker: Option<Blocker>,
    finalizers: Vec<String>,
    deleted: bool,
}

struct Drain<'a, F> {
    node: &'a str,
    options: &'a Options,
    fence: &'a F,
    link: Link<'a>,
    start: Instant,
    end: Instant,
    /// Whether the first list has been seen.
    begun: bool,
    daemon_sets: BTreeMap<DaemonSetKey, Fact<Option<String>>>,
    /// The pods that have to go, by UID.
    pods: BTreeMap<String, Track>,
    /// How many pods of each controller were there at first, and how many came later.
    arrivals: BTreeMap<String, (usize, usize)>,
    /// What stands in the way and was not there at first.
    blocked: Vec<Blocker>,
    trouble: Option<String>,
    report: Report,
}

enum Round {
    Done,
    /// Something is due already.
    More,
    Wait,
}

impl<F: Fence> Drain<'_, F> {
    async fn look(&mut self) -> Result<Vec<Pod>, DrainError> {
        // One try: the loop is the retry.
        let until = Instant::now();
        let pods = self.link.pods(self.node, until).await?;
        self.link.daemon_sets(&pods, &mut self.daemon_sets, until).await;
        let unknown = self.daemon_sets.iter().find_map(|(key, found)| match found {
            Fact::Unknown(why) => Some((key, why)),
            Fact::Known(_) => None,
        });
        match unknown {
            None => Ok(pods),
            Some(((namespace, name), why)) => {
                Err(DrainError::Api { what: format!("look up DaemonSet {namespace}/{name}"), said: why.clone() })
            }
        }
    }

    async fn round(&mut self, seen: &[Pod], overseer: &mut impl Overseer) -> Result<Round, DrainError> {
        self.trouble = None;
        let (going, blocked) = self.sort(seen)?;
        let first = !self.begun;
        self.begun = true;
        self.blocked.clone_from(&blocked);
        // As kubectl: what can never go is said before the first eviction, not after the last.
        if !blocked.is_empty() && (first || going.is_empty()) {
            return Err(DrainError::Blocked { node: self.node.to_owned(), blockers: blocked });
        }
        self.forget_the_gone(seen, &going, overseer);
        if going.is_empty() {
            return Ok(Round::Done);
        }
        // Also while nothing is due: whoever is late stops.
        self.fence.left().map_err(|late| self.stopped(late.to_string()))?;
        let due: Vec<PodRef> = going
            .values()
            .filter(|pod| !filters::leaving(pod))
            .filter_map(|pod| self.pods.get(pod.metadata.uid.as_deref()?))
            .filter(|track| track.next <= Instant::now())
            .map(|track| track.pod.clone())
            .collect();
        let more = due.len() > self.options.parallel.max(1);
        let batch: Vec<PodRef> = due.into_iter().take(self.options.parallel.max(1)).collect();
        let refused = self.evict(batch, overseer).await?;
        match self.meet_refusals(&refused, &going, overseer).await {
            Ok(()) => {}
            Err(stopped @ DrainError::Stopped { .. }) => return Err(stopped),
            Err(error) => {
                self.trouble(error.to_string(), overseer);
                self.unnamed(&refused, overseer);
            }
        }
        Ok(if more { Round::More } else { Round::Wait })
    }

    /// Who has to go, by UID, and who stands in the way.
    fn sort<'p>(&mut self, seen: &'p [Pod]) -> Result<(BTreeMap<String, &'p Pod>, Vec<Blocker>), DrainError> {
        let mut going = BTreeMap::new();
        let mut blocked = Vec::new();
        let mut stayed = Vec::new();
        for (pod, fate) in self.link.fates(seen, &self.daemon_sets, self.options) {
            let reference = reference(pod, self.node)?;
            let fate = match fate {
                Fate::Evict => self.newcomer(pod, &reference).map_or(Fate::Evict, Fate::Skip),
                other => other,
            };
            match fate {
                Fate::Evict => {
                    let track = || Track {
                        pod: reference.clone(),
                        next: Instant::now(),
                        tries: 0,
                        blocker: None,
                        finalizers: Vec::new(),
                        deleted: false,
                    };
                    let track = self.pods.entry(reference.uid.clone()).or_insert_with(track);
                    if filters::leaving(pod) {
                        track.blocker = None;
                        track.finalizers = pod.metadata.finalizers.clone().into_iter().flatten().collect();
                    }
                    going.insert(reference.uid, pod);
                }
                Fate::Skip(reason) => stayed.push(Skipped { pod: reference, reason }),
                Fate::Block(kind, reason) => blocked.push(Blocker { pod: reference, budget: None, kind, reason }),
            }
        }
        stayed.sort();
        self.report.stayed = stayed;
        Ok((going, blocked))
    }

    /// Why a pod that came after the drain began is left alone; none when it has to go too: the scheduler may have bound it
    /// just before it saw the cordon.
    fn newcomer(&mut self, pod: &Pod, reference: &PodRef) -> Option<SkipReason> {
        if self.pods.contains_key(&reference.uid) {
            return None;
        }
        let counts = filters::controller(pod).map(|owner| self.arrivals.entry(owner.uid.clone()).or_insert((0, 0)));
        if !self.begun {
            if let Some((at_first, _)) = counts {
                *at_first += 1;
            }
            return None;
        }
        if filters::tolerates_cordon(pod) {
            return Some(SkipReason::ToleratesCordon);
        }
        let (at_first, later) = counts?;
        if *later >= RETURNS.max(*at_first) {
            return Some(SkipReason::KeepsReturning);
        }
        *later += 1;
        None
    }

    fn forget_the_gone(&mut self, seen: &[Pod], going: &BTreeMap<String, &Pod>, overseer: &mut impl Overseer) {
        let there: BTreeSet<&str> = seen.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        let over: Vec<String> = self.pods.keys().filter(|uid| !going.contains_key(*uid)).cloned().collect();
        for track in over.iter().filter_map(|uid| self.pods.remove(uid)) {
            // Still there, and no longer one that has to go: it is among those that stay or block.
            if there.contains(track.pod.uid.as_str()) {
                continue;
            }
            overseer.progress(&Progress::Gone(track.pod.clone()));
            if track.deleted {
                self.report.deleted.push(track.pod.clone());
            }
            self.report.gone.push(track.pod);
        }
    }

    /// Evicts a batch; those that a budget refuses are given back with what the server said.
    async fn evict(
        &mut self,
        batch: Vec<PodRef>,
        overseer: &mut impl Overseer,
    ) -> Result<BTreeMap<String, String>, DrainError> {
        let longest = self.longest();
        if longest.is_zero() {
            self.not_asked(&batch, overseer);
            return Ok(BTreeMap::new());
        }
        let client = match self.link.client().await {
            Ok(client) => client,
            Err(said) => {
                self.trouble(said, overseer);
                return Ok(BTreeMap::new());
            }
        };
        let fence = self.fence;
        let asked = batch.into_iter().map(|pod| {
            let (client, asked) = (client.clone(), pod.clone());
            async move { (pod, fenced(fence, longest, |limit| evict(client, asked, Mode::Real, limit)).await) }
        });
        let answers = futures::future::join_all(asked).await;
        let mut refused = BTreeMap::new();
        let mut late = None;
        for (pod, answer) in answers {
            let outcome = match answer {
                Ok(outcome) => outcome,
                Err(GuardError::NoAnswer(silent)) => Outcome::NoAnswer { said: silent.to_string() },
                Err(error) => {
                    late = Some(error.to_string());
                    continue;
                }
            };
            let (kind, reason, after) = match outcome {
                Outcome::Accepted => {
                    overseer.progress(&Progress::Evicting(pod.clone()));
                    self.later(&pod, None);
                    continue;
                }
                Outcome::Gone => continue,
                Outcome::Refused { said, after } => {
                    refused.insert(pod.uid.clone(), said);
                    self.later(&pod, after);
                    continue;
                }
                Outcome::SeveralBudgets { said } => {
                    refused.insert(pod.uid.clone(), said);
                    self.later(&pod, None);
                    continue;
                }
                Outcome::Denied { said } => (BlockKind::Denied, said, None),
                Outcome::Busy { said, after } => (BlockKind::Unknown, said, after),
                // Given up with the whole drain.
                Outcome::NoAnswer { .. } if self.longest().is_zero() => {
                    self.not_asked(&[pod], overseer);
                    continue;
                }
                Outcome::NoAnswer { said } => {
                    self.link.lost();
                    (BlockKind::Unknown, said, None)
                }
            };
            self.later(&pod, after);
            self.blocked(&pod, overseer, None, kind, format!("its eviction was not accepted: {reason}"));
        }
        late.map_or(Ok(refused), |because| Err(self.stopped(because)))
    }

    /// The time of the drain is up: of pods for which no answer could be waited for any more, what was said before says more.
    fn not_asked(&mut self, pods: &[PodRef], overseer: &mut impl Overseer) {
        for pod in pods {
            if self.pods.get(&pod.uid).is_some_and(|track| track.blocker.is_none() && track.tries == 0) {
                let reason = "no time was left to ask for its eviction".to_owned();
                self.blocked(pod, overseer, None, BlockKind::Unknown, reason);
            }
        }
    }

    /// The longest that one request may take: what is left of the whole drain, at most.
    fn longest(&self) -> Duration {
        self.options.request.min(self.end.saturating_duration_since(Instant::now()))
    }

    /// Names the budgets that refuse, and deletes where the policy of the namespace says so.
    async fn meet_refusals(
        &mut self,
        refused: &BTreeMap<String, String>,
        going: &BTreeMap<String, &Pod>,
        overseer: &mut impl Overseer,
    ) -> Result<(), DrainError> {
        let until = Instant::now();
        let pods: Vec<(PodRef, &Pod, &String)> = refused
            .iter()
            .filter_map(|(uid, said)| Some((self.pods.get(uid)?.pod.clone(), *going.get(uid)?, said)))
            .collect();
        let namespaces: BTreeSet<&str> = pods.iter().map(|(pod, ..)| pod.namespace.as_str()).collect();
        let budgets = self.link.budgets(&namespaces, until).await?;
        let past_half = self.start.elapsed() >= self.options.deadline / 2;
        let mut touched = BTreeSet::new();
        for (reference, pod, said) in &pods {
            let counting = budget::of(pod, &budgets);
            let names = budget::names(&counting);
            let kind = if counting.len() > 1 { BlockKind::SeveralBudgets } else { BlockKind::BudgetExhausted };
            let mut reason = said.to_string();
            if past_half && self.options.policy(&reference.namespace) == BudgetPolicy::DeleteAfterHalf {
                // One at a time for each budget: the next is weighed when this one no longer counts as ready.
                let fresh = counting.iter().all(|budget| touched.insert((&budget.namespace, &budget.name)));
                match self.may_delete(&counting, until).await? {
                    Ok(()) if fresh && !counting.is_empty() => {
                        self.delete(reference, overseer).await?;
                        continue;
                    }
                    Ok(()) => {}
                    Err(why) => reason = why,
                }
            }
            self.blocked(reference, overseer, names, kind, reason);
        }
        Ok(())
    }

    /// Those that were refused while their budgets could not be read.
    fn unnamed(&mut self, refused: &BTreeMap<String, String>, overseer: &mut impl Overseer) {
        for (uid, said) in refused {
            let Some(track) = self.pods.get(uid).filter(|track| track.blocker.is_none()) else { continue };
            let pod = track.pod.clone();
            self.blocked(&pod, overseer, None, BlockKind::BudgetExhausted, said.clone());
        }
    }

    async fn may_delete(
        &mut self,
        counting: &[&budget::Budget],
        until: Instant,
    ) -> Result<Result<(), String>, DrainError> {
        let mut standing = Vec::new();
        for budget in counting {
            standing.push((*budget, self.link.live(budget, until).await?));
        }
        Ok(budget::may_delete(&standing))
    }

    async fn delete(&mut self, pod: &PodRef, overseer: &mut impl Overseer) -> Result<(), DrainError> {
        match self.link.send(self.fence, |client, limit| delete(client, pod.clone(), limit)).await {
            Ok(()) => {
                overseer.progress(&Progress::Deleting(pod.clone()));
                if let Some(track) = self.pods.get_mut(&pod.uid) {
                    track.deleted = true;
                    track.blocker = None;
                }
                Ok(())
            }
            // Gone, or another pod of that name is there.
            Err(Failure::NotFound | Failure::Conflict(_)) => Ok(()),
            Err(Failure::Late(because)) => Err(self.stopped(because)),
            Err(failure) => Err(DrainError::Api { what: format!("delete pod {pod}"), said: failure.to_string() }),
        }
    }

    /// When to ask for a pod again: what the server asked for, and never at once; spread out, so that a hundred pods behind
    /// one budget do not ask in step.
    fn later(&mut self, pod: &PodRef, after: Option<Duration>) {
        if let Some(track) = self.pods.get_mut(&pod.uid) {
            track.tries = track.tries.saturating_add(1);
            track.next = Instant::now() + spread(self.options.retry.max(after.unwrap_or_default()), pod, track.tries);
        }
    }

    fn blocked(
        &mut self,
        pod: &PodRef,
        overseer: &mut impl Overseer,
        budget: Option<String>,
        kind: BlockKind,
        reason: String,
    ) {
        let Some(track) = self.pods.get_mut(&pod.uid) else { return };
        let blocker = Blocker { pod: pod.clone(), budget, kind, reason };
        if track.blocker.as_ref() != Some(&blocker) {
            tracing::info!(pod = %pod, reason = %blocker.reason, "A pod does not go yet");
            overseer.progress(&Progress::Waiting(blocker.clone()));
            track.blocker = Some(blocker);
        }
    }

    fn trouble(&mut self, said: String, overseer: &mut impl Overseer) {
        if self.trouble.as_ref() != Some(&said) {
            tracing::info!(said, "The API could not be asked");
            overseer.progress(&Progress::Trouble(said.clone()));
            self.trouble = Some(said);
        }
    }

    fn finished(mut self) -> Report {
        self.report.gone.sort();
        self.report.deleted.sort();
        self.report.seconds = self.start.elapsed().as_secs();
        self.report
    }

    fn stopped(&self, because: String) -> DrainError {
        let mut left: Vec<_> = self.pods.values().map(|track| track.pod.clone()).collect();
        left.sort();
        DrainError::Stopped { node: self.node.to_owned(), because, left }
    }

    fn late(&self) -> DrainError {
        let blocker = |track: &Track| {
            track.blocker.clone().unwrap_or_else(|| Blocker {
                pod: track.pod.clone(),
                budget: None,
                kind: BlockKind::Leaving,
                reason: match track.finalizers.as_slice() {
                    [] => "told to go, and still there: its node has not confirmed that it ended".to_owned(),
                    finalizers => format!("told to go, and kept by its finalizers {}", finalizers.join(", ")),
                },
            })
        };
        let mut blockers: Vec<_> = self.pods.values().map(blocker).chain(self.blocked.clone()).collect();
        blockers.sort();
        let after = self.start.elapsed();
        DrainError::Deadline { node: self.node.to_owned(), after, blockers, trouble: self.trouble.clone() }
    }
}

/// A time, up to a fifth longer: by the pod's UID and the number of the try, so that no source of randomness is needed.
fn spread(time: Duration, pod: &PodRef, tries: u32) -> Duration {
    let seed = pod.uid.bytes().fold(tries, |seed, byte| seed.wrapping_mul(31).wrapping_add(u32::from(byte)));
    time + time.mul_f64(f64::from(seed % 1000) / 5000.0)
}
