//! What kubeadm wrote down about the cluster: ConfigMap kube-system/kubeadm-config.

use crate::cli::node::JsonObject;
use crate::observe::apiserver::{PORT, authority};
use crate::upgrade::plan::Configured;
use crate::version::Version;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::{Api, Client};
use serde::Deserialize;
use std::net::IpAddr;

/// The part of ClusterConfiguration that an upgrade needs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterConfiguration {
    /// The version that nodes other than the first follow.
    pub kubernetes_version: Version,
    /// The VIP, `HOST:PORT` or `HOST`; none in a cluster that was made for one control plane node.
    control_plane_endpoint: Option<String>,
    /// etcd.
    pub etcd: Option<Etcd>,
    /// All of it.
    #[serde(skip)]
    pub document: JsonObject,
}

/// The part about etcd.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Etcd {
    /// Stacked etcd.
    pub local: Option<LocalEtcd>,
}

/// Stacked etcd.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalEtcd {
    /// Its image tag, where it is not kubeadm's own.
    pub image_tag: Option<String>,
}

impl ClusterConfiguration {
    /// Reads it.
    ///
    /// # Errors
    /// When it is not there or not what kubeadm writes, in words.
    pub async fn read(client: &Client) -> Result<Self, String> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
        let map = maps
            .get("kubeadm-config")
            .await
            .map_err(|error| format!("ConfigMap kube-system/kubeadm-config: {error}"))?;
        let text = map
            .data
            .and_then(|mut data| data.remove("ClusterConfiguration"))
            .ok_or("ConfigMap kube-system/kubeadm-config has no key ClusterConfiguration")?;
        Self::parse(&text)
    }

    /// The VIP, `HOST:PORT`. Where it names no port kubeadm means the apiservers' own.
    pub fn endpoint(&self) -> Option<String> {
        let endpoint = self.control_plane_endpoint.as_deref()?;
        let named = endpoint.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Some(match endpoint.parse::<IpAddr>() {
            Ok(_) => authority(endpoint),
            Err(_) if named => endpoint.to_owned(),
            Err(_) => format!("{endpoint}:{PORT}"),
        })
    }

    /// What a plan depends on.
    pub fn configured(&self) -> Configured {
        let local = self.etcd.as_ref().and_then(|etcd| etcd.local.as_ref());
        Configured { version: self.kubernetes_version, etcd: local.and_then(|local| local.image_tag.clone()) }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |error: serde_saphyr::Error| {
            format!("ClusterConfiguration of kubeadm-config: {}", error.to_string().lines().next().unwrap_or(""))
        };
        let known: Self = serde_saphyr::from_str(text).map_err(wrong)?;
        Ok(Self { document: serde_saphyr::from_str(text).map_err(wrong)?, ..known })
    }

    /// The argument of the node step: the etcd image tag that kubeadm deploys.
    pub fn etcd_image_tag(&self) -> String {
        let local = self.etcd.as_ref().and_then(|etcd| etcd.local.as_ref());
        local.and_then(|local| local.image_tag.clone()).unwrap_or_else(|| "default".to_owned())
    }
}

/// The address of the Service default/kubernetes, `IP:PORT`.
///
/// # Errors
/// When it cannot be read, in words.
pub async fn service_address(client: &Client) -> Result<std::net::SocketAddr, String> {
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let service = services.get("kubernetes").await.map_err(|error| format!("Service default/kubernetes: {error}"))?;
    let spec = service.spec.ok_or("Service default/kubernetes has no spec")?;
    let ip = spec.cluster_ip.ok_or("Service default/kubernetes has no address")?;
    let port = spec
        .ports
        .and_then(|ports| ports.first().map(|port| port.port))
        .ok_or("Service default/kubernetes has no port")?;
    let ip: std::net::IpAddr = ip.parse().map_err(|_| format!("`{ip}` of Service default/kubernetes is no address"))?;
    let port = u16::try_from(port).map_err(|_| format!("{port} of Service default/kubernetes is no port"))?;
    Ok((ip, port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubeadm_writes() {
        let text = "apiVersion: kubeadm.k8s.io/v1beta4\ncontrolPlaneEndpoint: 10.10.0.10:6443\netcd:\n  local:\n    dataDir: /var/lib/etcd\n    imageTag: 3.6.8-0\nkind: ClusterConfiguration\nkubernetesVersion: v1.36.1\n";
        let config = ClusterConfiguration::parse(text).unwrap();
        assert_eq!(config.kubernetes_version.to_string(), "v1.36.1");
        assert_eq!(config.endpoint().as_deref(), Some("10.10.0.10:6443"));
        for (written, endpoint) in [
            ("cluster.example.org:8443", "cluster.example.org:8443"),
            ("cluster.example.org", "cluster.example.org:6443"),
            ("10.10.0.10", "10.10.0.10:6443"),
            ("fd00::10", "[fd00::10]:6443"),
            ("[fd00::10]", "[fd00::10]:6443"),
            ("[fd00::10]:8443", "[fd00::10]:8443"),
        ] {
            let text = text.replace("10.10.0.10:6443", &format!("'{written}'"));
            assert_eq!(ClusterConfiguration::parse(&text).unwrap().endpoint().as_deref(), Some(endpoint));
        }
        assert_eq!(config.etcd_image_tag(), "3.6.8-0");
        assert_eq!(config.document["etcd"]["local"]["dataDir"], "/var/lib/etcd");
        assert_eq!(ClusterConfiguration::parse("kubernetesVersion: v1.36.1").unwrap().etcd_image_tag(), "default");
        assert!(ClusterConfiguration::parse("kubernetesVersion: stable-1").unwrap_err().contains("stable-1"));
    }
}
