//! The size of a majority.

use crate::membership::Membership;

/// How many voters must be up for etcd to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quorum {
    voters: usize,
}

impl Quorum {
    /// The quorum of a membership; learners do not count (etcd `membership/cluster.go`).
    pub fn of(membership: &Membership) -> Self {
        Self::of_voters(membership.voters().count())
    }

    /// The quorum of that many voters.
    pub const fn of_voters(voters: usize) -> Self {
        Self { voters }
    }

    /// The number of voters that make a majority. The only place where it is computed.
    pub const fn size(self) -> usize {
        self.voters / 2 + 1
    }

    /// How many more of `up` voters may fail before quorum is lost; `None` when it is lost already.
    pub const fn tolerance(self, up: usize) -> Option<usize> {
        up.checked_sub(self.size())
    }
}
