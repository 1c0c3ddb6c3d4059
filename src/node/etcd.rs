//! etcd that kubeadm would write just as it is. kubeadm restarts it all the same whenever the apiserver changes, only because it
//! renews etcd's certificates (kubeadm 1.36, `upgradeComponent`); and etcd reads them anew for each handshake. So it is left alone
//! and gets its certificates: no voter is missed, and nothing waits for it.

use super::certificate;
use super::command::{Deadline, Echo, ToolError, run};
use super::host::{Host, HostError};
use super::manifests::Manifests;
use crate::cli::node::{JsonObject, Upgrade};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// etcd's certificates: how `kubeadm certs renew` calls them, and where they are.
const CERTIFICATES: [(&str, &str); 3] = [
    ("etcd-server", "etcd/server.crt"),
    ("etcd-peer", "etcd/peer.crt"),
    ("etcd-healthcheck-client", "etcd/healthcheck-client.crt"),
];
/// The certificate that kubeadm renews whenever it upgrades the apiserver, and by which the age of etcd's is judged.
const APISERVER: &str = "apiserver.crt";
/// kubeadm makes them all in one run: when they end further apart than one can take, they are not of the same one. In seconds.
const ONE_RUN: i64 = 30 * 60;
const PKI: &str = "etc/kubernetes/pki";
/// For kubeadm's eyes only; there is one node step on a host.
const SCRATCH: &str = "/run/quorate/kubeadm";
/// How long kubeadm may take to write a file.
const WRITES: Duration = Duration::from_secs(60);

/// Why it cannot be told whether etcd stays as it is.
pub(super) type Why = String;

/// A configuration of kubeadm for this node, in a folder that goes with it.
struct Configuration {
    folder: PathBuf,
}

impl Configuration {
    /// Writes what `kubeadm upgrade` would read from the cluster: ClusterConfiguration, with the target's version, and this node.
    fn write(order: &Upgrade, manifests: &Manifests, apiserver: SocketAddr) -> Result<Self, Why> {
        let given = order.cluster_configuration.as_ref().ok_or("the order has no ClusterConfiguration")?;
        let name = manifests.pods.get("etcd").and_then(|etcd| etcd.flag("name")).ok_or("its manifest has no --name")?;
        let text = documents(given, order, name, apiserver)?;
        let configuration = Self { folder: PathBuf::from(SCRATCH) };
        configuration.remove().map_err(|error| format!("{SCRATCH}: {error}"))?;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(SCRATCH);
        made.map_err(|error| format!("{SCRATCH}: {error}"))?;
        let path = configuration.path();
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(configuration)
    }

    fn path(&self) -> PathBuf {
        self.folder.join("kubeadm.json")
    }

    fn remove(&self) -> std::io::Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::debug!(%error, "A folder in /run stays until the next reboot");
        }
    }
}

/// Two documents, as kubeadm reads them.
fn documents(given: &JsonObject, order: &Upgrade, name: &str, apiserver: SocketAddr) -> Result<String, Why> {
    let version = given.get("apiVersion").ok_or("the ClusterConfiguration of the order has no apiVersion")?;
    let node = json!({
        "apiVersion": version,
        "kind": "InitConfiguration",
        "localAPIEndpoint": {"advertiseAddress": apiserver.ip().to_string(), "bindPort": apiserver.port()},
        "nodeRegistration": {"name": name},
    });
    let mut cluster = given.clone();
    cluster.insert("kubernetesVersion".to_owned(), order.to.to_string().into());
    Ok(format!("{}\n---\n{node}\n", Value::from(cluster)))
}

