//! What a change of members comes to, and what comes next of it, read from the member list alone: whoever takes it up needs to know no
//! more. Pure.

use crate::observe::etcd::{address, peer_url};
use crate::upgrade::passing::passes;
use quorum_safety::{
    Code, Disruption, EtcdView, Fact, InFlight, Lock, Member, MemberId, Membership, NodeName, NodeView, Observation,
    Policy, Reason, Role,
};
use serde::{Deserialize, Serialize};

/// What the name of an operation begins with, in Leases and on this host.
const OPERATION: &str = "members-";

/// A change of members, with everything that is needed to go on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Wanted {
    /// A learner for a node.
    Add {
        /// Where it will be reached by its peers.
        peer_url: String,
    },
    /// This learner votes.
    Promote(MemberId),
    /// This member goes.
    Remove(MemberId),
    /// This member goes, and another comes in its place.
    Replace {
        /// The one that goes.
        old: MemberId,
        /// Where the new one will be reached by its peers.
        peer_url: String,
    },
    /// This voter leads.
    MoveLeader(MemberId),
}

/// A change of members, and the node it is about: where the member runs, else its name; of leadership, where it leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Order {
    /// What is wanted.
    pub wanted: Wanted,
    /// The node.
    pub node: NodeName,
}

impl Wanted {
    /// The subcommand.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Add { .. } => "add",
            Self::Promote(_) => "promote",
            Self::Remove(_) => "remove",
            Self::Replace { .. } => "replace",
            Self::MoveLeader(_) => "move-leader",
        }
    }

    /// The member that it is about; none for one that is still to come.
    pub const fn member(&self) -> Option<MemberId> {
        match self {
            Self::Add { .. } => None,
            Self::Promote(id) | Self::Remove(id) | Self::Replace { old: id, .. } | Self::MoveLeader(id) => Some(*id),
        }
    }

    /// What the rule is asked before anything of it is done.
    pub const fn disruption(&self) -> Disruption {
        match self {
            Self::Add { .. } => Disruption::AddLearner,
            Self::Promote(id) => Disruption::Promote(*id),
            Self::Remove(id) => Disruption::Remove(*id),
            Self::Replace { old, .. } => Disruption::Replace(*old),
            Self::MoveLeader(id) => Disruption::MoveLeader(*id),
        }
    }
}

impl Order {
    /// Its name in the Lease: the same for whoever goes on with it.
    pub fn operation(&self) -> String {
        let verb = self.wanted.verb();
        match self.wanted.member() {
            Some(id) => format!("{OPERATION}{verb}-{id}"),
            None => format!("{OPERATION}{verb}"),
        }
    }

    /// The arguments that ask for exactly this, whatever the member list says by then.
    pub fn args(&self) -> Vec<String> {
        let mut args = ["etcd", "members", self.wanted.verb()].map(str::to_owned).to_vec();
        args.extend(self.wanted.member().map(|id| id.to_string()));
        match &self.wanted {
            Wanted::Add { peer_url } | Wanted::Replace { peer_url, .. } => {
                args.extend([format!("--node={}", self.node), format!("--peer-url={peer_url}")]);
            }
            Wanted::Promote(_) | Wanted::Remove(_) | Wanted::MoveLeader(_) => {}
        }
        args
    }

    /// The same as a command for people.
    pub fn command(&self) -> String {
        format!("quorate {}", self.args().join(" "))
    }
}

/// Of what a Lease holds: the command that goes on with it; none when it is no change of members.
pub fn command_of(operation: &str, target: &NodeName) -> Option<String> {
    let rest = operation.strip_prefix(OPERATION)?;
    let (verb, id) = ["move-leader", "promote", "replace", "remove", "add"]
        .into_iter()
        .find_map(|verb| Some((verb, rest.strip_prefix(verb)?)))?;
    let node = if matches!(verb, "add" | "replace") { format!(" --node={target}") } else { String::new() };
    Some(format!("quorate etcd members {verb}{}{node}", id.replacen('-', " ", 1)))
}

