//! The snapshot itself: from the member into a file of ours, looked at while it comes, and all of it afterwards.

use super::flush::{Ending, Flush};
use super::progress::Progress;
use super::store::{OWNER_ONLY, Partial};
use crate::clock::Clock;
use crate::observe::etcd::connection::{Tls, connect};
use crate::observe::etcd::{ClientFiles, endpoint, words};
use etcd_client::{Client, GetOptions, SnapshotResponse};
use etcd_snapshot::{Snapshot, Stream, Streamed, Trailer};
use quorum_safety::{ClusterId, Member, MemberId};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;

/// Pieces that are handed over at once, of 32 KiB each, and how many such hands are on their way to the disk: threads that wake each other for
/// every piece do little else.
const HAND: usize = 16;
const AHEAD: usize = 3;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The member did not give it, or not to its end.
    #[error("no snapshot from {member}: {why}")]
    Member {
        /// Its name.
        member: String,
        /// Why.
        why: String,
    },
    /// It is not what was asked for, or damaged.
    #[error("the snapshot from {member} is not sound: {why}")]
    NotSound {
        /// Who gave it.
        member: String,
        /// What is wrong with it.
        why: String,
    },
    /// It could not be kept.
    #[error("{spool}: {why}")]
    Spool {
        /// Where it was to be kept.
        spool: String,
        /// Why not.
        why: String,
    },
}

/// Where a snapshot is kept until it is stored.
pub enum Spool {
    /// A file without a name: it is gone with this process, however that ends.
    Anonymous(File),
    /// The file that is going to be stored as it is.
    Partial(Partial),
}

impl Spool {
    /// A file without a name in this folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn in_folder(folder: &Path) -> std::io::Result<Self> {
        nameless(folder).map(Self::Anonymous)
    }

    /// The file.
    pub fn file(&self) -> &File {
        match self {
            Self::Anonymous(file) => file,
            Self::Partial(partial) => partial.file(),
        }
    }
}

/// From whom, and what it has to be.
pub struct Source<'a> {
    /// The client certificate.
    pub files: &'a ClientFiles,
    /// The member.
    pub member: &'a Member,
    /// The cluster that it is in.
    pub cluster: ClusterId,
    /// Bytes of its database, for the progress.
    pub size: u64,
    /// How long one answer may take.
    pub answer: Duration,
    /// How long nothing may come.
    pub stall: Duration,
    /// For the progress.
    pub clock: Clock,
}

/// A snapshot that was proven.
pub struct Taken {
    /// The file.
    pub spool: Spool,
    /// What is in it.
    pub snapshot: Snapshot,
}

/// A snapshot that has come, and is looked at no further than that was possible meanwhile.
struct Received {
    spool: Spool,
    streamed: Streamed,
    /// The disk's share, where the file is going to stay.
    flush: Option<Flush>,
}

