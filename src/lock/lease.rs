//! Lease objects: read linearizably, written with the resourceVersion that was read.

use super::until;
use crate::access::{Access, ReadError};
use crate::clock::Clock;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use quorum_safety::Fact;
use quorum_safety::lock::{LeaseView, Record, Release, Timings};
use std::collections::BTreeMap;
use std::time::Duration;

/// The annotation with the holder's record.
pub const HOLDER: &str = "quorate.dev/holder";
/// The annotation with a release by hand.
pub const RELEASED: &str = "quorate.dev/released";
/// Who writes, as managedFields tell it.
pub const FIELD_MANAGER: &str = "quorate";

/// Why a Lease could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// No apiserver answers.
    #[error("{0}")]
    Access(#[from] crate::access::AccessError),
    /// The API server refused, or the connection failed.
    #[error("Lease {name}: {said}")]
    Refused {
        /// The Lease.
        name: String,
        /// What it said.
        said: String,
    },
    /// Somebody else wrote since it was read: read and decide again.
    #[error("Lease {0} was written by somebody else in between")]
    Conflict(String),
    /// No answer in time; a write may or may not have happened.
    #[error("Lease {0}: {1}")]
    NoAnswer(String, super::NoAnswer),
    /// A record that cannot be written as JSON.
    #[error("Lease {0}: the record cannot be written: {1}")]
    Json(String, serde_json::Error),
}

/// What an API error says, on one line.
pub fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} {}: {}", status.code, status.reason, status.message),
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(cause) = source {
                if !text.contains(&cause.to_string()) {
                    text.push_str(&format!(": {cause}"));
                }
                source = cause.source();
            }
            text
        }
    }
}

/// A Lease as it was read.
#[derive(Clone, Debug)]
pub struct SeenLease {
    /// Its name.
    pub name: String,
    /// What it says.
    pub view: LeaseView,
    /// `spec.renewTime`; for people only.
    pub renewed: Option<jiff::Timestamp>,
    object: Option<Lease>,
}

/// Reads one Lease. A GET without a resourceVersion is answered from etcd by quorum, never from a cache.
///
/// # Errors
/// When it could not be read; not when it does not exist.
pub async fn read(client: &Client, namespace: &str, name: &str, limit: Duration) -> Result<SeenLease, LeaseError> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    match tokio::time::timeout(limit, api.get_opt(name)).await {
        Ok(Ok(object)) => Ok(SeenLease::of(name, object)),
        Ok(Err(error)) => Err(LeaseError::Refused { name: name.to_owned(), said: said(&error) }),
        Err(_) => Err(LeaseError::NoAnswer(name.to_owned(), super::NoAnswer(limit))),
    }
}

impl SeenLease {
    /// The release by hand that gave up what it was held for, while nobody has taken it since; for courtesy only.
    pub fn abandoned(&self) -> Option<Release> {
        let LeaseView::Free { .. } = self.view else { return None };
        let annotations = self.object.as_ref()?.metadata.annotations.as_ref()?;
        serde_json::from_str(annotations.get(RELEASED)?).ok()
    }

    fn of(name: &str, object: Option<Lease>) -> Self {
        let renewed = object.as_ref().and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref()).map(|time| time.0);
        Self { name: name.to_owned(), view: view(object.as_ref()), renewed, object }
    }
}

fn view(object: Option<&Lease>) -> LeaseView {
    let Some(lease) = object else { return LeaseView::Absent };
    let version = lease.metadata.resource_version.clone().unwrap_or_else(|| "none".to_owned());
    let annotation = |key: &str| lease.metadata.annotations.as_ref().and_then(|all| all.get(key));
    let identity = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_else(String::new);
    if identity.is_empty() && annotation(HOLDER).is_none() {
        return LeaseView::Free { version };
    }
    let record = match annotation(HOLDER) {
        None => Fact::Unknown(format!("no annotation {HOLDER}")),
        Some(json) => match serde_json::from_str::<Record>(json) {
            Err(error) => Fact::Unknown(format!("annotation {HOLDER}: {error}")),
            Ok(record) if record.identity == identity => Fact::Known(record),
            Ok(record) => Fact::Unknown(format!(
                "annotation {HOLDER} is of `{}`, and holderIdentity is `{identity}`",
                record.identity
            )),
        },
    };
    let release = match annotation(RELEASED) {
        None => Fact::Known(None),
        Some(json) => match serde_json::from_str::<Release>(json) {
            Ok(release) => Fact::Known(Some(release)),
            Err(error) => Fact::Unknown(format!("annotation {RELEASED}: {error}")),
        },
    };
    LeaseView::Held { version, identity, record, release }
}