/// Whether kubeadm, at the target's version already, would write etcd's manifest as it is now.
///
/// # Errors
/// Why that cannot be told.
pub(super) async fn stays(
    order: &Upgrade,
    host: &Host,
    manifests: &Manifests,
    apiserver: SocketAddr,
    deadline: Deadline,
) -> Result<bool, Why> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let configuration = Configuration::write(order, manifests, apiserver)?;
    let into = format!("KUBEADM_INIT_DRYRUN_DIR={SCRATCH}");
    let config = format!("--config={}", configuration.path().display());
    let phase = ["init", "phase", "etcd", "local", "--dry-run", &config];
    // Of `env`: a tool of the host is started with the host's PATH and nothing else.
    let arguments: Vec<&str> = [into.as_str(), "kubeadm"].into_iter().chain(phase).collect();
    run("env", &arguments, deadline.within(WRITES), Echo::Nothing).await.map_err(|error| {
        let last = error.last_lines().pop().unwrap_or_default();
        format!("kubeadm does not say what it would write: {error}: {last}")
    })?;
    let would = read(&configuration.folder.join("etcd.yaml"))?;
    let is = read(&host.path(super::manifests::FOLDER).join("etcd.yaml"))?;
    Ok(as_it_runs(&would)? == as_it_runs(&is)?)
}

/// A manifest without what an etcd that has its data does not look at: `--initial-cluster` and `--initial-cluster-state` (etcd,
/// "Clustering flags"), which kubeadm writes when a node joins and at no upgrade.
fn as_it_runs(manifest: &[u8]) -> Result<Value, Why> {
    let text = std::str::from_utf8(manifest).map_err(|error| error.to_string())?;
    let mut pod: Pod = serde_saphyr::from_str(text).map_err(|error| format!("a manifest of etcd: {error}"))?;
    for container in pod.spec.iter_mut().flat_map(|spec| &mut spec.containers) {
        let bootstrap =
            |word: &str| word.starts_with("--initial-cluster=") || word.starts_with("--initial-cluster-state=");
        container.command.iter_mut().for_each(|command| command.retain(|word| !bootstrap(word)));
    }
    serde_json::to_value(pod).map_err(|error| error.to_string())
}

/// etcd's certificates that end before the apiserver's, as `kubeadm certs renew` calls them. None without the CA that signs them.
pub(super) fn outlived(host: &Host) -> Result<Vec<&'static str>, HostError> {
    let pki = host.path(PKI);
    if !pki.join("etcd/ca.key").exists() {
        return Ok(Vec::new());
    }
    let until = |name: &str| -> Result<Option<i64>, HostError> {
        let path = pki.join(name);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(HostError::File { path, source }),
        };
        let validity = certificate::validity(&bytes).map_err(|why| HostError::File {
            path,
            source: std::io::Error::new(std::io::ErrorKind::InvalidData, why),
        })?;
        Ok(Some(validity.until))
    };
    let Some(apiserver) = until(APISERVER)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (name, path) in CERTIFICATES {
        if until(path)?.is_some_and(|until| until < apiserver - ONE_RUN) {
            found.push(name);
        }
    }
    Ok(found)
}

/// Renews etcd's certificates as kubeadm would have. etcd need not be told. How long they last then is for kubeadm-config to say; where
/// the apiserver's was made by another CA it may still outlive them.
pub(super) async fn renew(
    names: &[&str],
    order: &Upgrade,
    manifests: &Manifests,
    apiserver: SocketAddr,
    deadline: Deadline,
) -> Result<(), RenewError> {
    let configuration = match &order.cluster_configuration {
        Some(_) => Some(Configuration::write(order, manifests, apiserver).map_err(RenewError::Configuration)?),
        // kubeadm reads it from the cluster then.
        None => None,
    };
    let config = configuration.as_ref().map(|it| format!("--config={}", it.path().display()));
    for name in names {
        let arguments: Vec<&str> = ["certs", "renew", name].into_iter().chain(config.as_deref()).collect();
        run("kubeadm", &arguments, deadline.within(WRITES), Echo::Lines).await?;
    }
    Ok(())
}

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RenewError {
    #[error("etcd's certificates cannot be renewed: {0}")]
    Configuration(Why),
    #[error("{0}")]
    Tool(#[from] ToolError),
}

#[cfg(test)]
#[path = "etcd/tests.rs"]
mod tests;
