//! A restore as it will go, for people to read before: every step, on which node, in which order, what is kept, and how to turn back. Pure.

use super::node::Peer;
use super::step::Step;
use super::tool::BUMP;
use super::words;
use crate::cli::etcd::restore::From;
use crate::etcd::backup::manifest::Facts;
use crate::etcd::members::words::data_dir;
use quorum_safety::{API_VERSION, NodeName};
use serde::Serialize;

/// What stands for the time at which a restore begins, after which what it keeps is named.
const ID: &str = "TIME";

/// All of it, as `quorate etcd restore plan -o json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Plan {
    api_version: &'static str,
    kind: &'static str,
    /// What is restored, as it was typed.
    pub(super) from: String,
    /// What it holds.
    pub(super) snapshot: Facts,
    /// The node that is restored.
    pub(super) on: NodeName,
    /// Where the list of nodes comes from.
    pub(super) nodes_from: &'static str,
    /// The steps, in order.
    pub(super) steps: Vec<Planned>,
    /// How to turn back, a line each.
    pub(super) back: Vec<String>,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Planned {
    /// The node it is done on.
    pub(super) node: NodeName,
    /// What it does.
    pub(super) what: String,
    /// What is typed for it, a line each.
    pub(super) commands: Vec<String>,
    /// What is done by that, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) parts: Vec<String>,
    /// What is kept, and where.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) kept: Vec<String>,
}

/// The plan for these nodes: `on` is restored, the others join it one after the other.
pub(super) fn plan(from: &From, snapshot: &Facts, on: &Peer, others: &[Peer], nodes_from: &'static str) -> Plan {
    let mut steps: Vec<Planned> = others.iter().map(stop).collect();
    steps.push(Planned {
        node: on.name.clone(),
        what: "it is restored, as a cluster of one member with an identity of its own".to_owned(),
        commands: vec![
            format!("on {}, as root:", on.name),
            format!("  quorate etcd restore run {}--here", snapshot_words(from)),
        ],
        parts: Step::ALL.iter().map(|step| part(*step, snapshot)).collect(),
        kept: vec![
            format!("the manifests, in /var/lib/quorate/aside/restore-{ID}"),
            format!("etcd's data, in its data directory as member-before-{ID}"),
        ],
    });
    steps.extend(others.iter().map(|other| rejoin(other, on)));
    Plan {
        api_version: API_VERSION,
        kind: "RestorePlan",
        from: from.file.clone(),
        snapshot: snapshot.clone(),
        on: on.name.clone(),
        nodes_from,
        steps,
        back: back(on, others),
    }
}

/// What is typed of it on the node, a blank behind each: what opens it is needed there, too.
fn snapshot_words(From { file, identity }: &From) -> String {
    identity.iter().fold(format!("{file} "), |words, key| format!("{words}--identity {} ", key.display()))
}

fn stop(other: &Peer) -> Planned {
    Planned {
        node: other.name.clone(),
        what: "it is stopped: two clusters would serve otherwise".to_owned(),
        commands: words::stop(&other.name),
        parts: Vec::new(),
        kept: vec!["the manifests, in /var/lib/quorate/aside; etcd's data, where it is".to_owned()],
    }
}

fn rejoin(other: &Peer, on: &Peer) -> Planned {
    let mut commands = vec![
        format!("on {}, as root, first: it says when the member list of the others is whole, and names TIME", on.name),
        format!("  quorate etcd restore join {} --here", other.name),
    ];
    commands.extend(words::rejoin(other, ID));
    Planned {
        node: other.name.clone(),
        what: "it joins: its data goes aside, kubeadm adds it as a learner and promotes it".to_owned(),
        commands,
        parts: Vec::new(),
        kept: vec![format!("its data, in its data directory as member-before-{ID}")],
    }
}

fn part(step: Step, snapshot: &Facts) -> String {
    let more = match step {
        Step::Restore => format!(
            "; revision {} becomes {}, and all before it counts as compacted",
            snapshot.revision,
            snapshot.revision.saturating_add(BUMP)
        ),
        Step::Harmless => "; the kill switch stays engaged until somebody deletes it".to_owned(),
        Step::Keep
        | Step::Tool
        | Step::Stop
        | Step::Aside
        | Step::Etcd
        | Step::Apiserver
        | Step::Controllers
        | Step::Kubelet => String::new(),
    };
    format!("{}{more}", step.title())
}

