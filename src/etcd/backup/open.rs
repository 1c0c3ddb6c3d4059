//! A stored snapshot, wherever it lies and whatever was done to it, as the file that etcd sent.

use super::manifest::{FORMAT, Facts, Manifest, Node, SUFFIX, Stored};
use super::seal::{Identity, Kind, Sum, UnsealError, hex, unseal};
use super::store::{S3, Store, address};
use super::take::{Spool, blocking};
use super::{name, node};
use crate::clock::Clock;
use crate::config;
use crate::exit::UsageError;
use anyhow::Context;
use etcd_snapshot::Snapshot;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long nothing may come of a URL.
const STALL: Duration = Duration::from_secs(60);
/// No manifest is larger.
const SMALL: u64 = 1024 * 1024;

/// A snapshot that was opened.
pub struct Opened {
    /// The `.db`, at any position.
    pub file: File,
    /// What lies beside it, where there is one.
    pub manifest: Option<Manifest>,
    /// What is stored, where that is not the `.db` itself.
    undone: Option<Sum>,
}

/// Why a stored snapshot is none: exit code 21.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {why}")]
pub struct NotVerified {
    /// Where it lies.
    pub file: String,
    /// What is wrong with it.
    pub why: String,
}

/// Opens `from`: a path, `s3://BUCKET/KEY` (endpoint, region and keys as the AWS tools read them from the environment), or a URL that a GET
/// answers. What is not a `.db` as it lies there is undone into `spool`, in a file without a name.
///
/// # Errors
/// When it cannot be read or opened: [`UsageError`] where what was typed is wrong, [`NotVerified`] where what is stored is.
pub async fn open(from: &str, identities: Vec<Identity>, spool: &Path, clock: Clock) -> anyhow::Result<Opened> {
    let (stored, manifest) = fetched(from, spool, clock).await?;
    let from = shown(from);
    let manifest = manifest.map(|text| understood(&from, &text)).transpose()?;
    if let Some(manifest) = manifest.as_ref().filter(|manifest| !is_called(&from, &manifest.stored.file)) {
        let why = format!("the manifest beside it is about {}", manifest.stored.file);
        return Err(NotVerified { file: from, why }.into());
    }
    let spool = spool.to_owned();
    let opened = blocking(move || undone(&from, stored, &identities, &spool)).await;
    let (file, undone) = opened.map_err(|error| anyhow::anyhow!(error))??;
    Ok(Opened { file, manifest, undone })
}

/// The archive of a node.
pub struct OpenedArchive {
    /// What lies beside it.
    pub manifest: Manifest,
    /// What is in it; none when nobody gave an identity that opens it.
    pub holds: Option<Vec<PathBuf>>,
}

/// Compares the archive of a node with the manifest beside it; with an identity, opens it and reads all of it.
///
/// # Errors
/// As of [`open`]; also when no manifest lies beside it, since then nobody ever proved it.
pub async fn archive(
    from: &str,
    identities: Vec<Identity>,
    spool: &Path,
    clock: Clock,
) -> anyhow::Result<OpenedArchive> {
    let (stored, manifest) = fetched(from, spool, clock).await?;
    let from = shown(from);
    let not = |why: String| NotVerified { file: from.clone(), why };
    let manifest = manifest.ok_or_else(|| not("no manifest lies beside it".to_owned()))?;
    let manifest = understood(&from, &manifest)?;
    let Node::Stored(said) = &manifest.node else {
        return Err(not("the manifest beside it knows of no archive".to_owned()).into());
    };
    if !is_called(&from, &said.file) {
        return Err(not(format!("the manifest beside it is about {}", said.file)).into());
    }
    (&stored).seek(SeekFrom::Start(0))?;
    is_as_said(said, &sum(&stored).with_context(|| from.clone())?).map_err(not)?;
    if identities.is_empty() {
        return Ok(OpenedArchive { manifest, holds: None });
    }
    let (named, spool) = (from.clone(), spool.to_owned());
    let holds = blocking(move || {
        let (mut file, _) = undone(&named, stored, &identities, &spool)?;
        file.seek(SeekFrom::Start(0))?;
        let held = node::entries(io::BufReader::new(file));
        let held = held.map_err(|error| NotVerified { file: named, why: format!("it is no archive: {error}") })?;
        anyhow::Ok(held.into_iter().map(|(path, _)| path).collect())
    });
    Ok(OpenedArchive { manifest, holds: Some(holds.await.map_err(|error| anyhow::anyhow!(error))??) })
}

