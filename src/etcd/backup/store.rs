//! Where backups lie: a folder, or a bucket. A file is written in two steps: all of it under no name that counts, then its name, at once.

use super::name;
use super::take::blocking;
use crate::clock::Clock;
use crate::config;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

mod directory;
mod s3;

pub(super) use directory::OWNER_ONLY;
pub use directory::{Directory, Partial};
pub use s3::{S3, address};

/// A store that did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct StoreError {
    /// What was asked, with the name of the file.
    what: String,
    /// Why not.
    why: String,
}

impl StoreError {
    fn new(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self { what: what.into(), why: why.to_string() }
    }
}

/// A file that a store lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
}

/// Where backups lie.
pub enum Store {
    /// A folder.
    Directory(Directory),
    /// A bucket.
    S3(Box<S3>),
}

/// Takes the bytes of a file that is not there yet.
pub enum Writer {
    /// Into a folder.
    File(Partial),
    /// Into a bucket.
    Parts(s3::Parts),
}

/// A file that is there, but for its name.
pub enum Staged {
    /// In a folder.
    File(Partial),
    /// In a bucket.
    Upload(s3::Upload),
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(partial) => partial.file().write(bytes),
            Self::Parts(parts) => parts.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(partial) => partial.file().flush(),
            Self::Parts(parts) => parts.flush(),
        }
    }
}

impl Store {
    /// The store that the configuration names; none when it names none. Nothing is asked of it.
    ///
    /// # Errors
    /// In words, when it cannot be one.
    pub fn configured(config: &config::Backup, clock: Clock) -> Result<Option<Self>, String> {
        Ok(match (&config.directory, &config.s3) {
            (Some(directory), _) => Some(Self::Directory(Directory::at(directory))),
            (None, Some(s3)) => Some(Self::S3(Box::new(S3::new(s3, config.stall.get(), clock)?))),
            (None, None) => None,
        })
    }

    /// The folder, where it is one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Directory(directory) => Some(directory.path()),
            Self::S3(_) => None,
        }
    }

    /// Everything in it that is called as files of a backup are.
    ///
    /// # Errors
    /// When not all of it could be listed.
    pub async fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let mut found = match self {
            Self::Directory(directory) => on_disk(directory, Directory::list).await?,
            Self::S3(s3) => s3.list().await?,
        };
        found.retain(|entry| name::backup_of(&entry.name).is_some());
        found.sort();
        Ok(found)
    }

    /// All of a small file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        match self {
            Self::Directory(directory) => {
                let name = name.to_owned();
                on_disk(directory, move |directory| directory.read(&name)).await
            }
            Self::S3(s3) => s3.read(name).await,
        }
    }

    /// Copies a file out of it.
    ///
    /// # Errors
    /// When it cannot be read, all of it, or `out` not be written.
    pub async fn fetch(&self, name: &str, out: impl Write) -> Result<(), StoreError> {
        match self {
            Self::Directory(directory) => directory.fetch(name, out),
            Self::S3(s3) => s3.fetch(name, out).await,
        }
    }

    /// Begins a file.
    ///
    /// # Errors
    /// When it cannot be begun, or one of that name is there.
    pub async fn begin(&self, name: &str) -> Result<Writer, StoreError> {
        Ok(match self {
            Self::Directory(directory) => {
                let name = name.to_owned();
                Writer::File(on_disk(directory, move |directory| directory.begin(&name)).await?)
            }
            Self::S3(s3) => Writer::Parts(s3.begin(name).await?),
        })
    }

    /// After the last byte: everything lies there safely, under no name that counts.
    ///
    /// # Errors
    /// When it does not.
    pub async fn stage(&self, writer: Writer) -> Result<Staged, StoreError> {
        match writer {
            Writer::File(partial) => {
                // A slow disk takes its time, and the Lease is to be renewed meanwhile.
                let name = partial.name().to_owned();
                let synced = blocking(move || partial.sync().map(|()| partial)).await;
                synced.map_err(|error| StoreError::new(name, error))?.map(Staged::File)
            }
            Writer::Parts(parts) => Ok(Staged::Upload(parts.end().await?)),
        }
    }

    /// Gives them their names, in this order. When one cannot be named, those before it are taken away again.
    ///
    /// # Errors
    /// When not all are there; what could not be taken away is told.
    pub async fn publish(&self, files: Vec<Staged>) -> Result<(), StoreError> {
        let mut published = Vec::new();
        for staged in files {
            let (name, done) = match (self, staged) {
                (Self::Directory(directory), Staged::File(partial)) => {
                    let name = partial.name().to_owned();
                    (name, on_disk(directory, move |directory| directory.publish(partial)).await)
                }
                (Self::S3(s3), Staged::Upload(upload)) => (upload.name().to_owned(), s3.complete(upload).await),
                (_, Staged::File(partial)) => {
                    let name = partial.name().to_owned();
                    (name.clone(), Err(StoreError::new(name, "it was written for another store")))
                }
                (_, Staged::Upload(upload)) => {
                    let name = upload.name().to_owned();
                    (name.clone(), Err(StoreError::new(name, "it was written for another store")))
                }
            };
            let Err(mut error) = done else {
                published.push(name);
                continue;
            };
            for name in published {
                if let Err(stays) = self.remove(&name).await {
                    error.why = format!("{}; and {name} stays: {}", error.why, stays.why);
                }
            }
            return Err(error);
        }
        Ok(())
    }

    /// Takes a file away; one that is not there is no error.
    ///
    /// # Errors
    /// When it may still be there.
    pub async fn remove(&self, name: &str) -> Result<(), StoreError> {
        match self {
            Self::Directory(directory) => {
                let name = name.to_owned();
                on_disk(directory, move |directory| directory.remove(&name)).await
            }
            Self::S3(s3) => s3.remove(name).await,
        }
    }

    /// Takes away what this and earlier, killed runs have begun and not ended. What cannot be taken away is told in the log.
    pub async fn tidy(&self) {
        match self {
            Self::Directory(directory) => {
                if let Err(error) = on_disk(directory, |directory| directory.tidy()).await {
                    tracing::warn!(%error, "What killed backups have left was not looked for");
                }
            }
            Self::S3(s3) => s3.abort_all().await,
        }
    }
}

/// For people.
impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(directory) => write!(f, "{}", directory.path().display()),
            Self::S3(s3) => write!(f, "{s3}"),
        }
    }
}

/// What is asked of a folder, on a thread of its own and not for ever: a mount whose server is gone answers nothing.
async fn on_disk<T: Send + 'static>(
    directory: &Directory,
    work: impl FnOnce(&Directory) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (what, directory) = (directory.path().display().to_string(), directory.clone());
    match tokio::time::timeout(SMALL, blocking(move || work(&directory))).await {
        Ok(done) => done.map_err(|error| StoreError::new(what, error))?,
        Err(_) => Err(StoreError::new(what, format!("no answer in {} s", SMALL.as_secs()))),
    }
}

/// Free bytes of the file system that a folder is on, for whoever is not root.
///
/// # Errors
/// When it cannot be told.
pub fn free(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Deadline of one request that carries little.
const SMALL: Duration = Duration::from_secs(30);
