//! Real kube-apiservers on real etcd as plain processes: RBAC on, kubeadm's flags and certificates; on request the real
//! controller-manager and scheduler, and an audit log.
//!
//! There is no kubelet and nothing plays one: a pod stays Pending. A test that needs Running pods writes their status
//! through the API itself ([`Api::set_pod_ready`]), and is about what reads that status.

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::audit;
use crate::binaries;
use crate::etcd::{self, Etcd, EtcdVersion};
use crate::https::{Https, text};
use crate::network;
use crate::output;
use crate::pki::{Authority, ONE_YEAR, Pair, Subject, service_account_keys};
use crate::process::{Process, until};

/// How long one request of the lab's may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a component may take to come up on a busy host.
const START: Duration = Duration::from_secs(120);

/// What to start.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The Kubernetes release; built on first use, which takes minutes (`lab build` does it before).
    pub version: String,
    /// The version of etcd.
    pub etcd: EtcdVersion,
    /// The number of etcd members: 1, 3 or 5. An apiserver uses the member of its own node if there is one, as
    /// kubeadm's does, else k1's.
    pub etcd_members: u8,
    /// Flags of each etcd member after kubeadm's.
    pub etcd_args: Vec<String>,
    /// The number of apiservers, on k1, k2, …
    pub apiservers: u8,
    /// Start the real kube-controller-manager and kube-scheduler on k1. Without them no budget has a status, no namespace
    /// a service account, nothing is garbage collected.
    pub controllers: bool,
    /// Write an audit log, level Metadata, before each answer is sent.
    pub audit: bool,
    /// Flags of each apiserver after kubeadm's.
    pub apiserver_args: Vec<String>,
    /// Flags of the controller-manager after kubeadm's, as in `--node-monitor-grace-period=1h` (nodes without a kubelet).
    pub controller_manager_args: Vec<String>,
}

impl Default for Spec {
    /// One apiserver of v1.36.1 on one etcd 3.6, no controllers, no audit log.
    fn default() -> Self {
        Self {
            version: "v1.36.1".to_owned(),
            etcd: EtcdVersion::V3_6,
            etcd_members: 1,
            etcd_args: Vec::new(),
            apiservers: 1,
            controllers: false,
            audit: false,
            apiserver_args: Vec::new(),
            controller_manager_args: Vec::new(),
        }
    }
}

/// Running apiservers. Dropping it kills everything and removes its folder (kept when the test panics).
#[derive(Debug)]
pub struct Api {
    // Dropped in this order: who asks before who answers.
    scheduler: Option<Process>,
    controller_manager: Option<Process>,
    servers: Vec<Server>,
    https: Https,
    programs: PathBuf,
    etcd: etcd::Cluster,
}

#[derive(Debug)]
struct Server {
    process: Process,
    url: String,
    kubeconfig: PathBuf,
    audit: Option<PathBuf>,
}

impl Drop for Api {
    /// Leaves what was asked to the whole run; one in a static that is never dropped leaves nothing. A line that an apiserver is just writing
    /// is whole in a moment, and none of a test's.
    fn drop(&mut self) {
        if !audit::wanted() {
            return;
        }
        let keep = |log: &PathBuf| {
            let text = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
            let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            audit::keep(&events)
        };
        for log in self.servers.iter().filter_map(|server| server.audit.as_ref()) {
            if let Err(error) = keep(log) {
                output::say(format_args!("what was asked is not kept: {error:#}"));
            }
        }
    }
}

/// The authorities and client pairs that every component takes its certificates from.
struct Pki {
    dir: PathBuf,
    ca: Authority,
    front_proxy_ca: PathBuf,
    front_proxy: Pair,
    kubelet_client: Pair,
    etcd_client: Pair,
    etcd_ca: PathBuf,
    admin: Pair,
}

impl Pki {
    fn create(etcd: &etcd::Cluster) -> Result<Self> {
        let dir = etcd.dir().join("pki");
        let ca = Authority::create(&dir.join("ca"), "kubernetes")?;
        let front = Authority::create(&dir.join("front-proxy-ca"), "front-proxy-ca")?;
        service_account_keys(&dir)?;
        let subject = |name, groups| Subject { name, groups, sans: Vec::new() };
        let masters: &[&str] = &["system:masters"];
        Ok(Self {
            front_proxy: front.sign(&dir.join("front-proxy-client"), &subject("front-proxy-client", &[]), ONE_YEAR)?,
            front_proxy_ca: front.cert().to_owned(),
            kubelet_client: ca.sign(
                &dir.join("apiserver-kubelet-client"),
                &subject("kube-apiserver-kubelet-client", &["kubeadm:cluster-admins"]),
                ONE_YEAR,
            )?,
            etcd_client: etcd.client_certificate(&dir.join("apiserver-etcd-client"), "kube-apiserver-etcd-client")?,
            etcd_ca: etcd.pki_dir().join("ca.crt"),
            admin: ca.sign(&dir.join("admin"), &subject("kubernetes-super-admin", masters), ONE_YEAR)?,
            ca,
            dir,
        })
    }
}

