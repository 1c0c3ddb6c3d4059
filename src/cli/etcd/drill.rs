//! `quorate etcd drill`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Restore the newest backup into an etcd that is thrown away, and compare what it holds
///
/// What `restore run` would do is done on scratch space, by the same tools: the snapshot is proven, restored with the same flags, served by a
/// real etcd on loopback. Compared with the snapshot are its revision and member, how many keys there are, and how many below each prefix, such
/// as /registry/pods/, and the values of 128 keys that are drawn anew each time. Exits with 0 when a restore works.
#[derive(Debug, Args)]
pub struct Drill {
    /// Another snapshot than the newest of the configured store: a path, s3://BUCKET/KEY, or a URL
    #[arg(value_name = "FILE|URL")]
    pub file: Option<String>,
    /// A file with the secret key of age that opens it, as age-keygen writes it
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// The server, of the cluster's version
    #[arg(long, value_name = "FILE", required_unless_present = "only")]
    pub etcd: Option<PathBuf>,
    /// Its tool
    #[arg(long, value_name = "FILE", required_unless_present = "only")]
    pub etcdutl: Option<PathBuf>,
    /// Where there is room for twice the database for a while [default: $TMPDIR, /tmp]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Where a drill that was good is put down, in the place of the one before; when one is not good, that one is told
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// One part of it, in a pod in which containers of etcd's image do the rest
    #[arg(long, hide = true, value_name = "PART")]
    pub only: Option<Part>,
    /// Run inside a Job
    #[arg(long, hide = true)]
    pub in_job: bool,
}

/// A part of a drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The newest backup is fetched and proven; it lies in the scratch space then.
    Fetch,
    /// What the etcd that serves it holds is compared.
    Compare,
}

#[cfg(test)]
mod tests {
    use crate::cli::Cli;
    use clap::Parser;

    #[test]
    fn the_tools_are_named_but_where_containers_bring_them() {
        for line in ["quorate etcd drill", "quorate etcd drill a.db --etcd /usr/bin/etcd"] {
            let said = Cli::try_parse_from(line.split(' ')).unwrap_err().to_string();
            assert!(said.contains("--etcdutl <FILE>"), "{line}: {said}");
        }
        for line in [
            "quorate etcd drill --etcd /usr/bin/etcd --etcdutl /usr/bin/etcdutl",
            "quorate etcd drill --only fetch --scratch /scratch --in-job",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}
