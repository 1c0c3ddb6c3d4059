//! The second fence, kustomize/components/fence, asked of a real API server.

use anyhow::{Context, Result, anyhow};
use lab::api::{Api, Spec};
use lab::process::until;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/quorate/leases/control-plane-disruption";

/// An API server with the fence, two control plane nodes and a worker, and kured's account.
fn fenced() -> Result<Api> {
    let api = Api::start(Spec::default())?;
    for name in ["quorate", "kured"] {
        api.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}).to_string())?;
    }
    for (name, labels) in [
        ("k1", json!({"node-role.kubernetes.io/control-plane": ""})),
        ("k2", json!({"node-role.kubernetes.io/control-plane": ""})),
        ("w1", json!({})),
    ] {
        api.apply(
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}).to_string(),
        )?;
    }
    api.apply(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: kured, namespace: kured}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: kured}\nrules:\n\
         - {apiGroups: [\"\"], resources: [nodes], verbs: [get, patch, update]}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: kured}\n\
         roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kured}\n\
         subjects: [{kind: ServiceAccount, name: kured, namespace: kured}]\n",
    )?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kustomize/components/fence");
    for file in ["lease.yaml", "kured.yaml", "people.yaml", "sentinel.yaml"] {
        api.apply(&std::fs::read_to_string(folder.join(file))?)?;
    }
    Ok(api)
}

fn cordon(api: &Api, who: &Path, node: &str) -> Result<(bool, String)> {
    let said: Output = api.kubectl_as(who, ["cordon", node])?;
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    // kubectl ends with 0 all the same.
    Ok((said.status.success() && !text.contains("unable to cordon"), text))
}

/// Puts a holder into the Lease, and waits until the policies see it: they read it from a cache.
fn held_by(api: &Api, identity: Option<&str>) -> Result<()> {
    let mut lease = api.request("GET", LEASE, None)?;
    lease["spec"] = json!({"holderIdentity": identity});
    api.request("PUT", LEASE, Some(&lease))?;
    Ok(())
}

/// Waits for an answer, and gives what was said with it.
fn becomes(what: &str, mut check: impl FnMut() -> Result<(bool, String)>) -> Result<String> {
    until(what, Duration::from_secs(60), || {
        let (as_wanted, said) = check()?;
        Ok(if as_wanted { ControlFlow::Break(said) } else { ControlFlow::Continue(anyhow!("{said}")) })
    })
}

#[test]
fn h04_kured_may_cordon_a_control_plane_node_only_while_the_lease_names_it() -> Result<()> {
    let api = fenced()?;
    let kured = api.kubeconfig_for("kured", "kured")?;
    let admin = api.kubeconfig()?.to_owned();
    let uncordon = |node: &str| api.kubectl(["uncordon", node]).map(drop);
    // A new policy takes a moment: until then it is as without the fence.
    let said = becomes("the policy to be in force", || {
        let (done, said) = cordon(&api, &kured, "k1")?;
        uncordon("k1")?;
        Ok((!done, said))
    })?;
    assert!(said.contains("k1 is a control plane node"), "{said}");
    assert!(said.contains("is held for nobody"), "{said}");
    // Workers are no business of this Lease.
    let (done, said) = cordon(&api, &kured, "w1")?;
    assert!(done, "{said}");

    held_by(&api, Some("upgrade-v1.36.3/k2/0123abcd"))?;
    let said = becomes("the holder to be seen", || {
        let (done, said) = cordon(&api, &kured, "k1")?;
        Ok((!done && said.contains("is held by upgrade-v1.36.3/k2/0123abcd"), said))
    })?;
    assert!(said.contains("Forbidden") || said.contains("forbidden"), "{said}");
    let (done, said) = cordon(&api, &kured, "k2")?;
    assert!(done, "the node that the Lease names: {said}");

    // What is no cordon passes: kured writes annotations, and uncordons after a reboot whatever the Lease says by then.
    held_by(&api, Some("upgrade-v1.36.3/k1/0123abcd"))?;
    becomes("the next holder to be seen", || {
        let (done, said) = cordon(&api, &kured, "k1")?;
        Ok((done, said))
    })?;
    let said = api.kubectl_as(&kured, ["annotate", "node", "k2", "weave.works/test=1"])?;
    assert!(said.status.success(), "{said:?}");
    let said = api.kubectl_as(&kured, ["uncordon", "k2"])?;
    assert!(said.status.success(), "{said:?}");

    // People are told, and not stopped; about the node that is worked on there is nothing to say.
    // Each policy has a cache of its own: this one may be behind the one above.
    becomes("people to be told", || {
        uncordon("k2")?;
        let (done, said) = cordon(&api, &admin, "k2")?;
        Ok((done && said.contains("Warning") && said.contains("quorate works on k1 now"), said))
    })?;
    uncordon("k1")?;
    let (done, said) = cordon(&api, &admin, "k1")?;
    assert!(done && !said.contains("Warning"), "{said}");

    // Without the Lease nothing of anybody's is denied.
    api.request("DELETE", LEASE, None)?;
    uncordon("k1")?;
    becomes("kured to be let through", || cordon(&api, &kured, "k1"))?;
    let said = api.kubectl(["label", "node", "k1", "still=here"]).context("an update of a Node")?;
    assert!(said.contains("labeled"), "{said}");
    Ok(())
}

