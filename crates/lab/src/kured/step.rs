//! The steps at which a test may hold it up.

use std::fmt;

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// It has seen the file.
    Seen,
    /// It has its lock.
    Locked,
    /// The node is cordoned.
    Cordoned,
    /// The node is drained.
    Drained,
    /// It asks for the reboot next.
    Rebooting,
    /// A new process has found the lock to be its node's.
    Back,
    /// That process has uncordoned.
    Uncordoned,
    /// It has given its lock back.
    Released,
    /// The drain has taken too long.
    GivenUp,
    /// The lock is given back after that, and the node is cordoned still.
    Freed,
}

impl Step {
    /// All of them: those on the way to a reboot, those after it, those of a drain that is given up.
    pub const ALL: [Self; 10] = [
        Self::Seen,
        Self::Locked,
        Self::Cordoned,
        Self::Drained,
        Self::Rebooting,
        Self::Back,
        Self::Uncordoned,
        Self::Released,
        Self::GivenUp,
        Self::Freed,
    ];

    /// Its name in the files of the contract's folder.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Locked => "locked",
            Self::Cordoned => "cordoned",
            Self::Drained => "drained",
            Self::Rebooting => "rebooting",
            Self::Back => "back",
            Self::Uncordoned => "uncordoned",
            Self::Released => "released",
            Self::GivenUp => "given-up",
            Self::Freed => "freed",
        }
    }

    /// The step of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.name() == name)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_found_by_its_name() {
        assert!(Step::ALL.into_iter().all(|step| Step::named(step.name()) == Some(step)));
        assert_eq!(Step::named("before"), None);
    }
}
