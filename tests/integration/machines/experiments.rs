//! The experiments of docs/zero-downtime.md: what clients see when one thing is done to the control plane, without quorate in the way.
//! Each prints a line of that page's tables. What is asserted is only what the design rests on; the rest are figures.

use super::clients::{RATES, probed_at};
use super::stage::{Stage, machines, stage, until};
use lab::prober::{Class, Report};
use lab::{ETCD_CLIENT, Machine, Spec};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// So many writes that some are under way in the milliseconds in which leadership moves: a hundred on each apiserver.
const WRITES: &str = "--new-rate 5 --kept-rate 5 --http2-rate 5 --write-rate 300 --connections 6";
/// How long a static pod is out.
const OUT: Duration = Duration::from_secs(25);
/// How long an apiserver is out from which new connections are handed over, and one from which they are not, to be compared with.
const LONG_OUT: Duration = Duration::from_secs(60);
const MANIFESTS: &str = "/etc/kubernetes/manifests";
/// The node that things are done to.
const NODE: u8 = 2;

/// What the balancer wrote of the sessions that ended, by termination code.
struct Sessions {
    codes: Arc<Mutex<BTreeMap<String, usize>>>,
    over: Arc<AtomicBool>,
}

impl Sessions {
    fn listen(stage: &Stage) -> Self {
        let socket = UnixDatagram::bind(stage.lab.haproxy_log()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let sessions = Self { codes: Arc::default(), over: Arc::default() };
        let (codes, over) = (Arc::clone(&sessions.codes), Arc::clone(&sessions.over));
        std::thread::spawn(move || {
            let mut line = [0; 2048];
            while !over.load(Ordering::Relaxed) {
                let length = match socket.recv(&mut line) {
                    Ok(length) => length,
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                    Err(error) => panic!("the balancer's log: {error}"),
                };
                // `… api apiservers/k2 0/0/12 3456 SD 6/6/5/2/0 0/0`
                let text = String::from_utf8_lossy(&line[..length]).into_owned();
                // What it says of itself has other words there.
                if let Some(code) = text.split_whitespace().rev().nth(2).filter(|word| word.len() == 2) {
                    *codes.lock().unwrap().entry(code.to_owned()).or_default() += 1;
                }
            }
        });
        sessions
    }

    /// What came since the last time.
    fn taken(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut self.codes.lock().unwrap())
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

struct Experiments {
    stage: Stage,
    sessions: Sessions,
    machine: Machine,
    /// [`ETCD_CLIENT`].
    pki: tempfile::TempDir,
}

impl Experiments {
    /// Does something beside the prober, waits until all is whole again, and prints what clients saw.
    fn row(&self, name: &str, work: impl FnOnce(&Self)) -> Report {
        self.row_at(RATES, name, work)
    }

    fn row_at(&self, rates: &str, name: &str, work: impl FnOnce(&Self)) -> Report {
        self.whole();
        drop(self.sessions.taken());
        let ((), report) = probed_at(&self.stage, rates, || {
            work(self);
            self.whole();
        });
        let codes = self.sessions.taken().into_iter().filter(|(code, _)| code != "--" && code != "CD");
        let codes: Vec<String> = codes.map(|(code, count)| format!("{code} {count}")).collect();
        let cell = |class| {
            let tally = &report.classes[&class];
            format!("{} of {}", tally.failed, tally.requests)
        };
        let gap = report.classes.values().map(|tally| tally.longest_gap_ms).max().unwrap();
        println!(
            "| {name} | {} | {} | {} | {} | {:.2} s | {} |",
            cell(Class::New),
            cell(Class::Kept),
            cell(Class::Http2),
            cell(Class::Write),
            Duration::from_millis(gap).as_secs_f64(),
            if codes.is_empty() { "none".to_owned() } else { codes.join(", ") }
        );
        for failure in report.failures.iter().take(5) {
            println!("  {} {}: {}", failure.at, failure.class.title(), failure.error);
        }
        report
    }

    /// This node's apiserver is ready, and the gate would let the node go: all others are, too.
    fn whole(&self) {
        self.own_is_ready();
        self.stage.whole();
    }

    /// The node's own apiserver says so to the node itself: what comes from there is never handed over. The gate would rightly not take a
    /// peer that answers in its place for it.
    fn own_is_ready(&self) {
        let url = format!("https://{}:6443/readyz", self.machine.address());
        until("the node's own apiserver to be ready", || {
            let said = self.machine.run(["curl", "-sk", "--max-time", "3", &url]).unwrap();
            if said.stdout == b"ok" { Ok(()) } else { Err(format!("{said:?}")) }
        });
    }

    /// Takes a static pod of the node out for a while.
    fn out(&self, component: &str) {
        self.out_for(component, OUT);
    }

    fn out_for(&self, component: &str, length: Duration) {
        let script = format!("mv {MANIFESTS}/{component}.yaml /root/");
        self.machine.run_checked(["sh", "-ec", &script]).unwrap();
        std::thread::sleep(length);
        self.machine.run_checked(["sh", "-ec", &format!("mv /root/{component}.yaml {MANIFESTS}/")]).unwrap();
        until("the static pod to be back", || {
            let there = self.machine.run(["pgrep", "-x", component]).unwrap().status.success();
            if there { Ok(()) } else { Err(component.to_owned()) }
        });
    }

    /// Hands new connections to this node's apiserver over to a peer while something is done, by a rule like quorate's.
    fn handed_over(&self, work: impl FnOnce()) {
        let (own, peer) = (self.machine.address(), self.stage.lab.machine(3).unwrap().address());
        let table = "ip experiment";
        let rules = format!(
            "add table {table}; \
             add chain {table} prerouting {{ type nat hook prerouting priority -110; }}; \
             add chain {table} postrouting {{ type nat hook postrouting priority 90; }}; \
             add rule {table} prerouting iifname != \"lo\" ip daddr {own} tcp dport 6443 dnat to {peer}:6443; \
             add rule {table} postrouting ct status dnat ip daddr {peer} tcp dport 6443 masquerade"
        );
        self.machine.run_checked(["nft", &rules]).unwrap();
        work();
        self.own_is_ready();
        self.machine.run_checked(["nft", "delete", "table", "ip", "experiment"]).unwrap();
    }

    /// Has the kubelet put another apiserver in the place of this one, as after kubeadm's change of the manifest: one that only ends is started
    /// again after a back-off that doubles.
    fn replace_apiserver(&self, time: usize) {
        let process = || self.machine.run(["pgrep", "-xn", "kube-apiserver"]).unwrap().stdout;
        let old = process();
        let file = format!("{MANIFESTS}/kube-apiserver.yaml");
        let script = format!(
            "sed '/experiment: /d; s/^  annotations:$/&\\n    experiment: \"{time}\"/' {file} >/root/a.yaml; mv /root/a.yaml {file}"
        );
        self.machine.run_checked(["sh", "-ec", &script]).unwrap();
        let there = self.machine.run(["grep", "-c", "experiment: ", &file]).unwrap().stdout;
        assert_eq!(String::from_utf8_lossy(&there).trim(), "1");
        until("another apiserver", || {
            let now = process();
            if !now.is_empty() && now != old { Ok(()) } else { Err("the old one is there, or none".to_owned()) }
        });
        self.own_is_ready();
    }

    /// Tells the node's apiserver to stop, and waits until another process serves.
    fn stop_apiserver(&self) {
        let process = || self.machine.run(["pgrep", "-xo", "kube-apiserver"]).unwrap().stdout;
        let old = process();
        self.machine.run_checked(["pkill", "-TERM", "-x", "kube-apiserver"]).unwrap();
        until("another apiserver", || {
            let now = process();
            if !now.is_empty() && now != old { Ok(()) } else { Err("the old one is there, or none".to_owned()) }
        });
        self.own_is_ready();
    }

    /// HAProxy with another configuration; sessions that there are go on.
    fn balancer(&self, cuts: bool, change: impl FnOnce(&str) -> String) {
        let folder = self.stage.lab.haproxy_socket().parent().unwrap().to_owned();
        let (config, changed) = (folder.join("haproxy.cfg"), folder.join("experiment.cfg"));
        let text = change(&std::fs::read_to_string(config).unwrap());
        assert_eq!(text.contains("shutdown-sessions"), cuts, "{text}");
        std::fs::write(&changed, text).unwrap();
        let script = "haproxy -D -f \"$1\" -p \"$2\" -sf $(cat \"$2\")";
        let pid = folder.join("haproxy.pid");
        let status = std::process::Command::new("ip")
            .args(["netns", "exec", "qlb", "sh", "-ec", script, "sh"])
            .args([&changed, &pid])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// How long etcd keeps its port after SIGTERM, and how long the apiserver before it is without an answer.
    fn etcd_and_its_apiserver(&self) {
        let address = self.machine.address();
        let (etcd, apiserver) = (format!("https://{address}:2379"), format!("https://{address}:6443"));
        // curl's code for a connection that is refused.
        let refused =
            || self.stage.lab.run(["curl", "-sk", "--max-time", "1", &etcd]).unwrap().status.code() == Some(7);
        let began = Instant::now();
        self.machine.run_checked(["pkill", "-TERM", "-x", "etcd"]).unwrap();
        until("etcd's port to be closed", || if refused() { Ok(()) } else { Err("it is open".to_owned()) });
        let closed = began.elapsed();
        until("etcd's port to be open", || if refused() { Err("it is closed".to_owned()) } else { Ok(()) });
        let open = began.elapsed();
        until("a linearizable read through the node's own apiserver", || {
            let ask = ["kubectl", "--server", &apiserver, "--request-timeout=1s", "get", "namespace", "default"];
            let said = self.stage.lab.run(ask).unwrap();
            if said.status.success() { Ok(()) } else { Err(format!("{said:?}")) }
        });
        println!(
            "etcd told to stop: port closed after {:.1} s, open again after {:.1} s, its apiserver reads again after {:.1} s",
            closed.as_secs_f64(),
            open.as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
    }

    fn etcdctl(&self, endpoints: &str, words: &[&str]) -> String {
        let file = |name: &str| self.pki.path().join(name).display().to_string();
        let [ca, certificate, key] = ETCD_CLIENT.map(file);
        let how = ["etcdctl", "--cacert", &ca, "--cert", &certificate, "--key", &key, "--endpoints", endpoints];
        self.stage.lab.run_checked([&how[..], words].concat()).unwrap()
    }

    /// Moves leadership to the next member so many times.
    fn move_leader(&self, times: usize) {
        let all: Vec<String> = (1..=3).map(|number| format!("https://10.10.0.1{number}:2379")).collect();
        for _ in 0..times {
            let status: Value =
                serde_json::from_str(&self.etcdctl(&all.join(","), &["endpoint", "status", "-w", "json"])).unwrap();
            let of = |at: usize| status[at]["Status"]["header"]["member_id"].as_u64().unwrap();
            let leader = status[0]["Status"]["leader"].as_u64().unwrap();
            let at = (0..3).find(|at| of(*at) == leader).unwrap();
            let from = status[at]["Endpoint"].as_str().unwrap();
            self.etcdctl(from, &["move-leader", &format!("{:x}", of((at + 1) % 3))]);
            std::thread::sleep(Duration::from_secs(2));
        }
    }
}

/// Whether an experiment is wanted: all are, unless `EXPERIMENTS` names some.
fn wanted(name: &str) -> bool {
    std::env::var("EXPERIMENTS").map_or(true, |names| names.is_empty() || names.split_whitespace().any(|it| it == name))
}

/// HAProxy as pfSense's package writes it where nothing is put into its fields for free text.
fn as_pfsense_writes_it(config: &str) -> String {
    config
        .replace("  option redispatch 1\n", "")
        .replace("timeout connect 2s", "timeout connect 30s")
        .replace("timeout server 1h", "timeout server 30s")
        .replace(" fall 2 rise 2", "")
}

#[test]
#[ignore = "half an hour on the machines; what it prints is in docs/zero-downtime.md"]
fn experiments_of_zero_downtime() {
    let _alone = machines();
    let stage = stage(Spec { workers: 1, ..Spec::default() });
    let pki = tempfile::tempdir().unwrap();
    stage.lab.copy_etcd_client(pki.path()).unwrap();
    let (sessions, machine) = (Sessions::listen(&stage), stage.lab.machine(NODE).unwrap());
    let it = Experiments { stage, sessions, machine, pki };
    println!(
        "| what is done to one node | new | kept HTTP/1.1 | HTTP/2 | writes | longest gap | the balancer's codes |"
    );
    println!("|---|---|---|---|---|---|---|");
    if wanted("E4") {
        it.row("E4: its apiserver is replaced by the kubelet, twenty times", |it| {
            (0..20).for_each(|time| it.replace_apiserver(time));
        });
    }
    if wanted("E1") {
        it.row("E1: its etcd is out for 25 s under a running apiserver", |it| it.out("etcd"));
    }
    if wanted("E3") {
        it.balancer(true, |config| {
            config.replace("  default-server ", "  default-server on-marked-down shutdown-sessions ")
        });
        it.row("E3: the same, the balancer with `on-marked-down shutdown-sessions`", |it| it.out("etcd"));
        it.balancer(false, str::to_owned);
    }
    if wanted("E5") {
        it.row("E5 without: its apiserver is out for 60 s", |it| it.out_for("kube-apiserver", LONG_OUT));
        let out = it.row("E5: the same, new connections handed over", |it| {
            it.handed_over(|| it.out_for("kube-apiserver", LONG_OUT));
        });
        assert_eq!(out.failed(Class::New), Some(0), "{:?}", out.failures);
    }
    if wanted("pfsense") {
        it.balancer(false, as_pfsense_writes_it);
        it.row("a balancer as pfSense's package writes it: its apiserver is out for 25 s", |it| {
            it.out("kube-apiserver");
        });
        it.row("the same, new connections handed over", |it| it.handed_over(|| it.out("kube-apiserver")));
        it.balancer(false, str::to_owned);
    }
    if wanted("E7") {
        let both =
            it.row("E7 without kubeadm: handed over, its apiserver told to stop, then etcd out for 25 s", |it| {
                it.handed_over(|| {
                    it.stop_apiserver();
                    it.out("etcd");
                });
            });
        assert_eq!(both.failed(Class::New), Some(0), "{:?}", both.failures);
    }
    if wanted("E8") {
        it.row_at(WRITES, "E8: leadership of etcd moved twenty times, under 300 writes a second", |it| {
            it.move_leader(20)
        });
    }
    if wanted("E2") {
        (0..3).for_each(|_| {
            it.whole();
            it.etcd_and_its_apiserver();
        });
    }
}

#[test]
fn the_balancer_is_changed_where_it_is_meant_to_be() {
    let changed = as_pfsense_writes_it(
        "  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n  option redispatch 1\n  retries 3\n  \
         default-server check fall 2 rise 2\n",
    );
    let expected =
        "  timeout connect 30s\n  timeout client 1h\n  timeout server 30s\n  retries 3\n  default-server check\n";
    assert_eq!(changed, expected);
}
