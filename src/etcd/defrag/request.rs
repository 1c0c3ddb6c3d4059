//! Asks one member for something, and to defragment itself.

use crate::observe::etcd::connection::{Connection, Tls, connect};
use crate::observe::etcd::{ClientFiles, endpoint, words};
use etcd_client::Client;
use quorum_safety::{Disrupting, Member};
use std::time::Duration;

/// What was heard of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It is done.
    Done,
    /// Nothing was asked.
    NotAsked(String),
    /// Something else.
    Other(String),
    /// Nothing in time. etcd's server looks at no deadline of a client and goes on: only the member itself can tell.
    Silent(String),
}

/// Asks this member for a defragmentation.
pub(super) async fn defragment(
    files: &ClientFiles,
    member: &Member,
    _: &Disrupting,
    connecting: Duration,
    answer: Duration,
) -> Heard {
    with(files, member, connecting, answer, async |client| client.defragment().await.map(drop)).await
}

/// Asks this member whatever it is, on a connection of its own; `connecting` is for that, `answer` for the answer.
pub(super) async fn with(
    files: &ClientFiles,
    member: &Member,
    connecting: Duration,
    answer: Duration,
    ask: impl AsyncFnOnce(&mut Client) -> Result<(), etcd_client::Error>,
) -> Heard {
    let tls = match Tls::read(files).await {
        Ok(tls) => tls,
        Err(error) => return Heard::NotAsked(error.to_string()),
    };
    let Some(endpoint) = endpoint(member) else { return Heard::NotAsked("it has no client URL".to_owned()) };
    let Connection { mut client, .. } = match connect(&tls, &endpoint, connecting).await {
        Ok(connection) => connection,
        Err(why) => return Heard::NotAsked(why),
    };
    match tokio::time::timeout(answer, ask(&mut client)).await {
        Ok(Ok(())) => Heard::Done,
        Ok(Err(error)) => Heard::Other(words(&error)),
        Err(_) => Heard::Silent(format!("no answer in {} s", answer.as_secs_f32())),
    }
}
