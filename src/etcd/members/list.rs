//! `quorate etcd members list`: who the members are, what each says of itself, and what is strange.

use crate::observe::etcd::host;
use crate::seen::Seen;
use comfy_table::{Table, presets};
use quorum_safety::{
    API_VERSION, AlarmKind, EtcdView, Fact, Member, MemberId, MemberView, NodeName, Observation, Role, StatusSample,
    UnixSeconds,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// All members, as `quorate etcd members list -o json` prints them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberList {
    api_version: String,
    kind: String,
    /// When it was seen.
    pub taken_at: UnixSeconds,
    /// Why the list is not proven by a linearizable read, if it is not: then it is what some member has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproven: Option<String>,
    /// The members, by id.
    pub members: Vec<Row>,
    /// What is strange beside the members, a line each.
    pub strange: Vec<String>,
}

/// A member, and what it says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its entry in the list; without a name it has never started.
    #[serde(flatten)]
    pub entry: Member,
    /// Whether it has ever started; nothing is said of whether it lives.
    pub started: bool,
    /// The node whose InternalIP its peer URL names.
    pub node: Fact<NodeName>,
    /// Whether it is the leader in its own view.
    pub leads: bool,
    /// Its newest answer.
    pub status: Fact<StatusSample>,
    /// The alarms about it, of whoever told: `NOSPACE`, `CORRUPT`, a number.
    pub alarms: Vec<String>,
    /// What is strange, a line each.
    pub strange: Vec<String>,
}

impl MemberList {
    /// The list that was seen.
    pub fn of(seen: &Seen) -> Self {
        let Observation { etcd, nodes, taken_at, .. } = &seen.observation;
        let (entries, unproven) = entries(etcd);
        let known = nodes.known().is_some();
        let members: Vec<Row> = entries.iter().map(|entry| row(entry, &entries, etcd, known)).collect();
        let strange = match nodes {
            Fact::Known(nodes) => {
                let hosts: BTreeSet<&NodeName> = members.iter().filter_map(|member| member.node.known()).collect();
                let without = nodes.iter().filter(|node| node.control_plane && !hosts.contains(&node.name));
                without.map(|node| format!("control plane node {} has no member", node.name)).collect()
            }
            Fact::Unknown(why) => vec![format!("on which nodes they run is not known: {why}")],
        };
        Self {
            api_version: API_VERSION.to_owned(),
            kind: "EtcdMembers".to_owned(),
            taken_at: *taken_at,
            unproven,
            members,
            strange,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "ID", "NAME", "ROLE", "NODE", "PEER", "CLIENT", "VERSION", "LEADER", "TERM", "INDEX", "APPLIED", "DB",
            "IN USE", "ALARMS",
        ]);
        for member in &self.members {
            let Member { id, name, role, peer_urls, client_urls } = &member.entry;
            let of = |field: fn(&StatusSample) -> String| member.status.known().map_or_else(|| "-".to_owned(), field);
            let role = match (role, member.started) {
                (Role::Voter, true) => "voter",
                (Role::Learner, true) => "learner",
                (Role::Voter, false) => "voter, unstarted",
                (Role::Learner, false) => "learner, unstarted",
            };
            table.add_row([
                id.to_string(),
                dash(name),
                role.to_owned(),
                member.node.known().map_or_else(|| "unknown".to_owned(), ToString::to_string),
                dash(&peer_urls.join(" ")),
                dash(&client_urls.join(" ")),
                of(|sample| sample.version.clone()),
                if member.leads { "yes".to_owned() } else { of(|_| "no".to_owned()) },
                of(|sample| sample.term.to_string()),
                of(|sample| sample.raft_index.to_string()),
                of(|sample| sample.applied_index.to_string()),
                of(|sample| mebibytes(sample.db_size)),
                of(|sample| mebibytes(sample.db_size_in_use)),
                dash(&member.alarms.join(" ")),
            ]);
        }
        let mut text = table.trim_fmt();
        if let Some(why) = &self.unproven {
            text.push_str(&format!("\nno majority has confirmed this list: {why}"));
        }
        for member in &self.members {
            for strange in &member.strange {
                text.push_str(&format!("\n{}: {strange}", called(&member.entry)));
            }
        }
        for strange in &self.strange {
            text.push_str(&format!("\n{strange}"));
        }
        text
    }

    /// One sentence.
    pub fn summary(&self) -> String {
        let voters = self.members.iter().filter(|member| member.entry.role == Role::Voter).count();
        let answered = self.members.iter().filter(|member| member.status.known().is_some()).count();
        let strange = self.strange.len() + self.members.iter().map(|member| member.strange.len()).sum::<usize>();
        format!("{} members, {voters} voters, {answered} answer, {strange} things are strange", self.members.len())
    }
}

