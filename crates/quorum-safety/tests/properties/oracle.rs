//! What must never be permitted, written down as plainly as possible: for each rule a sentence and a look at the raw facts. It
//! uses the crate's data types and nothing else, and finds majorities by trying every set of voters.

use quorum_safety::{
    AlarmKind, Code, Component, Cordon, Disruption, Fact, Holder, InFlight, KillSwitch, Kured, Lock, Member, MemberId,
    MemberView, Mine, NodeName, NodeView, Observation, Policy, Quota, Role, StatusSample,
};

/// Every sentence of the promise that permitting this would break.
pub(crate) fn forbids(
    seen: &Observation,
    in_flight: &InFlight,
    wanted: &Disruption,
    policy: &Policy,
) -> Vec<&'static str> {
    let mut broken = Vec::new();
    if *wanted == Disruption::Restore {
        if seen.etcd.membership.known().is_some() && !policy.lifted.contains(&Code::RestoreOverQuorum) {
            broken.push("a restore over a cluster that has quorum");
        }
        if matches!(in_flight.kill_switch, Fact::Known(KillSwitch::Engaged(_))) {
            broken.push("the kill switch is engaged");
        }
        return broken;
    }

    let Fact::Known(membership) = &seen.etcd.membership else { return vec!["the membership is not known"] };
    let list: &[Member] = membership.members();
    let voters: Vec<&Member> = list.iter().filter(|member| member.role == Role::Voter).collect();
    let Fact::Known(nodes) = &seen.nodes else { return vec!["the nodes are not known"] };
    if seen.cluster_uid.known().is_none() {
        broken.push("the cluster is not known");
    }

    // Who goes away, and where it is.
    let node_of = |id: MemberId| seen.etcd.members.iter().find(|view| view.id == id).and_then(|view| view.node.known());
    let named = match wanted {
        Disruption::Defragment(id) | Disruption::Remove(id) | Disruption::Replace(id) => Some(*id),
        _ => None,
    };
    let target: Option<&NodeName> = match wanted {
        Disruption::Reboot(node) | Disruption::Upgrade(node) => Some(node),
        _ => named.and_then(node_of),
    };
    let down: Vec<MemberId> = list
        .iter()
        .map(|member| member.id)
        .filter(|id| Some(*id) == named || (named.is_none() && target.is_some() && node_of(*id) == target))
        .collect();
    let removal = matches!(wanted, Disruption::Remove(_) | Disruption::Replace(_));
    let plain_node = named.is_none()
        && target.is_some_and(|target| {
            nodes.iter().any(|node| node.name == *target)
                && nodes.iter().all(|node| node.name != *target || !node.control_plane)
                && down.is_empty()
        });

    // Who is alive, without the target: is there a set of healthy voters that agree with each other and are a majority?
    let known = furthest_but(seen, &voters, &without_a_say(seen, in_flight, wanted));
    let healthy: Vec<&MemberView> = voters
        .iter()
        .filter(|voter| !down.contains(&voter.id))
        .filter_map(|voter| {
            let views: Vec<&MemberView> = seen.etcd.members.iter().filter(|view| view.id == voter.id).collect();
            match views.as_slice() {
                [view] if is_healthy(view, list, nodes, seen, wanted, policy) && !stands_still(view, known, policy) => {
                    Some(*view)
                }
                _ => None,
            }
        })
        .collect();
    let largest = largest_agreeing_set(&healthy, policy);
    let was_voter = |id: &MemberId| voters.iter().any(|voter| voter.id == *id);
    let after = match wanted {
        Disruption::Promote(_) => voters.len() + 1,
        Disruption::Remove(id) | Disruption::Replace(id) if was_voter(id) => voters.len() - 1,
        _ => voters.len(),
    };
    let of_the_new = match wanted {
        Disruption::Promote(_) if policy.lifted.contains(&Code::LearnerWouldBeNeeded) => 1,
        _ => 0,
    };
    if (largest + of_the_new) * 2 <= after {
        broken.push("no majority of healthy voters would remain");
    }
    if voters.len() == 1 && !plain_node && !matches!(wanted, Disruption::AddLearner | Disruption::Promote(_)) {
        let only = voters.iter().any(|voter| Some(voter.id) == named);
        if only || named.is_none() {
            broken.push("the only voter would go");
        }
    }

    // Somebody must serve the API.
    let ready = |node: &NodeName| {
        seen.apiservers.iter().filter(|view| view.node == *node).all(|view| view.ready == Fact::Known(true))
    };
    if !seen.apiservers.iter().any(|view| Some(&view.node) != target && ready(&view.node)) {
        broken.push("no other apiserver is ready");
    }

    // What is begun anew needs nodes that can take it.
    let adopted = matches!(in_flight.mine, Mine::Adopted(_));
    let repair = removal || matches!(wanted, Disruption::Promote(_));
    let short = |node: &NodeView| node.pressures.iter().any(|pressure| pressure.ends_with("Pressure"));
    if !adopted
        && !repair
        && !plain_node
        && !policy.lifted.contains(&Code::NodeUnderPressure)
        && nodes.iter().any(|node| node.control_plane && short(node))
    {
        broken.push("a control plane node is short of something");
    }

    if !adopted && !repair && !plain_node {
        broken.extend(strain(seen, &voters, wanted, policy));
    }
    broken.extend(others_at_work(seen, in_flight, wanted, policy, target, plain_node));
    broken.extend(membership_rules(seen, list, &voters, wanted, policy));
    if !removal {
        let mut places: Vec<Option<&NodeName>> = list.iter().map(|member| node_of(member.id)).collect();
        if places.contains(&None) {
            broken.push(NOWHERE);
        }
        // Of those that are known: two that are not are no two on one.
        places.retain(Option::is_some);
        let all = places.len();
        places.sort();
        places.dedup();
        if places.len() < all {
            broken.push("two members run on one node");
        }
    }
    broken
}

