//! Who else is disrupting, and whether anybody may: Leases, kured's lock, the kill switch, cordons.

use super::case::Case;
use super::nodes;
use crate::disruption::Disruption;
use crate::in_flight::{Holder, KillSwitch, Kured, Lock, Mine};
use crate::membership::NodeName;
use crate::observation::{Cordon, Fact};
use crate::reason::{Code, Reason};

/// Which cluster this is.
pub(super) fn cluster_unknown(case: &Case<'_>) -> Option<Reason> {
    match &case.seen.cluster_uid {
        Fact::Known(_) => None,
        Fact::Unknown(why) => Some(Reason::new(Code::ClusterUnknown, why.clone())),
    }
}

/// The disruption Leases.
pub(super) fn leases(case: &Case<'_>) -> Vec<Reason> {
    let mut reasons = control_plane_lease(case);
    if case.worker {
        reasons.extend(worker_leases(case));
    }
    reasons.extend(own_lease(case));
    reasons
}

fn control_plane_lease(case: &Case<'_>) -> Vec<Reason> {
    match &case.in_flight.control_plane {
        Fact::Unknown(why) => vec![Reason::new(Code::LeaseUnknown, format!("control-plane-disruption: {why}"))],
        Fact::Known(Lock::Free) => Vec::new(),
        // A worker's actor holds a worker's Lease: this one is never its own.
        Fact::Known(Lock::Held(holder)) if case.own == Some(holder) && !case.worker => Vec::new(),
        Fact::Known(Lock::Held(holder)) => vec![held("control-plane-disruption", holder)],
    }
}

fn worker_leases(case: &Case<'_>) -> Vec<Reason> {
    let slots = match &case.in_flight.workers {
        Fact::Unknown(why) => return vec![Reason::new(Code::LeaseUnknown, format!("worker-disruption: {why}"))],
        Fact::Known(slots) => slots,
    };
    if case.own.is_some() {
        return Vec::new();
    }
    let held: Vec<&Holder> = slots
        .iter()
        .filter_map(|lock| match lock {
            Lock::Free => None,
            Lock::Held(holder) => Some(holder),
        })
        .collect();
    if held.len() < case.policy.worker_slots {
        return Vec::new();
    }
    if held.is_empty() {
        return vec![Reason::new(Code::LeaseHeld, "no worker may be disrupted: there is no slot")];
    }
    held.into_iter().map(|holder| self::held("worker-disruption", holder)).collect()
}

fn held(lease: &str, holder: &Holder) -> Reason {
    let Holder { identity, operation, target } = holder;
    Reason::new(Code::LeaseHeld, format!("{lease} is held by {identity} for {operation} on {target}"))
}

/// An asker that says it holds a Lease must be in it, for the node that it asks about.
fn own_lease(case: &Case<'_>) -> Option<Reason> {
    let identity = match &case.in_flight.mine {
        Mine::Nothing => return None,
        Mine::Taken(identity) | Mine::Adopted(identity) => identity,
    };
    let readable = if case.worker {
        case.in_flight.workers.known().is_some()
    } else {
        case.in_flight.control_plane.known().is_some()
    };
    match case.own {
        None if readable => Some(Reason::new(Code::LeaseNotMine, format!("{identity} does not hold it"))),
        // That it cannot be read is told by itself.
        None => None,
        Some(own) => match case.wanted {
            Disruption::Reboot(target) | Disruption::Upgrade(target) => lease_names_another(own, target),
            Disruption::MoveLeader(_)
            | Disruption::Defragment(_)
            | Disruption::AddLearner
            | Disruption::Promote(_)
            | Disruption::Remove(_)
            | Disruption::Replace(_)
            | Disruption::Restore => None,
        },
    }
}

fn lease_names_another(own: &Holder, target: &NodeName) -> Option<Reason> {
    (own.target != *target).then(|| {
        Reason::new(Code::LeaseNotMine, format!("{} holds it for {}, not for {target}", own.identity, own.target))
    })
}

/// kured looks at its file once and acts late: a lock that it holds is a reboot. Ours, told by the operation in its name, stands for
/// nothing unless the Lease of that operation stands behind it.
pub(super) fn kured(case: &Case<'_>) -> Option<Reason> {
    match &case.in_flight.kured {
        Fact::Unknown(why) => Some(Reason::new(Code::KuredUnknown, why.clone())),
        Fact::Known(Kured::Absent | Kured::Free) => None,
        Fact::Known(Kured::Held(by)) => {
            let ours = case.own.is_some_and(|own| by.strip_prefix("quorate/") == Some(own.operation.as_str()));
            (!ours).then(|| Reason::new(Code::KuredLockHeld, format!("held by {by}")))
        }
    }
}

/// The kill switch stops every new disruption and every one that is to be finished; undoing is not judged.
pub(super) fn kill_switch(case: &Case<'_>) -> Option<Reason> {
    match &case.in_flight.kill_switch {
        Fact::Unknown(why) => Some(Reason::new(Code::KillSwitchUnknown, why.clone())),
        Fact::Known(KillSwitch::Off) => None,
        Fact::Known(KillSwitch::Engaged(reason)) if reason.is_empty() => {
            Some(Reason::new(Code::KillSwitchEngaged, "no reason was given"))
        }
        Fact::Known(KillSwitch::Engaged(reason)) => Some(Reason::new(Code::KillSwitchEngaged, reason.clone())),
    }
}

/// A member that is defragmented or reconfigured behind an open snapshot stream freezes (etcd-notes, 2b row 4).
pub(super) fn snapshot(case: &Case<'_>) -> Option<Reason> {
    match case.wanted {
        Disruption::Reboot(_) | Disruption::Upgrade(_) | Disruption::MoveLeader(_) => return None,
        Disruption::Defragment(_)
        | Disruption::AddLearner
        | Disruption::Promote(_)
        | Disruption::Remove(_)
        | Disruption::Replace(_)
        | Disruption::Restore => {}
    }
    match &case.in_flight.snapshot {
        Fact::Unknown(why) => Some(Reason::new(Code::SnapshotLeaseUnknown, why.clone())),
        Fact::Known(Lock::Free) => None,
        Fact::Known(Lock::Held(Holder { identity, operation, target })) => {
            Some(Reason::new(Code::SnapshotInProgress, format!("{identity} takes one ({operation}) on {target}")))
        }
    }
}

/// Cordons that say that somebody is disrupting a control plane node. Other workers' cordons hold nobody; for a worker, a
/// stranger's cordon on a control plane node only makes its voter uncounted.
pub(super) fn cordons(case: &Case<'_>) -> Vec<Reason> {
    let judged = case.nodes().iter().filter(|node| {
        let hosts_member = case.members.iter().any(|member| member.node() == Some(&node.name));
        node.control_plane || hosts_member || case.target == Some(&node.name)
    });
    judged
        .filter(|node| !(case.worker && node.cordon == Cordon::Foreign))
        .filter_map(|node| nodes::cordon(case, node))
        .collect()
}
