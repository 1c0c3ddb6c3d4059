//! etcd's own tool that writes a data directory. It need not be on a host: the cluster's own etcd image carries it, and containerd hands it
//! out without any API.

use super::journal::folder;
use super::node::Node;
use crate::node::command::{Echo, ToolError, run};
use quorum_safety::NodeName;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How far the revision is raised above the snapshot's: above whatever the cluster came to after it, so that no client that saw a later one
/// sees a revision a second time with something else in it. OpenShift takes the same where it knows nothing better.
pub(in crate::etcd) const BUMP: i64 = 1_000_000_000;

/// Where an image of etcd has it; kubeadm's has it in the first.
const IN_IMAGE: [&str; 4] = ["usr/local/bin/etcdutl", "usr/bin/etcdutl", "bin/etcdutl", "etcdutl"];
/// How long containerd may take to show an image.
const MOUNT: Duration = Duration::from_secs(60);
/// How long the tool may take to answer, and to write the data: 8 GB take about a minute.
const ANSWER: Duration = Duration::from_secs(20);
const WRITE: Duration = Duration::from_secs(1_800);

/// Why there is no tool.
#[derive(Debug, thiserror::Error)]
pub(in crate::etcd) enum ToolMissing {
    /// containerd could not be asked, or the tool not be started.
    #[error("{what}: {why}: {last}; --etcdutl names one that is on this host")]
    Tool {
        /// What was tried.
        what: String,
        /// What came of it.
        why: String,
        /// The last lines of it.
        last: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The image has none.
    #[error("image {0} has no etcdutl; --etcdutl names one that is on this host")]
    NotInImage(String),
    /// One that cannot raise revisions.
    #[error(
        "{0} has no --bump-revision: etcd has it since 3.5.10, and without it every client that watches would keep what is gone; \
         --etcdutl names another"
    )]
    TooOld(String),
}

fn failed(what: impl Into<String>, error: &ToolError) -> ToolMissing {
    ToolMissing::Tool { what: what.into(), why: error.to_string(), last: error.last_lines().join(" / ") }
}

/// Where the tool lies while a restore is under way.
pub(super) fn path(state: &Path) -> PathBuf {
    folder(state).join("etcdutl")
}

/// Puts the tool into our folder: the one that was named, or the one in the image of this node's etcd. It is asked whether it can raise
/// revisions before anything is changed.
///
/// # Errors
/// When there is none that can.
pub(super) async fn put(state: &Path, named: Option<&Path>, node: &Node) -> Result<(), ToolMissing> {
    let to = path(state);
    match named {
        Some(named) => copy(named, &to)?,
        None => out_of_image(&folder(state), &node.image, &to).await?,
    }
    let called = named.map_or_else(|| format!("etcdutl of {}", node.image), |it| it.display().to_string());
    check(&to, called).await
}

/// Asks a tool whether it can raise revisions.
///
/// # Errors
/// When it cannot, or does not run.
pub(in crate::etcd) async fn check(tool: &Path, called: String) -> Result<(), ToolMissing> {
    let help = run(&tool.display().to_string(), &["snapshot", "restore", "--help"], ANSWER, Echo::Nothing).await;
    let help = help.map_err(|error| failed("etcdutl does not run", &error))?;
    if help.stdout.contains("--bump-revision") && help.stdout.contains("--mark-compacted") {
        return Ok(());
    }
    Err(ToolMissing::TooOld(called))
}

fn copy(from: &Path, to: &Path) -> Result<(), ToolMissing> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |source| ToolMissing::File { path, source }
    };
    // One that runs cannot be written over, and one that was half written must not be found.
    let new = to.with_extension("new");
    fs::copy(from, &new).map_err(wrong(from))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o700)).map_err(wrong(&new))?;
    fs::File::open(&new).and_then(|file| file.sync_all()).map_err(wrong(&new))?;
    fs::rename(&new, to).map_err(wrong(to))
}