/// What is said of a member that has no view, or none with a node.
pub(crate) const NOWHERE: &str = "a member runs nobody knows where";

/// Whether a sentence is about the strain of etcd, or a shortage of a node, which hold nobody who goes on.
pub(crate) fn is_strain(what: &str) -> bool {
    ["a voter reads slowly", "a read through a voter was not answered", "the database of a voter is nearly full"]
        .contains(&what)
}

/// A voter that answers late twice, or whose database has little room left.
fn strain(seen: &Observation, voters: &[&Member], wanted: &Disruption, policy: &Policy) -> Vec<&'static str> {
    let lifted = |code| policy.lifted.contains(&code);
    let mut broken = Vec::new();
    for view in seen.etcd.members.iter().filter(|view| voters.iter().any(|voter| voter.id == view.id)) {
        match (&view.first_read, &view.second_read) {
            (Fact::Known(first), Fact::Known(second)) => {
                let late = |took: &u64| *took > policy.slow_read;
                if late(first) && late(second) && !lifted(Code::ReadSlow) {
                    broken.push("a voter reads slowly");
                }
            }
            _ => broken.push("a read through a voter was not answered"),
        }
        let Fact::Known(sample) = &view.second else { continue };
        let quota = match sample.db_quota {
            Fact::Known(Quota::Bytes(quota)) => Some(quota),
            Fact::Known(Quota::Disabled) => None,
            Fact::Unknown(_) => Some(policy.assumed_quota),
        };
        let cured = matches!(wanted, Disruption::Defragment(_)) || lifted(Code::DatabaseNearlyFull);
        if quota.is_some_and(|quota| sample.db_size > quota / 100 * policy.database_fill) && !cured {
            broken.push("the database of a voter is nearly full");
        }
    }
    broken
}

