//! `quorate etcd`.

use crate::place::KUBERNETES;
use clap::{Args, Subcommand};
use jiff::SignedDuration;
use quorum_safety::Code;
use std::path::PathBuf;
use std::time::Duration;

pub mod backup;
pub mod defrag;
pub mod drill;
pub mod restore;
pub use backup::Backup;
pub use defrag::Defrag;
pub use drill::Drill;
pub use restore::Restore;

/// The etcd cluster: who its members are, every change of them, its snapshots, and the room in its databases
#[derive(Debug, Args)]
pub struct Etcd {
    /// What to do.
    #[command(subcommand)]
    pub command: EtcdCommand,
}

/// What to do with etcd.
#[derive(Debug, Subcommand)]
pub enum EtcdCommand {
    /// Who the members are, what each says of itself, and every change of them, judged before
    Members(Members),
    /// Take a snapshot of a healthy voter, prove it, and store it with a manifest
    Backup(Backup),
    /// Prove that a snapshot is whole, and tell what it holds
    Verify(Verify),
    /// Give the room that lies free in etcd's databases back, one member at a time, where it pays
    Defrag(Defrag),
    /// Put a snapshot in the place of what etcd holds: as a plan, on the node that is restored, on each node that joins it
    Restore(Restore),
    /// Restore the newest backup into an etcd that is thrown away, and compare what it holds
    Drill(Drill),
}

/// Who the members are, what each says of itself, and every change of them, judged before
#[derive(Debug, Args)]
pub struct Members {
    /// What to do with them.
    #[command(subcommand)]
    pub command: MembersCommand,
}

/// What to do with members.
#[derive(Debug, Subcommand)]
pub enum MembersCommand {
    /// All members, what each says of itself, and what is strange
    List(List),
    /// Add a learner for a node; a voter is never added directly
    Add(Add),
    /// Make a learner a voter, once it lives, has caught up and would not be needed from its first moment
    Promote(OfMember),
    /// Remove a member for good
    Remove(OfMember),
    /// Remove a member, add a learner in its place, wait for it to start and to catch up, promote it
    ///
    /// Prints what is to be done on the node, and waits for it. Whatever ends it, the same command goes on where it was.
    Replace(Replace),
    /// Move leadership to this voter
    MoveLeader(OfMember),
}

/// `quorate etcd members list`.
#[derive(Debug, Args)]
pub struct List {
    /// Read in place, on a control plane node, as root, from kubeadm's paths
    #[arg(long)]
    pub here: bool,
    /// Run inside a Job
    #[arg(long, hide = true)]
    pub in_job: bool,
    /// Where kubeadm's files are.
    #[command(flatten)]
    pub files: Files,
}

/// `quorate etcd members add`.
#[derive(Debug, Args)]
pub struct Add {
    /// The node on which it is to run
    #[arg(long, value_name = "NAME")]
    pub node: String,
    /// Its peer URL [default: https on the node's InternalIP, port 2380]
    #[arg(long, value_name = "URL")]
    pub peer_url: Option<String>,
    /// How.
    #[command(flatten)]
    pub how: How,
}

/// A change of one member.
#[derive(Debug, Args)]
pub struct OfMember {
    /// Its name, or its id in hexadecimal as `list` and etcdctl print it
    pub member: String,
    /// How.
    #[command(flatten)]
    pub how: How,
}

/// `quorate etcd members replace`.
#[derive(Debug, Args)]
pub struct Replace {
    /// The member that goes: its name, or its id in hexadecimal
    pub member: String,
    /// The node of the new one [default: that of the old one]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// The peer URL of the new one [default: the old one's, or https on the InternalIP of --node, port 2380]
    #[arg(long, value_name = "URL")]
    pub peer_url: Option<String>,
    /// How.
    #[command(flatten)]
    pub how: How,
}

/// How members are changed.
#[derive(Clone, Debug, Args)]
pub struct How {
    /// Do not ask on a terminal: what would be typed there, the name or id (for `add`, the node) once more
    #[arg(long, value_name = "MEMBER")]
    pub yes: Option<String>,
    /// Say what would happen and whether it is permitted; change nothing
    #[arg(long, conflicts_with_all = ["yes", "in_job"])]
    pub dry_run: bool,
    /// Lift this single check, for this command, such as Q032-tolerance-would-fall; only those that docs/reasons.md calls liftable
    #[arg(long, value_name = "CODE", value_parser = liftable, requires = "because")]
    pub lift: Vec<Code>,
    /// Why a check is lifted, or the API gone without; it is recorded
    #[arg(long, value_name = "TEXT")]
    pub because: Option<String>,
    /// How long to wait for what has to happen elsewhere: a learner to start, to catch up
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = time)]
    pub wait: Duration,
    /// Act in place, on a control plane node, as root, while no apiserver serves: wants --without-api
    #[arg(long, requires = "without_api")]
    pub here: bool,
    /// The override for an API that is away: locks and nodes cannot be read, etcd has a quorum and decides; recorded on this host
    #[arg(long, requires = "because", requires = "here")]
    pub without_api: bool,
    /// Run inside a Job
    #[arg(long, hide = true)]
    pub in_job: bool,
    /// Where kubeadm's files are.
    #[command(flatten)]
    pub files: Files,
}

