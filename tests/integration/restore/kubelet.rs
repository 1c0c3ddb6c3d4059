//! Plays a kubelet: what lies in the folder of manifests runs, what is taken out of it is ended, what ends is started again.

use lab::process::Process;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

pub(super) const COMPONENTS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
/// Between two looks.
const EVERY: Duration = Duration::from_millis(100);
/// How long a process may take to end before it is killed: as a kubelet would, but for a test.
const GRACE: Duration = Duration::from_secs(10);

/// The kubelet of one host. Its processes end with it.
pub(super) struct Kubelet {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    /// Watches `manifests` below that folder.
    pub(super) fn start(folder: PathBuf) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut running = BTreeMap::new();
            while !ends.load(Ordering::Relaxed) {
                for component in COMPONENTS {
                    sync(&folder, component, &mut running);
                }
                std::thread::sleep(EVERY);
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn sync(folder: &Path, component: &'static str, running: &mut BTreeMap<&'static str, (String, Process)>) {
    let wanted = fs::read_to_string(folder.join("manifests").join(format!("{component}.yaml"))).ok();
    if let Some((text, process)) = running.get(component) {
        if wanted.as_ref() == Some(text) {
            if process.running().is_err() {
                process.restart().unwrap();
            }
            return;
        }
        if process.stop(GRACE).is_err() {
            process.kill().unwrap();
        }
        running.remove(component);
    }
    let Some(text) = wanted else { return };
    let words: Vec<String> = text.lines().filter_map(|line| line.strip_prefix("    - ")).map(str::to_owned).collect();
    let Some((program, args)) = words.split_first() else { return };
    let log = folder.join(format!("kubelet-{component}.log"));
    let process = Process::new(component, program.into(), args.to_vec(), log);
    process.start().unwrap();
    running.insert(component, (text, process));
}
