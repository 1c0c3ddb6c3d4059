//! The command line of the lab.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::prober;
use crate::version::Version;

/// Real kubeadm machines on one host, for tests, benchmarks and the demo.
#[derive(Debug, Parser)]
#[command(name = "lab", disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build binaries, packages, images and the machine root; once, cached in ~/.cache/quorate/lab
    Build {
        /// A Kubernetes version; may be repeated [default: v1.36.1 v1.36.3]
        #[arg(long = "version", value_name = "VERSION")]
        versions: Vec<Version>,
    },
    /// Bring a cluster up and wait until all nodes are Ready
    Up(Up),
    /// Take the cluster down, whatever state it is in; nothing is left
    Down,
    /// Run a command on a machine, as root
    On {
        /// The machine's number: 2 for k2
        machine: u8,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
    /// Run a command in the client's network namespace, with KUBECONFIG, kubectl, etcdctl and etcdutl
    Client {
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
    /// Power cut: every process of the machine dies at once
    Crash(One),
    /// Power on, and wait until containerd is active
    Start(One),
    /// Orderly power off
    Stop(One),
    /// Pull the machine's network cable
    Cut(One),
    /// Put the machine's network cable back
    Heal(One),
    /// Load a docker archive into every machine's containerd
    Load {
        /// The archive
        archive: PathBuf,
    },
    /// Stop all processes of a name on a machine (SIGSTOP), in containers too
    Pause(Process),
    /// Let paused processes go on (SIGCONT)
    Resume(Process),
    /// Watch how many etcd members answer, until SIGTERM or SIGINT
    Voters(prober::voters::Options),
    /// Watch how much memory a program's processes take, on this host and its machines, until SIGTERM or SIGINT
    Memory(prober::memory::Options),
    /// Print the account of a demo from the files that it left
    Account {
        /// The folder with those files
        folder: PathBuf,
    },
    /// Write a container image of one static binary as a docker archive; the same input gives the same bytes
    Image {
        /// Its name, such as localhost/quorate:dev
        reference: String,
        /// The archive to write
        out: PathBuf,
        /// The binary; it lies in /usr/local/bin and is the entrypoint
        binary: PathBuf,
        /// A further file, or a folder with all of its files, as PATH_IN_IMAGE=FILE; may be repeated
        #[arg(long = "file", value_name = "INSIDE=FILE", value_parser = inside_and_file)]
        files: Vec<(String, PathBuf)>,
        /// User and group as numbers, such as 65532:65532
        #[arg(long, default_value = "")]
        user: String,
    },
}

/// What to bring up.
#[derive(Debug, Args)]
pub struct Up {
    /// Control plane nodes, each with an etcd member
    #[arg(short, long, default_value_t = 3)]
    pub control_planes: u8,
    /// Workers
    #[arg(short, long, default_value_t = 0)]
    pub workers: u8,
    /// The Kubernetes version to start with
    #[arg(long, default_value = "v1.36.1")]
    pub version: Version,
    /// A further version whose packages and images are there to upgrade to; may be repeated
    #[arg(long, value_name = "VERSION", default_value = "v1.36.3")]
    pub upgrades_to: Vec<Version>,
    /// Let apiservers write /var/log/kubernetes/audit.log
    #[arg(long)]
    pub audit: bool,
    /// How much of one of this host's processors a machine has at most, in percent [default: all of them]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(10..=1000))]
    pub processor: Option<u32>,
}

/// One machine.
#[derive(Debug, Args)]
pub struct One {
    /// The machine's number: 2 for k2
    pub machine: u8,
}

/// Processes of a name on a machine.
#[derive(Debug, Args)]
pub struct Process {
    /// The machine's number: 2 for k2
    pub machine: u8,
    /// The name, such as etcd or kube-apiserver
    pub name: String,
}

fn inside_and_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((inside, file)) if !inside.is_empty() && !file.is_empty() => {
            Ok((inside.trim_start_matches('/').to_owned(), PathBuf::from(file)))
        }
        Some(_) | None => Err("not of the form PATH_IN_IMAGE=FILE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["lab", "on", "2", "ls", "-l"]).unwrap();
        assert!(matches!(cli.command, Command::On { machine: 2, argv } if argv == ["ls", "-l"]));
        let cli = Cli::try_parse_from(["lab", "image", "r", "o", "b", "--file", "/etc/a=b"]).unwrap();
        assert!(matches!(cli.command, Command::Image { files, .. } if files == [("etc/a".into(), "b".into())]));
    }
}
