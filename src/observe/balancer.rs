//! Whether a load balancer serves a node: fresh connections to the virtual address show that node's own certificate.

use crate::access::Access;
use crate::observe::apiserver;
use std::time::Duration;

/// How many fresh connections are made for each apiserver behind the balancer.
const ROUNDS: usize = 3;
/// The most apiservers that are counted on.
const SERVERS: usize = 5;

/// Whether one of some fresh connections to `endpoint` is served by the node at `address`.
///
/// # Errors
/// When the node's own certificate or the endpoint cannot be read, in words.
pub async fn serves(access: &Access, endpoint: &str, address: &str, deadline: Duration) -> Result<bool, String> {
    let own = apiserver::certificate(access, &apiserver::authority(address), deadline).await?;
    let mut last = Ok(false);
    for _ in 0..ROUNDS * SERVERS {
        match apiserver::certificate(access, endpoint, deadline).await {
            Ok(shown) if shown == own => return Ok(true),
            Ok(_) => last = Ok(false),
            Err(error) => last = Err(format!("{endpoint}: {error}")),
        }
    }
    last
}
