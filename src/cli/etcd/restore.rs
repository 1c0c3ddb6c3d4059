//! `quorate etcd restore`.

use super::{Files, time};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Put a snapshot in the place of what etcd holds
///
/// One node is restored, with an etcd of one member and a new cluster identity; the others put their data aside and join it. `plan` prints
/// all of it, `run` does it on the node that is restored, `join` sees to each of the others.
#[derive(Debug, Args)]
pub struct Restore {
    /// What to do.
    #[command(subcommand)]
    pub command: RestoreCommand,
}

/// What to do for a restore.
#[derive(Debug, Subcommand)]
pub enum RestoreCommand {
    /// Print every step, on which node and in which order, what is kept, and how to turn back; change nothing
    Plan(Plan),
    /// Restore this control plane node, as root; no API is needed
    Run(Run),
    /// See whether the next node may join, print what is to be typed there, and wait until its member takes part
    Join(Join),
}

/// The snapshot.
#[derive(Clone, Debug, Args)]
pub struct From {
    /// A snapshot as etcd sent it or as `backup` stored it: a path, s3://BUCKET/KEY, or a URL
    #[arg(value_name = "FILE|URL")]
    pub file: String,
    /// A file with the secret key of age that opens it, as age-keygen writes it
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
}

/// `quorate etcd restore plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// What is restored.
    #[command(flatten)]
    pub from: From,
    /// A control plane node, where the API does not tell them: NAME=ADDRESS, once for each
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = node)]
    pub node: Vec<(String, String)>,
    /// The node that is restored [default: this one if it is a control plane node, else the first]
    #[arg(long, value_name = "NAME")]
    pub on: Option<String>,
    /// Where what is compressed, encrypted or elsewhere is unpacked, in a file without a name [default: $TMPDIR, /tmp]
    #[arg(long, value_name = "DIR")]
    pub spool: Option<PathBuf>,
    /// Where kubeadm's files are.
    #[command(flatten)]
    pub files: Files,
}

/// `quorate etcd restore run`.
#[derive(Debug, Args)]
pub struct Run {
    /// What is restored.
    #[command(flatten)]
    pub from: From,
    /// On this host; a restore is done nowhere else
    #[arg(long, required = true)]
    pub here: bool,
    /// Do not ask on a terminal: what would be typed there, the name of this node
    #[arg(long, value_name = "NODE")]
    pub yes: Option<String>,
    /// The override for a cluster that has quorum: what it holds is thrown away
    #[arg(long, requires = "because")]
    pub although_quorum: bool,
    /// A control plane node that neither answers nor refuses is switched off, and will not come back as it is
    #[arg(long, value_name = "NODE", requires = "because")]
    pub gone: Vec<String>,
    /// Why an override is used; it is recorded
    #[arg(long, value_name = "TEXT")]
    pub because: Option<String>,
    /// etcd's own tool that writes the data directory [default: out of the image of this node's etcd, by containerd's `ctr`]
    #[arg(long, value_name = "FILE")]
    pub etcdutl: Option<PathBuf>,
    /// What restarts the kubelet
    #[arg(long, hide = true, value_name = "FILE", default_value = "systemctl")]
    pub systemctl: String,
    /// Where kubeadm's files are.
    #[command(flatten)]
    pub files: Files,
}

/// `quorate etcd restore join`.
#[derive(Debug, Args)]
pub struct Join {
    /// The node that is to join
    #[arg(value_name = "NODE")]
    pub node: String,
    /// On this host, which was restored; it has etcd's client certificate
    #[arg(long, required = true)]
    pub here: bool,
    /// The address of that node [default: as the restore on this host knew it]
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,
    /// How long to wait until its member takes part
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = time)]
    pub wait: Duration,
    /// Where kubeadm's files are.
    #[command(flatten)]
    pub files: Files,
}

fn node(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, address)) if !name.is_empty() && address.parse::<std::net::IpAddr>().is_ok() => {
            Ok((name.to_owned(), address.to_owned()))
        }
        Some(_) | None => Err(format!("`{text}` is not NAME=ADDRESS, as in k1=10.10.0.11")),
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::Cli;
    use clap::Parser;

    #[test]
    fn bad_options_are_refused_and_good_ones_are_not() {
        for (line, wanted) in [
            ("quorate etcd restore plan", "<FILE|URL>"),
            ("quorate etcd restore plan a.db --node k1", "NAME=ADDRESS, as in k1=10.10.0.11"),
            ("quorate etcd restore plan a.db --node k1=here", "NAME=ADDRESS"),
            ("quorate etcd restore run a.db", "--here"),
            ("quorate etcd restore run a.db --here --although-quorum", "--because"),
            ("quorate etcd restore run a.db --here --gone k3", "--because"),
            ("quorate etcd restore join k2", "--here"),
        ] {
            let said = Cli::try_parse_from(line.split(' ')).unwrap_err().to_string();
            assert!(said.contains(wanted), "{line}: {said}");
        }
        for line in [
            "quorate etcd restore plan s3://b/etcd.db --node k1=10.10.0.11 --node k2=fd00::2 --on k2",
            "quorate etcd restore run a.db.zst.age --identity key.txt --here --yes k1",
            "quorate etcd restore run a.db --here --yes k1 --although-quorum --gone k3 --because burned",
            "quorate etcd restore join k2 --here",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}
