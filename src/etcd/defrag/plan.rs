//! Which members are worth a defragmentation, in which order, and what each needs. Pure.

use crate::config;
use crate::etcd::members::list::{called, mebibytes};
use crate::etcd::members::plan::leader;
use crate::seen::Seen;
use comfy_table::{Table, presets};
use quorum_safety::{
    API_VERSION, Code, Disruption, EtcdView, Fact, InFlight, Lock, MemberId, Mine, NodeName, Observation, Policy,
    Reason, Role, StatusSample, UnixSeconds, judge, voters,
};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::time::Duration;

/// What the name of an operation begins with, in Leases.
const OPERATION: &str = "defrag-";
/// Bytes that etcd may write beside the copy: two segments of its log, made beforehand (`server/storage/wal`, SegmentSizeBytes).
const LOG: u64 = 128 << 20;
/// What is wrong with a member and says nothing of whether it serves again.
const OF_NO_MATTER: [Code; 4] =
    [Code::AlarmActive, Code::CertificateExpiring, Code::CertificateUnknown, Code::MemberNodeUnknown];

/// What a member says of its database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Database {
    /// The size of its file, bytes.
    pub size: u64,
    /// How much of that is in use.
    pub in_use: u64,
}

impl Database {
    /// What lies free in it.
    pub const fn gain(self) -> u64 {
        self.size.saturating_sub(self.in_use)
    }

    /// The same in percent of its size.
    pub fn fragmented(self) -> u64 {
        let percent = u128::from(self.gain()).saturating_mul(100).checked_div(u128::from(self.size));
        percent.and_then(|percent| u64::try_from(percent).ok()).unwrap_or(0)
    }

    /// Whether a defragmentation pays, and why or why not.
    pub fn pays(self, config: &config::Defrag) -> (bool, String) {
        let percent = self.fragmented();
        if self.size < config.least_size {
            (false, format!("less than {} are not worth it", mebibytes(config.least_size)))
        } else if percent < config.fragmented {
            (false, format!("{percent} % lie free, less than {} %", config.fragmented))
        } else {
            (true, format!("{percent} % lie free"))
        }
    }

    /// Free bytes that the disk must have: etcd copies what is in use before it removes the old file, and goes on writing its log.
    pub const fn room(self) -> u64 {
        // A tenth more for pages that the copy leaves half empty (etcd fills them to nine tenths).
        self.in_use.saturating_add(self.in_use / 8).saturating_add(LOG)
    }
}

/// What is to be defragmented, as `quorate etcd defrag --dry-run -o json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    api_version: String,
    kind: String,
    /// When it was seen.
    pub taken_at: UnixSeconds,
    /// All members: those whose turn comes in their order, then the others.
    pub members: Vec<Row>,
    /// What stands against the first of them now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
}

/// A member, and whether it is worth it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its id.
    pub id: MemberId,
    /// Its name and id, for people.
    pub member: String,
    /// The node that it runs on.
    pub node: Fact<NodeName>,
    /// Whether it leads.
    pub leads: bool,
    /// What it says of its database.
    pub database: Fact<Database>,
    /// Bytes that a defragmentation would give back.
    pub gain: u64,
    /// The same in percent of the size.
    pub fragmented: u64,
    /// When its turn comes, from 1; none when it is left alone.
    pub turn: Option<usize>,
    /// Why.
    pub because: String,
}

