//! What the kernel still knows of connections that are over. It goes on for ten seconds to send what comes from the port of one that the
//! apiserver has reset where that one went, past every rule, and so a new connection from there: only after an orderly end, or a reset by
//! the client, does it begin anew (`nf_conntrack_tcp_packet`; seen on Linux 6.18). While new connections are to go elsewhere such a connection
//! would be refused. So what is over is forgotten.

use super::connections;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_packet_sock_diag::inet::SocketId;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

/// Connections from outside to this node's apiserver, to be forgotten once they are over.
pub(super) struct Over {
    own: SocketAddr,
    tracking: Socket,
    there: BTreeMap<SocketAddr, SocketId>,
}

impl Over {
    /// Those that are there now; what is over before is not known.
    pub(super) fn new(own: SocketAddr) -> Result<Self, String> {
        let tracking = Socket::new(NETLINK_NETFILTER).and_then(|mut socket| {
            socket.bind_auto()?;
            socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
            Ok(socket)
        });
        Ok(Self { own, tracking: tracking.map_err(|error| wrong(&error))?, there: connections::all(own)? })
    }

    /// Forgets those that are over since the last look.
    pub(super) fn forget(&mut self) -> Result<(), String> {
        let now = connections::all(self.own)?;
        for (client, connection) in &self.there {
            if !now.contains_key(client) && connections::is_over(connection)? {
                self.forget_one(*client).map_err(|error| wrong(&error))?;
            }
        }
        self.there = now;
        Ok(())
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
        let family = if client.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
        let delete = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), ConntrackMessage::Delete(vec![answers]));
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let mut order = NetlinkMessage::new(header, delete.into());
        order.finalize();
        let mut bytes = vec![0; order.buffer_len()];
        order.serialize(&mut bytes);
        self.tracking.send(&bytes, 0)?;
        let (bytes, _) = self.tracking.recv_from_full()?;
        let said = NetlinkMessage::<NetfilterMessage>::deserialize(&bytes).map_err(io::Error::other)?;
        match said.payload {
            NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
            // Forgotten already, or it never knew.
            NetlinkPayload::Error(error) if error.to_io().kind() == io::ErrorKind::NotFound => Ok(()),
            NetlinkPayload::Error(error) => Err(error.to_io()),
            other => Err(io::Error::other(format!("an answer that is not understood: {other:?}"))),
        }
    }
}

fn wrong(error: &io::Error) -> String {
    format!("the kernel's connection tracking: {error}")
}
