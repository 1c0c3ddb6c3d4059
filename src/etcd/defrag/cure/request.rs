//! What a cure asks of a member besides a defragmentation: to compact, to disarm, and to take a write that leaves nothing behind.

use super::super::request::{Heard, with};
use crate::observe::etcd::ClientFiles;
use etcd_client::{AlarmAction, AlarmOptions, AlarmType, CompactionOptions, GetOptions};
use quorum_safety::{Member, MemberId};
use std::time::Duration;

/// What etcd says where this revision is gone already: what was wanted.
const COMPACTED: &str = "required revision has been compacted";
/// How long, in seconds, the lease lives by which a write is tried, should it not be taken back.
const TRIED: i64 = 10;

/// Compacts to the revision that a linearizable read tells, in all members; the one that is asked answers when its own database is done.
pub(super) async fn compact(files: &ClientFiles, member: &Member, connecting: Duration, answer: Duration) -> Heard {
    let asked = with(files, member, connecting, answer, async |client| {
        let read = client.get("quorate", Some(GetOptions::new().with_limit(1).with_keys_only())).await?;
        let revision = read.header().map_or(0, etcd_client::ResponseHeader::revision);
        client.compact(revision, Some(CompactionOptions::new().with_physical())).await.map(drop)
    });
    match asked.await {
        Heard::Other(why) if why.contains(COMPACTED) => Heard::Done,
        heard => heard,
    }
}

/// Disarms the alarm NOSPACE of one member.
pub(super) async fn disarm(files: &ClientFiles, member: &Member, of: MemberId, answer: Duration) -> Heard {
    with(files, member, answer, answer, async |client| {
        let mut options = AlarmOptions::new();
        options.with_member(of.0);
        client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options)).await.map(drop)
    })
    .await
}

/// Writes through a member what leaves no key and no revision behind: a lease, which is taken back at once. etcd grants none under NOSPACE.
pub(super) async fn write(files: &ClientFiles, member: &Member, answer: Duration) -> Heard {
    with(files, member, answer, answer, async |client| {
        let granted = client.lease_grant(TRIED, None).await?;
        client.lease_revoke(granted.id()).await.map(drop)
    })
    .await
}