/// The account of a sentinel as its pod on a node has it: the token is that pod's, and names its node.
fn sentinel_on(api: &Api, node: &str) -> Result<PathBuf> {
    let name = format!("sentinel-{node}");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "quorate"},
        "spec": {"nodeName": node, "serviceAccountName": "quorate-sentinel",
            "containers": [{"name": "quorate", "image": "localhost/quorate:dev"}]}});
    api.apply(&pod.to_string())?;
    let bound = ["--bound-object-kind=Pod", &format!("--bound-object-name={name}")];
    let token = api.kubectl([&["create", "token", "quorate-sentinel", "-n", "quorate"], &bound[..]].concat())?;
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(api.kubeconfig_for("quorate", "quorate-sentinel")?)?)?;
    config["users"][0]["user"]["token"] = json!(token.trim());
    let file = api.etcd().dir().join(format!("{name}.conf"));
    std::fs::write(&file, config.to_string())?;
    Ok(file)
}

#[test]
fn a_sentinel_may_write_annotations_of_its_own_node_and_end_pods_there_and_nothing_else() -> Result<()> {
    let api = fenced()?;
    for namespace in ["quorate", "kube-system"] {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}});
        api.apply(&account.to_string())?;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kustomize/components/sentinel");
    for file in ["account.yaml", "rbac.yaml"] {
        api.kubectl(["apply", "-f", &folder.join(file).display().to_string()])?;
    }
    for node in ["k1", "k2"] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("kured-{node}"), "namespace": "kube-system"},
            "spec": {"nodeName": node, "containers": [{"name": "kured", "image": "ghcr.io/kubereboot/kured:1.23.0"}]}});
        api.apply(&pod.to_string())?;
    }
    let own = sentinel_on(&api, "k1")?;
    let says = |who: &Path, words: &str| -> Result<(bool, String)> {
        let said: Output = api.kubectl_as(who, words.split(' '))?;
        let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        Ok((said.status.success(), text))
    };
    let denied = |who: &Path, words: &str, why: &str| {
        becomes(&format!("`{words}` to be denied"), || {
            let (done, said) = says(who, words)?;
            Ok((!done && said.contains(why), said))
        })
    };
    denied(
        &own,
        "annotate --overwrite node k2 quorate.dev/sentinel=x",
        "k2 is not the node of this sentinel, which is k1",
    )?;
    denied(&own, "delete pod -n kube-system kured-k2 --wait=false", "kured-k2 is not on the node of this sentinel")?;
    denied(&own, "label --overwrite node k1 a=b", "annotations of its node and nothing else")?;
    let cordon = r#"patch node k1 -p {"spec":{"unschedulable":true}}"#;
    denied(&own, cordon, "annotations of its node and nothing else")?;
    // A token that names no node, as whoever may make one for the account gets it.
    let stray = api.kubeconfig_for("quorate", "quorate-sentinel")?;
    denied(&stray, "annotate --overwrite node k1 quorate.dev/sentinel=x", "which is not told")?;
    for granted in
        ["annotate --overwrite node k1 quorate.dev/sentinel=x", "delete pod -n kube-system kured-k1 --wait=false"]
    {
        let (done, said) = says(&own, granted)?;
        assert!(done, "{granted}: {said}");
    }
    // Of anybody else's nothing is denied.
    api.kubectl(["annotate", "node", "k2", "still=here"])?;
    api.kubectl(["label", "node", "k2", "still=here"])?;
    api.kubectl(["delete", "pod", "-n", "kube-system", "kured-k2", "--wait=false"]).map(drop)
}
