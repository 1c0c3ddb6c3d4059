//! Connections from other machines to the node's own apiserver, and how those that are idle are ended while new ones go elsewhere.

use super::netlink::Netlink;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_ESTABLISHED, TCP_LISTEN};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::ops::RangeInclusive;

/// How many milliseconds after the apiserver's last word a connection is idle. Sooner, a request on HTTP/2 that is being worked on may look
/// like rest; later, the next question may be about to come, and would be lost. What comes on one that is never ended is answered with 503
/// once the apiserver stops, which a client may repeat: that is the lesser evil.
const AFTER_AN_ANSWER: RangeInclusive<u32> = 100..=160;
/// So long after anything it rests at any time, also where it cannot be told who spoke last.
const LONG: u32 = 1000;

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
    /// As the kernel names it, to be asked for again.
    id: SocketId,
    local: IpAddr,
    remote: IpAddr,
    inode: u64,
    /// Bytes that nobody has read or acknowledged yet.
    queued: u32,
    /// Milliseconds since something was sent, since something came, and since an acknowledgement came. The kernel's clock for these has
    /// steps of some milliseconds.
    sent: u32,
    came: u32,
    acknowledged: u32,
}

impl Connection {
    /// Whether it looks as if nobody waits for anything on it, and nobody is about to: the apiserver spoke last, and just now or long ago. A
    /// request on HTTP/1.1 that is being worked on came later than the answer before it; where both were in one step of the clock, an
    /// acknowledgement that came after them tells that no request did, which would have brought it. It cannot be told of the first request on
    /// a connection that is just made, of an answer that pauses, and of HTTP/2: a request that takes longer than this is not seen when something
    /// was sent since it came, such as the rest of the handshake, a part of the answer, an event of a watch.
    fn idle(&self) -> bool {
        let tie = self.sent == self.came;
        let spoke_last = self.sent < self.came || tie && self.acknowledged < self.came;
        let just_now = spoke_last && AFTER_AN_ANSWER.contains(&self.sent);
        self.queued == 0 && (just_now || (spoke_last || tie) && self.sent >= LONG)
    }
}

/// The connections from outside, each by its socket's number.
pub(super) fn there(own: SocketAddr) -> Result<BTreeSet<u64>, String> {
    Ok(outside(own)?.iter().map(|connection| connection.inode).collect())
}

/// Ends those of `these` that are idle, as if the client had gone: the apiserver then closes them properly, and the client opens another,
/// which the hand-over sends to a peer. Otherwise an apiserver that is told to stop answers some requests on connections that it has with
/// "apiserver is shutting down". One that was opened since is let alone: whoever opened it was not handed over.
///
/// A request that comes between the look and the end is lost, so the end is at hand before a last look at that one connection: a moment
/// lies between them. What was ended is none of `these` any more.
pub(super) fn end_idle(apiserver: Pid, own: SocketAddr, these: &mut BTreeSet<u64>) -> Result<SentAway, String> {
    end_idle_of(apiserver, these, || outside(own))
}

fn end_idle_of(
    process: Pid,
    these: &mut BTreeSet<u64>,
    look: impl Fn() -> Result<Vec<Connection>, String>,
) -> Result<SentAway, String> {
    let mut now = look()?;
    now.retain(|connection| these.contains(&connection.inode));
    let idle = |connection: &&Connection| connection.idle();
    let mut sockets = sockets(process, &now.iter().filter(idle).map(|connection| connection.inode).collect())?;
    let asking = Asking::new().map_err(|error| cannot_list(&error))?;
    let mut ended = 0;
    for connection in now.iter().filter(idle) {
        let Some(socket) = sockets.remove(&connection.inode) else { continue };
        let last = asking.again(connection).map_err(|error| cannot_list(&error))?;
        if last.is_some_and(|last| last.idle()) && socket.shutdown(Shutdown::Read).is_ok() {
            these.remove(&connection.inode);
            ended += 1;
        }
    }
    Ok(SentAway { ended, left: now.len().saturating_sub(ended) })
}

