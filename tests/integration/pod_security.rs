//! What each pod of ours needs beyond the `restricted` Pod Security level is what SAFETY.md says, and no more: the real admission of
//! a real apiserver is asked.

use crate::manifests::{build, components, with_component};
use lab::api::{Api, Spec};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The names of the checks that a refusal names: `violates PodSecurity "restricted:latest": NAME (what), NAME (what)`.
fn checks(refusal: &str) -> BTreeSet<String> {
    let (_, list) =
        refusal.split_once("violates PodSecurity \"restricted:latest\": ").unwrap_or_else(|| panic!("{refusal}"));
    let mut names = BTreeSet::new();
    let (mut depth, mut name) = (0_usize, String::new());
    for character in list.chars() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                names.insert(std::mem::take(&mut name).trim().to_owned());
            }
            other if depth == 0 => name.push(other),
            _ => {}
        }
    }
    names.insert(name.trim().to_owned());
    names
}

/// The rows of SAFETY.md's table: `| template | check, check |`.
fn written_down() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("SAFETY.md")).unwrap();
    let (_, section) = text.split_once("## What our pods need beyond `restricted`").expect("the section is there");
    let rows =
        section.lines().skip_while(|line| !line.starts_with("|---")).skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let names = cells[1].split(", ").map(|name| name.trim_matches('`').to_owned()).collect();
        (cells[0].trim_matches('`').to_owned(), names)
    })
    .collect()
}

#[test]
fn each_pod_violates_restricted_only_as_written_down() {
    let api = Api::start(Spec::default()).unwrap();
    api.apply("{apiVersion: v1, kind: Namespace, metadata: {name: strict, labels: {pod-security.kubernetes.io/enforce: restricted}}}")
        .unwrap();
    api.apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: strict}}").unwrap();
    let mut found = violations(&api, build("kustomize/base"));
    for component in components() {
        // A component may change what the base has.
        let with =
            violations(&api, with_component(&component)).into_iter().map(|(name, checks)| match found.get(&name) {
                Some(before) if *before != checks => (format!("{name} with {component}"), checks),
                Some(_) | None => (name, checks),
            });
        let with: Vec<_> = with.collect();
        found.extend(with);
    }
    found.extend(violations(&api, build("kustomize/overlays/drop-in")));
    assert_eq!(found, written_down());
}

/// What each template among these objects violates, by its name; none of those that are `restricted` as they are.
fn violations(api: &Api, objects: Vec<Value>) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    for template in objects {
        let of = match template["kind"].as_str().unwrap() {
            "CronJob" => "/spec/jobTemplate/spec/template/spec",
            "DaemonSet" => "/spec/template/spec",
            kind => {
                assert!(template.pointer("/spec/template").is_none(), "{kind}: a template that nobody looks at");
                continue;
            }
        };
        let name = template["metadata"]["name"].as_str().unwrap();
        let mut spec: Value = template.pointer(of).unwrap().clone();
        // What else admission looks at, and is no question of Pod Security: neither account nor class is in this namespace.
        spec.as_object_mut().unwrap().retain(|key, _| key != "serviceAccountName" && key != "priorityClassName");
        spec["automountServiceAccountToken"] = Value::Bool(false);
        let pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "strict"}, "spec": spec});
        let Err(refusal) = api.request("POST", "/api/v1/namespaces/strict/pods?dryRun=All", Some(&pod)) else {
            continue;
        };
        // The refusal is a Status, JSON in the words of the error.
        let words = refusal.root_cause().to_string().replace("\\\"", "\"");
        let message = words.split("\",\"reason\"").next().unwrap();
        found.insert(name.to_owned(), checks(message));
    }
    found
}