/// An address without what is secret in it: a signature in its query, a password before its host.
pub fn shown(from: &str) -> String {
    match (Place::of(from), reqwest::Url::parse(from)) {
        (Place::Url, Ok(mut url)) => {
            url.set_query(None);
            // Neither fails for what has a host.
            let bare = url.set_password(None).and_then(|()| url.set_username(""));
            if bare.is_ok() { url.to_string() } else { "a URL".to_owned() }
        }
        (Place::Url, Err(_)) => "a URL that is none".to_owned(),
        (Place::Here(_) | Place::Bucket { .. }, _) => from.to_owned(),
    }
}

async fn fetched(from: &str, spool: &Path, clock: Clock) -> anyhow::Result<(File, Option<Vec<u8>>)> {
    match Place::of(from) {
        Place::Here(_) if from.starts_with("s3://") => {
            Err(UsageError(format!("{from}: expected s3://BUCKET/KEY")).into())
        }
        Place::Here(path) => here(&path),
        Place::Bucket { bucket, key } => of_bucket(from, bucket, key, spool, clock).await,
        Place::Url => of_url(from, spool).await,
    }
}

/// Whether what a store has is what a manifest says of it.
fn is_as_said(said: &Stored, stored: &Sum) -> Result<(), String> {
    if (said.bytes, &said.sha256) == (stored.bytes, &stored.sha256) {
        return Ok(());
    }
    Err(format!(
        "its manifest says that it has {} bytes with SHA-256 {}, and it has {} with {}",
        said.bytes, said.sha256, stored.bytes, stored.sha256
    ))
}

/// Opens a backup that lies in a store, which is fetched into `spool`.
///
/// # Errors
/// As [`open`].
pub async fn of_store(
    store: &Store,
    manifest: Manifest,
    identities: Vec<Identity>,
    spool: &Path,
) -> anyhow::Result<Opened> {
    let stored = spooled(spool)?;
    store.fetch(&manifest.stored.file, &stored).await?;
    let (from, spool) = (manifest.stored.file.clone(), spool.to_owned());
    let opened = blocking(move || undone(&from, stored, &identities, &spool)).await;
    let (file, undone) = opened.map_err(|error| anyhow::anyhow!(error))??;
    Ok(Opened { file, manifest: Some(manifest), undone })
}

impl Opened {
    /// Compares all of it with its manifest, if there is one: `snapshot` is what was found in the file.
    ///
    /// # Errors
    /// In words, when they differ.
    pub fn is_as_its_manifest_says(&self, snapshot: &Snapshot) -> Result<(), String> {
        let Some(manifest) = &self.manifest else { return Ok(()) };
        let found = Facts::of(snapshot);
        let as_it_lies = || Sum { bytes: found.bytes, sha256: found.sha256.clone() };
        is_as_said(&manifest.stored, &self.undone.clone().unwrap_or_else(as_it_lies))?;
        if manifest.snapshot != found {
            return Err(format!("its manifest says {:?}, and it is {found:?}", manifest.snapshot));
        }
        Ok(())
    }
}

enum Place<'a> {
    Here(PathBuf),
    Bucket { bucket: &'a str, key: &'a str },
    Url,
}

