//! One real member of etcd with so many megabytes in it, and the host of it as kubeadm lays one out: for `make bench`, beside `etcdctl snapshot
//! save`. Prints where everything is, as JSON, and ends with its standard input.

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use lab::etcd::{Etcd, EtcdVersion, NOWHERE, Spec};
use serde_json::json;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

fn main() -> Result<()> {
    let megabytes: u64 =
        std::env::args().nth(1).and_then(|word| word.parse().ok()).context("usage: backup_host MEGABYTES")?;
    let mut spec = Spec::new(EtcdVersion::V3_6, 1);
    spec.extra_args.push("--quota-backend-bytes=8589934592".to_owned());
    let cluster = Etcd::start(spec)?;
    let (member, folder) = (cluster.member(1)?, cluster.dir());
    let mut random = File::open("/dev/urandom")?;
    for number in 0..megabytes * 100 {
        let mut value = vec![0; 10_000];
        random.read_exact(&mut value)?;
        let key = BASE64_STANDARD.encode(format!("/registry/pods/bench/{number:08}"));
        member.call("/v3/kv/put", &json!({"key": key, "value": BASE64_STANDARD.encode(&value)}))?;
    }
    fs::create_dir(folder.join("manifests"))?;
    write(&folder.join("manifests/etcd.yaml"), &format!("    - --advertise-client-urls={}\n", member.endpoint()))?;
    write(&folder.join("admin.conf"), &cluster.kubeconfig_to(NOWHERE))?;
    let told = json!({
        "folder": folder, "endpoint": member.endpoint(), "pki": cluster.pki_dir(),
        "etcdctl": lab::binaries::etcdctl()?, "etcdutl": lab::binaries::etcdutl(EtcdVersion::V3_6)?,
    });
    writeln!(std::io::stdout(), "{told}")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}
