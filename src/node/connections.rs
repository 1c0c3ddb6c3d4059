//! Connections from other machines to the node's own apiserver, and how those that are idle are ended while new ones go elsewhere.

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};

/// For how many milliseconds the apiserver must have had the last word on a connection that counts as idle.
const IDLE: u32 = 100;

/// What became of the connections from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SentAway {
    /// Ended here.
    pub(super) ended: usize,
    /// Still there.
    pub(super) left: usize,
}

/// One established connection.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Connection {
    remote: IpAddr,
    inode: u64,
    /// Bytes that nobody has read or acknowledged yet.
    queued: u32,
    /// Milliseconds since something was sent, and since something came.
    sent: u32,
    came: u32,
}

impl Connection {
    /// Whether nobody waits for anything on it: the apiserver spoke last, a while ago. A request that is being worked on came later
    /// than the answer before it.
    const fn idle(&self) -> bool {
        self.queued == 0 && self.sent <= self.came && self.sent >= IDLE
    }
}

/// Ends those connections from outside that are idle, as if the client had gone: the apiserver then closes them properly, and the
/// client opens another, which the hand-over sends to a peer. Otherwise an apiserver that is told to stop answers some requests on
/// connections that it has with "apiserver is shutting down".
///
/// A request that comes between the look and the end is lost, so the end is at hand before the look: a moment lies between them.
pub(super) fn end_idle(apiserver: Pid, own: SocketAddr) -> Result<SentAway, String> {
    let inodes = outside(own)?.iter().map(|connection| connection.inode).collect();
    let sockets = sockets(apiserver, &inodes)?;
    let now = outside(own)?;
    let mut ended = 0;
    for connection in now.iter().filter(|connection| connection.idle()) {
        if sockets.get(&connection.inode).is_some_and(|socket| socket.shutdown(Shutdown::Read).is_ok()) {
            ended += 1;
        }
    }
    Ok(SentAway { ended, left: now.len().saturating_sub(ended) })
}

/// How many connections from outside are established.
pub(super) fn count(own: SocketAddr) -> Result<usize, String> {
    Ok(outside(own)?.len())
}

fn outside(own: SocketAddr) -> Result<Vec<Connection>, String> {
    let mut found = established(own.port()).map_err(|error| format!("the kernel's list of connections: {error}"))?;
    found.retain(|connection| connection.remote != own.ip() && !connection.remote.is_loopback());
    Ok(found)
}

/// The connections that were made to a port of this machine.
fn established(port: u16) -> std::io::Result<Vec<Connection>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    let mut found = Vec::new();
    for (family, mut socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        socket_id.source_port = port;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::INFO,
            states: StateFlags::ESTABLISHED,
            socket_id,
        };
        let mut question = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        question.finalize();
        let mut bytes = vec![0; question.buffer_len()];
        question.serialize(&mut bytes);
        socket.send(&bytes, 0)?;
        while answer(&socket, port, &mut found)? {}
    }
    Ok(found)
}

/// One part of the kernel's answer; false at its end.
fn answer(socket: &Socket, port: u16, found: &mut Vec<Connection>) -> std::io::Result<bool> {
    let (bytes, _) = socket.recv_from_full()?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(std::io::Error::other)?;
        match message.payload {
            // Not every kernel looks at the port that was asked for.
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response))
                if response.header.socket_id.source_port == port =>
            {
                found.push(connection(&response)?);
            }
            NetlinkPayload::Done(_) => return Ok(false),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length.max(4)..).unwrap_or_default();
    }
    Ok(true)
}

fn connection(response: &InetResponse) -> std::io::Result<Connection> {
    let info = response.nlas.iter().find_map(|nla| if let Nla::TcpInfo(info) = nla { Some(info) } else { None });
    let info = info.ok_or_else(|| std::io::Error::other("a connection without its times"))?;
    Ok(Connection {
        remote: response.header.socket_id.destination_address.to_canonical(),
        inode: response.header.inode.into(),
        queued: response.header.recv_queue.saturating_add(response.header.send_queue),
        sent: info.last_data_sent,
        came: info.last_data_recv,
    })
}

