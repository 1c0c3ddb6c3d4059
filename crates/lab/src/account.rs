//! The account of a demo, out of the files that `scripts/demo` leaves in one folder:
//!
//! | file | what |
//! |---|---|
//! | `nodes-before.json`, `nodes-after.json` | `kubectl get nodes -o json` |
//! | `apiservers-before.json`, `apiservers-after.json` | kube-system's pods of the apiservers |
//! | `state.json` | what quorate wrote down about the upgrade: seconds of each node, and where they went |
//! | `upgrade.json` | exit code and seconds of the command |
//! | `vip.json`, `service-NODE.json…` | reports of the probers |
//! | `voters.json` | the quorum margin |
//! | `memory.json` | the most anonymous memory of each command of quorate; the shell loop has none |
//!
//! What is not known is said, and a goal that cannot be judged is missed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::command::read;
use crate::prober::memory::Memory;
use crate::prober::voters::Margin;
use crate::prober::{Class, Report, Tally};

/// The longest time without a success that is a goal, milliseconds.
const GAP_GOAL: u64 = 500;
/// The most time that is a goal, in hundredths of the shell loop's.
const TIME_GOAL: u64 = 70;
/// The most anonymous memory of any process of quorate that is a goal, bytes.
const MEMORY_GOAL: u64 = 16 * MIB;
const MIB: u64 = 1 << 20;
/// Failures that are printed one by one.
const SHOWN: usize = 12;
/// What the published plan's shell loop did on the same machines. Not measured by this run.
const QUOTED: &str = "quoted: the published plan's shell loop (drain, `kubeadm upgrade apply` on every node, uncordon)
  on such machines, through the VIP: 7 failed of 47,920, longest gap 3.2 s; by hand, once; `make demo-loop` measures it";

/// The folder of the shell loop's account.
const LOOP: &str = "demo-loop";

/// A file of the shell loop's account, as measured by `make demo-loop`, whose folder stands beside this one; none where it was not.
fn of_the_loop(folder: &Path, file: &str) -> Option<PathBuf> {
    let path = folder.with_file_name(LOOP).join(file);
    (!folder.ends_with(LOOP) && path.exists()).then_some(path)
}

/// What the shell loop did: as measured, or as quoted.
fn shell_loop(folder: &Path) -> Result<String> {
    let Some(path) = of_the_loop(folder, "vip.json") else { return Ok(QUOTED.to_owned()) };
    let mut vip = Sum::default();
    vip.add("VIP", &document(&path)?);
    let failed: u64 = vip.classes.values().map(|tally| tally.failed).sum();
    let gap = vip.longest_gap().map_or_else(|| "unknown".to_owned(), seconds);
    Ok(format!(
        "the published plan's shell loop (`make demo-loop`, {}): through the VIP: {failed} failed of {}, longest gap {gap}",
        path.display(),
        vip.requests()
    ))
}

/// What the demo says of the command that upgraded.
#[derive(Debug, Deserialize)]
struct Upgrade {
    exit: i32,
    seconds: u64,
}

#[derive(Debug, Deserialize)]
struct State {
    seconds: BTreeMap<String, u64>,
    /// None of the shell loop, which measures no parts.
    #[serde(default)]
    parts: BTreeMap<String, Vec<Part>>,
}

/// A part of a node's step, as quorate writes it down.
#[derive(Debug, Deserialize)]
struct Part {
    name: String,
    seconds: u64,
    #[serde(default)]
    parts: Vec<Self>,
}

/// Parts in a line; those that took no second are left out.
fn line_of(parts: &[Part]) -> String {
    let told = parts.iter().filter(|part| part.seconds > 0).map(|part| match line_of(&part.parts) {
        of if of.is_empty() => format!("{} {} s", part.name, part.seconds),
        of => format!("{} {} s ({of})", part.name, part.seconds),
    });
    told.collect::<Vec<_>>().join(", ")
}

fn document<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&read(path)?).with_context(|| format!("cannot understand {}", path.display()))
}

fn at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("?")
}