impl<'a> Place<'a> {
    fn of(from: &'a str) -> Self {
        match address(from) {
            Some((bucket, key)) => Self::Bucket { bucket, key },
            None if from.starts_with("https://") || from.starts_with("http://") => Self::Url,
            None => Self::Here(PathBuf::from(from)),
        }
    }
}

/// A file on this disk, and what lies beside it.
pub(in super::super) fn here(path: &Path) -> anyhow::Result<(File, Option<Vec<u8>>)> {
    let shown = path.display();
    let file = match File::open(path).and_then(|opened| Ok((opened.metadata()?.is_file(), opened))) {
        Ok((true, opened)) => opened,
        Ok((false, _)) => return Err(UsageError(format!("{shown}: is no file; expected a snapshot of etcd")).into()),
        Err(error) => return Err(UsageError(format!("{shown}: {error}")).into()),
    };
    let beside = path.to_str().and_then(beside).map(PathBuf::from);
    let manifest = match beside.as_ref().map(File::open) {
        None => None,
        Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Some(opened) => {
            let mut text = Vec::new();
            let read = opened.and_then(|file| file.take(SMALL).read_to_end(&mut text));
            read.with_context(|| format!("the manifest beside {shown}"))?;
            Some(text)
        }
    };
    Ok((file, manifest))
}

/// What the manifest beside a file is called; none for one that is not called as a snapshot of ours.
fn beside(file: &str) -> Option<String> {
    let backup = name::backup_of(file)?;
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    let slash = if file.contains('/') { "/" } else { "" };
    Some(format!("{folder}{slash}{backup}{SUFFIX}"))
}

fn understood(from: &str, text: &[u8]) -> Result<Manifest, NotVerified> {
    let not = |why: String| NotVerified { file: from.to_owned(), why };
    let manifest: Manifest = serde_json::from_slice(text).map_err(|error| not(format!("its manifest: {error}")))?;
    if manifest.format > FORMAT {
        return Err(not(format!("its manifest has format {}, and this version knows {FORMAT}", manifest.format)));
    }
    Ok(manifest)
}

fn is_called(from: &str, name: &str) -> bool {
    from.rsplit('/').next() == Some(name)
}

async fn of_bucket(
    from: &str,
    bucket: &str,
    key: &str,
    spool: &Path,
    clock: Clock,
) -> anyhow::Result<(File, Option<Vec<u8>>)> {
    let variable = |names: [&str; 2]| {
        names.into_iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    };
    let region = variable(["AWS_REGION", "AWS_DEFAULT_REGION"]).unwrap_or_else(|| "us-east-1".to_owned());
    let endpoint = variable(["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
        .unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
    let (folder, file) = key.rsplit_once('/').map_or(("", key), |(folder, file)| (folder, file));
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let config = config::S3 { endpoint, region, bucket: bucket.to_owned(), prefix, path_style: true };
    let store = Store::S3(Box::new(S3::new(&config, STALL, clock).map_err(UsageError)?));
    let stored = spooled(spool)?;
    store.fetch(file, &stored).await?;
    let manifest = match beside(from).and_then(|beside| beside.rsplit_once('/').map(|(_, name)| name.to_owned())) {
        // Whether there is one is asked of the list: what a store says of what is not there may be anything.
        Some(manifest) if store.list().await?.iter().any(|entry| entry.name == manifest) => {
            Some(store.read(&manifest).await?)
        }
        Some(_) | None => None,
    };
    Ok((stored, manifest))
}

async fn of_url(from: &str, spool: &Path) -> anyhow::Result<(File, Option<Vec<u8>>)> {
    let address = shown(from);
    let client = reqwest::Client::builder().connect_timeout(STALL).read_timeout(STALL).build()?;
    let get = |url: String| {
        let client = client.clone();
        async move { client.get(url).send().await.map_err(reqwest::Error::without_url) }
    };
    let mut answer = get(from.to_owned()).await.with_context(|| address.clone())?;
    anyhow::ensure!(answer.status().is_success(), "{address}: {}", answer.status());
    let mut stored = spooled(spool)?;
    while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        io::Write::write_all(&mut stored, &chunk)?;
    }
    // A URL that is signed is signed for one file.
    let Some(beside) = beside(from).filter(|_| !from.contains('?')) else { return Ok((stored, None)) };
    let what = || format!("the manifest beside {address}");
    let mut answer = get(beside).await.with_context(what)?;
    if answer.status() == reqwest::StatusCode::NOT_FOUND {
        return Ok((stored, None));
    }
    // Whether there is one is not known, and a file that differs from its manifest is not to pass for one that has none.
    anyhow::ensure!(answer.status().is_success(), "{}: {}", what(), answer.status());
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url).with_context(what)? {
        text.extend_from_slice(&chunk);
        anyhow::ensure!(text.len() as u64 <= SMALL, "{}: it is larger than {SMALL} bytes", what());
    }
    Ok((stored, Some(text)))
}

