//! Real etcd members as plain processes, with mutual TLS on client and peer addresses as kubeadm sets them up.
//!
//! Members are named like nodes (k1, k2, …) and counted from 1. Each has a loopback address of its own and the standard
//! ports: 2379 for clients, 2380 for peers, 2381 for plain HTTP metrics and health.

use std::fs;
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::binaries;
pub use crate::binaries::EtcdVersion;
use crate::https::{Https, text};
use crate::loopback::Loopback;
use crate::pki::{Authority, ONE_YEAR, Pair, Subject};
use crate::process::{Process, until};

/// How long a member may take to answer one question of the lab's.
const ANSWER: Duration = Duration::from_secs(3);
/// How long a cluster may take to come up: elections, and an fsync on a busy disk.
const START: Duration = Duration::from_secs(60);
/// How long a member may take to stop in order: it hands its leadership over first.
const STOP: Duration = Duration::from_secs(20);
/// A server that is none: nobody listens there. For hosts whose API is away.
pub const NOWHERE: &str = "https://127.0.0.1:1";

/// What to start.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The version of every member.
    pub version: EtcdVersion,
    /// The number of voting members: 1, 3 or 5.
    pub members: u8,
    /// Flags of each member after kubeadm's, as in `--quota-backend-bytes=16777216`.
    pub extra_args: Vec<String>,
    /// How long the server, peer and client certificates last.
    pub certificates_last: Duration,
}

impl Spec {
    /// Members with kubeadm's flags and certificates of one year.
    pub fn new(version: EtcdVersion, members: u8) -> Self {
        Self { version, members, extra_args: Vec::new(), certificates_last: ONE_YEAR }
    }
}

/// Starts clusters.
#[derive(Debug)]
pub struct Etcd;

impl Etcd {
    /// Starts the members together and waits until each answers a linearizable read.
    ///
    /// # Errors
    /// When the server of this version cannot be fetched, or a member is not healthy within a minute; logs are kept.
    pub fn start(spec: Spec) -> Result<Cluster> {
        ensure!(matches!(spec.members, 1 | 3 | 5), "1, 3 or 5 members, not {}", spec.members);
        let program = binaries::etcd_server(spec.version)?;
        let net = Loopback::take()?;
        let pki = net.dir().join("pki/etcd");
        let authority = Authority::create(&pki.join("ca"), "etcd-ca")?;
        let client = Subject { name: "kube-etcd-healthcheck-client", ..Subject::default() };
        let client = authority.sign(&pki.join("healthcheck-client"), &client, spec.certificates_last)?;
        let https = Arc::new(Https::new(authority.cert(), &client, ANSWER)?);
        let mut cluster = Cluster { members: Vec::new(), spec, program, authority, https, client, net };
        let peers: Vec<_> =
            (1..=cluster.spec.members).map(|n| format!("{}={}", name(n), cluster.peer_url(n))).collect();
        for number in 1..=cluster.spec.members {
            let member = cluster.prepare(number, &peers.join(","), "new")?;
            member.process.start()?;
            cluster.members.push(member);
        }
        for member in &cluster.members {
            member.wait_healthy(START)?;
        }
        cluster.read_ids()?;
        cluster.keep(false);
        Ok(cluster)
    }
}

/// How a member is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// It counts for the quorum at once.
    Voter,
    /// It receives entries and does not vote.
    Learner,
}

/// A running etcd cluster. Dropping it kills every member and removes its folder (kept when the test panics).
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: processes before the folder they write to.
    members: Vec<Member>,
    spec: Spec,
    program: PathBuf,
    authority: Authority,
    https: Arc<Https>,
    client: Pair,
    net: Loopback,
}

impl Cluster {
    /// The member on node k`number`, counted from 1.
    pub fn member(&self, number: usize) -> Result<&Member> {
        number
            .checked_sub(1)
            .and_then(|index| self.members.get(index))
            .with_context(|| format!("no member k{number}: there are {}", self.members.len()))
    }

    /// All members that have a process or had one, k1 first.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The folder laid out as kubeadm's `/etc/kubernetes/pki/etcd`: `ca.crt`, `healthcheck-client.crt` and `.key`.
    pub fn pki_dir(&self) -> PathBuf {
        self.net.dir().join("pki/etcd")
    }

