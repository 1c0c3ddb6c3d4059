//! What a majority says, and who says otherwise.

use crate::quorum::Quorum;

/// What several members say of one thing that should be the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agreement<T> {
    /// Nobody said anything.
    Silence,
    /// Everybody who spoke said this.
    All(T),
    /// A majority of the voters said this, somebody else something else.
    Most(T),
    /// They differ, and no majority says the same: nobody can be believed.
    Split,
}

impl<T: Copy + PartialEq> Agreement<T> {
    /// Of what was said, each voter once, and of how many voters there are.
    pub(super) fn of(said: &[T], quorum: Quorum) -> Self {
        let Some(first) = said.first() else { return Self::Silence };
        if said.iter().all(|value| value == first) {
            return Self::All(*first);
        }
        let count = |value: &T| said.iter().filter(|other| *other == value).count();
        match said.iter().find(|value| count(value) >= quorum.size()) {
            Some(value) => Self::Most(*value),
            None => Self::Split,
        }
    }

    /// Whether who says this stands against the others.
    pub(super) fn is_against(&self, value: T) -> bool {
        match self {
            Self::Silence => false,
            Self::All(agreed) | Self::Most(agreed) => *agreed != value,
            Self::Split => true,
        }
    }

    /// What was agreed on.
    pub(super) fn value(&self) -> Option<T> {
        match self {
            Self::All(value) | Self::Most(value) => Some(*value),
            Self::Silence | Self::Split => None,
        }
    }
}
