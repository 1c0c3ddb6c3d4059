//! What comes next of a cure, from what was seen. Pure: each host reads the same of the same facts, so that no two of them take their turn at
//! the same time.

use super::super::plan::{Database, database};
use crate::etcd::members::list::{called, mebibytes};
use crate::etcd::members::plan::leader;
use quorum_safety::{
    Alarm, AlarmKind, Code, EtcdView, Fact, Member, MemberId, Membership, Policy, Quota, Reason, StatusSample,
};
use std::collections::BTreeSet;

/// What a database may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// How much of its quota it may fill to count as one with room again, percent.
    pub(super) fill: u64,
    /// The quota where a member does not tell its own, bytes: what this host's manifest sets for its etcd, else the configuration's.
    pub(super) otherwise: u64,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// No member has the alarm.
    Nothing,
    /// What is in the way of everything.
    Not(Vec<Reason>),
    /// The member of this host has its turn.
    Own(Own),
    /// Another member comes first.
    First(MemberId),
    /// Every member has room: the alarm of these is to be disarmed.
    Disarm(Vec<MemberId>),
}

/// The member of this host, when it has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Own {
    /// Its database.
    pub(super) database: Database,
    /// Whether it leads.
    pub(super) leads: bool,
}

impl Room {
    /// From the policy of the rule, and what the manifest of etcd on this host sets.
    pub(super) fn of(policy: &Policy, manifest: Option<&str>) -> Self {
        let set = manifest.and_then(|bytes| bytes.parse().ok());
        // 0 is etcd's word for its default, and below it for none: whoever has none raises no such alarm.
        let otherwise = set.filter(|bytes| *bytes > 0).unwrap_or(policy.assumed_quota);
        Self { fill: policy.database_fill, otherwise }
    }

    /// The quota of a member; none where it is switched off.
    pub(super) fn quota(self, sample: &StatusSample) -> Option<u64> {
        match sample.db_quota {
            Fact::Known(Quota::Bytes(bytes)) => Some(bytes),
            Fact::Known(Quota::Disabled) => None,
            Fact::Unknown(_) => Some(self.otherwise),
        }
    }

    /// Whether so many bytes leave room in a member's quota.
    fn holds(self, sample: &StatusSample, bytes: u64) -> bool {
        self.quota(sample).is_none_or(|quota| {
            u128::from(bytes).saturating_mul(100) <= u128::from(quota).saturating_mul(u128::from(self.fill))
        })
    }

    /// What is in use of a member's database and leaves no room even when nothing else is kept; in words.
    pub(super) fn filled(self, etcd: &EtcdView, id: MemberId) -> Option<String> {
        let sample = sample(etcd, id)?;
        // A tenth more for pages that the copy leaves half empty.
        let copy = sample.db_size_in_use.saturating_add(sample.db_size_in_use / 8);
        (!self.holds(sample, copy)).then(|| {
            let quota = self.quota(sample).unwrap_or(u64::MAX);
            let (in_use, quota) = (mebibytes(sample.db_size_in_use), mebibytes(quota));
            format!("{in_use} are in use of a quota of {quota}, which holds more than {} % for full", self.fill)
        })
    }
}

/// Reads it.
pub(super) fn next(etcd: &EtcdView, own: MemberId, room: Room) -> Next {
    let list = match &etcd.membership {
        Fact::Known(list) => list,
        Fact::Unknown(why) => return Next::Not(vec![Reason::new(Code::MembershipUnknown, why.clone())]),
    };
    let told = alarms(etcd);
    let others: Vec<Reason> = told.iter().filter(|alarm| alarm.kind != AlarmKind::NoSpace).map(other(list)).collect();
    if !others.is_empty() {
        return Next::Not(others);
    }
    let unknown = unknown(etcd, list);
    if told.is_empty() {
        return if unknown.is_empty() { Next::Nothing } else { Next::Not(unknown) };
    }
    // Followers first, the leader last, each by its name.
    let leads = leader(etcd);
    let mut full: Vec<(bool, &str, MemberId)> = list
        .members()
        .iter()
        .filter(|member| !sample(etcd, member.id).is_some_and(|sample| room.holds(sample, sample.db_size)))
        .map(|member| (leads == Some(member.id), member.name.as_str(), member.id))
        .collect();
    full.sort();
    match full.first() {
        // What is not known of anybody else is what the rule says of it.
        Some((leads, _, id)) if *id == own => match database(etcd, own) {
            Fact::Known(database) => Next::Own(Own { database, leads: *leads }),
            Fact::Unknown(_) => Next::Not(unknown),
        },
        Some(_) if !unknown.is_empty() => Next::Not(unknown),
        Some((_, _, id)) => Next::First(*id),
        None if !unknown.is_empty() => Next::Not(unknown),
        None => Next::Disarm(told.into_iter().map(|alarm| alarm.member).collect()),
    }
}

/// The alarms that any member tells of, each once.
pub(super) fn alarms(etcd: &EtcdView) -> BTreeSet<Alarm> {
    etcd.members.iter().filter_map(|view| view.alarms.known()).flatten().cloned().collect()
}

fn other(list: &Membership) -> impl Fn(&Alarm) -> Reason {
    move |alarm| {
        let kind = match alarm.kind {
            AlarmKind::NoSpace => "NOSPACE".to_owned(),
            AlarmKind::Corrupt => "CORRUPT".to_owned(),
            AlarmKind::Other(number) => format!("alarm {number}"),
        };
        let name = list.get(alarm.member).map_or_else(|| format!("member {}", alarm.member), called);
        Reason::new(Code::AlarmActive, format!("{kind} on {name}"))
    }
}

/// Who does not tell its alarms, or nothing of its database.
fn unknown(etcd: &EtcdView, list: &Membership) -> Vec<Reason> {
    let of = |member: &Member| {
        let Some(view) = etcd.members.iter().find(|view| view.id == member.id) else {
            return Some(Reason::new(Code::MemberUnanswered, format!("{} was not asked", called(member))));
        };
        match (&view.second, &view.alarms) {
            (Fact::Unknown(why), _) => Some(Reason::new(Code::MemberUnanswered, format!("{}: {why}", called(member)))),
            (_, Fact::Unknown(why)) => Some(Reason::new(Code::AlarmsUnknown, format!("{}: {why}", called(member)))),
            (Fact::Known(_), Fact::Known(_)) => None,
        }
    };
    list.members().iter().filter_map(of).collect()
}

fn sample(etcd: &EtcdView, id: MemberId) -> Option<&StatusSample> {
    etcd.members.iter().find(|view| view.id == id)?.second.known()
}

#[cfg(test)]
mod tests;
