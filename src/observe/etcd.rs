//! Asks every etcd member on a connection of its own. A client built on several endpoints balances between them, so that
//! Status would answer for any of them.

use connection::{Connection, Tls, connect};
use etcd_client::{AlarmAction, AlarmType, Client};
use quorum_safety::{
    Alarm, AlarmKind, ClusterId, EtcdView, Fact, Member, MemberId, MemberView, Membership, NodeName, Quota, Role,
    StatusSample,
};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) mod connection;

/// Where kubeadm keeps etcd's certificates.
pub const KUBEADM_PKI: &str = "/etc/kubernetes/pki/etcd";

/// The three files that a reader of etcd needs: `ca.crt`, `healthcheck-client.crt`, `healthcheck-client.key`.
#[derive(Clone, Debug)]
pub struct ClientFiles {
    folder: PathBuf,
}

/// Why etcd could not be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file is missing or may not be read.
    #[error("cannot read {}: {source}; an etcd client certificate is on control plane nodes only, and only root reads it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it has to be.
    #[error("{}: {what}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why it cannot be used.
        what: String,
    },
}

impl ClientFiles {
    /// The files in this folder.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, FilesError> {
        let path = self.folder.join(name);
        std::fs::read(&path).map_err(|source| FilesError::Read { path, source })
    }

    /// Tries to read them, before that is needed.
    ///
    /// # Errors
    /// When one cannot be read, or all of them cannot be used together.
    pub async fn test(&self) -> Result<(), FilesError> {
        Tls::read(self).await.map(drop)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// How long the parts of an observation take.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Deadline of each answer.
    pub answer: Duration,
    /// Between the two samples; at least a second, or a stalled member cannot be told from a slow one.
    pub between_samples: Duration,
}

/// What the members said, before it is known on which nodes they are.
pub struct Asked {
    /// The member list, proven by a linearizable read.
    pub membership: Fact<Membership>,
    members: Vec<(Member, MemberView)>,
}

impl Asked {
    /// With the nodes of the members. `nodes` maps InternalIPs to node names, when known.
    pub fn placed(self, nodes: &Fact<BTreeMap<String, NodeName>>) -> EtcdView {
        let members = self.members.into_iter().map(|(member, view)| MemberView { node: place(&member, nodes), ..view });
        EtcdView { members: members.collect(), membership: self.membership }
    }
}

/// Asks all members: those at the seeds, and those that they name.
pub async fn ask(files: &ClientFiles, seeds: &[String], pace: Pace) -> Asked {
    let tls = match Tls::read(files).await {
        Ok(tls) => tls,
        Err(error) => return Asked { membership: Fact::Unknown(error.to_string()), members: Vec::new() },
    };
    let lists = futures::future::join_all(seeds.iter().map(|seed| ask_list(&tls, seed, pace.answer))).await;
    let mut said = Vec::new();
    let mut proven: Option<Vec<Member>> = None;
    let mut believed: Option<Vec<Member>> = None;
    let mut connected = BTreeMap::new();
    for (seed, asked) in seeds.iter().zip(lists) {
        connected.extend(asked.connection.map(|connection| (seed.as_str(), connection)));
        match (asked.read, asked.list) {
            (Ok(()), Ok(list)) => {
                proven.get_or_insert(list);
            }
            (Err(error), Ok(list)) => {
                said.push(format!("{seed}: {error}"));
                believed.get_or_insert(list);
            }
            (_, Err(error)) => said.push(format!("{seed}: {error}")),
        }
    }
    if seeds.is_empty() {
        said.push("no address of a member is known".to_owned());
    }
    let membership: Fact<Membership> = match &proven {
        Some(list) => Membership::new(list.iter().cloned()).into(),
        None => Fact::Unknown(said.join("; ")),
    };
    let listed = proven.or(believed).unwrap_or_default();
    let views = listed.into_iter().map(|member| async {
        let connected = endpoint(&member).and_then(|endpoint| connected.get(endpoint.as_str()).cloned());
        let view = view(&tls, &member, connected, pace).await;
        (member, view)
    });
    let members = futures::future::join_all(views).await;
    Asked { membership, members }
}

/// The node that a member is on, by the address of its peer URL.
fn place(member: &Member, nodes: &Fact<BTreeMap<String, NodeName>>) -> Fact<NodeName> {
    match (address(member), nodes) {
        (Some(address), Fact::Known(nodes)) => match nodes.get(&address) {
            Some(node) => Fact::Known(node.clone()),
            None => Fact::Unknown(format!("no node has the InternalIP {address} of its peer URL")),
        },
        (None, _) => Fact::Unknown(format!("its peer URLs {:?} name no host", member.peer_urls)),
        (_, Fact::Unknown(why)) => Fact::Unknown(why.clone()),
    }
}

