//! What `kubectl apply -k` installs: every object is what it says, every container's arguments are arguments of ours.

use clap::Parser;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Namespace, PersistentVolumeClaim, PodSpec, ServiceAccount};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPort};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding, Subject};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use quorate::cli::Cli;
use quorate::config::{Config, KEY};
use quorate::exit::ExitStatus;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// kubectl as the lab built it, or the one of this machine.
fn kubectl() -> PathBuf {
    let cache = std::env::var_os("QUORATE_LAB_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/quorate/lab"),
        PathBuf::from,
    );
    let built = std::fs::read_dir(cache.join("kubernetes")).into_iter().flatten().flatten();
    built.map(|entry| entry.path().join("kubectl")).find(|path| path.is_file()).unwrap_or_else(|| "kubectl".into())
}

/// The objects of a folder, as kustomize writes them.
pub(crate) fn build(folder: &str) -> Vec<Value> {
    let output = Command::new(kubectl())
        .args(["kustomize", folder])
        .current_dir(root())
        .output()
        .expect("kubectl is there: `lab build` makes it");
    assert!(output.status.success(), "{folder}: {}", String::from_utf8_lossy(&output.stderr));
    serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap()
}

/// An overlay of kustomize/base with one component, in a folder that goes with it; not among those that are shipped, which other tests list.
pub(crate) fn overlay_with(component: &str) -> tempfile::TempDir {
    overlay_of("base", component)
}

/// The same of what lies in another folder of kustomize/.
pub(crate) fn overlay_of(resources: &str, component: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(root().join("kustomize")).unwrap();
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../{resources}]\n\
         components: [../components/{component}]\n"
    );
    std::fs::write(folder.path().join("kustomization.yaml"), text).unwrap();
    folder
}

/// The objects of kustomize/base with one component.
pub(crate) fn with_component(component: &str) -> Vec<Value> {
    build(overlay_with(component).path().to_str().unwrap())
}

/// The names of the components that are shipped.
pub(crate) fn components() -> BTreeSet<String> {
    let entries = std::fs::read_dir(root().join("kustomize/components")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The objects of the files in manifests/, with the file they are in.
fn files() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join("manifests")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name == "kustomization.yaml" {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        found.extend(objects.into_iter().map(|object| (name.clone(), object)));
    }
    assert!(!found.is_empty());
    found
}

fn id(object: &Value) -> (String, String, String) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

fn of_kind<T: DeserializeOwned>(objects: &[Value], kind: &str) -> Vec<T> {
    let of_kind = objects.iter().filter(|object| object["kind"] == kind);
    of_kind.map(|object| serde_json::from_value(object.clone()).unwrap()).collect()
}

/// The fields of `written` that `read` lost: the types ignore what they do not know, a typing error included.
fn lost(written: &Value, read: &Value, path: &str, out: &mut Vec<String>) {
    match written {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = format!("{path}.{key}");
                match read.get(key) {
                    Some(other) => lost(value, other, &path, out),
                    None => out.push(path),
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                lost(item, &read[index], &format!("{path}[{index}]"), out);
            }
        }
        other if other == read => {}
        other => out.push(format!("{path}: {other} became {read}")),
    }
}

fn check<T: DeserializeOwned + Serialize>(object: &Value) -> Vec<String> {
    let typed: T = match serde_json::from_value(object.clone()) {
        Ok(typed) => typed,
        Err(error) => return vec![error.to_string()],
    };
    let mut out = Vec::new();
    lost(object, &serde_json::to_value(&typed).unwrap(), "", &mut out);
    out
}

fn wrong_fields(object: &Value) -> Vec<String> {
    match object["kind"].as_str().unwrap() {
        "ClusterRole" => check::<ClusterRole>(object),
        "ClusterRoleBinding" => check::<ClusterRoleBinding>(object),
        "ConfigMap" => check::<ConfigMap>(object),
        "CronJob" => check::<CronJob>(object),
        "DaemonSet" => check::<DaemonSet>(object),
        "Lease" => check::<Lease>(object),
        "Namespace" => check::<Namespace>(object),
        "NetworkPolicy" => check::<NetworkPolicy>(object),
        "PersistentVolumeClaim" => check::<PersistentVolumeClaim>(object),
        // Of the Prometheus operator, which is no part of Kubernetes.
        "PrometheusRule" => rule_without_what_it_needs(object),
        "Role" => check::<Role>(object),
        "RoleBinding" => check::<RoleBinding>(object),
        "ServiceAccount" => check::<ServiceAccount>(object),
        "ValidatingAdmissionPolicy" => check::<ValidatingAdmissionPolicy>(object),
        "ValidatingAdmissionPolicyBinding" => check::<ValidatingAdmissionPolicyBinding>(object),
        other => vec![format!("a kind that this test does not know: {other}")],
    }
}

