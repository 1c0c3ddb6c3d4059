//! Where this process runs: in a Job's pod, or in place on a control plane node.

use crate::access::{APISERVERS, Access, ROUNDS};
use crate::cli::Global;
use crate::config::Config;
use crate::exit::UsageError;
use crate::observe::Sources;
use crate::observe::etcd::{ClientFiles, KUBEADM_PKI};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use quorum_safety::{Fact, NodeName, NodeView};
use std::net::SocketAddr;
use std::path::Path;

/// kubeadm's folder.
pub const KUBERNETES: &str = "/etc/kubernetes";

/// The pod that this process runs in, from the downward API.
#[derive(Clone, Debug)]
pub struct OwnPod {
    /// Its node.
    pub node: NodeName,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl OwnPod {
    /// Reads what the template put into the environment.
    ///
    /// # Errors
    /// When a variable is missing: the template is not ours.
    pub fn from_environment() -> Result<Self, UsageError> {
        let read = |name: &str| {
            std::env::var(name).ok().filter(|value| !value.is_empty()).ok_or_else(|| {
                UsageError(format!("{name} is not set: steps run in Jobs made from the templates of kustomize/base"))
            })
        };
        Ok(Self {
            node: NodeName(read("QUORATE_NODE_NAME")?),
            name: read("QUORATE_POD_NAME")?,
            uid: read("QUORATE_POD_UID")?,
        })
    }

    /// Refuses to go on when this pod runs on the node that is taken down (incident R01).
    ///
    /// # Errors
    /// When it does.
    pub fn not_on(&self, target: &NodeName) -> Result<(), UsageError> {
        if self.node == *target {
            return Err(UsageError(format!("this pod runs on {target}, the node that it would take down")));
        }
        Ok(())
    }
}

/// The Service default/kubernetes as every pod is told it; none where that is no address.
pub fn service_address() -> Option<SocketAddr> {
    let read = |name: &str| std::env::var(name).ok();
    let (host, port) = (read("KUBERNETES_SERVICE_HOST")?, read("KUBERNETES_SERVICE_PORT")?);
    Some(SocketAddr::new(host.parse().ok()?, port.parse().ok()?))
}

/// Reads the configuration: the file of `--config`, or the ConfigMap; defaults when there is no such ConfigMap.
///
/// # Errors
/// When it cannot be read, or is wrong.
pub async fn configuration(global: &Global, access: &Access) -> anyhow::Result<Config> {
    if let Some(path) = &global.config {
        return Ok(from_file(path)?);
    }
    let read = access.read(&[], |client| async move {
        Api::<ConfigMap>::namespaced(client, &access.namespace).get_opt(crate::config::CONFIG_MAP).await
    });
    let map = read.await.map_err(|error| {
        anyhow::anyhow!("cannot read ConfigMap {}/{}: {error}", access.namespace, crate::config::CONFIG_MAP)
    })?;
    let Some(map) = map else { return Ok(Config::default()) };
    match map.data.and_then(|mut data| data.remove(crate::config::KEY)) {
        Some(text) => Ok(Config::parse(&text)?),
        None => Err(UsageError(format!(
            "ConfigMap {}/{} has no key {}: put the configuration under it, or delete the ConfigMap for the defaults",
            access.namespace,
            crate::config::CONFIG_MAP,
            crate::config::KEY
        ))
        .into()),
    }
}

/// The configuration in a file.
///
/// # Errors
/// When it cannot be read, or is wrong.
pub fn from_file(path: &Path) -> Result<Config, UsageError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| UsageError(format!("configuration {}: {error}", path.display())))?;
    Config::parse(&text)
}

/// The nodes as the API has them, for choosing where a Job runs.
///
/// # Errors
/// When they cannot be read.
pub async fn nodes(access: &Access, config: &Config) -> anyhow::Result<Vec<NodeView>> {
    let mut left = ROUNDS;
    loop {
        left -= 1;
        let client = access.live(&[]).await?;
        match crate::observe::cluster::observe(&client, config.times.answer.get()).await.nodes {
            Fact::Known(nodes) => return Ok(nodes),
            Fact::Unknown(why) if left == 0 => return Err(anyhow::anyhow!("the nodes cannot be read: {why}")),
            Fact::Unknown(why) => tracing::info!(why, "Asking for the nodes again"),
        }
    }
}

/// Reading in place, on a control plane node, from kubeadm's paths.
pub struct InPlace {
    /// The API through admin.conf, or why not.
    pub access: Result<Access, String>,
    /// This node's name as kubeadm gives it: the host's, in lower case.
    pub node: NodeName,
    etcd: ClientFiles,
    seeds: Vec<String>,
    peers: Vec<String>,
    /// The manifest of this node's etcd.
    manifest: String,
}

impl InPlace {
    /// Finds kubeadm's files.
    ///
    /// # Errors
    /// When this is not a control plane node, or not root.
    pub async fn new(global: &Global) -> Result<Self, UsageError> {
        Self::in_folder(global, Path::new(KUBERNETES)).await
    }

