//! The second fence, kustomize/components/fence, asked of a real API server.

use anyhow::{Context, Result, anyhow};
use lab::api::{Api, Spec};
use lab::process::until;
use serde_json::json;
use std::ops::ControlFlow;
use std::path::Path;
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
    for file in ["lease.yaml", "kured.yaml", "people.yaml"] {
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