/// By node: the kubelet's version, and the tag of the apiserver's image where there is one.
fn versions(folder: &Path, when: &str) -> Result<BTreeMap<String, String>> {
    let list = |file: String| -> Result<Vec<Value>> {
        let path = folder.join(file);
        let mut list: Value = document(&path)?;
        let items = list.get_mut("items").map(Value::take);
        items.and_then(|items| items.as_array().cloned()).with_context(|| format!("no list in {}", path.display()))
    };
    let mut found = BTreeMap::new();
    for node in list(format!("nodes-{when}.json"))? {
        let version = format!("kubelet {}", at(&node, "/status/nodeInfo/kubeletVersion"));
        found.insert(at(&node, "/metadata/name").to_owned(), version);
    }
    for pod in list(format!("apiservers-{when}.json"))? {
        let tag = at(&pod, "/spec/containers/0/image").rsplit(':').next().unwrap_or("?").to_owned();
        if let Some(line) = found.get_mut(at(&pod, "/spec/nodeName")) {
            let _ = write!(line, ", apiserver {tag}");
        }
    }
    Ok(found)
}

/// All probers of one kind, as one.
#[derive(Debug, Default)]
struct Sum {
    probers: usize,
    killed: usize,
    late_ms: u64,
    classes: BTreeMap<Class, Tally>,
    failures: Vec<String>,
    /// The longest gap of all, and of it when, whose and in which class.
    gap: Option<(u64, String)>,
}

impl Sum {
    fn add(&mut self, whose: &str, report: &Report) {
        self.probers += 1;
        self.killed += usize::from(!report.complete);
        self.late_ms = self.late_ms.max(report.late_ms);
        for (class, tally) in &report.classes {
            let sum = self.classes.entry(*class).or_default();
            sum.requests += tally.requests;
            sum.failed += tally.failed;
            sum.reopened += tally.reopened;
            sum.slowest_ms = sum.slowest_ms.max(tally.slowest_ms);
            sum.longest_gap_ms = sum.longest_gap_ms.max(tally.longest_gap_ms);
            if self.gap.as_ref().is_none_or(|(longest, _)| tally.longest_gap_ms > *longest) {
                let from = report.started_at + Duration::from_millis(tally.gap_from_ms);
                self.gap = Some((tally.longest_gap_ms, format!("from {from:.3}, {whose}, {}", class.title())));
            }
        }
        let line =
            |one: &crate::prober::Failure| format!("{:.3} {whose}, {}: {}", one.at, one.class.title(), one.error);
        self.failures.extend(report.failures.iter().map(line));
    }

    fn requests(&self) -> u64 {
        self.classes.values().map(|tally| tally.requests).sum()
    }

    /// Failures of a class; none when it was never asked.
    fn failed(&self, class: Class) -> Option<u64> {
        self.classes.get(&class).map(|tally| tally.failed)
    }

    fn longest_gap(&self) -> Option<u64> {
        self.gap.as_ref().map(|(longest, _)| *longest)
    }
}

fn seconds(millis: u64) -> String {
    format!("{}.{:02} s", millis / 1000, millis % 1000 / 10)
}

fn clock(millis: u64) -> String {
    format!("{:>2}:{:02}", millis / 60_000, millis / 1000 % 60)
}

fn table(out: &mut String, title: &str, sum: &Sum) -> std::fmt::Result {
    let killed = if sum.killed == 0 { String::new() } else { format!(", {} of them killed", sum.killed) };
    writeln!(out, "\n{title} ({} prober(s){killed}; no retry, deadline 5 s)", sum.probers)?;
    writeln!(
        out,
        "  {:<16} {:>9} {:>7} {:>12} {:>15} {:>9}",
        "", "requests", "failed", "longest gap", "slowest answer", "reopened"
    )?;
    for class in Class::ALL {
        match sum.classes.get(&class) {
            Some(tally) => writeln!(
                out,
                "  {:<16} {:>9} {:>7} {:>12} {:>15} {:>9}",
                class.title(),
                tally.requests,
                tally.failed,
                seconds(tally.longest_gap_ms),
                seconds(tally.slowest_ms),
                tally.reopened
            )?,
            None => writeln!(out, "  {:<16} {:>9}", class.title(), "none")?,
        }
    }
    writeln!(
        out,
        "  a prober itself was kept from running for {} at most: so much of a gap may be its own",
        seconds(sum.late_ms)
    )?;
    if let Some((longest, when)) = &sum.gap {
        writeln!(out, "  the longest gap: {}, {when}", seconds(*longest))?;
    }
    for failure in sum.failures.iter().take(SHOWN) {
        writeln!(out, "  failed: {failure}")?;
    }
    if sum.failures.len() > SHOWN {
        writeln!(out, "  … and {} more", sum.failures.len() - SHOWN)?;
    }
    Ok(())
}

