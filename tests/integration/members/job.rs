//! Changes in the pod of a Job: the real locks, the real authorizer, apiservers that lose their member. No kubelet runs: what one writes of
//! nodes and pods is written by the test.

use super::*;
use lab::api::{Api, Spec as ApiSpec};
use std::path::PathBuf;

/// Writes the configuration of quorate.
pub(crate) fn configure(api: &Api, text: &str) -> Result<()> {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "quorate-config", "namespace": "quorate"},
        "data": {"config.yaml": text}});
    api.apply(&map.to_string()).map(drop)
}

/// kured's DaemonSet, as its chart names it.
pub(crate) fn kured(api: &Api) -> Result<()> {
    let labels = json!({"name": "kured"});
    let kured = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "kured", "namespace": "kube-system"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"containers": [{"name": "kured", "image": "ghcr.io/kubereboot/kured:1.23.0"}]}}},
    });
    api.apply(&kured.to_string()).map(drop)
}

/// Three control plane nodes as kubeadm makes them, quorate installed, kured there, and running pods to act in.
pub(crate) struct Stage {
    pub(crate) api: Api,
    kubeconfig: PathBuf,
}

impl Stage {
    /// For the account of a template.
    pub(crate) fn of(etcd: EtcdVersion, account: &str) -> Result<Self> {
        Self::with(etcd, Vec::new(), account)
    }

    /// The same with more flags of etcd.
    pub(crate) fn with(etcd: EtcdVersion, etcd_args: Vec<String>, account: &str) -> Result<Self> {
        Self::sized(etcd, 3, etcd_args, account)
    }

