//! Listening, and waking who listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, TcpKeepalive, Type};

use crate::base::error::{Error, Result};

/// How many connections the system may accept before this program does.
const BACKLOG: i32 = 1024;
/// How many bytes of answers the system may hold for a client that takes them slowly; it would let
/// them grow to several MiB each.
const SEND_BUFFER: usize = 256 * 1024;

/// How long nothing may be heard of a client's system, before it counts as gone: one that sleeps, or has lost
/// its network, would keep its connection for a quarter of an hour.
const SILENT: Duration = Duration::from_secs(60);

/// Binds an address, so that errors name it. The system may hold more connections for us than the
/// 128 of the standard library, so that a burst of clients isn't put off.
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listen = || -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // Connections inherit all of these.
        socket.set_send_buffer_size(SEND_BUFFER)?;
        let keepalive = TcpKeepalive::new()
            .with_time(SILENT)
            .with_interval(SILENT / 6);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(SILENT))?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listen().map_err(|source| Error::Listen { address, source })
}

/// Wakes a thread that is blocked in `accept`, by connecting to it: the one way that every
/// system has.
pub(super) fn wake(address: SocketAddr) {
    let _ = connect(address);
}

/// Connects to a server of this process; one that listens on every address is reached on
/// loopback.
pub(super) fn connect(mut address: SocketAddr) -> std::io::Result<TcpStream> {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    TcpStream::connect_timeout(&address, Duration::from_secs(1))
}