/// What was typed.
#[derive(Clone, Copy, Debug)]
pub enum Typed<'a> {
    /// `add --node NODE [--peer-url URL]`
    Add(&'a str, Option<&'a str>),
    /// `promote MEMBER`
    Promote(&'a str),
    /// `remove MEMBER`
    Remove(&'a str),
    /// `replace MEMBER [--node NODE] [--peer-url URL]`
    Replace(&'a str, Option<&'a str>, Option<&'a str>),
    /// `move-leader MEMBER`
    MoveLeader(&'a str),
}

/// Finds out who is meant. `begun` is what is half done already: its member may be gone from the list, and another may have its name.
///
/// # Errors
/// In one line, when nobody is called that, or several are, or where the new member runs is not known.
pub fn order(typed: Typed<'_>, seen: &Observation, begun: Option<&Begun>) -> Result<Order, String> {
    let of = |member: &str, wanted: fn(MemberId) -> Wanted| {
        let Found { id, node, .. } = found(typed.verb(), member, seen, begun)?;
        Ok(Order { wanted: wanted(id), node })
    };
    match typed {
        Typed::Promote(member) => of(member, Wanted::Promote),
        Typed::Remove(member) => of(member, Wanted::Remove),
        // About the node that it leaves: the rule lets nobody lead whom the Lease names, since that one is about to go down.
        Typed::MoveLeader(member) => {
            let Found { id, node, .. } = found(typed.verb(), member, seen, begun)?;
            let goes_on = begun.is_some_and(|begun| begun.member(typed.verb()) == Some(id));
            let node = match leader(&seen.etcd) {
                _ if goes_on => node,
                Some(leader) => node_of(seen, leader),
                None => NodeName::from("nobody"),
            };
            Ok(Order { wanted: Wanted::MoveLeader(id), node })
        }
        Typed::Add(node, peer_url) => {
            let node = NodeName::from(node);
            let peer_url = match peer_url {
                Some(url) => checked(url)?,
                None => peer_url_on(seen, &node)?,
            };
            Ok(Order { wanted: Wanted::Add { peer_url }, node })
        }
        Typed::Replace(member, on, peer_url) => {
            let Found { id: old, node, peer_url: known } = found(typed.verb(), member, seen, begun)?;
            let elsewhere = on.map(NodeName::from).filter(|on| *on != node);
            let peer_url = match (peer_url, &elsewhere, known) {
                (Some(url), _, _) => checked(url)?,
                (None, None, Some(known)) => known,
                (None, Some(on), _) => peer_url_on(seen, on)?,
                (None, None, None) => peer_url_on(seen, &node)?,
            };
            Ok(Order { wanted: Wanted::Replace { old, peer_url }, node: elsewhere.unwrap_or(node) })
        }
    }
}

/// The same for an order that names everything by itself, as the one of a Job does: its member may be gone since it was made.
///
/// # Errors
/// As above, but that a member which is named by its id need not be there.
pub fn exactly(typed: Typed<'_>, begun: Option<&Begun>, seen: &Observation) -> Result<Order, String> {
    let gone = |member: &str| {
        let id = u64::from_str_radix(member, 16).ok().map(MemberId)?;
        let listed = seen.etcd.membership.known().is_some_and(|list| list.get(id).is_some());
        (!listed).then_some(id)
    };
    match typed {
        Typed::Remove(member) => match gone(member) {
            Some(id) => {
                let node = begun.filter(|begun| begun.member("remove") == Some(id)).map(|begun| begun.node.clone());
                let node = node.unwrap_or_else(|| NodeName(format!("member-{id}")));
                Ok(Order { wanted: Wanted::Remove(id), node })
            }
            None => order(typed, seen, begun),
        },
        Typed::Replace(member, Some(node), Some(url)) => match gone(member) {
            Some(old) => Ok(Order { wanted: Wanted::Replace { old, peer_url: checked(url)? }, node: node.into() }),
            None => order(typed, seen, begun),
        },
        Typed::Add(..) | Typed::Promote(_) | Typed::Replace(..) | Typed::MoveLeader(_) => order(typed, seen, begun),
    }
}

impl Typed<'_> {
    const fn verb(&self) -> &'static str {
        match self {
            Self::Add(..) => "add",
            Self::Promote(_) => "promote",
            Self::Remove(_) => "remove",
            Self::Replace(..) => "replace",
            Self::MoveLeader(_) => "move-leader",
        }
    }
}

/// A change of members that has begun, as the Lease or the mark of this host says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The operation.
    pub operation: String,
    /// The node it is about.
    pub node: NodeName,
    /// Where the new member will be reached, where that is kept.
    pub peer_url: Option<String>,
}