/// What a write makes of a Lease.
pub(crate) enum Write<'a> {
    /// Taken or adopted by a new holder.
    Take(&'a Record),
    /// Renewed, or another step, by the same holder.
    Keep(&'a Record),
    /// Given back.
    GiveBack,
    /// Released by hand; the holder and its record stay.
    Release(&'a Release),
    /// Given up by hand: free, and the release stays until the next holder, for people.
    Abandon(&'a Release),
}

/// The Leases of a cluster and how to reach them.
#[derive(Clone)]
pub struct Leases {
    access: Access,
    avoid: Vec<String>,
    /// Our times.
    pub timings: Timings,
    /// The clock.
    pub clock: Clock,
}

impl std::fmt::Debug for Leases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leases").field("avoid", &self.avoid).field("timings", &self.timings).finish_non_exhaustive()
    }
}

impl Leases {
    /// The Leases in the namespace of `access`. Apiservers at `avoid` (the addresses of the target) are asked last.
    pub fn new(access: Access, avoid: Vec<String>, timings: Timings, clock: Clock) -> Self {
        Self { access, avoid, timings, clock }
    }

    /// The namespace they are in.
    pub fn namespace(&self) -> &str {
        &self.access.namespace
    }

    /// A client whose apiserver answers now.
    ///
    /// # Errors
    /// When none answers.
    pub async fn client(&self) -> Result<Client, LeaseError> {
        Ok(self.access.live(&self.avoid).await?)
    }

    /// Reads an object that has to be there, again where there was no answer.
    ///
    /// # Errors
    /// In words, when it could not be read, or is not there.
    pub(crate) async fn get<K, F>(&self, name: &str, api: F) -> Result<K, String>
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
        F: Fn(Client) -> Api<K>,
    {
        let limit = self.request_limit();
        let get = self.access.read(&self.avoid, |client| {
            let api = api(client);
            async move { api.get(name).await }
        });
        match tokio::time::timeout(limit, get).await {
            Ok(Ok(object)) => Ok(object),
            Ok(Err(ReadError::Api(error))) => Err(said(&error)),
            Ok(Err(ReadError::Access(error))) => Err(error.to_string()),
            Err(_) => Err(format!("no answer in {limit:?}")),
        }
    }

    /// How long one request of ours may take, with the search for an apiserver that answers: a third of the Lease, so that one lost
    /// request is no lost Lease.
    pub fn request_limit(&self) -> Duration {
        self.timings.lease / 3
    }

    /// Reads a Lease.
    ///
    /// # Errors
    /// When it could not be read; not when it does not exist.
    pub async fn read(&self, name: &str) -> Result<SeenLease, LeaseError> {
        let limit = self.request_limit();
        self.within(name, self.clock.boottime().saturating_add(limit), async {
            let client = self.client().await?;
            read(&client, self.namespace(), name, limit).await
        })
        .await
    }

    /// Writes a Lease, on the condition that nobody wrote since `seen`; `end` is on the boot clock.
    pub(crate) async fn write(
        &self,
        seen: &SeenLease,
        write: &Write<'_>,
        end: Duration,
    ) -> Result<SeenLease, LeaseError> {
        let name = seen.name.as_str();
        let object = self.changed(seen, write)?;
        self.within(name, end, async {
            let api: Api<Lease> = Api::namespaced(self.client().await?, self.namespace());
            let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
            let answer = match seen.object {
                Some(_) => api.replace(name, &params, &object).await,
                None => api.create(&params, &object).await,
            };
            match answer {
                Ok(written) => Ok(SeenLease::of(name, Some(written))),
                Err(kube::Error::Api(status)) if status.code == 409 => Err(LeaseError::Conflict(name.to_owned())),
                // Deleted in between: as good as written by somebody else.
                Err(kube::Error::Api(status)) if status.code == 404 && seen.object.is_some() => {
                    Err(LeaseError::Conflict(name.to_owned()))
                }
                Err(error) => Err(LeaseError::Refused { name: name.to_owned(), said: said(&error) }),
            }
        })
        .await
    }

    async fn within<T>(
        &self,
        name: &str,
        end: Duration,
        request: impl Future<Output = Result<T, LeaseError>>,
    ) -> Result<T, LeaseError> {
        match until(self.clock, end, request).await {
            Ok(answer) => answer,
            Err(late) => Err(LeaseError::NoAnswer(name.to_owned(), late)),
        }
    }

    fn changed(&self, seen: &SeenLease, write: &Write<'_>) -> Result<Lease, LeaseError> {
        let json = |error| LeaseError::Json(seen.name.clone(), error);
        let mut lease = seen.object.clone().unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(seen.name.clone()),
                namespace: Some(self.namespace().to_owned()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let now = MicroTime(self.clock.now());
        let annotations = lease.metadata.annotations.get_or_insert_with(BTreeMap::new);
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        match write {
            Write::Take(record) | Write::Keep(record) => {
                annotations.insert(HOLDER.to_owned(), serde_json::to_string(record).map_err(json)?);
                spec.holder_identity = Some(record.identity.clone());
                spec.lease_duration_seconds = i32::try_from(self.timings.lease.as_secs().max(1)).ok();
                spec.renew_time = Some(now.clone());
                if matches!(write, Write::Take(_)) {
                    annotations.remove(RELEASED);
                    spec.acquire_time = Some(now);
                    spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count.saturating_add(1)));
                }
            }
            Write::GiveBack => {
                annotations.remove(HOLDER);
                annotations.remove(RELEASED);
                spec.holder_identity = None;
                spec.renew_time = Some(now);
            }
            Write::Abandon(release) => {
                annotations.remove(HOLDER);
                annotations.insert(RELEASED.to_owned(), serde_json::to_string(release).map_err(json)?);
                spec.holder_identity = None;
                spec.renew_time = Some(now);
            }
            Write::Release(release) => {
                annotations.insert(RELEASED.to_owned(), serde_json::to_string(release).map_err(json)?);
            }
        }
        Ok(lease)
    }

    /// The identities that hold any of these Leases.
    pub async fn holders(&self, names: &[String]) -> Fact<Vec<String>> {
        let mut holders = Vec::new();
        for name in names {
            match self.read(name).await {
                Err(error) => return Fact::Unknown(error.to_string()),
                Ok(seen) => {
                    if let LeaseView::Held { identity, .. } = seen.view {
                        holders.push(identity);
                    }
                }
            }
        }
        Fact::Known(holders)
    }
}