fn rule_without_what_it_needs(object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for group in object["spec"]["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            let wanted = ["/alert", "/expr", "/labels/severity", "/annotations/summary", "/annotations/description"];
            out.extend(
                wanted.iter().filter(|path| !rule.pointer(path).is_some_and(Value::is_string)).map(ToString::to_string),
            );
        }
    }
    out
}

fn pod(template: &CronJob) -> &PodSpec {
    template.spec.as_ref().unwrap().job_template.spec.as_ref().unwrap().template.spec.as_ref().unwrap()
}

fn containers(template: &CronJob) -> impl Iterator<Item = &Container> {
    let pod = pod(template);
    pod.init_containers.iter().flatten().chain(&pod.containers)
}

fn config(objects: &[Value]) -> String {
    let maps: Vec<ConfigMap> = of_kind(objects, "ConfigMap");
    let found: Vec<_> =
        maps.iter().filter(|map| map.metadata.name.as_deref() == Some(quorate::config::CONFIG_MAP)).collect();
    assert_eq!(found.len(), 1);
    found[0].data.as_ref().unwrap()[KEY].clone()
}

#[test]
fn every_object_has_only_fields_of_its_type() {
    for (file, object) in files() {
        assert_eq!(wrong_fields(&object), Vec::<String>::new(), "{file}: {:?}", id(&object));
    }
    // The test itself: a typing error is found.
    let mut object = files().into_iter().map(|(_, object)| object).find(|object| object["kind"] == "CronJob").unwrap();
    object["spec"]["suspendd"] = Value::Bool(true);
    assert_eq!(wrong_fields(&object), [".spec.suspendd"]);
}

#[test]
fn the_base_holds_every_file_and_each_overlay_builds() {
    let ids = |objects: &[Value]| objects.iter().map(id).collect::<BTreeSet<_>>();
    let written = ids(&files().into_iter().map(|(_, object)| object).collect::<Vec<_>>());
    assert_eq!(ids(&build("kustomize/base")), written);
    for entry in std::fs::read_dir(root().join("kustomize/overlays")).unwrap() {
        let entry = entry.unwrap();
        // Other tests have overlays of their own beside these for a moment, under hidden names.
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let folder = entry.path();
        let objects = build(folder.to_str().unwrap());
        assert!(ids(&objects).is_superset(&written), "{}", folder.display());
        for object in &objects {
            assert_eq!(wrong_fields(object), Vec::<String>::new(), "{}: {:?}", folder.display(), id(object));
        }
    }
}

#[test]
fn each_component_builds_on_the_base() {
    for name in components() {
        let objects = with_component(&name);
        assert_ne!(objects, build("kustomize/base"), "{name}");
        for object in &objects {
            assert_eq!(wrong_fields(object), Vec::<String>::new(), "{name}: {:?}", id(object));
        }
    }
}

#[test]
fn every_container_is_ours_and_its_arguments_parse() {
    let templates: Vec<CronJob> = of_kind(&build("kustomize/base"), "CronJob");
    assert_eq!(templates.len(), 7);
    for template in &templates {
        let name = template.metadata.name.as_deref().unwrap();
        for container in containers(template) {
            // The command line and the steps replace the arguments of the container with this name.
            assert_eq!(container.name, "quorate", "{name}");
            assert_eq!(container.command, None, "{name}: the image's entrypoint");
            let args = container.args.as_ref().unwrap();
            let parsed = Cli::try_parse_from(std::iter::once("quorate").chain(args.iter().map(String::as_str)));
            assert!(parsed.is_ok(), "{name}: {}", parsed.unwrap_err());
        }
    }
}

