//! What lies in a store: backups with their manifests, and what is strange.

use super::manifest::{FORMAT, Manifest, Node, Stored};
use super::name;
use super::store::{Entry, Store, StoreError};
use comfy_table::{Table, presets};
use quorum_safety::API_VERSION;
use serde::Serialize;

/// What lies in a store.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    api_version: &'static str,
    kind: &'static str,
    /// Where that is.
    pub store: String,
    /// Those that are whole: a manifest, and each file that it names with its size. The oldest first.
    pub backups: Vec<Manifest>,
    /// What is called as a backup and is none, or none that is whole; it stays as it is.
    pub strange: Vec<String>,
}

impl Inventory {
    /// Looks.
    ///
    /// # Errors
    /// When not all of it could be listed, or a manifest not be read.
    pub async fn of(store: &Store) -> Result<Self, StoreError> {
        let entries = store.list().await?;
        let (mut backups, mut strange) = (Vec::new(), Vec::new());
        for entry in entries.iter().filter(|entry| is_manifest(entry)) {
            let text = store.read(&entry.name).await?;
            match understood(&entry.name, &text, &entries) {
                Ok(manifest) => backups.push(manifest),
                Err(why) => strange.push(format!("{}: {why}", entry.name)),
            }
        }
        for entry in entries.iter().filter(|entry| !is_manifest(entry)) {
            let told = entries
                .iter()
                .any(|other| is_manifest(other) && name::backup_of(&other.name) == name::backup_of(&entry.name));
            if !told {
                strange.push(format!("{}: no manifest lies beside it, so it was never proven", entry.name));
            }
        }
        backups.sort_by(|one: &Manifest, other| (one.taken_at, &one.name).cmp(&(other.taken_at, &other.name)));
        Ok(Self { api_version: API_VERSION, kind: "EtcdBackups", store: store.to_string(), backups, strange })
    }

    /// For people.
    pub fn text(&self) -> String {
        if self.backups.is_empty() && self.strange.is_empty() {
            return format!("no backup lies in {}", self.store);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["NAME", "TAKEN", "REVISION", "KEYS", "BYTES", "STORED", "FROM", "ETCD", "ENCRYPTED", "NODE"]);
        for backup in &self.backups {
            let Manifest { snapshot, stored, .. } = backup;
            table.add_row([
                backup.name.clone(),
                backup.taken_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
                snapshot.revision.to_string(),
                snapshot.keys.map_or_else(|| "many".to_owned(), |keys| keys.to_string()),
                snapshot.bytes.to_string(),
                stored.bytes.to_string(),
                backup.member.name.clone(),
                backup.etcd_version.clone(),
                if stored.encryption.is_some() { "yes" } else { "no" }.to_owned(),
                if matches!(backup.node, Node::Stored(_)) { "yes" } else { "no" }.to_owned(),
            ]);
        }
        let mut lines = vec![format!("{}:", self.store)];
        if !self.backups.is_empty() {
            lines.push(table.to_string());
        }
        lines.extend(self.strange.iter().map(|strange| format!("strange: {strange}")));
        lines.join("\n")
    }
}

fn is_manifest(entry: &Entry) -> bool {
    name::backup_of(&entry.name).is_some_and(|backup| name::manifest(backup) == entry.name)
}

fn understood(entry: &str, text: &[u8], entries: &[Entry]) -> Result<Manifest, String> {
    let manifest: Manifest = serde_json::from_slice(text).map_err(|error| format!("no manifest: {error}"))?;
    if manifest.format > FORMAT {
        return Err(format!("format {}, and this version knows {FORMAT}", manifest.format));
    }
    // What it names is removed with it one day: it speaks for its own files alone.
    if name::manifest(&manifest.name) != entry {
        return Err(format!("it calls its backup {}", manifest.name));
    }
    for Stored { file, bytes, .. } in manifest.files() {
        if file.contains('/') || name::backup_of(file) != Some(&manifest.name) || entry == file {
            return Err(format!("it names {file}, which is not its own"));
        }
        match entries.iter().find(|entry| entry.name == *file) {
            Some(entry) if entry.bytes == *bytes => {}
            Some(entry) => return Err(format!("{file} has {} bytes, and had {bytes}", entry.bytes)),
            None => return Err(format!("{file} is gone")),
        }
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::manifest;
    use super::super::store::Directory;
    use super::*;

    #[tokio::test]
    async fn what_is_whole_is_told_from_what_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| std::fs::write(folder.path().join(name), text).unwrap();
        let of = || async { Inventory::of(&Store::Directory(Directory::at(folder.path()))).await.unwrap() };
        assert!(of().await.text().starts_with("no backup"));
        let manifest = manifest();
        write(&name::manifest(&manifest.name), &serde_json::to_vec(&manifest).unwrap());
        assert!(of().await.strange[0].contains("is gone"));
        write(&manifest.stored.file, &[0; 899]);
        assert!(of().await.strange[0].contains("has 899 bytes, and had 900"));
        write(&manifest.stored.file, &[0; 900]);
        assert_eq!(of().await.backups.as_slice(), std::slice::from_ref(&manifest));
        // A manifest speaks for no other's files.
        let mut liar = manifest.clone();
        liar.name = "etcd-snapshot-20270103-000000".to_owned();
        let path = name::manifest(&liar.name);
        write(&path, &serde_json::to_vec(&liar).unwrap());
        assert!(of().await.strange[0].contains("which is not its own"), "{:?}", of().await.strange);
        write(&path, &serde_json::to_vec(&manifest).unwrap());
        assert!(of().await.strange[0].contains("it calls its backup"), "{:?}", of().await.strange);
        std::fs::remove_file(folder.path().join(path)).unwrap();
        // What the old pipeline wrote, and what a later version may.
        write("etcd-snapshot-20200101-000000.db", b"old");
        let mut later = manifest.clone();
        later.format = FORMAT + 1;
        write("etcd-snapshot-20270101-000000.json", &serde_json::to_vec(&later).unwrap());
        write("etcd-snapshot-20270102-000000.json", b"{}");
        let all = of().await;
        assert_eq!((all.backups.len(), all.strange.len()), (1, 3), "{:?}", all.strange);
        let text = all.text();
        assert!(text.contains("etcd-snapshot-20261126-204500") && text.contains("never proven"), "{text}");
    }
}