/// How many connections from outside are established.
pub(super) fn count(own: SocketAddr) -> Result<usize, String> {
    Ok(outside(own)?.len())
}

/// Those that are established.
fn outside(own: SocketAddr) -> Result<Vec<Connection>, String> {
    let mut found =
        Asking::new().and_then(|asking| asking.established(own.port())).map_err(|error| cannot_list(&error))?;
    found.retain(|connection| is_outside(own, connection.local, connection.remote));
    Ok(found)
}

/// Whether it goes to the address that is handed over, from another machine or from a pod. One to another address of this machine, such as a
/// virtual one that it has now, would come back here.
fn is_outside(own: SocketAddr, local: IpAddr, remote: IpAddr) -> bool {
    local == own.ip() && remote != own.ip()
}

pub(super) fn cannot_list(error: &std::io::Error) -> String {
    format!("the kernel's list of connections: {error}")
}

/// Asks the kernel for connections.
pub(super) struct Asking(Netlink<SockDiagMessage>);

impl Asking {
    pub(super) fn new() -> std::io::Result<Self> {
        Netlink::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// The other ends of the connections from outside, whatever has become of them.
    pub(super) fn all(&self, own: SocketAddr) -> std::io::Result<BTreeSet<SocketAddr>> {
        let mut found = BTreeSet::new();
        let any = StateFlags::all() - StateFlags::LISTEN;
        self.list(own.port(), &any, ExtensionFlags::empty(), |response| {
            let id = &response.header.socket_id;
            let (local, remote) = (id.source_address.to_canonical(), id.destination_address.to_canonical());
            if is_outside(own, local, remote) {
                found.insert(SocketAddr::new(remote, id.destination_port));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Whether nothing is left of a connection.
    pub(super) fn is_over(&self, own: SocketAddr, client: SocketAddr) -> std::io::Result<bool> {
        let id = SocketId {
            source_address: own.ip(),
            source_port: own.port(),
            destination_address: client.ip(),
            destination_port: client.port(),
            interface_id: 0,
            // Whichever socket it has.
            cookie: [u8::MAX; 8],
        };
        let found = self.one(id, ExtensionFlags::empty(), |response| Ok(response.header.state))?;
        // Where there is no connection, the kernel tells who listens for one.
        Ok(found.is_none_or(|state| state == TCP_LISTEN))
    }

    /// Those that were made to a port of this machine.
    fn established(&self, port: u16) -> std::io::Result<Vec<Connection>> {
        let mut found = Vec::new();
        self.list(port, &StateFlags::ESTABLISHED, ExtensionFlags::INFO, |response| {
            found.push(connection(response)?);
            Ok(())
        })?;
        Ok(found)
    }

    /// Takes every one to a port of this machine that is in one of these states.
    fn list(
        &self,
        port: u16,
        states: &StateFlags,
        extensions: ExtensionFlags,
        mut take: impl FnMut(&InetResponse) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        // Not every kernel looks at the port that was asked for.
        let mut take = |it: &InetResponse| if it.header.socket_id.source_port == port { take(it) } else { Ok(()) };
        for mut of_family in [SocketId::new_v4(), SocketId::new_v6()] {
            of_family.source_port = port;
            self.ask(of_family, states.clone(), extensions.clone(), NLM_F_DUMP)?;
            while self.answer(&mut take)? {}
        }
        Ok(())
    }

    /// One of them as it is now; none when it is gone.
    fn again(&self, known: &Connection) -> std::io::Result<Option<Connection>> {
        // One by itself is told in any state, and has no times once it is closed.
        let established = |it: &InetResponse| (it.header.state == TCP_ESTABLISHED).then(|| connection(it)).transpose();
        Ok(self.one(known.id.clone(), ExtensionFlags::INFO, established)?.flatten())
    }

    /// What is told of one socket; none when there is none.
    fn one<T>(
        &self,
        id: SocketId,
        extensions: ExtensionFlags,
        mut read: impl FnMut(&InetResponse) -> std::io::Result<T>,
    ) -> std::io::Result<Option<T>> {
        let mut found = None;
        self.ask(id, StateFlags::all(), extensions, 0)?;
        let answer = self.answer(&mut |response| {
            found = Some(read(response)?);
            Ok(())
        });
        match answer {
            Ok(_) => Ok(found),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ask(
        &self,
        socket_id: SocketId,
        states: StateFlags,
        extensions: ExtensionFlags,
        flags: u16,
    ) -> std::io::Result<()> {
        let request = InetRequest {
            family: if socket_id.source_address.is_ipv4() { AF_INET } else { AF_INET6 },
            protocol: IPPROTO_TCP,
            extensions,
            states,
            socket_id,
        };
        self.0.say(SockDiagMessage::InetRequest(request), flags)
    }

    /// One part of the kernel's answer; false at its end.
    fn answer(&self, take: &mut dyn FnMut(&InetResponse) -> std::io::Result<()>) -> std::io::Result<bool> {
        self.0.answer(&mut |said| {
            if let SockDiagMessage::InetResponse(response) = said { take(&response) } else { Ok(()) }
        })
    }
}

fn connection(response: &InetResponse) -> std::io::Result<Connection> {
    let info = response.nlas.iter().find_map(|nla| if let Nla::TcpInfo(info) = nla { Some(info) } else { None });
    let info = info.ok_or_else(|| std::io::Error::other("a connection without its times"))?;
    Ok(Connection {
        id: response.header.socket_id.clone(),
        local: response.header.socket_id.source_address.to_canonical(),
        remote: response.header.socket_id.destination_address.to_canonical(),
        inode: response.header.inode.into(),
        queued: response.header.recv_queue.saturating_add(response.header.send_queue),
        sent: info.last_data_sent,
        came: info.last_data_recv,
        acknowledged: info.last_ack_recv,
    })
}

/// Copies of those of a process' sockets that have these inodes. A socket is closed when the last copy is: they must not be kept.
fn sockets(process: Pid, inodes: &BTreeSet<u64>) -> Result<BTreeMap<u64, TcpStream>, String> {
    let wrong = |what: &str, error: &dyn Display| format!("{what}: {error}");
    let mut found = BTreeMap::new();
    if inodes.is_empty() {
        return Ok(found);
    }
    let handle = match pidfd_open(process, PidfdFlags::empty()) {
        Ok(handle) => handle,
        // It is gone, and they are.
        Err(Errno::SRCH) => return Ok(found),
        Err(error) => return Err(wrong("kube-apiserver", &error)),
    };
    let folder = format!("/proc/{}/fd", process.as_raw_nonzero());
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(wrong(&folder, &error)),
    };
    for entry in entries.flatten() {
        // One that is closed while we look is not one of them.
        let Ok(link) = std::fs::read_link(entry.path()) else { continue };
        let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        let Some(inode) = inode.filter(|inode| inodes.contains(inode)) else { continue };
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match pidfd_getfd(&handle, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => drop(found.insert(inode, TcpStream::from(socket))),
            Err(Errno::BADF) => {}
            // As many as there can be at a time: the next look takes the rest.
            Err(Errno::MFILE) => break,
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
        let (local, remote) = (IpAddr::from([10, 10, 0, 11]), IpAddr::from([10, 10, 0, 12]));
        let id = SocketId::new_v4();
        let seen = |queued, sent, came, acknowledged| {
            Connection { id: id.clone(), local, remote, inode: 4711, queued, sent, came, acknowledged }.idle()
        };
        for fresh in [100, 160, 1000, 60_000] {
            assert!(seen(0, fresh, fresh + 1, fresh), "{fresh}");
            assert!(!seen(1, fresh, fresh + 1, fresh), "{fresh}: something is on its way");
            assert!(!seen(0, fresh + 200, fresh, fresh), "{fresh}: a request that is being worked on");
            assert!(seen(0, fresh, fresh, fresh - 40), "{fresh}: an answer, it was acknowledged later, by itself");
        }
        assert!(!seen(0, 99, 300, 99) && !seen(0, 99, 99, 59), "too soon");
        assert!(!seen(0, 161, 162, 161) && !seen(0, 999, 1000, 999), "the next request may be about to come");
        assert!(!seen(0, 100, 100, 100) && !seen(0, 999, 999, 999), "an answer, or the next request?");
        assert!(!seen(0, 100, 100, 900), "of an acknowledgement of before nothing follows");
        assert!(seen(0, 1000, 1000, 1000));
    }

    fn established(port: u16) -> std::io::Result<Vec<Connection>> {
        Asking::new()?.established(port)
    }

    #[test]
    fn a_connection_is_asked_for_again_by_itself() {
        for address in ["127.0.0.1:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let [(mut client, server), other] = [(), ()].map(|()| {
                let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
                (client, listener.accept().unwrap().0)
            });
            let asking = Asking::new().unwrap();
            let all = asking.established(port).unwrap();
            assert_eq!(all.len(), 2);
            let from = client.local_addr().unwrap().port();
            let this = all.into_iter().find(|connection| connection.id.destination_port == from).unwrap();
            assert_eq!(asking.again(&this).unwrap().unwrap().queued, 0);
            client.write_all(b"?").unwrap();
            let end = Instant::now() + Duration::from_secs(20);
            while asking.again(&this).unwrap().unwrap().queued == 0 {
                assert!(Instant::now() < end, "a request that has come since is seen");
            }
            drop((client, server));
            while asking.again(&this).unwrap().is_some_and(|now| now.inode == this.inode) {
                assert!(Instant::now() < end, "it is gone");
            }
            drop(other);
        }
    }

    #[test]
    fn a_connection_is_over_when_nothing_is_left_of_it() {
        for address in ["127.0.0.2:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let own = SocketAddr::from(([127, 0, 0, 2], listener.local_addr().unwrap().port()));
            let client = std::thread::spawn(move || {
                // From 127.0.0.1, which is outside.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let connect = async {
                    let socket = tokio::net::TcpSocket::new_v4().unwrap();
                    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
                    socket.connect(own).await.unwrap().into_std().unwrap()
                };
                runtime.block_on(connect)
            });
            let mut client = client.join().unwrap();
            let server = listener.accept().unwrap().0;
            let (asking, this) = (Asking::new().unwrap(), client.local_addr().unwrap());
            assert_eq!(asking.all(own).unwrap(), BTreeSet::from([this]));
            assert!(!asking.is_over(own, this).unwrap());
            // Reset, with something unread; whoever still listens is no connection.
            client.write_all(b"?").unwrap();
            let end = Instant::now() + Duration::from_secs(20);
            while established(own.port()).unwrap().iter().any(|it| it.queued == 0 && it.local == own.ip()) {
                assert!(Instant::now() < end, "what was sent has come");
            }
            drop(server);
            assert!(asking.is_over(own, this).unwrap() && asking.all(own).unwrap().is_empty());
        }
    }

    #[test]
    fn only_what_comes_from_outside_to_the_address_that_is_handed_over_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap();
        let client = TcpStream::connect(own).unwrap();
        let server = listener.accept().unwrap().0;
        assert_eq!(established(own.port()).unwrap().len(), 1);
        assert_eq!(count(own), Ok(0), "it comes from the same address");
        assert_eq!(count(SocketAddr::from(([127, 0, 0, 2], own.port()))), Ok(0), "it goes to another address");
        drop((client, server));
        let elsewhere = TcpListener::bind("127.0.0.2:0").unwrap();
        let own = elsewhere.local_addr().unwrap();
        let client = TcpStream::connect(own).unwrap();
        let server = elsewhere.accept().unwrap().0;
        let expected = usize::from(client.local_addr().unwrap().ip() != own.ip());
        assert_eq!(count(own), Ok(expected));
        drop(server);
    }

    /// This process stands for the apiserver: it has the sockets.
    #[test]
    fn the_server_of_an_idle_connection_reads_its_end_and_others_go_on() {
        for address in ["127.0.0.1:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let pair = || {
                let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
                (client, listener.accept().unwrap().0)
            };
            let ((mut rests, mut idle), (mut waits, mut busy), (_late, late)) = (pair(), pair(), pair());
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
            let inode = |server: &TcpStream| -> u64 {
                let link = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(server)));
                link.unwrap().to_str().unwrap().replace(|it: char| !it.is_ascii_digit(), "").parse().unwrap()
            };
            let look = || established(port).map_err(|error| error.to_string());
            assert!(look().unwrap().iter().all(|it| it.remote == IpAddr::from([127, 0, 0, 1])));
            let mut these = BTreeSet::from([inode(&idle), inode(&busy)]);
            let end = Instant::now() + Duration::from_secs(20);
            let sent = loop {
                let sent = end_idle_of(rustix::process::getpid(), &mut these, look).unwrap();
                if sent.ended > 0 {
                    break sent;
                }
                assert!(Instant::now() < end, "{:?}", look());
                std::thread::sleep(Duration::from_millis(10));
            };
            assert_eq!(sent, SentAway { ended: 1, left: 1 });
            assert_eq!(idle.read(&mut [0]).unwrap(), 0, "the end");
            drop(idle);
            assert_eq!(rests.read(&mut [0]).unwrap(), 0, "an orderly one");
            busy.write_all(b"!").unwrap();
            waits.read_exact(&mut [0]).unwrap();
            assert!(look().unwrap().iter().any(|it| it.inode == inode(&late)), "it came later, and stays");
        }
    }

