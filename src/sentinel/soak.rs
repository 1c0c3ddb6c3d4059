//! What the API says of all nodes, and whether that lets another one be rebooted: Ready, not cordoned, and all up for a while. Pure.
//!
//! A node that reboots quickly never stops being Ready, so the condition does not tell since when it is up: its sentinel does, by an
//! annotation with the boot id that it belongs to.

use super::reason::{Code, Reason};
use k8s_openapi::api::core::v1::Node;
use quorum_safety::{Fact, NodeName, UnixSeconds};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The annotation of a Node by which its sentinel says since when it is up; its value is a [`Boot`] as JSON.
pub const BOOT: &str = "quorate.dev/boot";
/// How far the clocks of two machines may be apart.
const SKEW: i64 = 60;

/// One boot of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Boot {
    /// `status.nodeInfo.bootID`.
    pub id: String,
    /// Since when it is up.
    pub since: UnixSeconds,
}

/// What counts of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: NodeName,
    /// Whether it carries the label of the control plane.
    pub control_plane: bool,
    /// Its InternalIP.
    pub address: Option<String>,
    /// Whether it is Ready, and since when that is as it is.
    pub ready: Fact<(bool, UnixSeconds)>,
    /// Whether it is cordoned, by whomever.
    pub cordoned: bool,
    /// Its boot id.
    pub boot_id: Fact<String>,
    /// What its sentinel says.
    pub boot: Fact<Option<Boot>>,
}

impl Seen {
    /// Reads a Node.
    ///
    /// # Errors
    /// When it has no name.
    pub fn of(node: &Node) -> Result<Self, String> {
        let name = node.metadata.name.clone().ok_or("a node without a name")?;
        let status = node.status.as_ref();
        let address = status
            .and_then(|status| status.addresses.as_ref())
            .and_then(|all| all.iter().find(|address| address.type_ == "InternalIP"))
            .map(|address| address.address.clone());
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let ready = match conditions.iter().find(|condition| condition.type_ == "Ready") {
            None => Fact::Unknown("it has no condition Ready".to_owned()),
            Some(condition) => match (condition.status.as_str(), &condition.last_transition_time) {
                (status @ ("True" | "False"), Some(at)) => {
                    Fact::Known((status == "True", UnixSeconds(at.0.as_second())))
                }
                (status, None) => Fact::Unknown(format!("condition Ready is {status}, since nobody knows when")),
                (status, Some(_)) => Fact::Unknown(format!("condition Ready is {status}")),
            },
        };
        let boot_id = status.and_then(|status| status.node_info.as_ref()).map(|info| info.boot_id.clone());
        let boot_id = boot_id.filter(|id| !id.is_empty());
        let boot_id = boot_id.map_or_else(|| Fact::Unknown("it reports no boot id".to_owned()), Fact::Known);
        let boot = match node.metadata.annotations.as_ref().and_then(|all| all.get(BOOT)) {
            None => Fact::Known(None),
            Some(text) => {
                serde_json::from_str(text).map(Some).map_err(|error| format!("annotation {BOOT}: {error}")).into()
            }
        };
        let labels = node.metadata.labels.as_ref();
        Ok(Self {
            name: NodeName(name),
            control_plane: labels.is_some_and(|labels| labels.contains_key(crate::observe::cluster::CONTROL_PLANE)),
            address,
            ready,
            cordoned: node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true),
            boot_id,
            boot,
        })
    }

    /// What its sentinel has to write, if that is not there; `up` is since when this machine is up by its own clock, and `all` are all nodes.
    /// A boot is not older than anything that is known to have happened before it: by a clock that is behind it would have soaked at once.
    pub fn unwritten(&self, all: &[Self], now: UnixSeconds, up: UnixSeconds) -> Option<Boot> {
        let id = self.boot_id.known()?;
        let others = all.iter().filter(|node| node.name != self.name).filter_map(Self::newest).max();
        let now = others.map_or(now, |others| now.max(others));
        let since = match &self.boot {
            Fact::Known(Some(boot)) if boot.id == *id => return None,
            // Another boot than the last one that was written down: it has just ended.
            Fact::Known(Some(boot)) => now.max(boot.since),
            Fact::Unknown(_) => now,
            // Nobody has written before: the last that is known to have happened to it.
            Fact::Known(None) => self.ready.known().map_or(now, |(_, since)| (*since).max(up)),
        };
        Some(Boot { id: id.clone(), since })
    }

    /// The newest time that is written on it.
    fn newest(&self) -> Option<UnixSeconds> {
        let boot = self.boot.known().and_then(Option::as_ref).map(|boot| boot.since);
        boot.max(self.ready.known().map(|(_, since)| *since))
    }
}

