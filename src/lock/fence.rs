//! Until when disruptive requests may run. Nothing that a request touches looks at the Lease, so whoever sends one asks here first.

use super::guard::{Guard, GuardError};
use super::until;
use crate::clock::Clock;
use quorum_safety::lock::TooLate;
use std::future::Future;
use std::time::Duration;

/// A deadline that is asked anew before each disruptive request: a holder's, which moves with each renewal and may be lost.
pub trait Fence: Sync {
    /// The clock that the deadline is on.
    fn clock(&self) -> Clock;

    /// How much longer disruptive requests may run; never nothing.
    ///
    /// # Errors
    /// When none may be sent any more.
    fn left(&self) -> Result<Duration, TooLate>;
}

impl Fence for Guard {
    fn clock(&self) -> Clock {
        self.leases().clock
    }

    fn left(&self) -> Result<Duration, TooLate> {
        self.check()
    }
}

/// Sends one request of at most `longest`, given up at the fence. The request is made with the time that it has, so that it can tell
/// the server. What it needs is to be found before: a search for an apiserver may take longer than what is left.
///
/// # Errors
/// When it may not be sent, or was not answered in that time.
pub async fn fenced<T, F: Future<Output = T>>(
    fence: &impl Fence,
    longest: Duration,
    request: impl FnOnce(Duration) -> F,
) -> Result<T, GuardError> {
    let clock = fence.clock();
    // In this order: a pause between the two makes the request shorter, not later.
    let now = clock.boottime();
    let limit = fence.left()?.min(longest);
    Ok(until(clock, now.saturating_add(limit), request(limit)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fence at a time on the boot clock, which takes a while to answer.
    struct At {
        end: Duration,
        answer: Duration,
    }

    impl Fence for At {
        fn clock(&self) -> Clock {
            Clock::system()
        }

        fn left(&self) -> Result<Duration, TooLate> {
            let now = self.clock().boottime();
            let left = self.end.checked_sub(now).filter(|left| !left.is_zero());
            std::thread::sleep(self.answer);
            left.ok_or_else(|| TooLate::Passed(now.saturating_sub(self.end)))
        }
    }

    #[tokio::test]
    async fn no_request_outlasts_the_fence_however_long_the_question_took() {
        let ms = Duration::from_millis;
        for (left, pause, sent) in [(ms(200), ms(0), true), (ms(200), ms(300), false), (ms(0), ms(0), false)] {
            let fence = At { end: Clock::system().boottime() + left, answer: pause };
            let mut reached = false;
            let answer = fenced(&fence, Duration::from_secs(9), |limit| {
                assert!(limit <= left);
                reached = true;
                async { Clock::system().boottime() }
            })
            .await;
            match answer {
                Ok(at) => assert!(sent && at < fence.end),
                Err(error) => assert!(!sent, "{error}"),
            }
            assert_eq!(reached, !left.is_zero(), "made, and given up before it was sent");
        }
    }

    #[tokio::test]
    async fn a_request_has_its_own_time_and_no_more_than_the_fence_leaves() {
        let fence = At { end: Clock::system().boottime() + Duration::from_millis(100), answer: Duration::ZERO };
        for longest in [Duration::from_millis(20), Duration::from_secs(60)] {
            let begun = std::time::Instant::now();
            let answer = fenced(&fence, longest, |_| std::future::pending::<()>()).await;
            assert!(answer.is_err());
            assert!(begun.elapsed() < Duration::from_secs(1), "{longest:?}");
        }
    }
}
