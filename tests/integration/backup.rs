//! Backups by the program itself, of real members: on the host of one of them, with the API away; what strikes in their middle (`struck`);
//! and in the pods of Jobs, under the Lease of a real apiserver (`job`).

mod bucket;
mod drill;
mod here;
mod job;
mod struck;

use crate::said::Said;
use anyhow::{Context, Result, anyhow};
use lab::etcd::{Cluster, Etcd, EtcdVersion, NOWHERE, Spec};
use lab::process::{Process, until};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);
/// A key pair of age: whose identity opens what is encrypted, and a stranger's.
pub(crate) const KEYS: [(&str, &str); 2] = [
    (
        "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa",
        "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33",
    ),
    ("", "AGE-SECRET-KEY-1QYPQXPQ9QCRSSZG2PVXQ6RS0ZQG3YYC5Z5TPWXQERGD3C8G7RUSQGPQYEE"),
];

/// Real members, the host of one of them as kubeadm lays it out, and a folder for backups; its admin.conf leads nowhere.
struct Host {
    cluster: Cluster,
    state: TempDir,
    store: TempDir,
}

impl Host {
    fn of(version: EtcdVersion, members: u8) -> Result<Self> {
        let cluster = Etcd::start(Spec::new(version, members))?;
        cluster.wait_healthy(PATIENCE)?;
        let (folder, state, store) = (cluster.dir(), TempDir::new()?, TempDir::new()?);
        fs::create_dir(folder.join("manifests"))?;
        let peers: Vec<String> = cluster
            .members()
            .iter()
            .map(|member| format!("{}=https://{}:2380", member.name(), member.address()))
            .collect();
        let manifest = format!(
            "    - --advertise-client-urls={}\n    - --initial-cluster={}\n",
            cluster.member(1)?.endpoint(),
            peers.join(",")
        );
        fs::write(folder.join("manifests/etcd.yaml"), manifest)?;
        let host = Self { cluster, state, store };
        host.admin(NOWHERE)?;
        Ok(host)
    }

    /// An admin.conf that leads there.
    fn admin(&self, server: &str) -> Result<()> {
        Ok(fs::write(self.cluster.dir().join("admin.conf"), self.cluster.kubeconfig_to(server))?)
    }

    fn configured(&self, backup: &str) -> Result<()> {
        fs::write(self.state.path().join("config.yaml"), format!("backup: {backup}\n"))?;
        Ok(())
    }

    fn args(&self, args: &[&str]) -> Vec<String> {
        let state = self.state.path().display();
        let mut words: Vec<String> = ["etcd", "backup", "--here", "-ojson"].map(str::to_owned).to_vec();
        words.push(format!("--kubernetes-dir={}", self.cluster.dir().display()));
        words.push(format!("--state-dir={state}"));
        words.push(format!("--config={state}/config.yaml"));
        words.extend(args.iter().map(ToString::to_string));
        words
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(self.args(args)).env_remove("KUBERNETES_SERVICE_HOST").env_remove("KUBECONFIG");
        command
    }

    /// Runs it to its end, into the folder.
    fn backup(&self, args: &[&str]) -> Result<Said> {
        let to = format!("--to={}", self.store.path().display());
        Ok(self.command(&[&[to.as_str()], args].concat()).output()?.into())
    }

    /// One more, whose name is that of another second.
    fn another(&self, args: &[&str]) -> Result<Said> {
        until("the second of the last one is over", PATIENCE, || {
            let said = self.backup(args)?;
            let taken = said.err.contains("it is there already") || said.out.contains("it is there already");
            Ok(if taken { ControlFlow::Continue(anyhow!("{said:?}")) } else { ControlFlow::Break(said) })
        })
    }

    /// The same in the background, to be struck.
    fn begin(&self) -> Result<Process> {
        let args = self.args(&[&format!("--to={}", self.store.path().display())]);
        drop(fs::remove_file(self.log_path()));
        let process = Process::new("quorate", env!("CARGO_BIN_EXE_quorate").into(), args, self.log_path());
        process.start()?;
        Ok(process)
    }

    fn log_path(&self) -> PathBuf {
        self.state.path().join("background.log")
    }