/// One request with a deadline; an error as words.
async fn within<T>(
    deadline: Duration,
    request: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, String> {
    match tokio::time::timeout(deadline, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(words(&error)),
        Err(_) => Err(format!("no answer in {} s", deadline.as_secs_f32())),
    }
}

/// An error with its causes: tonic's own text is only "transport error".
pub(crate) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = inner.source();
    }
    text
}

/// A linearizable read, then the member list, through the same member. etcd-client asks for the list without
/// `linearizable`, so a member that is cut off answers with its old list; but the server's linearizable member list is
/// exactly this: wait for the read index, then read the local list (etcd `v3rpc/member.go`). A list that follows an
/// answered linearizable read on the same member holds every change that was committed before the read.
async fn ask_list(tls: &Tls, endpoint: &str, deadline: Duration) -> AskedList {
    let mut connection = match connect(tls, endpoint, deadline).await {
        Ok(connection) => connection,
        Err(error) => return AskedList { read: Err(error.clone()), list: Err(error), connection: None },
    };
    let read = linearizable_read(&mut connection.client, deadline).await.map(drop);
    let list = member_list(&mut connection.client, deadline).await;
    AskedList { read, list, connection: Some(connection) }
}

/// What one member said of the membership.
struct AskedList {
    read: Result<(), String>,
    list: Result<Vec<Member>, String>,
    /// For what else it is asked.
    connection: Option<Connection>,
}

/// Answers how long it took, milliseconds: a member answers when it has applied all that was committed when it was asked.
async fn linearizable_read(client: &mut Client, deadline: Duration) -> Result<u64, String> {
    let options = etcd_client::GetOptions::new().with_limit(1).with_keys_only();
    let asked = Instant::now();
    within(deadline, client.get("quorate", Some(options))).await?;
    Ok(u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX))
}

async fn member_list(client: &mut Client, deadline: Duration) -> Result<Vec<Member>, String> {
    let answer = within(deadline, client.member_list()).await?;
    let sorted = |urls: &[String]| {
        let mut urls = urls.to_vec();
        urls.sort();
        urls
    };
    let mut members: Vec<Member> = answer
        .members()
        .iter()
        .map(|member| Member {
            id: MemberId(member.id()),
            name: member.name().to_owned(),
            role: if member.is_learner() { Role::Learner } else { Role::Voter },
            peer_urls: sorted(member.peer_urls()),
            client_urls: sorted(member.client_urls()),
        })
        .collect();
    members.sort();
    Ok(members)
}

async fn status(client: &mut Client, deadline: Duration) -> Result<StatusSample, String> {
    let answer = within(deadline, client.status()).await?;
    let header = answer.header().ok_or("a Status answer without a header")?;
    let size = |bytes: i64| u64::try_from(bytes).map_err(|_| format!("a database size of {bytes} bytes"));
    // Of Status.errors only "no leader" says something of this member: 3.5 repeats cluster-wide alarms there.
    let leaderless = answer.leader() == 0 || answer.errors().iter().any(|error| error.contains("no leader"));
    Ok(StatusSample {
        cluster_id: ClusterId(header.cluster_id()),
        member_id: MemberId(header.member_id()),
        leader: if leaderless { None } else { Some(MemberId(answer.leader())) },
        term: answer.raft_term(),
        raft_index: answer.raft_index(),
        applied_index: answer.raft_applied_index(),
        is_learner: answer.is_learner(),
        version: answer.version().to_owned(),
        db_size: size(answer.db_size())?,
        db_size_in_use: size(answer.raft_used_db_size())?,
        db_quota: quota(answer.db_size_quota(), answer.version()),
    })
}

/// The quota as Status tells it: 0 by a version that does not know the field, and up to 3.6.5 where no flag sets it (etcd#20786).
fn quota(told: i64, version: &str) -> Fact<Quota> {
    match u64::try_from(told) {
        Ok(0) => Fact::Unknown(format!("etcd {version} does not tell its quota")),
        Ok(bytes) => Fact::Known(Quota::Bytes(bytes)),
        Err(_) => Fact::Known(Quota::Disabled),
    }
}

async fn alarms(client: &mut Client, deadline: Duration) -> Result<Vec<Alarm>, String> {
    let answer = within(deadline, client.alarm(AlarmAction::Get, AlarmType::None, None)).await?;
    Ok(answer
        .alarms()
        .iter()
        .map(|alarm| Alarm {
            member: MemberId(alarm.member_id()),
            kind: match alarm.alarm() {
                AlarmType::Nospace => AlarmKind::NoSpace,
                AlarmType::Corrupt => AlarmKind::Corrupt,
                other => AlarmKind::Other(other as i32),
            },
        })
        .collect())
}