#[test]
fn alerts_are_about_cron_jobs_that_are_there() {
    let there: Vec<CronJob> = [build("kustomize/base"), with_component("drill")]
        .iter()
        .flat_map(|objects| of_kind::<CronJob>(objects, "CronJob"))
        .collect();
    let rules = with_component("backup-alert").into_iter().filter(|object| object["kind"] == "PrometheusRule");
    let mut named = BTreeSet::new();
    for rule in rules.flat_map(|rule| rule["spec"]["groups"][0]["rules"].as_array().unwrap().clone()) {
        let expr = rule["expr"].as_str().unwrap();
        for series in expr.split("{namespace=\"quorate\", cronjob=\"").skip(1) {
            named.insert(series.split('"').next().unwrap().to_owned());
        }
        assert_eq!(expr.matches("kube_cronjob_").count(), expr.matches("{namespace=\"quorate\", cronjob=").count());
    }
    assert_eq!(named, BTreeSet::from(["quorate-backup", "quorate-drill"].map(str::to_owned)));
    for name in named {
        assert!(there.iter().any(|it| it.metadata.name.as_ref() == Some(&name)), "{name}");
    }
}

#[test]
fn what_starts_the_defragmentations_may_start_those_and_nothing_else() {
    let objects = with_component("defrag");
    let templates: Vec<CronJob> = of_kind(&objects, "CronJob");
    let starts = templates.iter().find(|it| it.metadata.name.as_deref() == Some("quorate-defrag-all")).unwrap();
    assert_eq!(pod(starts).volumes, None, "no host, no certificate");
    let args = pod(starts).containers[0].args.clone().unwrap();
    assert!(Cli::try_parse_from(std::iter::once("quorate".to_owned()).chain(args)).is_ok());
    let roles: Vec<Role> = of_kind(&objects, "Role");
    let own = roles.iter().filter(|role| role.metadata.name.as_deref() == Some("quorate-defrag-all"));
    let rules: Vec<_> = own.filter_map(|role| role.rules.as_ref()).flatten().collect();
    let verbs: BTreeSet<&str> = rules.iter().flat_map(|rule| rule.verbs.iter().map(String::as_str)).collect();
    assert_eq!(verbs, BTreeSet::from(["create", "delete", "get", "list"]));
    let changed = rules.iter().filter(|rule| rule.verbs.iter().any(|verb| verb != "get" && verb != "list"));
    let changed: Vec<_> = changed.filter_map(|rule| rule.resources.clone()).flatten().collect();
    assert_eq!(changed, ["jobs"], "it locks nothing and disrupts nothing itself");
}

#[test]
fn only_reconcile_starts_by_itself_and_all_fail_on_our_codes() {
    for template in of_kind::<CronJob>(&build("kustomize/base"), "CronJob") {
        let name = template.metadata.name.clone().unwrap();
        let spec = template.spec.as_ref().unwrap();
        assert_eq!(spec.suspend, Some(name != "quorate-reconcile"), "{name}");
        let job = spec.job_template.spec.as_ref().unwrap();
        assert_eq!(job.ttl_seconds_after_finished, Some(7 * 24 * 3600), "{name}");
        assert!(job.active_deadline_seconds.is_some(), "{name}");
        assert_eq!(pod(&template).restart_policy.as_deref(), Some("Never"), "{name}: failure policies need it");
        if name == "quorate-backup" {
            // Beside a failure policy a Job waits for a pod on a dead node for as long as that is off (incident R32).
            assert_eq!(job.pod_replacement_policy.as_deref(), Some("TerminatingOrFailed"));
            assert_eq!(job.pod_failure_policy, None);
            assert_eq!(spec.concurrency_policy.as_deref(), Some("Allow"), "the Lease sees to it");
            continue;
        }
        let rules = &job.pod_failure_policy.as_ref().unwrap().rules;
        assert!(
            rules.iter().any(|rule| rule.action == "Ignore"
                && rule.on_pod_conditions.iter().flatten().any(|on| on.type_ == "DisruptionTarget")),
            "{name}: an evicted pod is no failure of its own"
        );
        for codes in rules.iter().filter_map(|rule| rule.on_exit_codes.as_ref()) {
            let mut expected = vec![ExitStatus::Usage, ExitStatus::Midway];
            if name == "quorate-node" {
                // Its order is too old for another try by then, which would only hide why the first one ended.
                expected.insert(1, ExitStatus::Unknown);
            }
            let expected: Vec<i32> = expected.into_iter().map(|status| i32::from(status.code())).collect();
            assert_eq!(codes.values, expected, "{name}");
        }
        let labels = spec.job_template.metadata.as_ref().unwrap().labels.as_ref().unwrap();
        assert!(labels.contains_key("quorate.dev/operation"), "{name}");
    }
}

