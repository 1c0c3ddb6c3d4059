//! The processes of a host by the name of their program.

use rustix::process::Pid;
use std::path::{Path, PathBuf};

/// A process that was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// What it was started with, its program first.
    pub(crate) words: Vec<Vec<u8>>,
    /// Its folder in /proc.
    pub(crate) folder: PathBuf,
}

/// Those below a root whose program has this name, wherever it lies. One that ends while we look is none.
pub(crate) fn running(root: &Path, name: &str) -> Result<Vec<Process>, String> {
    let folder = root.join("proc");
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let of = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
        let folder = entry.path();
        let words = std::fs::read(folder.join("cmdline")).ok()?;
        let words: Vec<Vec<u8>> = words.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
        let program = words.first()?.rsplit(|byte| *byte == b'/').next()?;
        (program == name.as_bytes()).then_some(Process { pid, words, folder })
    };
    Ok(entries.flatten().filter_map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_the_name_of_its_program() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, cmdline: Option<&str>| {
            let folder = root.path().join("proc").join(name);
            std::fs::create_dir_all(&folder).unwrap();
            if let Some(cmdline) = cmdline {
                std::fs::write(folder.join("cmdline"), cmdline).unwrap();
            }
        };
        put("1", Some("/sbin/init\0kube-apiserver\0"));
        put("2", Some(""));
        put("3", None);
        put("self", Some("kube-apiserver\0"));
        put("40", Some("/usr/local/bin/kube-apiserver\0--advertise-address=10.10.0.11\0"));
        put("41", Some("kube-apiserver\0"));
        put("50", Some("not-kube-apiserver\0"));
        put("51", Some("kube-apiserver-proxy\0"));
        std::fs::write(root.path().join("proc/60"), "no folder").unwrap();
        let mut found = running(root.path(), "kube-apiserver").unwrap();
        found.sort_by_key(|process| process.pid.as_raw_nonzero());
        let pids: Vec<i32> = found.iter().map(|process| process.pid.as_raw_nonzero().get()).collect();
        assert_eq!(pids, [40, 41]);
        assert_eq!(found[0].folder, root.path().join("proc/40"));
        assert!(found[0].words.contains(&b"--advertise-address=10.10.0.11".to_vec()), "{found:?}");
        assert_eq!(running(root.path(), "etcd").unwrap(), []);
    }

    #[test]
    fn a_real_one_is_found_while_it_runs() {
        let mut child = std::process::Command::new("sleep").arg("infinity").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let there = || running(Path::new("/"), "sleep").unwrap().iter().any(|process| process.pid == pid);
        // Whoever spawns goes on before the kernel has written down the child's words.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !there() {
            assert!(std::time::Instant::now() < end, "{pid:?} is not found");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!there());
    }

    #[test]
    fn without_proc_nothing_is_known() {
        let root = tempfile::tempdir().unwrap();
        assert!(running(root.path(), "etcd").unwrap_err().contains("/proc: "));
    }
}