fn margin(out: &mut String, margin: &Margin) -> std::fmt::Result {
    let all = margin.members.len();
    let fewest = margin.fewest().map_or_else(|| "unknown".to_owned(), |fewest| fewest.to_string());
    writeln!(
        out,
        "\nquorum margin: at least {fewest} of {all} voters answered a linearizable read within 1 s; majority is {} ({} samples)",
        all / 2 + 1,
        margin.samples
    )?;
    let ends = margin.changes.iter().skip(1).map(|change| change.from_ms).chain([margin.lasted_ms]);
    for (change, end) in margin.changes.iter().zip(ends) {
        let missing: Vec<&str> =
            margin.members.iter().filter(|name| !change.answering.contains(name)).map(String::as_str).collect();
        let missing = if missing.is_empty() { String::new() } else { format!(", not {}", missing.join(", ")) };
        writeln!(out, "  {} to {}  {} of {all}{missing}", clock(change.from_ms), clock(end), change.answering.len())?;
    }
    Ok(())
}

fn mebibytes(bytes: u64) -> String {
    format!("{}.{} MiB", bytes / MIB, bytes % MIB * 10 / MIB)
}

fn memory(out: &mut String, memory: &Memory) -> std::fmt::Result {
    writeln!(
        out,
        "\nmost anonymous memory of a process of quorate, on any machine and here, looked at 4 times a second"
    )?;
    memory.0.iter().try_for_each(|(command, bytes)| writeln!(out, "  {command:<22} {}", mebibytes(*bytes)))
}

fn goal(out: &mut String, text: &str, value: Option<u64>, most: u64, show: impl Fn(u64) -> String) -> std::fmt::Result {
    let (said, met) = value.map_or_else(|| ("unknown".to_owned(), false), |value| (show(value), value <= most));
    writeln!(out, "  {:<7} {text}: {said}", if met { "met" } else { "MISSED" })
}

fn goals(out: &mut String, sums: &[(&str, &Sum)]) -> std::fmt::Result {
    writeln!(out, "\ngoals")?;
    for (where_, sum) in sums {
        goal(out, &format!("no new connection failed, {where_}"), sum.failed(Class::New), 0, |n| n.to_string())?;
        goal(out, &format!("no write failed, {where_}"), sum.failed(Class::Write), 0, |n| n.to_string())?;
        goal(out, &format!("no HTTP/2 request failed, {where_}"), sum.failed(Class::Http2), 0, |n| n.to_string())?;
        goal(out, &format!("longest gap of any class at most 0.5 s, {where_}"), sum.longest_gap(), GAP_GOAL, seconds)?;
    }
    Ok(())
}

/// Hundredths of the shell loop's time, where that was measured.
fn part_of_the_loop(folder: &Path, upgrade: &Upgrade) -> Result<Option<u64>> {
    let Some(path) = of_the_loop(folder, "upgrade.json") else { return Ok(None) };
    let by_loop: Upgrade = document(&path)?;
    let both = upgrade.exit == 0 && by_loop.exit == 0;
    Ok(both.then(|| (upgrade.seconds * 100).div_ceil(by_loop.seconds.max(1))))
}

