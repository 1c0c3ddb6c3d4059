//! Real Kubernetes on one host, for tests, benchmarks and the demo; never shipped.
//!
//! [`Lab`] is a kubeadm cluster of systemd-nspawn machines behind an HAProxy virtual IP; [`build`] makes and keeps the
//! real binaries, packages and images. Two faster tiers run the same binaries as plain processes: [`etcd`] and [`api`].
//!
//! ```no_run
//! use lab::{Lab, Spec};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::up(Spec { workers: 1, ..Spec::default() })?;
//! lab.machine(2)?.crash()?;
//! println!("{}", lab.run_checked(["kubectl", "get", "nodes"])?);
//! lab.machine(2)?.start()?;
//! Lab::down()?;
//! # Ok(())
//! # }
//! ```

pub mod account;
pub mod api;
pub mod audit;
pub mod binaries;
pub mod build;
pub mod cache;
pub mod cli;
mod cluster;
mod command;
pub mod etcd;
pub mod forward;
mod https;
pub mod image;
mod kubeadm;
pub mod kured;
pub mod loopback;
mod machine;
mod network;
pub mod output;
pub mod pki;
pub mod prober;
mod proc;
pub mod process;
mod tree;
mod version;

pub use cluster::{ETCD_CLIENT, Lab, Spec};
pub use machine::Machine;
pub use version::Version;
