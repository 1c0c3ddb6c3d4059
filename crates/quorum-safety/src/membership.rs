//! Who is a member of the etcd cluster, and who of them votes.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// An etcd member id, shown as etcd shows it: lower-case hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// An etcd cluster id, shown as etcd shows it: lower-case hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

/// The name of a Kubernetes Node object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(pub String);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for NodeName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

macro_rules! hexadecimal {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }
        // JSON numbers lose precision above 2^53: ids travel as the hexadecimal text that etcdctl prints.
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                u64::from_str_radix(&text, 16).map(Self).map_err(|_| {
                    serde::de::Error::custom(format!(
                        "`{text}` is not an etcd id: expected hexadecimal digits, such as 8e9e05c52164694d"
                    ))
                })
            }
        }
    };
}
hexadecimal!(MemberId);
hexadecimal!(ClusterId);

/// Whether a member votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Counts for quorum.
    Voter,
    /// Receives the log, counts for nothing.
    Learner,
}

/// One entry of etcd's member list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Member {
    /// The id that etcd gave it; never used again once removed.
    pub id: MemberId,
    /// Its name, empty until it has started once. "Started" stays true after the process dies (etcd-notes, 2a rule 8).
    pub name: String,
    /// Whether it votes.
    pub role: Role,
    /// Peer URLs, sorted.
    pub peer_urls: Vec<String>,
    /// Client URLs, sorted; empty until it has started once.
    pub client_urls: Vec<String>,
}

impl Member {
    /// Whether the member has ever started; says nothing of whether it lives.
    pub fn has_started(&self) -> bool {
        !self.name.is_empty()
    }
}

/// A member list that can be judged: at least one voter, every id once. An empty configuration that "wins votes by
/// convention" (raft-rs) cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Membership(#[serde(deserialize_with = "checked")] Vec<Member>);

/// Why a member list cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// No voter in the list.
    #[error("the member list has no voter")]
    NoVoter,
    /// The same id twice.
    #[error("the member list has member {0} twice")]
    Duplicate(MemberId),
}

fn checked<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Member>, D::Error> {
    let members = Vec::<Member>::deserialize(deserializer)?;
    Membership::new(members).map(|membership| membership.0).map_err(serde::de::Error::custom)
}

impl Membership {
    /// Sorts the list by id and checks it.
    ///
    /// # Errors
    /// When no member votes or an id is there twice.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Result<Self, MembershipError> {
        let mut members: Vec<Member> = members.into_iter().collect();
        members.sort();
        let mut seen = BTreeSet::new();
        for member in &members {
            if !seen.insert(member.id) {
                return Err(MembershipError::Duplicate(member.id));
            }
        }
        if !members.iter().any(|member| member.role == Role::Voter) {
            return Err(MembershipError::NoVoter);
        }
        Ok(Self(members))
    }

    /// All members, sorted by id.
    pub fn members(&self) -> &[Member] {
        &self.0
    }

    /// Whether a list has the same members, in whatever order: each member of etcd lists them in its own.
    pub fn is(&self, list: &[Member]) -> bool {
        let mut list: Vec<&Member> = list.iter().collect();
        list.sort();
        list.into_iter().eq(&self.0)
    }

    /// The members that vote.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.0.iter().filter(|member| member.role == Role::Voter)
    }

    /// The member of that id.
    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.0.iter().find(|member| member.id == id)
    }
}
