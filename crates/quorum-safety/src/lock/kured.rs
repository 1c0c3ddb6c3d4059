//! kured's lock: an annotation on its DaemonSet, which it takes before it drains.

use crate::in_flight::Kured;
use crate::observation::Fact;
use serde::{Deserialize, Serialize};

/// The value of kured's annotation: one owner, or with `--concurrency` above 1 a list. Fields that kured adds are kept out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum KuredLock {
    /// Several owners may hold it at once.
    Many {
        /// How many.
        #[serde(rename = "maxOwners")]
        max_owners: u32,
        /// Who holds it; `null` in kured's JSON for nobody.
        locks: Option<Vec<KuredBlock>>,
    },
    /// One owner.
    One(KuredBlock),
}

/// One owner in kured's annotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KuredBlock {
    /// A node's name when kured holds it; `quorate/<operation>` when we do.
    #[serde(rename = "nodeID")]
    pub node_id: String,
    /// The Lease identity for which we hold it. kured ignores it.
    #[serde(rename = "quorateHolder", default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// When it was taken, RFC 3339.
    #[serde(default = "year_one")]
    pub created: String,
    /// After how many nanoseconds kured takes it from its owner.
    #[serde(rename = "TTL", default)]
    pub ttl: i64,
}

// What Go makes of a missing time.
fn year_one() -> String {
    "0001-01-01T00:00:00Z".to_owned()
}

const OURS: &str = "quorate/";

impl KuredBlock {
    /// Our own block. A lifetime of 292 years and the time of its creation are written out: to a block without them kured applies its
    /// own `--lock-ttl`, counted from the year 1, and takes it away at once (kured, daemonsetlock.go, `effectiveTTL`).
    pub fn ours(operation: &str, holder: &str, created: String) -> Self {
        Self { node_id: format!("{OURS}{operation}"), holder: Some(holder.to_owned()), created, ttl: i64::MAX }
    }

    /// Whether quorate wrote it: no node's name has a slash.
    pub fn is_ours(&self) -> bool {
        self.node_id.starts_with(OURS)
    }
}

impl KuredLock {
    /// The lock held by us alone, in the form that a kured of this concurrency reads: with a list it counts entries, so all places are
    /// filled.
    pub fn filled(block: KuredBlock, concurrency: u32) -> Self {
        if concurrency > 1 {
            let places = usize::try_from(concurrency).unwrap_or(usize::MAX);
            Self::Many { max_owners: concurrency, locks: Some(vec![block; places]) }
        } else {
            Self::One(block)
        }
    }

    /// All owners.
    pub fn blocks(&self) -> &[KuredBlock] {
        match self {
            Self::One(block) => std::slice::from_ref(block),
            Self::Many { locks, .. } => locks.as_deref().unwrap_or_default(),
        }
    }

    /// The lock as `judge` wants to know it. A foreign owner is named before ours.
    pub fn in_flight(&self) -> Kured {
        let foreign = self.blocks().iter().find(|block| !block.is_ours());
        match foreign.or_else(|| self.blocks().first()) {
            Some(block) => Kured::Held(block.node_id.clone()),
            None => Kured::Free,
        }
    }
}

/// What to do about kured's lock, with the Lease in hand and before acting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KuredStep {
    /// No kured: nothing to do.
    Nothing,
    /// Free, or held by an operation of ours that no longer holds any Lease: write our block.
    Take,
    /// It is ours.
    Mine,
    /// Another holds it, or it could not be read: give the Lease back and come again. Nobody waits for kured's lock while holding the
    /// Lease, or a reboot of kured's and we would wait for each other.
    GiveLeaseBack(Fact<String>),
}

/// Decides about kured's lock. `seen` is its annotation, none inside for no annotation and none outside for no kured; `live` are the
/// identities that hold any of our Leases now.
pub fn kured_step(seen: &Fact<Option<Option<KuredLock>>>, me: &str, live: &Fact<Vec<String>>) -> KuredStep {
    let lock = match seen {
        Fact::Unknown(why) => return KuredStep::GiveLeaseBack(Fact::Unknown(why.clone())),
        Fact::Known(None) => return KuredStep::Nothing,
        Fact::Known(Some(None)) => return KuredStep::Take,
        Fact::Known(Some(Some(lock))) => lock,
    };
    if lock.blocks().is_empty() {
        return KuredStep::Take;
    }
    let mine = |block: &KuredBlock| block.is_ours() && block.holder.as_deref() == Some(me);
    if lock.blocks().iter().all(mine) {
        return KuredStep::Mine;
    }
    for block in lock.blocks().iter().filter(|block| !mine(block)) {
        if !block.is_ours() {
            return KuredStep::GiveLeaseBack(Fact::Known(block.node_id.clone()));
        }
        match live {
            Fact::Unknown(why) => return KuredStep::GiveLeaseBack(Fact::Unknown(why.clone())),
            // A block of ours that does not name its holder cannot be matched with a Lease: it is left alone while any other of our
            // operations lives.
            Fact::Known(live) => {
                let lives = match &block.holder {
                    Some(holder) => live.iter().any(|identity| identity == holder),
                    None => live.iter().any(|identity| identity != me),
                };
                if lives {
                    return KuredStep::GiveLeaseBack(Fact::Known(block.node_id.clone()));
                }
            }
        }
    }
    KuredStep::Take
}
