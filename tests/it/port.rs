//! A port for a server that is started by a test or a benchmark.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A free port of loopback that stays ours while the socket is there. Linux lets two sockets with `SO_REUSEADDR` share an
/// address while at most one of them listens, and gives a port that is taken by either to nobody who asks for any.
pub(crate) fn reserve_a_port() -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let address = socket.local_addr()?.as_socket().unwrap();
    Ok((socket, address))
}
