//! Single checks that somebody has lifted for one upgrade: named, for a while, with a reason, on record. Safety must not block repair
//! (SAFETY.md, promise 4): a certificate that is about to expire holds the very upgrade that would renew it.

use crate::upgrade::record::ChainRecord;
use jiff::Timestamp;
use quorum_safety::{Code, Policy};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Clocks of two machines may differ by so many seconds.
const SKEW: i64 = 300;

/// One check, lifted for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lifted {
    /// The check; one that the catalogue does not call liftable is judged all the same.
    pub code: Code,
    /// Why, in the words of whoever did it.
    pub because: String,
    /// When it was lifted, by the clock of who did it.
    pub at: Timestamp,
    /// When that ends.
    pub until: Timestamp,
}

impl Lifted {
    /// Whether it counts now. A clock that says it is long before `at` is wrong, and then nobody knows when `until` is.
    fn in_force(&self, now: Timestamp) -> bool {
        now < self.until && now.as_second() + SKEW >= self.at.as_second()
    }
}

impl fmt::Display for Lifted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is lifted until {:.0}: {}", self.code, self.until, self.because)
    }
}

impl ChainRecord {
    /// Puts down what somebody lifts; what was said of the same checks before is over.
    pub fn lift(&mut self, lifted: &[Lifted]) {
        self.lifted.retain(|before| lifted.iter().all(|it| it.code != before.code));
        self.lifted.extend(lifted.iter().cloned());
    }

    /// What is lifted now.
    pub fn lifted_now(&self, now: Timestamp) -> impl Iterator<Item = &Lifted> {
        self.lifted.iter().filter(move |it| it.in_force(now))
    }

    /// What `judge` measures this upgrade against now: the configuration's policy without the checks that are lifted.
    pub fn policy(&self, configured: Policy, now: Timestamp) -> Policy {
        Policy { lifted: self.lifted_now(now).map(|it| it.code).collect(), ..configured }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::{Cordon, Disruption, Record, Verdict, fixture};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn lifted(code: Code, from: i64, until: i64) -> Lifted {
        Lifted { code, because: "the upgrade renews it".to_owned(), at: at(from), until: at(until) }
    }

    #[test]
    fn a_check_is_lifted_for_its_time_and_not_by_a_clock_that_is_wrong() {
        let mut record = ChainRecord::default();
        record.lift(&[lifted(Code::ForeignCordon, 0, 7_200)]);
        let codes = |record: &ChainRecord, now| record.policy(Policy::default(), at(now)).lifted;
        assert_eq!(codes(&record, 0), [Code::ForeignCordon]);
        assert_eq!(codes(&record, -300), [Code::ForeignCordon], "another machine's clock");
        assert_eq!(codes(&record, 7_199), [Code::ForeignCordon]);
        assert_eq!(codes(&record, 7_200), []);
        assert_eq!(codes(&record, -301), []);
        // Said again it begins anew, and there is one of it.
        record.lift(&[lifted(Code::ForeignCordon, 8_000, 9_000), lifted(Code::ReadSlow, 8_000, 9_000)]);
        assert_eq!(codes(&record, 8_500), [Code::ForeignCordon, Code::ReadSlow]);
        assert_eq!(
            record.lifted[0].to_string(),
            "Q054-foreign-cordon is lifted until 2027-01-15T10:30:00Z: the upgrade renews it"
        );
    }

    /// Every check, one by one, on a cluster that this check alone holds is the table's business; this is that the shell lifts no other.
    #[test]
    fn what_is_lifted_lets_an_upgrade_begin_and_nothing_else_does() {
        let cordoned = || fixture::healthy(3).on_node("k3", |node| node.cordon = Cordon::Foreign);
        let judged = |record: &ChainRecord, now| {
            let whole = cordoned();
            let policy = record.policy(whole.policy.clone(), at(now));
            Record::judged(whole.seen, whole.in_flight, Disruption::Upgrade("k1".into()), policy).0
        };
        let mut record = ChainRecord::default();
        record.lift(&[lifted(Code::ReadSlow, 0, 60)]);
        assert!(!matches!(judged(&record, 1), Verdict::Permitted(_)));
        record.lift(&[lifted(Code::ForeignCordon, 0, 60)]);
        assert!(matches!(judged(&record, 1), Verdict::Permitted(_)), "{:?}", judged(&record, 1));
        assert!(!matches!(judged(&record, 60), Verdict::Permitted(_)), "its time is over");
    }

    #[test]
    fn a_record_of_before_has_nothing_lifted() {
        let record: ChainRecord = serde_json::from_str(r#"{"seconds": {"k1": 300}}"#).unwrap();
        assert_eq!(record.lifted, []);
        let text =
            serde_json::to_string(&ChainRecord { lifted: vec![lifted(Code::ReadSlow, 0, 60)], ..record }).unwrap();
        assert_eq!(serde_json::from_str::<ChainRecord>(&text).unwrap().lifted.len(), 1, "{text}");
    }
}
