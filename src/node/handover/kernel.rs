//! The rule in the real kernel, in a network namespace of its own: who answers new connections while it is held, and once its holder has
//! ended, hangs, or has no peer. Own apiserver and peer are real ones on loopback addresses, the client is in a second namespace. The way
//! to another machine and back is seen on machines (tests/integration/machines/story.rs).

use super::super::nft::TABLE;
use super::super::report::HandOverReport;
use super::*;
use crate::access::Access;
use crate::observe::apiserver::certificate;
use lab::api::{Api, Spec};
use lab::process::{Process, until};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{File, read_link, read_to_string, write};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command as Program;
use tokio::signal::unix::{SignalKind, signal};

/// Says that this process is the one inside, and which namespaces it must not be in.
const INSIDE: &str = "QUORATE_TEST_OUTSIDE_IS";
/// Says that this process holds the rule: the folder that has its certificates, its own apiserver, the peer.
const HOLDER: &str = "QUORATE_TEST_HOLDS";
const ANSWER: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(120);
/// Before the host's own nft in [`PATH`].
const BEFORE: &str = "/usr/local/sbin";
/// As from before tables had owners: the word means nothing to it.
const OLD_NFT: &str = r#"#!/bin/sh
[ "$1" = -i ] || exec /usr/sbin/nft "$@"
sed -u 's/flags owner;/flags unheard_of;/' | /usr/sbin/nft "$@"
"#;

#[test]
fn the_rule_ends_with_its_holder_and_with_the_last_ready_peer() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match (std::env::var(HOLDER), std::env::var(INSIDE)) {
        (Ok(order), _) => runtime.block_on(hold(&order)),
        (_, Ok(outside)) => {
            let here = spaces();
            assert!(here.iter().all(|space| !outside.contains(space)), "this would change the host: {here:?}");
            inside(&runtime);
        }
        _ => {
            let output = Program::new("unshare")
                .args(["--net", "--mount", "--propagation", "private"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", &this_test(), "--nocapture"])
                .env(INSIDE, spaces().join(" "))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.contains("1 passed"), "{said}\n{errors}");
        }
    }
}

fn this_test() -> String {
    let here = module_path!().split_once("::").unwrap().1;
    format!("{here}::the_rule_ends_with_its_holder_and_with_the_last_ready_peer")
}

fn spaces() -> [String; 2] {
    ["net", "mnt"].map(|kind| read_link(format!("/proc/self/ns/{kind}")).unwrap().to_string_lossy().into_owned())
}

/// Puts the rule in force, says so, and takes it back when it is told to end: as `quorate node hand-over` does.
async fn hold(order: &str) {
    trust();
    let mut words = order.split(' ');
    let (root, own, peer) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let target = Target { local: own.parse().unwrap(), service: None };
    let (probe, peers) = (Probe::new(Path::new(root)), vec![peer.parse().unwrap()]);
    let mut end = signal(SignalKind::terminate()).unwrap();
    let say = |report: &HandOverReport| -> anyhow::Result<()> {
        assert!(report.on, "{report:?}");
        println!("in force by {}.", report.because);
        Ok(())
    };
    let over = async {
        end.recv().await;
    };
    super::super::aside::hold(target, peers, probe, say, over).await.unwrap();
}

/// main does it for the program.
fn trust() {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        assert!(rustls::crypto::CryptoProvider::get_default().is_some());
    }
}

fn sh(script: &str) -> String {
    let output = Program::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn tables() -> String {
    sh("nft list tables")
}

/// Who answers a new connection to the node's own apiserver.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Own,
    Peer,
    Nobody(String),
}

/// The node whose connections are handed over, its peer, and a client outside of it.
struct Node {
    api: Api,
    client: Process,
    root: tempfile::TempDir,
}

