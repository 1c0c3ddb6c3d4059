//! The one place where time comes from.

use quorum_safety::UnixSeconds;
use std::time::Duration;

/// A source of time, made in `run` and handed down.
#[derive(Clone, Copy, Debug)]
pub struct Clock(());

impl Clock {
    /// The clock of this machine. Called once, in `run`.
    pub const fn system() -> Self {
        Self(())
    }

    /// The wall time, for people and for certificates.
    #[expect(clippy::disallowed_methods, reason = "the one place where time comes from")]
    pub fn now(self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    /// The wall time in seconds.
    pub fn unix(self) -> UnixSeconds {
        UnixSeconds(self.now().as_second())
    }

    /// Time since this machine booted, suspended time included: what deadlines of a lock holder are measured with, since a
    /// wall clock may jump and CLOCK_MONOTONIC stands still while a machine is suspended.
    pub fn boottime(self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
    }
}