/// The reports `service-NODE.json`, and `service-NODE.json.1` of probers that were started again.
fn service_reports(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some((node, _)) = name.strip_prefix("service-").and_then(|rest| rest.split_once(".json")) {
            found.push((node.to_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}

/// The account as text.
///
/// # Errors
/// A file is missing or cannot be understood.
pub fn text(folder: &Path) -> Result<String> {
    let (before, after) = (versions(folder, "before")?, versions(folder, "after")?);
    let upgrade: Upgrade = document(&folder.join("upgrade.json"))?;
    let state: State = document(&folder.join("state.json"))?;
    let mut vip = Sum::default();
    vip.add("VIP", &document(&folder.join("vip.json"))?);
    let mut service = Sum::default();
    for (node, path) in service_reports(folder)? {
        service.add(&format!("pod on {node}"), &document(&path)?);
    }
    let voters: Margin = document(&folder.join("voters.json"))?;

    let mut out = String::new();
    writeln!(
        out,
        "the upgrade: exit code {}, {} min {:02} s",
        upgrade.exit,
        upgrade.seconds / 60,
        upgrade.seconds % 60
    )?;
    writeln!(out, "\nnode   {:<40} {:<40} step", "before", "after")?;
    for node in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let of = |versions: &BTreeMap<String, String>| versions.get(node).cloned().unwrap_or_else(|| "gone".to_owned());
        let step = state.seconds.get(node).map_or_else(|| "not finished".to_owned(), |seconds| format!("{seconds} s"));
        writeln!(out, "{node:<6} {:<40} {:<40} {step}", of(&before), of(&after))?;
        if let Some(parts) = state.parts.get(node) {
            writeln!(out, "       {}", line_of(parts))?;
        }
    }
    table(&mut out, "requests through the VIP, from outside", &vip)?;
    table(&mut out, "requests through the Service address, from pods", &service)?;
    margin(&mut out, &voters)?;
    let seen: Option<Memory> = if folder.ends_with(LOOP) { None } else { Some(document(&folder.join("memory.json"))?) };
    if let Some(seen) = &seen {
        memory(&mut out, seen)?;
    }
    let failed: u64 = vip.classes.values().map(|tally| tally.failed).sum();
    let gap = vip.longest_gap().map_or_else(|| "unknown".to_owned(), seconds);
    writeln!(out, "\nthis run: through the VIP: {failed} failed of {}, longest gap {gap}", vip.requests())?;
    writeln!(out, "{}", shell_loop(folder)?)?;
    goals(&mut out, &[("VIP", &vip), ("Service", &service)])?;
    if let Some(hundredths) = part_of_the_loop(folder, &upgrade)? {
        goal(
            &mut out,
            "time of the whole upgrade at most 0.70 of the shell loop's",
            Some(hundredths),
            TIME_GOAL,
            |n| format!("{}.{:02}", n / 100, n % 100),
        )?;
    }
    if let Some(Memory(seen)) = &seen {
        let most = seen.values().copied().max();
        goal(&mut out, "anonymous memory of every process of quorate at most 16 MiB", most, MEMORY_GOAL, mebibytes)?;
    }
    Ok(out.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn folder(service: &Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, value: &Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        let report = |classes: &Value| {
            json!({"server": "https://10.10.0.10:6443", "startedAt": "2026-11-22T19:00:00Z", "lastedMs": 60_000,
                "complete": true, "lateMs": 310, "classes": classes,
                "failures": [{"at": "2026-11-22T19:00:10.5Z", "class": "kept", "error": "connect: refused"}]})
        };
        let tally = |failed: u64, gap: u64| json!({"requests": 1200, "failed": failed, "reopened": 3, "slowestMs": 80, "longestGapMs": gap, "gapFromMs": 5000});
        for (when, version) in [("before", "v1.36.1"), ("after", "v1.36.3")] {
            put(
                &format!("nodes-{when}.json"),
                &json!({"items": [{"metadata": {"name": "k1"}, "status": {"nodeInfo": {"kubeletVersion": version}}}]}),
            );
            let image = format!("registry.k8s.io/kube-apiserver:{version}");
            let pod = json!({"spec": {"nodeName": "k1", "containers": [{"image": image}]}});
            put(&format!("apiservers-{when}.json"), &json!({"items": [pod]}));
        }
        put("upgrade.json", &json!({"exit": 0, "seconds": 754}));
        let of_host = json!([{"name": "kubeadm", "seconds": 80}, {"name": "hold", "seconds": 0}]);
        let parts = json!([{"name": "acquired", "seconds": 21}, {"name": "cordon", "seconds": 0},
            {"name": "node-step", "seconds": 120, "parts": of_host}, {"name": "recovery", "seconds": 40}]);
        put("state.json", &json!({"seconds": {"k1": 181}, "parts": {"k1": parts}, "applyNode": "k1"}));
        put("vip.json", &report(&json!({"new": tally(0, 130), "kept": tally(1, 1500), "write": tally(0, 200)})));
        put("service-k1.json", &report(service));
        put("service-k1.json.1", &report(&json!({"new": tally(2, 100)})));
        put("memory.json", &json!({"node upgrade": 3_500_000, "step control-plane": 17 << 20}));
        put(
            "voters.json",
            &json!({"startedAt": "2026-11-22T19:00:00Z", "lastedMs": 754_000, "members": ["k1", "k2", "k3"],
                "samples": 754, "changes": [{"fromMs": 0, "answering": ["k1", "k2", "k3"]},
                {"fromMs": 61_000, "answering": ["k2", "k3"]}, {"fromMs": 64_000, "answering": ["k1", "k2", "k3"]}]}),
        );
        dir
    }

    #[test]
    fn the_account_says_what_was_counted_and_judges_the_goals() {
        let dir = folder(&json!({}));
        let said = text(dir.path()).unwrap();
        for expected in [
            "exit code 0, 12 min 34 s",
            "kubelet v1.36.1, apiserver v1.36.1",
            "kubelet v1.36.3, apiserver v1.36.3",
            " 181 s\n       acquired 21 s, node-step 120 s (kubeadm 80 s), recovery 40 s\n",
            "at least 2 of 3 voters",
            "kept from running for 0.31 s at most",
            " 1:01 to  1:04  2 of 3, not k1",
            "  met     no new connection failed, VIP: 0",
            "  MISSED  longest gap of any class at most 0.5 s, VIP: 1.50 s",
            "  MISSED  no HTTP/2 request failed, VIP: unknown",
            "  MISSED  no new connection failed, Service: 2",
            "  node upgrade           3.3 MiB\n",
            "  MISSED  anonymous memory of every process of quorate at most 16 MiB: 17.0 MiB",
            // Never asked: nothing is known, so it is missed.
            "  MISSED  no write failed, Service: unknown",
            "1 failed of 3600, longest gap 1.50 s",
            "quoted: the published plan's shell loop",
            "the longest gap: 1.50 s, from 2026-11-22T19:00:05.000Z, VIP, kept HTTP/1.1\n",
            "VIP, kept HTTP/1.1: connect: refused",
        ] {
            assert!(said.contains(expected), "`{expected}` is not in:\n{said}");
        }
        assert!(!said.contains("shell loop's"), "nothing to be compared with:\n{said}");
    }

    #[test]
    fn the_time_is_judged_beside_the_shell_loops() {
        let above = tempfile::tempdir().unwrap();
        let demo = above.path().join("demo");
        std::fs::rename(folder(&json!({})).keep(), &demo).unwrap();
        std::fs::create_dir(above.path().join(LOOP)).unwrap();
        let vip = demo.join("vip.json");
        std::fs::copy(&vip, above.path().join(LOOP).join("vip.json")).unwrap();
        for (exit, seconds, expected) in [
            (0, 1078, Some("  met     time of the whole upgrade at most 0.70 of the shell loop's: 0.70\n")),
            (0, 1060, Some("  MISSED  time of the whole upgrade at most 0.70 of the shell loop's: 0.72\n")),
            // A loop that failed took no time that says anything.
            (1, 2000, None),
        ] {
            let by_loop = json!({"exit": exit, "seconds": seconds});
            std::fs::write(above.path().join(LOOP).join("upgrade.json"), by_loop.to_string()).unwrap();
            let said = text(&demo).unwrap();
            match expected {
                Some(expected) => assert!(said.contains(expected), "`{expected}` is not in:\n{said}"),
                None => assert!(!said.contains("shell loop's:"), "{said}"),
            }
        }
    }
}
