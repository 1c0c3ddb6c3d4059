//! Questions to the kernel over netlink, and its answers, which come in parts.

use netlink_packet_core::{
    NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::marker::PhantomData;

/// One of the kernel's subsystems, which speaks in messages of this kind.
pub(super) struct Netlink<T>(Socket, PhantomData<T>);

impl<T: NetlinkSerializable + NetlinkDeserializable> Netlink<T> {
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket, PhantomData))
    }

    pub(super) fn say(&self, what: T, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(what));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0).map(drop)
    }

    /// One part of the kernel's answer; false at its end. What the kernel refuses is an error.
    pub(super) fn answer(&self, take: &mut dyn FnMut(T) -> io::Result<()>) -> io::Result<bool> {
        let (bytes, _) = self.0.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<T>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            match message.payload {
                NetlinkPayload::InnerMessage(said) => take(said)?,
                NetlinkPayload::Done(end) if end.code == 0 => return Ok(false),
                // A kernel that cannot list what is asked for says so here.
                NetlinkPayload::Done(end) => return Err(io::Error::from_raw_os_error(end.code.saturating_abs())),
                // An acknowledgement.
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(false),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
        Ok(true)
    }
}
