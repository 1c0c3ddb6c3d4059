//! What the node step still has to do, judged from the host's state alone. Pure. Nothing of it is remembered between runs: a run that
//! was killed anywhere is finished by the next one, which looks again before each sub-step.

use super::manifests::Manifests;
use super::packages::HalfDone;
use crate::cli::node::{Mode, Role, Upgrade};
use crate::version::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The sub-steps, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(clap::ValueEnum))]
pub enum Step {
    /// A manifest that kubeadm has moved away, and was stopped before it put the new one there, is put back.
    PutBack,
    /// Old scratch of kubeadm is removed (incident R19).
    PruneScratch,
    /// Disk, stray files, versions: what would stop the step half-way.
    Checks,
    /// The package source names the target's minor version, and its list is fresh.
    Repository,
    /// kubeadm at the target's version.
    KubeadmPackage,
    /// New connections go to a ready peer.
    HandOver,
    /// The apiserver is restarted once, so that connections that are there go too before etcd does.
    Empty,
    /// `kubeadm upgrade apply` or `kubeadm upgrade node`.
    Kubeadm,
    /// etcd's certificates renewed, when kubeadm was kept from etcd and so did not.
    EtcdCertificates,
    /// kubelet and kubectl at the target's version.
    KubeletPackages,
    /// All packages held.
    Hold,
    /// The kubelet that runs is the one installed.
    RestartKubelet,
    /// The node's own apiserver, etcd and kubelet answer, at the target's version.
    Recovery,
    /// New connections stay here again.
    HandBack,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 14] = [
        Self::PutBack,
        Self::PruneScratch,
        Self::Checks,
        Self::Repository,
        Self::KubeadmPackage,
        Self::HandOver,
        Self::Empty,
        Self::Kubeadm,
        Self::EtcdCertificates,
        Self::KubeletPackages,
        Self::Hold,
        Self::RestartKubelet,
        Self::Recovery,
        Self::HandBack,
    ];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PutBack => "put-back",
            Self::PruneScratch => "prune-scratch",
            Self::Checks => "checks",
            Self::Repository => "repository",
            Self::KubeadmPackage => "kubeadm-package",
            Self::HandOver => "hand-over",
            Self::Empty => "empty",
            Self::Kubeadm => "kubeadm",
            Self::EtcdCertificates => "etcd-certificates",
            Self::KubeletPackages => "kubelet-packages",
            Self::Hold => "hold",
            Self::RestartKubelet => "restart-kubelet",
            Self::Recovery => "recovery",
            Self::HandBack => "hand-back",
        })
    }
}

/// The host as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Installed packages.
    pub(super) packages: BTreeMap<String, Version>,
    /// Packages that somebody began to install and did not finish; they are in no other list, so they count as behind.
    pub(super) half_done: BTreeMap<String, HalfDone>,
    /// Held packages.
    pub(super) held: Vec<String>,
    /// The kubelet that runs; none when none does.
    pub(super) running_kubelet: Option<Version>,
    /// The static pods.
    pub(super) manifests: Manifests,
    /// Static pods whose manifest is missing and lies among kubeadm's copies.
    pub(super) torn: Vec<&'static str>,
    /// The etcd image tag that kubeadm would write for the target, where that can be told.
    pub(super) etcd_tag: Option<String>,
    /// Whether kubeadm is known to write etcd's manifest just as it is, so that it is kept from restarting it.
    pub(super) etcd_stays: bool,
    /// etcd's certificates that end before the apiserver's, which kubeadm has renewed.
    pub(super) etcd_outlived: Vec<&'static str>,
    /// Folders of old scratch.
    pub(super) scratch: usize,
    /// Whether new connections are handed over now.
    pub(super) handed_over: bool,
    /// Whether, before the hand-over of a run that goes on with another's work, a static pod is not the one that the kubelet wants, or that
    /// cannot be told: a kubelet that the other one has restarted may be about to replace them.
    pub(super) unsettled: bool,
}

/// Whether a sub-step has anything to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Yes.
    Do,
    /// No, and why not.
    Skip(&'static str),
}

impl State {
    fn package_at(&self, name: &str, to: Version) -> bool {
        self.packages.get(name) == Some(&to)
    }

