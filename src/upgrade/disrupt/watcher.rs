//! What a step does while it drains: tells what goes on, and stops by the kill switch.

use crate::drain::{Overseer, Progress};
use crate::upgrade::chain::Chain;
use quorum_safety::NodeName;

/// Watches a drain: stops it by the kill switch.
pub(super) struct Watcher<'a, 'c> {
    pub(super) chain: &'a Chain<'c>,
    pub(super) node: &'a NodeName,
}

impl Overseer for Watcher<'_, '_> {
    async fn should_stop(&mut self) -> Option<String> {
        self.chain.stopped().await.map(|reason| reason.to_string())
    }

    fn progress(&mut self, event: &Progress) {
        let text = match event {
            Progress::Evicting(pod) => format!("evicting {pod}"),
            Progress::Deleting(pod) => format!("deleting {pod} past its budget, as its namespace's policy says"),
            Progress::Gone(_) => return,
            Progress::Waiting(blocker) => format!("waiting for {blocker}"),
            Progress::Trouble(what) => format!("the API: {what}"),
        };
        self.chain.say(&format!("{}: {text}", self.node));
    }
}
