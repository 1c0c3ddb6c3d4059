//! What a snapshot does not hold, and a node cannot be rebuilt without: PKI, static pods' manifests, kubeconfigs, kubeadm's configuration,
//! the keys that Secrets are encrypted with.

use crate::observe::Sources;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The flag that names the configuration of encryption at rest.
const ENCRYPTION: &str = "--encryption-provider-config=";
/// How kubeadm's own record is called in the archive.
const RECORD: &str = "kubeadm-config.yaml";
/// Bytes of all of them together: what is more is no configuration, and they are in memory.
const LARGEST: u64 = 16 * 1024 * 1024;

/// The files of a node, as a tar archive: paths as on the node, without the leading slash.
pub(super) struct Archive {
    /// The archive.
    pub(super) tar: Vec<u8>,
    /// Why kubeadm's own record is not in it. It is in the snapshot, too.
    pub(super) without_record: Option<String>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoArchive {
    /// The keys of the cluster are not to be seen: nobody asked for one.
    #[error("{0}")]
    NotWanted(String),
    /// It was asked for, and could not be made.
    #[error("{0}")]
    Failed(String),
}

/// A file, and what it held.
type Held = (PathBuf, tar::Header, Vec<u8>);

impl Archive {
    /// Reads them, and makes the archive: what changes while it is read, or does not come out as it went in, is told.
    ///
    /// # Errors
    /// When they are not here, or not all of them can be read.
    pub(super) async fn of(kubernetes: &Path, sources: &Sources<'_>, limit: Duration) -> Result<Self, NoArchive> {
        let ca_key = kubernetes.join("pki/ca.key");
        if !ca_key.exists() {
            let why = format!("{} is not here: kustomize/components/backup-node mounts it", ca_key.display());
            return Err(NoArchive::NotWanted(why));
        }
        let (record, without_record) = match &sources.access {
            Ok(access) => record(access, limit).await.map_or_else(|why| (None, Some(why)), |text| (Some(text), None)),
            Err(why) => (None, Some(why.clone())),
        };
        let tar = paths(kubernetes).and_then(|paths| archived(&paths, record)).map_err(NoArchive::Failed)?;
        Ok(Self { tar, without_record })
    }
}

fn paths(kubernetes: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for folder in ["pki", "manifests"] {
        collect(&kubernetes.join(folder), &mut files)?;
    }
    let entries = fs::read_dir(kubernetes).map_err(|error| format!("{}: {error}", kubernetes.display()))?;
    for entry in entries {
        let path = entry.map_err(|error| format!("{}: {error}", kubernetes.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "conf") && path.is_file() {
            files.push(path);
        }
    }
    files.extend(encryption(kubernetes)?);
    files.sort();
    files.dedup();
    Ok(files)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let wrong = |error: io::Error| format!("{}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        if entry.file_type().map_err(wrong)?.is_dir() {
            collect(&entry.path(), files)?;
        } else if entry.path().is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn archived(paths: &[PathBuf], record: Option<Vec<u8>>) -> Result<Vec<u8>, String> {
    let (mut held, mut left) = (Vec::new(), LARGEST);
    for path in paths {
        held.push(
            File::open(path)
                .and_then(|file| read(path, &file, &mut left))
                .map_err(|error| format!("{}: {error}", path.display()))?,
        );
    }
    if let Some(text) = record {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        held.push((PathBuf::from(RECORD), header, text));
    }
    let made = || -> io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, header, bytes) in &held {
            archive.append_data(&mut header.clone(), path, bytes.as_slice())?;
        }
        archive.into_inner()
    };
    let tar = made().map_err(|error| error.to_string())?;
    comes_out(&tar, &held)?;
    Ok(tar)
}

/// All of a file, as it was in one moment.
fn read(path: &Path, file: &File, left: &mut u64) -> io::Result<Held> {
    let before = file.metadata()?;
    let mut bytes = Vec::new();
    file.take(left.saturating_add(1)).read_to_end(&mut bytes)?;
    let read = bytes.len() as u64;
    *left = left.checked_sub(read).ok_or_else(|| {
        io::Error::other(format!("with it there are more than {LARGEST} bytes, which is no configuration"))
    })?;
    let after = file.metadata()?;
    if after.len() != read || after.modified()? != before.modified()? {
        return Err(io::Error::other("it changed while it was read"));
    }
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&after);
    header.set_size(read);
    Ok((path.strip_prefix("/").unwrap_or(path).to_owned(), header, bytes))
}