impl Source<'_> {
    fn member(&self, why: impl std::fmt::Display) -> TakeError {
        TakeError::Member { member: self.member.name.clone(), why: why.to_string() }
    }

    fn not_sound(&self, why: impl std::fmt::Display) -> TakeError {
        TakeError::NotSound { member: self.member.name.clone(), why: why.to_string() }
    }

    /// Takes it, and proves it: the checksum and the beginning while it comes, then every page and key, then that it is of this cluster and
    /// not older than what a linearizable read through the same member told before.
    ///
    /// # Errors
    /// When any of that fails; the spool is gone then.
    pub async fn take(&self, spool: Spool) -> Result<Taken, TakeError> {
        let endpoint = endpoint(self.member).ok_or_else(|| self.member("it has no client URL"))?;
        let tls = Tls::read(self.files).await.map_err(|error| self.member(error))?;
        let mut client = connect(&tls, &endpoint, self.answer).await.map_err(|error| self.member(error))?.client;
        let floor = self.revision(&mut client).await?;
        let Received { spool, streamed, flush } = self.receive(&mut client, spool).await?;
        let (spool, verified, flushed) = blocking(move || {
            // The disk takes the last of it meanwhile.
            let ending = flush.map(Flush::end);
            let verified = etcd_snapshot::verify_streamed(spool.file(), &streamed);
            (spool, verified, ending.map_or(Ok(()), Ending::end))
        })
        .await
        .map_err(|error| self.member(error))?;
        let snapshot = verified.map_err(|error| self.not_sound(error))?;
        flushed.map_err(not_kept)?;
        self.is_wanted(&snapshot, floor)?;
        Ok(Taken { spool, snapshot })
    }

    /// The revision by a linearizable read: a member that is cut off does not answer it, and serves snapshots all the same.
    async fn revision(&self, client: &mut Client) -> Result<i64, TakeError> {
        let options = GetOptions::new().with_limit(1).with_keys_only();
        let answer = tokio::time::timeout(self.answer, client.get("quorate", Some(options))).await;
        let answer = answer.map_err(|_| self.member("it answers no linearizable read"))?;
        let answer = answer.map_err(|error| self.member(words(&error)))?;
        let header = answer.header().ok_or_else(|| self.member("it answers without a header"))?;
        let (cluster, member) = (ClusterId(header.cluster_id()), MemberId(header.member_id()));
        if (cluster, member) != (self.cluster, self.member.id) {
            let (cluster_wanted, wanted) = (self.cluster, self.member.id);
            let why = format!(
                "member {member} of cluster {cluster} answers at its address, and not {wanted} of {cluster_wanted}"
            );
            return Err(self.member(why));
        }
        Ok(header.revision())
    }

    async fn receive(&self, client: &mut Client, spool: Spool) -> Result<Received, TakeError> {
        let silent = || self.member(format!("nothing came for {} s", self.stall.as_secs_f32()));
        let asked = tokio::time::timeout(self.stall, client.snapshot()).await;
        let mut stream = asked.map_err(|_| silent())?.map_err(|error| self.member(words(&error)))?;
        let mut progress = Progress::new(self.size, format!("snapshot from {}", self.member.name), self.clock);
        let mut look = Stream::new();
        // On a thread of its own: neither the network nor the renewal of the Lease waits for the disk.
        let keep = move |mut hands: mpsc::Receiver<Vec<SnapshotResponse>>| {
            let mut flush = match &spool {
                Spool::Partial(partial) => Some(Flush::of(partial.file()).map_err(Lost::Disk)?),
                Spool::Anonymous(_) => None,
            };
            while let Some(hand) = hands.blocking_recv() {
                for piece in hand.iter().map(SnapshotResponse::blob) {
                    look.feed(piece).map_err(Lost::NotSound)?;
                    spool.file().write_all(piece).map_err(Lost::Disk)?;
                    flush = flush.map(|flush| flush.more(piece.len() as u64)).transpose().map_err(Lost::Disk)?;
                    progress.more(piece.len());
                }
            }
            Ok((spool, look, flush))
        };
        let next = async || {
            let message = tokio::time::timeout(self.stall, stream.message()).await.map_err(|_| silent())?;
            message.map_err(|error| self.member(words(&error)))
        };
        let (spool, look, flush) = passed_on(next, keep, self.stall).await.map_err(|lost| match lost {
            Lost::Member(error) => error,
            Lost::NotSound(error) => self.not_sound(error),
            Lost::Disk(why) => not_kept(why),
        })?;
        let streamed = look.finish().map_err(|error| self.not_sound(error))?;
        Ok(Received { spool, streamed, flush })
    }

    fn is_wanted(&self, snapshot: &Snapshot, floor: i64) -> Result<(), TakeError> {
        if snapshot.trailer != Trailer::Verified {
            return Err(self.not_sound("it has no checksum"));
        }
        // A compaction removes the record of a deletion that was the last to happen; its own revision stays.
        let compacted = snapshot.scheduled_compaction.max(snapshot.finished_compaction).unwrap_or_default();
        // A database that nothing was ever written to is at 1.
        let revision = snapshot.revision.max(compacted).max(1);
        if revision < floor {
            let why = format!("its revision is {revision}, and was {floor} before it was asked for");
            return Err(self.not_sound(why));
        }
        if !snapshot.members.iter().any(|member| member.id == self.member.id.0) {
            return Err(self.not_sound(format!("it does not list the member {} that gave it", self.member.id)));
        }
        Ok(())
    }
}

