//! The snapshot itself: from the member into a file of ours, looked at while it comes, and all of it afterwards.

use super::seal::hex;
use super::store::{OWNER_ONLY, Partial};
use crate::observe::etcd::connection::{Tls, connect};
use crate::observe::etcd::{ClientFiles, endpoint, words};
use etcd_client::{Client, GetOptions};
use etcd_snapshot::{Snapshot, Stream, Trailer};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use quorum_safety::{ClusterId, Member, MemberId};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;

/// Pieces on their way to the disk, of 32 KiB each.
const AHEAD: usize = 32;

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
    pub fn in_folder(folder: &Path, name: &str) -> std::io::Result<Self> {
        let path = folder.join(format!(".{name}.spool"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(OWNER_ONLY);
        let file = options.open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Self::Anonymous(file))
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
}

/// A snapshot that was proven.
pub struct Taken {
    /// The file.
    pub spool: Spool,
    /// What is in it.
    pub snapshot: Snapshot,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
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
        let (spool, sha256) = self.receive(&mut client, spool).await?;
        let (spool, verified) = blocking(move || {
            let verified = etcd_snapshot::verify(spool.file());
            (spool, verified)
        })
        .await
        .map_err(|error| self.member(error))?;
        let snapshot = verified.map_err(|error| self.not_sound(error))?;
        self.is_wanted(&snapshot, floor)?;
        Ok(Taken { spool, snapshot, sha256 })
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

    async fn receive(&self, client: &mut Client, spool: Spool) -> Result<(Spool, String), TakeError> {
        let silent = || self.member(format!("nothing came for {} s", self.stall.as_secs_f32()));
        let asked = tokio::time::timeout(self.stall, client.snapshot()).await;
        let stream = asked.map_err(|_| silent())?.map_err(|error| self.member(words(&error)))?;
        let progress = progress(self.size, format!("snapshot from {}", self.member.name));
        let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(AHEAD);
        let bar = progress.clone();
        // Hashing and writing on a thread of their own: neither the network nor the renewal of the Lease waits for the disk.
        let keep = blocking(move || {
            let mut look = Stream::new();
            while let Some(piece) = pieces.blocking_recv() {
                look.feed(&piece).map_err(Lost::NotSound)?;
                spool.file().write_all(&piece).map_err(Lost::Disk)?;
                bar.inc(piece.len() as u64);
            }
            Ok((spool, look))
        });
        // It owns the sender: who keeps the pieces is done when this is.
        let come = async move {
            let (sender, mut stream) = (sender, stream);
            loop {
                let message = tokio::time::timeout(self.stall, stream.message()).await.map_err(|_| silent())?;
                let Some(message) = message.map_err(|error| self.member(words(&error)))? else { return Ok(()) };
                // Whoever keeps it has given up, and says why.
                if sender.send(message.blob().to_vec()).await.is_err() {
                    return Ok(());
                }
            }
        };
        let (come, kept) = tokio::join!(come, keep);
        progress.finish_and_clear();
        let kept = kept.map_err(|error| self.member(error))?;
        let (spool, look) = kept.map_err(|lost| match lost {
            Lost::NotSound(error) => self.not_sound(error),
            Lost::Disk(error) => {
                TakeError::Spool { spool: "the snapshot cannot be kept".to_owned(), why: error.to_string() }
            }
        })?;
        // A stream that was cut off has no end that could be sound, but why it was cut says more.
        come?;
        let streamed = look.finish().map_err(|error| self.not_sound(error))?;
        Ok((spool, hex(&streamed.file_sha256)))
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
enum Lost {
    NotSound(etcd_snapshot::Error),
    Disk(std::io::Error),
}

/// Work that does not wait for others, on a thread of its own.
///
/// # Errors
/// When it was ended: by a panic, or with the program.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

/// A bar with the rate; on a terminal only.
pub fn progress(total: u64, what: String) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_message(what);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}");
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
