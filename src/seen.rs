//! What was seen at one time: the observation and what is under way. Published for `quorate status`, stored beside verdicts.

use crate::access::Access;
use crate::clock::Clock;
use crate::config::Config;
use crate::observe::{self, Sources};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};
use quorum_safety::{Fact, InFlight, Mine, Observation};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// ConfigMap of the last published observation.
pub const CONFIG_MAP: &str = "quorate-observation";
const KEY: &str = "observation.json";

/// What was seen at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seen {
    /// Nodes, members, apiservers.
    pub observation: Observation,
    /// Locks and switches.
    pub in_flight: InFlight,
}

/// Looks once at everything.
pub async fn look(sources: &Sources<'_>, config: &Config, mine: Mine, clock: Clock) -> Seen {
    let (observation, in_flight) =
        tokio::join!(observe::observe(sources, config, clock), in_flight(&sources.access, config, mine));
    Seen { observation, in_flight }
}

async fn in_flight(access: &Result<&Access, String>, config: &Config, mine: Mine) -> InFlight {
    let client = match access {
        Ok(access) => {
            access.live(&[]).await.map_err(|error| error.to_string()).map(|client| (client, &access.namespace))
        }
        Err(why) => Err(why.clone()),
    };
    match client {
        Ok((client, namespace)) => crate::lock::observe(&client, namespace, config, mine).await,
        Err(why) => unknown(&why, mine),
    }
}

/// Nothing is known of what is under way, and why.
fn unknown(why: &str, mine: Mine) -> InFlight {
    InFlight {
        control_plane: Fact::Unknown(why.to_owned()),
        workers: Fact::Unknown(why.to_owned()),
        snapshot: Fact::Unknown(why.to_owned()),
        kured: Fact::Unknown(why.to_owned()),
        kill_switch: Fact::Unknown(why.to_owned()),
        mine,
    }
}

/// Why the published observation could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A request failed.
    #[error("ConfigMap {CONFIG_MAP}: {0}")]
    Request(#[from] kube::Error),
    /// It is not what this version writes.
    #[error("ConfigMap {CONFIG_MAP}, key {KEY}: {0}")]
    Unreadable(#[from] serde_json::Error),
}

impl Seen {
    /// Publishes it for `quorate status`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn publish(&self, client: &Client, namespace: &str) -> Result<(), PublishError> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let object = ConfigMap {
            metadata: ObjectMeta { name: Some(CONFIG_MAP.to_owned()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([(KEY.to_owned(), serde_json::to_string(self)?)])),
            ..ConfigMap::default()
        };
        maps.patch(CONFIG_MAP, &PatchParams::apply("quorate").force(), &Patch::Apply(&object)).await?;
        Ok(())
    }

    /// Publishes it for `quorate status` beside work that does not wait for that: told to people, it decides nothing, and that it could not
    /// be published is a line of the log.
    pub async fn show(&self, access: &Access) {
        let published = match access.live(&[]).await {
            Ok(client) => self.publish(&client, &access.namespace).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = published {
            tracing::warn!(error, "The observation could not be published");
        }
    }

    /// The last published one; none when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn published(client: &Client, namespace: &str) -> Result<Option<Self>, PublishError> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let Some(object) = maps.get_opt(CONFIG_MAP).await? else { return Ok(None) };
        match object.data.as_ref().and_then(|data| data.get(KEY)) {
            Some(text) => Ok(Some(serde_json::from_str(text)?)),
            None => Ok(None),
        }
    }
}
