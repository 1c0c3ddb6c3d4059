//! Whether a load balancer serves a node: fresh connections to the virtual address show that node's own certificate.

use crate::access::Access;
use crate::observe::apiserver;
use std::time::Duration;

/// How many fresh connections are made for each apiserver behind the balancer: one that takes them in turn comes to each three times.
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
    any(ROUNDS * apiservers, ask).await
}

/// Whether one of so many answers is yes; the last one if none is.
async fn any(times: usize, ask: impl AsyncFn() -> Result<bool, String>) -> Result<bool, String> {
    let mut last = Err("it is not known how many apiservers are behind it".to_owned());
    for _ in 0..times {
        last = ask().await;
        if last == Ok(true) {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// The answer of a balancer that takes that many apiservers in turn, the node's own last or never, and how often was asked.
    fn in_turn(apiservers: usize, ever: bool) -> (Result<bool, String>, usize) {
        let asked = Cell::new(0);
        let ask = async || {
            asked.set(asked.get() + 1);
            Ok(ever && asked.get() == apiservers)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answer = runtime.block_on(any(ROUNDS * apiservers, ask));
        (answer, asked.get())
    }

    #[test]
    fn each_apiserver_is_met_three_times_before_one_is_missed() {
        for apiservers in [1, 3, 5, 7] {
            assert_eq!(in_turn(apiservers, true), (Ok(true), apiservers));
            assert_eq!(in_turn(apiservers, false), (Ok(false), 3 * apiservers));
        }
        assert!(in_turn(0, false).0.is_err(), "of nobody nothing is known");
    }
}