    /// One that is asked every 150 ms rests for 150 at most.
    #[test]
    fn a_connection_that_is_asked_often_is_ended_in_a_moment_of_rest() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut server = listener.accept().unwrap().0;
        // As an apiserver: each request is answered, and with the end of the requests the connection ends. At the latest when this test does.
        let over = server.try_clone().unwrap();
        let answers = std::thread::spawn(move || {
            while server.read(&mut [0]).is_ok_and(|read| read > 0) && server.write_all(b"!").is_ok() {}
            server.shutdown(Shutdown::Both)
        });
        let asks = std::thread::spawn(move || {
            while client.write_all(b"?").is_ok() && client.read(&mut [0]).is_ok_and(|read| read > 0) {
                std::thread::sleep(Duration::from_millis(150));
            }
        });
        let look = || established(port).map_err(|error| error.to_string());
        let mut these: BTreeSet<u64> = look().unwrap().iter().map(|connection| connection.inode).collect();
        let end = Instant::now() + Duration::from_secs(20);
        let mut ended = 0;
        while ended == 0 && Instant::now() < end {
            ended = match end_idle_of(rustix::process::getpid(), &mut these, look) {
                Ok(seen) => seen.ended,
                Err(_) => break,
            };
            std::thread::sleep(Duration::from_millis(10));
        }
        let last = look();
        // Ends both threads where nothing else has; by then the other side may have.
        let _ = over.shutdown(Shutdown::Both);
        asks.join().unwrap();
        drop(answers.join().unwrap());
        assert_eq!((ended, these.len()), (1, 0), "{last:?}");
    }

    #[test]
    fn a_process_that_is_gone_has_no_sockets() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        child.wait().unwrap();
        assert!(sockets(pid, &BTreeSet::from([1])).unwrap().is_empty());
    }
}
