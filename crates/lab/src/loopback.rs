//! A /24 of loopback addresses and a folder for one set of components, so that tests in parallel do not collide and
//! every component has its standard ports.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// 127.0.N.0/24, held by a file lock until dropped, and the folder for data, certificates and logs.
///
/// The lock is gone when this program is killed; the next holder of the net removes what was left in its folder.
/// The folder is kept, and its path printed, when a test panics or the start failed.
#[derive(Debug)]
pub struct Loopback {
    net: u8,
    dir: PathBuf,
    keep: bool,
    _lock: File,
}

impl Loopback {
    /// Takes the first net that nobody holds.
    pub fn take() -> Result<Self> {
        let root = std::env::temp_dir().join("quorate-lab");
        fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
        for net in 10..=250_u8 {
            let lock = File::create(root.join(format!("net-{net}.lock")))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error).context("lock a loopback net"),
            }
            // Somebody outside the lab may listen there.
            if [2379, 2380, 2381, 6443]
                .iter()
                .any(|port| TcpListener::bind((Ipv4Addr::new(127, 0, net, 1), *port)).is_err())
            {
                continue;
            }
            let dir = root.join(format!("net-{net}"));
            if dir.exists() {
                fs::remove_dir_all(&dir)
                    .with_context(|| format!("remove what a killed run left in {}", dir.display()))?;
            }
            fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
            return Ok(Self { net, dir, keep: true, _lock: lock });
        }
        bail!("no loopback net is free: 241 sets of components run already")
    }

    /// The address of node `number`, counted from 1: 127.0.N.number.
    pub fn address(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, self.net, number)
    }

    /// The folder; removed on drop.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the folder is kept on drop even without a panic. It is until told otherwise: while components start, an
    /// error must leave their logs.
    pub fn keep(&mut self, keep: bool) {
        self.keep = keep;
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        if !self.keep && !std::thread::panicking() {
            if let Err(error) = fs::remove_dir_all(&self.dir) {
                drop(writeln!(std::io::stderr(), "lab: {} is left: {error}", self.dir.display()));
            }
            return;
        }
        // Out of the way of the next holder of this net. The process id keeps the names of several runs apart.
        let kept = self.dir.with_file_name(format!("kept-{}-net-{}", std::process::id(), self.net));
        let kept = if fs::rename(&self.dir, &kept).is_ok() { kept } else { self.dir.clone() };
        drop(writeln!(std::io::stderr(), "lab: logs and data are kept in {}", kept.display()));
    }
}
