//! The node's own apiserver: sends away the connections it has, and waits until it is ready again.

use super::command::Deadline;
use super::probe::Probe;
use crate::output;
use rustix::process::{Pid, Signal, kill_process};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::time::Instant;

/// How long connections from outside may take to go by themselves; those of watches never do.
const GOING: Duration = Duration::from_secs(10);
/// How long requests of the node itself may take to end.
const LOCAL: Duration = Duration::from_secs(3);
/// How long the kubelet may take to start it again.
const BACK: Duration = Duration::from_secs(180);
/// How long it must answer.
const STABLE: Duration = Duration::from_secs(3);
/// Between two looks.
const POLL: Duration = Duration::from_millis(500);

/// Waits until the apiserver at its own address has been ready for `stable` without a break.
pub(super) async fn wait_ready(
    address: SocketAddr,
    probe: &Probe,
    stable: Duration,
    until: Deadline,
) -> Result<(), String> {
    let mut since: Option<Instant> = None;
    loop {
        match probe.ready(address).await {
            Ok(()) if since.get_or_insert_with(Instant::now).elapsed() >= stable => return Ok(()),
            Ok(()) => {}
            Err(why) if until.passed() => return Err(format!("kube-apiserver: {why}")),
            Err(_) => since = None,
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Restarts it once while new connections go elsewhere, so that none is left when kubeadm takes etcd away under it: SIGTERM
/// finishes what is in flight; the second one, when only watches hold it, ends it (zero-downtime.md, sections 1 and 7).
pub(super) async fn restart(address: SocketAddr, probe: &Probe, deadline: Deadline) -> Result<(), String> {
    let Some(old) = process(address)? else { return Err("no process of kube-apiserver is found".to_owned()) };
    signal(old)?;
    empty(old, address, deadline).await?;
    let until = Deadline::after(deadline.within(BACK));
    while process(address)?.is_none_or(|now| now == old) {
        if until.passed() {
            return Err("the kubelet did not start kube-apiserver again".to_owned());
        }
        tokio::time::sleep(POLL).await;
    }
    wait_ready(address, probe, STABLE, until).await
}

/// While kubeadm works: ends the apiserver that the kubelet has told to stop, once it has served what it had. Watches never end, and
/// the kubelet would wait its thirty seconds for them; all that time the node's own components have no apiserver. To be dropped when
/// kubeadm is done; new connections must go elsewhere meanwhile.
pub(super) async fn see_off(address: SocketAddr, deadline: Deadline) -> Result<(), String> {
    let Some(old) = process(address)? else { return Ok(()) };
    while !closed(address).await {
        tokio::time::sleep(POLL).await;
    }
    empty(old, address, deadline).await
}

/// Waits until a stopping apiserver has no connection from outside, or only such as do not end, and ends it. Requests of the node's own
/// components are not told from their watches: they have the first seconds.
async fn empty(old: Pid, address: SocketAddr, deadline: Deadline) -> Result<(), String> {
    let until = Deadline::after(deadline.within(GOING));
    let local = Deadline::after(deadline.within(LOCAL));
    while alive(old, address)? && !local.passed() {
        tokio::time::sleep(POLL).await;
    }
    while alive(old, address)? && !until.passed() && connections(address)? > 0 {
        tokio::time::sleep(POLL).await;
    }
    if alive(old, address)? {
        output::progress(&format!(
            "kube-apiserver: {} connections from outside are left, which is not waited for",
            connections(address)?
        ));
        signal(old)?;
    }
    Ok(())
}

/// Whether nobody listens at an address: a stopping apiserver closes its port first of all.
async fn closed(address: SocketAddr) -> bool {
    let tried = tokio::time::timeout(POLL, tokio::net::TcpStream::connect(address)).await;
    matches!(tried, Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn signal(process: Pid) -> Result<(), String> {
    match kill_process(process, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(format!("kube-apiserver cannot be signalled: {error}")),
    }
}

fn alive(old: Pid, address: SocketAddr) -> Result<bool, String> {
    Ok(process(address)? == Some(old))
}

/// The process of this node's apiserver: its name and the address that it advertises.
fn process(address: SocketAddr) -> Result<Option<Pid>, String> {
    let flag = format!("--advertise-address={}", address.ip());
    let entries = std::fs::read_dir("/proc").map_err(|error| format!("/proc: {error}"))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else { continue };
        // A process may end while we look: then it is not the one.
        let Ok(words) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let mut words = words.split(|byte| *byte == 0);
        let program = words.next().unwrap_or_default();
        if program.ends_with(b"kube-apiserver") && words.any(|word| word == flag.as_bytes()) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Established connections to the apiserver from other machines.
fn connections(address: SocketAddr) -> Result<usize, String> {
    let mut count = 0;
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match std::fs::read_to_string(path) {
            Ok(text) => count += from_outside(&text, address),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{path}: {error}")),
        }
    }
    Ok(count)
}

fn from_outside(text: &str, own: SocketAddr) -> usize {
    text.lines()
        .filter(|line| {
            let mut fields = line.split_whitespace();
            let (Some(local), Some(remote), Some(state)) = (fields.nth(1), fields.next(), fields.next()) else {
                return false;
            };
            let (Some(local), Some(remote)) = (socket(local), socket(remote)) else { return false };
            // 01 is ESTABLISHED (include/net/tcp_states.h).
            state == "01" && local.port() == own.port() && remote.ip() != own.ip() && !remote.ip().is_loopback()
        })
        .count()
}

/// `0B000A0A:192B` as the kernel prints it: words of four bytes, each in the byte order of the machine.
fn socket(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = if let Ok(four) = <[u8; 4]>::try_from(bytes.as_slice()) {
        IpAddr::V4(Ipv4Addr::from(four))
    } else {
        Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).to_canonical()
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_closed_when_nobody_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(!runtime.block_on(closed(address)));
        drop(listener);
        assert!(runtime.block_on(closed(address)));
    }

    #[test]
    fn connections_from_outside_are_told_from_local_ones() {
        let text = "  sl  local_address rem_address   st\n\
             0: 0B000A0A:192B 0A000A0A:D431 01 00000000:00000000\n\
             1: 0B000A0A:192B 0B000A0A:D432 01 00000000:00000000\n\
             2: 0B000A0A:192B 0A000A0A:D433 06 00000000:00000000\n\
             3: 0B000A0A:094B 0A000A0A:D434 01 00000000:00000000\n\
             4: 0000000000000000FFFF00000B000A0A:192B 0000000000000000FFFF00000C000A0A:D435 01 00000000:00000000\n\
             5: 0000000000000000FFFF00000100007F:192B 0000000000000000FFFF00000100007F:D436 01 00000000:00000000\n";
        let own = "10.10.0.11:6443".parse().unwrap();
        if cfg!(target_endian = "little") {
            assert_eq!(from_outside(text, own), 2);
        }
    }
}