impl Begun {
    /// What the Lease of the control plane is held for, if it is a change of members.
    pub fn of(in_flight: &InFlight) -> Option<Self> {
        match &in_flight.control_plane {
            Fact::Known(Lock::Held(holder)) if holder.operation.starts_with(OPERATION) => {
                Some(Self { operation: holder.operation.clone(), node: holder.target.clone(), peer_url: None })
            }
            Fact::Known(_) | Fact::Unknown(_) => None,
        }
    }

    /// The member that it is about, where it does this to one.
    fn member(&self, verb: &str) -> Option<MemberId> {
        let id = self.operation.strip_prefix(OPERATION)?.strip_prefix(verb)?.strip_prefix('-')?;
        u64::from_str_radix(id, 16).ok().map(MemberId)
    }
}

/// A member that was meant: its node, and where its peers reach it.
struct Found {
    id: MemberId,
    node: NodeName,
    peer_url: Option<String>,
}

/// What is half done comes first: whoever typed a name then means the one that it is about.
fn found(verb: &str, typed: &str, seen: &Observation, begun: Option<&Begun>) -> Result<Found, String> {
    if let Some((begun, id)) = begun.and_then(|begun| Some((begun, begun.member(verb)?)))
        && (typed == id.to_string() || (typed == begun.node.0 && verb != "move-leader"))
    {
        return Ok(Found { id, node: begun.node.clone(), peer_url: begun.peer_url.clone() });
    }
    let list = seen.etcd.membership.known().map_or(&[][..], Membership::members);
    let named =
        |member: &Member| format!("{} ({})", if member.has_started() { &member.name } else { "unnamed" }, member.id);
    let by_id = list.iter().find(|member| member.id.to_string() == typed);
    let by_name: Vec<&Member> = list.iter().filter(|member| member.has_started() && member.name == typed).collect();
    let member = match (by_id, by_name.as_slice()) {
        (Some(member), _) => member,
        (None, [member]) => *member,
        (None, []) => {
            let all: Vec<String> = list.iter().map(named).collect();
            return Err(format!("no etcd member is called `{typed}`: there are {}", all.join(", ")));
        }
        (None, several) => {
            let all: Vec<String> = several.iter().map(|member| member.id.to_string()).collect();
            return Err(format!(
                "{} members are called `{typed}`: name one by its id, {}",
                several.len(),
                all.join(" or ")
            ));
        }
    };
    Ok(Found { id: member.id, node: node_of(seen, member.id), peer_url: member.peer_urls.first().cloned() })
}

/// Where a member runs, else its name.
fn node_of(seen: &Observation, id: MemberId) -> NodeName {
    let view = seen.etcd.members.iter().find(|view| view.id == id).and_then(|view| view.node.known());
    let entry = seen.etcd.membership.known().and_then(|list| list.get(id)).filter(|member| member.has_started());
    match (view, entry) {
        (Some(node), _) => node.clone(),
        (None, Some(member)) => NodeName(member.name.clone()),
        (None, None) => NodeName(format!("member-{id}")),
    }
}