/// The host of a URL, brackets of an IPv6 address taken off.
pub(crate) fn host(url: &str) -> Option<String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next()?;
    match authority.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map(|(host, _)| host.to_owned()),
        None => authority.split(':').next().filter(|host| !host.is_empty()).map(str::to_owned),
    }
}

/// The InternalIP that a member's peer URL names: the first that is not loopback.
pub(crate) fn address(member: &Member) -> Option<String> {
    member.peer_urls.iter().find_map(|url| host(url))
}

fn unknown_view(member: &Member, why: &str) -> MemberView {
    MemberView {
        id: member.id,
        node: Fact::Unknown(UNPLACED.to_owned()),
        first: Fact::Unknown(why.to_owned()),
        second: Fact::Unknown(why.to_owned()),
        member_list: Fact::Unknown(why.to_owned()),
        linearizable_read: Fact::Unknown(why.to_owned()),
        first_read: Fact::Unknown(why.to_owned()),
        second_read: Fact::Unknown(why.to_owned()),
        alarms: Fact::Unknown(why.to_owned()),
        certificate_expires: Fact::Unknown(why.to_owned()),
    }
}

/// The node of a member before it is placed.
const UNPLACED: &str = "the nodes were not asked";

/// Asks one member; `connected` is a connection to it, where there is one.
async fn view(tls: &Tls, member: &Member, connected: Option<Connection>, pace: Pace) -> MemberView {
    let Some(endpoint) = endpoint(member) else {
        return unknown_view(member, "it has no client URL: it has never started");
    };
    let Connection { mut client, certificate_expires } = match connected {
        Some(connection) => connection,
        None => match connect(tls, &endpoint, pace.answer).await {
            Ok(connection) => connection,
            Err(error) => return unknown_view(member, &format!("{endpoint}: {error}")),
        },
    };
    // Everything that one member is asked goes over one connection; what may run side by side does.
    let mut others = client.clone();
    let (first, (member_list, first_read, alarms)) = tokio::join!(status(&mut client, pace.answer), async {
        let list = member_list(&mut others, pace.answer).await;
        let read = linearizable_read(&mut others, pace.answer).await;
        (list, read, alarms(&mut others, pace.answer).await)
    },);
    tokio::time::sleep(pace.between_samples).await;
    let (second, second_read) =
        tokio::join!(status(&mut client, pace.answer), linearizable_read(&mut others, pace.answer));
    let first_read = Fact::from(first_read);
    MemberView {
        id: member.id,
        node: Fact::Unknown(UNPLACED.to_owned()),
        first: first.into(),
        second: second.into(),
        member_list: member_list.into(),
        linearizable_read: first_read.clone().map(drop),
        first_read,
        second_read: second_read.into(),
        alarms: alarms.into(),
        certificate_expires,
    }
}

/// The client URL of an etcd member at an InternalIP.
pub fn client_url(address: &str) -> String {
    url(address, 2379)
}

/// The peer URL of an etcd member at an InternalIP.
pub fn peer_url(address: &str) -> String {
    url(address, 2380)
}

fn url(address: &str, port: u16) -> String {
    if address.contains(':') { format!("https://[{address}]:{port}") } else { format!("https://{address}:{port}") }
}

/// Where a member is asked: its first client URL that is not loopback.
pub(crate) fn endpoint(member: &Member) -> Option<String> {
    let loopback =
        |url: &&String| host(url).is_some_and(|host| host == "127.0.0.1" || host == "::1" || host == "localhost");
    member.client_urls.iter().find(|url| !loopback(url)).or_else(|| member.client_urls.first()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_urls() {
        for (url, expected) in [
            ("https://10.10.0.11:2380", Some("10.10.0.11")),
            ("https://[fd00::1]:2380", Some("fd00::1")),
            ("https://k1.example:2380/x", Some("k1.example")),
            ("https://", None),
        ] {
            assert_eq!(host(url).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn urls_of_addresses() {
        assert_eq!(client_url("10.10.0.12"), "https://10.10.0.12:2379");
        assert_eq!(peer_url("fd00::2379:2"), "https://[fd00::2379:2]:2380");
    }

    #[test]
    fn quotas_as_etcd_tells_them() {
        assert_eq!(quota(1 << 31, "3.6.15"), Fact::Known(Quota::Bytes(2_147_483_648)));
        assert_eq!(quota(-1, "3.6.15"), Fact::Known(Quota::Disabled));
        assert_eq!(quota(0, "3.6.4"), Fact::Unknown("etcd 3.6.4 does not tell its quota".to_owned()));
    }
}