fn back(on: &Peer, others: &[Peer]) -> Vec<String> {
    let mut lines = vec![format!("on {}, as root:", on.name)];
    lines.extend(words::stop(&on.name).into_iter().skip(1));
    lines.extend([
        format!("  {}", data_dir(&format!("/var/lib/quorate/aside/restore-{ID}"))),
        format!("  test ! -e \"$data/member-before-{ID}\" || {{ mv \"$data/member\" \"$data/member-restored-{ID}\"; mv \"$data/member-before-{ID}\" \"$data/member\"; }}"),
        format!("  cp -p /var/lib/quorate/aside/restore-{ID}/*.yaml /etc/kubernetes/manifests/; rm -f /var/lib/quorate/restore.begun"),
    ]);
    for other in others {
        lines.push(format!(
            "on {}, as root: the same, with its manifests in /var/lib/quorate/aside; its data is aside only if it has joined",
            other.name
        ));
    }
    lines.push(
        "then what was there before is there again, and whatever was written to the restored cluster is not".to_owned(),
    );
    lines
}

impl Plan {
    /// For people.
    pub(super) fn text(&self) -> String {
        let Facts { revision, keys, .. } = &self.snapshot;
        let keys = keys.map_or_else(|| "too many keys to be counted".to_owned(), |keys| format!("{keys} keys"));
        let mut lines = vec![
            format!("restore of {}: revision {revision}, {keys}", self.from),
            format!("the nodes are {}", self.nodes_from),
            "everything that was written after the snapshot was taken is lost; nothing is deleted".to_owned(),
        ];
        for (number, step) in (1_usize..).zip(&self.steps) {
            lines.push(String::new());
            lines.push(format!("{number}. {}: {}", step.node, step.what));
            lines.extend(step.commands.iter().map(|line| format!("   {line}")));
            lines.extend((1_usize..).zip(&step.parts).map(|(part, what)| format!("     {number}.{part} {what}")));
            lines.extend(step.kept.iter().map(|kept| format!("   kept: {kept}")));
        }
        lines.push(String::new());
        lines.push("to turn back, at any time:".to_owned());
        lines.extend(self.back.iter().map(|line| format!("   {line}")));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::restore::journal::tests::facts;

    fn of(nodes: usize) -> Plan {
        let peers: Vec<Peer> =
            (1..=nodes).map(|n| Peer { name: NodeName(format!("k{n}")), address: format!("10.10.0.1{n}") }).collect();
        let (on, others) = peers.split_first().unwrap();
        let from = From { file: "/root/etcd.db".to_owned(), identity: vec!["key.txt".into()] };
        plan(&from, &facts(), on, others, "those of the API")
    }

    #[test]
    fn one_node_is_restored_alone_and_of_more_the_others_are_stopped_before_and_join_after() {
        for (nodes, wanted) in [
            (1, &["k1"][..]),
            (3, &["k2", "k3", "k1", "k2", "k3"]),
            (5, &["k2", "k3", "k4", "k5", "k1", "k2", "k3", "k4", "k5"]),
        ] {
            let plan = of(nodes);
            let order: Vec<&str> = plan.steps.iter().map(|step| step.node.0.as_str()).collect();
            assert_eq!(order, wanted);
            let restored = plan.steps.iter().find(|step| !step.parts.is_empty()).unwrap();
            assert_eq!((restored.node.0.as_str(), restored.parts.len()), ("k1", Step::ALL.len()));
            assert!(plan.steps.iter().all(|step| !step.kept.is_empty() && !step.commands.is_empty()));
        }
    }

    #[test]
    fn it_says_what_is_kept_and_how_to_turn_back_and_deletes_no_data() {
        let text = of(3).text();
        for part in [
            "restore of /root/etcd.db: revision 738, 2 keys\n",
            "everything that was written after the snapshot was taken is lost",
            "1. k2: it is stopped",
            "3. k1: it is restored",
            "quorate etcd restore run /root/etcd.db --identity key.txt --here",
            "revision 738 becomes 1000000738",
            "4. k2: it joins",
            "quorate etcd restore join k2 --here",
            "kept: etcd's data, in its data directory as member-before-TIME",
            "to turn back, at any time:",
            r#"mv "$data/member-before-TIME" "$data/member";"#,
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        for line in text.lines().filter(|line| line.contains("rm ")) {
            assert!(line.ends_with("rm -f /var/lib/quorate/restore.begun"), "{line}");
        }
    }
}
