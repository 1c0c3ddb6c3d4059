//! Static pods that kubeadm replaces. The kubelet that has started the old one does not start the new one while that is there, and looks again
//! only 10 to 15 s later (kubelet 1.36, `allowPodStart` in pod_workers.go: requeued by backOffPeriod), or as soon as it hears anything of that pod. That the
//! old one's mirror pod was deleted is such a thing; the kubelet deletes and makes it anew itself when it starts the new one. So once the
//! old pod is gone from the host its mirror pod is deleted, with the kubelet's own account and within its own rights.

use super::command::Deadline;
use super::program;
use crate::access::Access;
use crate::output;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Those whose kubelet hears of it. While etcd or the node's apiserver is away it hears nothing; and of a mirror pod that was deleted before
/// its watch is back it makes no new one (seen: 73 s, instead of the 10 that it takes by itself).
pub(super) const COMPONENTS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

const NAMESPACE: &str = "kube-system";
/// The kubelet's own account.
const ACCOUNT: &str = "/etc/kubernetes/kubelet.conf";
/// Annotation of a mirror pod: the static pod that it mirrors, by the hash that the kubelet takes for its UID.
const HASH: &str = "kubernetes.io/config.hash";
/// How long the API may take, and how long it is asked again: an apiserver that has just started may not know yet whose pod it is.
const ANSWER: Duration = Duration::from_secs(5);
const TRIES: Duration = Duration::from_secs(10);
/// Between two looks.
const POLL: Duration = Duration::from_millis(250);

/// A static pod that runs on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Running {
    name: String,
    uid: String,
    /// Its cgroups, in each hierarchy that has one. The kubelet removes them last of all.
    cgroups: Vec<PathBuf>,
}

impl Running {
    fn there(&self) -> bool {
        self.cgroups.iter().any(|path| path.exists())
    }
}