    /// Whether kubectl is here, half done or not: a worker need not have it.
    pub(super) fn has_kubectl(&self) -> bool {
        self.packages.contains_key("kubectl") || self.half_done.contains_key("kubectl")
    }

    /// kubectl only where there is one.
    pub(super) fn kubelet_packages_behind(&self, to: Version) -> Vec<&'static str> {
        let kubectl = self.has_kubectl() && !self.package_at("kubectl", to);
        let kubelet = !self.package_at("kubelet", to);
        [("kubelet", kubelet), ("kubectl", kubectl)].into_iter().filter(|it| it.1).map(|it| it.0).collect()
    }

    fn packages_behind(&self, to: Version) -> bool {
        !self.package_at("kubeadm", to) || !self.kubelet_packages_behind(to).is_empty()
    }

    /// Packages that are there and not held.
    pub(super) fn not_held(&self) -> Vec<&str> {
        self.packages.keys().map(String::as_str).filter(|name| !self.held.iter().any(|it| it == name)).collect()
    }

    /// Whether etcd's manifest names the image that kubeadm would write; none when that cannot be told.
    pub(super) fn etcd_on_target(&self) -> Option<bool> {
        let etcd = self.manifests.pods.get("etcd")?;
        self.etcd_tag.as_ref().map(|tag| *tag == etcd.tag)
    }

    /// Whether the static pods carry the target's images.
    pub(super) fn static_pods_on_target(&self, to: Version) -> bool {
        let wanted = to.to_string();
        ["kube-apiserver", "kube-controller-manager", "kube-scheduler"]
            .into_iter()
            .all(|name| self.manifests.pods.get(name).is_some_and(|pod| pod.tag == wanted))
            && self.etcd_on_target() != Some(false)
    }

    /// Whether the kubelet that is to be started replaces the static pods: it does when it is of another minor version than the one that has
    /// started them. Its fields of a pod are others then, and so is the hash that it takes for a static pod's UID (kubelet, `applyDefaults` in
    /// pkg/kubelet/config/common.go); etcd goes with all others. Of one that does not run it cannot be told.
    pub(super) fn kubelet_replaces_pods(&self, to: Version) -> bool {
        self.running_kubelet.is_none_or(|running| (running.major, running.minor) != (to.major, to.minor))
    }

    /// Whether no static pod is restarted by what is left to do.
    fn restarts_nothing(&self, to: Version) -> bool {
        self.kubeadm_done(to) && !self.kubelet_replaces_pods(to)
    }

    /// Whether static pods may still be replaced, and this run restarts none of them: an earlier one has restarted the kubelet that does so.
    pub(super) fn is_left_to_the_kubelet(&self, to: Version) -> bool {
        self.unsettled && self.restarts_nothing(to)
    }

    /// Whether kubeadm has done its part. kubeadm is not asked: `kubeadm upgrade plan` names no target on a node that is done
    /// (incident R14). The kubelet's package comes after kubeadm in every run, so at the target's version it proves that
    /// kubeadm had ended well, its later phases included (the kubelet's configuration has no version of its own). So does
    /// one that was begun and not finished, once kubeadm's own is at the target's version: a kubelet whose package is torn may
    /// not run, and without it kubeadm waits for ever; the package must come first then.
    pub(super) fn kubeadm_done(&self, to: Version) -> bool {
        let begun = self.half_done.contains_key("kubelet") && self.package_at("kubeadm", to);
        (begun || self.package_at("kubelet", to)) && (!self.manifests.control_plane() || self.static_pods_on_target(to))
    }
}