#[test]
fn r23_no_noschedule_taint_keeps_a_job_from_a_node() {
    let templates: Vec<CronJob> = of_kind(&build("kustomize/base"), "CronJob");
    assert!(templates.len() >= 4);
    for template in &templates {
        let mut tolerations = pod(template).tolerations.iter().flatten();
        let every = tolerations.any(|one| {
            one.operator.as_deref() == Some("Exists")
                && one.key.is_none()
                && matches!(one.effect.as_deref(), None | Some("NoSchedule"))
        });
        assert!(every, "{:?}", template.metadata.name);
    }
}

#[test]
fn readers_of_etcd_mount_three_files_and_nothing_else() {
    let pki = "/etc/kubernetes/pki/etcd";
    let expected = ["ca.crt", "healthcheck-client.crt", "healthcheck-client.key"].map(|file| format!("{pki}/{file}"));
    for template in of_kind::<CronJob>(&build("kustomize/base"), "CronJob") {
        let name = template.metadata.name.clone().unwrap();
        let pod = pod(&template);
        let mut paths = Vec::new();
        let mut volumes = pod.volumes.clone().unwrap_or_default();
        let mut mounts = pod.containers[0].volume_mounts.clone().unwrap_or_default();
        let mut variables: Vec<&str> =
            pod.containers[0].env.iter().flatten().map(|variable| variable.name.as_str()).collect();
        if name == "quorate-backup" {
            // What it writes to, and the keys of a bucket: the only ones that any pod of ours may get from a Secret.
            volumes.retain(|volume| volume.empty_dir.is_none());
            mounts.retain(|mount| mount.mount_path != "/spool");
            assert_eq!(variables.split_off(3), ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], "{name}");
        }
        if name == "quorate-defrag" {
            // The data directory of the member on its node, to be looked at: whether the copy has room.
            volumes.retain(|volume| volume.host_path.as_ref().is_none_or(|host| host.path != "/var/lib/etcd"));
            let data = mounts.iter().position(|mount| mount.mount_path == "/var/lib/etcd").map(|at| mounts.remove(at));
            assert_eq!(data.unwrap().read_only, Some(true), "{name}");
        }
        for volume in &volumes {
            let host = volume.host_path.as_ref().expect("no volume but of the host");
            assert_eq!(host.type_.as_deref(), Some("File"), "{name}: a folder would hold ca.key, too");
            paths.push(host.path.clone());
        }
        if name == "quorate-node" || name == "quorate-reconcile" {
            assert_eq!(paths, Vec::<String>::new(), "{name}");
            continue;
        }
        assert_eq!(paths, expected, "{name}");
        assert!(mounts.iter().all(|mount| mount.read_only == Some(true)), "{name}");
        assert_eq!(mounts.iter().map(|mount| mount.mount_path.clone()).collect::<Vec<_>>(), expected, "{name}");
        // What src/place.rs reads: who this pod is, and where (incident R01).
        assert_eq!(variables, ["QUORATE_NODE_NAME", "QUORATE_POD_NAME", "QUORATE_POD_UID"], "{name}");
        let security = pod.containers[0].security_context.as_ref().unwrap();
        if name == "quorate-defrag" {
            // Its second process enters the host for the rule by which clients go to peers.
            assert_eq!((security.privileged, pod.host_network, pod.host_pid), (Some(true), Some(true), Some(true)));
            continue;
        }
        assert_eq!(security.capabilities.as_ref().unwrap().drop, Some(vec!["ALL".to_owned()]), "{name}");
        assert_eq!(security.allow_privilege_escalation, Some(false), "{name}");
        assert_eq!(security.read_only_root_filesystem, Some(true), "{name}");
        assert_eq!(security.privileged, None, "{name}");
        assert_eq!((pod.host_network, pod.host_pid), (None, None), "{name}");
    }
}

