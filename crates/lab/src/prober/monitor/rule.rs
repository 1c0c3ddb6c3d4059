//! Whether what a monitor saw is explained. Pure.
//!
//! quorate takes one node down at a time, and only when what is left is enough. So fewer than a quorum of voters, or no ready
//! apiserver, is its doing, unless faults that somebody else injected took away so many that even with nothing but its one
//! target missing there would have been too few. Its target excuses nothing when it began to take it down although another voter had
//! been out for a while: that is what it has to see.

use std::collections::BTreeSet;

use super::{Account, DEADLINE_MS, Seen};

/// An election may take so long after a voter was hit or has come back: nobody answers a linearizable read meanwhile. Two cores and
/// one disk for all machines make it longer than etcd's second.
pub const ELECTION_MS: u64 = 10_000;
/// A node that was healed may take so long until it answers: a machine that boots, and its static pods.
pub const RETURN_MS: u64 = 300_000;

/// What has been out for so long is seen by whoever asks: quorate's last look before it works on a host is seconds old when it begins.
pub const SEEN_MS: u64 = 15_000;

/// What a fault takes away on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its etcd member, and with it its apiserver, which asks no other.
    Voter,
    /// The same, now and then: its way to the others loses packets. While it leads, whoever is asked waits with it.
    Path,
    /// Its apiserver only.
    Apiserver,
}

/// What an injected fault explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// One of these is taken away; which of the two ends of a broken path it is, is etcd's to say.
    pub one_of: Vec<String>,
    /// What of it.
    pub part: Part,
    /// When it was injected.
    pub from_ms: u64,
    /// When it was healed; none while it lasts.
    pub healed_ms: Option<u64>,
}

/// The node that quorate takes down, by its Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub node: String,
    /// Since when; until the next one is named.
    pub from_ms: u64,
    /// When the work on its host began; none before.
    pub down_ms: Option<u64>,
}

/// What nothing explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// When it began.
    pub from_ms: u64,
    /// When it ended.
    pub to_ms: u64,
    /// What was missing, in words.
    pub what: String,
}

/// All spans in which too little answered and nothing explains it.
#[must_use]
pub fn breaches(account: &Account, hits: &[Hit], targets: &[Target]) -> Vec<Breach> {
    let ends = account.changes.iter().skip(1).map(|change| change.from_ms).chain([account.lasted_ms]);
    let mut found = Vec::new();
    for (seen, end) in account.changes.iter().zip(ends) {
        // What explains it may end before it does.
        let backs = hits.iter().filter_map(|hit| back(account, hit));
        let later = backs.chain(targets.iter().map(|target| target.from_ms));
        let mut moments: Vec<u64> = later.filter(|at| (seen.from_ms..end).contains(at)).collect();
        moments.push(seen.from_ms);
        moments.sort_unstable();
        found.extend(moments.into_iter().find_map(|at| breach(account, hits, targets, seen, (at, end))));
    }
    found
}

fn breach(
    account: &Account,
    hits: &[Hit],
    targets: &[Target],
    seen: &Seen,
    (at_ms, to_ms): (u64, u64),
) -> Option<Breach> {
    let all = account.members.len();
    let quorum = all / 2 + 1;
    let too_few = [(Part::Voter, &seen.voters, quorum), (Part::Apiserver, &seen.apiservers, 1)];
    for (part, answering, needed) in too_few {
        if answering.len() >= needed {
            continue;
        }
        let missing: BTreeSet<&str> =
            account.members.iter().map(String::as_str).filter(|name| !answering.contains(*name)).collect();
        let explained = missing.len() - unexplained(&missing, &taken_away(account, hits, targets, part, at_ms));
        let election = to_ms.saturating_sub(seen.from_ms) < ELECTION_MS && election_due(account, hits, seen.from_ms);
        if all - explained < needed || election {
            // Without a quorum no apiserver is ready either.
            return None;
        }
        let what = match part {
            Part::Voter | Part::Path => format!("{} of {all} voters answered, {needed} are needed", answering.len()),
            Part::Apiserver => "no apiserver was ready".to_owned(),
        };
        let missing: Vec<&str> = missing.into_iter().collect();
        let what = format!("{what}; of {} that did not, {explained} is explained", missing.join(", "));
        return Some(Breach { from_ms: at_ms, to_ms, what });
    }
    None
}

