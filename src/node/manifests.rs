//! The folder of static pod manifests: what runs there, and what should not.

use k8s_openapi::api::core::v1::Pod;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The folder that kubeadm gives the kubelet.
pub(super) const FOLDER: &str = "etc/kubernetes/manifests";
/// The static pods of a control plane node.
pub(crate) const COMPONENTS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// One of the four static pods, as its manifest has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StaticPod {
    /// Tag of its image, such as `v1.36.1`.
    pub(super) tag: String,
    /// SHA-256 of the bytes of its manifest.
    pub(super) digest: String,
    /// Its command line.
    command: Vec<String>,
}

impl StaticPod {
    /// The value of a flag, `--NAME=VALUE`.
    pub(crate) fn flag(&self, name: &str) -> Option<&str> {
        let flag = |word: &'_ String| -> Option<usize> {
            let rest = word.strip_prefix("--")?.strip_prefix(name)?;
            rest.starts_with('=').then_some(2 + name.len() + 1)
        };
        self.command.iter().find_map(|word| flag(word).and_then(|at| word.get(at..)))
    }
}

/// What the kubelet finds in the folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Manifests {
    /// The four, by component; none on a worker.
    pub(super) pods: BTreeMap<&'static str, StaticPod>,
    /// Files that make a second copy of one of the four, or that nobody can read (incident R21): file name, and what is wrong.
    pub(super) stray: Vec<(String, String)>,
    /// Static pods of somebody else, such as kube-vip.
    pub(super) others: Vec<String>,
}

impl Manifests {
    /// Whether this is a control plane node.
    pub(super) fn control_plane(&self) -> bool {
        self.pods.contains_key("kube-apiserver")
    }
}

/// Reads the folder as the kubelet does; a folder that is not there is empty.
pub(super) fn read(root: &Path) -> io::Result<Manifests> {
    let folder = root.join(FOLDER);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Manifests::default()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        // Folders are not looked into; a symbolic link is followed.
        if std::fs::metadata(entry.path()).is_ok_and(|data| data.is_dir()) {
            continue;
        }
        files.push((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?));
    }
    files.sort();
    Ok(sort_out(&files))
}

/// Tells the four, strangers and strays apart. The kubelet reads every file whose name does not start with a dot, whatever its
/// extension (kubelet/config/file_linux.go), so `kube-apiserver.yaml.bak` is a second apiserver.
fn sort_out(files: &[(String, Vec<u8>)]) -> Manifests {
    let mut found = Manifests::default();
    for (name, bytes) in files.iter().filter(|(name, _)| !name.starts_with('.')) {
        let known = COMPONENTS.into_iter().find(|component| name.strip_suffix(".yaml") == Some(component));
        match (known, parse(bytes)) {
            (_, Err(why)) => found.stray.push((name.clone(), why)),
            (Some(component), Ok(pod)) => {
                found.pods.insert(component, pod.pod);
            }
            (None, Ok(pod)) => match COMPONENTS.into_iter().find(|it| *it == pod.name || *it == pod.image) {
                Some(component) => found.stray.push((name.clone(), format!("a second {component}"))),
                None => found.others.push(pod.name),
            },
        }
    }
    found
}

/// Whether a file is the manifest of one of the four; one that cannot be read is not.
pub(crate) fn is_of(path: &Path, component: &str) -> bool {
    std::fs::read(path).is_ok_and(|bytes| parse(&bytes).is_ok_and(|pod| pod.name == component))
}

/// The image of one of the four, as its manifest names it, and the rest.
///
/// # Errors
/// In words, when the file cannot be read, or is not the manifest of that.
pub(crate) fn of(path: &Path, component: &str) -> Result<(String, StaticPod), String> {
    let wrong = |why: String| format!("{}: {why}", path.display());
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let parsed = parse(&bytes).map_err(wrong)?;
    if parsed.name != component {
        return Err(wrong(format!("it is the manifest of {}, not of {component}", parsed.name)));
    }
    Ok((parsed.whole_image, parsed.pod))
}

struct Parsed {
    name: String,
    /// Last part of the image's name, without tag.
    image: String,
    /// All of it.
    whole_image: String,
    pod: StaticPod,
}

fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "not text".to_owned())?;
    let pod: Pod = serde_saphyr::from_str(text).map_err(|_| "not a pod".to_owned())?;
    let name = pod.metadata.name.ok_or("a pod without a name")?;
    let container = pod.spec.and_then(|spec| spec.containers.into_iter().next()).ok_or("a pod without a container")?;
    let whole_image = container.image.ok_or("a container without an image")?;
    let (image, tag) = split_image(&whole_image);
    let command = container.command.unwrap_or_default().into_iter().chain(container.args.unwrap_or_default()).collect();
    Ok(Parsed { name, image, whole_image, pod: StaticPod { tag, digest: hex(&Sha256::digest(bytes)), command } })
}

/// The last part of an image's name, and its tag; an image by digest alone has an empty tag.
pub(super) fn split_image(image: &str) -> (String, String) {
    let (name, _digest) = image.split_once('@').unwrap_or((image, ""));
    let last = name.rsplit('/').next().unwrap_or(name);
    let (last, tag) = last.split_once(':').unwrap_or((last, ""));
    (last.to_owned(), tag.to_owned())
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, image: &str) -> Vec<u8> {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  - name: {name}\n    image: \
             {image}\n    command:\n    - {name}\n    - --advertise-address=10.10.0.11\n    - --advertise-address-x=no\n"
        )
        .into_bytes()
    }

    fn four() -> Vec<(String, Vec<u8>)> {
        COMPONENTS
            .map(|name| (format!("{name}.yaml"), manifest(name, &format!("registry.k8s.io/{name}:v1.36.1"))))
            .into()
    }

    #[test]
    fn the_four_are_read_with_their_images_and_flags() {
        let found = sort_out(&four());
        assert_eq!(found.pods.len(), 4);
        assert!(found.stray.is_empty() && found.control_plane());
        let apiserver = &found.pods["kube-apiserver"];
        assert_eq!(apiserver.tag, "v1.36.1");
        assert_eq!(apiserver.flag("advertise-address"), Some("10.10.0.11"));
        assert_eq!(apiserver.flag("advertise"), None);
        assert!(!sort_out(&[]).control_plane());
    }

    #[test]
    fn images_of_every_form() {
        for (image, name, tag) in [
            ("registry.k8s.io/etcd:3.6.8-0", "etcd", "3.6.8-0"),
            ("localhost:5000/a/kube-apiserver:v1.36.1@sha256:00", "kube-apiserver", "v1.36.1"),
            ("localhost:5000/a/etcd", "etcd", ""),
            ("etcd@sha256:00", "etcd", ""),
        ] {
            assert_eq!(split_image(image), (name.to_owned(), tag.to_owned()), "{image}");
        }
    }

    #[test]
    fn r21_a_backup_copy_of_a_manifest_is_a_stray_file() {
        for (file, content) in [
            ("kube-apiserver.yaml.bak", manifest("kube-apiserver", "registry.k8s.io/kube-apiserver:v1.36.1")),
            ("kube-apiserver.yaml~", manifest("kube-apiserver", "registry.k8s.io/kube-apiserver:v1.36.1")),
            ("old.yaml", manifest("etcd-old", "registry.k8s.io/etcd:3.5.1")),
            ("notes.txt", b"do not touch".to_vec()),
            ("garbage", vec![0xff, 0xfe]),
        ] {
            let mut files = four();
            files.push((file.to_owned(), content));
            let found = sort_out(&files);
            assert_eq!(found.stray.len(), 1, "{file}: {found:?}");
            assert_eq!(found.stray[0].0, file);
            assert_eq!(found.pods.len(), 4);
        }
    }

    #[test]
    fn hidden_files_and_static_pods_of_others_are_no_strays() {
        let mut files = four();
        files.push((".kube-apiserver.yaml.swp".to_owned(), manifest("kube-apiserver", "x/kube-apiserver:v1")));
        files.push(("kube-vip.yaml".to_owned(), manifest("kube-vip", "ghcr.io/kube-vip/kube-vip:v1.0.1")));
        let found = sort_out(&files);
        assert_eq!(found.stray, []);
        assert_eq!(found.others, ["kube-vip"]);
    }
}
