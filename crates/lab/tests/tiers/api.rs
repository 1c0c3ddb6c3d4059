//! `lab::api`: the real apiserver answers as it does on a cluster.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use lab::api::{Api, Spec};
use lab::process::until;
use serde_json::json;

const READER: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: default}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: nobody, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: lease-reader}
rules: [{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: lease-reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: lease-reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: default}]
"#;

#[test]
fn rbac_decides_what_a_service_account_may_do_and_the_audit_log_says_it() {
    let start = Instant::now();
    let api = Api::start(Spec { audit: true, ..Spec::default() }).unwrap();
    println!("api: ready after {:?}", start.elapsed());
    api.apply(READER).unwrap();
    let leases = ["get", "leases", "--all-namespaces"];
    let reader = api.kubeconfig_for("default", "reader").unwrap();
    // The authorizer sees a new binding through a watch.
    until("the reader may read", Duration::from_secs(10), || {
        let out = api.kubectl_as(&reader, leases)?;
        Ok(if out.status.success() { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("{out:?}")) })
    })
    .unwrap();
    let out = api.kubectl_as(&reader, ["get", "pods"]).unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("Error from server (Forbidden)"), "{out:?}");
    let nobody = api.kubeconfig_for("default", "nobody").unwrap();
    let out = api.kubectl_as(&nobody, leases).unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("Error from server (Forbidden)"), "{out:?}");

    let events = api.audit_events().unwrap();
    let code = |user: &str, resource: &str| {
        let event = events.iter().rev().find(|event| {
            event["user"]["username"] == format!("system:serviceaccount:default:{user}")
                && event["objectRef"]["resource"] == resource
        });
        event.map(|event| (event["level"].clone(), event["responseStatus"]["code"].clone()))
    };
    assert_eq!(code("reader", "leases"), Some((json!("Metadata"), json!(200))));
    assert_eq!(code("reader", "pods"), Some((json!("Metadata"), json!(403))));
    assert_eq!(code("nobody", "leases"), Some((json!("Metadata"), json!(403))));
}

#[test]
fn the_real_controllers_count_a_budget_and_an_eviction_obeys_it() {
    let start = Instant::now();
    let api = Api::start(Spec { controllers: true, ..Spec::default() }).unwrap();
    println!("api with controllers: ready after {:?}", start.elapsed());
    api.apply("{apiVersion: v1, kind: Node, metadata: {name: k1}}").unwrap();
    api.set_node_ready("k1", api.address(1)).unwrap();
    let pod = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "web"}],
        "tolerations": [{"operator": "Exists"}]}});
    let selector = json!({"matchLabels": {"app": "web"}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": selector, "template": pod}});
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
        "spec": {"minAvailable": 1, "selector": selector}});
    api.apply(&format!("{deployment}\n---\n{budget}")).unwrap();

    let soon = Duration::from_secs(30);
    let names = until("the scheduler has placed two pods", soon, || {
        let pods = api.request("GET", "/api/v1/namespaces/default/pods", None)?;
        let placed: Vec<_> =
            pods["items"].as_array().unwrap().iter().filter(|pod| pod["spec"]["nodeName"] == "k1").collect();
        let names: Vec<_> = placed.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        Ok(if names.len() == 2 { ControlFlow::Break(names) } else { ControlFlow::Continue(anyhow!("{pods}")) })
    })
    .unwrap();
    let allowed = |wanted: i64| {
        until(&format!("the budget allows {wanted}"), soon, || {
            let budget = api.request("GET", "/apis/policy/v1/namespaces/default/poddisruptionbudgets/web", None)?;
            let status = &budget["status"];
            let current = status["observedGeneration"] == budget["metadata"]["generation"];
            Ok(if current && status["disruptionsAllowed"] == wanted {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(anyhow!("{budget}"))
            })
        })
        .unwrap();
    };
    let evict = |name: &str| {
        let eviction =
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"}});
        api.request("POST", &format!("/api/v1/namespaces/default/pods/{name}/eviction"), Some(&eviction))
    };
    allowed(0);
    for name in &names {
        api.set_pod_ready("default", name).unwrap();
    }
    allowed(1);
    evict(&names[0]).unwrap();
    let refused = format!("{:#}", evict(&names[1]).unwrap_err());
    assert!(refused.contains("status 429"), "{refused}");
    // Without a kubelet an evicted pod stays until somebody says that its containers ended.
    let path = format!("/api/v1/namespaces/default/pods/{}", names[0]);
    assert!(api.request("GET", &path, None).unwrap()["metadata"]["deletionTimestamp"].is_string());
    api.finish_pod_deletion("default", &names[0]).unwrap();
    let gone = format!("{:#}", api.request("GET", &path, None).unwrap_err());
    assert!(gone.contains("status 404"), "{gone}");
    println!("api with controllers: all of it took {:?}", start.elapsed());
}

#[test]
fn two_apiservers_share_one_store_and_one_can_be_killed() {
    let start = Instant::now();
    let api = Api::start(Spec { apiservers: 2, ..Spec::default() }).unwrap();
    println!("two apiservers: ready after {:?}", start.elapsed());
    api.kubectl(["create", "configmap", "seen", "--from-literal=a=b"]).unwrap();
    let get = || {
        api.kubectl_as(api.kubeconfig_at(2).unwrap(), ["get", "configmap", "seen", "-o", "jsonpath={.data.a}"]).unwrap()
    };
    assert_eq!(String::from_utf8_lossy(&get().stdout), "b");
    api.apiserver(1).unwrap().kill().unwrap();
    assert!(api.kubectl(["get", "configmap", "seen"]).is_err());
    assert_eq!(String::from_utf8_lossy(&get().stdout), "b");
    api.apiserver(1).unwrap().restart().unwrap();
    api.wait_ready(1, Duration::from_secs(60)).unwrap();
    api.kubectl(["get", "configmap", "seen"]).unwrap();
}