    /// A kubeconfig that leads to this server, such as [`NOWHERE`].
    pub fn kubeconfig_to(&self, server: &str) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": self.pki_dir().join("ca.crt")}}],
            "users": [{"name": "lab", "user": {"token": "none"}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        })
        .to_string()
    }

    /// The folder of everything: `pki/`, and for each node its data, certificates and log.
    pub fn dir(&self) -> &Path {
        self.net.dir()
    }

    /// The loopback address of node k`number`, counted from 1; also for nodes without a member.
    pub fn address(&self, number: u8) -> Ipv4Addr {
        self.net.address(number)
    }

    /// Signs a client certificate of this etcd's CA, in `NAME.crt` and `.key` (an absolute path without its ending).
    pub fn client_certificate(&self, path: &Path, common_name: &str) -> Result<Pair> {
        let subject = Subject { name: common_name, ..Subject::default() };
        self.authority.sign(path, &subject, self.spec.certificates_last)
    }

    /// See [`Loopback::keep`].
    pub(crate) fn keep(&mut self, keep: bool) {
        self.net.keep(keep);
    }

    /// Waits until every member answers: voters a linearizable read, learners their status.
    pub fn wait_healthy(&self, limit: Duration) -> Result<()> {
        self.members.iter().try_for_each(|member| member.wait_healthy(limit))
    }

    /// Adds a learner with a running process, and answers its number once it answers its status.
    ///
    /// # Errors
    /// When etcd refuses it for more than 20 s (it wants five quiet seconds after the start of a member), or it does
    /// not come up.
    pub fn add_learner(&mut self) -> Result<usize> {
        let number = u8::try_from(self.members.len())?.checked_add(1).context("too many members")?;
        let (id, peers) = self.add(number, Join::Learner)?;
        let mut member = self.prepare(number, &peers, "existing")?;
        member.id = id;
        member.learner = true;
        member.process.start()?;
        self.members.push(member);
        let number = self.members.len();
        self.member(number)?.wait_healthy(START)?;
        Ok(number)
    }

    /// Adds a member that is never started, as a join that died half way; answers its id.
    pub fn add_member_unstarted(&self, join: Join) -> Result<u64> {
        // An address beyond any that a running member has.
        let number = 100 + u8::try_from(self.list()?.len())?;
        Ok(self.add(number, join)?.0)
    }

    /// Starts the process of a member that somebody else has added at the peer URL of node k`number`, on an empty data directory. What ran
    /// there before is killed, and its data put aside. Waits for nothing: use [`Member::wait_healthy`].
    ///
    /// # Errors
    /// When no member of the list has that peer URL, or it cannot be started.
    pub fn start_added(&mut self, number: usize) -> Result<()> {
        let node = u8::try_from(number)?;
        let (url, list) = (self.peer_url(node), self.list()?);
        let added = list.iter().find(|member| member.peer_url == url).with_context(|| format!("nobody is at {url}"))?;
        let (id, learner) = (added.id, added.learner);
        let peers: Vec<_> = list
            .iter()
            .map(|member| {
                let unnamed = format!("{:x}", member.id);
                let name = if member.id == id {
                    name(node)
                } else {
                    Some(member.name.clone()).filter(|n| !n.is_empty()).unwrap_or(unnamed)
                };
                format!("{name}={}", member.peer_url)
            })
            .collect();
        let old = number.checked_sub(1).filter(|index| *index < self.members.len());
        if let Some(member) = old.and_then(|index| self.members.get(index)) {
            member.process.kill()?;
        }
        let home = self.net.dir().join(name(node));
        let data = home.join("etcd");
        if data.exists() {
            let aside = (1..).map(|copy| home.join(format!("etcd.{copy}"))).find(|path| !path.exists());
            fs::rename(&data, aside.context("no name is free")?)?;
        }
        let mut member = self.prepare(node, &peers.join(","), "existing")?;
        (member.id, member.learner) = (id, learner);
        member.process.start()?;
        match old.and_then(|index| self.members.get_mut(index)) {
            Some(slot) => *slot = member,
            None => {
                ensure!(number == self.members.len() + 1, "k{number} is not the next node");
                self.members.push(member);
            }
        }
        Ok(())
    }

    /// Asks for a new member and answers its id and the `--initial-cluster` it must be started with.
    fn add(&self, number: u8, join: Join) -> Result<(u64, String)> {
        let peer_url = self.peer_url(number);
        let body = json!({"peerURLs": [peer_url], "isLearner": join == Join::Learner});
        let answer = until(&format!("{peer_url} is added"), Duration::from_secs(20), || {
            Ok(match self.call("/v3/cluster/member/add", &body) {
                Ok(answer) => ControlFlow::Break(answer),
                // Strict reconfiguration wants every member connected for five seconds.
                Err(why) if format!("{why:#}").contains("unhealthy cluster") => ControlFlow::Continue(why),
                Err(why) => return Err(why),
            })
        })?;
        let id = id_of(&answer, "/member/ID")?;
        let peers: Vec<_> = members_in(&answer)?
            .iter()
            .map(|member| {
                // Members without a name have not started: kubeadm, too, gives its own name for the new one.
                let name = if member.id == id {
                    name(number)
                } else if member.name.is_empty() {
                    format!("{:x}", member.id)
                } else {
                    member.name.clone()
                };
                format!("{name}={}", member.peer_url)
            })
            .collect();
        Ok((id, peers.join(",")))
    }

    /// Asks the first member that answers; see [`Member::call`].
    fn call(&self, path: &str, body: &Value) -> Result<Value> {
        let mut last = anyhow!("no member runs");
        for member in &self.members {
            if member.learner {
                continue;
            }
            match member.call(path, body) {
                Ok(answer) => return Ok(answer),
                Err(why) => last = why,
            }
        }
        Err(last)
    }

    fn list(&self) -> Result<Vec<Listed>> {
        members_in(&self.call("/v3/cluster/member/list", &json!({"linearizable": true}))?)
    }

    fn read_ids(&mut self) -> Result<()> {
        let list = self.list()?;
        for member in &mut self.members {
            let listed = list.iter().find(|listed| listed.name == member.name);
            member.id = listed.with_context(|| format!("{} is not in the member list", member.name))?.id;
        }
        Ok(())
    }

    /// Runs etcdctl (built with Go on first use) against every member, with the health check client's certificate.
    pub fn etcdctl(&self, args: &[&str]) -> Result<String> {
        let tool = binaries::etcdctl()?;
        let endpoints: Vec<_> = self.members.iter().map(Member::endpoint).collect();
        let out = Command::new(&tool)
            .arg(format!("--endpoints={}", endpoints.join(",")))
            .arg(format!("--cacert={}", self.authority.cert().display()))
            .arg(format!("--cert={}", self.client.cert.display()))
            .arg(format!("--key={}", self.client.key.display()))
            .args(args)
            .output()
            .with_context(|| format!("start {}", tool.display()))?;
        ensure!(out.status.success(), "etcdctl {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
        Ok(String::from_utf8(out.stdout)?)
    }

    /// Where peers reach the member of node k`number`, counted from 1.
    pub fn peer_url(&self, number: u8) -> String {
        format!("https://{}:2380", self.net.address(number))
    }

    /// Certificates, folders and flags of one member; nothing is started.
    fn prepare(&self, number: u8, peers: &str, state: &str) -> Result<Member> {
        let (name, address) = (name(number), self.net.address(number));
        let home = self.net.dir().join(&name);
        // As kubeadm: peers reach each other from 127.0.0.1 here, and etcd compares that with the certificate.
        let sans = [name.as_str(), "localhost", "127.0.0.1", &address.to_string()].map(str::to_owned).to_vec();
        let subject = Subject { name: &name, groups: &[], sans };
        let lasts = self.spec.certificates_last;
        let server = self.authority.sign(&home.join("pki/etcd/server"), &subject, lasts)?;
        let peer = self.authority.sign(&home.join("pki/etcd/peer"), &subject, lasts)?;
        let data = home.join("etcd");
        fs::DirBuilder::new().mode(0o700).create(&data).with_context(|| format!("make {}", data.display()))?;
        let (endpoint, peer_url, ca) =
            (format!("https://{address}:2379"), self.peer_url(number), self.authority.cert().display());
        let mut args = vec![
            format!("--name={name}"),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={endpoint}"),
            format!("--advertise-client-urls={endpoint}"),
            format!("--listen-peer-urls={peer_url}"),
            format!("--initial-advertise-peer-urls={peer_url}"),
            format!("--initial-cluster={peers}"),
            format!("--initial-cluster-state={state}"),
            format!("--listen-metrics-urls=http://{address}:2381"),
            "--client-cert-auth=true".to_owned(),
            format!("--trusted-ca-file={ca}"),
            format!("--cert-file={}", server.cert.display()),
            format!("--key-file={}", server.key.display()),
            "--peer-client-cert-auth=true".to_owned(),
            format!("--peer-trusted-ca-file={ca}"),
            format!("--peer-cert-file={}", peer.cert.display()),
            format!("--peer-key-file={}", peer.key.display()),
            "--snapshot-count=10000".to_owned(),
        ];
        let by_version: &[&str] = match self.spec.version {
            EtcdVersion::V3_5 => {
                &["--experimental-initial-corrupt-check=true", "--experimental-watch-progress-notify-interval=5s"]
            }
            EtcdVersion::V3_6 | EtcdVersion::V3_7 => {
                &["--feature-gates=InitialCorruptCheck=true", "--watch-progress-notify-interval=5s"]
            }
        };
        args.extend(by_version.iter().map(|arg| (*arg).to_owned()));
        args.extend(self.spec.extra_args.iter().cloned());
        let log = home.join("etcd.log");
        let process = Process::new(format!("etcd {name}"), self.program.clone(), args, log);
        Ok(Member { name, address, endpoint, id: 0, learner: false, process, https: Arc::clone(&self.https) })
    }
}