/// containerd mounts the image's files, the tool is copied, and they are given back: nothing is left behind but the copy.
async fn out_of_image(folder: &Path, image: &str, to: &Path) -> Result<(), ToolMissing> {
    let mount = folder.join("image");
    let give_back = async || {
        let mounted = mount.display().to_string();
        let said = run("ctr", &["-n", "k8s.io", "images", "unmount", "--rm", &mounted], MOUNT, Echo::Nothing).await;
        if let Err(error) = &said {
            tracing::debug!(%error, "The image was not mounted");
        }
        said
    };
    if mount.exists() {
        // One that was killed in between has left it, or nothing is there.
        drop(give_back().await);
    }
    fs::create_dir_all(&mount).map_err(|source| ToolMissing::File { path: mount.clone(), source })?;
    let at = mount.display().to_string();
    let mounted = run("ctr", &["-n", "k8s.io", "images", "mount", image, &at], MOUNT, Echo::Nothing).await;
    mounted.map_err(|error| failed(format!("containerd does not show image {image}"), &error))?;
    let found = IN_IMAGE.iter().map(|path| mount.join(path)).find(|path| path.is_file());
    let copied = match found {
        Some(tool) => copy(&tool, to),
        None => Err(ToolMissing::NotInImage(image.to_owned())),
    };
    let given_back = give_back().await;
    copied?;
    given_back.map(drop).map_err(|error| failed(format!("containerd does not take back image {image}"), &error))
}

/// The only member of the cluster that a snapshot becomes.
pub(in crate::etcd) struct Alone<'a> {
    pub(in crate::etcd) name: &'a NodeName,
    pub(in crate::etcd) peer_url: &'a str,
    /// What makes the identity of the new cluster another than any before.
    pub(in crate::etcd) token: &'a str,
}

/// Writes the snapshot as the data of a new cluster of one member, in a folder that is not there. Every revision of the snapshot is raised
/// and marked as compacted, so that whoever watches has to list anew.
///
/// # Errors
/// When it cannot be written; etcdutl compares the snapshot's checksum as well.
pub(in crate::etcd) async fn restore(
    tool: &Path,
    snapshot: &Path,
    alone: &Alone<'_>,
    into: &Path,
) -> Result<(), ToolError> {
    let Alone { name, peer_url, token } = alone;
    let args = [
        "snapshot".to_owned(),
        "restore".to_owned(),
        snapshot.display().to_string(),
        format!("--data-dir={}", into.display()),
        format!("--name={name}"),
        format!("--initial-cluster={name}={peer_url}"),
        format!("--initial-advertise-peer-urls={peer_url}"),
        format!("--initial-cluster-token={token}"),
        format!("--bump-revision={BUMP}"),
        "--mark-compacted".to_owned(),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    run(&tool.display().to_string(), &args, WRITE, Echo::Lines).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::restore::node::tests::k2;

    fn script(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("given");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn a_tool_that_cannot_raise_revisions_is_refused_before_anything_is_changed() {
        let state = tempfile::tempdir().unwrap();
        let node = k2(state.path());
        fs::create_dir_all(folder(state.path())).unwrap();
        let given = script(state.path(), "echo ' --bump-revision uint --mark-compacted'");
        put(state.path(), Some(&given), &node).await.unwrap();
        // Over one that is there.
        let given = script(state.path(), "echo ' --data-dir string'");
        let said = put(state.path(), Some(&given), &node).await.unwrap_err().to_string();
        assert!(said.contains("given has no --bump-revision: etcd has it since 3.5.10"), "{said}");
        let given = script(state.path(), "echo no such thing >&2; exit 3");
        let said = put(state.path(), Some(&given), &node).await.unwrap_err().to_string();
        assert!(said.contains("exit status: 3") && said.contains("no such thing"), "{said}");
        let said = put(state.path(), Some(Path::new("/nowhere")), &node).await.unwrap_err().to_string();
        assert!(said.starts_with("/nowhere: "), "{said}");
    }
}