/// The sets of which one node each may be missing at a time: faults in force, and our one target.
fn taken_away<'a>(
    account: &Account,
    hits: &'a [Hit],
    targets: &'a [Target],
    part: Part,
    at_ms: u64,
) -> Vec<Vec<&'a str>> {
    let counts = |hit: &&Hit| hit.part != Part::Apiserver || part == Part::Apiserver;
    let mut sets: Vec<Vec<&str>> = hits
        .iter()
        .filter(counts)
        .filter(|hit| in_force(account, hit, at_ms))
        .map(|hit| hit.one_of.iter().map(String::as_str).collect())
        .collect();
    let target = targets.iter().filter(|target| target.from_ms <= at_ms + DEADLINE_MS).max_by_key(|it| it.from_ms);
    sets.extend(target.filter(|it| !against_better_knowledge(account, hits, it)).map(|it| vec![it.node.as_str()]));
    sets
}

/// Whether the work on a target's host began when another voter had been out long enough to be seen.
fn against_better_knowledge(account: &Account, hits: &[Hit], target: &Target) -> bool {
    target.down_ms.is_some_and(|down| {
        let others = hits.iter().filter(|hit| hit.part == Part::Voter && !hit.one_of.contains(&target.node));
        others.filter(|hit| hit.from_ms + SEEN_MS <= down).any(|hit| in_force(account, hit, down))
    })
}

fn in_force(account: &Account, hit: &Hit, at_ms: u64) -> bool {
    hit.from_ms <= at_ms + DEADLINE_MS && back(account, hit).is_none_or(|back| at_ms < back)
}

/// When all that a hit may have taken away answered again after it was healed, or should have; none while it is not healed.
fn back(account: &Account, hit: &Hit) -> Option<u64> {
    let healed = hit.healed_ms?;
    let answers = |seen: &Seen| {
        let answering = if hit.part == Part::Apiserver { &seen.apiservers } else { &seen.voters };
        hit.one_of.iter().all(|node| answering.contains(node))
    };
    let later = account.changes.iter().filter(|seen| seen.from_ms >= healed).find(|seen| answers(seen));
    // Nothing changed since, and they answered all along.
    let before = account.changes.iter().rfind(|seen| seen.from_ms <= healed).filter(|seen| answers(seen));
    let back = if before.is_some() { Some(healed) } else { later.map(|seen| seen.from_ms) };
    Some(back.unwrap_or(healed + RETURN_MS).min(healed + RETURN_MS))
}

/// Whether a voter was hit, healed or came back shortly before, or may lead and lose what it sends.
fn election_due(account: &Account, hits: &[Hit], at_ms: u64) -> bool {
    let near = |moment: u64| moment <= at_ms + DEADLINE_MS && at_ms <= moment + ELECTION_MS;
    hits.iter().filter(|hit| hit.part != Part::Apiserver).any(|hit| {
        let lossy = hit.part == Part::Path && in_force(account, hit, at_ms);
        lossy || near(hit.from_ms) || hit.healed_ms.is_some_and(near) || back(account, hit).is_some_and(near)
    })
}

