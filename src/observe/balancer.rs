//! Whether a load balancer serves a node: fresh connections to the virtual address show that node's own certificate.

use crate::access::Access;
use crate::observe::apiserver;
use std::time::Duration;

/// How often as many fresh connections are made as there are apiservers behind the balancer. Each time all at once: one after the other,
/// others that come in step between them may have one that takes them in turn give us the same apiserver every time.
const ROUNDS: usize = 3;

/// Whether one of some fresh connections to `endpoint`, behind which there are that many apiservers, is served by the node at `address`.
///
/// # Errors
/// When the node's own certificate or the endpoint cannot be read, in words.
pub async fn serves(
    access: &Access,
    endpoint: &str,
    apiservers: usize,
    address: &str,
    deadline: Duration,
) -> Result<bool, String> {
    let own = apiserver::certificate(access, &apiserver::authority(address), deadline).await?;
    let ask = async || {
        let shown = apiserver::certificate(access, endpoint, deadline).await;
        shown.map(|shown| shown == own).map_err(|error| format!("{endpoint}: {error}"))
    };
    any(apiservers, ask).await
}

/// Whether one answer is yes of as many as there are apiservers, in up to three rounds; the last one if none is.
async fn any(apiservers: usize, ask: impl AsyncFn() -> Result<bool, String>) -> Result<bool, String> {
    let mut last = Err("it is not known how many apiservers are behind it".to_owned());
    for _ in 0..ROUNDS {
        for answer in futures::future::join_all((0..apiservers).map(|_| ask())).await {
            last = answer;
            if last == Ok(true) {
                return last;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// The answer of a balancer that takes that many apiservers in turn, the node's own last or never, while so many connections of
    /// others come after each batch of ours; and how often was asked.
    fn in_turn(apiservers: usize, others: usize, ever: bool) -> (Result<bool, String>, usize) {
        let (asked, others_came) = (Cell::new(0), Cell::new(0));
        let ask = async || {
            if asked.get() > 0 && asked.get() % apiservers == 0 {
                others_came.set(others_came.get() + others);
            }
            asked.set(asked.get() + 1);
            let turn = (asked.get() + others_came.get()) % apiservers;
            tokio::task::yield_now().await;
            Ok(ever && turn == 0)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answer = runtime.block_on(any(apiservers, ask));
        (answer, asked.get())
    }

    #[test]
    fn each_apiserver_is_met_three_times_before_one_is_missed() {
        for apiservers in [1, 3, 5, 7] {
            for others in 0..apiservers {
                assert_eq!(in_turn(apiservers, others, true), (Ok(true), apiservers));
                assert_eq!(in_turn(apiservers, others, false), (Ok(false), 3 * apiservers));
            }
        }
        assert!(in_turn(0, 0, false).0.is_err(), "of nobody nothing is known");
    }

    #[test]
    fn all_connections_of_a_round_are_made_before_one_is_answered() {
        let (open, most) = (Cell::new(0), Cell::new(0));
        let ask = async || {
            open.set(open.get() + 1);
            most.set(most.get().max(open.get()));
            tokio::task::yield_now().await;
            open.set(open.get() - 1);
            Ok(false)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(any(3, ask)), Ok(false));
        assert_eq!(most.get(), 3);
    }
}
