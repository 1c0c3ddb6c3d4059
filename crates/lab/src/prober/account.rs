//! What a prober counts for one class of requests. Pure: times are lengths since the prober began.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A running count.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    requests: u64,
    failed: u64,
    reopened: u64,
    slowest: Duration,
    last_success: Duration,
    gap: Duration,
    gap_from: Duration,
}

/// What was counted for one class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Requests that ended, well or not.
    pub requests: u64,
    /// Those that did not end with a 2xx answer within the deadline.
    pub failed: u64,
    /// Kept connections that the server closed properly while nothing was asked, and that were opened anew. No failure.
    pub reopened: u64,
    /// The slowest answer that was a success, milliseconds.
    pub slowest_ms: u64,
    /// The longest time without a success, milliseconds; from the start to the first, and from the last to the end, too.
    pub longest_gap_ms: u64,
    /// When that began, milliseconds since the prober did.
    pub gap_from_ms: u64,
}

pub(super) fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

impl Account {
    /// A success that came at `at` and took `took`.
    pub(super) fn success(&mut self, at: Duration, took: Duration) {
        self.requests += 1;
        self.slowest = self.slowest.max(took);
        (self.gap, self.gap_from) = self.gap_at(at);
        self.last_success = self.last_success.max(at);
    }

    pub(super) fn failure(&mut self) {
        self.requests += 1;
        self.failed += 1;
    }

    pub(super) fn reopened(&mut self) {
        self.reopened += 1;
    }

    /// The longest gap so far, with the one that is open.
    fn gap_at(&self, now: Duration) -> (Duration, Duration) {
        let open = now.saturating_sub(self.last_success);
        if open > self.gap { (open, self.last_success) } else { (self.gap, self.gap_from) }
    }

    pub(super) fn tally(&self, now: Duration) -> Tally {
        let (gap, from) = self.gap_at(now);
        Tally {
            requests: self.requests,
            failed: self.failed,
            reopened: self.reopened,
            slowest_ms: millis(self.slowest),
            longest_gap_ms: millis(gap),
            gap_from_ms: millis(from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn the_longest_gap_is_between_successes_and_reaches_to_the_end() {
        let mut account = Account::default();
        account.success(ms(50), ms(3));
        account.success(ms(100), ms(7));
        account.failure();
        account.success(ms(900), ms(5));
        account.success(ms(950), ms(5));
        let expected =
            Tally { requests: 5, failed: 1, reopened: 0, slowest_ms: 7, longest_gap_ms: 800, gap_from_ms: 100 };
        assert_eq!(account.tally(ms(1000)), expected);
        // Silence at the end counts as well.
        assert_eq!(account.tally(ms(2000)).longest_gap_ms, 1050);
        assert_eq!(account.tally(ms(2000)).gap_from_ms, 950);
    }

    #[test]
    fn a_prober_that_never_succeeds_has_one_gap() {
        let mut account = Account::default();
        account.failure();
        let tally = account.tally(ms(5000));
        assert_eq!((tally.requests, tally.failed), (1, 1));
        assert_eq!((tally.longest_gap_ms, tally.gap_from_ms), (5000, 0));
    }
}
