//! Prometheus, out of Debian's package: nothing of it is installed on this host.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cache::{Cache, GIB, Key};
use crate::command::{run, tied};
use crate::output::stage;

const RECIPE: &str = "1";

/// The folder with the server `prometheus`.
///
/// # Errors
/// apt cannot fetch the package.
pub fn prometheus() -> Result<PathBuf> {
    let key = Key::default().with("recipe", RECIPE);
    Cache::open()?.entry("prometheus", "debian", &key, GIB / 4, |new| {
        let _stage = stage(format_args!("Prometheus"));
        let scratch = tempfile::tempdir_in(new)?;
        // As root apt would fetch as a user of its own, which may not write here.
        let words = ["download", "--quiet", "-o", "APT::Sandbox::User=root", "prometheus"];
        let fetch = || run(tied("apt-get", words).current_dir(scratch.path()));
        if fetch().is_err() {
            // The lists may be old, or not be there.
            run(&mut tied("apt-get", ["update", "--quiet"]))?;
            fetch()?;
        }
        let package = fs::read_dir(scratch.path())?.next().context("apt fetched nothing")??.path();
        let tree = scratch.path().join("tree");
        run(tied("dpkg-deb", ["-x".as_ref(), package.as_os_str(), tree.as_os_str()]).current_dir(scratch.path()))?;
        fs::rename(tree.join("usr/bin/prometheus"), new.join("prometheus")).context("the package holds no server")?;
        Ok(())
    })
}
