//! Changes of etcd's members by the program itself, on real members of each version that it meets: on the host of a member, with the API
//! away, and in the pod of a Job, under the locks of a real apiserver (`job`).

mod here;
pub(crate) mod job;
mod refused;

use crate::said::Said;
use anyhow::{Context, Result, anyhow};
use lab::etcd::{Cluster, Etcd, EtcdVersion, Join, NOWHERE, Spec};
use lab::process::{Process, until};
use serde_json::{Value, json};
use std::fs;
use std::ops::ControlFlow;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);

/// Real members, and the host of one of them as kubeadm lays it out; its admin.conf leads nowhere.
struct Host {
    cluster: Cluster,
    state: TempDir,
}

const WITHOUT_API: [&str; 4] = ["--here", "--without-api", "--because", "a test: no apiserver runs"];

impl Host {
    fn of(version: EtcdVersion, members: u8) -> Result<Self> {
        let cluster = Etcd::start(Spec::new(version, members))?;
        cluster.wait_healthy(PATIENCE)?;
        let (folder, state) = (cluster.dir(), TempDir::new()?);
        fs::create_dir(folder.join("manifests"))?;
        let members = || cluster.members().iter();
        let peers: Vec<String> =
            members().map(|member| format!("{}=https://{}:2380", member.name(), member.address())).collect();
        let manifest = format!(
            "    - --advertise-client-urls={}\n    - --initial-cluster={}\n",
            cluster.member(1)?.endpoint(),
            peers.join(",")
        );
        fs::write(folder.join("manifests/etcd.yaml"), manifest)?;
        fs::write(folder.join("admin.conf"), cluster.kubeconfig_to(NOWHERE))?;
        Ok(Self { cluster, state })
    }

    fn args(&self, args: &[&str]) -> Vec<String> {
        let folders = [
            format!("--kubernetes-dir={}", self.cluster.dir().display()),
            format!("--state-dir={}", self.state.path().display()),
            "-ojson".to_owned(),
        ];
        ["etcd", "members"].into_iter().chain(args.iter().copied()).map(str::to_owned).chain(folders).collect()
    }

    /// Runs it to its end.
    fn members(&self, args: &[&str]) -> Result<Said> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(self.args(args)).env_remove("KUBERNETES_SERVICE_HOST").env_remove("KUBECONFIG");
        Ok(command.output()?.into())
    }

    /// A change on this host, confirmed, with the API away.
    fn change(&self, verb: &str, member: &str, more: &[&str]) -> Result<Said> {
        self.members(&[&[verb, member, "--yes", member], WITHOUT_API.as_slice(), more].concat())
    }

    /// The same in the background, to be killed or waited for.
    fn begin(&self, verb: &str, member: &str) -> Result<Process> {
        let args = self.args(&[&[verb, member, "--yes", member], WITHOUT_API.as_slice()].concat());
        let log = self.state.path().join("background.log");
        let process = Process::new("quorate", env!("CARGO_BIN_EXE_quorate").into(), args, log);
        process.start()?;
        Ok(process)
    }

    /// The list as people with scripts get it.
    fn list(&self) -> Result<Value> {
        let said = self.members(&["list", "--here"])?;
        anyhow::ensure!(said.code == Some(0), "{said:?}");
        Ok(said.document())
    }

    /// A row of it, by its name or its id.
    fn row(&self, of: &str) -> Result<Value> {
        let list = self.list()?;
        let rows = list["members"].as_array().context("no members")?;
        let row = rows.iter().find(|row| row["name"] == of || row["id"] == of);
        row.cloned().with_context(|| format!("no {of} in {list}"))
    }

    fn id(&self, number: usize) -> Result<String> {
        Ok(format!("{:x}", self.cluster.member(number)?.id()))
    }

    /// The number of the member that leads.
    fn leader(&self) -> Result<usize> {
        until("somebody leads", PATIENCE, || {
            let list = self.list()?;
            let leads = list["members"].as_array().into_iter().flatten().find(|row| row["leads"] == true);
            let number = leads.and_then(|row| {
                let id = row["id"].as_str()?;
                self.cluster.members().iter().position(|member| format!("{:x}", member.id()) == id)
            });
            Ok(number.map_or_else(|| ControlFlow::Continue(anyhow!("{list}")), |at| ControlFlow::Break(at + 1)))
        })
    }

    /// Members that do not lead, lowest number first.
    fn followers(&self) -> Result<Vec<usize>> {
        let leader = self.leader()?;
        Ok((1..=3).filter(|number| *number != leader).collect())
    }

    /// Waits until etcd's own list is so, asked of any member that answers.
    fn listed(&self, what: &str, holds: impl Fn(&[Value]) -> bool) -> Result<()> {
        until(what, PATIENCE, || {
            let body = json!({"linearizable": true});
            let mut said = anyhow!("nobody answers");
            for member in self.cluster.members() {
                match member.call("/v3/cluster/member/list", &body) {
                    Ok(answer) => {
                        let list = answer["members"].as_array().context("no members")?;
                        if holds(list) {
                            return Ok(ControlFlow::Break(()));
                        }
                        said = anyhow!("{answer}");
                        break;
                    }
                    Err(why) => said = why,
                }
            }
            Ok(ControlFlow::Continue(said))
        })
    }

    fn voters(&self, wanted: usize) -> Result<()> {
        self.listed(&format!("{wanted} voters, and nobody else"), |list| {
            list.len() == wanted && list.iter().all(|member| member["isLearner"] != true)
        })
    }

    /// Waits until that command comes to this end; what must never come meanwhile is that it succeeds.
    fn comes_to(&self, code: i32, codes: &[&str], command: impl Fn() -> Result<Said>) -> Result<Said> {
        let wanted: Vec<String> = codes.iter().map(ToString::to_string).collect();
        until(&format!("it ends with {code}, {codes:?}"), PATIENCE, || {
            let said = command()?;
            anyhow::ensure!(code == 0 || said.code != Some(0), "it was done: {said:?}");
            Ok(if (said.code, said.codes()) == (Some(code), wanted.clone()) {
                ControlFlow::Break(said)
            } else {
                ControlFlow::Continue(anyhow!("{said:?}"))
            })
        })
    }
}

/// The end of a process in the background: how it ended, once it has.
pub(crate) fn ended(process: &Process) -> Result<()> {
    until("it ends", PATIENCE, || {
        Ok(match process.running() {
            Ok(()) => ControlFlow::Continue(anyhow!("it runs")),
            Err(_) => ControlFlow::Break(()),
        })
    })
}

fn unstarted(list: &[Value]) -> bool {
    list.iter().any(|member| member.get("name").is_none())
}