/// Where the files of this host are, for a host that is laid out otherwise, and for tests.
#[derive(Clone, Debug, Args)]
pub struct Files {
    /// kubeadm's folder
    #[arg(long, hide = true, value_name = "DIR", default_value = KUBERNETES)]
    pub kubernetes_dir: PathBuf,
    /// Where the lock of this host and what was begun on it are kept
    #[arg(long, hide = true, value_name = "DIR", default_value = "/var/lib/quorate")]
    pub state_dir: PathBuf,
}

/// Prove that a snapshot is whole, and tell what it holds
///
/// It is decrypted and decompressed, its checksum is compared, every page and key is looked at, and all of it is compared with the manifest
/// beside it; nothing is asked of any cluster. Exits with 0 when all of it is proven, 21
/// when something is wrong with it, 12 when nothing is wrong and it has no checksum, as a file out of a data directory has none.
#[derive(Debug, Args)]
pub struct Verify {
    /// A snapshot as etcd sent it or as `backup` stored it, or the database out of a data directory: a path, s3://BUCKET/KEY, or a URL
    #[arg(value_name = "FILE|URL")]
    pub file: String,
    /// A file with the secret key of age that opens it, as age-keygen writes it
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// Where what is compressed, encrypted or elsewhere is unpacked, in a file without a name [default: $TMPDIR, /tmp]
    #[arg(long, value_name = "DIR")]
    pub spool: Option<PathBuf>,
}

pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let expected = || format!("`{text}` is not a length of time: expected something like 15m");
    let length: SignedDuration = text.parse().map_err(|_| expected())?;
    Duration::try_from(length).map_err(|_| expected())
}

/// A code of the catalogue, whole or its number alone, that may be lifted.
pub(super) fn liftable(text: &str) -> Result<Code, String> {
    let known = Code::ALL.iter().find(|code| code.as_str() == text || code.as_str().split('-').next() == Some(text));
    match known {
        Some(code) if code.liftable() => Ok(*code),
        Some(code) => Err(format!("nothing lifts {code}: {}", code.sentence())),
        None => Err(format!(
            "there is no check `{text}`: expected a code of docs/reasons.md, such as Q032-tolerance-would-fall"
        )),
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::Cli;
    use clap::Parser;

    fn said(line: &str) -> String {
        Cli::try_parse_from(line.split(' ')).unwrap_err().to_string()
    }

    #[test]
    fn bad_options_are_refused_and_good_ones_are_not() {
        for (line, wanted) in [
            ("quorate etcd members remove k2 --lift Q030", "nothing lifts Q030"),
            ("quorate etcd members remove k2 --lift Q32", "there is no check `Q32`"),
            ("quorate etcd members remove k2 --lift Q032", "--because"),
            ("quorate etcd members remove k2 --here", "--without-api"),
            ("quorate etcd members remove k2 --here --without-api", "--because"),
            ("quorate etcd members remove k2 --without-api --because x", "--here"),
            ("quorate etcd members remove k2 --yes k2 --dry-run", "--dry-run"),
            ("quorate etcd members remove k2 --wait soon", "15m"),
            ("quorate etcd defrag --here", "--dry-run"),
            ("quorate etcd defrag --cure-nospace", "--here"),
            ("quorate etcd defrag --cure-nospace --here", "--without-api"),
            ("quorate etcd defrag --cure-nospace --here --without-api", "--because"),
            ("quorate etcd defrag --cure-nospace --dry-run --here", "--dry-run"),
            ("quorate etcd defrag --dry-run --here --without-api --because x", "--dry-run"),
            ("quorate etcd defrag --lift Q052", "--cure-nospace"),
            ("quorate etcd defrag --cure-nospace --here --without-api --because x --lift Q030", "nothing lifts Q030"),
            ("quorate etcd defrag --dry-run --wait 1m", "--wait"),
            ("quorate etcd members remove", "<MEMBER>"),
            ("quorate etcd members add", "--node"),
        ] {
            assert!(said(line).contains(wanted), "{line}: {}", said(line));
        }
        for line in [
            "quorate etcd members list",
            "quorate etcd members list --here",
            "quorate etcd members remove k2 --yes k2 --lift Q032 --because smaller",
            "quorate etcd members replace 8e9e05c52164694d --node k2 --here --without-api --because away",
            "quorate etcd members add --node k4 --dry-run",
            "quorate etcd defrag",
            "quorate etcd defrag --dry-run --here",
            "quorate etcd defrag --cure-nospace --here --without-api --because full",
            "quorate etcd defrag --cure-nospace --here --without-api --because full --lift Q052 --wait 1m",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}