#[test]
fn every_account_exists_and_the_node_has_no_right() {
    let objects = build("kustomize/base");
    let accounts: BTreeSet<String> = of_kind::<ServiceAccount>(&objects, "ServiceAccount")
        .into_iter()
        .map(|account| {
            assert_eq!(account.automount_service_account_token, Some(false));
            account.metadata.name.unwrap()
        })
        .collect();
    let used: BTreeSet<String> = of_kind::<CronJob>(&objects, "CronJob")
        .iter()
        .map(|template| pod(template).service_account_name.clone().unwrap())
        .collect();
    assert_eq!(accounts, used);

    let roles = of_kind::<RoleBinding>(&objects, "RoleBinding").into_iter().map(|binding| binding.subjects);
    let cluster = of_kind::<ClusterRoleBinding>(&objects, "ClusterRoleBinding").into_iter().map(|b| b.subjects);
    let subjects: Vec<Subject> = roles.chain(cluster).flatten().flatten().collect();
    assert!(subjects.iter().all(|subject| accounts.contains(&subject.name)));
    assert!(subjects.iter().all(|subject| subject.namespace.as_deref() == Some("quorate")));
    assert!(!subjects.iter().any(|subject| subject.name == "quorate-node"));
    let node: Vec<CronJob> = of_kind(&objects, "CronJob");
    let node = node.iter().find(|template| template.metadata.name.as_deref() == Some("quorate-node")).unwrap();
    assert_eq!(pod(node).automount_service_account_token, Some(false));
}

#[test]
fn no_role_has_a_wildcard() {
    let objects = build("kustomize/base");
    let roles = of_kind::<Role>(&objects, "Role").into_iter().map(|role| role.rules);
    let cluster = of_kind::<ClusterRole>(&objects, "ClusterRole").into_iter().map(|role| role.rules);
    for rule in roles.chain(cluster).flatten().flatten() {
        let words = rule.verbs.iter().chain(rule.resources.iter().flatten()).chain(rule.api_groups.iter().flatten());
        assert!(words.clone().all(|word| !word.contains('*')), "{rule:?}");
        assert!(rule.resources.iter().flatten().all(|resource| resource != "secrets"), "{rule:?}");
    }
}

/// The sentinels: on every node one, workers without a certificate, one folder of the host, arguments that parse.
#[test]
fn sentinels_see_one_folder_of_the_host_and_workers_no_certificate() {
    let sets: Vec<DaemonSet> = of_kind(&with_component("sentinel"), "DaemonSet");
    assert_eq!(sets.len(), 2);
    let pki = ["ca.crt", "healthcheck-client.crt", "healthcheck-client.key"];
    for set in &sets {
        let name = set.metadata.name.as_deref().unwrap();
        let pod = set.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
        let mut expected = vec![("/var/run".to_owned(), "Directory".to_owned())];
        if name == "quorate-sentinel-control-plane" {
            expected.extend(pki.map(|file| (format!("/etc/kubernetes/pki/etcd/{file}"), "File".to_owned())));
            assert!(pod.node_selector.as_ref().unwrap().contains_key("node-role.kubernetes.io/control-plane"));
        } else {
            assert!(pod.affinity.is_some(), "{name}: not on control plane nodes");
        }
        let host = pod.volumes.iter().flatten().map(|volume| volume.host_path.clone().unwrap());
        let host: Vec<_> = host.map(|host| (host.path, host.type_.unwrap())).collect();
        assert_eq!(host, expected, "{name}");
        let mounts = pod.containers[0].volume_mounts.as_ref().unwrap();
        let writable: Vec<&str> =
            mounts.iter().filter(|mount| mount.read_only != Some(true)).map(|mount| &*mount.mount_path).collect();
        assert_eq!(writable, ["/host/var/run"], "{name}");
        let tolerations = pod.tolerations.as_ref().unwrap();
        let every = tolerations
            .iter()
            .any(|one| one.operator.as_deref() == Some("Exists") && one.key.is_none() && one.effect.is_none());
        assert!(every, "{name}: on every node, whatever is wrong with it");
        assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"), "{name}");
        assert_eq!((pod.host_network, pod.host_pid), (None, None), "{name}");
        let security = pod.containers[0].security_context.as_ref().unwrap();
        assert_eq!(security.capabilities.as_ref().unwrap().drop, Some(vec!["ALL".to_owned()]), "{name}");
        assert_eq!((security.privileged, security.read_only_root_filesystem), (None, Some(true)), "{name}");
        let args = pod.containers[0].args.as_ref().unwrap();
        let parsed = Cli::try_parse_from(std::iter::once("quorate").chain(args.iter().map(String::as_str)));
        assert!(parsed.is_ok(), "{name}: {}", parsed.unwrap_err());
    }
}