/// Why no node may be rebooted, by what is seen of all. `under_way` is whether kured works on `own` already: then it has cordoned it.
pub fn reasons(nodes: &[Seen], own: &NodeName, under_way: bool, soak: Duration, now: UnixSeconds) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if !nodes.iter().any(|node| node.name == *own) {
        reasons.push(Reason::new(Code::NodeUnknown, format!("the API lists no node {own}")));
    }
    for node in nodes {
        let name = &node.name;
        match &node.ready {
            Fact::Known((true, _)) => {}
            Fact::Known((false, _)) => reasons.push(Reason::new(Code::NodeNotReady, name.to_string())),
            Fact::Unknown(why) => reasons.push(Reason::new(Code::NodeUnknown, format!("{name}: {why}"))),
        }
        if node.cordoned && !(under_way && name == own) {
            reasons.push(Reason::new(Code::NodeCordoned, name.to_string()));
        }
        reasons.extend(soaking(node, soak, now));
    }
    reasons
}

fn soaking(node: &Seen, soak: Duration, now: UnixSeconds) -> Option<Reason> {
    let name = &node.name;
    let unknown = |why: String| Some(Reason::new(Code::SoakUnknown, format!("{name}: {why}")));
    let (boot_id, boot) = match (&node.boot_id, &node.boot) {
        (Fact::Unknown(why), _) | (_, Fact::Unknown(why)) => return unknown(why.clone()),
        (_, Fact::Known(None)) => return unknown("no sentinel of its has said since when it is up".to_owned()),
        (Fact::Known(id), Fact::Known(Some(boot))) => (id, boot),
    };
    if boot.id != *boot_id {
        return unknown("it has rebooted, and its sentinel has not said so".to_owned());
    }
    // That it is not Ready, or not known to be, is told by itself.
    let Fact::Known((true, ready)) = &node.ready else { return None };
    let since = boot.since.max(*ready);
    let age = now.0.saturating_sub(since.0);
    if age < -SKEW {
        let ahead = age.unsigned_abs();
        return unknown(format!(
            "it is up since {ahead} s from now: one of the clocks is wrong; when it is right, remove {BOOT} from the node"
        ));
    }
    let soak = i64::try_from(soak.as_secs()).unwrap_or(i64::MAX);
    let left = soak.saturating_sub(age.max(0));
    (left > 0).then(|| {
        Reason::new(
            Code::Soak,
            format!("{name} is up since {} min, and {} min are left", age.max(0) / 60, left.saturating_add(59) / 60),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: UnixSeconds = UnixSeconds(1_000_000);

    fn node(name: &str) -> Seen {
        let boot = Boot { id: "b1".to_owned(), since: UnixSeconds(100) };
        Seen {
            name: name.into(),
            control_plane: true,
            address: None,
            ready: Fact::Known((true, UnixSeconds(200))),
            cordoned: false,
            boot_id: Fact::Known("b1".to_owned()),
            boot: Fact::Known(Some(boot)),
        }
    }

    fn codes(change: impl FnOnce(&mut Seen), under_way: bool) -> Vec<String> {
        let mut other = node("k2");
        change(&mut other);
        let own = NodeName::from("k2");
        let reasons = reasons(&[node("k1"), other], &own, under_way, Duration::from_secs(3600), NOW);
        reasons.into_iter().map(|reason| reason.code[..4].to_owned()).collect()
    }

    #[test]
    fn each_thing_that_is_not_as_it_should_be_closes() {
        let unknown = || Fact::Unknown("why".to_owned());
        assert_eq!(codes(|_| {}, false), [""; 0]);
        assert_eq!(codes(|node| node.ready = Fact::Known((false, UnixSeconds(1))), false), ["S011"]);
        assert_eq!(codes(|node| node.ready = Fact::Unknown("why".to_owned()), false), ["S010"]);
        assert_eq!(codes(|node| node.cordoned = true, false), ["S012"]);
        assert_eq!(codes(|node| node.cordoned = true, true), [""; 0], "kured cordons the node that it reboots");
        assert_eq!(codes(|node| node.ready = Fact::Known((true, UnixSeconds(NOW.0 - 3599))), false), ["S013"]);
        assert_eq!(codes(|node| node.ready = Fact::Known((true, UnixSeconds(NOW.0 - 3600))), false), [""; 0]);
        let since = |since| Fact::Known(Some(Boot { id: "b1".to_owned(), since }));
        assert_eq!(codes(|node| node.boot = since(UnixSeconds(NOW.0 - 60)), false), ["S013"], "Ready all the time");
        assert_eq!(codes(|node| node.boot = since(UnixSeconds(NOW.0 + 61)), false), ["S014"]);
        assert_eq!(codes(|node| node.boot = Fact::Known(None), false), ["S014"]);
        assert_eq!(codes(|node| node.boot = Fact::Unknown("why".to_owned()), false), ["S014"]);
        assert_eq!(codes(|node| node.boot_id = unknown(), false), ["S014"]);
        assert_eq!(codes(|node| node.boot_id = Fact::Known("b2".to_owned()), false), ["S014"]);
        assert_eq!(codes(|node| node.name = "k3".into(), false), ["S010"], "its own node is not listed");
    }

    #[test]
    fn a_boot_is_written_once_and_a_restart_forgets_nothing() {
        let up = UnixSeconds(500);
        assert_eq!(node("k1").unwritten(&[], NOW, up), None);
        let first = Seen { boot: Fact::Known(None), ..node("k1") };
        assert_eq!(first.unwritten(&[], NOW, up).unwrap().since, up);
        assert_eq!(first.unwritten(&[], NOW, UnixSeconds(1)).unwrap().since, UnixSeconds(200));
        let rebooted = Seen { boot_id: Fact::Known("b2".to_owned()), ..node("k1") };
        assert_eq!(rebooted.unwritten(&[], NOW, up), Some(Boot { id: "b2".to_owned(), since: NOW }));
        let silent = Seen { boot_id: Fact::Unknown("why".to_owned()), ..node("k1") };
        assert_eq!(silent.unwritten(&[], NOW, up), None);
    }

    /// A clock that is behind after a boot, as one without a battery is, lets nobody go earlier.
    #[test]
    fn a_boot_is_not_older_than_what_is_written_anywhere() {
        let rebooted = Seen { boot_id: Fact::Known("b2".to_owned()), ..node("k1") };
        let since = |own: &Seen, all: &[Seen], now| own.unwritten(all, UnixSeconds(now), UnixSeconds(1)).unwrap().since;
        assert_eq!(since(&rebooted, &[], 50), UnixSeconds(100), "the boot before");
        assert_eq!(since(&rebooted, &[rebooted.clone(), node("k2")], 50), UnixSeconds(200), "k2 became Ready");
        let young =
            Seen { boot: Fact::Known(Some(Boot { id: "b1".to_owned(), since: UnixSeconds(300) })), ..node("k3") };
        assert_eq!(since(&rebooted, &[rebooted.clone(), node("k2"), young.clone()], 50), UnixSeconds(300));
        assert_eq!(since(&rebooted, &[young], 400), UnixSeconds(400));
    }

    #[test]
    fn a_node_is_read_and_what_it_does_not_say_is_unknown() {
        let read = |status: serde_json::Value| {
            let node = json!({"metadata": {"name": "k1", "annotations": {BOOT: "{\"id\":\"b\",\"since\":5}"}}, "status": status});
            Seen::of(&serde_json::from_value(node).unwrap()).unwrap()
        };
        let whole = read(json!({
            "nodeInfo": {"bootID": "b", "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
                "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""},
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:09Z"}],
        }));
        assert_eq!(whole.ready, Fact::Known((true, UnixSeconds(9))));
        assert_eq!(whole.boot, Fact::Known(Some(Boot { id: "b".to_owned(), since: UnixSeconds(5) })));
        let nothing = read(json!({}));
        assert!(nothing.ready.known().is_none() && nothing.boot_id.known().is_none());
        let unknown = read(
            json!({"conditions": [{"type": "Ready", "status": "Unknown", "lastTransitionTime": "1970-01-01T00:00:09Z"}]}),
        );
        assert!(unknown.ready.known().is_none());
    }
}
