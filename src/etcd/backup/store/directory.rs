//! A folder. Whoever writes a file holds a lock on it until it has its name, so that what a killed process has left is told from what another
//! writes now.

use super::super::name;
use super::{Entry, StoreError};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// How a file is called until it has its name: `.NAME.partial`.
const PARTIAL: &str = ".partial";
/// A snapshot holds every Secret of the cluster.
pub(in super::super) const OWNER_ONLY: u32 = 0o600;
/// No manifest is larger.
const SMALL: u64 = 1024 * 1024;

/// A folder.
#[derive(Clone)]
pub struct Directory {
    path: PathBuf,
}

/// A file that is being written; it goes when this is dropped.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    name: String,
    named: bool,
}

impl Partial {
    /// What is written to, and can be read.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The name that it is going to have.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything that was written lies on the disk.
    ///
    /// # Errors
    /// When it does not.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_all().map_err(|error| StoreError::new(format!("write {}", self.path.display()), error))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.named
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "What was half written stays");
        }
    }
}

impl Directory {
    /// The folder at this path.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn wrong(&self, verb: &str, name: &str, error: impl std::fmt::Display) -> StoreError {
        StoreError::new(format!("{verb} {}", self.path.join(name).display()), error)
    }

    pub(super) fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let listed = || -> io::Result<Vec<Entry>> {
            let mut found = Vec::new();
            for entry in fs::read_dir(&self.path)? {
                let entry = entry?;
                let data = entry.metadata()?;
                // A name that is no text is none of ours.
                if let Some(name) = entry.file_name().to_str().filter(|_| data.is_file()) {
                    found.push(Entry { name: name.to_owned(), bytes: data.len() });
                }
            }
            Ok(found)
        };
        listed().map_err(|error| StoreError::new(format!("list {}", self.path.display()), error))
    }

    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        let opened = File::open(self.path.join(name));
        let read = opened.and_then(|file| file.take(SMALL).read_to_end(&mut bytes));
        read.map(|_| bytes).map_err(|error| self.wrong("read", name, error))
    }

    pub(super) fn fetch(&self, name: &str, mut out: impl Write) -> Result<(), StoreError> {
        let copied = File::open(self.path.join(name)).and_then(|mut file| io::copy(&mut file, &mut out));
        copied.map(drop).map_err(|error| self.wrong("read", name, error))
    }

    /// Begins a file.
    ///
    /// # Errors
    /// When it cannot be made, another process writes it, or one of that name is there.
    pub fn begin(&self, name: &str) -> Result<Partial, StoreError> {
        if self.path.join(name).exists() {
            return Err(self.wrong("write", name, "it is there already"));
        }
        let path = self.path.join(format!(".{name}{PARTIAL}"));
        let begun = || -> io::Result<File> {
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(OWNER_ONLY).open(&path)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            Ok(file)
        };
        let file = begun().map_err(|error| StoreError::new(format!("write {}", path.display()), error))?;
        Ok(Partial { file, path, name: name.to_owned(), named: false })
    }

    pub(super) fn publish(&self, mut partial: Partial) -> Result<(), StoreError> {
        let to = self.path.join(&partial.name);
        let named = || -> io::Result<bool> {
            match renameat_with(CWD, &partial.path, CWD, &to, RenameFlags::NOREPLACE) {
                Ok(()) => Ok(true),
                // A file system that does not know the flag, such as NFS: a link that is there is not replaced either.
                Err(Errno::INVAL | Errno::NOSYS) => fs::hard_link(&partial.path, &to).map(|()| false),
                Err(error) => Err(error.into()),
            }
        };
        // Where it was linked the other name goes with the guard.
        partial.named = named().map_err(|error| self.wrong("name", &partial.name, error))?;
        let synced = File::open(&self.path).and_then(|folder| folder.sync_all());
        synced.map_err(|error| StoreError::new(format!("write {}", self.path.display()), error)).inspect_err(|_| {
            // Whether the name is there after a power cut is not known, so it is not to be there at all.
            if let Err(error) = fs::remove_file(&to) {
                tracing::warn!(path = %to.display(), %error, "What could not be stored safely stays");
            }
        })
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.wrong("remove", name, error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Takes away what killed processes have left; what stays is told in the log.
    pub(super) fn tidy(&self) -> Result<(), StoreError> {
        let entries = fs::read_dir(&self.path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(|error| StoreError::new(format!("list {}", self.path.display()), error))?;
        for path in entries.iter().map(fs::DirEntry::path).filter(|path| is_partial(path)) {
            match left(&path) {
                Ok(true) => tracing::info!(path = %path.display(), "What a killed backup had left is gone"),
                Ok(false) => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "What a killed backup had left stays"),
            }
        }
        Ok(())
    }
}

/// Takes a partial file away, unless whoever writes it holds a lock on it. Opened for writing: NFS locks no other.
fn left(path: &Path) -> io::Result<bool> {
    let file = match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(false),
        locked => locked.map_err(io::Error::from).and_then(|()| fs::remove_file(path)).map(|()| true),
    }
}