/// The ports at which pods with these labels may be asked, and may ask, by the policies that select them; none: everywhere.
fn ports(policies: &[NetworkPolicy], labels: &BTreeMap<String, String>) -> [Option<BTreeSet<i32>>; 2] {
    let mut both = [None, None];
    for spec in policies.iter().filter_map(|policy| policy.spec.as_ref()) {
        let selector = spec.pod_selector.as_ref().unwrap();
        let by_label = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
        let expressions = selector.match_expressions.iter().flatten();
        let by_key = expressions.clone().all(|one| one.operator == "Exists" && labels.contains_key(&one.key));
        if !by_label || !by_key {
            continue;
        }
        let of = |ports: &Option<Vec<_>>| ports.iter().flatten().map(number).collect::<Vec<i32>>();
        let rules = [
            ("Ingress", spec.ingress.iter().flatten().flat_map(|rule| of(&rule.ports)).collect::<Vec<_>>()),
            ("Egress", spec.egress.iter().flatten().flat_map(|rule| of(&rule.ports)).collect()),
        ];
        for (all, (kind, ports)) in both.iter_mut().zip(rules) {
            if spec.policy_types.iter().flatten().any(|one| one == kind) {
                all.get_or_insert_with(BTreeSet::new).extend(ports);
            }
        }
    }
    both
}

fn number(port: &NetworkPolicyPort) -> i32 {
    match port.port {
        Some(IntOrString::Int(number)) => number,
        Some(IntOrString::String(_)) | None => panic!("a rule names each port by its number: {port:?}"),
    }
}

/// apiservers, names and Prometheus for all; etcd for those on control plane nodes alone.
#[test]
fn sentinels_may_be_asked_and_may_ask_at_these_ports_alone() {
    let objects = with_component("sentinel");
    let policies: Vec<NetworkPolicy> = of_kind(&objects, "NetworkPolicy");
    for set in of_kind::<DaemonSet>(&objects, "DaemonSet") {
        let template = set.spec.unwrap().template;
        let labels = template.metadata.unwrap().labels.unwrap();
        let pod = template.spec.unwrap();
        assert_eq!(pod.host_network, None, "a policy binds no pod on the host's network");
        let listens: BTreeSet<i32> = pod.containers[0].ports.iter().flatten().map(|port| port.container_port).collect();
        let etcd = (set.metadata.name.unwrap() == "quorate-sentinel-control-plane").then_some(2379);
        let asks: BTreeSet<i32> = [53, 6443, 9090].into_iter().chain(etcd).collect();
        assert_eq!(ports(&policies, &labels), [Some(listens), Some(asks)]);
    }
    let job = BTreeMap::from([("app.kubernetes.io/name".to_owned(), "quorate".to_owned())]);
    assert_eq!(ports(&policies, &job), [None, None], "and no other pod of ours");
}

/// Every key, at every depth, of a document that is only mappings and values.
fn keys(value: &Value, path: &str, out: &mut BTreeSet<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        keys(value, &path, out);
        out.insert(path);
    }
}

#[test]
fn the_configuration_shows_every_key_with_its_default() {
    let text = config(&build("kustomize/base"));
    assert_eq!(Config::parse(&text).unwrap(), Config::default());
    let defaults: String =
        text.lines().filter_map(|line| line.strip_prefix("# ")).fold(String::new(), |mut all, line| {
            all.push_str(line);
            all.push('\n');
            all
        });
    assert_eq!(Config::parse(&defaults).unwrap(), Config::default());
    let (mut shown, mut known) = (BTreeSet::new(), BTreeSet::new());
    keys(&serde_saphyr::from_str(&defaults).unwrap(), "", &mut shown);
    keys(&serde_json::to_value(Config::default()).unwrap(), "", &mut known);
    assert_eq!(shown, known);
}

#[test]
fn the_lab_ignores_no_more_preflight_checks_than_it_must() {
    let config = Config::parse(&config(&build("kustomize/overlays/lab"))).unwrap();
    let ignored: Vec<&String> = config.upgrade.ignore_preflight_errors.keys().collect();
    assert_eq!(ignored, ["CoreDNSMigration", "CoreDNSUnsupportedPlugins", "SystemVerification"]);
    assert_eq!(config.upgrade.skip_phases, ["addon/coredns"]);
}
