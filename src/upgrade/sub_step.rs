//! How far the work on a node is, as the record of its Lease says it: one list for whoever writes it, whoever adopts it, and the tests
//! that let a fault strike at each of them.

use quorum_safety::lock::Step;

/// What is announced in the Lease before it is done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(test, derive(clap::ValueEnum))]
pub enum SubStep {
    /// The locks are held and nothing has been changed.
    Acquired,
    /// The node is cordoned.
    Cordon,
    /// Its pods are evicted.
    Drain,
    /// The work on the host.
    NodeStep,
    /// Waits until recovery is proved.
    Recovery,
    /// The node goes back into service; then the locks do.
    Uncordon,
}

impl SubStep {
    /// All of them, in order.
    pub const ALL: [Self; 6] =
        [Self::Acquired, Self::Cordon, Self::Drain, Self::NodeStep, Self::Recovery, Self::Uncordon];

    /// Its name in the record.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Acquired => "acquired",
            Self::Cordon => "cordon",
            Self::Drain => "drain",
            Self::NodeStep => "node-step",
            Self::Recovery => "recovery",
            Self::Uncordon => "uncordon",
        }
    }

    /// Whether the host may have been changed from here on.
    pub const fn on_host(self) -> bool {
        match self {
            Self::Acquired | Self::Cordon | Self::Drain => false,
            Self::NodeStep | Self::Recovery | Self::Uncordon => true,
        }
    }

    /// Whether the host may have been changed by who announced this last.
    pub fn may_be_on_host(step: &Step) -> bool {
        // A name that is not known is of another version: it may have changed anything.
        Self::named(&step.name).is_none_or(Self::on_host)
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.name() == name)
    }
}

impl From<SubStep> for Step {
    fn from(step: SubStep) -> Self {
        match step {
            SubStep::Acquired => Self::acquired(),
            SubStep::Cordon | SubStep::Drain | SubStep::NodeStep | SubStep::Recovery | SubStep::Uncordon => {
                Self::touching(step.name())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn the_list_is_whole() {
        assert_eq!(SubStep::ALL, SubStep::value_variants());
        for step in SubStep::ALL {
            assert_eq!(step.to_possible_value().unwrap().get_name(), step.name());
            assert_eq!(SubStep::named(step.name()), Some(step));
            assert_eq!(Step::from(step).name, step.name());
        }
    }

    #[test]
    fn an_unknown_name_is_none() {
        assert_eq!(SubStep::named("soak"), None);
        assert!(SubStep::may_be_on_host(&Step::touching("soak")));
    }
}