/// Why it was not kept.
#[derive(Debug)]
enum Lost {
    Member(TakeError),
    NotSound(etcd_snapshot::Error),
    Disk(io::Error),
}

fn not_kept(why: io::Error) -> TakeError {
    TakeError::Spool { spool: "the snapshot cannot be kept".to_owned(), why: why.to_string() }
}

/// Passes pieces on to who keeps them, on a thread of its own, until there are no more: what that one makes of them. A disk that hangs is not
/// waited for, or the member would have to keep what it sends for as long; its thread is left behind.
async fn passed_on<P: Send + 'static, T: Send + 'static>(
    mut next: impl AsyncFnMut() -> Result<Option<P>, TakeError>,
    keep: impl FnOnce(mpsc::Receiver<Vec<P>>) -> Result<T, Lost> + Send + 'static,
    stall: Duration,
) -> Result<T, Lost> {
    let hangs = || Lost::Disk(io::Error::other(format!("nothing of it was written for {} s", stall.as_secs_f32())));
    let (sender, hands) = mpsc::channel(AHEAD);
    let kept = tokio::task::spawn_blocking(move || keep(hands));
    let mut hand = Vec::with_capacity(HAND);
    let came = loop {
        let came = match next().await {
            Ok(Some(piece)) => {
                hand.push(piece);
                None
            }
            Ok(None) => Some(Ok(())),
            Err(error) => Some(Err(Lost::Member(error))),
        };
        if hand.len() >= HAND || came.is_some() {
            match tokio::time::timeout(stall, sender.send(std::mem::replace(&mut hand, Vec::with_capacity(HAND)))).await
            {
                Ok(Ok(())) => {}
                // Whoever keeps it has given up, and says why.
                Ok(Err(_)) => break came.unwrap_or(Ok(())),
                Err(_) => return Err(hangs()),
            }
        }
        if let Some(came) = came {
            break came;
        }
    };
    drop(sender);
    let kept = tokio::time::timeout(stall, kept).await.map_err(|_| hangs())?;
    let kept = kept.map_err(|error| Lost::Disk(io::Error::other(error)))??;
    // A stream that was cut off has no end that could be sound, but why it was cut says more.
    came.map(|()| kept)
}