/// While kubeadm works: waits until the pod that runs now is gone, and lets the kubelet know. Only a help: without it the new pod is
/// started by the kubelet's own clock. To be dropped when kubeadm is done.
///
/// # Errors
/// Why the kubelet could not be told.
pub(super) async fn hurry(component: &str) -> Result<(), String> {
    let Some(old) = running(Path::new("/"), component)? else { return Ok(()) };
    while old.there() {
        tokio::time::sleep(POLL).await;
    }
    let until = Deadline::after(TRIES);
    loop {
        let told = tokio::time::timeout(ANSWER, delete_mirror(&old)).await;
        match told.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs()))) {
            Ok(false) => return Ok(()),
            Ok(true) => {
                output::progress(&format!("{component}: the old pod is gone, and the kubelet was told so"));
                return Ok(());
            }
            Err(why) if until.passed() => return Err(why),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Whether a component that runs is the one that the kubelet wants, by the UIDs that it wants. After its start a kubelet of another minor
/// version replaces all static pods, seconds after it has said that it is well.
///
/// # Errors
/// In words, when it is not, or cannot be told.
pub(super) fn stands(root: &Path, component: &str, wanted: &BTreeMap<String, String>) -> Result<(), String> {
    let all = all_running(root, component)?;
    if all.is_empty() {
        return Err(format!("no static pod of {component} runs"));
    }
    // A kubelet that was restarted starts the new one beside the old one: each has to be the one.
    all.iter().try_for_each(|now| match wanted.get(&now.name) {
        Some(uid) if *uid == now.uid => Ok(()),
        Some(_) => Err(format!("the kubelet is about to replace {}", now.name)),
        None => Err(format!("the kubelet does not name {} yet", now.name)),
    })
}

/// Deletes the mirror pod of a static pod that is gone; false when the kubelet was faster.
async fn delete_mirror(old: &Running) -> Result<bool, String> {
    let access = Access::from_file(Path::new(ACCOUNT), NAMESPACE).await.map_err(|error| error.to_string())?;
    let client = access.live(&[]).await.map_err(|error| error.to_string())?;
    let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let Some(mirror) = pods.get_opt(&old.name).await.map_err(|error| error.to_string())? else { return Ok(false) };
    if mirror.metadata.annotations.as_ref().and_then(|all| all.get(HASH)) != Some(&old.uid) {
        return Ok(false);
    }
    let mut params = DeleteParams::default().grace_period(0);
    params.preconditions = Some(Preconditions { uid: mirror.metadata.uid, resource_version: None });
    match pods.delete(&old.name, &params).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

/// The static pod whose program runs; none when it does not, or its pod is not told from its cgroups.
fn running(root: &Path, component: &str) -> Result<Option<Running>, String> {
    Ok(all_running(root, component)?.into_iter().next())
}

/// All of them: an old one and a new one may run at once.
fn all_running(root: &Path, component: &str) -> Result<Vec<Running>, String> {
    let mut found = Vec::new();
    for process in program::running(root, component)? {
        let Ok(cgroups) = std::fs::read_to_string(process.folder.join("cgroup")) else { continue };
        let Some((uid, cgroups)) = pod_of(root, &cgroups) else { continue };
        found.extend(name_of(root, component, &uid)?.map(|name| Running { name, uid, cgroups }));
    }
    Ok(found)
}

/// The pod that a process belongs to by the lines of its /proc/PID/cgroup, and those of its cgroups that are there.
fn pod_of(root: &Path, lines: &str) -> Option<(String, Vec<PathBuf>)> {
    let mounts = root.join("sys/fs/cgroup");
    let mut found: Option<(String, Vec<PathBuf>)> = None;
    for line in lines.lines() {
        // hierarchy:controllers:path (cgroups(7)); the second is empty in version 2.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let Some((place, uid)) = parts.iter().enumerate().find_map(|(place, part)| Some((place, uid_in(part)?))) else {
            continue;
        };
        let mount = controllers.strip_prefix("name=").unwrap_or(controllers);
        let cgroup = mounts.join(mount).join(parts.get(..=place)?.join("/"));
        let (known, cgroups) = found.get_or_insert_with(|| (uid.to_owned(), Vec::new()));
        if known == uid && cgroup.exists() {
            cgroups.push(cgroup);
        }
    }
    found.filter(|(_, cgroups)| !cgroups.is_empty())
}

/// The UID in the name of a pod's cgroup: `podUID` with cgroupfs, `kubepods-burstable-podUID.slice` with systemd.
fn uid_in(part: &str) -> Option<&str> {
    let name = part.strip_suffix(".slice").unwrap_or(part);
    let uid = name.strip_prefix("pod").or_else(|| name.rsplit_once("-pod").map(|(_, uid)| uid))?;
    (uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(uid)
}

/// The name of a pod by the folder of its logs, `NAMESPACE_NAME_UID`.
fn name_of(root: &Path, component: &str, uid: &str) -> Result<Option<String>, String> {
    let folder = root.join("var/log/pods");
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let head = format!("{NAMESPACE}_");
    Ok(entries.flatten().find_map(|entry| {
        let name = entry.file_name();
        let name = name.to_str()?.strip_prefix(&head)?.strip_suffix(uid)?.strip_suffix('_')?;
        name.strip_prefix(component)?.starts_with('-').then(|| name.to_owned())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "bc34abc65ac8f76143e2ecb464bb386d";

    fn host(cgroup: &str, at: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("proc/1/cmdline", "/sbin/init\0");
        put("proc/1/cgroup", "0::/init.scope\n");
        put("proc/70/cmdline", "kube-scheduler\0--leader-elect=true\0");
        put("proc/70/cgroup", cgroup);
        put("proc/mounts", "");
        put(&format!("var/log/pods/kube-system_kube-scheduler-k2_{UID}/0.log"), "");
        put("var/log/pods/kube-system_kube-scheduler-k2_3a68d2d4005f3cb1cee89ac22757b1d9/0.log", "");
        for path in at {
            std::fs::create_dir_all(root.path().join("sys/fs/cgroup").join(path)).unwrap();
        }
        root
    }

    #[test]
    fn a_static_pod_is_told_by_its_cgroups_of_both_versions() {
        let both = [
            (
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID}.slice/cri-containerd-3b.scope\n"
                ),
                format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID}.slice"),
            ),
            (
                format!(
                    "9:name=systemd:/payload/kubepods/burstable/pod{UID}/3b\n1:cpu:/q/kubepods/burstable/pod{UID}/3b\n0::/payload\n"
                ),
                format!("cpu/q/kubepods/burstable/pod{UID}"),
            ),
        ];
        for (lines, path) in both {
            let root = host(&lines, &[&path]);
            let found = running(root.path(), "kube-scheduler").unwrap().unwrap();
            assert_eq!((found.name.as_str(), found.uid.as_str()), ("kube-scheduler-k2", UID));
            assert_eq!(found.cgroups, [root.path().join("sys/fs/cgroup").join(&path)]);
            assert!(found.there());
            let stands = |name: &str, uid: &str| {
                stands(root.path(), "kube-scheduler", &BTreeMap::from([(name.to_owned(), uid.to_owned())]))
            };
            assert_eq!(stands("kube-scheduler-k2", UID), Ok(()));
            let another = stands("kube-scheduler-k2", "3a68d2d4005f3cb1cee89ac22757b1d9").unwrap_err();
            assert_eq!(another, "the kubelet is about to replace kube-scheduler-k2");
            assert_eq!(stands("etcd-k2", UID).unwrap_err(), "the kubelet does not name kube-scheduler-k2 yet");
            std::fs::remove_dir(&found.cgroups[0]).unwrap();
            assert!(!found.there());
            assert_eq!(running(root.path(), "kube-controller-manager").unwrap(), None);
        }
    }

    /// One that is gone at once, or never was, would be "gone" before kubeadm has begun.
    #[test]
    fn a_process_outside_of_a_static_pod_is_none() {
        for lines in ["0::/user.slice\n", "nonsense", &format!("0::/kubepods/burstable/pod{UID}/3b\n")] {
            assert_eq!(running(host(lines, &[]).path(), "kube-scheduler").unwrap(), None, "{lines}");
        }
        // A pod of the API has another kind of UID.
        assert_eq!(uid_in("pod7af2989c-ad55-44d5-9c09-c6a954e2783d"), None);
    }
}