/// The furthest index that anybody told, first and second sample.
pub(crate) fn furthest(seen: &Observation) -> (Option<u64>, Option<u64>) {
    let both = || seen.etcd.members.iter().filter_map(|view| Some((view.first.known()?, view.second.known()?)));
    (both().map(|(first, _)| first.raft_index).max(), both().map(|(_, second)| second.raft_index).max())
}

/// How far the voters that have a say were by their first and by their second samples.
fn furthest_but(seen: &Observation, voters: &[&Member], silent: &[MemberId]) -> Option<(u64, u64)> {
    let counts = |id: MemberId| voters.iter().any(|voter| voter.id == id) && !silent.contains(&id);
    let both = || {
        let views = seen.etcd.members.iter().filter(|view| counts(view.id));
        views.filter_map(|view| Some((view.first.known()?.raft_index, view.second.known()?.raft_index)))
    };
    Some((both().map(|(first, _)| first).max()?, both().map(|(_, second)| second).max()?))
}

/// Who is being mended, or on the node of what is only finished: how far it is says nothing of the others.
fn without_a_say(seen: &Observation, in_flight: &InFlight, wanted: &Disruption) -> Vec<MemberId> {
    let mended = match wanted {
        Disruption::Promote(id) | Disruption::Remove(id) | Disruption::Replace(id) => Some(*id),
        _ => None,
    };
    let Mine::Adopted(me) = &in_flight.mine else { return mended.into_iter().collect() };
    let locks = in_flight.control_plane.known().into_iter().chain(in_flight.workers.known().into_iter().flatten());
    let targets: Vec<&NodeName> = locks
        .filter_map(|lock| match lock {
            Lock::Held(holder) if holder.identity == *me => Some(&holder.target),
            Lock::Held(_) | Lock::Free => None,
        })
        .collect();
    let on_them = seen.etcd.members.iter().filter(|view| view.node.known().is_some_and(|node| targets.contains(&node)));
    mended.into_iter().chain(on_them.map(|view| view.id)).collect()
}

/// Its index stalled while the furthest advanced: it lacks what they had one sample before, or more than who has just come back may lack.
fn stands_still(view: &MemberView, furthest: Option<(u64, u64)>, policy: &Policy) -> bool {
    let (Fact::Known(first), Fact::Known(second), Some((before, now))) = (&view.first, &view.second, furthest) else {
        return false;
    };
    let still = first.raft_index >= second.raft_index;
    let lacks = now.saturating_sub(second.raft_index);
    still && now > before && (before > second.raft_index || lacks > policy.recovered_lag)
}

/// One voter by itself, with its node.
fn is_healthy(
    view: &MemberView,
    list: &[Member],
    nodes: &[NodeView],
    seen: &Observation,
    wanted: &Disruption,
    policy: &Policy,
) -> bool {
    let lifted = |code| policy.lifted.contains(&code);
    let (Fact::Known(first), Fact::Known(second)) = (&view.first, &view.second) else { return false };
    let itself = [first, second].iter().all(|sample| sample.member_id == view.id && !sample.is_learner);
    let leads =
        |leader: Option<MemberId>| list.iter().any(|member| Some(member.id) == leader && member.role == Role::Voter);
    let leader = leads(first.leader) && leads(second.leader);
    let settled = first.term == second.term;
    let applies = second.raft_index <= second.applied_index + policy.healthy_lag;
    let mut own_list: Vec<Member> = match &view.member_list {
        Fact::Known(own) => own.clone(),
        Fact::Unknown(_) => return false,
    };
    own_list.sort();
    let reads = view.linearizable_read.known().is_some();
    let alarmed = seen.etcd.members.iter().filter_map(|view| view.alarms.known()).flatten().any(|alarm| {
        let cures = matches!(wanted, Disruption::Defragment(_) | Disruption::MoveLeader(_));
        let cured = alarm.kind == AlarmKind::NoSpace && cures;
        alarm.member == view.id && !cured
    });
    let certificate = |expires: &Fact<quorum_safety::UnixSeconds>| match expires {
        Fact::Known(at) => at.0 - seen.taken_at.0 >= policy.certificate_margin || lifted(Code::CertificateExpiring),
        Fact::Unknown(_) => lifted(Code::CertificateUnknown),
    };
    let Fact::Known(node) = &view.node else { return false };
    let Some(node) = nodes.iter().find(|other| other.name == *node) else { return false };
    let pods = Component::ALL.iter().all(|component| {
        node.static_pods.known().is_some_and(|pods| pods.iter().any(|pod| pod.component == *component && pod.ready))
    });
    let cordon = match node.cordon {
        Cordon::None => true,
        Cordon::Foreign => lifted(Code::ForeignCordon),
        Cordon::Ours(_) => false,
    };
    let apiservers = seen.apiservers.iter().filter(|apiserver| apiserver.node == node.name);
    itself
        && leader
        && settled
        && applies
        && own_list == list
        && reads
        && view.alarms.known().is_some()
        && !alarmed
        && certificate(&view.certificate_expires)
        && node.ready == Fact::Known(true)
        && pods
        && cordon
        && apiservers.clone().count() == 1
        && apiservers.clone().all(|apiserver| match (&apiserver.ready, &apiserver.certificate_expires) {
            (Fact::Unknown(_), Fact::Unknown(_)) => false,
            (_, expires) => certificate(expires),
        })
}