impl Node {
    fn start() -> Self {
        trust();
        sh("ip link set lo up");
        let api = Api::start(Spec { apiservers: 2, ..Spec::default() }).unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/kubernetes")).unwrap();
        std::os::unix::fs::symlink(api.pki_dir(), root.path().join("etc/kubernetes/pki")).unwrap();
        let words = ["--net", "sleep", "infinity"].map(str::to_owned).to_vec();
        let client = Process::new("client", "/usr/bin/unshare".into(), words, root.path().join("client.log"));
        client.start().unwrap();
        let (pid, own) = (client.pid().unwrap(), api.address(1));
        let here = &spaces()[0];
        let seen = |path: &str| read_link(path).map(|link| link.to_string_lossy().into_owned());
        until("the client has a network of its own", PATIENCE, || {
            // Before setpriv has become unshare, and unshare sleep, it is ours.
            let there = seen(&format!("/proc/{pid}/ns/net"))?;
            Ok(if there == *here { ControlFlow::Continue(anyhow::anyhow!(there)) } else { ControlFlow::Break(()) })
        })
        .unwrap();
        // Loopback addresses as any others: the client has no loopback device.
        let routed = "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet";
        sh(&format!(
            "{routed}
             ip link add node type veth peer name client netns {pid}
             ip address add 10.9.0.1/24 dev node
             ip link set node up
             nsenter --target {pid} --net sh -ec '{routed}; ip address add 10.9.0.2/24 dev client; ip link set client up; \
             ip route add {own}/32 via 10.9.0.1'"
        ));
        Self { api, client, root }
    }

    fn own(&self) -> SocketAddr {
        SocketAddr::from((self.api.address(1), 6443))
    }

    fn target(&self) -> (Target, Vec<IpAddr>, Probe) {
        let target = Target { local: self.own(), service: None };
        (target, vec![self.api.address(2).into()], Probe::new(self.root.path()))
    }

    /// Does something in the client's network.
    fn outside<T: Send>(&self, act: impl FnOnce(&tokio::runtime::Runtime) -> T + Send) -> T {
        let space = File::open(format!("/proc/{}/ns/net", self.client.pid().unwrap())).unwrap();
        let act = || {
            // This thread only.
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            act(&tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap())
        };
        std::thread::scope(|scope| scope.spawn(act).join().unwrap())
    }

    /// A new connection of the client from this port.
    fn connect(&self, port: u16) -> std::io::Result<std::net::TcpStream> {
        let own = self.own();
        self.outside(|runtime| {
            runtime.block_on(async {
                let socket = tokio::net::TcpSocket::new_v4()?;
                socket.bind(SocketAddr::from(([10, 9, 0, 2], port)))?;
                socket.connect(own).await?.into_std()
            })
        })
    }

    /// Told by the certificate, as the address that was asked is the node's own in any case.
    fn answer(&self) -> Answer {
        let (kubeconfig, own, peer) = (self.api.kubeconfig().unwrap(), self.own(), self.api.address(2));
        let said = self.outside(|runtime| {
            runtime.block_on(async {
                let access = Access::from_file(kubeconfig, "default").await.unwrap();
                certificate(&access, &own.to_string(), ANSWER).await
            })
        });
        match said {
            Ok(_) => Answer::Own,
            Err(why) if why.contains("not valid for name") && why.contains(&format!("({peer})")) => Answer::Peer,
            Err(why) => Answer::Nobody(why),
        }
    }