/// A member for people: its name, or its id while it has none.
pub(in crate::etcd) fn called(member: &Member) -> String {
    if member.has_started() { format!("{} ({})", member.name, member.id) } else { format!("member {}", member.id) }
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// Bytes for people.
pub(in crate::etcd) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// The list that a majority has confirmed; else the longest that some member has, and why it is no more than that.
fn entries(etcd: &EtcdView) -> (Vec<Member>, Option<String>) {
    match &etcd.membership {
        Fact::Known(membership) => (membership.members().to_vec(), None),
        Fact::Unknown(why) => {
            let lists = etcd.members.iter().filter_map(|view| view.member_list.known());
            (lists.max_by_key(|list| list.len()).cloned().unwrap_or_default(), Some(why.clone()))
        }
    }
}

fn row(entry: &Member, all: &[Member], etcd: &EtcdView, nodes_known: bool) -> Row {
    let view = etcd.members.iter().find(|view| view.id == entry.id);
    let node = view.map_or_else(|| Fact::Unknown("it was not asked".to_owned()), |view| view.node.clone());
    let status = view.map_or_else(|| Fact::Unknown("it was not asked".to_owned()), newest);
    let told = etcd.members.iter().filter_map(|view| view.alarms.known()).flatten();
    let alarms: BTreeSet<String> = told
        .filter(|alarm| alarm.member == entry.id)
        .map(|alarm| match &alarm.kind {
            AlarmKind::NoSpace => "NOSPACE".to_owned(),
            AlarmKind::Corrupt => "CORRUPT".to_owned(),
            AlarmKind::Other(number) => number.to_string(),
        })
        .collect();
    let leads = status.known().is_some_and(|sample| sample.leader == Some(entry.id));
    let mut strange = strange(entry, all, &status, view);
    strange.extend(placed(entry, &node).filter(|_| nodes_known));
    Row {
        entry: entry.clone(),
        started: entry.has_started(),
        node,
        leads,
        status,
        alarms: alarms.into_iter().collect(),
        strange,
    }
}

/// What is strange about where it runs.
fn placed(entry: &Member, node: &Fact<NodeName>) -> Option<String> {
    match node {
        Fact::Unknown(why) => Some(format!("runs nobody knows where, or its node is gone: {why}")),
        Fact::Known(node) => (entry.has_started() && entry.name != node.0)
            .then(|| format!("runs on node {node}, after which kubeadm would have named it")),
    }
}

fn newest(view: &MemberView) -> Fact<StatusSample> {
    if view.second.known().is_some() { view.second.clone() } else { view.first.clone() }
}

fn strange(entry: &Member, all: &[Member], status: &Fact<StatusSample>, view: Option<&MemberView>) -> Vec<String> {
    let mut strange = Vec::new();
    let others = || all.iter().filter(|other| other.id != entry.id);
    let ids = |of: Vec<MemberId>| of.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if entry.has_started() {
        let same: Vec<MemberId> = others().filter(|other| other.name == entry.name).map(|other| other.id).collect();
        if !same.is_empty() {
            strange.push(format!("has the name of {}", ids(same)));
        }
    } else {
        strange.push("has never started: a join is under way, or died half way".to_owned());
    }
    let same: Vec<MemberId> = others()
        .filter(|other| other.peer_urls.iter().any(|url| entry.peer_urls.contains(url)))
        .map(|other| other.id)
        .collect();
    if !same.is_empty() {
        strange.push(format!("has the peer URL of {}", ids(same)));
    }
    if let [url] = entry.peer_urls.as_slice()
        && !url.starts_with("https://")
    {
        strange.push(format!("its peer URL {url} is not https"));
    } else if entry.peer_urls.len() != 1 {
        strange.push(format!("has {} peer URLs, kubeadm gives one", entry.peer_urls.len()));
    }
    let hosts = |urls: &[String]| urls.iter().filter_map(|url| host(url)).collect::<BTreeSet<String>>();
    let (peer, client) = (hosts(&entry.peer_urls), hosts(&entry.client_urls));
    if entry.has_started() && peer.is_disjoint(&client) {
        strange.push("its peer and client URLs name different hosts".to_owned());
    }
    match status {
        Fact::Unknown(why) if entry.has_started() => strange.push(format!("does not answer: {why}")),
        Fact::Unknown(_) => {}
        Fact::Known(sample) if sample.member_id != entry.id => {
            strange.push(format!("member {} answers in its place", sample.member_id))
        }
        Fact::Known(sample) if sample.leader.is_none() => strange.push("knows no leader".to_owned()),
        Fact::Known(_) => {}
    }
    let own = view.and_then(|view| view.member_list.known()).map(|own| own.iter().collect::<BTreeSet<_>>());
    if own.is_some_and(|own| own != all.iter().collect()) {
        strange.push("has another member list".to_owned());
    }
    strange
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::fixture::{Cluster, healthy, id, unknown};

    fn list(cluster: Cluster) -> MemberList {
        MemberList::of(&Seen { observation: cluster.seen, in_flight: cluster.in_flight })
    }

    #[test]
    fn a_whole_cluster_has_nothing_strange_and_each_oddity_is_told() {
        let whole = list(healthy(3));
        assert_eq!(whole.summary(), "3 members, 3 voters, 3 answer, 0 things are strange");
        assert_eq!(whole.members.iter().filter(|member| member.leads).count(), 1);
        let stale =
            |cluster: Cluster| cluster.on_member(2, |view| view.node = Fact::Unknown("no node has 10.10.0.12".into()));
        for (cluster, wanted) in [
            (healthy(3).on_list(|list| list[1].name.clear()), "member a2: has never started"),
            (stale(healthy(3)), "k2 (a2): runs nobody knows where, or its node is gone: no node has 10.10.0.12"),
            (healthy(3).on_list(|list| list[1].name = "k1".into()), "k1 (a2): has the name of a1"),
            (
                healthy(3).on_list(|list| list[1].peer_urls = list[0].peer_urls.clone()),
                "k2 (a2): has the peer URL of a1",
            ),
            (healthy(3).on_list(|list| list[1].peer_urls = vec!["http://10.10.0.12:2380".into()]), "is not https"),
            (healthy(3).on_list(|list| list[1].peer_urls.clear()), "has 0 peer URLs"),
            (
                healthy(3).on_list(|list| list[1].client_urls = vec!["https://10.10.0.9:2379".into()]),
                "name different hosts",
            ),
            (healthy(3).on_member(2, |view| view.node = Fact::Known("w1".into())), "runs on node w1, after which"),
            (
                healthy(3).on_member(2, |view| view.node = Fact::Known("w1".into())),
                "control plane node k2 has no member",
            ),
            (
                stale(healthy(3)).with(|cluster| cluster.seen.nodes = unknown()),
                "\non which nodes they run is not known: no answer within 3 s",
            ),
            (healthy(3).member_dead(2), "k2 (a2): does not answer: no answer within 3 s"),
            (healthy(3).on_samples(2, |sample| sample.member_id = id(9)), "member a9 answers in its place"),
            (healthy(3).on_samples(2, |sample| sample.leader = None), "knows no leader"),
            (healthy(3).on_member(2, |view| view.member_list = Fact::Known(Vec::new())), "has another member list"),
        ] {
            let text = list(cluster).text();
            assert!(text.contains(wanted), "{wanted}:\n{text}");
        }
    }

    #[test]
    fn without_a_quorum_the_list_of_a_member_is_shown_and_said_to_be_no_more() {
        let lost =
            list(healthy(3).member_dead(1).member_dead(2).with(|cluster| cluster.seen.etcd.membership = unknown()));
        assert_eq!(lost.members.len(), 3);
        assert!(lost.text().contains("no majority has confirmed this list: no answer within 3 s"), "{}", lost.text());
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let list = list(healthy(3).learner());
        let json = serde_json::to_value(&list).unwrap();
        assert_eq!((&json["kind"], &json["members"][3]["role"]), (&"EtcdMembers".into(), &"learner".into()));
        assert_eq!(json["members"][0]["id"], "a1");
    }
}