    /// What it said at its end.
    fn ended(&self, process: &Process) -> Result<String> {
        until("it ends", PATIENCE, || {
            Ok(match process.running() {
                Ok(()) => ControlFlow::Continue(anyhow!("it runs")),
                Err(_) => ControlFlow::Break(()),
            })
        })?;
        Ok(fs::read_to_string(self.log_path())?)
    }

    /// Everything in the folder; what is not finished yet begins with a dot.
    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.store.path())? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// What has a name that counts.
    fn published(&self) -> Result<Vec<String>> {
        Ok(self.names()?.into_iter().filter(|name| !name.starts_with('.')).collect())
    }

    fn manifests(&self) -> Result<Vec<Value>> {
        let names = self.published()?.into_iter().filter(|name| name.ends_with(".json"));
        names.map(|name| Ok(serde_json::from_slice(&fs::read(self.store.path().join(name))?)?)).collect()
    }

    fn stored(&self, manifest: &Value) -> PathBuf {
        self.store.path().join(manifest["stored"]["file"].as_str().unwrap())
    }

    /// So many megabytes of values that do not compress.
    fn fill(&self, megabytes: u32) -> Result<()> {
        let mut random = fs::File::open("/dev/urandom")?;
        for number in 0..megabytes {
            let mut value = vec![0; 1_000_000];
            std::io::Read::read_exact(&mut random, &mut value)?;
            self.put(&format!("big/{number}"), &value)?;
        }
        Ok(())
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        use base64::Engine;
        let of = |bytes: &[u8]| base64::prelude::BASE64_STANDARD.encode(bytes);
        let body = json!({"key": of(key.as_bytes()), "value": of(value)});
        until("it is written", PATIENCE, || {
            let put = self.cluster.member(1)?.call("/v3/kv/put", &body);
            Ok(put.map_or_else(ControlFlow::Continue, |_| ControlFlow::Break(())))
        })
    }

    /// The number of the member that leads, as a majority says.
    fn leader(&self) -> Result<usize> {
        until("somebody leads", PATIENCE, || {
            let named = self.cluster.members().iter().find_map(|member| {
                let status = member.call("/v3/maintenance/status", &json!({})).ok()?;
                status["leader"].as_str()?.parse::<u64>().ok()
            });
            let at = named.and_then(|id| self.cluster.members().iter().position(|member| member.id() == id));
            Ok(at.map_or_else(|| ControlFlow::Continue(anyhow!("{named:?}")), |at| ControlFlow::Break(at + 1)))
        })
    }

    /// Waits until so many bytes of a backup lie there, under no name that counts.
    fn midway(&self, process: &Process, bytes: u64) -> Result<()> {
        until("it is in the middle", PATIENCE, || {
            process.running()?;
            let mut found = 0;
            for name in self.names()?.iter().filter(|name| name.starts_with('.')) {
                found = found.max(fs::metadata(self.store.path().join(name)).map_or(0, |data| data.len()));
            }
            let there = found >= bytes;
            Ok(if there { ControlFlow::Break(()) } else { ControlFlow::Continue(anyhow!("{found} bytes")) })
        })
    }
}

/// A server of HTTP that answers each path with a status and a body, for as long as the test runs; its URL.
fn serve(answer: impl Fn(&str) -> (&'static str, Vec<u8>) + Send + 'static) -> Result<String> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let url = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let mut lines = std::io::BufReader::new(&socket).lines().map_while(Result::ok);
            let Some(request) = lines.next() else { continue };
            // To the end of its head.
            lines.find(String::is_empty);
            let (status, body) = answer(request.split(' ').nth(1).unwrap_or_default());
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            // Who has gone away reads nothing.
            drop(socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(&body)));
        }
    });
    Ok(url)
}

fn verify(file: impl AsRef<OsStr>, args: &[&str]) -> Result<Said> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    Ok(command.args(["etcd", "verify", "-ojson"]).arg(file).args(args).output()?.into())
}

fn key_file(folder: &Path, which: usize) -> Result<String> {
    let path = folder.join(format!("key-{which}.txt"));
    fs::write(&path, format!("# a test's\n{}\n", KEYS[which].1))?;
    Ok(path.display().to_string())
}