impl Plan {
    /// Reads it from what was seen. Whoever is half done goes first; then those that follow, the leader last, after it handed over.
    pub fn of(seen: &Seen, config: &config::Config) -> Self {
        let Seen { observation, in_flight } = seen;
        let (begun, leads) = (begun(in_flight), leader(&observation.etcd));
        let members = observation.etcd.membership.known().map_or(&[][..], |list| list.members());
        let mut rows: Vec<(bool, Row)> = members
            .iter()
            .map(|entry| {
                let database = database(&observation.etcd, entry.id);
                let (due, because) = match (&database, entry.role) {
                    _ if begun == Some(entry.id) => (true, "it is half done".to_owned()),
                    (_, Role::Learner) => (false, "etcd defragments no learner while it runs".to_owned()),
                    (Fact::Known(database), Role::Voter) => database.pays(&config.defrag),
                    (Fact::Unknown(why), Role::Voter) => (false, format!("it does not answer: {why}")),
                };
                let known = database.known().copied();
                let row = Row {
                    id: entry.id,
                    member: called(entry),
                    node: node(&observation.etcd, entry.id),
                    leads: leads == Some(entry.id),
                    gain: known.map_or(0, Database::gain),
                    fragmented: known.map_or(0, Database::fragmented),
                    database,
                    turn: None,
                    because,
                };
                (due, row)
            })
            .collect();
        rows.sort_by_key(|(due, row)| (!due, begun != Some(row.id), row.leads, row.member.clone()));
        let members = rows.into_iter().zip(1..).map(|((due, row), turn)| Row { turn: due.then_some(turn), ..row });
        let plan = Self {
            api_version: API_VERSION.to_owned(),
            kind: "EtcdDefragPlan".to_owned(),
            taken_at: observation.taken_at,
            members: members.collect(),
            reasons: Vec::new(),
        };
        let reasons = plan.due().next().map(|first| against(first, seen, config));
        Self { reasons: reasons.unwrap_or_default(), ..plan }
    }

    /// Those whose turn comes, in order.
    pub fn due(&self) -> impl Iterator<Item = &Row> {
        self.members.iter().filter(|row| row.turn.is_some())
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["TURN", "MEMBER", "NODE", "LEADER", "DB", "IN USE", "FREE", "GAIN", "WHY"]);
        for row in &self.members {
            let of =
                |figure: fn(Database) -> String| row.database.known().copied().map_or_else(|| "-".to_owned(), figure);
            table.add_row([
                row.turn.map_or_else(|| "-".to_owned(), |turn| turn.to_string()),
                row.member.clone(),
                row.node.known().map_or_else(|| "unknown".to_owned(), ToString::to_string),
                if row.leads { "yes" } else { "no" }.to_owned(),
                of(|database| mebibytes(database.size)),
                of(|database| mebibytes(database.in_use)),
                of(|database| format!("{} %", database.fragmented())),
                of(|database| mebibytes(database.gain())),
                row.because.clone(),
            ]);
        }
        let mut text = table.trim_fmt();
        if self.due().next().is_none() {
            text.push_str("\nnothing is worth it");
        } else {
            text.push_str("\nwhether the disk has room for the copy is looked at on each node before its turn");
        }
        for reason in &self.reasons {
            text.push_str(&format!("\nnot now: {reason}"));
        }
        text
    }
}

/// What the rule has against the first of them, as if its turn were now. That it leads is not against it: it hands over first.
fn against(first: &Row, seen: &Seen, config: &config::Config) -> Vec<Reason> {
    // Who goes on with it will have adopted the Lease that is held for it.
    let mine = match &seen.in_flight.control_plane {
        Fact::Known(Lock::Held(holder)) if begun(&seen.in_flight) == Some(first.id) => {
            Mine::Adopted(holder.identity.clone())
        }
        Fact::Known(_) | Fact::Unknown(_) => seen.in_flight.mine.clone(),
    };
    let in_flight = InFlight { mine, ..seen.in_flight.clone() };
    let verdict = judge(&seen.observation, &in_flight, &Disruption::Defragment(first.id), &config.policy());
    let hands_over = first.leads && successors(&seen.observation, first.id, &config.defrag).next().is_some();
    let reasons = verdict.reasons().iter();
    reasons.filter(|reason| !(hands_over && reason.code == Code::TargetLeads)).cloned().collect()
}

/// The name of the operation in the Lease: the same for whoever goes on with it.
pub fn operation(member: MemberId) -> String {
    format!("{OPERATION}{member}")
}

/// The member of a defragmentation that a Lease is held for.
pub fn begun(in_flight: &InFlight) -> Option<MemberId> {
    match &in_flight.control_plane {
        Fact::Known(Lock::Held(holder)) => member_of(&holder.operation),
        Fact::Known(Lock::Free) | Fact::Unknown(_) => None,
    }
}

fn member_of(operation: &str) -> Option<MemberId> {
    u64::from_str_radix(operation.strip_prefix(OPERATION)?, 16).ok().map(MemberId)
}

/// Of what a Lease holds: the command that goes on with it; none when it is no defragmentation.
pub fn command_of(operation: &str) -> Option<String> {
    member_of(operation).map(|_| "quorate etcd defrag".to_owned())
}