/// One member and its process.
#[derive(Debug)]
pub struct Member {
    name: String,
    address: Ipv4Addr,
    endpoint: String,
    id: u64,
    learner: bool,
    process: Process,
    https: Arc<Https>,
}

impl Member {
    /// SIGKILL; gone when this returns.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// SIGTERM; gone when this returns. A leader hands over first.
    pub fn stop(&self) -> Result<()> {
        self.process.stop(STOP).map(drop)
    }

    /// SIGSTOP: connections stay open and nothing is answered. Frozen when this returns.
    pub fn pause(&self) -> Result<()> {
        self.process.pause()
    }

    /// SIGCONT after [`pause`](Self::pause).
    pub fn resume(&self) -> Result<()> {
        self.process.resume()
    }

    /// Kills it if it runs and starts it on its data. Waits for nothing, since a quorum may be missing: then use
    /// [`wait_healthy`](Self::wait_healthy).
    pub fn restart(&self) -> Result<()> {
        self.process.restart()
    }

    /// The client address, `https://127.0.N.M:2379`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The member id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The name, as of the node: k1, k2, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The loopback address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Where its output goes, of all its starts.
    pub fn log_path(&self) -> &Path {
        self.process.log_path()
    }

    /// The process itself, for its id and whether it runs.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Asks this member through etcd's JSON gateway, as in `call("/v3/maintenance/status", &json!({}))`. Keys and
    /// values are base64, 64 bit numbers are strings. 3 s at most.
    ///
    /// # Errors
    /// When it does not answer, or answers with an error.
    pub fn call(&self, path: &str, body: &Value) -> Result<Value> {
        let url = format!("{}{path}", self.endpoint);
        self.https
            .send("POST", &url, "application/json", body)?
            .json()
            .with_context(|| format!("{}: {path}", self.name))
    }

