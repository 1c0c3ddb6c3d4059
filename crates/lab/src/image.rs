//! Container images as docker archives: one layer, and the same input gives the same bytes (sorted entries, no times,
//! no owners but root).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// The format of what [`write`] makes: part of the keys of cached images.
pub(crate) const FORMAT: &str = "1";

/// What an image consists of.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// The process it starts.
    pub entrypoint: Vec<String>,
    /// User and group it starts as, as numbers (`65532:65532`); root when empty.
    pub user: String,
    files: BTreeMap<String, (Source, u32)>,
}

#[derive(Clone, Debug)]
enum Source {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl Image {
    /// An image of one static binary at `/usr/local/bin`, which is its entrypoint.
    ///
    /// # Errors
    /// The path has no file name.
    pub fn of_binary(binary: &Path) -> Result<Self> {
        let Some(name) = binary.file_name() else { bail!("{} is no file", binary.display()) };
        let inside = format!("usr/local/bin/{}", name.to_string_lossy());
        let mut image = Self { entrypoint: vec![format!("/{inside}")], ..Self::default() };
        image.add_file(&inside, binary, 0o755);
        Ok(image)
    }

    /// Adds a file of the host, at a path without a leading slash.
    pub fn add_file(&mut self, inside: &str, file: &Path, mode: u32) {
        self.files.insert(inside.to_owned(), (Source::File(file.to_owned()), mode));
    }

    /// Adds a file of the host, or all files of a folder, at a path without a leading slash.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn add(&mut self, inside: &str, from: &Path, mode: u32) -> Result<()> {
        if !from.is_dir() {
            self.add_file(inside, from, mode);
            return Ok(());
        }
        let entries = std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
        for entry in entries {
            let path = entry?.path();
            let Some(name) = path.file_name() else { continue };
            self.add(&format!("{inside}/{}", name.to_string_lossy()), &path, mode)?;
        }
        Ok(())
    }

    /// Adds a file with these contents.
    pub fn add_bytes(&mut self, inside: &str, bytes: impl Into<Vec<u8>>, mode: u32) {
        self.files.insert(inside.to_owned(), (Source::Bytes(bytes.into()), mode));
    }
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Writes and hashes at once.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        if let Some(written) = buffer.get(..count) {
            self.hash.update(written);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Every folder that the files need, and `/tmp`, parents first.
fn folders(image: &Image) -> BTreeSet<String> {
    let mut folders = BTreeSet::from(["tmp".to_owned()]);
    for file in image.files.keys() {
        let parents = Path::new(file).ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
        folders.extend(parents.map(|parent| parent.to_string_lossy().into_owned()));
    }
    folders
}

fn write_layer(image: &Image, out: impl Write) -> Result<String> {
    let mut tar = Builder::new(Hashing { inner: out, hash: Sha256::new() });
    for folder in folders(image) {
        let mode = if folder == "tmp" { 0o1777 } else { 0o755 };
        tar.append_data(&mut header(EntryType::Directory, 0, mode), format!("{folder}/"), io::empty())?;
    }
    for (path, (source, mode)) in &image.files {
        let (size, data): (u64, Box<dyn Read>) = match source {
            Source::Bytes(bytes) => (bytes.len() as u64, Box::new(bytes.as_slice())),
            Source::File(file) => {
                let open = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
                (open.metadata()?.len(), Box::new(open))
            }
        };
        tar.append_data(&mut header(EntryType::Regular, size, *mode), path, data)?;
    }
    let mut done = tar.into_inner()?;
    done.flush()?;
    Ok(hex(done.hash.finalize()))
}

/// Writes an image as a docker archive under one name (`localhost/quorate:dev`) and gives the digest of its
/// configuration (`sha256:…`), which is the image's id. The archive is complete or not there.
///
/// # Errors
/// A file cannot be read, or the archive not be written.
pub fn write(reference: &str, out: &Path, image: &Image) -> Result<String> {
    let folder = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut layer =
        tempfile::NamedTempFile::new_in(folder).with_context(|| format!("cannot write in {}", folder.display()))?;
    let digest = write_layer(image, io::BufWriter::with_capacity(1 << 20, layer.as_file_mut()))?;
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Entrypoint": image.entrypoint,
            "User": image.user,
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    })
    .to_string();
    let id = hex(Sha256::digest(config.as_bytes()));
    let (config_name, layer_name) = (format!("{id}.json"), format!("{digest}/layer.tar"));
    let manifest =
        serde_json::json!([{"Config": config_name, "RepoTags": [reference], "Layers": [layer_name]}]).to_string();

    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    let mut tar = Builder::new(io::BufWriter::with_capacity(1 << 20, new.as_file_mut()));
    for (name, text) in [(&config_name, &config), (&"manifest.json".to_owned(), &manifest)] {
        tar.append_data(&mut header(EntryType::Regular, text.len() as u64, 0o644), name, text.as_bytes())?;
    }
    let data = layer.reopen()?;
    tar.append_data(&mut header(EntryType::Regular, data.metadata()?.len(), 0o644), &layer_name, data)?;
    tar.into_inner()?.flush()?;
    let kept = new.persist(out).with_context(|| format!("cannot write {}", out.display()))?;
    kept.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    Ok(format!("sha256:{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(archive: impl Read) -> Vec<String> {
        let mut archive = tar::Archive::new(archive);
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("quorate");
        let make = |out: &str| {
            std::fs::write(&binary, "binary").unwrap();
            let mut image = Image::of_binary(&binary).unwrap();
            image.add_bytes("etc/ssl/certs/ca-certificates.crt", "certificates", 0o644);
            let out = dir.path().join(out);
            let id = write("localhost/quorate:dev", &out, &image).unwrap();
            (id, std::fs::read(out).unwrap())
        };
        let first = make("a.tar");
        std::thread::sleep(std::time::Duration::from_millis(1100)); // tar counts in seconds
        assert_eq!(first, make("b.tar"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "scratch files were left");
    }

    #[test]
    fn a_folder_is_added_with_all_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("zones/Europe")).unwrap();
        std::fs::write(dir.path().join("zones/UTC"), "TZif").unwrap();
        std::fs::write(dir.path().join("zones/Europe/Berlin"), "TZif").unwrap();
        let mut image = Image::default();
        image.add("usr/share/zoneinfo", &dir.path().join("zones"), 0o644).unwrap();
        image.add("etc/licence", &dir.path().join("zones/UTC"), 0o644).unwrap();
        let files: Vec<&str> = image.files.keys().map(String::as_str).collect();
        assert_eq!(files, ["etc/licence", "usr/share/zoneinfo/Europe/Berlin", "usr/share/zoneinfo/UTC"]);
    }

    #[test]
    fn an_archive_holds_what_containerd_reads() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("quorate");
        std::fs::write(&binary, "binary").unwrap();
        let mut image = Image::of_binary(&binary).unwrap();
        image.user = "65532:65532".to_owned();
        let out = dir.path().join("out.tar");
        let id = write("localhost/quorate:dev", &out, &image).unwrap();
        let outer = names(File::open(&out).unwrap());
        assert_eq!(outer[0], format!("{}.json", id.strip_prefix("sha256:").unwrap()));
        assert_eq!(outer[1], "manifest.json");
        assert!(outer[2].ends_with("/layer.tar"));
        let mut layer = Vec::new();
        let digest = write_layer(&image, &mut layer).unwrap();
        assert_eq!(outer[2], format!("{digest}/layer.tar"));
        let inner = names(layer.as_slice());
        assert_eq!(inner, ["tmp/", "usr/", "usr/local/", "usr/local/bin/", "usr/local/bin/quorate"]);
    }
}
