//! What a snapshot does not hold, and a node cannot be rebuilt without: PKI, static pods' manifests, kubeconfigs, kubeadm's configuration,
//! the keys that Secrets are encrypted with.

use crate::observe::Sources;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The flag that names the configuration of encryption at rest.
const ENCRYPTION: &str = "--encryption-provider-config=";
/// What is no file of a configuration.
const LARGEST: u64 = 16 * 1024 * 1024;

/// The files of a node.
pub(super) struct Archive {
    files: Vec<PathBuf>,
    /// kubeadm's own record, by the name that it has in the archive.
    record: Option<(String, Vec<u8>)>,
}

impl Archive {
    /// Finds them.
    ///
    /// # Errors
    /// In words, when they are not here, or not all of them can be read.
    pub(super) async fn of(kubernetes: &Path, sources: &Sources<'_>, limit: Duration) -> Result<Self, String> {
        let ca_key = kubernetes.join("pki/ca.key");
        if !ca_key.exists() {
            return Err(format!("{} is not here: kustomize/components/backup-node mounts it", ca_key.display()));
        }
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
        let record = match &sources.access {
            Ok(access) => Some(record(access, limit).await?),
            Err(_) => None,
        };
        Ok(Self { files, record })
    }

    /// Writes them as a tar archive; paths as on the node, without the leading slash.
    ///
    /// # Errors
    /// When one of them cannot be read, or the archive not be written.
    pub(super) fn write(self, out: &mut dyn Write) -> io::Result<()> {
        let mut archive = tar::Builder::new(out);
        for path in self.files {
            let name = path.strip_prefix("/").unwrap_or(&path).to_owned();
            let mut file =
                File::open(&path).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
            archive.append_file(name, &mut file)?;
        }
        if let Some((name, bytes)) = self.record {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            archive.append_data(&mut header, name, bytes.as_slice())?;
        }
        archive.finish()
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let wrong = |error: io::Error| format!("{}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        let kind = entry.file_type().map_err(wrong)?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if entry.path().is_file() {
            let size = entry.path().metadata().map_err(wrong)?.len();
            if size > LARGEST {
                return Err(format!("{} has {size} bytes: no file of a configuration", entry.path().display()));
            }
            files.push(entry.path());
        }
    }
    Ok(())
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

async fn record(access: &crate::access::Access, limit: Duration) -> Result<(String, Vec<u8>), String> {
    let client = access.live(&[]).await.map_err(|error| error.to_string())?;
    let maps: Api<ConfigMap> = Api::namespaced(client, "kube-system");
    let said = |error: &dyn std::fmt::Display| format!("ConfigMap kube-system/kubeadm-config: {error}");
    let read = tokio::time::timeout(limit, maps.get("kubeadm-config")).await;
    let map = read.map_err(|_| said(&"no answer"))?.map_err(|error| said(&crate::lock::lease::said(&error)))?;
    let text = serde_saphyr::to_string(&map.data.unwrap_or_default()).map_err(|error| said(&error))?;
    Ok(("kubeadm-config.yaml".to_owned(), text.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::etcd::ClientFiles;
    use std::collections::BTreeMap;
    use std::io::Read;

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
        assert!(of().await.err().unwrap().contains("ca.key is not here"));
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
        assert!(of().await.err().unwrap().contains("enc.yaml is not here"));
        fs::write(&keys, "keys").unwrap();
        let mut bytes = Vec::new();
        of().await.unwrap().write(&mut bytes).unwrap();
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let path = Path::new("/").join(entry.path().unwrap());
            found.insert(path.strip_prefix(root).unwrap().display().to_string(), text);
        }
        let wanted = ["admin.conf", "enc.yaml", "manifests/kube-apiserver.yaml", "pki/ca.key", "pki/etcd/ca.crt"];
        assert_eq!(found.keys().collect::<Vec<_>>(), wanted);
        assert_eq!(found["pki/ca.key"], "secret");
    }
}
