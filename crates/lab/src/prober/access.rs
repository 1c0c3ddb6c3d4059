//! Where a prober's requests go, and who it is: a kubeconfig, a pod's account, or a certificate in files.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;

/// Who a prober is.
#[derive(Debug)]
pub(crate) enum Identity {
    /// A file with a bearer token, read again for each request.
    Token(PathBuf),
    /// A client certificate and its key.
    Certificate(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
}

/// Where requests go, and who sends them.
#[derive(Debug)]
pub(crate) struct Access {
    /// What is connected to; its certificate must name this address.
    pub(crate) address: SocketAddr,
    /// Who may have signed that certificate.
    pub(crate) authorities: Vec<CertificateDer<'static>>,
    /// Who asks.
    pub(crate) identity: Identity,
}

#[derive(Deserialize)]
struct Kubeconfig {
    clusters: Vec<Named<Cluster>>,
    users: Vec<Named<User>>,
}

#[derive(Deserialize)]
struct Named<T> {
    #[serde(alias = "cluster", alias = "user")]
    value: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
}

/// `https://10.10.0.10:6443`, as an address. Names are not looked up: a resolver would be probed, too.
fn address_of(server: &str) -> Result<SocketAddr> {
    let rest = server.strip_prefix("https://").with_context(|| format!("`{server}` does not start with https://"))?;
    let rest = rest.trim_end_matches('/');
    let address = rest.parse().or_else(|_| rest.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 443)));
    address.map_err(|_| anyhow!("`{server}` is not an address like https://10.10.0.10:6443"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// PEM out of a field with the text in base64, or a file relative to the kubeconfig.
fn pem(what: &str, beside: &Path, data: Option<&String>, file: Option<&PathBuf>) -> Result<Vec<u8>> {
    if let Some(data) = data {
        let engine = base64::engine::general_purpose::STANDARD;
        return engine.decode(data.trim()).with_context(|| format!("{what}: bad base64"));
    }
    let Some(file) = file else { bail!("the kubeconfig has no {what}") };
    read(&beside.parent().unwrap_or(Path::new(".")).join(file))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?;
    if found.is_empty() {
        bail!("no certificate in it");
    }
    Ok(found)
}

impl Access {
    /// As the certificates of a kubeconfig of one cluster and one user say, to this server.
    pub(crate) fn from_kubeconfig(path: &Path, server: &str) -> Result<Self> {
        let text = String::from_utf8(read(path)?)?;
        let wrong = || format!("{} is no kubeconfig of one cluster and one user", path.display());
        let config: Kubeconfig =
            serde_saphyr::from_str(&text).map_err(|error| anyhow!("{error}")).with_context(wrong)?;
        let ([cluster], [user]) = (config.clusters.as_slice(), config.users.as_slice()) else { bail!(wrong()) };
        let (cluster, user) = (&cluster.value, &user.value);
        let read = |what: &str, data: Option<&String>, file: Option<&PathBuf>| pem(what, path, data, file);
        let authorities = read(
            "certificate-authority",
            cluster.certificate_authority_data.as_ref(),
            cluster.certificate_authority.as_ref(),
        )?;
        let chain =
            read("client-certificate", user.client_certificate_data.as_ref(), user.client_certificate.as_ref())?;
        let key = read("client-key", user.client_key_data.as_ref(), user.client_key.as_ref())?;
        Ok(Self {
            address: address_of(server)?,
            authorities: certificates(&authorities)?,
            identity: Identity::Certificate(certificates(&chain)?, PrivateKeyDer::from_pem_slice(&key)?),
        })
    }

    /// As a pod: `token` and `ca.crt` of its account.
    pub(crate) fn from_account(folder: &Path, server: &str) -> Result<Self> {
        Ok(Self {
            address: address_of(server)?,
            authorities: certificates(&read(&folder.join("ca.crt"))?)?,
            identity: Identity::Token(folder.join("token")),
        })
    }

    /// As etcd's health check does: `ca.crt`, `healthcheck-client.crt` and `.key` of a folder laid out by kubeadm.
    pub(crate) fn from_etcd_pki(folder: &Path, server: &str) -> Result<Self> {
        let chain = certificates(&read(&folder.join("healthcheck-client.crt"))?)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&folder.join("healthcheck-client.key"))?)?;
        Ok(Self {
            address: address_of(server)?,
            authorities: certificates(&read(&folder.join("ca.crt"))?)?,
            identity: Identity::Certificate(chain, key),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_addresses() {
        assert_eq!(address_of("https://10.10.0.10:6443").unwrap().to_string(), "10.10.0.10:6443");
        assert_eq!(address_of("https://10.96.0.1/").unwrap().to_string(), "10.96.0.1:443");
        for wrong in ["http://10.10.0.10:6443", "https://api.example:6443", "10.10.0.10"] {
            assert!(address_of(wrong).unwrap_err().to_string().contains(wrong));
        }
    }
}