fn spooled(folder: &Path) -> anyhow::Result<File> {
    match Spool::in_folder(folder) {
        Ok(Spool::Anonymous(file)) => Ok(file),
        Ok(Spool::Partial(_)) => anyhow::bail!("{}: a spool with a name", folder.display()),
        Err(error) => Err(UsageError(format!("{}: {error}; --spool names another folder", folder.display())).into()),
    }
}

/// The `.db` in a stored file; with what is stored, where that is something else.
fn undone(from: &str, mut stored: File, identities: &[Identity], spool: &Path) -> anyhow::Result<(File, Option<Sum>)> {
    let mut begin = Vec::new();
    stored.seek(SeekFrom::Start(0)).and_then(|_| (&stored).take(64).read_to_end(&mut begin))?;
    stored.seek(SeekFrom::Start(0))?;
    if Kind::of(&begin) == Kind::Plain {
        return Ok((stored, None));
    }
    let file = spooled(spool)?;
    let sum = unseal(&stored, identities, &file).map_err(|error| match error {
        UnsealError::NoIdentity | UnsealError::WrongIdentity => UsageError(format!("{from}: {error}")).into(),
        UnsealError::Damaged(_) => NotVerified { file: from.to_owned(), why: error.to_string() }.into(),
        UnsealError::Io(error) => anyhow::Error::new(error).context(from.to_owned()),
    })?;
    Ok((file, Some(sum)))
}

/// Bytes and SHA-256 of a file from where it stands.
pub(in super::super) fn sum(mut file: &File) -> io::Result<Sum> {
    let (mut sha, mut bytes, mut buffer) = (Sha256::new(), 0_u64, vec![0; 64 * 1024]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(Sum { bytes, sha256: hex(&sha.finalize()) });
        }
        sha.update(buffer.get(..read).unwrap_or_default());
        bytes = bytes.saturating_add(read as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_in_an_address_is_not_shown() {
        let signed = "https://me:pass@b.example/p/etcd-snapshot-20261126-190405.db?X-Amz-Signature=abc&X-Amz-Expires=9";
        assert_eq!(shown(signed), "https://b.example/p/etcd-snapshot-20261126-190405.db");
        assert_eq!(shown("/a/etcd?.db"), "/a/etcd?.db");
        assert_eq!(shown("https://?secret"), "a URL that is none");
    }

    #[test]
    fn a_manifest_is_looked_for_beside_its_snapshot() {
        for (file, wanted) in [
            ("/a/etcd-snapshot-20261126-190405.db.zst", Some("/a/etcd-snapshot-20261126-190405.json")),
            ("etcd-snapshot-20261126-190405.db", Some("etcd-snapshot-20261126-190405.json")),
            ("s3://b/p/etcd-snapshot-20261126-190405.db.age", Some("s3://b/p/etcd-snapshot-20261126-190405.json")),
            ("/a/snapshot.db", None),
        ] {
            assert_eq!(beside(file).as_deref(), wanted);
        }
    }
}