/// Whether a sub-step has anything to do on this host, now.
pub(super) fn need(step: Step, state: &State, order: &Upgrade) -> Need {
    let to = order.to;
    let unless = |done: bool, why| if done { Need::Skip(why) } else { Need::Do };
    match step {
        Step::PutBack => unless(state.torn.is_empty(), "no manifest is missing"),
        Step::PruneScratch => unless(state.scratch == 0, "no old scratch"),
        Step::Checks => unless(!state.packages_behind(to) && state.kubeadm_done(to), "nothing to install"),
        Step::Repository => unless(!state.packages_behind(to), "packages are on target"),
        Step::KubeadmPackage => unless(state.package_at("kubeadm", to), "on target"),
        Step::HandOver if !state.manifests.control_plane() => Need::Skip("no apiserver here"),
        Step::HandOver if state.restarts_nothing(to) && !state.unsettled => Need::Skip("nothing restarts"),
        Step::HandOver => unless(order.peers.is_empty(), "no peer was named"),
        // The apiserver's own restart sends its connections away; only under an etcd that goes too would they hang.
        // So it does not where kubeadm has nothing left to write, and the kubelet takes all of them at once.
        Step::Empty if state.etcd_stays && !(state.kubelet_replaces_pods(to) && state.static_pods_on_target(to)) => {
            Need::Skip("etcd is left as it is")
        }
        Step::Empty if state.is_left_to_the_kubelet(to) => Need::Skip("the kubelet is at it"),
        Step::Empty if state.running_kubelet.is_none() => Need::Skip("no kubelet runs that would start it again"),
        Step::Empty | Step::HandBack => unless(!state.handed_over, "not handed over"),
        Step::Kubeadm => unless(state.kubeadm_done(to), "done before"),
        // The kubelet's package comes after them in every run; a run that keeps kubeadm from etcd now has them before it, whatever
        // somebody did with that package.
        Step::EtcdCertificates if state.package_at("kubelet", to) && !state.etcd_stays => Need::Skip("done before"),
        Step::EtcdCertificates => unless(state.etcd_outlived.is_empty(), "none ends before the apiserver's"),
        Step::KubeletPackages => unless(state.kubelet_packages_behind(to).is_empty(), "on target"),
        Step::Hold => unless(state.not_held().is_empty(), "held"),
        Step::RestartKubelet => unless(state.running_kubelet == Some(to), "the target runs"),
        Step::Recovery => Need::Do,
    }
}

/// What speaks against starting at all, all of it.
pub(super) fn objections(state: &State, order: &Upgrade) -> Vec<String> {
    let mut found = Vec::new();
    let control_plane = state.manifests.control_plane();
    match order.role {
        Some(Role::ControlPlane) if !control_plane => {
            found.push("no static pod kube-apiserver is here, so this is no control plane node".to_owned());
        }
        Some(Role::Worker) if control_plane => {
            found.push("a static pod kube-apiserver is here, so this is no worker".to_owned());
        }
        _ => {}
    }
    if order.mode == Mode::Apply && !control_plane {
        found.push("`kubeadm upgrade apply` runs on a control plane node only".to_owned());
    }
    found.extend(unfit(state, order.to));
    found
}

/// What makes a node unfit for a target, whatever the order.
pub(super) fn unfit(state: &State, to: Version) -> Vec<String> {
    let mut found = Vec::new();
    for name in ["kubeadm", "kubelet"] {
        // What is half done is for the step to finish.
        if !state.packages.contains_key(name) && !state.half_done.contains_key(name) {
            found.push(format!("package {name} is not installed"));
        }
    }
    let half_done = state.half_done.iter().filter_map(|(name, half)| Some((name, half.version.as_ref()?)));
    for (name, version) in state.packages.iter().chain(half_done).filter(|(_, version)| **version > to) {
        found.push(format!("{name} {version} is newer than {to}"));
    }
    // No step to this target has begun that one: it would have brought kubeadm's package first. With it torn apt may install the
    // newest version there is, and at the target's it would come before kubeadm's work.
    let foreign = |name: &str, half: &HalfDone| half.torn && name != "kubeadm" && !state.package_at("kubeadm", to);
    for (name, half) in state.half_done.iter().filter(|(name, half)| foreign(name, half)) {
        found.push(format!(
            "package {name} is {}, and no upgrade to {to} has begun it: finish what did, or install {name} again at its old version",
            half.state
        ));
    }
    found.extend(stray(&state.manifests));
    found
}

/// Stray files as sentences (incident R21).
pub(super) fn stray(manifests: &Manifests) -> Vec<String> {
    let sentence = |(file, what): &(String, String)| {
        format!("/etc/kubernetes/manifests/{file} is {what}: the kubelet runs every file there, move it elsewhere")
    };
    manifests.stray.iter().map(sentence).collect()
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