/// How many are left when each set takes one of them away, as many as it can be made to.
fn unexplained<'a>(missing: &BTreeSet<&'a str>, sets: &[Vec<&'a str>]) -> usize {
    let Some((first, rest)) = sets.split_first() else { return missing.len() };
    let taken = first.iter().filter(|name| missing.contains(*name)).map(|name| {
        let mut left = missing.clone();
        left.remove(name);
        unexplained(&left, rest)
    });
    taken.chain([unexplained(missing, rest)]).min().unwrap_or(missing.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [&str; 3] = ["k1", "k2", "k3"];

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Everything answers for a minute; then, until the end, only these.
    fn account(nodes: &[&str], voters: &[&str], apiservers: &[&str], lasts_ms: u64) -> Account {
        let seen = |from_ms, voters, apiservers| Seen { from_ms, voters: names(voters), apiservers: names(apiservers) };
        Account {
            members: nodes.iter().map(|name| (*name).to_owned()).collect(),
            lasted_ms: 60_000 + lasts_ms,
            samples: 0,
            changes: vec![seen(0, nodes, nodes), seen(60_000, voters, apiservers)],
        }
    }

    fn hit(one_of: &[&str], part: Part, from_ms: u64) -> Hit {
        Hit { one_of: one_of.iter().map(|it| (*it).to_owned()).collect(), part, from_ms, healed_ms: None }
    }

    fn target(node: &str) -> Vec<Target> {
        vec![Target { node: node.to_owned(), from_ms: 10_000, down_ms: Some(20_000) }]
    }

    fn fails(account: &Account, hits: &[Hit], targets: &[Target]) -> bool {
        !breaches(account, hits, targets).is_empty()
    }

    #[test]
    fn a_quorum_and_an_apiserver_are_enough() {
        assert!(!fails(&account(&NODES, &["k2", "k3"], &["k3"], 60_000), &[], &[]));
    }

    #[test]
    fn a_bystander_that_was_hit_beside_our_target_is_explained() {
        let seen = account(&NODES, &["k3"], &["k3"], 60_000);
        assert!(!fails(&seen, &[hit(&["k1"], Part::Voter, 59_000)], &target("k2")));
        // What is left cannot answer a linearizable read, and no apiserver is ready.
        let seen = account(&NODES, &[], &[], 60_000);
        assert!(!fails(&seen, &[hit(&["k1"], Part::Voter, 59_000)], &target("k2")));
    }

    #[test]
    fn a_target_taken_down_after_a_bystander_was_hit_is_our_doing() {
        let seen = account(&NODES, &["k3"], &["k3"], 60_000);
        let taken = |down_ms| vec![Target { node: "k2".to_owned(), from_ms: 10_000, down_ms }];
        let cut = hit(&["k1"], Part::Voter, 50_000);
        assert!(!fails(&seen, std::slice::from_ref(&cut), &taken(None)));
        assert!(!fails(&seen, std::slice::from_ref(&cut), &taken(Some(49_000))));
        // A look may be a moment older than the fault.
        assert!(!fails(&seen, std::slice::from_ref(&cut), &taken(Some(50_000 + SEEN_MS - 1))));
        assert!(fails(&seen, std::slice::from_ref(&cut), &taken(Some(50_000 + SEEN_MS))));
        // It was back when the work began, and went again by itself.
        let over = Hit { healed_ms: Some(30_000), ..hit(&["k1"], Part::Voter, 20_000) };
        let again = [over, hit(&["k1"], Part::Voter, 59_000)];
        assert!(!fails(&seen, &again, &taken(Some(55_000))));
    }

    #[test]
    fn two_voters_down_without_a_fault_are_our_doing() {
        for answering in [["k3"].as_slice(), &[]] {
            let seen = account(&NODES, answering, answering, 60_000);
            assert!(fails(&seen, &[], &target("k2")));
            assert!(fails(&seen, &[], &[]));
        }
    }

    #[test]
    fn a_fault_on_the_target_explains_nobody_else() {
        let seen = account(&NODES, &["k3"], &["k3"], 60_000);
        assert!(fails(&seen, &[hit(&["k2"], Part::Voter, 59_000)], &target("k2")));
    }

    #[test]
    fn a_fault_explains_nothing_before_it_and_nothing_after_its_node_is_back() {
        let seen = account(&NODES, &["k3"], &["k3"], 60_000);
        let later = hit(&["k1"], Part::Voter, 70_000);
        assert!(fails(&seen, &[later], &target("k2")));
        // Healed, and seen to answer in the first minute; what is missing then is missing for another reason.
        let over = Hit { healed_ms: Some(30_000), ..hit(&["k1"], Part::Voter, 20_000) };
        assert!(fails(&seen, &[over], &target("k2")));
    }

    #[test]
    fn a_node_that_was_healed_has_time_to_come_back_and_not_for_ever() {
        let seen = account(&NODES, &["k3"], &["k3"], 60_000);
        let healed = |healed_ms| Hit { healed_ms: Some(healed_ms), ..hit(&["k1"], Part::Voter, 59_000) };
        assert!(!fails(&seen, &[healed(61_000)], &target("k2")));
        // It never came back, and five minutes later nothing explains that any more.
        let found = breaches(&account(&NODES, &["k3"], &["k3"], 600_000), &[healed(61_000)], &target("k2"));
        assert_eq!(found.iter().map(|breach| breach.from_ms).collect::<Vec<_>>(), [61_000 + RETURN_MS]);
    }

    #[test]
    fn a_node_that_was_the_target_explains_nothing_when_another_is() {
        let mut targets = target("k2");
        targets.push(Target { node: "k3".to_owned(), from_ms: 90_000, down_ms: None });
        let seen = account(&NODES, &["k3"], &["k3"], 60_000);
        let cut = [hit(&["k1"], Part::Voter, 59_000)];
        assert_eq!(breaches(&seen, &cut, &targets).len(), 1);
        assert_eq!(breaches(&seen, &cut, &targets[..1]), []);
    }

    #[test]
    fn an_election_after_a_fault_is_short() {
        let hits = [hit(&["k1"], Part::Voter, 59_000)];
        assert!(!fails(&account(&NODES, &[], &[], ELECTION_MS - 1), &hits, &[]));
        assert!(fails(&account(&NODES, &[], &[], ELECTION_MS), &hits, &[]));
        // Without a fault there is no excuse: leadership is moved before a node is taken down.
        assert!(fails(&account(&NODES, &[], &[], 1_000), &[], &target("k2")));
        assert!(fails(&account(&NODES, &[], &[], 1_000), &[hit(&["k1"], Part::Voter, 30_000)], &[]));
    }

    #[test]
    fn a_leader_that_loses_packets_explains_short_lacks_while_it_does() {
        let lossy = |healed_ms| [Hit { healed_ms, ..hit(&["k1"], Part::Path, 20_000) }];
        assert!(!fails(&account(&NODES, &[], &[], ELECTION_MS - 1), &lossy(None), &[]));
        assert!(fails(&account(&NODES, &[], &[], ELECTION_MS), &lossy(None), &[]));
        assert!(fails(&account(&NODES, &[], &[], 1_000), &lossy(Some(30_000)), &[]), "it was over long before");
    }

    #[test]
    fn a_broken_path_explains_one_of_its_ends() {
        let path = [hit(&["k1", "k3"], Part::Voter, 59_000)];
        assert!(!fails(&account(&NODES, &["k3"], &["k3"], 60_000), &path, &target("k2")));
        assert!(!fails(&account(&NODES, &["k1"], &["k1"], 60_000), &path, &target("k2")));
        assert!(fails(&account(&NODES, &["k2"], &["k2"], 60_000), &path, &target("k2")), "both ends are missing");
    }

    #[test]
    fn no_apiserver_is_a_breach_unless_all_of_them_were_hit() {
        let seen = account(&NODES, &NODES, &[], 60_000);
        let two = [hit(&["k1"], Part::Apiserver, 59_000), hit(&["k3"], Part::Apiserver, 59_000)];
        assert!(fails(&seen, &[], &target("k2")));
        assert!(fails(&seen, &two[..1], &target("k2")));
        assert!(!fails(&seen, &two, &target("k2")));
        // An apiserver that was hit says nothing of its voter.
        assert!(fails(&account(&NODES, &["k2"], &["k2"], 60_000), &two, &[]));
    }

    #[test]
    fn of_five_voters_two_may_be_missing_for_any_reason() {
        let five = ["k1", "k2", "k3", "k4", "k5"];
        assert!(!fails(&account(&five, &five[2..], &five[2..], 60_000), &[], &[]));
        let seen = account(&five, &five[3..], &five[3..], 60_000);
        assert!(fails(&seen, &[hit(&["k1"], Part::Voter, 59_000)], &target("k2")), "k3 is not explained");
        let both = [hit(&["k1"], Part::Voter, 59_000), hit(&["k3"], Part::Voter, 59_000)];
        assert!(!fails(&seen, &both, &target("k2")));
    }
}
