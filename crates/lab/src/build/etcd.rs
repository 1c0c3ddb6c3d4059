//! etcd: servers out of the crate `etcd-bin-vendored`, fetched by a package of its own (two versions of one series cannot
//! stand in one Cargo graph), and `etcdctl`, `etcdutl` as Go tools.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{MACHINE_ETCD, go_version};
use crate::cache::{Cache, GIB, Key};
use crate::command::{run, tied, write};
use crate::output::stage;

const RECIPE: &str = "1";
/// Of the tools of these versions the modules with their checksums, as `go mod tidy` left them: without these each is looked up in the
/// checksum database, one after the other, for minutes.
const KNOWN_MODULES: [(&str, &str, &str); 3] = [
    ("3.5.35", include_str!("etcd-tools/3.5.35/go.mod"), include_str!("etcd-tools/3.5.35/go.sum")),
    (MACHINE_ETCD, include_str!("etcd-tools/go.mod"), include_str!("etcd-tools/go.sum")),
    ("3.7.2", include_str!("etcd-tools/3.7.2/go.mod"), include_str!("etcd-tools/3.7.2/go.sum")),
];
const TOOLS: [&str; 2] = ["etcdctl", "etcdutl"];

/// What is built of a version: of others than the machines' no etcdctl, since that one speaks with each server.
fn built(version: &str) -> &'static [&'static str] {
    if version == MACHINE_ETCD { &TOOLS } else { &["etcdutl"] }
}

/// The version of the crate that carries a server: its own number but for 3.5, whose crate versions begin at 0.3.500.
fn crate_version(version: &str) -> Result<String> {
    let parts: Vec<u32> = version.split('.').map(str::parse).collect::<Result<_, _>>().unwrap_or_default();
    match parts.as_slice() {
        [3, 5, patch] => Ok(format!("0.3.5{patch:02}")),
        [3, _, _] => Ok(version.to_owned()),
        _ => bail!("`{version}` is not a version like 3.6.15"),
    }
}

fn cargo_toml(crate_version: &str) -> String {
    format!(
        "[package]\nname = \"lab-etcd\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[dependencies]\netcd-bin-vendored = \"={crate_version}\"\n[workspace]\n"
    )
}

fn go_mod(version: &str) -> String {
    let mut text = String::from("module quorate.dev/lab/etcd\n\nrequire (\n");
    for tool in TOOLS {
        text += &format!("\tgo.etcd.io/etcd/{tool}/v3 v{version}\n");
    }
    text += ")\ntool (\n";
    for tool in TOOLS {
        text += &format!("\tgo.etcd.io/etcd/{tool}/v3\n");
    }
    text + ")\n"
}

/// The folder with the server `etcd` of a version: 3.5.23, 3.6.15 and 3.7.2 are known to work.
///
/// # Errors
/// Cargo cannot fetch the crate, or it carries no such version.
pub fn etcd(version: &str) -> Result<PathBuf> {
    let carried = crate_version(version)?;
    let manifest = cargo_toml(&carried);
    let key = Key::default().with("recipe", RECIPE).with("manifest", &manifest);
    Cache::open()?.entry("etcd", version, &key, GIB / 4, |new| {
        let _stage = stage(format_args!("etcd {version}"));
        let package = new.join("package");
        write(&package.join("Cargo.toml"), &manifest)?;
        write(&package.join("src/main.rs"), "fn main() {}\n")?;
        run(tied("cargo", ["fetch", "--quiet", "--target", "x86_64-unknown-linux-gnu"]).current_dir(&package))?;
        let name = format!("etcd-bin-vendored-linux-amd64-{carried}");
        fs::copy(fetched(&name)?.join("bin/etcd"), new.join("etcd")).context("the crate carries no server")?;
        Ok(())
    })
}

/// Where Cargo keeps the sources of a fetched crate.
fn fetched(name: &str) -> Result<PathBuf> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo"),
    };
    let sources = home.join("registry/src");
    for index in fs::read_dir(&sources).with_context(|| format!("cannot read {}", sources.display()))? {
        let folder = index?.path().join(name);
        if folder.is_dir() {
            return Ok(folder);
        }
    }
    bail!("cargo fetch left no {name} in {}", sources.display())
}

/// The folder with `etcdutl` of a version, and with `etcdctl` where it is [`MACHINE_ETCD`]. Takes Go and a minute the first time.
///
/// # Errors
/// Go is missing, the module proxy cannot be reached, or the build failed.
pub fn etcd_tools(version: &str) -> Result<PathBuf> {
    crate_version(version)?;
    let known = KNOWN_MODULES.iter().find(|(known, ..)| *known == version);
    let module_file = known.map_or_else(|| go_mod(version), |(_, modules, _)| (*modules).to_owned());
    let key = Key::default().with("recipe", RECIPE).with("go", go_version()?).with("module", &module_file);
    Cache::open()?.entry("etcd-tools", version, &key, GIB, |new| {
        let module = new.join("module");
        write(&module.join("go.mod"), &module_file)?;
        let _stage = stage(format_args!("etcd {version}: {}", built(version).join(", ")));
        match known {
            Some((.., checksums)) => write(&module.join("go.sum"), checksums)?,
            None => run(tied("go", ["mod", "tidy"]).current_dir(&module))?,
        }
        built(version).iter().try_for_each(|tool| build_tool(&module, tool, &new.join(tool)))
    })
}

fn build_tool(module: &Path, tool: &str, out: &Path) -> Result<()> {
    run(tied("go", ["build", "-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(out)
        .arg(format!("go.etcd.io/etcd/{tool}/v3"))
        .current_dir(module)
        .env("CGO_ENABLED", "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crate_versions_of_three_series() {
        assert_eq!(crate_version("3.5.23").unwrap(), "0.3.523");
        assert_eq!(crate_version("3.5.9").unwrap(), "0.3.509");
        assert_eq!(crate_version("3.6.15").unwrap(), "3.6.15");
        assert_eq!(crate_version("3.7.2").unwrap(), "3.7.2");
        for bad in ["3.6", "v3.6.15", "2.0.0", "3.6.8-0"] {
            assert!(crate_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_known_modules_are_those_of_their_versions() {
        for (version, modules, checksums) in KNOWN_MODULES {
            for tool in TOOLS {
                let wanted = format!("go.etcd.io/etcd/{tool}/v3 v{version}");
                assert!(modules.contains(&wanted) && checksums.contains(&format!("{wanted} h1:")), "{wanted}");
            }
        }
    }

    #[test]
    fn the_module_file_names_both_tools() {
        assert_eq!(
            go_mod("3.6.15"),
            "module quorate.dev/lab/etcd\n\nrequire (\n\tgo.etcd.io/etcd/etcdctl/v3 v3.6.15\n\tgo.etcd.io/etcd/etcdutl/v3 v3.6.15\n)\ntool (\n\tgo.etcd.io/etcd/etcdctl/v3\n\tgo.etcd.io/etcd/etcdutl/v3\n)\n"
        );
    }
}
