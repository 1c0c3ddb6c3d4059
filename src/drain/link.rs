//! A live client, kept until it fails, and the reads that rehearsal and drain share. Each request has a time of its own, and
//! the restart of one apiserver is not the end of a drain: the next request finds another.

use super::budget::Budget;
use super::filters::{self, DaemonSetKey, Fate, Surroundings};
use super::{DrainError, Options};
use crate::access::Access;
use crate::lock::{Fence, GuardError, fenced};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::ListParams;
use kube::{Api, Client};
use quorum_safety::Fact;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Between two tries of a read that failed.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a missing right is taken for an apiserver that has only just started and has not read its roles.
const DENIED_GRACE: Duration = Duration::from_secs(5);

/// The API through whichever apiserver answers.
pub(crate) struct Link<'a> {
    access: &'a Access,
    request: Duration,
    client: Option<Client>,
}

impl<'a> Link<'a> {
    pub(crate) fn new(access: &'a Access, request: Duration) -> Self {
        Self { access, request, client: None }
    }

    /// The client in use, or one that answers now.
    ///
    /// # Errors
    /// When no apiserver answers.
    pub(super) async fn client(&mut self) -> Result<Client, String> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = self.access.live(&[]).await.map_err(|error| error.to_string())?;
        self.client = Some(client.clone());
        Ok(client)
    }

    /// The client in use has failed: the next request looks for another.
    pub(super) fn lost(&mut self) {
        self.client = None;
    }

    /// One request, once.
    ///
    /// # Errors
    /// Why there is no answer, or what the API answered.
    pub(super) async fn once<T, F>(&mut self, request: impl FnOnce(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let client = self.client().await.map_err(Failure::NoAnswer)?;
        let failure = match timeout(self.request, request(client)).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Failure::from(error),
            Err(_) => Failure::NoAnswer(format!("no answer in {} s", self.request.as_secs())),
        };
        if matches!(failure, Failure::NoAnswer(_)) {
            self.lost();
        }
        Err(failure)
    }

    /// One request that changes something, once. The client is found before the fence is asked: an apiserver that does not answer
    /// uses up nothing of what is left.
    ///
    /// # Errors
    /// As [`Link::once`], or why it may not be sent.
    pub(crate) async fn send<T, F>(
        &mut self,
        fence: &impl Fence,
        request: impl FnOnce(Client, Duration) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let client = self.client().await.map_err(Failure::NoAnswer)?;
        let failure = match fenced(fence, self.request, |limit| request(client, limit)).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Failure::from(error),
            Err(GuardError::NoAnswer(late)) => Failure::NoAnswer(late.to_string()),
            Err(error) => Failure::Late(error.to_string()),
        };
        if matches!(failure, Failure::NoAnswer(_)) {
            self.lost();
        }
        Err(failure)
    }

    /// One request that may be repeated, until it is answered or `until`.
    ///
    /// # Errors
    /// The last answer.
    pub(crate) async fn answer<T, F>(&mut self, until: Instant, request: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let patience = until.min(Instant::now() + DENIED_GRACE);
        loop {
            let (failure, end) = match self.once(&request).await {
                Ok(value) => return Ok(value),
                Err(failure @ Failure::NoAnswer(_)) => (failure, until),
                Err(failure @ Failure::Denied(_)) => {
                    self.lost();
                    (failure, patience)
                }
                Err(failure) => return Err(failure),
            };
            if Instant::now() + PAUSE >= end {
                return Err(failure);
            }
            sleep(PAUSE).await;
        }
    }

    /// The same, of a drain.
    ///
    /// # Errors
    /// As [`Link::answer`], with what was asked.
    pub(super) async fn ask<T, F>(
        &mut self,
        what: &str,
        until: Instant,
        request: impl Fn(Client) -> F,
    ) -> Result<T, DrainError>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let failed = |failure: Failure| DrainError::Api { what: what.to_owned(), said: failure.to_string() };
        self.answer(until, request).await.map_err(failed)
    }

    /// The pods bound to a node.
    pub(super) async fn pods(&mut self, node: &str, until: Instant) -> Result<Vec<Pod>, DrainError> {
        let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let list = self
            .ask(&format!("list the pods of node {node}"), until, |client| {
                let params = params.clone();
                async move { Api::<Pod>::all(client).list(&params).await }
            })
            .await?;
        Ok(list.items)
    }

    /// The UIDs of the DaemonSets that own pods of the list, added to those that were looked up before.
    pub(super) async fn daemon_sets(
        &mut self,
        pods: &[Pod],
        known: &mut BTreeMap<DaemonSetKey, Fact<Option<String>>>,
        until: Instant,
    ) {
        let owners: BTreeSet<_> = pods.iter().filter_map(filters::owning_daemon_set).collect();
        for key in owners {
            if matches!(known.get(&key), Some(Fact::Known(_))) {
                continue;
            }
            let found = self
                .ask("look up a DaemonSet", until, |client| {
                    let (namespace, name) = key.clone();
                    async move { Api::<DaemonSet>::namespaced(client, &namespace).get_metadata_opt(&name).await }
                })
                .await;
            known.insert(key, found.map(|found| found.and_then(|found| found.metadata.uid)).into());
        }
    }

    /// The budgets of some namespaces.
    pub(super) async fn budgets(
        &mut self,
        namespaces: &BTreeSet<&str>,
        until: Instant,
    ) -> Result<Vec<Budget>, DrainError> {
        let mut budgets = Vec::new();
        for namespace in namespaces {
            let what = format!("list the budgets of namespace {namespace}");
            let list = self
                .ask(&what, until, |client| {
                    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client, namespace);
                    async move { budgets.list(&ListParams::default()).await }
                })
                .await?;
            for pdb in &list.items {
                budgets.push(Budget::read(pdb).map_err(|said| DrainError::Api { what: what.clone(), said })?);
            }
        }
        Ok(budgets)
    }

    /// How many pods that a budget counts are ready and have not been told to go.
    pub(super) async fn live(&mut self, budget: &Budget, until: Instant) -> Result<usize, DrainError> {
        let Some(selector) = &budget.selector else { return Ok(0) };
        let params = ListParams::default().labels_from(selector);
        let list = self
            .ask(&format!("list the pods of budget {}/{}", budget.namespace, budget.name), until, |client| {
                let pods: Api<Pod> = Api::namespaced(client, &budget.namespace);
                let params = params.clone();
                async move { pods.list(&params).await }
            })
            .await?;
        Ok(list.items.iter().filter(|pod| filters::ready(pod) && filters::guarded(pod)).count())
    }

    /// What happens to each pod of a list.
    pub(super) fn fates<'p>(
        &self,
        pods: &'p [Pod],
        daemon_sets: &BTreeMap<DaemonSetKey, Fact<Option<String>>>,
        options: &Options,
    ) -> Vec<(&'p Pod, Fate)> {
        let around = Surroundings {
            namespace: &self.access.namespace,
            own_uid: options.own_uid.as_deref(),
            daemon_sets,
            unmanaged: options.unmanaged,
        };
        pods.iter().map(|pod| (pod, filters::fate(pod, &around))).collect()
    }
}

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// No answer, or one that says that this apiserver cannot answer now.
    #[error("{0}")]
    NoAnswer(String),
    /// 401 or 403.
    #[error("{0}")]
    Denied(String),
    /// 404.
    #[error("not found")]
    NotFound,
    /// 409: the object is not as the request supposed.
    #[error("{0}")]
    Conflict(String),
    /// It was not sent: the fence has passed.
    #[error("{0}")]
    Late(String),
    /// Any other answer.
    #[error("{0}")]
    Other(String),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::NoAnswer(chain(&error));
        };
        let message = if status.message.is_empty() { status.reason.clone() } else { status.message.clone() };
        match status.code {
            401 | 403 => Self::Denied(message),
            404 => Self::NotFound,
            409 => Self::Conflict(message),
            // 429 of priority and fairness: the server is busy, not the request wrong.
            429 | 500..=599 => Self::NoAnswer(message),
            code => Self::Other(format!("{code}: {message}")),
        }
    }
}

/// A request that the server gives up when we do: it must not be carried out long after its Lease is somebody else's.
pub(crate) fn bounded<B>(mut request: http::Request<B>, limit: Duration) -> Result<http::Request<B>, kube::Error> {
    let between = if request.uri().query().is_some() { '&' } else { '?' };
    let uri = format!("{}{between}timeout={}ms", request.uri(), limit.as_millis().max(1));
    let unfit = |error: http::uri::InvalidUri| {
        kube::Error::BuildRequest(kube::core::request::Error::BuildRequest(error.into()))
    };
    *request.uri_mut() = uri.parse().map_err(unfit)?;
    Ok(request)
}

/// An error with its causes: hyper's own message is only `client error (Connect)`.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    text
}