/// The most voters that are pairwise of one cluster and one leader in both samples, of one term, and close to each other.
fn largest_agreeing_set(healthy: &[&MemberView], policy: &Policy) -> usize {
    let mut largest = 0;
    for set in 0_u32..(1 << healthy.len()) {
        let members: Vec<(&StatusSample, &StatusSample)> = healthy
            .iter()
            .enumerate()
            .filter(|(at, _)| set & (1 << at) != 0)
            .filter_map(|(_, view)| Some((view.first.known()?, view.second.known()?)))
            .collect();
        // Each sample with each other one; how far apart they are is a question of the later ones.
        let samples = || members.iter().flat_map(|(first, second)| [*first, *second]);
        let one_cluster = samples().all(|one| {
            samples()
                .all(|other| one.cluster_id == other.cluster_id && one.leader == other.leader && one.term == other.term)
        });
        let close = members.iter().all(|(_, one)| {
            members.iter().all(|(_, other)| one.raft_index.abs_diff(other.raft_index) <= policy.healthy_lag)
        });
        let agree = one_cluster && close;
        if agree {
            largest = largest.max(members.len());
        }
    }
    largest
}

fn others_at_work(
    seen: &Observation,
    in_flight: &InFlight,
    wanted: &Disruption,
    policy: &Policy,
    target: Option<&NodeName>,
    plain_node: bool,
) -> Vec<&'static str> {
    let mut broken = Vec::new();
    let me = match &in_flight.mine {
        Mine::Nothing => None,
        Mine::Taken(identity) | Mine::Adopted(identity) => Some(identity),
    };
    let is_mine = |holder: &Holder| Some(&holder.identity) == me;
    let mut mine: Option<&Holder> = None;
    match &in_flight.control_plane {
        Fact::Unknown(_) => broken.push("the Lease is not known"),
        Fact::Known(Lock::Free) => {}
        Fact::Known(Lock::Held(holder)) if is_mine(holder) && !plain_node => mine = Some(holder),
        Fact::Known(Lock::Held(_)) => broken.push("somebody else holds the Lease"),
    }
    if plain_node {
        match &in_flight.workers {
            Fact::Unknown(_) => broken.push("the workers' Leases are not known"),
            Fact::Known(slots) => {
                let held: Vec<&Holder> = slots
                    .iter()
                    .filter_map(|slot| match slot {
                        Lock::Held(holder) => Some(holder),
                        Lock::Free => None,
                    })
                    .collect();
                mine = held.iter().copied().find(|holder| is_mine(holder));
                if mine.is_none() && held.len() >= policy.worker_slots {
                    broken.push("no worker slot is free");
                }
            }
        }
    }
    if me.is_some() && mine.is_none() {
        broken.push("the asker's Lease is not its own");
    }
    if let (Some(mine), Disruption::Reboot(node) | Disruption::Upgrade(node)) = (mine, wanted)
        && mine.target != *node
    {
        broken.push("the asker's Lease names another target");
    }
    match &in_flight.kured {
        Fact::Unknown(_) => broken.push("kured's lock is not known"),
        Fact::Known(Kured::Held(by)) if !by.starts_with("quorate/") || mine.is_none() => broken.push("kured reboots"),
        Fact::Known(_) => {}
    }
    if in_flight.kill_switch != Fact::Known(KillSwitch::Off) {
        broken.push("the kill switch is not off");
    }
    let reconfigures = !matches!(wanted, Disruption::Reboot(_) | Disruption::Upgrade(_) | Disruption::MoveLeader(_));
    if reconfigures && in_flight.snapshot != Fact::Known(Lock::Free) {
        broken.push("a snapshot may be under way");
    }
    for node in seen.nodes.known().into_iter().flatten().filter(|node| node.control_plane) {
        let own = Some(&node.name) == target || mine.is_some_and(|mine| mine.target == node.name);
        match &node.cordon {
            Cordon::None => {}
            Cordon::Foreign if own || plain_node || policy.lifted.contains(&Code::ForeignCordon) => {}
            Cordon::Foreign => broken.push("somebody else cordoned another control plane node"),
            Cordon::Ours(operation) if own && mine.is_some_and(|mine| mine.operation == *operation) => {}
            Cordon::Ours(_) => broken.push("another operation has cordoned a control plane node"),
        }
    }
    broken
}

