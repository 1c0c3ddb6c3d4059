//! Looks at a node before an upgrade and changes nothing: what would block the node step there, and what cannot be seen.

use super::certificate::{Validity, validity};
use super::command::{Deadline, ToolError, ask};
use super::host::{Host, HostError, versions};
use super::mark::Mark;
use super::plan::{self, State};
use super::report::Versions;
use super::unit;
use crate::cli::node::{Preflight as Order, Role};
use crate::clock::Clock;
use crate::output::TERMINATION_LIMIT;
use crate::version::Version;
use quorum_safety::Fact;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The kubelet's own client certificate, rotated in place.
const KUBELET_CERTIFICATE: &str = "var/lib/kubelet/pki/kubelet-client-current.pem";

/// The answer of `quorate node preflight`. That there is one at all proves that the node has quorate's image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preflight {
    /// `quorate.dev/v1`.
    pub api_version: String,
    /// `NodePreflight`.
    pub kind: String,
    /// The target.
    pub to: Version,
    /// Nothing blocks and everything could be seen.
    pub ready: bool,
    /// What would stop the node step, each in a sentence.
    pub blockers: Vec<String>,
    /// What could not be seen, each with the reason; counts against `ready`.
    pub unknown: Vec<String>,
    /// What does not stop the node step and should be known before it, each in a sentence.
    #[serde(default)]
    pub notes: Vec<String>,
    /// `control-plane` or `worker`, by the static pods that are here.
    pub role: String,
    /// The package manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package_manager: Option<String>,
    /// What is installed and runs.
    pub versions: Versions,
    /// Held packages.
    pub held: Vec<String>,
    /// Packages not to be had at the target's version.
    pub lacking: Vec<String>,
    /// Static pods beside the four.
    pub other_static_pods: Vec<String>,
    /// When the kubelet's client certificate ends, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet_certificate_expires: Option<i64>,
    /// Whether new connections could be handed over here: nft is installed.
    pub nft: bool,
    /// The node step that runs on this host, if one does; unknown when systemd could not be asked, which proves nothing.
    pub running: Fact<Option<String>>,
    /// Whether a step to the target has ever begun to change this host: its mark is here, or cannot be read.
    pub begun: bool,
}

impl Preflight {
    /// An answer in which nothing has been seen yet.
    pub fn unseen(to: Version) -> Self {
        Self {
            api_version: "quorate.dev/v1".to_owned(),
            kind: "NodePreflight".to_owned(),
            to,
            ready: false,
            blockers: Vec::new(),
            unknown: Vec::new(),
            notes: Vec::new(),
            role: Role::Worker.to_string(),
            package_manager: None,
            versions: Versions::default(),
            held: Vec::new(),
            lacking: Vec::new(),
            other_static_pods: Vec::new(),
            kubelet_certificate_expires: None,
            nft: false,
            running: Fact::Unknown("nobody has looked".to_owned()),
            begun: true,
        }
    }

    /// Makes it small enough for the termination message; blockers are the last to go.
    #[must_use]
    pub fn fitted(mut self) -> Self {
        for text in self.blockers.iter_mut().chain(&mut self.unknown).chain(&mut self.notes) {
            super::report::shorten(text, 300);
        }
        if let Fact::Unknown(text) | Fact::Known(Some(text)) = &mut self.running {
            super::report::shorten(text, 200);
        }
        for text in self.other_static_pods.iter_mut().chain(self.versions.static_pods.values_mut()) {
            super::report::shorten(text, 63);
        }
        while self.size() > TERMINATION_LIMIT {
            // Of notes none need stay.
            if self.notes.pop().is_some() {
                continue;
            }
            let longest = [&mut self.other_static_pods, &mut self.unknown, &mut self.blockers];
            let Some(list) = longest.into_iter().find(|list| list.len() > 1) else { break };
            list.pop();
        }
        self
    }

    fn size(&self) -> usize {
        serde_json::to_string(self).map_or(usize::MAX, |text| text.len())
    }
}

/// Looks.
pub(super) async fn preflight(order: &Order, clock: Clock) -> Preflight {
    let deadline = Deadline::after(order.timeout);
    // Before all else: whatever more cannot be seen, this one decides whether a holder may be taken for gone.
    let running = unit::look(deadline).await;
    look(order, running, Host::here(), clock, deadline).await
}

