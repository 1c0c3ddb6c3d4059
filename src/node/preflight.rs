//! Looks at a node before an upgrade and changes nothing: what would block the node step there, and what cannot be seen.

use super::command::{Deadline, ask};
use super::host::{Host, HostError, versions};
use super::plan::{self, State};
use super::report::Versions;
use super::unit;
use crate::cli::node::{Preflight as Order, Role};
use crate::clock::Clock;
use crate::output::TERMINATION_LIMIT;
use crate::version::Version;
use serde::{Deserialize, Serialize};

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
    /// The node step that runs on this host, if one does.
    pub running: quorum_safety::Fact<Option<String>>,
    /// STUB
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Preflight {
    fn new(to: Version) -> Self {
        Self {
            api_version: "quorate.dev/v1".to_owned(),
            kind: "NodePreflight".to_owned(),
            to,
            ready: false,
            blockers: Vec::new(),
            unknown: Vec::new(),
            role: Role::Worker.to_string(),
            package_manager: None,
            versions: Versions::default(),
            held: Vec::new(),
            lacking: Vec::new(),
            other_static_pods: Vec::new(),
            kubelet_certificate_expires: None,
            nft: false,
            running: quorum_safety::Fact::Known(None),
            notes: Vec::new(),
        }
    }

    /// Makes it small enough for the termination message; blockers are the last to go.
    #[must_use]
    pub fn fitted(mut self) -> Self {
        for text in self.blockers.iter_mut().chain(&mut self.unknown) {
            super::report::shorten(text, 300);
        }
        for text in self.other_static_pods.iter_mut().chain(self.versions.static_pods.values_mut()) {
            super::report::shorten(text, 63);
        }
        while self.size() > TERMINATION_LIMIT {
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
    let mut answer = Preflight::new(order.to);
    let deadline = Deadline::after(order.timeout);
    let host = match Host::here() {
        Ok(host) => host,
        Err(error) => {
            answer.blockers.push(error.to_string());
            return answer;
        }
    };
    answer.package_manager = Some(host.manager.name().to_owned());
    answer.nft = ask("nft", &["--version"], deadline).await.is_ok();
    match unit::look(deadline).await {
        Ok(seen) => answer.running = quorum_safety::Fact::Known(seen.running()),
        Err(error) => answer.unknown.push(format!("whether a node step runs: {error}")),
    }
    match host.state(order.to, None, clock.now(), deadline).await {
        Ok(state) => state_into(&mut answer, &host, &state),
        Err(error) => answer.unknown.push(sentence("the node's state", &error)),
    }
    match host.manager.lacking_there(&host.root, order.to, deadline).await {
        Ok(lacking) => {
            // kubectl need not be here.
            let wanted = |name: &&str| *name != "kubectl" || answer.versions.packages.contains_key("kubectl");
            answer.lacking = lacking.into_iter().filter(wanted).map(str::to_owned).collect();
            let blockers: Vec<String> =
                answer.lacking.iter().map(|name| format!("package {name} is not to be had at {}", order.to)).collect();
            answer.blockers.extend(blockers);
        }
        Err(error) => answer.unknown.push(sentence("the packages that are to be had", &HostError::from(error))),
    }
    match kubelet_certificate(&host) {
        Ok(expires) => answer.kubelet_certificate_expires = Some(expires),
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
    if state.running_kubelet.is_none() {
        answer.blockers.push("no kubelet runs".to_owned());
    }
    match host.short_of_disk(&state.manifests) {
        Ok(short) => answer.blockers.extend(short),
        Err(error) => answer.unknown.push(sentence("free disk", &error)),
    }
}

/// An error with the last line of the tool behind it.
fn sentence(what: &str, error: &HostError) -> String {
    match error.last_lines().pop() {
        Some(last) => format!("{what}: {error}: {last}"),
        None => format!("{what}: {error}"),
    }
}

/// When the kubelet's client certificate ends.
fn kubelet_certificate(host: &Host) -> Result<i64, String> {
    let path = host.path(KUBELET_CERTIFICATE);
    let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    expires(&bytes)
}

/// The end of the first certificate of a PEM file, which also holds the key.
fn expires(pem: &[u8]) -> Result<i64, String> {
    for block in x509_parser::pem::Pem::iter_from_buffer(pem) {
        let block = block.map_err(|error| error.to_string())?;
        if block.label == "CERTIFICATE" {
            let certificate = block.parse_x509().map_err(|error| error.to_string())?;
            return Ok(certificate.validity().not_after.timestamp());
        }
    }
    Err("no certificate is in it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_answer_fits_the_termination_message() {
        let long = "\"".repeat(2000);
        let mut answer = Preflight::new("v1.36.3".parse().unwrap());
        answer.blockers = vec![long.clone(); 30];
        answer.unknown = vec![long.clone(); 10];
        answer.other_static_pods = vec![long.clone(); 50];
        answer.running = quorum_safety::Fact::Known(Some("quorate node step to v1.36.30".to_owned()));
        answer.versions.static_pods =
            super::super::manifests::COMPONENTS.map(|it| (it.to_owned(), long.clone())).into();
        let fitted = answer.fitted();
        let size = serde_json::to_string(&fitted).unwrap().len();
        assert!(size <= TERMINATION_LIMIT, "{size}");
        assert!(fitted.blockers.len() >= 5, "{}", fitted.blockers.len());
    }

    #[test]
    fn what_is_no_certificate_is_said() {
        assert!(expires(b"").is_err());
        assert!(expires(b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n").is_err());
    }
}
