//! Asks etcd for one change of members, through its leader: who is asked looks at its own connections.

use super::plan::Change;
use crate::observe::etcd::connection::{Connection, Tls, connect};
use crate::observe::etcd::{ClientFiles, endpoint, words};
use etcd_client::{Error, MemberAddOptions};
use quorum_safety::Member;
use std::time::Duration;

/// Why a change was not made, or may not have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotMade {
    /// Nothing was asked, or etcd looked at it and said no: nothing has changed.
    #[error("{0}")]
    Refused(String),
    /// It may have its effect all the same, now or in a moment.
    #[error("it is not known whether it was done: {0}")]
    Unknown(String),
}

/// What etcd says of its own checks, before it proposes anything (`v3rpc/rpctypes/error.go`). All else may come after.
const CHECKED: [&str; 9] = [
    "unhealthy cluster",
    "re-configuration failed",
    "can only promote a learner member",
    "too many learner members",
    "member not found",
    "member ID already exist",
    "Peer URLs already exists",
    "in sync with leader",
    "bad leader transferee",
];

/// Asks the member for the change; `deadline` is for the connection and for the answer each.
///
/// # Errors
/// When it was refused, or nobody knows.
pub async fn make(files: &ClientFiles, leader: &Member, change: &Change, deadline: Duration) -> Result<(), NotMade> {
    let not_asked = NotMade::Refused;
    let tls = Tls::read(files).await.map_err(|error| not_asked(error.to_string()))?;
    let endpoint = endpoint(leader).ok_or_else(|| not_asked("the leader has no client URL".to_owned()))?;
    let Connection { mut client, .. } = connect(&tls, &endpoint, deadline).await.map_err(not_asked)?;
    let asked = async {
        match change {
            Change::Remove(id) => client.member_remove(id.0).await.map(drop),
            // A voter is never added directly (etcd-notes, 2b rows 2 and 3).
            Change::Add(url) => {
                let learner = MemberAddOptions::new().with_is_learner();
                client.member_add([url.as_str()], Some(learner)).await.map(drop)
            }
            Change::Promote(id) => client.member_promote(id.0).await.map(drop),
            Change::MoveLeader(id) => client.move_leader(id.0).await.map(drop),
        }
    };
    match tokio::time::timeout(deadline, asked).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(judged(&error)),
        Err(_) => Err(NotMade::Unknown(format!("no answer in {} s", deadline.as_secs_f32()))),
    }
}

fn judged(error: &Error) -> NotMade {
    let text = words(error);
    if CHECKED.iter().any(|said| text.contains(said)) { NotMade::Refused(text) } else { NotMade::Unknown(text) }
}
