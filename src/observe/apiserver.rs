//! Asks each apiserver on its own address, the certificate checked against that address: while a node's connections are
//! handed over, a peer answers in its place, and must not pass for it.

use crate::access::Access;
use crate::observe::certificate::{served, words};
use quorum_safety::{ApiserverView, Fact, NodeName, UnixSeconds};
use std::time::Duration;

/// The port of kubeadm's apiservers.
pub(crate) const PORT: u16 = 6443;

/// Asks all of them, in parallel: `(node, InternalIP)`.
pub async fn observe(access: &Access, servers: &[(NodeName, String)], deadline: Duration) -> Vec<ApiserverView> {
    let anybody = anybody(access, deadline);
    let anybody = &anybody;
    futures::future::join_all(servers.iter().map(|(node, address)| async move {
        let (ready, certificate_expires) = ask(access, anybody, address, deadline).await;
        ApiserverView { node: node.clone(), ready, certificate_expires }
    }))
    .await
}

async fn ask(
    access: &Access,
    anybody: &Result<reqwest::Client, String>,
    address: &str,
    deadline: Duration,
) -> (Fact<bool>, Fact<UnixSeconds>) {
    let answer = match anybody {
        Ok(anybody) => get(anybody, &authority(address)).await,
        Err(error) => Err(error.clone()),
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            return (Fact::Unknown(format!("{address}: {error}")), Fact::Unknown(format!("{address}: {error}")));
        }
    };
    let expires = served(&answer).into();
    let status = answer.status().as_u16();
    // kubeadm lets everybody read /readyz (system:public-info-viewer); where that was taken away, our own account asks.
    if status == 401 || status == 403 {
        return (authenticated(access, address, deadline).await, expires);
    }
    (Fact::Known(status == 200), expires)
}

/// The certificate that a fresh connection to `HOST:PORT` is served with, DER.
pub(crate) async fn certificate(access: &Access, authority: &str, deadline: Duration) -> Result<Vec<u8>, String> {
    // A client of its own: its connection is fresh.
    let answer = get(&anybody(access, deadline)?, authority).await?;
    let info = answer.extensions().get::<reqwest::tls::TlsInfo>().ok_or("no TLS on the connection")?;
    info.peer_certificate().map(<[u8]>::to_vec).ok_or_else(|| "the server showed no certificate".to_owned())
}

/// `HOST:PORT` of the apiserver at an InternalIP.
pub(crate) fn authority(address: &str) -> String {
    if address.contains(':') { format!("[{address}]:{PORT}") } else { format!("{address}:{PORT}") }
}

/// A client that shows no certificate of its own and trusts the cluster's authority.
fn anybody(access: &Access, deadline: Duration) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder().tls_info(true).no_proxy().timeout(deadline);
    if let Some(authorities) = access.authorities().map_err(|error| error.to_string())? {
        let certificates: Result<Vec<_>, _> =
            authorities.iter().map(|der| reqwest::Certificate::from_der(der)).collect();
        builder = builder.tls_certs_only(certificates.map_err(|error| words(&error))?);
    }
    builder.build().map_err(|error| words(&error))
}

/// One request for `/readyz`.
async fn get(anybody: &reqwest::Client, authority: &str) -> Result<reqwest::Response, String> {
    anybody.get(format!("https://{authority}/readyz")).send().await.map_err(|error| words(&error))
}

async fn authenticated(access: &Access, address: &str, deadline: Duration) -> Fact<bool> {
    let ask = async {
        let client = access.client_at(address).map_err(|error| error.to_string())?;
        let request = http::Request::get("/readyz").body(Vec::new()).map_err(|error| error.to_string())?;
        match tokio::time::timeout(deadline, client.request_text(request)).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(kube::Error::Api(status))) if status.code >= 500 => Ok(false),
            Ok(Err(error)) => Err(format!("{address}: {error}")),
            Err(_) => Err(format!("{address}: no answer in {} s", deadline.as_secs_f32())),
        }
    };
    ask.await.into()
}