async fn look(
    order: &Order,
    running: Result<unit::Seen, ToolError>,
    host: Result<Host, HostError>,
    clock: Clock,
    deadline: Deadline,
) -> Preflight {
    let mut answer = Preflight::unseen(order.to);
    if let Err(error) = &running {
        answer.unknown.push(format!("whether a node step runs: {error}"));
    }
    answer.running = running.map(|seen| seen.running()).into();
    answer.begun = Mark::new(Path::new("/"), order.to).names_target();
    let host = match host {
        Ok(host) => host,
        Err(error) => {
            answer.blockers.push(error.to_string());
            return answer;
        }
    };
    answer.package_manager = Some(host.manager.name().to_owned());
    answer.nft = ask("nft", &["--version"], deadline).await.is_ok();
    // It need not be here.
    let mut has_kubectl = false;
    match host.state(order.to, None, clock.now(), deadline).await {
        Ok(state) => {
            has_kubectl = state.has_kubectl();
            state_into(&mut answer, &host, &state);
        }
        Err(error) => answer.unknown.push(sentence("the node's state", &error)),
    }
    match host.manager.lacking_there(&host.root, order.to, deadline).await {
        Ok(lacking) => {
            let wanted = |name: &&str| *name != "kubectl" || has_kubectl;
            answer.lacking = lacking.into_iter().filter(wanted).map(str::to_owned).collect();
            let blockers: Vec<String> =
                answer.lacking.iter().map(|name| format!("package {name} is not to be had at {}", order.to)).collect();
            answer.blockers.extend(blockers);
        }
        Err(error) => answer.unknown.push(sentence("the packages that are to be had", &HostError::from(error))),
    }
    match kubelet_certificate(&host) {
        Ok(validity) => {
            answer.kubelet_certificate_expires = Some(validity.until);
            answer.blockers.extend(validity.short(order.certificate_margin, clock.now()));
        }
        Err(error) => answer.unknown.push(format!("the kubelet's client certificate: {error}")),
    }
    answer.ready = answer.blockers.is_empty() && answer.unknown.is_empty();
    answer
}

fn state_into(answer: &mut Preflight, host: &Host, state: &State) {
    let role = if state.manifests.control_plane() { Role::ControlPlane } else { Role::Worker };
    answer.role = role.to_string();
    answer.versions = versions(state);
    answer.held.clone_from(&state.held);
    answer.other_static_pods.clone_from(&state.manifests.others);
    answer.blockers.extend(plan::unfit(state, answer.to));
    answer.notes.extend(notes(state, answer.nft));
    if state.running_kubelet.is_none() {
        answer.blockers.push("no kubelet runs".to_owned());
    }
    match host.short_of_disk(&state.manifests, state.kubeadm_done(answer.to)) {
        Ok(short) => answer.blockers.extend(short),
        Err(error) => answer.unknown.push(sentence("free disk", &error)),
    }
}

/// What is told and stops nothing.
fn notes(state: &State, nft: bool) -> Vec<String> {
    let mut found = Vec::new();
    if state.manifests.control_plane() && !nft {
        found.push(
            "nft is not installed: new connections to this node's apiserver are not handed over to a peer while it restarts"
                .to_owned(),
        );
    }
    for (name, half) in &state.half_done {
        found.push(format!("package {name} is {}: the node step finishes it", half.state));
    }
    found
}

/// An error with the last line of the tool behind it.
fn sentence(what: &str, error: &HostError) -> String {
    match error.last_lines().pop() {
        Some(last) => format!("{what}: {error}: {last}"),
        None => format!("{what}: {error}"),
    }
}

impl Validity {
    /// Why the rest of the time is too short, and what to do; none when it is not. The kubelet asks for a new certificate when
    /// 30 to 10 % of the time are left (kubernetes.io, "Certificate rotation"), so of one that is made for days only a tenth
    /// can be asked for: else a kubelet that rotates as it should would be refused for ever.
    fn short(self, margin: i64, now: jiff::Timestamp) -> Option<String> {
        let left = self.until.saturating_sub(now.as_second());
        let wanted = margin.min(self.until.saturating_sub(self.from) / 10);
        if left >= wanted.max(1) {
            return None;
        }
        let when =
            jiff::Timestamp::from_second(self.until).map_or_else(|_| self.until.to_string(), |it| it.to_string());
        let left = if left > 0 { format!("ends at {when}, in {} h", left / 3600) } else { format!("ended at {when}") };
        Some(format!(
            "the kubelet's client certificate {left}, and {} h are wanted: with rotateCertificates the kubelet renews it by itself, so read its log and restart it; else make a new kubelet.conf with `kubeadm kubeconfig user --org system:nodes`",
            wanted / 3600
        ))
    }
}

