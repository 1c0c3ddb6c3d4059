//! What a reboot sentinel does next: the protocol, as one function of what it sees. `quorate sentinel run` and the model (crates/quorum-model)
//! both drive it.
//!
//! kured reboots a node if it finds a file on it. It looks **once**, then asks for its lock, cordons, drains and reboots, each as late as it
//! likes, and never looks again. So the file is the beginning of a disruption that nobody can take back by removing it. What does take it
//! back is the end of the pod of kured that may have looked: the next pod uncordons and releases the lock, and looks anew.
//!
//! The order of a reboot is: Lease → announced in its record (step `open`) → file → kured's lock → reboot → step `recover` → kured's
//! release → proven recovery → Lease given back. The order of the way back is: file removed → kured's pod ended → kured's lock is not this
//! node's → Lease given back.
//!
//! What else it rests on:
//! - *The Lease is the memory.* From `open` on it says that something is half done, so only a sentinel of the same node can take it up
//!   (`decide`), whoever has died.
//! - *Its identity is that of its pod and the boot*, not of the process. A container that is started again in the same pod, in the same boot,
//!   is the same holder: kubelet starts it when its predecessor has ended. With an identity of each process nothing would ever prove the
//!   predecessor gone: its pod runs. A new boot id makes it another, which adopts; so does a release by hand ([`asks_as`]).
//! - *Who does not hold the Lease for sure has no file*: at its start, before anything else; when its deadline has passed; when the API is
//!   away. That needs nobody.
//! - *The file goes with the boot*: it lies on a tmpfs. Else kured finds it again after the reboot that it has asked for.
//! - *A file is created before the deadline or not at all.* That is assumed: between a look at the deadline and the system call a process may
//!   stop for as long as it likes. Nobody else is let in by that: the Lease says `open` since before, and only the same node takes it up.
//! - *kured's lock that names the own node*, while the Lease is held for it at `open`, is what was asked for. `judge` takes it for a stranger's
//!   and has to be asked without it.
//! - *kured's lock is never taken by a sentinel*; judged is that nobody else holds it.
//! - *One try, then it stands back*: what is not rebooted is closed and given back, and somebody else has a turn. What another sentinel of
//!   its node has left it takes up all the same, and then only closes.

/// How far a sentinel has announced that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The Lease is held and nothing has been changed.
    Acquired,
    /// There is a file, or there will be: from before it is created until kured cannot act on it any more.
    Open,
    /// The node has been down.
    Recover,
}

/// What a sentinel does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// It looks again later; it asks for the Lease if it wants a reboot, or its node is named in it.
    Wait,
    /// Removes the file.
    Close,
    /// Announces in the Lease that there will be a file.
    Announce,
    /// Creates the file, if its deadline allows.
    Open,
    /// Deletes kured's pod on this node, and waits until its processes have ended.
    EndKured,
    /// Gives the Lease back.
    GiveBack,
}

/// What it knows of the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// It cannot be read.
    Unknown,
    /// Nothing is held for this node by a sentinel.
    NotOurs,
    /// A sentinel of this node holds it, and not this process: an earlier one, or this one is late or was told to stop.
    Ours,
    /// This process holds it, is in time, and has announced this step.
    Held(Step),
}

/// Whom kured's lock names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Nobody.
    Free,
    /// This node: kured is about to reboot it, or to release the lock after the boot.
    Here,
    /// This node, and kured's pod on it is younger than that: it uncordons and releases.
    Returning,
    /// Another node, or an operation of ours.
    Elsewhere,
}

/// All that a sentinel looks at. What it cannot read is what makes it close.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The host wants a reboot.
    pub pending: bool,
    /// The file is there, whoever made it.
    pub file: bool,
    /// What is known of the Lease.
    pub lease: Lease,
    /// Whom kured's lock names.
    pub kured: Lock,
    /// The rule permits the reboot, asked under the Lease and of fresh facts.
    pub permitted: bool,
    /// kured had a whole period to act, and has not.
    pub waited: bool,
    /// A file was there since the pod of kured on this node began, or may have been.
    pub owes_end: bool,
    /// This try is over.
    pub gives_up: bool,
    /// The node has recovered, by every clause.
    pub recovered: bool,
}

/// As which holder of its pod and boot a sentinel asks for the Lease, counted from 0. Whoever was told by hand to stop never goes on; the next
/// one is another holder, which adopts after the silence of the one before. `held` is who holds it now, if that is one of these, whichever
/// process it was; `told` is the one as whom this process was last told to stop.
pub fn asks_as(held: Option<u32>, told: Option<u32>) -> u32 {
    match (held, told) {
        (Some(held), Some(told)) if told >= held => told.saturating_add(1),
        (Some(held), _) => held,
        // Nobody has it: whoever was told to stop may still be written there.
        (None, Some(told)) => told.saturating_add(1),
        (None, None) => 0,
    }
}

/// What to do next.
pub fn next(seen: &Seen) -> Act {
    match seen.lease {
        Lease::Held(Step::Recover) => after_the_boot(seen),
        Lease::Held(Step::Open) => open(seen),
        Lease::Held(_) => before(seen),
        Lease::Unknown | Lease::NotOurs | Lease::Ours if seen.file => Act::Close,
        // A gate was open with no Lease, or kured has its lock for this node with none: it is about to reboot, and nobody has allowed it.
        Lease::NotOurs if seen.owes_end || seen.kured == Lock::Here => Act::EndKured,
        Lease::Unknown | Lease::NotOurs | Lease::Ours => Act::Wait,
    }
}

