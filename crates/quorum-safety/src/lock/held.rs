//! The holder's own side: until when it may act.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The times of a Lease. All of them are configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timings {
    /// How long a holder may act after it sent its last successful write: `leaseDurationSeconds`.
    pub lease: Duration,
    /// How often it renews.
    pub renew: Duration,
    /// How much longer an observer waits than the holder: for the rate at which two boot clocks drift apart.
    pub margin: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self { lease: Duration::from_secs(60), renew: Duration::from_secs(20), margin: Duration::from_secs(5) }
    }
}

impl Timings {
    /// How long a Lease must have been seen unchanged until its holder's own deadline has passed for sure.
    pub fn silence(&self) -> Duration {
        self.lease.saturating_add(self.margin)
    }
}

/// A Lease that is held. Times are CLOCK_BOOTTIME of the holder's machine: that clock neither jumps nor stands still while the
/// machine is suspended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    deadline: Duration,
    renew_at: Duration,
    timings: Timings,
    stopped: Option<TooLate>,
}

/// A holder that may not act (any more).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLate {
    /// The deadline has passed: another may hold the Lease by now.
    #[error("the Lease could not be renewed in time: the deadline passed {} s ago", .0.as_secs())]
    Passed(Duration),
    /// The request would not be over before the deadline.
    #[error("the request may take {request:?} and the deadline of the Lease is in {left:?}")]
    TooLong {
        /// The longest the request may take.
        request: Duration,
        /// What is left until the deadline.
        left: Duration,
    },
    /// The Lease is no longer ours.
    #[error("the Lease is lost: {0}")]
    Lost(String),
}

/// Until when one request may run, on the holder's boot clock. It ends before the holder's own deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the request must be given up at this time"]
pub struct RequestDeadline(Duration);

impl RequestDeadline {
    /// The time on the boot clock.
    pub fn at(self) -> Duration {
        self.0
    }

    /// What is left of it; none when it has passed.
    pub fn left(self, now: Duration) -> Option<Duration> {
        self.0.checked_sub(now).filter(|left| !left.is_zero())
    }
}

impl Held {
    /// A Lease taken by a write that was sent at `sent`: read the clock *before* sending, not after the answer.
    pub fn since(sent: Duration, timings: Timings) -> Self {
        Self {
            deadline: sent.saturating_add(timings.lease),
            renew_at: sent.saturating_add(timings.renew),
            timings,
            stopped: None,
        }
    }

    /// When to renew next.
    pub fn renew_at(&self) -> Duration {
        self.renew_at
    }

    /// The holder's own deadline.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// A renewal that was sent at `sent` has been answered with success.
    ///
    /// # Errors
    /// When it was sent after the deadline. It succeeded, so nobody took the Lease; but a holder that was late has to look at the
    /// world anew before it acts, and that is a new [`Held`].
    pub fn renewed(&mut self, sent: Duration) -> Result<(), TooLate> {
        self.still(sent)?;
        self.deadline = self.deadline.max(sent.saturating_add(self.timings.lease));
        self.renew_at = sent.saturating_add(self.timings.renew);
        Ok(())
    }

    /// A renewal failed and may be tried again, soon: a third of the usual interval.
    pub fn renewal_failed(&mut self, now: Duration) {
        self.renew_at = now.saturating_add(self.timings.renew / 3);
    }

    /// The Lease is no longer ours: another writer was there. Final.
    pub fn lost(&mut self, why: impl Into<String>) {
        if !matches!(self.stopped, Some(TooLate::Lost(_))) {
            self.stopped = Some(TooLate::Lost(why.into()));
        }
    }

    /// Whether a disruptive request that takes at most `request` may be sent now.
    ///
    /// # Errors
    /// When it would not be over before the deadline, or the deadline has passed, or the Lease is lost. Once the deadline was seen
    /// to have passed it stays so: the holder stops.
    pub fn may_act(&mut self, now: Duration, request: Duration) -> Result<RequestDeadline, TooLate> {
        let left = self.still(now)?;
        let end = now.saturating_add(request);
        if end > self.deadline {
            return Err(TooLate::TooLong { request, left });
        }
        Ok(RequestDeadline(end))
    }

    /// Whether the Lease is still held: what is left until the deadline.
    ///
    /// # Errors
    /// When the deadline has passed or the Lease is lost; from then on always.
    pub fn still(&mut self, now: Duration) -> Result<Duration, TooLate> {
        if let Some(stopped) = &self.stopped {
            return Err(stopped.clone());
        }
        match self.deadline.checked_sub(now).filter(|left| !left.is_zero()) {
            Some(left) => Ok(left),
            None => {
                let late = TooLate::Passed(now.saturating_sub(self.deadline));
                self.stopped = Some(late.clone());
                Err(late)
            }
        }
    }
}
