//! Asks apiservers, the local etcd and the kubelet how they are, each on its own address.

use reqwest::{Certificate, Client, ClientBuilder, Identity, StatusCode};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// Where it is in a pod: the kubelet's annotation that says where it has the pod from.
const SOURCE: &str = "/metadata/annotations/kubernetes.io~1config.source";

/// What is needed to ask.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pki: PathBuf,
}

impl Probe {
    /// With the certificates of kubeadm below a root.
    pub(super) fn new(root: &std::path::Path) -> Self {
        Self::with(root.join("etc/kubernetes/pki"))
    }

    /// With the certificates in this folder.
    pub(crate) fn with(pki: PathBuf) -> Self {
        Self { pki }
    }

    /// Whether the apiserver at this very address is ready: its certificate is checked against the address, which no peer's names.
    pub(crate) async fn ready(&self, address: SocketAddr) -> Result<(), String> {
        self.get(address, "/readyz").await.map(|_| ())
    }

    /// The version of the apiserver at this very address.
    pub(super) async fn version(&self, address: SocketAddr) -> Result<String, String> {
        let body = self.get(address, "/version").await?;
        let answer: serde_json::Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        let version = answer.get("gitVersion").and_then(serde_json::Value::as_str);
        version.map(str::to_owned).ok_or_else(|| format!("{address} answered /version without gitVersion"))
    }

    /// The UIDs of the static pods that this node's kubelet wants, by name: what runs is not yet, or no longer, that.
    pub(super) async fn wanted(&self) -> Result<BTreeMap<String, String>, String> {
        // Its certificate is its own, signed by nobody.
        let client = Client::builder().tls_danger_accept_invalid_certs(true);
        let body = self.ask(client, "https://127.0.0.1:10250/pods").await?;
        let pods: serde_json::Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        let pods = pods.get("items").and_then(serde_json::Value::as_array).ok_or("it names no pods")?;
        let text = |pod: &serde_json::Value, path| Some(pod.pointer(path)?.as_str()?.to_owned());
        let of_file = |pod: &&serde_json::Value| text(pod, SOURCE).is_some_and(|source| source == "file");
        let named = |pod| Some((text(pod, "/metadata/name")?, text(pod, "/metadata/uid")?));
        Ok(pods.iter().filter(of_file).filter_map(named).collect())
    }

    async fn get(&self, address: SocketAddr, path: &str) -> Result<String, String> {
        let ca = self.read("ca.crt")?;
        let ca = Certificate::from_pem_bundle(&ca).map_err(|error| format!("ca.crt: {error}"))?;
        self.ask(Client::builder().tls_certs_only(ca), &format!("https://{address}{path}")).await
    }

    /// A client is made for each question: kubeadm renews the certificates meanwhile.
    async fn ask(&self, client: ClientBuilder, url: &str) -> Result<String, String> {
        let mut client = client.no_proxy().timeout(ANSWER).pool_max_idle_per_host(0);
        // Where anonymous requests are off, /readyz wants a client. A pair that is torn while it is renewed is done without.
        if let (Ok(mut pem), Ok(key)) =
            (self.read("apiserver-kubelet-client.crt"), self.read("apiserver-kubelet-client.key"))
        {
            pem.extend(key);
            if let Ok(identity) = Identity::from_pem(&pem) {
                client = client.identity(identity);
            }
        }
        let client = client.build().map_err(|error| describe(&error))?;
        answer(&client, url).await
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        let path = self.pki.join(name);
        std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// Asks a plain local address: etcd's metrics port, the kubelet's health port.
pub(super) async fn plain(url: &str) -> Result<(), String> {
    let client = Client::builder().no_proxy().timeout(ANSWER).build().map_err(|error| describe(&error))?;
    answer(&client, url).await.map(|_| ())
}

/// Whether a plain local address answers that it is not ready, and how. One that gives no answer, or knows no such question, does not.
pub(super) async fn not_ready(url: &str) -> Result<Option<String>, String> {
    let client = Client::builder().no_proxy().timeout(ANSWER).build().map_err(|error| describe(&error))?;
    let answer = match client.get(url).send().await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(%error, "No answer");
            return Ok(None);
        }
    };
    if answer.status() != StatusCode::SERVICE_UNAVAILABLE {
        return Ok(None);
    }
    Ok(Some(answer.text().await.map_err(|error| describe(&error))?.trim().to_owned()))
}

async fn answer(client: &Client, url: &str) -> Result<String, String> {
    let answer = client.get(url).send().await.map_err(|error| describe(&error))?;
    let status = answer.status();
    let body = answer.text().await.map_err(|error| describe(&error))?;
    if status.is_success() { Ok(body) } else { Err(format!("{url} answered {status}")) }
}

/// An error of reqwest says why only in its sources.
fn describe(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use lab::api::{Api, Spec};
    use lab::pki::Authority;

    /// As behind a balancer, or a rule that hands connections over. Who asks is this node; the observer has a test of its own
    /// (tests/integration/observe.rs), since it asks with another client.
    #[test]
    fn a_peer_that_answers_in_this_nodes_place_does_not_count() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let api = Api::start(Spec { apiservers: 2, ..Spec::default() }).unwrap();
        let [own, peer, place] = [1, 2, 9].map(|number| SocketAddr::from((api.address(number), 6443)));
        lab::forward::pass_on(place, peer).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let asked = |pki: PathBuf, address| {
            let probe = Probe { pki };
            runtime.block_on(async { (probe.ready(address).await, probe.version(address).await) })
        };
        for address in [own, peer] {
            assert_eq!(asked(api.pki_dir(), address), (Ok(()), Ok("v1.36.1".to_owned())));
        }
        let (ready, version) = asked(api.pki_dir(), place);
        for why in [ready.unwrap_err(), version.unwrap_err()] {
            assert!(why.contains("not valid for name"), "{why}");
        }
        // Nor does one of another cluster that has this very address.
        let other = tempfile::tempdir().unwrap();
        Authority::create(&other.path().join("ca"), "kubernetes").unwrap();
        let (ready, version) = asked(other.path().to_owned(), own);
        for why in [ready.unwrap_err(), version.unwrap_err()] {
            assert!(why.contains("invalid peer certificate"), "{why}");
        }
    }
}
