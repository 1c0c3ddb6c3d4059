//! `quorate node`.

use crate::version::Version;
use clap::{Args, Subcommand, ValueEnum};
use jiff::SignedDuration;
use quorum_safety::Policy;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Work on the node itself; run by privileged Jobs pinned to it
#[derive(Debug, Args)]
pub struct Node {
    /// What to do on it.
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// What to do on the node.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Look, change nothing: disk, packages, stray files, certificates
    Preflight(Preflight),
    /// Bring kubeadm, the static pods, kubelet and kubectl of this node to the target
    Upgrade(Upgrade),
    /// What `upgrade` starts on the host, in a unit of its own
    #[command(hide = true)]
    Run(Upgrade),
    /// What the unit's end runs, however it ended: manifests that kubeadm had moved away come back
    #[command(hide = true)]
    PutBack(PutBack),
    /// Hand new connections to this node's apiserver over to peers for as long as standard input is open
    #[command(hide = true)]
    HandOver(HandOver),
}

/// Arguments of the hidden `quorate node hand-over`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct HandOver {
    /// Address of a ready apiserver that takes over new connections meanwhile; may be repeated
    #[arg(long = "peer", value_name = "IP")]
    pub peers: Vec<IpAddr>,
    /// The Service default/kubernetes, handed over for this node's pods
    #[arg(long, value_name = "IP:PORT")]
    pub service_address: Option<SocketAddr>,
}

impl HandOver {
    /// The same options as arguments again.
    pub fn to_args(&self) -> Vec<String> {
        let peers = self.peers.iter().map(|peer| format!("--peer={peer}"));
        peers.chain(self.service_address.map(|address| format!("--service-address={address}"))).collect()
    }
}

/// Arguments of the hidden `quorate node put-back`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct PutBack {
    /// The version that was upgraded to
    #[arg(long, value_name = "VERSION")]
    pub to: Version,
}

/// Arguments of `quorate node preflight`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Preflight {
    /// The version to upgrade to, as in v1.36.3
    #[arg(long, value_name = "VERSION")]
    pub to: Version,
    /// How long all of it may take
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time)]
    pub timeout: Duration,
    /// How long the kubelet's client certificate must still be valid, in seconds; `rule.certificateMargin` of the configuration
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = Policy::default().certificate_margin,
        value_parser = clap::value_parser!(i64).range(0..)
    )]
    pub certificate_margin: i64,
}

/// An object of JSON.
pub type JsonObject = serde_json::Map<String, serde_json::Value>;

/// Arguments of `quorate node upgrade`, and of the hidden `quorate node run` that it starts.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Upgrade {
    /// The version to upgrade to, as in v1.36.3
    #[arg(long, value_name = "VERSION")]
    pub to: Version,
    /// `apply` on the first control plane node, `node` on every other node
    #[arg(long)]
    pub mode: Mode,
    /// What the node must be; refused when its static pods say otherwise
    #[arg(long)]
    pub role: Option<Role>,
    /// kubeadm phases to skip, such as addon/coredns
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    pub skip_phases: Vec<String>,
    /// kubeadm preflight checks to ignore, each by its name
    #[arg(long, value_name = "CHECK", value_delimiter = ',', value_parser = named_check)]
    pub ignore_preflight_errors: Vec<String>,
    /// Address of a ready apiserver that takes over new connections meanwhile; may be repeated
    #[arg(long = "peer", value_name = "IP")]
    pub peers: Vec<IpAddr>,
    /// The Service default/kubernetes, handed over for this node's pods
    #[arg(long, value_name = "IP:PORT")]
    pub service_address: Option<SocketAddr>,
    /// The etcd image tag of kubeadm-config, or `default` when it names none; without it etcd is never skipped
    #[arg(long, value_name = "TAG")]
    pub etcd_image_tag: Option<String>,
    /// ClusterConfiguration of kubeadm-config, as JSON: etcd that kubeadm would write just as it is, is then not restarted. Without
    /// it kubeadm restarts etcd whenever it changes the apiserver
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    pub cluster_configuration: Option<JsonObject>,
    /// How long all of it may take
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = time)]
    pub timeout: Duration,
    /// Seconds since 1970 by this node's clock: from then on nothing is begun any more, since whoever gave the order may hold the
    /// lock no more. What was begun before goes on, and attaching to it stays allowed
    #[arg(long, value_name = "UNIX", hide = true)]
    pub start_before: Option<i64>,
}

/// Which kubeadm command upgrades this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// `kubeadm upgrade apply`, on the first control plane node only.
    Apply,
    /// `kubeadm upgrade node`, on every other node.
    Node,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apply => "apply",
            Self::Node => "node",
        })
    }
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Runs the static pods of the control plane.
    ControlPlane,
    /// Does not.
    Worker,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ControlPlane => "control-plane",
            Self::Worker => "worker",
        })
    }
}

impl Upgrade {
    /// The same options as arguments again, for a container or for the unit on the host.
    pub fn to_args(&self) -> Vec<String> {
        let mut args = vec![format!("--to={}", self.to), format!("--mode={}", self.mode)];
        args.extend(self.role.map(|role| format!("--role={role}")));
        args.extend(self.skip_phases.iter().map(|phase| format!("--skip-phases={phase}")));
        args.extend(self.ignore_preflight_errors.iter().map(|check| format!("--ignore-preflight-errors={check}")));
        args.extend(self.peers.iter().map(|peer| format!("--peer={peer}")));
        args.extend(self.service_address.map(|address| format!("--service-address={address}")));
        args.extend(self.etcd_image_tag.as_ref().map(|tag| format!("--etcd-image-tag={tag}")));
        args.extend(self.cluster_configuration.as_ref().map(|object| {
            // The kubelet and systemd replace names after a `$` in a command line; JSON can write it otherwise.
            let json = serde_json::Value::from(object.clone()).to_string().replace('$', "\\u0024");
            format!("--cluster-configuration={json}")
        }));
        args.push(format!("--timeout={}s", self.timeout.as_secs()));
        args.extend(self.start_before.map(|unix| format!("--start-before={unix}")));
        args
    }
}

