//! Connections from other machines to the node's own apiserver, and how those that are idle are ended while new ones go elsewhere.

use super::command::{Deadline, ask};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::BTreeMap;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// How long the apiserver must have had the last word on a connection that counts as idle.
const IDLE: Duration = Duration::from_millis(100);

/// What became of the connections from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SentAway {
    /// Ended here.
    pub(super) ended: usize,
    /// Still there.
    pub(super) left: usize,
}

/// One established connection, as `ss` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Connection {
    remote: SocketAddr,
    inode: u64,
    /// Bytes that nobody has read or acknowledged yet.
    queued: u64,
    /// Milliseconds since something was sent, and since something came.
    sent: u64,
    came: u64,
}

impl Connection {
    /// Whether nobody waits for anything on it: the apiserver spoke last, a while ago. A request that is being worked on came later
    /// than the answer before it.
    const fn idle(&self) -> bool {
        self.queued == 0 && self.sent <= self.came && self.sent as u128 >= IDLE.as_millis()
    }
}

/// Ends those connections from outside that are idle, as if the client had gone: the apiserver then closes them properly, and the
/// client opens another, which the hand-over sends to a peer. Otherwise an apiserver that is told to stop answers some requests on
/// connections that it has with "apiserver is shutting down", and watches keep it for the whole of its grace period.
pub(super) async fn end_idle(apiserver: Pid, own: SocketAddr, deadline: Deadline) -> Result<SentAway, String> {
    let outside = outside(own, deadline).await?;
    let idle: BTreeMap<u64, SocketAddr> =
        outside.iter().filter(|it| it.idle()).map(|it| (it.inode, it.remote)).collect();
    let ended = end_each(apiserver, &idle)?;
    Ok(SentAway { ended, left: outside.len().saturating_sub(ended) })
}

/// How many connections from outside are established.
pub(super) async fn count(own: SocketAddr, deadline: Deadline) -> Result<usize, String> {
    Ok(outside(own, deadline).await?.len())
}

async fn outside(own: SocketAddr, deadline: Deadline) -> Result<Vec<Connection>, String> {
    let port = format!(":{}", own.port());
    let arguments = ["--tcp", "--info", "--numeric", "--extended", "--no-header", "--oneline"];
    let which = ["state", "established", "sport", "=", &port];
    let said = ask("ss", &[&arguments[..], &which[..]].concat(), deadline).await.map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for line in said.stdout.lines() {
        let connection = parse(line).ok_or_else(|| format!("ss said what is not understood: `{line}`"))?;
        let from = connection.remote.ip();
        if from != own.ip() && !from.is_loopback() {
            found.push(connection);
        }
    }
    Ok(found)
}

/// `0 0 10.10.0.11:6443 10.10.0.12:43212 ino:4711 sk:5 … lastsnd:204 lastrcv:504 …`; what was never sent or received is as old as the
/// connection.
fn parse(line: &str) -> Option<Connection> {
    let mut words = line.split_whitespace();
    let unread: u64 = words.next()?.parse().ok()?;
    let unsent: u64 = words.next()?.parse().ok()?;
    let remote: SocketAddr = words.nth(1)?.parse().ok()?;
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    let number = |name: &str| {
        let mut values = line.split_whitespace().filter_map(|word| word.strip_prefix(name));
        values.next().and_then(|value| value.parse().ok())
    };
    Some(Connection {
        remote,
        inode: number("ino:")?,
        queued: unread + unsent,
        sent: number("lastsnd:").unwrap_or(0),
        came: number("lastrcv:").unwrap_or(0),
    })
}

