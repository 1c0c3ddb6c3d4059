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

/// What decides of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dated {
    /// Its name.
    pub name: String,
    /// When it was taken, by the clock of that day.
    pub taken_at: Timestamp,
    /// The cluster, as etcd calls it.
    pub cluster_id: ClusterId,
    /// The cluster, as Kubernetes calls it.
    pub cluster_uid: Option<String>,
    /// Whether it may go, and counts among those that stay: not what another kind of backup must not take the place of.
    pub counts: bool,
    /// The revision that it reaches. A compaction removes the record of a deletion that was the last to happen; its own revision stays.
    pub revision: i64,
}

impl From<&Manifest> for Dated {
    fn from(manifest: &Manifest) -> Self {
        let Manifest { name, taken_at, cluster_id, cluster_uid, snapshot, .. } = manifest;
        Self {
            name: name.clone(),
            taken_at: *taken_at,
            cluster_id: *cluster_id,
            cluster_uid: cluster_uid.clone(),
            counts: true,
            revision: snapshot.compact_revision.map_or(snapshot.revision, |at| at.max(snapshot.revision)),
        }
    }
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
///
/// Those of the same cluster under an older id, from before a restore, go when ours alone are as many as are to stay: a clone has the UID of
/// its original as well, and must not crowd out what that one goes on to need.
pub fn plan(backups: &[Dated], cluster: &Cluster, retention: Retention, now: Timestamp) -> Plan {
    let (future, known): (Vec<&Dated>, Vec<_>) = backups.iter().partition(|backup| backup.taken_at > now);
    let (ours, others): (Vec<&Dated>, Vec<_>) = known.iter().partition(|backup| backup.cluster_id == cluster.id);
    let (before, others): (Vec<&Dated>, Vec<_>) =
        others.into_iter().partition(|backup| went_before(backup, cluster, backups, &ours));
    let mut plan = Plan::default();
    for (who, why) in [(&others, "of another cluster, or of a clone of this one"), (&future, FUTURE)] {
        plan.told.extend(who.iter().map(|backup| format!("{} stays and does not count: {why}", backup.name)));
    }
    let mut dated: Vec<(Timestamp, &Dated)> =
        ours.iter().filter(|backup| backup.counts).map(|backup| (not_before(backup, &known), *backup)).collect();
    dated.sort_by_key(|(at, backup)| (*at, backup.revision, backup.taken_at, backup.name.as_str()));
    dated.reverse();
    let Some((witness, _)) = dated.get(1) else { return plan };
    let enough = retention.keep.max(1);
    let beyond = dated.iter().skip(enough).copied();
    let before = before.into_iter().filter(|backup| backup.counts).map(|backup| (not_before(backup, &known), backup));
    let before = before.filter(|_| dated.len() >= enough);
    let old_enough = |at: Timestamp| witness.duration_since(at).unsigned_abs() >= retention.minimum_age;
    let mut goes: Vec<(Timestamp, &Dated)> = beyond.chain(before).filter(|(at, _)| old_enough(*at)).collect();
    goes.sort_by_key(|(at, backup)| (*at, backup.revision, backup.taken_at, backup.name.as_str()));
    plan.remove = goes.into_iter().map(|(_, backup)| backup.name.clone()).collect();
    plan
}

const FUTURE: &str = "dated in the future: the clock was wrong, or is";

/// Whether all of its cluster id were taken before any of ours, in what Kubernetes calls the same cluster: etcd was restored in between. Where
/// the times mix, two go on beside each other, and one is a clone.
fn went_before(backup: &Dated, cluster: &Cluster, all: &[Dated], ours: &[&Dated]) -> bool {
    let same = backup.cluster_uid.is_some() && backup.cluster_uid == cluster.uid;
    let Some(first) = ours.iter().map(|ours| ours.taken_at).min() else { return false };
    same && all.iter().filter(|other| other.cluster_id == backup.cluster_id).all(|other| other.taken_at < first)
}

/// The earliest time at which it can have been taken: not before any that has a lower revision of the same cluster.
fn not_before(backup: &Dated, known: &[&Dated]) -> Timestamp {
    let earlier =
        known.iter().filter(|other| other.cluster_id == backup.cluster_id && other.revision < backup.revision);
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
    fn backup(day: i64, revision: i64) -> Dated {
        let name = format!("day {day} revision {revision}");
        Dated { name, taken_at: at(day), cluster_id: ours().id, cluster_uid: None, counts: true, revision }
    }

    fn ours() -> Cluster {
        Cluster { id: manifest().cluster_id, uid: None }
    }

    fn removed(backups: &[Dated], keep: usize, days: u64, now: i64) -> Vec<String> {
        let retention = Retention { keep, minimum_age: Duration::from_secs(days * 86_400) };
        plan(backups, &ours(), retention, at(now)).remove
    }

    #[test]
    fn the_last_stay_and_the_young_and_the_newest_always() {
        let weekly: Vec<Dated> = (0..6).map(|week| backup(week * 7, week)).collect();
        assert_eq!(removed(&weekly, 3, 14, 36), ["day 0 revision 0", "day 7 revision 1", "day 14 revision 2"]);
        assert_eq!(removed(&weekly, 3, 20, 36), ["day 0 revision 0", "day 7 revision 1"]);
        assert_eq!(removed(&weekly, 9, 0, 36), Vec::<String>::new());
        assert_eq!(removed(&weekly, 0, 0, 36).len(), 5);
        assert_eq!(removed(&weekly[..1], 0, 0, 9_999), Vec::<String>::new());
        assert_eq!(removed(&[], 1, 0, 9_999), Vec::<String>::new());
    }

    #[test]
    fn those_of_another_cluster_stay_and_do_not_count() {
        let mut backups: Vec<Dated> = (0..4).map(|day| backup(day, day)).collect();
        backups[3].cluster_id = ClusterId(9);
        assert_eq!(removed(&backups, 2, 0, 9), ["day 0 revision 0"]);
    }

    /// Of Kubernetes' cluster u, taken daily: those of `days` under this id of etcd.
    fn under(id: u64, days: std::ops::Range<i64>) -> Vec<Dated> {
        let of = |day| Dated {
            name: format!("{id} day {day}"),
            cluster_id: ClusterId(id),
            cluster_uid: Some("u".to_owned()),
            ..backup(day, day)
        };
        days.map(of).collect()
    }

    fn gone(backups: &[Dated], id: u64, keep: usize) -> Vec<String> {
        let cluster = Cluster { id: ClusterId(id), uid: Some("u".to_owned()) };
        plan(backups, &cluster, Retention { keep, minimum_age: Duration::ZERO }, at(99)).remove
    }

    /// The id is another, and the cluster the same.
    #[test]
    fn what_was_before_a_restore_goes_when_there_are_enough_after_it() {
        let of = |after: i64| [under(1, 0..3), under(2, 3..3 + after)].concat();
        assert_eq!(gone(&of(1), 2, 2), Vec::<String>::new());
        assert_eq!(gone(&of(2), 2, 2), ["1 day 0", "1 day 1", "1 day 2"]);
        assert_eq!(gone(&of(3), 2, 2), ["1 day 0", "1 day 1", "1 day 2", "2 day 3"]);
    }

    /// A cluster that was made of a snapshot of ours, and backs up into our folder: it has our UID, and an id of its own.
    #[test]
    fn a_clone_removes_none_of_its_original_nor_the_other_way_round() {
        let both = [under(1, 0..9), under(2, 4..20)].concat();
        assert!(gone(&both, 2, 2).iter().all(|name| name.starts_with("2 ")), "{:?}", gone(&both, 2, 2));
        assert_eq!(gone(&both, 1, 8), ["1 day 0"]);
        // Before the original has gone on: as long as the clone has not as many as are to stay, none either.
        assert_eq!(gone(&[under(1, 0..9), under(2, 9..16)].concat(), 2, 8), Vec::<String>::new());
    }

    #[test]
    fn a_revision_is_not_below_the_compaction() {
        let mut manifest = manifest();
        (manifest.snapshot.revision, manifest.snapshot.compact_revision) = (5, Some(7));
        assert_eq!(Dated::from(&manifest).revision, 7);
    }

    /// A clock that is ahead for one run: nothing is older than it was, and what that run has dated does not crowd out the others.
    #[test]
    fn a_clock_that_jumps_removes_nothing_that_would_have_stayed() {
        let mut weekly: Vec<Dated> = (0..6).map(|week| backup(week * 7, week)).collect();
        assert_eq!(removed(&weekly, 2, 30, 36), Vec::<String>::new());
        weekly.push(backup(4_000, 6));
        assert_eq!(removed(&weekly, 2, 30, 4_000), ["day 0 revision 0"]);
        // Back at the right time.
        weekly.push(backup(43, 7));
        assert_eq!(removed(&weekly, 2, 30, 43), ["day 0 revision 0"]);
        let told = plan(&weekly, &ours(), Retention { keep: 2, minimum_age: Duration::ZERO }, at(43)).told;
        assert!(told.len() == 1 && told[0].starts_with("day 4000 revision 6 stays"), "{told:?}");
        // Behind for one run: the newest looks like the oldest, and is not taken for it.
        let mut behind: Vec<Dated> = (0..6).map(|week| backup(700 + week * 7, week)).collect();
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
            let backups: Vec<Dated> = days.iter().zip(1..).map(|(after, revision)| {
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
