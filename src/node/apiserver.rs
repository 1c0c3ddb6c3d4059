//! The node's own apiserver: sends away the connections it has, and waits until it is ready again.

use super::command::Deadline;
use super::connections;
use super::probe::Probe;
use super::program;
use crate::output;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// How long clients may take to come to rest before it is told to stop.
const LEAVING: Duration = Duration::from_secs(3);
/// How long connections from outside may take to go by themselves then.
const GOING: Duration = Duration::from_secs(10);
/// How long the kubelet's apiserver may stop. The kubelet looks 10 to 15 s after it has told it so whether it may start the new one (kubelet
/// 1.36, backOffPeriod); ended before, that is no sooner, and the node's own components, which lose their watches then, take longer to come
/// back: seen to cost kubeadm 5 to 20 s.
const WATCHED: Duration = Duration::from_secs(8);
/// How long requests of the node itself may take to end.
const LOCAL: Duration = Duration::from_secs(3);
/// How long the kubelet may take to start it again.
const BACK: Duration = Duration::from_secs(180);
/// How long it must answer.
const STABLE: Duration = Duration::from_secs(3);
/// Between two looks.
const POLL: Duration = Duration::from_millis(500);
/// Between two looks for connections that rest, just before it is told to stop: they are moments.
const LOOK: Duration = Duration::from_millis(50);

/// Waits until the apiserver at its own address has been ready for `stable` without a break.
pub(super) async fn wait_ready(
    address: SocketAddr,
    probe: &Probe,
    stable: Duration,
    until: Deadline,
) -> Result<(), String> {
    let ready = until.steady(stable, async || probe.ready(address).await).await;
    ready.map_err(|why| format!("kube-apiserver: {why}"))
}

/// Restarts it once while new connections go elsewhere, so that none is left when kubeadm takes etcd away under it: SIGTERM
/// finishes what is in flight; the second one, when only watches hold it, ends it (docs/zero-downtime.md).
pub(super) async fn restart(address: SocketAddr, probe: &Probe, deadline: Deadline) -> Result<(), String> {
    let until = Deadline::after(deadline.within(BACK));
    let Some(old) = process(address)? else {
        // The kubelet is about to start it, such as after its manifest was put back: it has no clients yet.
        return wait_ready(address, probe, STABLE, until).await;
    };
    let_clients_go(address, deadline).await;
    signal(old)?;
    empty(old, address, deadline).await?;
    while process(address)?.is_none_or(|now| now == old) {
        if until.passed() {
            return Err("the kubelet did not start kube-apiserver again".to_owned());
        }
        tokio::time::sleep(POLL).await;
    }
    wait_ready(address, probe, STABLE, until).await
}

/// Before it is told to stop, while new connections go elsewhere: gives clients a moment to come to rest, and sends them away then.
pub(super) async fn let_clients_go(address: SocketAddr, deadline: Deadline) {
    if let Ok(Some(running)) = process(address) {
        let until = Deadline::after(deadline.within(LEAVING));
        send_away(running, address, until, LOOK, async |left| left == 0).await;
    }
}

/// While kubeadm works: sends clients away that rest for a second, and some of the others, and ends the apiserver that the kubelet has told to stop, once it has
/// served what it had. Watches of the node's own components never end, and the kubelet would wait its thirty seconds for them. To be dropped
/// when kubeadm is done; new connections must go elsewhere meanwhile.
pub(super) async fn see_off(address: SocketAddr, deadline: Deadline) -> Result<(), String> {
    let Some(old) = process(address)? else { return Ok(()) };
    send_away(old, address, deadline, POLL, async |_| closed(address).await).await;
    if !closed(address).await {
        // The time is over, and nobody has told it to stop.
        return Ok(());
    }
    gone_within(WATCHED, old, address, deadline).await?;
    end(old, address)
}

/// Ends the connections from outside that are there, each when it rests, with a look every so often, until it is over by the number that is
/// left or by the time. Only a help: what keeps it from that is told, and the apiserver's own stop ends them.
async fn send_away(
    apiserver: Pid,
    address: SocketAddr,
    until: Deadline,
    every: Duration,
    over: impl AsyncFn(usize) -> bool,
) {
    let mut these: Option<BTreeSet<u64>> = connections::there(address).map_err(|why| cannot_send_away(&why)).ok();
    let mut ended = 0;
    loop {
        let mut left = 0;
        if let Some(known) = &mut these {
            match connections::end_idle(apiserver, address, known) {
                Ok(seen) => (ended, left) = (ended + seen.ended, seen.left),
                Err(why) => {
                    cannot_send_away(&why);
                    these = None;
                }
            }
        }
        if over(left).await || until.passed() {
            break;
        }
        tokio::time::sleep(every).await;
    }
    if ended > 0 {
        output::progress(&format!("kube-apiserver: {ended} idle connections from outside were ended"));
    }
}

fn cannot_send_away(why: &str) {
    output::progress(&format!("kube-apiserver: idle connections from outside are not ended: {why}"));
}

/// Waits until a stopping apiserver has no connection from outside, or only such as do not end, and ends it. Requests of the node's own
/// components are not told from their watches: they have the first seconds.
async fn empty(old: Pid, address: SocketAddr, deadline: Deadline) -> Result<(), String> {
    let until = Deadline::after(deadline.within(GOING));
    gone_within(LOCAL, old, address, deadline).await?;
    // Where they cannot be counted, some may be there.
    while alive(old, address)? && !until.passed() && connections::count(address) != Ok(0) {
        tokio::time::sleep(POLL).await;
    }
    end(old, address)
}

/// Waits until an apiserver is gone, or for so long.
async fn gone_within(limit: Duration, old: Pid, address: SocketAddr, deadline: Deadline) -> Result<(), String> {
    let until = Deadline::after(deadline.within(limit));
    while alive(old, address)? && !until.passed() {
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Ends an apiserver that was told to stop, if it still runs.
fn end(old: Pid, address: SocketAddr) -> Result<(), String> {
    if alive(old, address)? {
        output::progress(&match connections::count(address) {
            Ok(left) => format!("kube-apiserver: ended after its time to stop, with {left} connections from outside"),
            Err(why) => format!("kube-apiserver: ended after its time to stop; its connections are not known: {why}"),
        });
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
    let mut all = program::running(Path::new("/"), "kube-apiserver")?.into_iter();
    Ok(all.find(|process| process.words.iter().any(|word| word == flag.as_bytes())).map(|process| process.pid))
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
}
