//! How the Kubernetes API is reached: from a workstation through its kubeconfig, from a pod through each apiserver's own
//! address in turn. The Service address picks a frozen apiserver one time in three, so it only serves to find the others.

use crate::cli::Global;
use crate::exit::UsageError;
use crate::observe::etcd::host;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use std::time::Duration;

/// How long one attempt at one apiserver may take before the next is tried.
pub const ATTEMPT: Duration = Duration::from_secs(3);
/// How long an apiserver may be silent in the middle of any request: a frozen one keeps its connections and answers nothing. Those
/// who need an answer sooner have deadlines of their own.
const SILENCE: Duration = Duration::from_secs(15);

/// Environment variable of a Job's container: the apiservers' own addresses, separated by commas.
pub const APISERVERS: &str = "QUORATE_APISERVERS";
/// How often all are tried: a balancer takes seconds to see that a node is dead, and each new connection may meet another.
pub(crate) const ROUNDS: usize = 3;
/// How long a pod looks for the apiservers behind the Service.
const FIND: Duration = Duration::from_secs(90);
/// Between two looks: a refused connection must not spin.
const PAUSE: Duration = Duration::from_millis(500);

/// One or more ways to the same API.
#[derive(Clone)]
pub struct Access {
    ways: Vec<Way>,
    config: Config,
    /// Namespace of quorate.
    pub namespace: String,
}

#[derive(Clone)]
struct Way {
    address: String,
    client: Client,
}