/// Lets the apiserver read the end of each of these connections, but where something has come meanwhile. Gives how many.
fn end_each(apiserver: Pid, idle: &BTreeMap<u64, SocketAddr>) -> Result<usize, String> {
    if idle.is_empty() {
        return Ok(0);
    }
    let why = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let process = pidfd_open(apiserver, PidfdFlags::empty()).map_err(|error| why("kube-apiserver", &error))?;
    let folder = format!("/proc/{}/fd", apiserver.as_raw_nonzero());
    let mut ended = 0;
    for entry in std::fs::read_dir(&folder).map_err(|error| why(&folder, &error))?.flatten() {
        // One that was closed while we look is not the one.
        let Ok(link) = std::fs::read_link(entry.path()) else { continue };
        let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        let Some(remote) = inode.and_then(|inode: u64| idle.get(&inode)) else { continue };
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let socket: OwnedFd = match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::BADF) => continue,
            Err(error) => return Err(why("a connection of kube-apiserver cannot be had", &error)),
        };
        let unread = rustix::io::ioctl_fionread(&socket).map_err(|error| why("a connection", &error))?;
        let socket = TcpStream::from(socket);
        let same =
            socket.peer_addr().is_ok_and(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()) == *remote);
        if same && unread == 0 && socket.shutdown(Shutdown::Read).is_ok() {
            ended += 1;
        }
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    const IDLE_LINE: &str = "0 0 [::ffff:10.10.0.11]:6443 [::ffff:10.10.0.12]:43212 ino:4711 sk:5 cgroup:/ <-> ts sack cubic \
        rto:204 lastsnd:204 lastrcv:504 lastack:204 minrtt:0.03";

    #[test]
    fn what_ss_shows_is_read() {
        let idle = parse(IDLE_LINE).unwrap();
        assert_eq!(idle.remote, "10.10.0.12:43212".parse().unwrap());
        assert_eq!((idle.inode, idle.queued, idle.sent, idle.came), (4711, 0, 204, 504));
        assert!(idle.idle());
        assert_eq!(parse("0 0 10.10.0.11:6443"), None);
        assert_eq!(parse(&IDLE_LINE.replace("ino:4711", "")), None, "nothing could be ended by it");
    }

    #[test]
    fn a_connection_is_idle_when_the_server_spoke_last_and_a_while_ago() {
        for (from, to) in [
            ("0 0 [", "17 0 ["),
            ("0 0 [", "0 17 ["),
            ("lastsnd:204", "lastsnd:99"),
            // A request that is being worked on.
            ("lastrcv:504", "lastrcv:150"),
        ] {
            let other = parse(&IDLE_LINE.replacen(from, to, 1)).unwrap();
            assert!(!other.idle(), "{to}: {other:?}");
        }
    }

    /// This process stands for the apiserver: it has the sockets.
    #[test]
    fn the_server_of_an_idle_connection_reads_its_end_and_others_go_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pair = || {
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let ((mut asks, mut idle), (_silent, mut busy)) = (pair(), pair());
        let inode = |of: &std::net::TcpStream| {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(of))).unwrap();
            link.to_str().unwrap().trim_start_matches("socket:[").trim_end_matches(']').parse::<u64>().unwrap()
        };
        let of = |server: &std::net::TcpStream| BTreeMap::from([(inode(server), server.peer_addr().unwrap())]);
        let own = rustix::process::getpid();
        // Something came between the look and now.
        asks.write_all(b"?").unwrap();
        idle.peek(&mut [0]).unwrap();
        assert_eq!(end_each(own, &of(&idle)), Ok(0));
        idle.read_exact(&mut [0]).unwrap();
        assert_eq!(end_each(own, &of(&idle)), Ok(1));
        assert_eq!(idle.read(&mut [0]).unwrap(), 0, "the end");
        idle.write_all(b"farewell").unwrap();
        asks.read_exact(&mut [0; 8]).unwrap();
        busy.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(busy.read(&mut [0]).is_err(), "nobody ended this one");
        // A socket that another has by now.
        let another = BTreeMap::from([(inode(&busy), "127.0.0.1:1".parse().unwrap())]);
        assert_eq!(end_each(own, &another), Ok(0));
    }
}