fn is_partial(path: &Path) -> bool {
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let own = file.strip_prefix('.').and_then(|name| name.strip_suffix(PARTIAL));
    own.is_some_and(|own| name::backup_of(own).is_some())
}

#[cfg(test)]
mod tests {
    use super::super::{Staged, Store, Writer};
    use super::*;

    const FILE: &str = "etcd-snapshot-20261126-200405.db";
    const MANIFEST: &str = "etcd-snapshot-20261126-200405.json";

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    async fn staged(store: &Store, name: &str) -> Staged {
        let mut writer = store.begin(name).await.unwrap();
        writer.write_all(name.as_bytes()).unwrap();
        store.stage(writer).await.unwrap()
    }

    #[test]
    fn a_file_has_its_name_at_once_or_never() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::Directory(Directory::at(folder.path()));
        run(async {
            let Writer::File(partial) = store.begin(FILE).await.unwrap() else { panic!("a folder") };
            partial.file().write_all(b"half").unwrap();
            assert_eq!(store.list().await.unwrap(), []);
            assert_eq!(names(folder.path()), [format!(".{FILE}.partial")]);
            let mode = std::os::unix::fs::MetadataExt::mode(&partial.file().metadata().unwrap());
            assert_eq!(mode & 0o777, OWNER_ONLY);
            // What another process writes now stays.
            store.tidy().await;
            assert_eq!(names(folder.path()).len(), 1);
            drop(partial);
            assert_eq!(names(folder.path()), Vec::<String>::new());
            // What a killed one has left goes.
            fs::write(folder.path().join(format!(".{FILE}.partial")), "left").unwrap();
            fs::write(folder.path().join(".other.partial"), "somebody else's").unwrap();
            store.tidy().await;
            assert_eq!(names(folder.path()), [".other.partial"]);

            let file = staged(&store, FILE).await;
            store.publish(vec![file]).await.unwrap();
            assert_eq!(store.list().await.unwrap(), [Entry { name: FILE.to_owned(), bytes: FILE.len() as u64 }]);
            assert!(store.begin(FILE).await.err().unwrap().to_string().contains("it is there already"));
        });
    }

    #[test]
    fn of_several_files_all_are_named_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::Directory(Directory::at(folder.path()));
        run(async {
            let files = vec![staged(&store, FILE).await, staged(&store, MANIFEST).await];
            // Somebody else's, since the beginning.
            fs::write(folder.path().join(MANIFEST), "another").unwrap();
            let error = store.publish(files).await.unwrap_err().to_string();
            assert!(error.contains(MANIFEST) && error.contains("exists"), "{error}");
            assert_eq!(names(folder.path()), [MANIFEST]);
            assert_eq!(fs::read(folder.path().join(MANIFEST)).unwrap(), b"another");
        });
    }

    #[test]
    fn what_cannot_be_listed_is_an_error_and_not_empty() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::Directory(Directory::at(folder.path().join("gone")));
        assert!(run(store.list()).unwrap_err().to_string().contains("gone"));
    }
}
