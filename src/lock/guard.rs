//! A Lease in the hand: renewed in the background, asked before every disruptive request.

use super::lease::{LeaseError, Leases, SeenLease, Write};
use super::until;
use quorum_safety::Mine;
use quorum_safety::lock::{Held, LeaseView, Record, Step, TooLate};
use quorum_safety::{Fact, NodeName};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Between two tries to give a Lease back.
const AGAIN: Duration = Duration::from_millis(500);

/// Why a holder could not go on.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// It is late, or the Lease is lost: stop.
    #[error("{0}")]
    TooLate(#[from] TooLate),
    /// The Lease could not be written.
    #[error("{0}")]
    Lease(#[from] LeaseError),
    /// A request took longer than it may.
    #[error("{0}")]
    NoAnswer(#[from] super::NoAnswer),
    /// kured's lock could not be given back.
    #[error("kured's lock: {0}")]
    Kured(String),
}

/// A Lease that is held. Dropping it ends the renewal and leaves the Lease and its record in the cluster: what is half done is found
/// there and adopted. Only [`Guard::release`] gives it back.
#[derive(Debug)]
#[must_use = "a Lease that is held and dropped stays in the cluster until somebody adopts it"]
pub struct Guard {
    shared: Arc<Shared>,
    adopted: Option<Step>,
    renewal: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    leases: Leases,
    identity: String,
    held: Mutex<Held>,
    /// One writer at a time: renewal, steps and release follow each other's resourceVersion.
    last: tokio::sync::Mutex<Last>,
    stopped: Notify,
}

#[derive(Debug)]
struct Last {
    seen: SeenLease,
    record: Record,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl Guard {
    pub(crate) fn start(leases: Leases, seen: SeenLease, record: Record, held: Held, adopted: Option<Step>) -> Self {
        let shared = Arc::new(Shared {
            leases,
            identity: record.identity.clone(),
            held: Mutex::new(held),
            last: tokio::sync::Mutex::new(Last { seen, record }),
            stopped: Notify::new(),
        });
        let renewal = tokio::spawn(renew(Arc::clone(&shared)));
        Self { shared, adopted, renewal }
    }

    /// How far the previous holder was, when its operation was adopted.
    pub fn adopted(&self) -> Option<&Step> {
        self.adopted.as_ref()
    }

    /// How far the record says we are.
    pub async fn step_so_far(&self) -> Step {
        self.shared.last.lock().await.record.step.clone()
    }

    /// The target of the operation.
    pub async fn target(&self) -> NodeName {
        self.shared.last.lock().await.record.target.clone()
    }

    /// The operation.
    pub async fn operation(&self) -> String {
        self.shared.last.lock().await.record.operation.clone()
    }

    /// The `holderIdentity`.
    pub async fn identity(&self) -> String {
        self.shared.last.lock().await.record.identity.clone()
    }

    /// What `judge` is to be told. Does not wait: the identity never changes.
    pub fn mine(&self) -> Mine {
        let identity = self.shared.identity();
        if self.adopted.is_some() { Mine::Adopted(identity) } else { Mine::Taken(identity) }
    }

    /// What is left until the deadline.
    ///
    /// # Errors
    /// When it is late or lost, from then on always: stop, and go on only through [`super::take`].
    pub fn check(&self) -> Result<Duration, TooLate> {
        self.shared.still()
    }

    /// Completes when the Lease is late or lost; to be raced with what must not outlive it.
    pub async fn stopped(&self) -> TooLate {
        loop {
            let notified = self.shared.stopped.notified();
            match self.check() {
                Err(late) => return late,
                Ok(left) => {
                    // Whatever comes first: the renewal gives up, or the deadline passes unnoticed (a pause).
                    let _woken = tokio::time::timeout(left, notified).await;
                }
            }
        }
    }

    /// Sends one disruptive request that takes at most `longest`, under a deadline that ends before the holder's own.
    ///
    /// # Errors
    /// When it would not be over in time (then it is not sent), or was not.
    pub async fn act<T>(&self, longest: Duration, request: impl Future<Output = T>) -> Result<T, GuardError> {
        let now = self.shared.leases.clock.boottime();
        let deadline = self.shared.held().may_act(now, longest)?;
        Ok(until(self.shared.leases.clock, deadline.at(), request).await?)
    }

    /// Announces a step, before anything of it is done. A write that was refused or not answered is tried again until the deadline: the
    /// apiserver of the node it is about may be just ending.
    ///
    /// # Errors
    /// When it could not be written: then nothing of it may be done.
    pub async fn step(&self, step: Step) -> Result<(), GuardError> {
        let mut last = self.shared.last.lock().await;
        let record = Record { step, step_since: self.shared.leases.clock.unix(), ..last.record.clone() };
        loop {
            let error = match self.shared.keep(&mut last, record.clone()).await {
                Err(GuardError::Lease(error)) if !matches!(error, LeaseError::Json(..)) => error,
                other => return other,
            };
            if self.check().is_err() {
                return Err(error.into());
            }
            tracing::warn!(lease = last.seen.name, %error, "The step was not announced; trying again");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Gives the Lease back with its record: only when the operation is finished, undone, or has touched nothing. A write that was
    /// refused or not answered is tried again until the deadline: just then the apiserver of the target may have restarted.
    ///
    /// # Errors
    /// When it could not be written; then it stays, and the next attempt finds it.
    pub async fn release(self) -> Result<(), GuardError> {
        self.renewal.abort();
        let mut last = self.shared.last.lock().await;
        let leases = &self.shared.leases;
        loop {
            let left = self.shared.still()?;
            let end = leases.clock.boottime().saturating_add(left.min(leases.request_limit()));
            let error = match leases.write(&last.seen, &Write::GiveBack, end).await {
                Ok(_) => {
                    self.shared.lost("it was given back");
                    return Ok(());
                }
                Err(error @ LeaseError::Json(..)) => return Err(error.into()),
                Err(error) => error,
            };
            tracing::warn!(lease = last.seen.name, %error, "The Lease was not given back; trying again");
            tokio::time::sleep(AGAIN).await;
            // An answer that was lost, or a write that cannot matter: look who holds it now.
            match leases.read(&last.seen.name).await {
                Ok(seen) => match &seen.view {
                    LeaseView::Held { identity, .. } if *identity == last.record.identity => last.seen = seen,
                    LeaseView::Free { .. } | LeaseView::Absent => return Ok(()),
                    LeaseView::Held { .. } => return Err(error.into()),
                },
                Err(unread) => tracing::warn!(lease = last.seen.name, error = %unread, "The Lease could not be read"),
            }
        }
    }

    /// The Leases among which it is.
    pub(crate) fn leases(&self) -> &Leases {
        &self.shared.leases
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Held> {
        // Held has no invariant that a panic could break half-way.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn still(&self) -> Result<Duration, TooLate> {
        let now = self.leases.clock.boottime();
        self.held().still(now)
    }

    fn lost(&self, why: &str) {
        self.held().lost(why);
        self.stopped.notify_waiters();
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    /// Writes the record, and with it renews. A second write follows a conflict that was none of another holder's.
    async fn keep(&self, last: &mut Last, record: Record) -> Result<(), GuardError> {
        match self.keep_once(last, record.clone()).await {
            Err(GuardError::Lease(LeaseError::Conflict(_))) => {
                self.read_again(last).await?;
                self.keep_once(last, record).await
            }
            other => other,
        }
    }

    async fn keep_once(&self, last: &mut Last, record: Record) -> Result<(), GuardError> {
        let left = self.still()?;
        let sent = self.leases.clock.boottime();
        let end = sent.saturating_add(left.min(self.leases.request_limit()));
        let seen = self.leases.write(&last.seen, &Write::Keep(&record), end).await?;
        *last = Last { seen, record };
        Ok(self.held().renewed(sent)?)
    }

    /// After a conflict: a write of ours whose answer was lost, a hand that changed a label, or the end.
    async fn read_again(&self, last: &mut Last) -> Result<(), GuardError> {
        let seen = self.leases.read(&last.seen.name).await?;
        match &seen.view {
            LeaseView::Held { identity, release: Fact::Known(None), record: Fact::Known(_), .. }
                if *identity == last.record.identity =>
            {
                last.seen = seen;
                Ok(())
            }
            LeaseView::Held { identity, .. } if *identity == last.record.identity => {
                self.lost("it was released by hand, or its record was changed");
                Ok(self.still().map(drop)?)
            }
            LeaseView::Held { identity, .. } => {
                self.lost(&format!("`{identity}` holds it"));
                Ok(self.still().map(drop)?)
            }
            LeaseView::Absent | LeaseView::Free { .. } => {
                self.lost("nobody holds it: it was emptied or deleted");
                Ok(self.still().map(drop)?)
            }
        }
    }
}

/// Renews until the Lease is late, lost or given back.
async fn renew(shared: Arc<Shared>) {
    let clock = shared.leases.clock;
    loop {
        let wait = shared.held().renew_at().saturating_sub(clock.boottime());
        tokio::time::sleep(wait).await;
        if shared.still().is_err() {
            break;
        }
        let mut last = shared.last.lock().await;
        let record = last.record.clone();
        if let Err(error) = shared.keep(&mut last, record).await {
            tracing::warn!(lease = last.seen.name, %error, "The Lease was not renewed");
            shared.held().renewal_failed(clock.boottime());
        }
    }
    if let Err(late) = shared.still() {
        tracing::error!(%late, "The Lease is no longer held");
    }
    shared.stopped.notify_waiters();
}
