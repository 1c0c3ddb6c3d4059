//! Container images as docker archives: one binary each, with the names that kubeadm asks for.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{COMPONENTS, ETCD_TAG, MACHINE_ETCD, PAUSE_TAGS, etcd, etcd_tools, kubernetes, root};
use crate::cache::{Cache, GIB, Key};
use crate::command::{capture, command, run, write};
use crate::image::{self, Image};
use crate::output::stage;
use crate::version::{Version, sorted};

const PAUSE: &str = r#"#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
static void down(int s) { (void)s; exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "-v") == 0) return puts("pause") < 0; /* kubeadm's upgrade health check */
  signal(SIGINT, down); signal(SIGTERM, down); signal(SIGCHLD, reap); for (;;) pause();
}
"#;

/// The folders with the images that machines of these versions need: one a version, and one with etcd and pause.
///
/// # Errors
/// What goes into them cannot be built.
pub fn images(versions: &[Version]) -> Result<Vec<PathBuf>> {
    let mut folders = vec![common()?];
    for version in sorted(versions) {
        folders.push(components(version)?);
    }
    Ok(folders)
}

fn components(version: Version) -> Result<PathBuf> {
    let binaries = kubernetes(version)?;
    let root = root::machine_root_entry()?;
    let key = Key::default()
        .with("format", image::FORMAT)
        .with("kube-proxy", "nft, its libraries, /etc/protocols")
        .with_built(&binaries)
        .with_built(&root);
    Cache::open()?.entry("images", &version.to_string(), &key, GIB / 2, |new| {
        let _stage = stage(format_args!("Kubernetes {version}: images"));
        for component in COMPONENTS {
            let mut contents = Image::of_binary(&binaries.join(component))?;
            if component == "kube-proxy" {
                add_nft(&mut contents, &root.join("rootfs"))?;
            }
            let reference = format!("registry.k8s.io/{component}:{version}");
            image::write(&reference, &new.join(format!("{component}.tar")), &contents)?;
        }
        Ok(())
    })
}

/// kube-proxy runs `nft`: the machine root's, with its libraries, and the names of protocols. Without those nft lists `6` for `tcp`,
/// and a kube-proxy that starts takes its predecessor's services for stale ones and deletes them.
fn add_nft(contents: &mut Image, root: &Path) -> Result<()> {
    contents.add_file("usr/sbin/nft", &root.join("usr/sbin/nft"), 0o755);
    contents.add_file("etc/protocols", &root.join("etc/protocols"), 0o644);
    let libraries = capture(command("chroot", [root.as_os_str()]).args(["/usr/bin/ldd", "/usr/sbin/nft"]))?;
    for path in libraries.split_whitespace().filter(|word| word.starts_with("/lib")) {
        let inside = path.trim_start_matches('/');
        contents.add_file(inside, &fs::canonicalize(root.join(inside))?, 0o755);
    }
    Ok(())
}

fn common() -> Result<PathBuf> {
    let server = etcd(MACHINE_ETCD)?;
    let tools = etcd_tools(MACHINE_ETCD)?;
    let key = Key::default()
        .with("format", image::FORMAT)
        .with_built(&server)
        .with_built(&tools)
        .with("etcd tag", ETCD_TAG)
        .with("pause", PAUSE)
        .with("pause tags", PAUSE_TAGS.join(" "));
    Cache::open()?.entry("images", "common", &key, GIB / 2, |new| {
        let _stage = stage("images of etcd and pause");
        let mut contents = Image::of_binary(&server.join("etcd"))?;
        for tool in ["etcdctl", "etcdutl"] {
            contents.add_file(&format!("usr/local/bin/{tool}"), &tools.join(tool), 0o755);
        }
        image::write(&format!("registry.k8s.io/etcd:{ETCD_TAG}"), &new.join("etcd.tar"), &contents)?;
        let (source, pause) = (new.join("pause.c"), new.join("pause"));
        write(&source, PAUSE)?;
        run(command("gcc", ["-Os", "-static", "-o"]).arg(&pause).arg(&source))?;
        run(&mut command("strip", [&pause]))?;
        let contents = Image::of_binary(&pause)?;
        for tag in PAUSE_TAGS {
            image::write(&format!("registry.k8s.io/pause:{tag}"), &new.join(format!("pause-{tag}.tar")), &contents)?;
        }
        Ok(())
    })
}
