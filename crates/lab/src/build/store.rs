//! All images of a set of versions in one containerd store, imported once: machines get links to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{images, root};
use crate::cache::{Cache, GIB, Key};
use crate::command::{cannot_start, read, run, tail, tied, write};
use crate::output::stage;
use crate::tree;
use crate::version::{Version, set_name};

const RECIPE: &str = "1";

/// A containerd root (`/var/lib/containerd`) that holds the images of these versions, unpacked.
///
/// # Errors
/// The images cannot be built, or containerd refused one.
pub fn store(versions: &[Version]) -> Result<PathBuf> {
    let images = images(versions)?;
    let root = root::machine_root_entry()?;
    let key = images
        .iter()
        .fold(Key::default().with("recipe", RECIPE).with_built(&root), |key, folder| key.with_built(folder));
    let bytes = GIB + versions.len() as u64 * GIB;
    let entry = Cache::open()?.entry("store", &set_name(versions), &key, bytes, |new| {
        let _stage = stage(format_args!("container store of {}", set_name(versions)));
        make(&images, &root.join("rootfs"), new)
    })?;
    Ok(entry.join("containerd"))
}

/// A containerd that dies with this value.
struct Containerd(Child);

impl Drop for Containerd {
    fn drop(&mut self) {
        // It may be gone already; what matters is that it is when we go on.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn make(images: &[PathBuf], root: &Path, new: &Path) -> Result<()> {
    // The machine root's containerd, so that the store is the one its own version writes. Sockets have short paths.
    let scratch = tempfile::tempdir()?;
    let place = |name: &str| scratch.path().join(name);
    let containerd = new.join("containerd");
    tree::make_public(&containerd)?;
    write(
        &place("config.toml"),
        format!(
            "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\nroot = \"{}\"\nstate = \"{}\"\n[grpc]\naddress = \"{}\"\n",
            containerd.display(),
            place("state").display(),
            place("sock").display()
        ),
    )?;
    let in_root = |program: &str| {
        let loader = root.join("usr/lib64/ld-linux-x86-64.so.2");
        let mut command = tied(&loader.to_string_lossy(), ["--library-path"]);
        command.arg(root.join("usr/lib/x86_64-linux-gnu")).arg(root.join("usr/bin").join(program));
        command
    };
    let log = fs::File::create(place("log"))?;
    let mut daemon = in_root("containerd");
    daemon.arg("--config").arg(place("config.toml")).stdout(log.try_clone()?).stderr(log);
    let mut daemon = Containerd(daemon.spawn().map_err(|error| cannot_start(&daemon, error))?);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !place("sock").exists() {
        if daemon.0.try_wait()?.is_some() || Instant::now() > deadline {
            bail!("containerd did not start: {}", tail(&read(&place("log"))?, 5));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for folder in images {
        for archive in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let archive = archive?.path();
            if archive.extension().is_some_and(|extension| extension == "tar") {
                let mut import = in_root("ctr");
                run(import.arg("-a").arg(place("sock")).args(["-n", "k8s.io", "images", "import"]).arg(&archive))?;
            }
        }
    }
    // SIGTERM, so that it closes its databases.
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    daemon.0.wait()?;
    Ok(())
}