/// The member that runs on this node.
pub fn on_node(etcd: &EtcdView, wanted: &NodeName) -> Option<MemberId> {
    etcd.members.iter().find(|view| view.node.known() == Some(wanted)).map(|view| view.id)
}

fn node(etcd: &EtcdView, id: MemberId) -> Fact<NodeName> {
    let view = etcd.members.iter().find(|view| view.id == id);
    view.map_or_else(|| Fact::Unknown("it was not asked".to_owned()), |view| view.node.clone())
}

fn newest(etcd: &EtcdView, id: MemberId) -> Fact<StatusSample> {
    let view = etcd.members.iter().find(|view| view.id == id);
    view.map_or_else(|| Fact::Unknown("it was not asked".to_owned()), |view| view.second.clone())
}

/// What a member says of its database, newest.
pub fn database(etcd: &EtcdView, id: MemberId) -> Fact<Database> {
    newest(etcd, id).map(|sample| Database { size: sample.db_size, in_use: sample.db_size_in_use })
}

/// The largest database of all: of one that does not answer this is the best guess, since all hold the same.
pub fn largest(etcd: &EtcdView) -> u64 {
    let sizes = etcd.members.iter().filter_map(|view| view.second.known()).map(|sample| sample.db_size);
    sizes.max().unwrap_or(0)
}

/// How long a member may be away: etcd copies what is in use and takes as long as its disk does (4 to 7 s a
/// gigabyte have been seen, k3s#11122).
pub fn deadline(size: u64, config: &config::Defrag) -> Duration {
    let gigabytes = u32::try_from(size.div_ceil(1 << 30)).unwrap_or(u32::MAX);
    config.per_gigabyte.get().saturating_mul(gigabytes.saturating_add(1))
}

/// Who may lead in a member's place, the likeliest first: those whose own turn does not come after it, then whoever has applied most. The
/// rule decides.
pub fn successors(seen: &Observation, of: MemberId, config: &config::Defrag) -> impl Iterator<Item = MemberId> {
    let list = seen.etcd.membership.known();
    let mut fit: Vec<_> = list
        .into_iter()
        .flat_map(|list| list.voters())
        .filter(|voter| voter.id != of)
        .filter_map(|voter| Some((voter.id, newest(&seen.etcd, voter.id).known()?.clone())))
        .map(|(id, sample)| {
            let (pays, _) = Database { size: sample.db_size, in_use: sample.db_size_in_use }.pays(config);
            (pays, Reverse(sample.applied_index), id)
        })
        .collect();
    fit.sort();
    fit.into_iter().map(|(_, _, id)| id)
}

/// What a hand-over is judged by: a database that is nearly full holds a move of leadership, and must not keep its own cure away.
pub fn policy_of_hand_over(config: &config::Config) -> Policy {
    Policy { lifted: vec![Code::DatabaseNearlyFull], ..config.policy() }
}

/// What a member lacks to serve again, in words: it answers for itself, as itself, with what the others have, and reads through a majority.
/// That a client heard nothing more of its request says nothing of it.
pub fn lacks(seen: &Seen, id: MemberId, policy: &Policy) -> Option<String> {
    if let Fact::Unknown(why) = &seen.observation.etcd.membership {
        return Some(format!("who the members are is not known: {why}"));
    }
    let in_flight = InFlight { mine: Mine::Nothing, ..seen.in_flight.clone() };
    let all = voters(&seen.observation, &in_flight, policy);
    let Some((_, faults)) = all.into_iter().find(|(voter, _)| *voter == id) else {
        return Some("it is no voter any more".to_owned());
    };
    let faults: Vec<String> =
        faults.iter().filter(|fault| !OF_NO_MATTER.contains(&fault.code)).map(ToString::to_string).collect();
    (!faults.is_empty()).then(|| faults.join("; "))
}

/// What is missing of the room for the copy, in words.
pub fn short_of_room(free: u64, database: Database) -> Option<String> {
    let needed = database.room();
    (free < needed).then(|| {
        format!(
            "the copy of what is in use needs {} on the disk of its data, the log beside it included, and {} are free",
            mebibytes(needed),
            mebibytes(free)
        )
    })
}

#[cfg(test)]
mod tests;
