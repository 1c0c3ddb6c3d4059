//! Something between a client and a server that only passes bytes on, as a balancer or a rule that hands connections over does.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::{io, thread};

use anyhow::{Context, Result};

/// Passes every connection to `from` on to `to` until this program ends. One that cannot be passed on is closed.
///
/// # Errors
/// When nobody may listen at `from`.
pub fn pass_on(from: SocketAddr, to: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(from).with_context(|| format!("listen at {from}"))?;
    thread::spawn(move || {
        for here in listener.incoming() {
            let pair = || -> io::Result<_> {
                let (here, there) = (here?, TcpStream::connect(to)?);
                Ok([(here.try_clone()?, there.try_clone()?), (there, here)])
            };
            for (mut from, mut to) in pair().into_iter().flatten() {
                // Either side ends it.
                thread::spawn(move || io::copy(&mut from, &mut to));
            }
        }
    });
    Ok(())
}