    /// `Ok` when this member answered a linearizable read; a learner, which cannot, when it answered its status.
    pub fn health(&self) -> Result<()> {
        if self.learner {
            return self.call("/v3/maintenance/status", &json!({})).map(drop);
        }
        let answer = self.https.get(&format!("{}/health", self.endpoint))?;
        if text(&answer.json()?, "/health")? != "true" {
            bail!("{} says {}", self.name, answer.body.trim());
        }
        Ok(())
    }

    /// Waits until [`health`](Self::health) is `Ok`.
    ///
    /// # Errors
    /// After `limit`, with the last reason, or at once when the process has ended.
    pub fn wait_healthy(&self, limit: Duration) -> Result<()> {
        until(&format!("{} of {} is healthy", self.name, self.endpoint), limit, || {
            self.process.running()?;
            Ok(match self.health() {
                Ok(()) => ControlFlow::Break(()),
                Err(why) => ControlFlow::Continue(why),
            })
        })
    }
}

struct Listed {
    id: u64,
    /// Empty until it has started.
    name: String,
    peer_url: String,
    learner: bool,
}

fn members_in(answer: &Value) -> Result<Vec<Listed>> {
    let list = answer.get("members").and_then(Value::as_array).context("an answer without members")?;
    list.iter()
        .map(|member| {
            let peer_url = text(member, "/peerURLs/0")?.to_owned();
            // The gateway leaves empty fields out.
            let name = member.get("name").and_then(Value::as_str).map(str::to_owned).into_iter().collect();
            let learner = member.get("isLearner").and_then(Value::as_bool).unwrap_or(false);
            Ok(Listed { id: id_of(member, "/ID")?, name, peer_url, learner })
        })
        .collect()
}

fn id_of(value: &Value, pointer: &str) -> Result<u64> {
    Ok(text(value, pointer)?.parse()?)
}

fn name(number: u8) -> String {
    format!("k{number}")
}
