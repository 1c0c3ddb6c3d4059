//! Whether the API knows this node to be Ready. kubeadm refuses to upgrade while a control plane node is not (kubeadm 1.36,
//! `ControlPlaneNodesReady`), and the kubelet's own apiserver was just restarted: what it has not reported for 40 s counts as lost.

use super::command::Deadline;
use super::manifests::Manifests;
use crate::access::Access;
use crate::observe::cluster;
use crate::output;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use quorum_safety::Fact;
use std::path::Path;
use std::time::Duration;

/// The kubelet's own account, which may read its node.
const ACCOUNT: &str = "/etc/kubernetes/kubelet.conf";
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long is waited: the kubelet tries again every 10 s at the latest once its apiserver is there.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks.
const POLL: Duration = Duration::from_secs(1);

/// Waits until it does. Only a help: after it, or where it cannot be asked, kubeadm says itself what is wrong.
pub(super) async fn wait(manifests: &Manifests, deadline: Deadline) {
    let Some(name) = manifests.pods.get("etcd").and_then(|etcd| etcd.flag("name")) else { return };
    let until = Deadline::after(deadline.within(PATIENCE));
    loop {
        let said = tokio::time::timeout(ANSWER, ask(name)).await;
        let why = match said.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs()))) {
            Ok(()) => return,
            Err(why) => why,
        };
        if until.passed() {
            output::progress(&format!("kubeadm: the API does not know node {name} to be Ready: {why}"));
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn ask(name: &str) -> Result<(), String> {
    let access = Access::from_file(Path::new(ACCOUNT), "default").await.map_err(|error| error.to_string())?;
    let client = access.live(&[]).await.map_err(|error| error.to_string())?;
    let node = Api::<Node>::all(client).get(name).await.map_err(|error| error.to_string())?;
    match cluster::ready(&node) {
        Fact::Known(true) => Ok(()),
        Fact::Known(false) => Err("it is not Ready".to_owned()),
        Fact::Unknown(why) => Err(why),
    }
}