    /// The same with so many control plane nodes, each with a member and an apiserver: one or three.
    pub(crate) fn sized(etcd: EtcdVersion, nodes: u8, etcd_args: Vec<String>, account: &str) -> Result<Self> {
        let spec =
            ApiSpec { etcd, etcd_members: nodes, etcd_args, apiservers: nodes, audit: true, ..ApiSpec::default() };
        let api = Api::start(spec)?;
        api.kubectl(["apply", "-k", concat!(env!("CARGO_MANIFEST_DIR"), "/manifests")])?;
        for namespace in ["quorate", "kube-system"] {
            api.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}).to_string())?;
        }
        let kubeconfig = api.kubeconfig_for("quorate", account)?;
        let stage = Self { api, kubeconfig };
        for number in 1..=nodes {
            stage.node(number)?;
        }
        kured(&stage.api)?;
        Ok(stage)
    }

    pub(crate) fn node(&self, number: u8) -> Result<()> {
        let name = format!("k{number}");
        let labels = json!({"node-role.kubernetes.io/control-plane": ""});
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
        self.api.apply(&node.to_string())?;
        self.api.set_node_ready(&name, self.api.address(number))?;
        self.patch("node", &name, "default", &json!({"nodeInfo": {"bootID": "boot-1", "kubeletVersion": "v1.36.1"}}))?;
        for component in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("{component}-{name}"), "namespace": "kube-system",
                    "labels": {"component": component, "tier": "control-plane"},
                    "annotations": {"kubernetes.io/config.hash": component}},
                "spec": {"nodeName": name, "containers": [{"name": component, "image": format!("registry.k8s.io/{component}:v1")}]},
            });
            self.api.apply(&pod.to_string())?;
            self.api.set_pod_ready("kube-system", &format!("{component}-{name}"))?;
        }
        Ok(())
    }

    pub(crate) fn patch(&self, kind: &str, name: &str, namespace: &str, status: &Value) -> Result<()> {
        let patch = json!({"status": status}).to_string();
        let args = ["patch", kind, name, "-n", namespace, "--subresource=status", "--type=strategic", "-p", &patch];
        self.api.kubectl(args).map(drop)
    }

    /// A running pod on a node, for one Job to act in.
    pub(crate) fn pod(&self, name: &str, node: &str) -> Result<()> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "quorate"},
            "spec": {"nodeName": node, "containers": [{"name": "quorate", "image": "localhost/quorate:dev"}]},
        });
        self.api.apply(&pod.to_string())?;
        self.api.set_pod_ready("quorate", name)
    }

    /// What the kubelet writes when the container of a pod has been killed.
    pub(crate) fn pod_ended(&self, name: &str) -> Result<()> {
        let ended = json!({"name": "quorate", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 137}}});
        self.patch("pod", name, "quorate", &json!({"phase": "Failed", "containerStatuses": [ended]}))
    }

    /// The program with the arguments of a Job, as in that pod on that node.
    fn command(&self, pod: &str, node: &str, args: &[&str]) -> Result<Vec<String>> {
        self.command_of(pod, node, &[&["etcd", "members"], args].concat())
    }

    /// The same of any command.
    pub(crate) fn command_of(&self, pod: &str, node: &str, args: &[&str]) -> Result<Vec<String>> {
        let uid = self.api.kubectl(["get", "pod", pod, "-n", "quorate", "-o", "jsonpath={.metadata.uid}"])?;
        let mut words = vec![
            "-u".to_owned(),
            "KUBERNETES_SERVICE_HOST".to_owned(),
            format!("QUORATE_NODE_NAME={node}"),
            format!("QUORATE_POD_NAME={pod}"),
            format!("QUORATE_POD_UID={uid}"),
            env!("CARGO_BIN_EXE_quorate").to_owned(),
            format!("--kubeconfig={}", self.kubeconfig.display()),
        ];
        words.extend(args.iter().map(ToString::to_string));
        words.extend(["--in-job".to_owned(), format!("--kubernetes-dir={}", self.api.etcd().dir().display())]);
        Ok(words)
    }

    fn members(&self, pod: &str, node: &str, args: &[&str]) -> Result<Said> {
        Ok(Command::new("/usr/bin/env").args(self.command(pod, node, args)?).output()?.into())
    }

    fn begin(&self, pod: &str, node: &str, args: &[&str]) -> Result<Process> {
        self.begin_of(pod, self.command(pod, node, args)?)
    }

    /// Begins a command in the background; what it says is in the log of its pod.
    pub(crate) fn begin_of(&self, pod: &str, words: Vec<String>) -> Result<Process> {
        let process = Process::new(pod, "/usr/bin/env".into(), words, self.log_of(pod));
        process.start()?;
        Ok(process)
    }

    pub(crate) fn log_of(&self, pod: &str) -> PathBuf {
        self.api.etcd().dir().join(format!("{pod}.log"))
    }

    pub(crate) fn id(&self, number: usize) -> Result<String> {
        Ok(format!("{:x}", self.api.etcd().member(number)?.id()))
    }

    pub(crate) fn leader(&self) -> Result<usize> {
        until("somebody leads", PATIENCE, || {
            let etcd = self.api.etcd();
            let named = etcd.members().iter().find_map(|member| {
                let status = member.call("/v3/maintenance/status", &json!({})).ok()?;
                status["leader"].as_str()?.parse::<u64>().ok()
            });
            let at = named.and_then(|id| etcd.members().iter().position(|member| member.id() == id));
            Ok(at.map_or_else(|| ControlFlow::Continue(anyhow!("{named:?}")), |at| ControlFlow::Break(at + 1)))
        })
    }

    pub(crate) fn holder(&self) -> Result<String> {
        self.api.kubectl([
            "get",
            "lease",
            "control-plane-disruption",
            "-n",
            "quorate",
            "--ignore-not-found",
            "-o",
            "jsonpath={.spec.holderIdentity}",
        ])
    }

    pub(crate) fn kureds_lock(&self) -> Result<String> {
        let set = self.api.kubectl(["get", "daemonset", "kured", "-n", "kube-system", "-o", "json"])?;
        let set: Value = serde_json::from_str(&set)?;
        Ok(set["metadata"]["annotations"]["weave.works/kured-node-lock"].as_str().unwrap_or_default().to_owned())
    }
}