    /// The same in another folder than kubeadm's.
    ///
    /// # Errors
    /// As above.
    pub async fn in_folder(global: &Global, folder: &Path) -> Result<Self, UsageError> {
        if !rustix::process::geteuid().is_root() {
            return Err(UsageError("--here reads etcd's client key: run it as root".to_owned()));
        }
        let path = folder.join("manifests/etcd.yaml");
        let manifest = std::fs::read_to_string(&path).map_err(|error| {
            UsageError(format!("--here works on a control plane node of kubeadm: {}: {error}", path.display()))
        })?;
        let path = global.kubeconfig.clone().unwrap_or_else(|| folder.join("admin.conf"));
        let (seeds, peers) = (advertised(&manifest), joined(&manifest));
        // admin.conf names the balancer's address; the apiserver beside us is nearer, and there when the balancer is not.
        let own = seeds.iter().find_map(|url| crate::observe::etcd::host(url));
        let access = match (Access::from_file(&path, &global.namespace).await, own) {
            (Ok(access), Some(own)) if global.kubeconfig.is_none() => access.first_at(&own),
            (access, _) => access,
        };
        let access = access.map_err(|error| error.to_string());
        let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        let etcd = ClientFiles::in_folder(folder.join("pki/etcd"));
        Ok(Self { access, node: NodeName(host), etcd, seeds, peers, manifest })
    }

    /// The value of a flag, such as `--data-dir=`, that the manifest of this node's etcd sets.
    pub fn etcd_flag(&self, flag: &'static str) -> Option<String> {
        values(&self.manifest, flag).next().map(str::to_owned)
    }

    /// The configuration; the defaults when the API is down, since then it cannot be read. A wrong one is refused.
    ///
    /// # Errors
    /// When it was read and is wrong.
    pub async fn configuration(&self, global: &Global) -> anyhow::Result<Config> {
        self.told_configuration(global).await.or_else(|error| match error.downcast::<UsageError>() {
            Ok(wrong) => Err(anyhow::Error::new(wrong)),
            Err(error) => {
                tracing::warn!(%error, "The configuration cannot be read; the defaults hold");
                Ok(Config::default())
            }
        })
    }

    /// The same where no default will do: it is read, or there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is wrong.
    pub async fn told_configuration(&self, global: &Global) -> anyhow::Result<Config> {
        match (&self.access, &global.config) {
            (_, Some(path)) => from_file(path).map_err(anyhow::Error::new),
            (Ok(access), None) => configuration(global, access).await,
            (Err(why), None) => Err(anyhow::anyhow!("{why}")),
        }
    }

    /// Where to look.
    pub fn sources(&self) -> Sources<'_> {
        Sources {
            access: self.access.as_ref().map_err(Clone::clone),
            etcd: self.etcd.clone(),
            seeds: self.seeds.clone(),
            peers: self.peers.clone(),
        }
    }
}

/// Where to look from inside a pod of ours: the API, and the three files that its template mounts. Whoever made the Job has told the
/// addresses of the control plane nodes; the members are there.
pub fn in_pod(access: &Access) -> Sources<'_> {
    in_pod_with(access, ClientFiles::in_folder(Path::new(KUBEADM_PKI)))
}

/// The same with the certificate of etcd's client elsewhere.
pub fn in_pod_with(access: &Access, etcd: ClientFiles) -> Sources<'_> {
    let told = std::env::var(APISERVERS).unwrap_or_default();
    let seeds = told.split(',').filter(|address| !address.is_empty()).map(crate::observe::etcd::client_url).collect();
    Sources { access: Ok(access), etcd, seeds, peers: Vec::new() }
}

/// The client URLs that a manifest of etcd advertises.
fn advertised(manifest: &str) -> Vec<String> {
    values(manifest, "--advertise-client-urls=").map(str::to_owned).collect()
}

/// Where the members are that this one has joined, as its manifest says, `NAME=PEER URL` each: some may be gone by now.
fn joined(manifest: &str) -> Vec<String> {
    let urls = values(manifest, "--initial-cluster=").filter_map(|member| member.split_once('='));
    urls.filter_map(|(_, url)| crate::observe::etcd::host(url))
        .map(|host| crate::observe::etcd::client_url(&host))
        .collect()
}

/// The values of a flag, separated by commas.
fn values<'a>(manifest: &'a str, flag: &'static str) -> impl Iterator<Item = &'a str> {
    let lines = manifest.lines().filter_map(move |line| line.split_once(flag));
    lines.flat_map(|(_, values)| values.trim().trim_matches(['"', '\'']).split(','))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_address_of_the_local_member() {
        let manifest =
            "  - command:\n    - etcd\n    - --advertise-client-urls=https://10.10.0.11:2379\n    - --name=k1\n";
        assert_eq!(advertised(manifest), ["https://10.10.0.11:2379"]);
        assert_eq!(advertised("nothing here"), Vec::<String>::new());
        let manifest = "    - --initial-cluster=k1=https://10.10.0.11:2380,k2=https://[fd00::2]:2380\n    - --initial-cluster-state=existing";
        assert_eq!(joined(manifest), ["https://10.10.0.11:2379", "https://[fd00::2]:2379"]);
    }
}
