//! Which backups may go. Pure: from what their manifests say to names.
//!
//! A wall clock may be wrong on the day of a backup, and on the day of this look. So what is newer is told by etcd's revision wherever two
//! backups are of one cluster id, an age is counted from the newest but one (which some other run has dated), and what is dated in the future
//! neither goes nor counts.

use super::manifest::Manifest;
use jiff::Timestamp;
use quorum_safety::ClusterId;
use std::time::Duration;

/// How long backups stay.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// How many at least; 0 counts as 1.
    pub keep: usize,
    /// How old one must be to go.
    pub minimum_age: Duration,
}

/// Whose backups they are. Those of other clusters stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Changes with a restore.
    pub id: ClusterId,
    /// Does not; none where the API did not tell it.
    pub uid: Option<String>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The names of those that go, the oldest first.
    pub remove: Vec<String>,
    /// What people should know of the others.
    pub told: Vec<String>,
}

/// Makes the plan. `backups` are whole: each was verified when it was made, and all its files are listed.
pub fn plan(backups: &[Manifest], cluster: &Cluster, retention: Retention, now: Timestamp) -> Plan {
    let (ours, others): (Vec<&Manifest>, Vec<_>) = backups.iter().partition(|backup| is_of(backup, cluster));
    let (future, known): (Vec<&Manifest>, Vec<_>) = ours.into_iter().partition(|backup| backup.taken_at > now);
    let mut dated: Vec<(Timestamp, &Manifest)> =
        known.iter().map(|backup| (not_before(backup, &known), *backup)).collect();
    dated.sort_by_key(|(at, backup)| (*at, backup.snapshot.revision, backup.taken_at, backup.name.as_str()));
    dated.reverse();
    let mut plan = Plan::default();
    for (who, why) in [(&others, "of another cluster"), (&future, "dated in the future: the clock was wrong, or is")] {
        plan.told.extend(who.iter().map(|backup| format!("{} stays and does not count: {why}", backup.name)));
    }
    let Some((witness, _)) = dated.get(1) else { return plan };
    let old_enough = |at: Timestamp| witness.duration_since(at).unsigned_abs() >= retention.minimum_age;
    let beyond = dated.iter().skip(retention.keep.max(1));
    plan.remove = beyond.filter(|(at, _)| old_enough(*at)).map(|(_, backup)| backup.name.clone()).collect();
    plan.remove.reverse();
    plan
}

fn is_of(backup: &Manifest, cluster: &Cluster) -> bool {
    match (&backup.cluster_uid, &cluster.uid) {
        (Some(of), Some(ours)) => of == ours,
        _ => backup.cluster_id == cluster.id,
    }
}

