//! What the kernel still knows of connections that are over. It goes on to send what comes from the port of one that the apiserver has reset
//! where that one went, past every NAT rule, and so a new connection from there, until nothing has come from that port for ten seconds; only after
//! an orderly end, or a reset by the client, does it begin anew (`nf_conntrack_tcp_packet`; seen on Linux 6.18). While new connections are to
//! go elsewhere such a connection would be refused. So what is over is forgotten.

use super::connections::{Asking, cannot_list};
use super::netlink::Netlink;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

/// Connections from outside to this node's apiserver, to be forgotten once they are over.
pub(super) struct Over {
    own: SocketAddr,
    tracking: Netlink<NetfilterMessage>,
    /// Their other ends.
    there: BTreeSet<SocketAddr>,
}

impl Over {
    /// Those that are there now, and those of which only the memory is left: one walk over all that the kernel tracks, which may be a hundred
    /// thousand entries.
    pub(super) fn new(own: SocketAddr) -> Result<Self, String> {
        let tracking = Netlink::open(NETLINK_NETFILTER).map_err(|error| wrong(&error))?;
        let mut over = Self { own, tracking, there: BTreeSet::new() };
        over.there = over.tracked().map_err(|error| wrong(&error))?;
        Ok(over)
    }

    /// Forgets those that are over since the last look.
    pub(super) fn forget(&mut self) -> Result<(), String> {
        let asking = Asking::new().map_err(|error| cannot_list(&error))?;
        let mut now = asking.all(self.own).map_err(|error| cannot_list(&error))?;
        for client in self.there.difference(&now).copied().collect::<Vec<_>>() {
            // A list may lack one that is there, when others came and went while it was told.
            if asking.is_over(self.own, client).map_err(|error| cannot_list(&error))? {
                self.forget_one(client).map_err(|error| wrong(&error))?;
            } else {
                now.insert(client);
            }
        }
        self.there = now;
        Ok(())
    }

    /// The other ends of all that is tracked to the apiserver, whatever has become of it.
    fn tracked(&self) -> io::Result<BTreeSet<SocketAddr>> {
        let mut found = BTreeSet::new();
        self.say(ConntrackMessage::Get(Vec::new()), NLM_F_DUMP)?;
        let mut take = |said: NetfilterMessage| {
            if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = said.inner {
                found.extend(client(self.own, &attributes));
            }
            Ok(())
        };
        while self.tracking.answer(&mut take)? {}
        Ok(found)
    }

    /// Named by the addresses of what the apiserver sends on it, as its socket has them.
    fn forget_one(&self, client: SocketAddr) -> io::Result<()> {
        let addresses = vec![IPTuple::SourceAddress(self.own.ip()), IPTuple::DestinationAddress(client.ip())];
        let ports = vec![
            ProtoTuple::Protocol(Protocol::Tcp),
            ProtoTuple::SourcePort(self.own.port()),
            ProtoTuple::DestinationPort(client.port()),
        ];
        let answers = ConntrackAttribute::CtaTupleReply(vec![Tuple::Ip(addresses), Tuple::Proto(ports)]);
        self.say(ConntrackMessage::Delete(vec![answers]), NLM_F_ACK)?;
        match self
            .tracking
            .answer(&mut |said| Err(io::Error::other(format!("an answer that is not understood: {said:?}"))))
        {
            Ok(_) => Ok(()),
            // Forgotten already, or it never knew.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn say(&self, what: ConntrackMessage, flags: u16) -> io::Result<()> {
        let family = if self.own.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
        self.tracking.say(NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), what), flags)
    }
}

/// The other end of an entry in which it is the apiserver at `own` that answers; none of any other entry.
fn client(own: SocketAddr, entry: &[ConntrackAttribute]) -> Option<SocketAddr> {
    let answers =
        entry.iter().find_map(|it| if let ConntrackAttribute::CtaTupleReply(it) = it { Some(it) } else { None })?;
    let (mut from, mut to, mut tcp) = ((None, None), (None, None), false);
    for part in answers {
        match part {
            Tuple::Ip(addresses) => addresses.iter().for_each(|it| match it {
                IPTuple::SourceAddress(address) => from.0 = Some(*address),
                IPTuple::DestinationAddress(address) => to.0 = Some(*address),
                _ => {}
            }),
            Tuple::Proto(ports) => ports.iter().for_each(|it| match it {
                ProtoTuple::Protocol(protocol) => tcp = *protocol == Protocol::Tcp,
                ProtoTuple::SourcePort(port) => from.1 = Some(*port),
                ProtoTuple::DestinationPort(port) => to.1 = Some(*port),
                _ => {}
            }),
            _ => {}
        }
    }
    let of_own = tcp && from == (Some(own.ip()), Some(own.port()));
    (of_own && to.0 != Some(own.ip())).then_some(())?;
    Some(SocketAddr::new(to.0?, to.1?))
}

fn wrong(error: &io::Error) -> String {
    format!("the kernel's connection tracking: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn only_an_entry_in_which_the_apiserver_answers_is_one_of_its_connections() {
        let own = SocketAddr::from(([10, 10, 0, 11], 6443));
        let entry = |from: [u8; 4], port, to: [u8; 4], protocol| {
            let (from, to) = (IpAddr::from(from), IpAddr::from(to));
            let tuple = |from, from_port, to, to_port| {
                let addresses = vec![IPTuple::SourceAddress(from), IPTuple::DestinationAddress(to)];
                let ports = [ProtoTuple::SourcePort(from_port), ProtoTuple::DestinationPort(to_port)];
                vec![
                    Tuple::Ip(addresses),
                    Tuple::Proto([ProtoTuple::Protocol(protocol)].into_iter().chain(ports).collect()),
                ]
            };
            // What was asked for may have been the Service's address.
            let asked = tuple(to, 40_000, IpAddr::from([10, 96, 0, 1]), 443);
            let answers = tuple(from, port, to, 40_000);
            client(own, &[ConntrackAttribute::CtaTupleOrig(asked), ConntrackAttribute::CtaTupleReply(answers)])
        };
        let pod = [10, 244, 0, 7];
        assert_eq!(entry([10, 10, 0, 11], 6443, pod, Protocol::Tcp), Some(SocketAddr::from((pod, 40_000))));
        assert_eq!(entry([10, 10, 0, 12], 6443, pod, Protocol::Tcp), None, "handed over: a peer answers");
        assert_eq!(entry([10, 10, 0, 11], 2379, pod, Protocol::Tcp), None, "etcd's");
        assert_eq!(entry([10, 10, 0, 11], 6443, pod, Protocol::Udp), None);
        assert_eq!(entry([10, 10, 0, 11], 6443, [10, 10, 0, 11], Protocol::Tcp), None, "the node's own");
        assert_eq!(client(own, &[]), None);
    }
}
