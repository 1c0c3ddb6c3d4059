//! What is slow to make, kept outside the checkout: each thing in a folder `KIND/NAME@KEY`, where the key is a digest of
//! everything that goes into it. A thing is made in a temporary folder beside its place, under a file lock, and renamed
//! into place when it is complete: a folder with the right name is always whole.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock, statvfs, syncfs};
use sha2::{Digest as _, Sha256};

use crate::output;
use crate::tree;

/// A gibibyte, in bytes.
pub(crate) const GIB: u64 = 1 << 30;

/// A digest of all inputs of one built thing.
#[derive(Clone, Default)]
pub(crate) struct Key(Sha256);

impl Key {
    /// Adds a named input. Names and lengths are part of the digest, so that inputs cannot run into each other.
    pub(crate) fn with(mut self, name: &str, value: impl AsRef<str>) -> Self {
        let value = value.as_ref();
        self.0.update(format!("{name} {}\n", value.len()));
        self.0.update(value);
        self
    }

    /// Adds another built thing: the name of its folder has its key.
    pub(crate) fn with_built(self, built: &Path) -> Self {
        let name = built.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        self.with("built", name)
    }

    fn short(&self) -> String {
        let mut text = String::new();
        for byte in self.0.clone().finalize().iter().take(8) {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

/// The folder of everything that is kept.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// A file lock; given back when dropped, or when the process ends in any way.
pub(crate) struct Lock(#[expect(dead_code, reason = "closing the file gives the lock back")] File);

impl Cache {
    /// `$QUORATE_LAB_CACHE`, or `~/.cache/quorate/lab`.
    ///
    /// # Errors
    /// Neither variable is set.
    pub fn open() -> Result<Self> {
        if let Some(root) = std::env::var_os("QUORATE_LAB_CACHE") {
            return Ok(Self { root: PathBuf::from(root) });
        }
        let home = std::env::var_os("HOME").context("neither QUORATE_LAB_CACHE nor HOME is set")?;
        Ok(Self { root: PathBuf::from(home).join(".cache/quorate/lab") })
    }

    /// A cache at another place, for tests of the cache itself.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the machines that are up keep their files: `$QUORATE_LAB_STATE`, or `state` in the cache, so that files of
    /// the cache can be linked into machines instead of copied.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        std::env::var_os("QUORATE_LAB_STATE").map_or_else(|| self.root.join("state"), PathBuf::from)
    }

    /// Takes a lock by name; `None` when somebody else has it.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        let file = self.lock_file(name)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot lock {name}")),
        }
    }

    fn lock(&self, name: &str) -> Result<Lock> {
        if let Some(lock) = self.try_lock(name)? {
            return Ok(lock);
        }
        output::say(format_args!("waiting for another lab that is making {name}"));
        let file = self.lock_file(name)?;
        flock(&file, FlockOperation::LockExclusive).with_context(|| format!("cannot lock {name}"))?;
        Ok(Lock(file))
    }

    fn lock_file(&self, name: &str) -> Result<File> {
        let folder = self.root.join("locks");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("{name}.lock"));
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))
    }

    /// The folder of a built thing, made now unless it is there. `bytes` is the free disk it takes to make it; `make`
    /// gets an empty folder. Other keys of the same name are removed, unless machines that are up use them.
    pub(crate) fn entry(
        &self,
        kind: &str,
        name: &str,
        key: &Key,
        bytes: u64,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let folder = self.root.join(kind);
        let place = folder.join(format!("{name}@{}", key.short()));
        if place.is_dir() {
            return Ok(place);
        }
        let _lock = self.lock(&format!("{kind}-{name}"))?;
        if place.is_dir() {
            return Ok(place);
        }
        need_space(&self.root, bytes, &format!("make {kind} {name}"))?;
        tree::make_public(&folder)?;
        // Somebody was interrupted here: we hold the lock, so nobody is at work in these.
        let unfinished = format!(".new-{name}@");
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&unfinished) {
                tree::remove(&entry.path())?;
            }
        }
        let new = tempfile::Builder::new().prefix(&unfinished).tempdir_in(&folder)?.keep();
        tree::make_public(&new)?;
        if let Err(error) = make(&new) {
            tree::remove(&new)?;
            return Err(error.context(format!("cannot make {kind} {name}")));
        }
        // A rename may reach the disk before the data does.
        syncfs(File::open(&new)?).context("cannot sync the cache")?;
        fs::rename(&new, &place).with_context(|| format!("cannot put {} into place", place.display()))?;
        self.prune(&folder, name, &place)?;
        Ok(place)
    }

    fn prune(&self, folder: &Path, name: &str, keep: &Path) -> Result<()> {
        let in_use = crate::cluster::in_use(&self.state());
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let same = path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}@")));
            if same && path != keep && !in_use.contains(&path) {
                tree::remove(&path)?;
            }
        }
        Ok(())
    }
}