/// Where the peers of a member on this node reach it, as kubeadm would have it.
fn peer_url_on(seen: &Observation, node: &NodeName) -> Result<String, String> {
    let nodes = seen
        .nodes
        .as_result()
        .map_err(|why| format!("the address of {node} is not known ({why}): name it by --peer-url"))?;
    let view: Option<&NodeView> = nodes.iter().find(|view| view.name == *node);
    let view = view.ok_or_else(|| {
        let names: Vec<String> = nodes.iter().map(|view| view.name.to_string()).collect();
        format!(
            "no node is called `{node}`: there are {}; for one that is not there yet name its --peer-url",
            names.join(", ")
        )
    })?;
    let address =
        view.address.as_result().map_err(|why| format!("the address of {node}: {why}: name it by --peer-url"))?;
    Ok(peer_url(address))
}

/// A peer URL as kubeadm has it: https, a host, a port, and nothing else.
fn checked(url: &str) -> Result<String, String> {
    let uri: Option<http::Uri> = url.parse().ok();
    let whole = uri.as_ref().is_some_and(|uri| {
        uri.scheme_str() == Some("https")
            && uri.port_u16().is_some()
            && matches!(uri.path(), "" | "/")
            && !url.ends_with('/')
    });
    if whole {
        Ok(url.to_owned())
    } else {
        Err(format!("`{url}` is no peer URL: expected one such as https://10.10.0.12:2380"))
    }
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This is to be changed now, when the rule permits it.
    Change(Change),
    /// This has to happen by itself, or on the node; which, in words.
    Wait(Waiting),
    /// Nothing: it is as wanted.
    Done,
}

/// One change that etcd is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The member goes.
    Remove(MemberId),
    /// A learner comes, at this peer URL.
    Add(String),
    /// The learner votes.
    Promote(MemberId),
    /// The voter leads.
    MoveLeader(MemberId),
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// That the member starts for the first time.
    Start(MemberId),
    /// That it is a voter which takes part; what it lacks, in words.
    TakesPart(MemberId, String),
}

impl Change {
    /// Its name in the record of the Lease.
    pub const fn step(&self) -> &'static str {
        match self {
            Self::Remove(_) => "remove",
            Self::Add(_) => "add",
            Self::Promote(_) => "promote",
            Self::MoveLeader(_) => "move-leader",
        }
    }

    /// What the rule is asked. The first step of a replacement is judged as the whole of it.
    pub fn disruption(&self, wanted: &Wanted) -> Disruption {
        match (self, wanted) {
            (Self::Remove(id), Wanted::Replace { .. }) => Disruption::Replace(*id),
            (Self::Remove(id), _) => Disruption::Remove(*id),
            (Self::Add(_), _) => Disruption::AddLearner,
            (Self::Promote(id), _) => Disruption::Promote(*id),
            (Self::MoveLeader(id), _) => Disruption::MoveLeader(*id),
        }
    }
}

/// Reads what comes next.
pub fn next(wanted: &Wanted, membership: &Membership, etcd: &EtcdView, policy: &Policy) -> Next {
    let at = |url: &String| membership.members().iter().find(|member| member.peer_urls.contains(url));
    match wanted {
        Wanted::Remove(id) => match membership.get(*id) {
            Some(_) => Next::Change(Change::Remove(*id)),
            None => Next::Done,
        },
        Wanted::MoveLeader(id) if leader(etcd) == Some(*id) => Next::Done,
        Wanted::MoveLeader(id) => Next::Change(Change::MoveLeader(*id)),
        Wanted::Add { peer_url } => match at(peer_url) {
            Some(_) => Next::Done,
            None => Next::Change(Change::Add(peer_url.clone())),
        },
        Wanted::Promote(id) => match membership.get(*id) {
            Some(member) if member.role == Role::Voter => takes_part(member, membership, etcd, policy),
            Some(_) | None => Next::Change(Change::Promote(*id)),
        },
        Wanted::Replace { old, .. } if membership.get(*old).is_some() => Next::Change(Change::Remove(*old)),
        Wanted::Replace { peer_url, .. } => match at(peer_url) {
            None => Next::Change(Change::Add(peer_url.clone())),
            Some(member) if !member.has_started() => Next::Wait(Waiting::Start(member.id)),
            Some(member) if member.role == Role::Learner => Next::Change(Change::Promote(member.id)),
            Some(member) => takes_part(member, membership, etcd, policy),
        },
    }
}