/// Copies of those of a process' sockets that have these inodes. A socket is closed when the last copy is: they must not be kept.
fn sockets(process: Pid, inodes: &BTreeSet<u64>) -> Result<BTreeMap<u64, TcpStream>, String> {
    let wrong = |what: &str, error: &dyn Display| format!("{what}: {error}");
    let handle = pidfd_open(process, PidfdFlags::empty()).map_err(|error| wrong("kube-apiserver", &error))?;
    let folder = format!("/proc/{}/fd", process.as_raw_nonzero());
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).map_err(|error| wrong(&folder, &error))?.flatten() {
        // One that is closed while we look is not one of them.
        let Ok(link) = std::fs::read_link(entry.path()) else { continue };
        let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        let Some(inode) = inode.filter(|inode| inodes.contains(inode)) else { continue };
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match pidfd_getfd(&handle, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => drop(found.insert(inode, TcpStream::from(socket))),
            Err(rustix::io::Errno::BADF) => {}
            Err(error) => return Err(wrong("a connection of kube-apiserver cannot be had", &error)),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    #[test]
    fn a_connection_is_idle_when_the_server_spoke_last_and_a_while_ago() {
        let idle =
            Connection { remote: "10.10.0.12".parse().unwrap(), inode: 4711, queued: 0, sent: IDLE, came: 2 * IDLE };
        assert!(idle.idle());
        assert!(!Connection { queued: 1, ..idle.clone() }.idle());
        assert!(!Connection { sent: IDLE - 1, ..idle.clone() }.idle());
        assert!(!Connection { came: IDLE - 1, ..idle }.idle(), "a request that is being worked on");
    }

    /// This process stands for the apiserver: it has the sockets. What is its own address and what is outside is turned round: all
    /// of it is local.
    #[test]
    fn the_server_of_an_idle_connection_reads_its_end_and_others_go_on() {
        for address in ["127.0.0.1:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let pair = || {
                let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
                (client, listener.accept().unwrap().0)
            };
            let ((mut rests, mut idle), (mut waits, mut busy)) = (pair(), pair());
            for (client, server) in [(&mut rests, &mut idle), (&mut waits, &mut busy)] {
                client.write_all(b"?").unwrap();
                server.read_exact(&mut [0]).unwrap();
                std::thread::sleep(Duration::from_millis(20));
                server.write_all(b"!").unwrap();
                client.read_exact(&mut [0]).unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
            waits.write_all(b"?").unwrap();
            busy.read_exact(&mut [0]).unwrap();
            let of = |server: &TcpStream| {
                let peer = server.peer_addr().unwrap().port();
                let all = established(port).unwrap();
                assert_eq!(all.len(), 2, "{all:?}");
                let link = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(server)));
                let inode: u64 =
                    link.unwrap().to_str().unwrap().replace(|it: char| !it.is_ascii_digit(), "").parse().unwrap();
                all.into_iter().find(|it| it.inode == inode).unwrap_or_else(|| panic!("{peer} has {inode}"))
            };
            let end = Instant::now() + Duration::from_secs(20);
            while !of(&idle).idle() {
                assert!(Instant::now() < end, "{:?}", of(&idle));
                std::thread::sleep(Duration::from_millis(10));
            }
            let (own, other) = (rustix::process::getpid(), SocketAddr::from(([10, 10, 0, 11], port)));
            assert_eq!(of(&idle).remote, IpAddr::from([127, 0, 0, 1]));
            // The node's own connections are not touched.
            assert_eq!(end_idle(own, other), Ok(SentAway { ended: 0, left: 0 }));
            let inodes = BTreeSet::from([of(&idle).inode, of(&busy).inode]);
            let sockets = sockets(own, &inodes).unwrap();
            assert_eq!(sockets.keys().copied().collect::<BTreeSet<_>>(), inodes);
            assert!(!of(&busy).idle());
            sockets[&of(&idle).inode].shutdown(Shutdown::Read).unwrap();
            assert_eq!(idle.read(&mut [0]).unwrap(), 0, "the end");
            idle.write_all(b"farewell").unwrap();
            rests.read_exact(&mut [0; 8]).unwrap();
        }
    }
}