impl Api {
    /// Starts everything and waits until each apiserver is ready, the namespaces are there, and the controllers (if any)
    /// have created a service account and hold their Leases.
    ///
    /// # Errors
    /// When that release cannot be built, or a component does not come up within two minutes; logs are kept.
    pub fn start(spec: Spec) -> Result<Self> {
        ensure!((1..=9).contains(&spec.apiservers), "1 to 9 apiservers, not {}", spec.apiservers);
        let programs = binaries::kubernetes(&spec.version)?;
        let of_etcd = etcd::Spec::new(spec.etcd, spec.etcd_members);
        let mut etcd = Etcd::start(etcd::Spec { extra_args: spec.etcd_args.clone(), ..of_etcd })?;
        etcd.keep(true);
        let pki = Pki::create(&etcd)?;
        let https = Https::new(pki.ca.cert(), &pki.admin, ANSWER)?;
        let mut api = Self { scheduler: None, controller_manager: None, servers: Vec::new(), https, programs, etcd };
        for number in 1..=spec.apiservers {
            let server = api.prepare_apiserver(number, &spec, &pki)?;
            server.process.start()?;
            api.servers.push(server);
        }
        for number in 1..=api.servers.len() {
            api.wait_ready(number, START)?;
        }
        // Created by a background task of the apiserver that readiness does not cover.
        for namespace in ["default", "kube-system"] {
            api.wait_for(&format!("/api/v1/namespaces/{namespace}"), |_| true)?;
        }
        if spec.controllers {
            api.start_controllers(&spec, &pki)?;
        }
        api.etcd.keep(false);
        Ok(api)
    }