/// A length of time, such as `30m`, of at least a second.
fn time(text: &str) -> Result<Duration, String> {
    let expected = || format!("`{text}` is not a length of time: expected something like 30m");
    let length: SignedDuration = text.parse().map_err(|_| expected())?;
    Duration::try_from(length).ok().filter(|length| length.as_secs() > 0).ok_or_else(expected)
}

fn json_object(text: &str) -> Result<JsonObject, String> {
    serde_json::from_str(text).map_err(|error| format!("this is no JSON object: {error}"))
}

/// `all` hides what nobody thought of.
fn named_check(text: &str) -> Result<String, String> {
    if text.eq_ignore_ascii_case("all") {
        return Err("name each check, such as SystemVerification: `all` hides what nobody thought of".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
impl Upgrade {
    /// An order that names nothing but what it must, for tests.
    pub(crate) fn bare(to: &str, mode: Mode) -> Self {
        Self {
            to: to.parse().unwrap(),
            mode,
            role: None,
            skip_phases: Vec::new(),
            ignore_preflight_errors: Vec::new(),
            peers: Vec::new(),
            service_address: None,
            etcd_image_tag: None,
            cluster_configuration: None,
            timeout: std::time::Duration::from_secs(60),
            start_before: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn parse(command: &str, args: &[String]) -> Result<super::Upgrade, clap::Error> {
        let words = ["quorate", "node", command].into_iter().map(str::to_owned).chain(args.iter().cloned());
        match Cli::try_parse_from(words)?.command {
            Command::Node(super::Node { command: super::NodeCommand::Upgrade(it) | super::NodeCommand::Run(it) }) => {
                Ok(it)
            }
            other => panic!("{other:?}"),
        }
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_unit_gets_the_options_of_the_pod() {
        let text = "--to v1.36.3 --mode apply --role control-plane --skip-phases addon/coredns,addon/kube-proxy \
                    --ignore-preflight-errors SystemVerification --peer 10.10.0.12 --peer fd00::1 \
                    --service-address 10.96.0.1:443 --etcd-image-tag 3.6.8-0 --timeout 7m \
                    --cluster-configuration {\"dataDir\":\"/$HOME/$(POD)\"} --start-before 1800000000";
        let pod = parse("upgrade", &words(text)).unwrap();
        assert_eq!(pod.skip_phases.len(), 2);
        assert_eq!(pod.start_before, Some(1_800_000_000));
        assert_eq!(pod.cluster_configuration.as_ref().unwrap()["dataDir"], "/$HOME/$(POD)");
        assert!(!pod.to_args().concat().contains('$'));
        assert_eq!(parse("run", &pod.to_args()).unwrap(), pod);
        let least = parse("upgrade", &words("--to v1.36.3 --mode node")).unwrap();
        assert_eq!(least.timeout.as_secs(), 1800);
        assert_eq!(least.start_before, None);
        assert_eq!(parse("run", &least.to_args()).unwrap(), least);
    }

    #[test]
    fn a_hand_over_gets_its_options() {
        let order = super::HandOver {
            peers: vec!["10.10.0.12".parse().unwrap(), "fd00::1".parse().unwrap()],
            service_address: Some("10.96.0.1:443".parse().unwrap()),
        };
        let line = ["quorate", "node", "hand-over"].map(str::to_owned).into_iter().chain(order.to_args());
        let Command::Node(super::Node { command: super::NodeCommand::HandOver(read) }) =
            Cli::try_parse_from(line).unwrap().command
        else {
            panic!("another command");
        };
        assert_eq!(read, order);
    }

    #[test]
    fn the_margin_of_certificates_is_that_of_the_rule() {
        let margin = |text: &str| match Cli::try_parse_from(words(text)).unwrap().command {
            Command::Node(super::Node { command: super::NodeCommand::Preflight(it) }) => it.certificate_margin,
            other => panic!("{other:?}"),
        };
        assert_eq!(margin("quorate node preflight --to v1.36.3"), 7 * 24 * 3600);
        assert_eq!(margin("quorate node preflight --to v1.36.3 --certificate-margin 60"), 60);
        assert!(Cli::try_parse_from(words("quorate node preflight --to v1.36.3 --certificate-margin=-1")).is_err());
    }

    #[test]
    fn bad_options_are_refused() {
        for (text, expected) in [
            ("--to v1.36 --mode node", "v1.36.3"),
            ("--to v1.36.3 --mode plan", "apply, node"),
            ("--to v1.36.3 --mode node --ignore-preflight-errors Swap,all", "name each check"),
            ("--to v1.36.3 --mode node --timeout 0s", "30m"),
            ("--to v1.36.3 --mode node --timeout=-3m", "length of time"),
            ("--to v1.36.3 --mode node --peer k2", "--peer"),
            ("--to v1.36.3 --mode node --start-before soon", "--start-before"),
        ] {
            let error = parse("upgrade", &words(text)).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