fn membership_rules(
    seen: &Observation,
    list: &[Member],
    voters: &[&Member],
    wanted: &Disruption,
    policy: &Policy,
) -> Vec<&'static str> {
    let mut broken = Vec::new();
    for member in list.iter().filter(|member| member.role == Role::Learner || member.name.is_empty()) {
        let ended = match wanted {
            Disruption::Promote(id) => *id == member.id && !member.name.is_empty(),
            Disruption::Remove(id) => *id == member.id,
            _ => false,
        };
        if !ended {
            broken.push("a join is under way");
        }
    }
    for alarm in seen.etcd.members.iter().filter_map(|view| view.alarms.known()).flatten() {
        let cured = match wanted {
            Disruption::Defragment(_) | Disruption::MoveLeader(_) => alarm.kind == AlarmKind::NoSpace,
            Disruption::Remove(id) | Disruption::Replace(id) => alarm.kind == AlarmKind::Corrupt && alarm.member == *id,
            _ => false,
        };
        if !cured && !policy.lifted.contains(&Code::AlarmActive) {
            broken.push("an alarm is active");
        }
    }
    let answers = |id: MemberId| {
        seen.etcd
            .members
            .iter()
            .any(|view| view.id == id && view.first.known().is_some() && view.second.known().is_some())
    };
    match wanted {
        Disruption::Promote(id) => {
            if !list.iter().any(|member| member.id == *id && member.role == Role::Learner) {
                broken.push("what is promoted is not a learner");
            }
            if !answers(*id) {
                broken.push("a dead learner would be promoted");
            }
        }
        Disruption::MoveLeader(id) if !voters.iter().any(|voter| voter.id == *id) || !answers(*id) => {
            broken.push("leadership would go to nobody");
        }
        Disruption::Defragment(id) | Disruption::Remove(id) | Disruption::Replace(id) => {
            if !list.iter().any(|member| member.id == *id) {
                broken.push("nobody would be acted on");
            }
            let leads = seen
                .etcd
                .members
                .iter()
                .filter(|view| view.id == *id)
                .any(|view| view.second.known().is_some_and(|second| second.leader == Some(*id)));
            if leads {
                broken.push("the leader would go without handing over");
            }
        }
        _ => {}
    }
    broken
}
