//! What a sentinel does next and what it says, from all that it has seen. Pure: the protocol is [`quorum_safety::sentinel::next`]; here what
//! was seen becomes its input, and what is not known becomes what closes.

use super::reason::{Code, Reason};
use quorum_safety::Fact;
use quorum_safety::sentinel::{Act, Lease, Lock, Seen, Step, next};

/// All that was seen in one look.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whether the host wants a reboot.
    pub required: Fact<bool>,
    /// Whether the gate's file is there.
    pub file: Fact<bool>,
    /// What is known of the Lease.
    pub lease: Lease,
    /// Whom kured's lock names.
    pub kured: Fact<Lock>,
    /// Why this node may not be rebooted now, as far as was looked.
    pub reasons: Vec<Reason>,
    /// Whether everything was looked at: only then no reason means yes.
    pub whole: bool,
    /// kured had its period and a margin to act, and has not.
    pub waited: bool,
    /// A file was there since the pod of kured on this node began, or may have been.
    pub owes_end: bool,
    /// Why this try is over.
    pub gives_up: Option<Reason>,
    /// Until when it stands back after its last try, in words.
    pub rests: Option<String>,
    /// What of this node is not as it must be before the Lease is given back.
    pub not_recovered: Vec<Reason>,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to do next.
    pub act: Act,
    /// Whether the gate is open, or may be.
    pub open: bool,
    /// Whether a reboot is wanted, or that is not known.
    pub pending: bool,
    /// Why it is not open, or will not stay so; none while nothing is wanted.
    pub reasons: Vec<Reason>,
}

impl Facts {
    fn pending(&self) -> bool {
        self.required == Fact::Known(true)
    }

    /// What is not known counts as there.
    fn file(&self) -> bool {
        self.file != Fact::Known(false)
    }

    /// A gate under which kured's lock cannot be read may be another node's turn.
    fn permitted(&self) -> bool {
        self.whole && self.reasons.is_empty() && self.kured.known().is_some()
    }

    /// Whether to ask for the Lease: this node may be rebooted, or what an earlier process of this node has begun is to be ended. Never
    /// while a file lies about.
    pub fn asks_for_lease(&self) -> bool {
        let wants = self.lease == Lease::NotOurs
            && self.pending()
            && self.permitted()
            && self.kured == Fact::Known(Lock::Free)
            && self.rests.is_none()
            && !self.owes_end;
        !self.file() && (wants || self.lease == Lease::Ours)
    }

    fn seen(&self) -> Seen {
        let held = matches!(self.lease, Lease::Held(_));
        Seen {
            pending: self.pending(),
            file: self.file(),
            lease: self.lease,
            kured: match &self.kured {
                Fact::Known(lock) => *lock,
                // It may be this node's: nothing is given back. Without the Lease nothing follows from what is not known.
                Fact::Unknown(_) if held => Lock::Returning,
                Fact::Unknown(_) => Lock::Free,
            },
            permitted: self.permitted(),
            waited: self.waited,
            owes_end: self.owes_end,
            gives_up: self.gives_up.is_some(),
            recovered: self.not_recovered.is_empty(),
        }
    }

    fn told(&self, act: Act) -> Vec<Reason> {
        let mut reasons = self.reasons.clone();
        if let Fact::Unknown(why) = &self.required {
            reasons.push(Reason::new(Code::HostUnknown, why.clone()));
        }
        if let Fact::Unknown(why) = &self.file {
            reasons.push(Reason::new(Code::FileUnknown, why.clone()));
        }
        if let Fact::Unknown(why) = &self.kured {
            reasons.push(quorum_safety::Reason::new(quorum_safety::Code::KuredUnknown, why.clone()).into());
        }
        if self.waited && self.kured == Fact::Known(Lock::Free) {
            reasons.push(Reason::new(Code::KuredDidNotAct, "its period and the margin are over"));
        }
        reasons.extend(self.gives_up.clone());
        if let Some(rests) = &self.rests {
            reasons.push(Reason::new(Code::Resting, rests.clone()));
        }
        let ending = self.owes_end && !self.file();
        if act == Act::EndKured || ending {
            reasons.push(Reason::new(Code::Closing, "kured may have seen the gate open"));
        }
        if matches!(self.lease, Lease::Held(Step::Recover)) || act == Act::Wait && self.waits_for_recovery() {
            reasons.extend(self.not_recovered.clone());
        }
        reasons.extend(self.not_released());
        reasons.sort();
        reasons.dedup();
        reasons
    }

    /// The node is whole, and what it waits for is kured.
    fn not_released(&self) -> Option<Reason> {
        let whole = self.lease == Lease::Held(Step::Recover) && self.not_recovered.is_empty();
        let held = whole && matches!(self.kured, Fact::Known(Lock::Here | Lock::Returning));
        let why = "kured has not given its lock back since this node is up";
        held.then(|| quorum_safety::Reason::new(quorum_safety::Code::KuredLockHeld, why).into())
    }

    /// The gate was open, and is given back only by a node that is whole: that this boot is still the one in which it was opened is what the
    /// API says, and right after a boot it may not have heard of it (incident H06).
    fn waits_for_recovery(&self) -> bool {
        self.lease == Lease::Held(Step::Open) && !self.file() && !self.not_recovered.is_empty()
    }
}

/// Decides.
pub fn plan(facts: &Facts) -> Plan {
    let mut act = next(&facts.seen());
    if act == Act::GiveBack && facts.waits_for_recovery() {
        act = Act::Wait;
    }
    let pending = facts.required != Fact::Known(false);
    let busy = facts.file() || facts.owes_end || matches!(facts.lease, Lease::Held(_) | Lease::Ours);
    let reasons = if pending || busy || facts.file != Fact::Known(false) { facts.told(act) } else { Vec::new() };
    Plan { act, open: facts.file(), pending, reasons }
}

#[cfg(test)]
mod tests;
