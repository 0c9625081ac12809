//! One connection to an upstream: TCP, a Unix socket, or TLS over the first. Several threads may read and
//! write at the same time.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::time::Duration;

use socket2::Socket;

use super::tls::Session;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    tls: Option<Session>,
}

impl Connection {
    /// One whose bytes are the other side's as they are.
    pub fn plain(socket: impl Into<Socket>) -> Connection {
        Connection {
            socket: socket.into(),
            tls: None,
        }
    }

    /// One with a TLS session, whose socket doesn't block.
    pub fn secure(socket: Socket, session: Session) -> Connection {
        Connection {
            socket,
            tls: Some(session),
        }
    }

    /// Whether it is TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The socket, to be waited for.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// How long a read may take; none: for ever.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout.map(not_nothing))
    }

    /// How long a write may take; none: for ever.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_write_timeout(timeout.map(not_nothing))
    }

    /// Sends what the other side takes at once, of these bytes and of those that are still on their way
    /// to it.
    ///
    /// Errors: it takes nothing ([`ErrorKind::WouldBlock`]), or the connection is broken.
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                self.socket.send_with_flags(bytes, flags)
            }
            Some(session) => session.try_write(&self.socket, bytes),
        }
    }

    /// Whether something that was taken is still on its way to the other side.
    pub fn is_sending(&self) -> bool {
        self.tls.as_ref().is_some_and(Session::is_sending)
    }

    /// Reads what is there, once the socket has something.
    ///
    /// Errors: there is nothing ([`ErrorKind::WouldBlock`]), or the connection is broken.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            // Whoever asks knows that there is something.
            None => (&self.socket).read(buffer),
            Some(session) => session.try_read(&self.socket, buffer),
        }
    }

    /// Whether it is open, and there is nothing to read.
    pub fn is_idle(&self) -> bool {
        let nothing = match &self.tls {
            None => {
                let mut byte = [MaybeUninit::uninit()];
                let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
                self.socket.recv_with_flags(&mut byte, flags)
            }
            Some(session) => session.try_read(&self.socket, &mut [0]),
        };
        matches!(nothing, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Says that nothing more is sent.
    pub fn end_sending(&self) {
        match &self.tls {
            Some(session) => session.close(&self.socket),
            None => drop(self.socket.shutdown(Shutdown::Write)),
        }
    }

    /// Breaks it off for whoever waits on it.
    pub fn cut(&self) {
        // So that it is reset once it is closed. With an orderly end, a service that waits to send more would go on
        // waiting, a minute or longer: it is not told that there is room again.
        let _ = self.socket.set_linger(Some(Duration::ZERO));
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

// The system counts in microseconds, and takes none of them for no time-out.
fn not_nothing(timeout: Duration) -> Duration {
    timeout.max(Duration::from_micros(1))
}

impl Read for &Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => (&self.socket).read(buffer),
            Some(session) => session.read(&self.socket, buffer),
        }
    }
}

impl Write for &Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => (&self.socket).write(bytes),
            Some(session) => session.write(&self.socket, bytes),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.tls {
            None => (&self.socket).write_vectored(parts),
            // A record for each would be many small ones.
            Some(session) => {
                let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
                session.write(&self.socket, &parts.concat())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_moment_is_not_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let connection = Connection::plain(stream);
        for nanos in [0, 1, 999, 1000] {
            let moment = Some(Duration::from_nanos(nanos));
            connection.set_read_timeout(moment).unwrap();
            assert!(connection.socket().read_timeout().unwrap().is_some());
            connection.set_write_timeout(moment).unwrap();
            assert!(connection.socket().write_timeout().unwrap().is_some());
        }
    }

    #[test]
    fn who_still_sends_when_it_is_cut_notices() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let connection = Connection::plain(socket);
        let (mut service, _) = listener.accept().unwrap();
        // Until neither side has room for more.
        service
            .set_write_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        while service.write(&[0; 65536]).is_ok() {}
        connection.cut();
        // What has come can still be read.
        while (&connection)
            .read(&mut [0; 65536])
            .is_ok_and(|count| count > 0)
        {}
        drop(connection);
        service
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let end = std::iter::repeat_with(|| service.write(&[0; 65536])).find_map(Result::err);
        assert_ne!(end.unwrap().kind(), ErrorKind::WouldBlock);
    }
}
