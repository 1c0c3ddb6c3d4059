//! Why a gate is closed: reasons of the rule, and those that only a sentinel has. Codes are stable: metrics and alerts carry them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One reason why the gate of this node is closed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reason {
    /// `Q…` of the rule's catalogue, or `S…` of [`Code`].
    pub code: String,
    /// What it is about here, in words.
    pub detail: String,
}

impl Reason {
    /// A reason of the sentinel's own.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code: code.as_str().to_owned(), detail: detail.into() }
    }

    /// What it is about, without the numbers: those that count minutes are others at every look, and it is the same answer.
    pub fn without_figures(&self) -> Self {
        let is_number = |word: &str| word.trim_end_matches([',', ';']).bytes().all(|byte| byte.is_ascii_digit());
        let words: Vec<&str> = self.detail.split(' ').filter(|word| !is_number(word)).collect();
        Self { code: self.code.clone(), detail: words.join(" ") }
    }
}

impl From<quorum_safety::Reason> for Reason {
    fn from(reason: quorum_safety::Reason) -> Self {
        Self { code: reason.code.as_str().to_owned(), detail: reason.detail }
    }
}

impl From<&quorum_safety::Reason> for Reason {
    fn from(reason: &quorum_safety::Reason) -> Self {
        Self::from(reason.clone())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

macro_rules! codes {
    ($($variant:ident $text:literal $sentence:literal)*) => {
        /// The reasons of a sentinel's own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $(#[doc = $sentence] $variant,)* }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The code as it is told.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

codes! {
    HostUnknown "S001-host-unknown" "Whether the host wants a reboot cannot be told."
    FileUnknown "S002-file-unknown" "Whether the gate's file is there cannot be told: it counts as open."
    FileStays "S003-file-stays" "The gate's file cannot be removed: it counts as open, and the Lease is kept."
    FileNotWritable "S004-file-not-writable" "The gate's file cannot be created."
    ApiUnknown "S005-api-unknown" "The API cannot be asked."
    NotAllowed "S006-not-allowed" "The account of the sentinel lacks a right that it will need."
    ClockJumped "S007-clock-jumped" "The clock of this machine has jumped."
    EtcdFiles "S008-etcd-files" "The files with which etcd is asked cannot be read on this control plane node."
    NodeUnknown "S010-node-unknown" "What the API says of a node cannot be understood."
    NodeNotReady "S011-node-not-ready" "A node is not Ready."
    NodeCordoned "S012-node-cordoned" "A node is cordoned: somebody is at work on it."
    Soak "S013-soak" "A node became Ready, or booted, a short while ago."
    SoakUnknown "S014-soak-unknown" "Since when a node is up is not known."
    WorkloadNotWhole "S015-workload-not-whole" "A DaemonSet that must be whole is not."
    WorkloadUnknown "S016-workload-unknown" "Whether a DaemonSet that must be whole is so cannot be told."
    KuredAbsent "S020-kured-absent" "There is no kured: nobody would act on the gate."
    KuredElsewhere "S021-kured-elsewhere" "kured looks at another file than the gate's."
    KuredConcurrency "S022-kured-concurrency" "kured may reboot several nodes at once."
    KuredLockTtl "S023-kured-lock-ttl" "kured's lock runs out by itself."
    KuredForces "S024-kured-forces" "kured reboots although its drain has failed."
    KuredCommand "S025-kured-command" "kured asks a command, and not a file."
    KuredPeriod "S026-kured-period" "kured looks too rarely: the Lease would be held for as long."
    KuredUnreadable "S027-kured-unreadable" "kured's configuration cannot be understood."
    WindowClosed "S028-window-closed" "kured's window is closed, or ends before kured would have looked twice."
    KuredAlerts "S029-kured-alerts" "An alert that quorate ships would keep kured from acting."
    KuredDidNotAct "S030-kured-did-not-act" "kured did not act on the open gate in time."
    DrainAborted "S031-drain-aborted" "kured gave its lock back and did not reboot."
    Resting "S032-resting" "The last try was over a short while ago."
    Closing "S033-closing" "A gate that was open is being closed: kured's pod on this node is ended, so that it looks anew."
    Recovering "S034-recovering" "The node is back and has not proven that it is whole."
    Undone "S035-undone" "An act of the sentinel could not be carried out."
    AlertActive "S036-alert-active" "An alert is active that is not to be ignored."
    AlertsUnknown "S037-alerts-unknown" "Whether an alert is active cannot be told."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_that_pass_make_no_other_answer_and_another_node_does() {
        let soak = |detail: &str| Reason::new(Code::Soak, detail).without_figures();
        assert_eq!(
            soak("k1 is up since 5 min, and 1435 min are left"),
            soak("k1 is up since 6 min, and 1434 min are left")
        );
        assert_ne!(
            soak("k1 is up since 5 min, and 1435 min are left"),
            soak("k2 is up since 5 min, and 1435 min are left")
        );
    }

    #[test]
    fn no_number_is_there_twice() {
        let numbers: Vec<&str> = Code::ALL.iter().map(|code| &code.as_str()[..4]).collect();
        assert!(numbers.is_sorted() && numbers.windows(2).all(|two| two[0] != two[1]), "{numbers:?}");
    }
}
