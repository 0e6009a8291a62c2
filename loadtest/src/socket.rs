//! Sockets of either kind, TCP and Unix: opening, registering, reading.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{PATIENCE, Result};

/// Connects, from `source` if given. Reads wait for [`PATIENCE`].
pub(crate) fn tcp(server: SocketAddr, source: Option<Ipv4Addr>) -> Result<Socket> {
    let connect = || {
        let socket = open(server, source)?;
        socket.connect_timeout(&server.into(), PATIENCE)?;
        Ok(socket)
    };
    let socket = connect().map_err(|error| explained(&error))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Begins to connect, from `source` if given; it is done when the socket is ready to write, and failed if it then has an
/// error. Nothing waits in it.
pub(crate) fn begin_tcp(server: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<Socket> {
    let socket = open(server, source)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&server.into()) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

fn open(server: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(IpAddr::V4(source), 0).into())?;
    }
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// What to do about an error of connecting, where that is not plain.
pub(crate) fn explained(error: &io::Error) -> String {
    let advice = match Errno::from_io_error(error) {
        // of connect(2), and of bind(2) to any port
        Some(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE) => {
            "no port is left on this machine for one more connection: wait a minute, until those of closed ones are free \
             again, ask for fewer --clients, or widen `sysctl net.ipv4.ip_local_port_range`"
        }
        Some(Errno::MFILE) => {
            "the tester may open no more files: raise the hard limit (`ulimit -Hn`) or ask for fewer --clients"
        }
        Some(Errno::NFILE) => "this machine has no room for more open files: raise `sysctl fs.file-max`",
        _ => return error.to_string(),
    };
    format!("{error}: {advice}")
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

/// No longer told by the poll of `registry`.
pub(crate) fn deregister(registry: &Registry, socket: &Socket) -> io::Result<()> {
    registry.deregister(&mut SourceFd(&socket.as_raw_fd()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let words = |errno: Errno| explained(&errno.into());
        assert!(words(Errno::ADDRNOTAVAIL).contains("fewer --clients"));
        assert!(words(Errno::ADDRINUSE).contains("ip_local_port_range"));
        assert!(words(Errno::MFILE).contains("ulimit"));
        assert_eq!(words(Errno::CONNREFUSED), io::Error::from(Errno::CONNREFUSED).to_string());
        let foreign = tcp("127.0.0.1:1".parse().unwrap(), Some(Ipv4Addr::new(203, 0, 113, 1))).unwrap_err();
        assert!(foreign.to_string().contains("no port is left"), "{foreign}");
    }
}