/// Nothing is announced.
fn before(seen: &Seen) -> Act {
    if seen.file {
        return Act::Close;
    }
    if seen.owes_end {
        return Act::EndKured;
    }
    // The rule asks for kured's lock, too: it is free.
    if seen.pending && seen.permitted { Act::Announce } else { Act::GiveBack }
}

/// A file is announced. It may be there, and kured may have seen it.
fn open(seen: &Seen) -> Act {
    let others_turn = seen.kured == Lock::Elsewhere || (seen.waited && seen.kured == Lock::Free);
    let goes_on = seen.pending && seen.permitted && !others_turn && !seen.gives_up;
    match (seen.file, goes_on) {
        (true, true) => Act::Wait,
        (true, false) => Act::Close,
        // Of an earlier process, which may have had a file.
        (false, _) if seen.owes_end => Act::EndKured,
        // The new pod of kured uncordons and releases first.
        (false, _) if matches!(seen.kured, Lock::Here | Lock::Returning) => Act::Wait,
        (false, true) => Act::Open,
        (false, false) => Act::GiveBack,
    }
}

/// The node has been down.
fn after_the_boot(seen: &Seen) -> Act {
    if seen.file {
        return Act::Close;
    }
    if seen.owes_end {
        return Act::EndKured;
    }
    let names_this = matches!(seen.kured, Lock::Here | Lock::Returning);
    if names_this || !seen.recovered { Act::Wait } else { Act::GiveBack }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASES: [Lease; 6] = [
        Lease::Unknown,
        Lease::NotOurs,
        Lease::Ours,
        Lease::Held(Step::Acquired),
        Lease::Held(Step::Open),
        Lease::Held(Step::Recover),
    ];
    const LOCKS: [Lock; 4] = [Lock::Free, Lock::Here, Lock::Returning, Lock::Elsewhere];

    /// Everything that can be seen.
    fn all() -> impl Iterator<Item = Seen> {
        let bits = 0..1_u8 << 7;
        bits.flat_map(|bits| {
            LEASES.into_iter().flat_map(move |lease| LOCKS.into_iter().map(move |kured| (bits, lease, kured)))
        })
        .map(|(bits, lease, kured)| {
            let bit = |number: u8| bits & (1 << number) != 0;
            Seen {
                pending: bit(0),
                file: bit(1),
                lease,
                kured,
                permitted: bit(2),
                waited: bit(3),
                owes_end: bit(4),
                gives_up: bit(5),
                recovered: bit(6),
            }
        })
    }

    #[test]
    fn who_was_told_to_stop_asks_as_the_next_and_every_process_as_who_holds_it() {
        assert_eq!(asks_as(None, None), 0);
        assert_eq!(asks_as(Some(0), None), 0);
        assert_eq!(asks_as(Some(3), None), 3, "of an earlier process");
        assert_eq!(asks_as(Some(0), Some(0)), 1);
        assert_eq!(asks_as(Some(1), Some(0)), 1, "it is this one's by now");
        assert_eq!(asks_as(Some(1), Some(1)), 2);
        assert_eq!(asks_as(Some(0), Some(1)), 2, "never as one that was told");
        assert_eq!(asks_as(None, Some(0)), 1);
    }

    fn is_here(lock: Lock) -> bool {
        matches!(lock, Lock::Here | Lock::Returning)
    }

    /// What a gate that is open stays open for, and nothing else.
    fn stays(seen: &Seen) -> bool {
        let others_turn = seen.kured == Lock::Elsewhere || (seen.waited && seen.kured == Lock::Free);
        seen.lease == Lease::Held(Step::Open) && seen.pending && seen.permitted && !seen.gives_up && !others_turn
    }

    #[test]
    fn a_file_is_closed_unless_everything_speaks_for_it() {
        for seen in all().filter(|seen| seen.file) {
            assert_eq!(next(&seen), if stays(&seen) { Act::Wait } else { Act::Close }, "{seen:?}");
        }
    }

    #[test]
    fn without_a_file_each_act_has_what_it_needs_and_comes_when_it_has() {
        for seen in all().filter(|seen| !seen.file) {
            let wanted = match seen.lease {
                Lease::Unknown | Lease::Ours => Act::Wait,
                Lease::NotOurs if seen.owes_end || seen.kured == Lock::Here => Act::EndKured,
                Lease::NotOurs => Act::Wait,
                Lease::Held(_) if seen.owes_end => Act::EndKured,
                Lease::Held(Step::Acquired) if seen.pending && seen.permitted => Act::Announce,
                Lease::Held(Step::Acquired) => Act::GiveBack,
                Lease::Held(Step::Open | Step::Recover) if is_here(seen.kured) => Act::Wait,
                Lease::Held(Step::Open) if stays(&seen) => Act::Open,
                Lease::Held(Step::Open) => Act::GiveBack,
                Lease::Held(Step::Recover) if seen.recovered => Act::GiveBack,
                Lease::Held(Step::Recover) => Act::Wait,
            };
            assert_eq!(next(&seen), wanted, "{seen:?}");
        }
    }
}