    fn wait(&self, what: &str, wanted: &Answer) {
        until(what, PATIENCE, || {
            let answer = self.answer();
            let as_wanted = answer == *wanted;
            Ok(if as_wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow::anyhow!("{answer:?}")) })
        })
        .unwrap();
    }

    /// A process that holds the rule, which is in force when this returns.
    fn holder(&self, relies_on: &str) -> Process {
        let order = format!("{HOLDER}={} {} {}", self.root.path().display(), self.own(), self.api.address(2));
        let this = std::env::current_exe().unwrap().display().to_string();
        let words = [&order, &this, "--exact", &this_test(), "--nocapture"].map(str::to_owned).to_vec();
        let log = tempfile::Builder::new().prefix("holder").tempfile_in(self.root.path()).unwrap().into_temp_path();
        let log = log.keep().unwrap();
        let holder = Process::new("holder", "/usr/bin/env".into(), words, log.clone());
        holder.start().unwrap();
        let said = until("the rule is in force", PATIENCE, || {
            holder.running()?;
            let said = read_to_string(&log)?;
            let in_force = said.contains("in force by ");
            Ok(if in_force { ControlFlow::Break(said) } else { ControlFlow::Continue(anyhow::anyhow!(said)) })
        });
        let said = said.unwrap();
        assert!(said.contains(&format!("in force by {relies_on}.")), "{said}");
        assert_eq!(self.answer(), Answer::Peer);
        holder
    }
}

fn inside(runtime: &tokio::runtime::Runtime) {
    let node = Node::start();
    assert_eq!(node.answer(), Answer::Own);
    held_by_an_owner(&node, runtime);
    from_the_port_of_one_that_was_reset(&node);
    without_a_peer(&node, runtime);
    without_owners(&node);
    // Whoever has no nft goes without.
    let (target, peers, probe) = node.target();
    write(Path::new(BEFORE).join("nft"), "#!/bin/sh\nexit 127\n").unwrap();
    let said = runtime.block_on(possible(&target, &peers, &probe, Deadline::after(ANSWER)));
    assert!(matches!(said, Err(Absent::Impossible(_))), "{said:?}");
}

fn held_by_an_owner(node: &Node, runtime: &tokio::runtime::Runtime) {
    let (own, (_, _, probe)) = (node.own(), node.target());
    let holder = node.holder("owner and timeout");
    // Back in rotation only by an answer that no peer can give: the node's own questions are never handed over.
    runtime.block_on(probe.ready(own)).unwrap();
    node.api.apiserver(1).unwrap().pause().unwrap();
    assert_eq!(node.answer(), Answer::Peer);
    runtime.block_on(probe.ready(own)).unwrap_err();
    runtime.block_on(probe.version(own)).unwrap_err();
    node.api.apiserver(1).unwrap().resume().unwrap();
    assert!(holder.stop(PATIENCE).unwrap().success());
    assert_eq!((tables().as_str(), node.answer()), ("", Answer::Own));

    // Killed: the table itself is gone, not only what it matches.
    let holder = node.holder("owner and timeout");
    let killed = std::time::Instant::now();
    holder.kill().unwrap();
    until("the table is gone", PATIENCE, || {
        let tables = tables();
        Ok(if tables.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow::anyhow!(tables)) })
    })
    .unwrap();
    // E6 of docs/zero-downtime.md.
    println!("the table was gone {} ms after its holder was killed", killed.elapsed().as_millis());
    assert_eq!(node.answer(), Answer::Own);

    // Stopped: it lives, and so does its table. Nobody else takes that for his own.
    let holder = node.holder("owner and timeout");
    holder.pause().unwrap();
    let (target, peers, probe) = node.target();
    let another = runtime.block_on(HandOver::start(target, peers.clone(), peers, probe, Deadline::after(PATIENCE)));
    assert!(matches!(&another, Err(Absent::Impossible(why)) if why.contains("not permitted")), "{another:?}");
    node.wait("a rule that nobody refreshes lets go", &Answer::Own);
    assert!(tables().contains(TABLE));
    // Awake, it goes on; it has not lost the rule.
    holder.resume().unwrap();
    node.wait("the rule is refreshed", &Answer::Peer);
    assert!(holder.stop(PATIENCE).unwrap().success());
    assert_eq!((tables().as_str(), node.answer()), ("", Answer::Own));
}