/// Reads the archive back: whoever needs it has nothing else.
fn comes_out(tar: &[u8], held: &[Held]) -> Result<(), String> {
    let found = entries(tar).map_err(|error| format!("the archive does not open again: {error}"))?;
    let wanted = held.iter().map(|(path, _, bytes)| (path.clone(), bytes.clone()));
    if found.into_iter().eq(wanted) { Ok(()) } else { Err("the archive does not hold what was put into it".to_owned()) }
}

/// What an archive holds.
///
/// # Errors
/// When it is none, or cut off.
pub(in super::super) fn entries(tar: impl Read) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        if bytes.len() as u64 != entry.size() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        found.push((entry.path()?.into_owned(), bytes));
    }
    Ok(found)
}

/// The configuration of encryption at rest, where the apiserver has one: without it no Secret of the snapshot can be read.
fn encryption(kubernetes: &Path) -> Result<Option<PathBuf>, String> {
    let manifest = kubernetes.join("manifests/kube-apiserver.yaml");
    let text = fs::read_to_string(&manifest).map_err(|error| format!("{}: {error}", manifest.display()))?;
    let named = text.lines().find_map(|line| Some(line.split_once(ENCRYPTION)?.1.trim().trim_matches(['"', '\''])));
    match named.map(PathBuf::from) {
        Some(path) if path.is_file() => Ok(Some(path)),
        Some(path) => Err(format!("{} is not here, and Secrets cannot be read without it", path.display())),
        None => Ok(None),
    }
}

async fn record(access: &crate::access::Access, limit: Duration) -> Result<Vec<u8>, String> {
    let client = access.live(&[]).await.map_err(|error| error.to_string())?;
    let maps: Api<ConfigMap> = Api::namespaced(client, "kube-system");
    let said = |error: &dyn std::fmt::Display| format!("ConfigMap kube-system/kubeadm-config: {error}");
    let read = tokio::time::timeout(limit, maps.get("kubeadm-config")).await;
    let map = read.map_err(|_| said(&"no answer"))?.map_err(|error| said(&crate::lock::lease::said(&error)))?;
    let text = serde_saphyr::to_string(&map.data.unwrap_or_default()).map_err(|error| said(&error))?;
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::etcd::ClientFiles;

    fn sources() -> Sources<'static> {
        Sources {
            access: Err("away".to_owned()),
            etcd: ClientFiles::in_folder("/nowhere"),
            seeds: Vec::new(),
            peers: Vec::new(),
        }
    }

    #[tokio::test]
    async fn an_archive_holds_what_a_snapshot_does_not_or_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let of = || async { Archive::of(root, &sources(), Duration::from_secs(1)).await };
        assert!(matches!(of().await.err().unwrap(), NoArchive::NotWanted(why) if why.contains("ca.key is not here")));
        let keys = root.join("enc.yaml");
        let flag = format!("    - --encryption-provider-config={}\n", keys.display());
        for (name, text) in [
            ("pki/ca.key", "secret"),
            ("pki/etcd/ca.crt", "public"),
            ("manifests/kube-apiserver.yaml", flag.as_str()),
            ("admin.conf", "admin"),
            ("tmp/old", "left by kubeadm"),
        ] {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), text).unwrap();
        }
        assert!(matches!(of().await.err().unwrap(), NoArchive::Failed(why) if why.contains("enc.yaml is not here")));
        fs::write(&keys, "keys").unwrap();
        let archive = of().await.unwrap();
        // kubeadm's record is in the snapshot as well: an API that is away costs nothing else.
        assert_eq!(archive.without_record.as_deref(), Some("away"));
        let found: Vec<(String, Vec<u8>)> = entries(archive.tar.as_slice())
            .unwrap()
            .into_iter()
            .map(|(path, bytes)| (Path::new("/").join(path).strip_prefix(root).unwrap().display().to_string(), bytes))
            .collect();
        let wanted = ["admin.conf", "enc.yaml", "manifests/kube-apiserver.yaml", "pki/ca.key", "pki/etcd/ca.crt"];
        assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), wanted);
        assert_eq!(found[3].1, b"secret");
        // Cut off anywhere, it is none.
        for at in (1..archive.tar.len() - 1024).step_by(100) {
            assert!(entries(&archive.tar[..at]).is_err() || entries(&archive.tar[..at]).unwrap().len() < wanted.len());
        }
        fs::write(root.join("pki/large"), vec![0; usize::try_from(LARGEST).unwrap()]).unwrap();
        assert!(of().await.err().unwrap().to_string().contains("no configuration"));
    }
}