/// Whether something of it has been done and not all: what is announced may not have come to be.
pub fn has_begun(wanted: &Wanted, membership: &Membership) -> bool {
    match wanted {
        Wanted::Replace { old, .. } => membership.get(*old).is_none(),
        // One step: it is done, or nothing of it is.
        Wanted::Add { .. } | Wanted::Promote(_) | Wanted::Remove(_) | Wanted::MoveLeader(_) => false,
    }
}

/// The leader that those who answered name; none while they differ.
pub fn leader(etcd: &EtcdView) -> Option<MemberId> {
    let mut named = etcd.members.iter().filter_map(|view| view.second.known()).map(|sample| sample.leader);
    let first = named.next().flatten()?;
    named.all(|other| other == Some(first)).then_some(first)
}

/// A promotion is over when the new voter takes part: it says so itself, has what the others have, and reads through a majority.
fn takes_part(member: &Member, membership: &Membership, etcd: &EtcdView, policy: &Policy) -> Next {
    let lacks = |what: String| Next::Wait(Waiting::TakesPart(member.id, what));
    let Some(view) = etcd.members.iter().find(|view| view.id == member.id) else {
        return lacks("it was not asked".to_owned());
    };
    let sample = match (&view.first, &view.second) {
        (Fact::Known(_), Fact::Known(sample)) => sample,
        (Fact::Unknown(why), _) | (_, Fact::Unknown(why)) => return lacks(format!("it does not answer: {why}")),
    };
    let furthest = etcd.members.iter().filter_map(|view| view.second.known()).map(|sample| sample.raft_index).max();
    let lag = furthest.unwrap_or(sample.raft_index).saturating_sub(sample.raft_index);
    if sample.member_id != member.id || sample.is_learner {
        lacks("it does not say yet that it votes".to_owned())
    } else if sample.leader.is_none() || sample.leader != leader(etcd) {
        lacks("it knows no leader, or another one".to_owned())
    } else if lag > policy.recovered_lag {
        lacks(format!("it is {lag} entries behind, at most {} are well", policy.recovered_lag))
    } else if !view.member_list.known().is_some_and(|own| membership.is(own)) {
        lacks("it has another member list".to_owned())
    } else if let Fact::Unknown(why) = &view.linearizable_read {
        lacks(format!("a read through it was not answered: {why}"))
    } else {
        Next::Done
    }
}

/// How long reasons are worth waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// As long as somebody is at work on the learner.
    Learner,
    /// For a moment: they pass by themselves.
    Moment,
    /// They stay.
    None,
}

impl Patience {
    /// What is about the learner is waited for: to catch up, and, where one is replaced, to start, which kubeadm does, and promotes it
    /// while it is being looked at. Beside it may be what passes by itself: members that have not heard of it yet.
    pub fn with(reasons: &[Reason], wanted: &Wanted) -> Self {
        let replaces = matches!(wanted, Wanted::Replace { .. });
        let own = |reason: &&Reason| match reason.code {
            Code::LearnerLagging | Code::MemberStalled | Code::TermUnsettled => true,
            Code::LearnerNotAlive => replaces,
            _ => false,
        };
        let (own, rest): (Vec<&Reason>, Vec<&Reason>) = reasons.iter().partition(own);
        let rest: Vec<Reason> = rest.into_iter().cloned().collect();
        match (own.is_empty(), rest.is_empty()) {
            (false, true) => Self::Learner,
            (_, false) if passes(&rest) => Self::Moment,
            (_, _) => Self::None,
        }
    }
}

/// The host of a peer URL.
pub(super) fn host_of(membership: &Membership, id: MemberId) -> Option<String> {
    membership.get(id).and_then(address)
}

#[cfg(test)]
mod tests;