/// The kernel would send the next connection from the port of one that the apiserver has reset where that one went.
fn from_the_port_of_one_that_was_reset(node: &Node) {
    const PORTS: [u16; 2] = [30_000, 30_001];
    // As on any node, connections are tracked before there is a hand-over; that one was reset is not forgotten by itself here.
    sh("nft 'add table ip tracked; add chain ip tracked seen { type filter hook input priority 0; }; add rule ip tracked seen ct state new'
        echo 100000 >/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close");
    let tracked = |port: u16, wanted: &str| {
        let all = read_to_string("/proc/thread-self/net/nf_conntrack")?;
        let this = all.lines().find(|line| line.contains(&format!("sport={port} "))).unwrap_or("nothing");
        let as_wanted = this.contains(wanted);
        Ok(if as_wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow::anyhow!("{this}")) })
    };
    let mut client = node.connect(PORTS[0]).unwrap();
    // What it sends is not read, so it is not sent away; and an apiserver that is killed so resets the connection: no end goes before.
    let own = node.api.apiserver(1).unwrap();
    own.pause().unwrap();
    client.write_all(b"?").unwrap();
    let holder = node.holder("owner and timeout");
    holder.pause().unwrap();
    own.kill().unwrap();
    until("the connection is reset", PATIENCE, || tracked(PORTS[0], "CLOSE ")).unwrap();
    drop(client);
    holder.resume().unwrap();
    until("the connection is forgotten", PATIENCE, || tracked(PORTS[0], "nothing")).unwrap();
    node.wait("the rule is refreshed", &Answer::Peer);
    drop(node.connect(PORTS[0]).expect("the peer takes a new connection from its port"));
    own.start().unwrap();
    assert!(holder.stop(PATIENCE).unwrap().success());
    node.wait("its own apiserver is back", &Answer::Own);

    // Reset before there was a hand-over.
    let mut client = node.connect(PORTS[1]).unwrap();
    own.pause().unwrap();
    client.write_all(b"?").unwrap();
    own.kill().unwrap();
    until("the connection is reset", PATIENCE, || tracked(PORTS[1], "CLOSE ")).unwrap();
    drop(client);
    let holder = node.holder("owner and timeout");
    until("what was reset before is forgotten", PATIENCE, || tracked(PORTS[1], "nothing")).unwrap();
    drop(node.connect(PORTS[1]).expect("the peer takes a new connection from its port"));
    own.start().unwrap();
    assert!(holder.stop(PATIENCE).unwrap().success());
    sh("nft delete table ip tracked; echo 10 >/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close");
    node.wait("its own apiserver is back", &Answer::Own);
}

fn without_a_peer(node: &Node, runtime: &tokio::runtime::Runtime) {
    let holder = node.holder("owner and timeout");
    let peer = node.api.apiserver(2).unwrap();
    peer.pause().unwrap();
    node.wait("nothing is handed over to a peer that gives no answer", &Answer::Own);
    let (target, peers, probe) = node.target();
    let said = runtime.block_on(possible(&target, &peers, &probe, Deadline::after(ANSWER)));
    assert!(matches!(said, Err(Absent::NoPeer(_))), "{said:?}");
    peer.resume().unwrap();
    node.wait("it is handed over to again", &Answer::Peer);
    assert!(holder.stop(PATIENCE).unwrap().success());
}

fn without_owners(node: &Node) {
    let old = Path::new(BEFORE).join("nft");
    sh(&format!("mount -t tmpfs tmpfs {BEFORE}"));
    write(&old, OLD_NFT).unwrap();
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();

    for ends in [Process::pause, Process::kill] {
        // The second begins over what the first has left.
        let holder = node.holder("timeout");
        ends(&holder).unwrap();
        node.wait("a rule without an owner times out", &Answer::Own);
        holder.kill().unwrap();
        assert!(tables().contains(TABLE), "nobody takes it away");
    }

    // Undone by another hand before: nothing is left to be undone, and that is no failure.
    let holder = node.holder("timeout");
    sh(&format!("nft delete table ip {TABLE}"));
    assert_eq!(node.answer(), Answer::Own);
    assert!(holder.stop(PATIENCE).unwrap().success());
    assert_eq!((tables().as_str(), node.answer()), ("", Answer::Own));
}
