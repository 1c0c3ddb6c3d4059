//! Draining against real apiservers. `plain` runs without controllers, where a test writes what it needs itself; `budgets`
//! runs with the real controller-manager and scheduler, which count budgets and bring pods back.

mod budgets;
mod plain;

use lab::api::{Api, Spec};
use quorate::access::Access;
use quorate::clock::Clock;
use quorate::config::BudgetPolicy;
use quorate::drain::{DrainError, Options, Overseer, Progress, UnmanagedPods};
use quorate::lock::Fence;
use quorum_safety::lock::TooLate;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// Namespace of quorate in these tests.
const QUORATE: &str = "quorate";

/// One set of servers for tests that run at the same time; stopped by the last that uses it.
struct Shared(Mutex<Weak<Api>>);

impl Shared {
    const fn new() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    fn get(&self, spec: Spec) -> Arc<Api> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(api) = shared.upgrade() {
            return api;
        }
        let api = Arc::new(Api::start(spec).unwrap());
        api.request("POST", "/api/v1/namespaces", Some(&json!({"metadata": {"name": QUORATE}}))).unwrap();
        *shared = Arc::downgrade(&api);
        api
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    // Another test may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn access(api: &Api) -> Access {
    Access::from_file(api.kubeconfig().unwrap(), QUORATE).await.unwrap()
}

fn options() -> Options {
    Options {
        deadline: Duration::from_secs(60),
        request: Duration::from_secs(5),
        parallel: 8,
        retry: Duration::from_secs(1),
        poll: Duration::from_millis(200),
        namespaces: BTreeMap::new(),
        unmanaged: UnmanagedPods::Evict,
        own_uid: None,
        settle: Duration::ZERO,
    }
}

fn deleting_after_half(namespace: &str) -> BTreeMap<String, BudgetPolicy> {
    BTreeMap::from([(namespace.to_owned(), BudgetPolicy::DeleteAfterHalf)])
}

/// Lets a drain go on, and writes down what it says.
struct Watcher {
    events: Vec<Progress>,
    asked: usize,
    /// Says stop from this question on, counted from 1.
    stop_at: usize,
}

impl Watcher {
    fn new() -> Self {
        Self { events: Vec::new(), asked: 0, stop_at: usize::MAX }
    }

    fn evicted(&self) -> Vec<String> {
        let name = |event: &Progress| match event {
            Progress::Evicting(pod) => Some(pod.name.clone()),
            _ => None,
        };
        self.events.iter().filter_map(name).collect()
    }
}

/// The fence of a holder that lives for this many questions, and then has lost its Lease.
struct Lives(usize, AtomicUsize);

impl Lives {
    fn for_ever() -> Self {
        Self::until_question(usize::MAX)
    }

    fn until_question(number: usize) -> Self {
        Self(number, AtomicUsize::new(0))
    }
}

impl Fence for Lives {
    fn clock(&self) -> Clock {
        Clock::system()
    }

    fn left(&self) -> Result<Duration, TooLate> {
        let asked = self.1.fetch_add(1, Ordering::Relaxed) + 1;
        if asked < self.0 { Ok(Duration::from_secs(30)) } else { Err(TooLate::Lost("`another` holds it".to_owned())) }
    }
}

impl Overseer for Watcher {
    async fn should_stop(&mut self) -> Option<String> {
        self.asked += 1;
        (self.asked >= self.stop_at).then(|| "the kill switch is engaged: maintenance".to_owned())
    }

    fn progress(&mut self, event: &Progress) {
        self.events.push(event.clone());
    }
}

fn blockers(error: DrainError) -> Vec<quorate::drain::Blocker> {
    match error {
        DrainError::Deadline { blockers, .. } | DrainError::Blocked { blockers, .. } => blockers,
        other => panic!("{other}"),
    }
}

fn items(api: &Api, namespace: &str) -> Vec<Value> {
    let pods = api.request("GET", &format!("/api/v1/namespaces/{namespace}/pods"), None).unwrap();
    pods["items"].as_array().unwrap().clone()
}

fn pod(api: &Api, namespace: &str, name: &str) -> Option<Value> {
    items(api, namespace).into_iter().find(|pod| pod["metadata"]["name"] == name)
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    lab::process::until(what, Duration::from_secs(60), || {
        Ok(look().map_or_else(|| ControlFlow::Continue(anyhow::anyhow!("not yet")), ControlFlow::Break))
    })
    .unwrap()
}

/// A namespace, and a ready node that only this test uses: it carries the label `test` with the namespace's name.
fn namespace(api: &Api, name: &str) {
    api.request("POST", "/api/v1/namespaces", Some(&json!({"metadata": {"name": name}}))).unwrap();
}

fn node(api: &Api, name: &str, namespace: &str) {
    let node = json!({"metadata": {"name": name, "labels": {"test": namespace}}});
    api.request("POST", "/api/v1/nodes", Some(&node)).unwrap();
    api.set_node_ready(name, api.address(1)).unwrap();
}

/// What becomes of a pod that was bound to a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    /// Its status is written, as a kubelet does when its containers answer.
    BecomesReady,
    /// Nothing.
    StaysPending,
}

/// Ends pods that were told to go, for as long as the closure runs: what a kubelet does when their containers have ended.
fn confirm_deletions<T>(api: &Api, namespace: &str, bound: Bound, during: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // Between list and write a pod may go, or an apiserver that a test has killed may be down: next time.
                let path = format!("/api/v1/namespaces/{namespace}/pods");
                let Ok(list) = api.request("GET", &path, None) else { continue };
                for pod in list["items"].as_array().into_iter().flatten() {
                    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                    let _ = if pod["metadata"]["deletionTimestamp"].is_string() {
                        api.finish_pod_deletion(namespace, name)
                    } else if bound == Bound::BecomesReady
                        && pod["spec"]["nodeName"].is_string()
                        && pod["status"]["phase"] == "Pending"
                    {
                        api.set_pod_ready(namespace, name)
                    } else {
                        Ok(())
                    };
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        // The thread must end also when the closure panics, or the scope waits for it for ever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
        done.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