/// When the kubelet's client certificate is valid.
fn kubelet_certificate(host: &Host) -> Result<Validity, String> {
    let path = host.path(KUBELET_CERTIFICATE);
    let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    validity(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_answer_fits_the_termination_message() {
        let long = "\"".repeat(2000);
        let mut answer = Preflight::unseen("v1.36.3".parse().unwrap());
        answer.blockers = vec![long.clone(); 30];
        answer.unknown = vec![long.clone(); 10];
        answer.other_static_pods = vec![long.clone(); 50];
        answer.notes = vec![long.clone(); 10];
        answer.running = Fact::Unknown(long.clone());
        answer.versions.static_pods =
            super::super::manifests::COMPONENTS.map(|it| (it.to_owned(), long.clone())).into();
        let fitted = answer.fitted();
        let size = serde_json::to_string(&fitted).unwrap().len();
        assert!(size <= TERMINATION_LIMIT, "{size}");
        assert!(fitted.blockers.len() >= 5, "{}", fitted.blockers.len());

        let mut answer = Preflight::unseen("v1.36.3".parse().unwrap());
        answer.notes = vec!["x".repeat(2000); 20];
        answer.blockers = vec!["y".to_owned(); 3];
        let fitted = answer.fitted();
        assert!(serde_json::to_string(&fitted).unwrap().len() <= TERMINATION_LIMIT);
        assert!(!fitted.notes.is_empty() && fitted.blockers.len() == 3, "{fitted:?}");
    }

    fn looked(running: Result<unit::Seen, ToolError>) -> Preflight {
        let order = Order {
            to: "v1.36.3".parse().unwrap(),
            timeout: std::time::Duration::from_secs(5),
            certificate_margin: 604_800,
        };
        let host = Err(HostError::NotUnderstood { tool: "a host without a package manager", said: String::new() });
        let deadline = Deadline::after(order.timeout);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(look(&order, running, host, Clock::system(), deadline))
    }

    #[test]
    fn a_unit_that_could_not_be_looked_for_is_unknown_and_never_absent() {
        let failed = ToolError::Start { tool: "systemctl show".to_owned(), why: "not there".to_owned() };
        let answer = looked(Err(failed));
        assert_eq!(answer.running, Fact::Unknown("`systemctl show` cannot be started: not there".to_owned()));
        assert!(!answer.ready && answer.unknown.len() == 1, "{answer:?}");
        // What is said of the unit is said though nothing else can be seen.
        assert_eq!(looked(Ok(unit::seen("ActiveState=inactive\n"))).running, Fact::Known(None));
        let runs = "ActiveState=active\nDescription=quorate node step to v1.36.3\n";
        let runs = looked(Ok(unit::seen(runs)));
        assert_eq!(runs.running, Fact::Known(Some("quorate node step to v1.36.3".to_owned())));
        assert!(!runs.ready && runs.blockers.len() == 1, "{runs:?}");
        assert!(Preflight::unseen("v1.36.3".parse().unwrap()).running.known().is_none());
        for answer in [&answer, &runs, &looked(Ok(unit::seen("ActiveState=failed\n")))] {
            let json = serde_json::to_string(answer).unwrap();
            assert_eq!(&serde_json::from_str::<Preflight>(&json).unwrap(), answer, "{json}");
        }
        let json = serde_json::to_value(&answer).unwrap();
        assert!(json["running"]["unknown"].is_string(), "{json}");
        // An answer that does not speak of it is no answer.
        for key in ["running", "begun"] {
            let mut silent = json.clone();
            silent.as_object_mut().unwrap().remove(key);
            assert!(serde_json::from_value::<Preflight>(silent).is_err(), "{key}");
        }
    }

    #[test]
    fn a_kubelet_certificate_that_ends_soon_blocks() {
        const DAY: i64 = 86_400;
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        // (days it is made for, days left, hours of margin, what is said)
        let table = [
            (365, 300, 168, None),
            (365, 7, 168, None),
            (365, 6, 168, Some("ends at 2027-01-21T08:00:00Z, in 144 h, and 168 h are wanted")),
            (365, 0, 168, Some("ended at 2027-01-15T08:00:00Z")),
            (365, -1, 168, Some("ended at 2027-01-14T08:00:00Z")),
            // Made for a week: one that is rotated in time has a tenth of it left.
            (7, 1, 168, None),
            (7, 0, 168, Some("and 16 h are wanted")),
            // Expired is expired, whatever the margin.
            (365, 1, 0, None),
            (365, 0, 0, Some("ended at")),
        ];
        for (made_for, left, margin, said) in table {
            let until = now.as_second() + left * DAY;
            let text = Validity { from: until - made_for * DAY, until }.short(margin * 3600, now);
            assert_eq!(text.is_some(), said.is_some(), "{left} of {made_for}: {text:?}");
            let text = text.unwrap_or_default();
            assert!(text.contains(said.unwrap_or_default()), "{text}");
            assert!(
                text.is_empty() || text.contains("restart it") && text.contains("kubeadm kubeconfig user"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_a_control_plane_node_goes_without_is_told() {
        let mut state = State::default();
        assert!(notes(&state, false).is_empty(), "a worker hands nothing over");
        let half = crate::node::packages::HalfDone { state: "unpacked", version: None, torn: false };
        state.half_done.insert("kubelet".to_owned(), half);
        assert_eq!(notes(&state, true), ["package kubelet is unpacked: the node step finishes it"]);
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(crate::node::manifests::FOLDER);
        std::fs::create_dir_all(&folder).unwrap();
        let text =
            "metadata: {name: kube-apiserver}\nspec: {containers: [{name: a, image: 'x/kube-apiserver:v1.36.1'}]}\n";
        std::fs::write(folder.join("kube-apiserver.yaml"), text).unwrap();
        state.manifests = crate::node::manifests::read(root.path()).unwrap();
        assert_eq!(notes(&state, true).len(), 1);
        assert!(notes(&state, false)[0].contains("nft is not installed"));
    }
}
