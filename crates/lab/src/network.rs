//! The network: a bridge in a namespace of its own (`qsw`), a namespace a machine (`qk1` …), one for the virtual IP
//! (`qlb`, HAProxy) and one for the client (`qcl`). The host itself has no route in.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{command, run, write};

/// At most this many machines: one digit in names and addresses.
pub(crate) const MOST_MACHINES: u8 = 9;
/// The virtual IP, served by HAProxy.
pub(crate) const VIP: &str = "10.10.0.10";
/// Its port.
pub(crate) const API_PORT: u16 = 6443;
const CLIENT: &str = "10.10.0.20";
const SWITCH: &str = "qsw";
const BALANCER: &str = "qlb";
/// The client's network namespace.
pub(crate) const CLIENT_NAMESPACE: &str = "qcl";

/// kubeadm's default for the addresses of Services.
pub(crate) const SERVICES: &str = "10.96.0.0/12";

/// The address of a machine. The node network must not lie in the service range (10.96.0.0/12): kube-proxy would drop
/// its packets silently.
pub(crate) fn address(machine: u8) -> String {
    format!("10.10.0.1{machine}")
}

/// The network namespace of a machine, which is also its name as a container and its cgroup.
pub(crate) fn namespace(machine: u8) -> String {
    format!("qk{machine}")
}

/// The pods of a machine.
pub(crate) fn pod_network(machine: u8) -> String {
    format!("10.244.{machine}.0/24")
}

fn ip(line: &str) -> Result<()> {
    run(&mut command("ip", line.split(' ')))
}

fn link(name: &str, address: &str) -> Result<()> {
    ip(&format!("netns add {name}"))?;
    ip(&format!("-n {SWITCH} link add v{name} type veth peer name eth0 netns {name}"))?;
    ip(&format!("-n {SWITCH} link set v{name} master br0 up"))?;
    ip(&format!("-n {name} link set lo up"))?;
    ip(&format!("-n {name} link set eth0 up"))?;
    ip(&format!("-n {name} addr add {address}/24 dev eth0"))?;
    run(&mut inside(name, ["sysctl", "-qw", "net.ipv4.ip_forward=1"]))
}

/// A command in a network namespace.
pub(crate) fn inside<'a>(name: &str, words: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = command("ip", ["netns", "exec", name]);
    command.args(words);
    command
}

/// Makes all namespaces, for this many machines; each knows the pod network of every machine.
pub(crate) fn up(machines: u8) -> Result<()> {
    ip(&format!("netns add {SWITCH}"))?;
    ip(&format!("-n {SWITCH} link add br0 type bridge"))?;
    ip(&format!("-n {SWITCH} link set br0 up"))?;
    ip(&format!("-n {SWITCH} link set lo up"))?;
    link(BALANCER, VIP)?;
    link(CLIENT_NAMESPACE, CLIENT)?;
    for machine in 1..=machines {
        link(&namespace(machine), &address(machine))?;
        // A real host has a default route; without any the kernel refuses an address of a Service before kube-proxy's rules see it.
        ip(&format!("-n {} route replace {SERVICES} dev eth0", namespace(machine)))?;
    }
    for from in (1..=machines).map(namespace).chain([BALANCER.to_owned(), CLIENT_NAMESPACE.to_owned()]) {
        for to in (1..=machines).filter(|to| namespace(*to) != from) {
            ip(&format!("-n {from} route replace {} via {}", pod_network(to), address(to)))?;
        }
    }
    Ok(())
}

/// Pulls or puts back a machine's network cable.
pub(crate) fn cable(machine: u8, state: &str) -> Result<()> {
    ip(&format!("-n {SWITCH} link set v{} {state}", namespace(machine)))
}

/// The namespaces of a lab that are there now.
pub(crate) fn namespaces() -> Result<Vec<String>> {
    let entries = match fs::read_dir("/run/netns") {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("cannot read /run/netns"),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let ours = (1..=MOST_MACHINES).map(namespace).any(|machine| machine == name);
        if ours || [SWITCH, BALANCER, CLIENT_NAMESPACE].contains(&name.as_str()) {
            found.push(name);
        }
    }
    Ok(found)
}

/// Removes a namespace with its interfaces.
pub(crate) fn remove(name: &str) -> Result<()> {
    ip(&format!("netns del {name}"))
}

/// HAProxy's configuration. A backend counts when its own `/readyz` says so (H10); a connection that cannot be made is
/// tried on another one. No `on-marked-down shutdown-sessions`: kept connections of a node that stops being ready are the
/// client's to end. Of each session that ends it writes a line to `haproxy.log` in the same folder, a socket that nobody need read.
fn haproxy_config(state: &Path, control_planes: u8) -> String {
    let mut text = format!(
        "global
  stats socket {} mode 600 level admin
  log {} local0
defaults
  mode tcp
  log global
  option tcplog
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  option redispatch 1
  retries 3
frontend api
  bind {VIP}:{API_PORT}
  default_backend apiservers
backend apiservers
  balance roundrobin
  option httpchk
  http-check send meth GET uri /readyz
  http-check expect status 200
  default-server check check-ssl verify none inter 1s fastinter 300ms fall 2 rise 2
",
        state.join("haproxy.sock").display(),
        state.join("haproxy.log").display()
    );
    for machine in 1..=control_planes {
        text += &format!("  server k{machine} {}:{API_PORT}\n", address(machine));
    }
    text
}

/// Starts HAProxy on the virtual IP, in the background. Its admin socket is `haproxy.sock` in the state folder.
pub(crate) fn haproxy_up(state: &Path, control_planes: u8) -> Result<()> {
    let config = state.join("haproxy.cfg");
    write(&config, haproxy_config(state, control_planes))?;
    run(inside(BALANCER, ["haproxy", "-D", "-f"]).arg(&config).arg("-p").arg(state.join("haproxy.pid")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_control_planes_serve_and_sessions_are_not_shut() {
        let text = haproxy_config(Path::new("/s"), 3);
        assert!(text.contains("stats socket /s/haproxy.sock mode 600 level admin\n"));
        assert!(
            text.ends_with("  server k1 10.10.0.11:6443\n  server k2 10.10.0.12:6443\n  server k3 10.10.0.13:6443\n")
        );
        assert!(text.contains("option redispatch 1\n") && !text.contains("shutdown-sessions"));
    }
}
