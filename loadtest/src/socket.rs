//! Sockets of either kind, TCP and Unix: opening, registering, reading.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{PATIENCE, Result};

/// Connects, from `source` if given. Reads wait for [`PATIENCE`].
pub(crate) fn tcp(server: SocketAddr, source: Option<Ipv4Addr>) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(IpAddr::V4(source), 0).into())?;
    }
    socket.connect_timeout(&server.into(), PATIENCE)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Connects to a path. Reads wait for [`PATIENCE`].
pub(crate) fn unix(path: &Path) -> Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// From now on nothing waits in `socket`; the poll of `registry` tells when it is ready, by edges.
pub(crate) fn register(registry: &Registry, socket: &Socket, token: Token, interest: Interest) -> Result<()> {
    socket.set_nonblocking(true)?;
    Ok(registry.register(&mut SourceFd(&socket.as_raw_fd()), token, interest)?)
}

/// Appends all there is to `input`; `false` at the end of the stream. Unless that `ends`, a short read means that nothing is
/// left (epoll(7)): so one read per event and not two.
pub(crate) fn receive(socket: &mut Socket, input: &mut Vec<u8>, ends: bool) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => {
                input.extend_from_slice(buffer.get(..count).unwrap_or_default());
                if count < buffer.len() && !ends {
                    return Ok(true);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
