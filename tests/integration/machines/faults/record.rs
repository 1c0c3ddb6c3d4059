//! What became of each fault: a line of JSON in docs/faults.jsonl, and docs/faults.md made of all lines.

use super::boundary::Boundary;
use super::draw::Planned;
use super::fault::Fault;
use super::round::By;
use lab::Version;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The version that a line without one began with.
const FROM: &str = "v1.36.1";

/// One fault and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// What was built.
    pub(super) commit: String,
    /// The version that the upgrade began with.
    pub(super) from: Version,
    /// None for faults that were asked for by name.
    pub(super) seed: Option<u64>,
    pub(super) round: usize,
    /// Who went on after a run that did not end well.
    pub(super) by: By,
    pub(super) planned: Planned,
    /// The boundary at which it struck; none when it never did.
    pub(super) struck: Option<Boundary>,
    /// The node that it hit; none when it hits no single one, or never struck.
    pub(super) node: Option<String>,
    /// Exit codes of the runs of `quorate upgrade` that ended after it.
    pub(super) exits: Vec<i32>,
    /// Seconds from the fault until the upgrade was done; none when it never was.
    pub(super) seconds: Option<u64>,
    /// The fewest voters that answered from the fault to the next one; of three.
    pub(super) fewest_voters: Option<usize>,
    /// `done`, `not struck: …`, or what was wrong.
    pub(super) verdict: String,
}

impl Line {
    fn json(&self) -> Value {
        json!({
            "commit": self.commit, "from": self.from.to_string(), "seed": self.seed, "round": self.round, "by": self.by.name(), "fault": self.planned.fault.to_string(),
            "nth": self.planned.nth, "boundary": self.planned.at.to_string(),
            "struck": self.struck.map(|at| at.to_string()), "node": self.node, "exits": self.exits,
            "seconds": self.seconds, "fewestVoters": self.fewest_voters, "verdict": self.verdict,
        })
    }
}

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

/// Prints the lines, and keeps them where that is asked for: a test must not change the checkout that it tests.
pub(super) fn keep(lines: &[Line]) {
    let text: String = lines.iter().map(|line| format!("{}\n", line.json())).collect();
    print!("{text}");
    if std::env::var_os("FAULT_RECORD").is_none() {
        return;
    }
    let path = docs("faults.jsonl");
    let mut file = std::fs::File::options().create(true).append(true).open(&path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    std::fs::write(docs("faults.md"), page(&std::fs::read_to_string(path).unwrap())).unwrap();
}

/// The page, out of all lines.
fn page(lines: &str) -> String {
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |line: &Value, key: &str| match &line[key] {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.replace('|', "\\|"),
        Value::Array(all) => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    };
    let struck: Vec<&Value> = lines.iter().filter(|line| !line["struck"].is_null()).collect();
    let done = struck.iter().filter(|line| line["verdict"] == "done").count();
    let set = |key: &str| struck.iter().map(|line| of(line, key)).collect::<BTreeSet<_>>().len();
    let mut text = format!(
        "# Faults on the machines\n\n\
         Made from faults.jsonl by `make faults`; a test compares the two. Each fault struck a real kubeadm cluster of three control\n\
         plane nodes and a worker in the middle of an upgrade v1.36.1 → v1.36.3 (or from the version in brackets), several in one\n\
         upgrade; those that came too late say so. Then `quorate upgrade` was run again until it ended with 0, without any other hand but where\n\
         `note` says so; where `by` is reconcile, only after passes of that had left no Lease held. Exit codes are those of the runs that ended after the fault; the fewest voters\n\
         are those that answered a linearizable read within 3 s, from the fault to the next one, of three. Fewer than two are wrong\n\
         unless the fault itself took them away. A verdict other than `done` is a round that was not as it must be; `note` says\n\
         what was done about it, also where a round was wrong for a fault of the tests alone and was judged again by hand.\n\n\
         {} faults struck, {done} of them in rounds without a fault of ours; {} kinds of {}, at {} boundaries of {}.\n\n\
         | fault | drawn for | struck at | node | seed/round | by | exit codes | s until done | fewest voters | verdict | note |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
        struck.len(),
        set("fault"),
        Fault::all().len(),
        set("struck"),
        Boundary::all().len(),
    );
    for line in &lines {
        let from =
            line["from"].as_str().filter(|from| *from != FROM).map_or_else(String::new, |from| format!(" ({from})"));
        text.push_str(&format!(
            "| {}{from} | {}:{} | {} | {} | {}/{} | {} | {} | {} | {} | {} | {} |\n",
            of(line, "fault"),
            of(line, "nth"),
            of(line, "boundary"),
            of(line, "struck"),
            of(line, "node"),
            of(line, "seed"),
            of(line, "round"),
            line["by"].as_str().unwrap_or("upgrade"),
            of(line, "exits"),
            of(line, "seconds"),
            of(line, "fewestVoters"),
            of(line, "verdict"),
            line["note"].as_str().unwrap_or(""),
        ));
    }
    text
}

/// Where a kill was never brought to strike, five times of five: it is over before its line is read. At its neighbours one has struck.
const NOT_MET: [(&str, &str); 1] = [("kill-node-pod", "host:prune-scratch")];

#[test]
fn each_kind_of_fault_has_struck_and_a_kill_at_each_boundary_that_it_fits() {
    let lines = std::fs::read_to_string(docs("faults.jsonl")).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let done: BTreeSet<(String, String)> = lines
        .filter(|line| line["verdict"] == "done")
        .map(|line| (text(&line, "fault"), text(&line, "struck")))
        .collect();
    let mut missing = Vec::new();
    for fault in Fault::all() {
        if !done.iter().any(|(of, _)| *of == fault.to_string()) {
            missing.push(format!("{fault}, anywhere"));
        }
        if matches!(fault, Fault::StepKilled | Fault::NodePodKilled) {
            let fits = Boundary::all().into_iter().filter(|at| fault.fits(*at, false));
            let cells = fits.map(|at| (fault.to_string(), at.to_string()));
            let not_met = |(fault, at): &(String, String)| NOT_MET.contains(&(fault, at));
            missing.extend(
                cells
                    .filter(|cell| !done.contains(cell) && !not_met(cell))
                    .map(|(fault, at)| format!("{fault} at {at}")),
            );
        }
    }
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn the_table_of_faults_says_what_its_lines_say() {
    let lines = std::fs::read_to_string(docs("faults.jsonl")).unwrap();
    if std::env::var_os("FAULT_TABLE").is_some() {
        std::fs::write(docs("faults.md"), page(&lines)).unwrap();
    }
    let table = std::fs::read_to_string(docs("faults.md")).unwrap();
    assert_eq!(table, page(&lines), "after a change of faults.jsonl run this test with FAULT_TABLE=1");
    for line in lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        assert!(Fault::named(line["fault"].as_str().unwrap()).is_some(), "{line}");
        assert!(Boundary::named(line["boundary"].as_str().unwrap()).is_some(), "{line}");
    }
}