/// One clear line when there is too little free disk under a folder (or the nearest one above it that exists).
pub(crate) fn need_space(folder: &Path, bytes: u64, what: &str) -> Result<()> {
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder);
    let stat = statvfs(there).with_context(|| format!("cannot see the free disk of {}", there.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < bytes {
        bail!(
            "{} has {:.1} GiB free; to {what} takes {:.1} GiB",
            there.display(),
            free as f64 / GIB as f64,
            bytes as f64 / GIB as f64
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn key(text: &str) -> Key {
        Key::default().with("text", text)
    }

    #[test]
    fn inputs_do_not_run_into_each_other() {
        let short = |pairs: &[(&str, &str)]| pairs.iter().fold(Key::default(), |k, (n, v)| k.with(n, v)).short();
        assert_eq!(short(&[("a", "b")]), short(&[("a", "b")]));
        assert_eq!(short(&[("a", "b")]).len(), 16);
        assert_ne!(short(&[("a", "bc")]), short(&[("a", "b"), ("c", "")]));
        assert_ne!(short(&[("a", "b")]), short(&[("b", "a")]));
        assert_ne!(short(&[("a", "1"), ("b", "2")]), short(&[("b", "2"), ("a", "1")]));
    }

    #[test]
    fn a_thing_is_made_once_a_key_and_old_keys_go() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let made = Cell::new(0);
        let make = |text: &'static str| {
            cache
                .entry("kind", "name", &key(text), 1, |new| {
                    made.set(made.get() + 1);
                    Ok(fs::write(new.join("file"), text)?)
                })
                .unwrap()
        };
        let first = make("one");
        assert_eq!(make("one"), first);
        assert_eq!(made.get(), 1);
        // Another name that begins the same is another thing.
        let other = cache.entry("kind", "name+more", &key("x"), 1, |_| Ok(())).unwrap();
        let second = make("two");
        assert_eq!(fs::read_to_string(second.join("file")).unwrap(), "two");
        assert!(!first.exists() && other.exists());
    }

    #[test]
    fn what_was_interrupted_or_failed_is_never_taken_for_whole() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let half = dir.path().join("kind/.new-name@xyz");
        fs::create_dir_all(&half).unwrap();
        let error = cache.entry("kind", "name", &key("one"), 1, |new| {
            fs::write(new.join("half"), "")?;
            bail!("no compiler")
        });
        assert_eq!(format!("{:#}", error.unwrap_err()), "cannot make kind name: no compiler");
        assert_eq!(fs::read_dir(dir.path().join("kind")).unwrap().count(), 0);
        let place = cache.entry("kind", "name", &key("one"), 1, |_| Ok(())).unwrap();
        assert_eq!(fs::read_dir(place).unwrap().count(), 0);
    }

    #[test]
    fn too_little_disk_is_one_line_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let error = cache.entry("kind", "name", &key("one"), u64::MAX, |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("GiB free; to make kind name takes"), "{error}");
        assert!(!dir.path().join("kind").exists());
    }

    #[test]
    fn two_builders_do_not_collide() {
        let dir = tempfile::tempdir().unwrap();
        let made = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    Cache::at(dir.path())
                        .entry("kind", "name", &key("one"), 1, |_| {
                            made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            std::thread::sleep(std::time::Duration::from_millis(50));
                            Ok(())
                        })
                        .unwrap();
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