    fn prepare_apiserver(&self, number: u8, spec: &Spec, pki: &Pki) -> Result<Server> {
        let (name, address) = (format!("k{number}"), self.etcd.address(number));
        let home = self.etcd.dir().join(&name);
        let sans = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
            &name,
            "10.96.0.1",
            "127.0.0.1",
        ];
        let mut sans: Vec<_> = sans.map(str::to_owned).to_vec();
        sans.push(address.to_string());
        let serving = pki.ca.sign(
            &home.join("pki/apiserver"),
            &Subject { name: "kube-apiserver", groups: &[], sans },
            ONE_YEAR,
        )?;
        let member = self.etcd.member(usize::from(number.min(spec.etcd_members)))?;
        let sa = |file: &str| pki.dir.join(file).display().to_string();
        let flags = [
            ("advertise-address", address.to_string()),
            ("bind-address", address.to_string()),
            ("secure-port", "6443".to_owned()),
            ("allow-privileged", "true".to_owned()),
            ("authorization-mode", "Node,RBAC".to_owned()),
            ("client-ca-file", path(pki.ca.cert())),
            ("enable-admission-plugins", "NodeRestriction".to_owned()),
            ("enable-bootstrap-token-auth", "true".to_owned()),
            // The Service `kubernetes` stays without endpoints: they may not be loopback addresses.
            ("endpoint-reconciler-type", "none".to_owned()),
            ("etcd-cafile", path(&pki.etcd_ca)),
            ("etcd-certfile", path(&pki.etcd_client.cert)),
            ("etcd-keyfile", path(&pki.etcd_client.key)),
            ("etcd-servers", member.endpoint().to_owned()),
            ("kubelet-client-certificate", path(&pki.kubelet_client.cert)),
            ("kubelet-client-key", path(&pki.kubelet_client.key)),
            ("kubelet-preferred-address-types", "InternalIP,ExternalIP,Hostname".to_owned()),
            ("proxy-client-cert-file", path(&pki.front_proxy.cert)),
            ("proxy-client-key-file", path(&pki.front_proxy.key)),
            ("requestheader-allowed-names", "front-proxy-client".to_owned()),
            ("requestheader-client-ca-file", path(&pki.front_proxy_ca)),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-".to_owned()),
            ("requestheader-group-headers", "X-Remote-Group".to_owned()),
            ("requestheader-username-headers", "X-Remote-User".to_owned()),
            ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".to_owned()),
            ("service-account-key-file", sa("sa.pub")),
            ("service-account-signing-key-file", sa("sa.key")),
            ("service-cluster-ip-range", network::SERVICES.to_owned()),
            ("tls-cert-file", path(&serving.cert)),
            ("tls-private-key-file", path(&serving.key)),
        ];
        let mut args = to_args(flags);
        let audit = spec.audit.then(|| home.join("audit.log"));
        if let Some(log) = &audit {
            let policy = home.join("audit-policy.json");
            let rules = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]});
            fs::write(&policy, rules.to_string())?;
            args.extend(to_args([
                ("audit-policy-file", path(&policy)),
                ("audit-log-path", path(log)),
                // Written before the answer is sent: a test may read it right after its request.
                ("audit-log-mode", "blocking".to_owned()),
            ]));
        }
        args.extend(spec.apiserver_args.iter().cloned());
        let url = format!("https://{address}:6443");
        let kubeconfig = home.join("admin.conf");
        let user = json!({"client-certificate": pki.admin.cert, "client-key": pki.admin.key});
        write_kubeconfig(&kubeconfig, &url, pki.ca.cert(), &user, "default")?;
        let process = Process::new(
            format!("kube-apiserver {name}"),
            self.programs.join("kube-apiserver"),
            args,
            home.join("kube-apiserver.log"),
        );
        Ok(Server { process, url, kubeconfig, audit })
    }

    fn start_controllers(&mut self, spec: &Spec, pki: &Pki) -> Result<()> {
        let (mut flags, kubeconfig) =
            self.controller_flags("kube-controller-manager", "system:kube-controller-manager", pki)?;
        flags.extend(to_args([
            ("client-ca-file", path(pki.ca.cert())),
            ("cluster-name", "kubernetes".to_owned()),
            ("cluster-signing-cert-file", path(pki.ca.cert())),
            ("cluster-signing-key-file", path(&pki.dir.join("ca.key"))),
            ("controllers", "*,bootstrapsigner,tokencleaner".to_owned()),
            ("requestheader-client-ca-file", path(&pki.front_proxy_ca)),
            ("root-ca-file", path(pki.ca.cert())),
            ("service-account-private-key-file", path(&pki.dir.join("sa.key"))),
            ("use-service-account-credentials", "true".to_owned()),
        ]));
        flags.extend(spec.controller_manager_args.iter().cloned());
        self.controller_manager = Some(self.start_controller("kube-controller-manager", flags, &kubeconfig)?);
        let (flags, kubeconfig) = self.controller_flags("kube-scheduler", "system:kube-scheduler", pki)?;
        self.scheduler = Some(self.start_controller("kube-scheduler", flags, &kubeconfig)?);
        self.wait_for("/api/v1/namespaces/default/serviceaccounts/default", |_| true)?;
        for lease in ["kube-controller-manager", "kube-scheduler"] {
            let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{lease}");
            self.wait_for(&path, |lease| text(lease, "/spec/holderIdentity").is_ok_and(|holder| !holder.is_empty()))?;
        }
        Ok(())
    }

    /// What the two have in common, and the kubeconfig that makes them known to the apiserver of their own node.
    fn controller_flags(&self, name: &str, user: &str, pki: &Pki) -> Result<(Vec<String>, PathBuf)> {
        let (address, home) = (self.etcd.address(1), self.etcd.dir().join("k1"));
        let subject = Subject { name: user, groups: &[], sans: vec![address.to_string()] };
        let pair = pki.ca.sign(&home.join("pki").join(name), &subject, ONE_YEAR)?;
        let kubeconfig = home.join(format!("{name}.conf"));
        let user = json!({"client-certificate": pair.cert, "client-key": pair.key});
        write_kubeconfig(&kubeconfig, self.url(1)?, pki.ca.cert(), &user, "default")?;
        let args = to_args([
            ("authentication-kubeconfig", path(&kubeconfig)),
            ("authorization-kubeconfig", path(&kubeconfig)),
            ("bind-address", address.to_string()),
            ("kubeconfig", path(&kubeconfig)),
            ("leader-elect", "true".to_owned()),
            ("tls-cert-file", path(&pair.cert)),
            ("tls-private-key-file", path(&pair.key)),
        ]);
        Ok((args, kubeconfig))
    }

    fn start_controller(&self, name: &str, args: Vec<String>, kubeconfig: &Path) -> Result<Process> {
        let log = kubeconfig.with_file_name(format!("{name}.log"));
        let process = Process::new(name, self.programs.join(name), args, log);
        process.start()?;
        Ok(process)
    }

    /// Waits until an object is there and `holds` says yes to it, while k1's components run.
    fn wait_for(&self, path: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
        until(&format!("{path} is as wanted"), START, || {
            for process in
                self.servers.iter().map(|server| &server.process).chain(&self.controller_manager).chain(&self.scheduler)
            {
                process.running()?;
            }
            Ok(match self.request("GET", path, None) {
                Ok(object) if holds(&object) => ControlFlow::Break(()),
                Ok(object) => ControlFlow::Continue(anyhow!("it is {object}")),
                Err(why) => ControlFlow::Continue(why),
            })
        })
    }

    fn server(&self, number: usize) -> Result<&Server> {
        number
            .checked_sub(1)
            .and_then(|index| self.servers.get(index))
            .with_context(|| format!("no apiserver on k{number}: there are {}", self.servers.len()))
    }

    /// The etcd behind it.
    pub fn etcd(&self) -> &etcd::Cluster {
        &self.etcd
    }

    /// The same, to change who is a member.
    pub fn etcd_mut(&mut self) -> &mut etcd::Cluster {
        &mut self.etcd
    }

    /// The process of the apiserver on node k`number`, counted from 1, to kill, freeze and restart.
    pub fn apiserver(&self, number: usize) -> Result<&Process> {
        self.server(number).map(|server| &server.process)
    }

    /// The process of the controller-manager; only with `controllers`.
    pub fn controller_manager(&self) -> Result<&Process> {
        self.controller_manager.as_ref().context("started without controllers")
    }

    /// The process of the scheduler; only with `controllers`.
    pub fn scheduler(&self) -> Result<&Process> {
        self.scheduler.as_ref().context("started without controllers")
    }

    /// The address of node k`number`, to be written as the InternalIP of its Node: the apiserver's port there is 6443.
    pub fn address(&self, number: u8) -> Ipv4Addr {
        self.etcd.address(number)
    }

    /// `https://127.0.N.number:6443`.
    pub fn url(&self, number: usize) -> Result<&str> {
        self.server(number).map(|server| server.url.as_str())
    }

    /// The folder laid out as kubeadm's `/etc/kubernetes/pki`; etcd's in `etcd/` below it. Serving certificates are in
    /// `kN/pki` beside it.
    pub fn pki_dir(&self) -> PathBuf {
        self.etcd.dir().join("pki")
    }

    /// The administrator's kubeconfig (`system:masters`) for the apiserver on k1.
    pub fn kubeconfig(&self) -> Result<&Path> {
        self.kubeconfig_at(1)
    }

    /// The administrator's kubeconfig for the apiserver on k`number`.
    pub fn kubeconfig_at(&self, number: usize) -> Result<&Path> {
        self.server(number).map(|server| server.kubeconfig.as_path())
    }

    /// A kubeconfig with a token of this service account, which must exist; valid for an hour. What it may do is what
    /// RBAC gives it.
    pub fn kubeconfig_for(&self, namespace: &str, service_account: &str) -> Result<PathBuf> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token");
        let wanted = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}});
        let answer = self.request("POST", &path, Some(&wanted))?;
        let token = text(&answer, "/status/token")?;
        let file = self.etcd.dir().join(format!("{namespace}.{service_account}.conf"));
        write_kubeconfig(&file, self.url(1)?, &self.pki_dir().join("ca.crt"), &json!({"token": token}), namespace)?;
        Ok(file)
    }

    /// A request to the apiserver on k1 as administrator; a body is JSON.
    ///
    /// # Errors
    /// No answer within 10 s, or one that is not a success: with its status and body.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        self.request_as(method, path, "application/json", body)
    }

    fn request_as(&self, method: &str, path: &str, content_type: &str, body: Option<&Value>) -> Result<Value> {
        let url = format!("{}{path}", self.url(1)?);
        let answer = match body {
            None if method == "GET" => self.https.get(&url)?,
            None => self.https.send(method, &url, content_type, &json!({}))?,
            Some(body) => self.https.send(method, &url, content_type, body)?,
        };
        answer.json().with_context(|| format!("{method} {path}"))
    }

    /// Runs kubectl as administrator and answers what it printed on stdout.
    ///
    /// # Errors
    /// When it ends with anything but 0: with what it printed on stderr.
    pub fn kubectl<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        let out = self.kubectl_as(self.kubeconfig()?, args)?;
        ensure!(out.status.success(), "kubectl: {}", String::from_utf8_lossy(&out.stderr).trim());
        Ok(String::from_utf8(out.stdout)?)
    }

    /// The kubectl of the same release.
    pub fn kubectl_program(&self) -> PathBuf {
        self.programs.join("kubectl")
    }

    /// Runs kubectl with another kubeconfig, for example one of [`kubeconfig_for`](Self::kubeconfig_for).
    pub fn kubectl_as<A: AsRef<OsStr>>(&self, kubeconfig: &Path, args: impl IntoIterator<Item = A>) -> Result<Output> {
        let program = self.kubectl_program();
        Command::new(&program)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--cache-dir")
            .arg(self.etcd.dir().join("kubectl-cache"))
            .args(args)
            .output()
            .with_context(|| format!("start {}", program.display()))
    }

    /// `kubectl apply` of YAML or JSON text, any number of documents.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile_in(self.etcd.dir())?;
        fs::write(file.path(), manifest)?;
        self.kubectl([OsStr::new("apply"), OsStr::new("-f"), file.path().as_os_str()])
    }

    /// Waits until the apiserver on k`number` answers `/readyz` with 200.
    pub fn wait_ready(&self, number: usize, limit: Duration) -> Result<()> {
        let server = self.server(number)?;
        until(&format!("{} of {} is ready", server.process.name(), server.url), limit, || {
            server.process.running()?;
            Ok(match self.https.get(&format!("{}/readyz?verbose", server.url)) {
                Ok(answer) if answer.status == 200 => ControlFlow::Break(()),
                Ok(answer) => ControlFlow::Continue(anyhow!("status {}: {}", answer.status, answer.body)),
                Err(why) => ControlFlow::Continue(why),
            })
        })
    }

    /// Every audit event so far, of all apiservers, each in the order of its log.
    ///
    /// # Errors
    /// When started without `audit`, or a line is not whole.
    pub fn audit_events(&self) -> Result<Vec<Value>> {
        let mut events = Vec::new();
        for server in &self.servers {
            let Some(log) = &server.audit else { bail!("started without an audit log") };
            let text = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
            for line in text.lines() {
                events
                    .push(serde_json::from_str(line).with_context(|| format!("an audit event in {}", log.display()))?);
            }
        }
        Ok(events)
    }

    /// Writes the status that a kubelet writes for a running, ready pod. No kubelet runs here: nothing but this status
    /// is there.
    pub fn set_pod_ready(&self, namespace: &str, name: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let pod = self.request("GET", &path, None)?;
        let now = text(&pod, "/metadata/creationTimestamp")?;
        let conditions: Vec<_> = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
            .iter()
            .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": now}))
            .collect();
        let containers: Vec<_> = pod
            .pointer("/spec/containers")
            .and_then(Value::as_array)
            .context("a pod without containers")?
            .iter()
            .map(|container| {
                json!({"name": container["name"], "image": container["image"], "imageID": "", "ready": true, "started": true,
                    "restartCount": 0, "state": {"running": {"startedAt": now}}})
            })
            .collect();
        let status = json!({"status": {"phase": "Running", "startTime": now, "conditions": conditions, "containerStatuses": containers}});
        self.patch_status(&path, &status)
    }

    /// Writes the status that a kubelet writes for a ready node with this InternalIP. Nothing renews it: the
    /// controller-manager, if it runs, takes it back after its grace period.
    pub fn set_node_ready(&self, name: &str, address: Ipv4Addr) -> Result<()> {
        let path = format!("/api/v1/nodes/{name}");
        let node = self.request("GET", &path, None)?;
        let now = text(&node, "/metadata/creationTimestamp")?;
        let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now});
        let room = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
        let addresses = json!([{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]);
        let status =
            json!({"status": {"conditions": [ready], "addresses": addresses, "capacity": room, "allocatable": room}});
        self.patch_status(&path, &status)
    }

    /// Does what a kubelet does when the containers of a deleted pod have ended: deletes the object for good.
    pub fn finish_pod_deletion(&self, namespace: &str, name: &str) -> Result<()> {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        self.request("DELETE", &format!("/api/v1/namespaces/{namespace}/pods/{name}"), Some(&options)).map(drop)
    }

    fn patch_status(&self, path: &str, status: &Value) -> Result<()> {
        let patch = "application/strategic-merge-patch+json";
        self.request_as("PATCH", &format!("{path}/status"), patch, Some(status)).map(drop)
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn to_args<const N: usize>(flags: [(&str, String); N]) -> Vec<String> {
    flags.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

/// JSON, which is YAML too.
fn write_kubeconfig(file: &Path, server: &str, ca: &Path, user: &Value, namespace: &str) -> Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": "lab", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab", "namespace": namespace}}],
        "current-context": "lab",
    });
    fs::write(file, config.to_string()).with_context(|| format!("write {}", file.display()))
}
