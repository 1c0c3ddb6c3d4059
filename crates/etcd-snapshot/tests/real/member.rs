//! A cluster of one member that is filled, and whose snapshots are taken.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lab::binaries::{self, EtcdVersion};
use lab::etcd::{Cluster, Etcd, Member, Spec};
use serde_json::{Value, json};
use tempfile::TempDir;

/// etcd takes so many operations in a transaction.
const OPERATIONS: usize = 128;

pub(crate) struct Lab {
    pub(crate) cluster: Cluster,
    pub(crate) version: EtcdVersion,
    /// `--user` of root, once authentication is on.
    user: Option<String>,
    dir: TempDir,
    taken: usize,
}

fn text(text: &str) -> String {
    STANDARD.encode(text)
}

impl Lab {
    pub(crate) fn start(version: EtcdVersion) -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        // A password takes a core for a second at etcd's own cost, and three where others are at work.
        let extra_args = vec!["--bcrypt-cost=4".to_owned()];
        let cluster = Etcd::start(Spec { extra_args, ..Spec::new(version, 1) }).unwrap();
        Self { cluster, version, user: None, dir: tempfile::tempdir().unwrap(), taken: 0 }
    }

    pub(crate) fn member(&self) -> &Member {
        self.cluster.member(1).unwrap()
    }

    pub(crate) fn call(&self, path: &str, body: &Value) -> Value {
        self.member().call(path, body).unwrap()
    }

    /// Puts keys `PREFIX0000` and on, with values of `size` bytes.
    pub(crate) fn put(&self, prefix: &str, count: usize, size: usize) {
        let names: Vec<_> = (0..count).map(|number| format!("{prefix}{number:05}")).collect();
        for names in names.chunks(if size > 10_000 { 1 } else { OPERATIONS }) {
            let puts: Vec<_> = names
                .iter()
                .map(|name| {
                    // No two are alike, and none can be compressed to nothing.
                    let value: String = name.chars().cycle().take(size).collect();
                    json!({"requestPut": {"key": text(name), "value": text(&value)}})
                })
                .collect();
            self.call("/v3/kv/txn", &json!({"success": puts}));
        }
    }

    /// Deletes all keys that begin with a prefix.
    pub(crate) fn delete(&self, prefix: &str) {
        let end = format!("{prefix}~");
        self.call("/v3/kv/deleterange", &json!({"key": text(prefix), "range_end": text(&end)}));
    }

    pub(crate) fn revision(&self) -> i64 {
        // Not through the gateway, where nobody is root once authentication is on.
        let said = self.etcdctl(&["endpoint", "status", "--write-out=json"]);
        let status: Value = serde_json::from_str(&said).unwrap();
        status[0]["Status"]["header"]["revision"].as_i64().unwrap()
    }

    pub(crate) fn compact(&self, revision: i64) {
        self.call("/v3/kv/compaction", &json!({"revision": revision, "physical": true}));
    }

    /// Runs etcdctl against the member, as root once authentication is on.
    pub(crate) fn etcdctl(&self, args: &[&str]) -> String {
        let user = self.user.as_deref().into_iter().flat_map(|user| ["--user", user]);
        // What etcdctl waits for by itself, 2 and 5 s, is too little on a host that compiles.
        let patience = ["--dial-timeout=60s", "--command-timeout=120s"];
        self.cluster.etcdctl(&user.chain(patience).chain(args.iter().copied()).collect::<Vec<_>>()).unwrap()
    }

    pub(crate) fn authenticate(&mut self) {
        self.etcdctl(&["user", "add", "root:secret"]);
        self.etcdctl(&["user", "grant-role", "root", "root"]);
        self.etcdctl(&["auth", "enable"]);
        self.user = Some("root:secret".to_owned());
    }

    /// A snapshot of the member.
    pub(crate) fn snapshot(&mut self) -> PathBuf {
        self.taken += 1;
        let path = self.dir.path().join(format!("{}.db", self.taken));
        self.etcdctl(&["snapshot", "save", path.to_str().unwrap()]);
        path
    }

    pub(crate) fn etcdutl(&self, args: &[&str]) -> Result<String, String> {
        let tool = binaries::etcdutl(self.version).unwrap();
        let out = Command::new(tool).args(args).current_dir(self.dir.path()).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if out.status.success() { Ok(said(&out.stdout)) } else { Err(said(&out.stderr)) }
    }

    pub(crate) fn status(&self, path: &Path) -> Value {
        let said = self.etcdutl(&["snapshot", "status", "--write-out=json", path.to_str().unwrap()]).unwrap();
        serde_json::from_str(&said).unwrap()
    }
}
