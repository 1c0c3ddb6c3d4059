//! `quorate etcd restore join`: each of the other nodes, one after the other. kubeadm adds its member and promotes it by itself, so what our
//! rule asks is asked before: every member that is there takes part.

use super::journal::Journal;
use super::node::Peer;
use super::words;
use crate::cli::Global;
use crate::cli::etcd::restore::Join;
use crate::clock::Clock;
use crate::exit::{ExitStatus, UsageError};
use crate::observe::etcd::host;
use crate::output;
use crate::place::InPlace;
use crate::report::{Outcome, Report};
use crate::seen::{self, Seen};
use quorum_safety::{Code, Fact, Mine, NodeName, Policy, Role, voters};
use std::time::Duration;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);

/// Where a node is on its way into the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// Its member takes part.
    Done,
    /// It may join: its commands are to be typed now.
    Type,
    /// It joins; what is still missing.
    Joins(String),
    /// Another is not whole: nobody may join now.
    Waits(String),
}

/// Runs the command.
///
/// # Errors
/// When this host was not restored, or the node's address is not known.
pub(super) async fn run(global: &Global, join: &Join, clock: Clock) -> anyhow::Result<ExitStatus> {
    let state = &join.files.state_dir;
    if let Some(journal) = Journal::begun(state)? {
        let summary = format!("the restore of {} is not over on this host; nobody joins before", journal.node.name);
        return answer(global, &Report::new(Outcome::Held, summary, &[]));
    }
    let Some(journal) = Journal::done(state)? else {
        let text = format!("nothing was restored on this host: there is no restore.done in {}", state.display());
        return Err(UsageError(text).into());
    };
    let name = NodeName(join.node.clone());
    let known = journal.others.iter().find(|other| other.name == name).map(|other| other.address.clone());
    let Some(address) = join.address.clone().or(known) else {
        let all: Vec<&str> = journal.others.iter().map(|other| other.name.0.as_str()).collect();
        let text = format!(
            "the address of {name} is not known ({} were there before the restore): say --address",
            if all.is_empty() { "no others".to_owned() } else { all.join(", ") }
        );
        return Err(UsageError(text).into());
    };
    let peer = Peer { name, address };
    let report = follow(global, join, &journal, &peer, clock).await?;
    answer(global, &report)
}

fn answer(global: &Global, report: &Report) -> anyhow::Result<ExitStatus> {
    output::answer(global.output, &report.document(), || report.text())?;
    Ok(report.outcome.status())
}

async fn follow(global: &Global, join: &Join, journal: &Journal, peer: &Peer, clock: Clock) -> anyhow::Result<Report> {
    let place = InPlace::in_folder(global, &join.files.kubernetes_dir).await?;
    let config = place.configuration(global).await?;
    let began = clock.boottime();
    let (mut typed, mut said) = (false, String::new());
    loop {
        let seen = seen::look(&place.sources(), &config, Mine::Nothing, clock).await;
        let why = match next(&seen, &config.policy(), peer) {
            Next::Done => {
                let voters = seen.observation.etcd.membership.known().map_or(0, |list| list.voters().count());
                let summary = format!("{} takes part: {voters} voters, each healthy", peer.name);
                return Ok(Report::new(Outcome::Ok, summary, &[]).on(&seen.observation));
            }
            Next::Type if !typed => {
                typed = true;
                words::rejoin(peer, &journal.id).iter().for_each(|line| output::progress(line));
                continue;
            }
            Next::Type => format!("{} has not joined yet", peer.name),
            Next::Joins(why) | Next::Waits(why) => why,
        };
        if clock.boottime().saturating_sub(began) >= join.wait {
            let summary = format!("{} does not take part yet: {why}; the same command goes on", peer.name);
            return Ok(Report::new(Outcome::Held, summary, &[]).on(&seen.observation));
        }
        let kind: String = why.chars().filter(|letter| !letter.is_ascii_digit()).collect();
        if said != kind {
            output::progress(&why);
            said = kind;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What comes next, read from the member list and what each member says of itself.
fn next(seen: &Seen, policy: &Policy, peer: &Peer) -> Next {
    let membership = match &seen.observation.etcd.membership {
        Fact::Known(membership) => membership,
        Fact::Unknown(why) => return Next::Waits(format!("who the members are is not known: {why}")),
    };
    let judged = voters(&seen.observation, &seen.in_flight, policy);
    let (mut own, mut wrong) = (None, Vec::new());
    for member in membership.members() {
        let is_own = member.peer_urls.iter().any(|url| host(url).as_deref() == Some(peer.address.as_str()));
        let called = if member.has_started() { member.name.clone() } else { format!("member {}", member.id) };
        let fault = if !member.has_started() {
            Some(format!("{called} has not started"))
        } else if member.role == Role::Learner {
            Some(format!("{called} is a learner still"))
        } else {
            let faults = judged.iter().find(|(id, _)| *id == member.id).map(|(_, faults)| faults.as_slice());
            // Where its node is, the API says, which may be of a time when that node was not there yet: of etcd it says nothing.
            let fault = faults.unwrap_or_default().iter().find(|fault| fault.code != Code::MemberNodeUnknown);
            fault.map(|fault| format!("{called} is not healthy: {fault}"))
        };
        if is_own {
            own = Some(fault);
        } else {
            wrong.extend(fault);
        }
    }
    match (own, wrong.first()) {
        (Some(Some(fault)), _) => Next::Joins(fault),
        (_, Some(wrong)) => Next::Waits(wrong.clone()),
        (Some(None), None) => Next::Done,
        (None, None) => Next::Type,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_safety::fixture::{Cluster, healthy, unknown};

    fn peer(number: u8) -> Peer {
        Peer { name: NodeName(format!("k{number}")), address: format!("10.10.0.1{number}") }
    }

    fn told(cluster: Cluster, number: u8) -> Next {
        let policy = cluster.policy.clone();
        next(&Seen { observation: cluster.seen, in_flight: cluster.in_flight }, &policy, &peer(number))
    }

    #[test]
    fn a_node_joins_only_a_cluster_in_which_every_member_takes_part() {
        let waits = |next: Next, wanted: &str| {
            assert!(matches!(&next, Next::Waits(why) if why.contains(wanted)), "{wanted}: {next:?}");
        };
        assert_eq!(told(healthy(1), 2), Next::Type);
        assert_eq!(told(healthy(3), 4), Next::Type);
        assert_eq!(told(healthy(3), 3), Next::Done);
        waits(told(healthy(3).member_dead(2), 4), "k2 is not healthy: Q004-member-unanswered");
        // A node of which the restored API does not know yet.
        assert_eq!(told(healthy(3).on_member(2, |view| view.node = unknown()), 4), Next::Type);
        waits(told(healthy(3).learner(), 5), "k4 is a learner still");
        waits(told(healthy(3).on_list(|list| list[1].name.clear()), 4), "member a2 has not started");
        waits(told(healthy(3).with(|cluster| cluster.seen.etcd.membership = unknown()), 4), "is not known");
        // Over only when the others take part as well.
        waits(told(healthy(3).member_dead(2), 3), "k2 is not healthy");
    }

    #[test]
    fn a_member_that_has_been_added_is_waited_for_until_it_takes_part() {
        assert_eq!(told(healthy(3).learner(), 4), Next::Joins("k4 is a learner still".to_owned()));
        let Next::Joins(why) = told(healthy(3).member_dead(3), 3) else { panic!("it does not join") };
        assert!(why.starts_with("k3 is not healthy: Q004"), "{why}");
    }
}