/// The earliest time at which it can have been taken: not before any that has a lower revision of the same cluster.
fn not_before(backup: &Manifest, known: &[&Manifest]) -> Timestamp {
    let earlier = known
        .iter()
        .filter(|other| other.cluster_id == backup.cluster_id && other.snapshot.revision < backup.snapshot.revision);
    earlier.map(|other| other.taken_at).max().map_or(backup.taken_at, |at| at.max(backup.taken_at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::backup::manifest::tests::manifest;
    use proptest::prelude::*;

    const DAY: i64 = 86_400;
    const START: i64 = 1_790_000_000;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(START + day * DAY).unwrap()
    }

    /// A backup of that day by the clock, the how manieth of its cluster.
    fn backup(day: i64, revision: i64) -> Manifest {
        let mut backup = manifest();
        backup.name = format!("day {day} revision {revision}");
        backup.taken_at = at(day);
        backup.snapshot.revision = revision;
        backup
    }

    fn ours() -> Cluster {
        Cluster { id: manifest().cluster_id, uid: None }
    }

    fn removed(backups: &[Manifest], keep: usize, days: u64, now: i64) -> Vec<String> {
        let retention = Retention { keep, minimum_age: Duration::from_secs(days * 86_400) };
        plan(backups, &ours(), retention, at(now)).remove
    }

    #[test]
    fn the_last_stay_and_the_young_and_the_newest_always() {
        let weekly: Vec<Manifest> = (0..6).map(|week| backup(week * 7, week)).collect();
        assert_eq!(removed(&weekly, 3, 14, 36), ["day 0 revision 0", "day 7 revision 1", "day 14 revision 2"]);
        assert_eq!(removed(&weekly, 3, 20, 36), ["day 0 revision 0", "day 7 revision 1"]);
        assert_eq!(removed(&weekly, 9, 0, 36), Vec::<String>::new());
        assert_eq!(removed(&weekly, 0, 0, 36).len(), 5);
        assert_eq!(removed(&weekly[..1], 0, 0, 9_999), Vec::<String>::new());
        assert_eq!(removed(&[], 1, 0, 9_999), Vec::<String>::new());
    }

    #[test]
    fn those_of_another_cluster_stay_and_do_not_count() {
        let mut backups: Vec<Manifest> = (0..4).map(|day| backup(day, day)).collect();
        backups[3].cluster_id = ClusterId(9);
        assert_eq!(removed(&backups, 2, 0, 9), ["day 0 revision 0"]);
        // After a restore the id is another, and the cluster the same.
        backups.iter_mut().for_each(|backup| backup.cluster_uid = Some("u".to_owned()));
        let cluster = Cluster { uid: Some("u".to_owned()), ..ours() };
        let retention = Retention { keep: 2, minimum_age: Duration::ZERO };
        assert_eq!(plan(&backups, &cluster, retention, at(9)).remove, ["day 0 revision 0", "day 1 revision 1"]);
    }

    /// A clock that is ahead for one run: nothing is older than it was, and what that run has dated does not crowd out the others.
    #[test]
    fn a_clock_that_jumps_removes_nothing_that_would_have_stayed() {
        let mut weekly: Vec<Manifest> = (0..6).map(|week| backup(week * 7, week)).collect();
        assert_eq!(removed(&weekly, 2, 30, 36), Vec::<String>::new());
        weekly.push(backup(4_000, 6));
        assert_eq!(removed(&weekly, 2, 30, 4_000), ["day 0 revision 0"]);
        // Back at the right time.
        weekly.push(backup(43, 7));
        assert_eq!(removed(&weekly, 2, 30, 43), ["day 0 revision 0"]);
        let told = plan(&weekly, &ours(), Retention { keep: 2, minimum_age: Duration::ZERO }, at(43)).told;
        assert!(told.len() == 1 && told[0].starts_with("day 4000 revision 6 stays"), "{told:?}");
        // Behind for one run: the newest looks like the oldest, and is not taken for it.
        let mut behind: Vec<Manifest> = (0..6).map(|week| backup(700 + week * 7, week)).collect();
        behind.push(backup(1, 6));
        behind.push(backup(742, 7));
        let gone = removed(&behind, 2, 0, 742);
        assert!(!gone.contains(&"day 1 revision 6".to_owned()) && gone.len() == 6, "{gone:?}");
    }

    proptest! {
        /// Whatever the clock says on the day of the look: no more goes than at the right time, and the newest never.
        #[test]
        fn a_wrong_look_removes_no_more_than_a_right_one(
            days in prop::collection::vec(1_i64..40, 0..12),
            keep in 0_usize..6,
            minimum in 0_u64..90,
            off in -500_i64..500,
        ) {
            let mut day = 0;
            let backups: Vec<Manifest> = days.iter().zip(1..).map(|(after, revision)| {
                day += after;
                backup(day, revision)
            }).collect();
            let right = removed(&backups, keep, minimum, day);
            let wrong = removed(&backups, keep, minimum, day + off);
            prop_assert!(wrong.iter().all(|name| right.contains(name)), "{wrong:?} {right:?}");
            if let Some(newest) = backups.last() {
                prop_assert!(!right.contains(&newest.name));
                prop_assert!(backups.len() - right.len() >= keep.clamp(1, backups.len()));
            }
        }
    }
}