/// Why the API could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// No usable kubeconfig or service account.
    #[error("{0}")]
    Config(#[from] UsageError),
    /// A client could not be made.
    #[error("cannot make a client for {address}: {source}")]
    Client {
        /// The apiserver.
        address: String,
        /// Why.
        source: kube::Error,
    },
    /// Nobody answered; what each said.
    #[error("no apiserver answered: {0}")]
    Unreachable(String),
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Nobody answered.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// What was answered.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

impl Access {
    /// Finds the way that the options name: a kubeconfig file and context, or the pod's own account.
    ///
    /// # Errors
    /// When there is no usable configuration, or in a pod when no apiserver answers.
    pub async fn new(global: &Global) -> Result<Self, AccessError> {
        let namespace = global.namespace.clone();
        if global.kubeconfig.is_none()
            && global.context.is_none()
            && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        {
            let config = Config::incluster().map_err(|error| {
                AccessError::Config(UsageError(format!("the pod's service account cannot be used: {error}")))
            })?;
            return match std::env::var(APISERVERS) {
                Ok(addresses) if !addresses.is_empty() => Self::from_addresses(config, namespace, addresses.split(',')),
                _ => Self::from_service(config, namespace).await,
            };
        }
        let config = kubeconfig(global).await?;
        Ok(Self { ways: vec![way(config.clone())?], config, namespace })
    }

    /// Through one kubeconfig file, such as kubeadm's admin.conf on a control plane node.
    ///
    /// # Errors
    /// When the file is not a usable kubeconfig.
    pub async fn from_file(path: &std::path::Path, namespace: &str) -> Result<Self, AccessError> {
        let global_like = read_kubeconfig(path)?;
        let config = Config::from_custom_kubeconfig(global_like, &KubeConfigOptions::default())
            .await
            .map_err(|error| AccessError::Config(UsageError(format!("kubeconfig {}: {error}", path.display()))))?;
        Ok(Self { ways: vec![way(config.clone())?], config, namespace: namespace.to_owned() })
    }

    /// The same, with one more way: an apiserver that is asked first, at its own address.
    ///
    /// # Errors
    /// When the address is none, or no client can be made of the configuration.
    pub fn first_at(mut self, address: &str) -> Result<Self, AccessError> {
        self.ways.insert(0, way(at(&self.config, address)?)?);
        Ok(self)
    }

    /// The same through nothing but the apiserver at one address.
    ///
    /// # Errors
    /// When the address is none, or no client can be made of the configuration.
    pub fn only_at(mut self, address: &str) -> Result<Self, AccessError> {
        self.ways = vec![way(at(&self.config, address)?)?];
        Ok(self)
    }

    /// Through the addresses that whoever made the Job has told.
    fn from_addresses<'a>(
        config: Config,
        namespace: String,
        addresses: impl Iterator<Item = &'a str>,
    ) -> Result<Self, AccessError> {
        let ways: Result<Vec<Way>, AccessError> = addresses.map(|address| way(at(&config, address)?)).collect();
        Ok(Self { ways: ways?, config, namespace })
    }

    /// Asks the Service address for the apiservers behind it. It is asked again when a frozen one was met: a new connection
    /// meets another. A pod that starts while kube-proxy is being replaced on its node reaches no Service at all for a while:
    /// hence the patience.
    async fn from_service(config: Config, namespace: String) -> Result<Self, AccessError> {
        let end = tokio::time::Instant::now() + FIND;
        loop {
            let service = way(config.clone())?;
            let slices: Api<EndpointSlice> = Api::namespaced(service.client.clone(), "default");
            let params = ListParams::default().labels("kubernetes.io/service-name=kubernetes");
            let last = match tokio::time::timeout(ATTEMPT, slices.list(&params)).await {
                Ok(Ok(list)) => {
                    let mut ways = Vec::new();
                    for address in
                        list.items.iter().flat_map(|slice| slice.endpoints.iter()).flat_map(|e| e.addresses.iter())
                    {
                        ways.push(way(at(&config, address)?)?);
                    }
                    if ways.is_empty() {
                        return Err(AccessError::Unreachable(
                            "the Service default/kubernetes has no endpoints".to_owned(),
                        ));
                    }
                    return Ok(Self { ways, config, namespace });
                }
                Ok(Err(error)) => format!("{}: {error}", service.address),
                Err(_) => format!("{}: no answer in {} s", service.address, ATTEMPT.as_secs()),
            };
            if tokio::time::Instant::now() >= end {
                return Err(AccessError::Unreachable(last));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A client of the apiserver at one address, the certificate checked against that address.
    ///
    /// # Errors
    /// When the address is none, or no client can be made of the configuration.
    pub fn client_at(&self, address: &str) -> Result<Client, AccessError> {
        Ok(way(at(&self.config, address)?)?.client)
    }

    /// The certificate authorities of the cluster, DER; none when the system's own are meant.
    ///
    /// # Errors
    /// When the file that the configuration names cannot be read.
    pub fn authorities(&self) -> Result<Option<Vec<Vec<u8>>>, UsageError> {
        if let Some(certificates) = &self.config.root_cert {
            return Ok(Some(certificates.clone()));
        }
        let Some(path) = &self.config.root_cert_file else { return Ok(None) };
        let wrong = |error: String| UsageError(format!("certificate authority {}: {error}", path.display()));
        let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let blocks = x509_parser::pem::Pem::iter_from_buffer(&pem);
        let certificates: Result<Vec<_>, _> = blocks.map(|block| block.map(|block| block.contents)).collect();
        certificates.map(Some).map_err(|error| wrong(error.to_string()))
    }

    /// Asks something that changes nothing, again where there was no answer; `avoid` as for [`live`](Self::live).
    ///
    /// # Errors
    /// When no apiserver answers, or what one answered.
    pub async fn read<T, F>(&self, avoid: &[String], request: impl Fn(Client) -> F) -> Result<T, ReadError>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let mut left = ROUNDS;
        loop {
            left -= 1;
            match request(self.live(avoid).await?).await {
                Err(error) if left > 0 && unanswered(&error) => tracing::info!(%error, "Asking again"),
                answer => return Ok(answer?),
            }
        }
    }

    /// A client whose apiserver is ready now; those at `avoid` (addresses) are tried last. When none is ready, one that answers at all:
    /// what it can still say is worth hearing.
    ///
    /// # Errors
    /// When none answers; what each said.
    pub async fn live(&self, avoid: &[String]) -> Result<Client, AccessError> {
        let avoided = |way: &&Way| host(&way.address).is_some_and(|host| avoid.contains(&host));
        let mut said = Vec::new();
        for round in 0..ROUNDS {
            if round > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            said.clear();
            let mut answering = None;
            for way in self.ways.iter().filter(|way| !avoided(way)).chain(self.ways.iter().filter(avoided)) {
                match tokio::time::timeout(ATTEMPT, ready(&way.client)).await {
                    Ok(Ok(true)) => return Ok(way.client.clone()),
                    Ok(Ok(false)) => answering = answering.or(Some(way)),
                    Ok(Err(error)) => said.push(format!("{}: {error}", way.address)),
                    Err(_) => said.push(format!("{}: no answer in {} s", way.address, ATTEMPT.as_secs())),
                }
            }
            if let Some(way) = answering {
                return Ok(way.client.clone());
            }
        }
        Err(AccessError::Unreachable(said.join("; ")))
    }
}

/// Whether an error says nothing of what was asked: the connection broke, or nobody answered. A balancer cuts what goes to an apiserver
/// that it has just found dead.
pub fn unanswered(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Service(_) | kube::Error::HyperError(_))
}

/// Whether an apiserver says that it is ready. One whose etcd is away answers, but not with what is asked of it.
async fn ready(client: &Client) -> Result<bool, kube::Error> {
    let request = http::Request::get("/readyz").body(Vec::new()).map_err(kube::Error::HttpError)?;
    match client.request_text(request).await {
        Ok(_) => Ok(true),
        // It answers; where /readyz was taken from everybody, that is all that can be told.
        Err(kube::Error::Api(status)) => Ok(status.code == 401 || status.code == 403),
        Err(error) => Err(error),
    }
}

/// A configuration for one apiserver on its own address, the certificate checked against that address.
fn at(config: &Config, address: &str) -> Result<Config, AccessError> {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let url = format!("https://{host}:6443")
        .parse()
        .map_err(|_| AccessError::Config(UsageError(format!("`{address}` is not an address of an apiserver"))))?;
    let mut config = config.clone();
    config.cluster_url = url;
    config.tls_server_name = None;
    Ok(config)
}

fn way(mut config: Config) -> Result<Way, AccessError> {
    let address = config.cluster_url.to_string();
    config.connect_timeout = Some(ATTEMPT);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    // kube retries 429 by itself, which hides what a budget answers to an eviction; we keep our own deadlines.
    config.default_retry = false;
    let client = Client::try_from(config).map_err(|source| AccessError::Client { address: address.clone(), source })?;
    Ok(Way { address, client })
}

fn read_kubeconfig(path: &std::path::Path) -> Result<Kubeconfig, UsageError> {
    Kubeconfig::read_from(path).map_err(|error| UsageError(format!("kubeconfig {}: {error}", path.display())))
}

async fn kubeconfig(global: &Global) -> Result<Config, UsageError> {
    let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
    let file = match &global.kubeconfig {
        Some(path) => read_kubeconfig(path)?,
        None => Kubeconfig::read()
            .map_err(|error| UsageError(format!("no kubeconfig: {error}; name one with --kubeconfig or KUBECONFIG")))?,
    };
    Config::from_custom_kubeconfig(file, &options).await.map_err(|error| UsageError(format!("kubeconfig: {error}")))
}