/// Of all that a Job of members does: the locks before anything, the refusal while another holds them, a replacement that is killed in
/// its pod and gone on with in the next one; as the account that the manifests give it.
#[test]
fn members_are_changed_under_the_locks_and_a_killed_job_is_gone_on_with() -> Result<()> {
    let mut stage = Stage::of(EtcdVersion::V3_6, "quorate-members")?;
    // Pods on the two nodes that are not worked on, two of them where etcd does not lead.
    let leads = stage.leader()?;
    let dead = if leads == 3 { 2 } else { 3 };
    let (runner, leaders) = (format!("k{}", 6 - leads - dead), format!("k{leads}"));
    for (pod, node) in [("first", &runner), ("second", &runner), ("third", &leaders)] {
        stage.pod(pod, node)?;
    }
    let (to, back) = (stage.id(dead)?, stage.id(leads)?);
    // Never on the node that it is about.
    let said = stage.members("third", &leaders, &["move-leader", &to])?;
    assert!(said.code == Some(2) && said.err.contains("the node that it would take down"), "{said:?}");

    // A node's reboot by kured: held, with the reason, and the Lease is given back.
    let reboot = r#"weave.works/kured-node-lock={"nodeID":"k2","metadata":{"unschedulable":false},"created":"2026-11-22T10:00:00Z","TTL":0}"#;
    stage.api.kubectl(["annotate", "daemonset", "kured", "-n", "kube-system", reboot])?;
    let said = stage.members("first", &runner, &["move-leader", &to])?;
    assert_eq!((said.code, said.codes()), (Some(0), vec!["Q073".to_owned()]), "{said:?}");
    assert_eq!(stage.holder()?, "");
    stage.api.kubectl(["annotate", "daemonset", "kured", "-n", "kube-system", "weave.works/kured-node-lock-"])?;
    // From here on its DaemonSet is named, and not looked for among all.
    configure(&stage.api, "kured: kube-system/kured\n")?;

    // Permitted: leadership goes there, and all locks come back.
    let said = stage.members("first", &runner, &["move-leader", &to])?;
    assert_eq!((said.code, said.document()["outcome"].as_str()), (Some(0), Some("ok")), "{said:?}");
    assert_eq!(stage.leader()?, dead);
    assert_eq!((stage.holder()?, stage.kureds_lock()?), (String::new(), String::new()));
    let said = stage.members("third", &leaders, &["move-leader", &back])?;
    assert_eq!(said.document()["outcome"], "ok", "{said:?}");

    // One member dies, and its apiserver with it.
    stage.api.etcd().member(dead)?.kill()?;
    let (name, url) = (format!("k{dead}"), stage.api.etcd().peer_url(u8::try_from(dead)?));
    let (node, peer) = (format!("--node={name}"), format!("--peer-url={url}"));
    let replace = ["replace", to.as_str(), node.as_str(), peer.as_str()];
    let first = stage.begin("first", &runner, &replace)?;
    until("the new member is added", PATIENCE, || {
        first.running()?;
        let list = stage.api.etcd().member(1)?.call("/v3/cluster/member/list", &json!({}))?;
        let there = list["members"].as_array().is_some_and(|list| unstarted(list));
        Ok(if there { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("{list}")) })
    })?;
    first.kill()?;
    assert!(stage.holder()?.starts_with(&format!("members-replace-{to}/{name}/")), "{}", stage.holder()?);
    assert!(stage.kureds_lock()?.contains(&format!("quorate/members-replace-{to}")), "{}", stage.kureds_lock()?);
    stage.pod_ended("first")?;
    // Somebody else finds it half done.
    let held = stage.members("third", &leaders, &["remove", &to, "--wait=1s"])?;
    assert!(held.codes().contains(&"Q070".to_owned()) && held.out.contains("half done"), "{held:?}");
    let second = stage.begin("second", &runner, &replace)?;
    until("it goes on", PATIENCE, || {
        second.running()?;
        let holder = stage.holder()?;
        let log = fs::read_to_string(stage.api.etcd().dir().join("second.log"))?;
        let on = log.contains("going on with what was begun before");
        Ok(if on { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("{holder}: {log}")) })
    })?;
    stage.api.etcd_mut().start_added(dead)?;
    ended(&second)?;
    let log = fs::read_to_string(stage.api.etcd().dir().join("second.log"))?;
    assert!(log.contains(&format!("member {to} is replaced on node {name}; 3 voters")), "{log}");
    assert_eq!((stage.holder()?, stage.kureds_lock()?), (String::new(), String::new()));

    // What the template does by itself.
    let list = Said::from(Command::new("/usr/bin/env").args(stage.command("third", &leaders, &["list"])?).output()?);
    assert!(list.out.contains(r#""kind":"EtcdMembers""#), "{list:?}");

    // The account: nothing was denied to it.
    let events = stage.api.audit_events()?;
    let own = "system:serviceaccount:quorate:quorate-members";
    let denied: Vec<&Value> = events
        .iter()
        .filter(|event| event["user"]["username"] == own && event["responseStatus"]["code"] == 403)
        .collect();
    assert!(denied.is_empty(), "{denied:#?}");
    Ok(())
}
