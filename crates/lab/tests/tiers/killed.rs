//! The lab killed in the middle: nothing is left of the machines, and no half-made cache is ever used. Needs root, and no other cluster on
//! the host.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(300);

/// The lab's own cache.
fn cache() -> PathBuf {
    std::env::var_os("QUORATE_LAB_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/quorate/lab"),
        PathBuf::from,
    )
}

fn lab(cache: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.args(args).env("QUORATE_LAB_CACHE", cache);
    command
}

fn succeeds(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs it until it says that it is at `point`, and kills it there.
fn killed_at(command: Command, point: &str) {
    killed_when(command, point, |_| ());
}

/// Runs it until it says that it is at `point`, waits for something more, and kills it.
fn killed_when(mut command: Command, point: &str, wait: impl FnOnce(u32)) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    for line in lines {
        said.push(line.unwrap());
        if said.last().is_some_and(|line| line.contains(point)) {
            wait(child.id());
            child.kill().unwrap();
            child.wait().unwrap();
            return;
        }
    }
    panic!("it never said `{point}`: {said:#?}, {:?}", child.wait());
}

/// Runs it until it says that it is at `point` and one of these programs works for it there, and kills it then.
fn killed_in(command: Command, point: &str, programs: &[&str]) {
    killed_when(command, point, |lab| {
        let end = Instant::now() + PATIENCE;
        loop {
            let at_work = below(&processes(), lab);
            if at_work.iter().any(|process| programs.contains(&process.1.as_str())) {
                return;
            }
            assert!(Instant::now() < end, "`{point}`: none of {programs:?} was seen: {at_work:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

/// Number, name and parent of each process that has not ended.
fn processes() -> Vec<(u32, String, u32)> {
    let stats =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|it| fs::read_to_string(it.path().join("stat")).ok());
    let read = |stat: String| {
        let (number, rest) = stat.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        (fields.next()? != "Z").then_some(())?;
        Some((number.parse().ok()?, name.to_owned(), fields.next()?.parse().ok()?))
    };
    stats.filter_map(read).collect()
}

/// All that descend from a process.
fn below(all: &[(u32, String, u32)], ancestor: u32) -> Vec<(u32, String, u32)> {
    let children: Vec<_> = all.iter().filter(|process| process.2 == ancestor).cloned().collect();
    let further = children.iter().flat_map(|child| below(all, child.0)).collect::<Vec<_>>();
    children.into_iter().chain(further).collect()
}

/// What there is of machines on this host: mounts, network namespaces, cgroups, processes, files.
fn traces(state: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let state_path = state.to_str().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|at| at.starts_with(state_path))
            .map(str::to_owned),
    );
    let names = Command::new("ip").args(["netns", "list"]).output().unwrap();
    found.extend(String::from_utf8(names.stdout).unwrap().lines().map(|line| format!("namespace {line}")));
    let groups = Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", "*qk[0-9]*"]).output().unwrap();
    found.extend(String::from_utf8(groups.stdout).unwrap().lines().map(|line| format!("cgroup {line}")));
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(words) = fs::read(process.path().join("cmdline")) else { continue };
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if words.starts_with("systemd-nspawn") || (words.starts_with("haproxy") && words.contains(state_path)) {
            found.insert(format!("process {words}"));
        }
    }
    found.extend(fs::read_dir(state).into_iter().flatten().flatten().map(|entry| entry.path().display().to_string()));
    found
}

#[test]
fn nothing_is_left_of_machines_whose_lab_was_killed() {
    let cache = cache();
    let state = std::env::var_os("QUORATE_LAB_STATE").map_or_else(|| cache.join("state"), PathBuf::from);
    succeeds(lab(&cache, &["down"]));
    let before = traces(&state);
    for point in ["network and load balancer", "booting", "kubeadm init"] {
        killed_at(lab(&cache, &["up", "-c", "1"]), point);
        if point != "network and load balancer" {
            assert_ne!(traces(&state), before, "killed at `{point}`: there was nothing to take away");
        }
        succeeds(lab(&cache, &["down"]));
        assert_eq!(traces(&state), before, "killed at `{point}`");
    }
    // Nothing is there, and that is no error.
    succeeds(lab(&cache, &["down"]));
}

/// Files with their sizes, by path.
fn files(folder: &Path) -> BTreeSet<String> {
    let found = Command::new("find").arg(folder).args(["-type", "f", "-printf", "%P %s\n"]).output().unwrap();
    assert!(found.status.success());
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
#[ignore = "makes a root file system, images and a container store anew: minutes"]
fn a_build_killed_at_any_point_is_whole_after_the_next_run() {
    let whole = cache();
    let copy = whole.with_file_name(format!("killed-{}", std::process::id()));
    fs::create_dir(&copy).unwrap();
    // Hard links: what takes long and is not about this is there. The rest is made again.
    for part in ["debs", "etcd", "kubernetes", "layer", "repository"] {
        let (from, to) = (whole.join(part), copy.join(part));
        succeeds({
            let mut cp = Command::new("cp");
            cp.arg("-al").arg(from).arg(to);
            cp
        });
    }
    killed_in(lab(&copy, &["build"]), "the machines' root", &["apt-get", "dpkg", "http"]);
    killed_in(lab(&copy, &["build"]), "etcdctl, etcdutl", &["compile", "link"]);
    for point in ["images of etcd and pause", "Kubernetes v1.36.1: images", "container store"] {
        killed_at(lab(&copy, &["build"]), point);
    }
    succeeds(lab(&copy, &["build"]));
    let images = files(&copy.join("images"));
    assert!(!images.is_empty());
    assert_eq!(images, files(&whole.join("images")));
    for made in ["root", "etcd-tools"] {
        let (again, before) = (files(&copy.join(made)).len(), files(&whole.join(made)).len());
        // Debian may have published something since.
        assert!(before > 0 && again * 10 >= before * 9, "{made}: {again} files, {before} before");
    }
    let names = |folder: &Path| -> BTreeSet<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    };
    assert!(names(&copy.join("store")).is_subset(&names(&whole.join("store"))), "{:?}", names(&copy.join("store")));
    fs::remove_dir_all(&copy).unwrap();
}