/// A file of ours alone that has no name, so that nobody else opens it and it is gone with this process, however that ends.
fn nameless(folder: &Path) -> io::Result<File> {
    let (flags, mode) = (OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    match openat(CWD, folder, flags, mode) {
        Ok(file) => Ok(file.into()),
        // A file system that does not know the flag, such as NFS: a name that nobody can have laid a link under, for a moment.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            let path = folder.join(format!(".quorate-{:016x}.spool", RandomState::new().build_hasher().finish()));
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create_new(true).mode(OWNER_ONLY).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

/// Work that does not wait for others, on a thread of its own.
///
/// # Errors
/// When it was ended: by a panic, or with the program.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a member that is cut off, or not the one that was asked, sends is as whole as any.
    #[test]
    fn a_snapshot_below_what_was_read_before_or_of_another_member_is_not_wanted() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crates/etcd-snapshot/fuzz/corpus/used-3.6.db");
        let snapshot = etcd_snapshot::verify(&File::open(path).unwrap()).unwrap();
        let files = ClientFiles::in_folder("/nowhere");
        let said = |snapshot: &Snapshot, id: u64, floor: i64| {
            let member = quorum_safety::fixture::healthy(3).seen.etcd.membership.known().unwrap().members()[0].clone();
            let source = Source {
                files: &files,
                member: &Member { id: MemberId(id), ..member },
                cluster: ClusterId(1),
                size: 0,
                answer: Duration::ZERO,
                stall: Duration::ZERO,
                clock: Clock::system(),
            };
            source.is_wanted(snapshot, floor).map_err(|error| error.to_string())
        };
        let id = snapshot.members[0].id;
        let reaches = snapshot.revision.max(snapshot.finished_compaction.unwrap_or_default());
        assert_eq!(said(&snapshot, id, reaches), Ok(()));
        assert!(said(&snapshot, id, reaches + 1).unwrap_err().contains("before it was asked for"));
        assert!(said(&snapshot, id + 1, reaches).unwrap_err().contains("does not list the member"));
        let mut torn = snapshot;
        torn.trailer = Trailer::Missing;
        assert!(said(&torn, id, reaches).unwrap_err().contains("it has no checksum"));
    }

    /// A disk that hangs, as a mount does whose server is gone.
    #[tokio::test]
    async fn a_disk_that_hangs_does_not_keep_the_member_waiting() {
        let (answers, hangs) = std::sync::mpsc::channel::<()>();
        let keep = move |mut hands: mpsc::Receiver<Vec<Vec<u8>>>| {
            let first = hands.blocking_recv();
            // Until the test is over: the thread is in the kernel.
            let _ended = hangs.recv();
            Ok(first)
        };
        let endless = async || Ok(Some(vec![0; 8]));
        let lost = passed_on(endless, keep, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(&lost, Lost::Disk(why) if why.to_string().contains("nothing of it was written")), "{lost:?}");
        drop(answers);
        // The same when the last piece has come.
        let (answers, hangs) = std::sync::mpsc::channel::<()>();
        let keep = move |_: mpsc::Receiver<Vec<Vec<u8>>>| {
            let _ended = hangs.recv();
            Ok(())
        };
        let lost = passed_on(async || Ok(None), keep, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(lost, Lost::Disk(_)));
        drop(answers);
    }

    #[tokio::test]
    async fn what_comes_is_kept_and_who_cannot_keep_it_says_why() {
        let mut left = 4;
        let some = async || {
            left -= 1;
            Ok((left > 0).then(|| vec![left]))
        };
        let all = |mut hands: mpsc::Receiver<Vec<Vec<u8>>>| {
            let mut kept = Vec::new();
            while let Some(hand) = hands.blocking_recv() {
                kept.extend(hand.concat());
            }
            Ok(kept)
        };
        let stall = Duration::from_secs(60);
        assert_eq!(passed_on(some, all, stall).await.unwrap(), [3, 2, 1]);
        // More than what is handed over at once.
        let mut left = 100;
        let many = async || {
            left -= 1;
            Ok((left > 0).then(|| vec![left]))
        };
        assert_eq!(passed_on(many, all, stall).await.unwrap(), (1..100).rev().collect::<Vec<u8>>());
        let full = |_: mpsc::Receiver<Vec<Vec<u8>>>| Err::<(), _>(Lost::Disk(io::ErrorKind::StorageFull.into()));
        assert!(matches!(passed_on(async || Ok(Some(vec![0])), full, stall).await, Err(Lost::Disk(_))));
        let cut = async || Err(TakeError::Member { member: "k1".into(), why: "cut".into() });
        assert!(matches!(passed_on(cut, all, stall).await, Err(Lost::Member(_))));
    }

    /// `verify` unpacks Secrets in /tmp: whoever guesses a name there must not get them.
    #[test]
    fn a_spool_has_no_name_that_anybody_could_have_taken_before() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = nameless(folder.path()).unwrap();
        spool.write_all(b"secret").unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mode = std::os::unix::fs::MetadataExt::mode(&spool.metadata().unwrap());
        assert_eq!(mode & 0o777, OWNER_ONLY);
    }
}
