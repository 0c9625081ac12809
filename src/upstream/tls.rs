//! TLS to an upstream.

#[cfg(feature = "tls")]
pub(super) use with::{Secure, Session};
#[cfg(not(feature = "tls"))]
pub(super) use without::{Secure, Session};

#[cfg(feature = "tls")]
mod with {
    use std::io::{self, ErrorKind, Read, Write};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection};
    use socket2::Socket;

    use super::super::settings::UpstreamTls;
    use super::super::unverified::Anyone;
    use crate::base::error::{Error, Result};
    use crate::base::pem;
    use crate::base::threads::lock;

    /// Whom sessions are for, and who is trusted to say so.
    #[derive(Debug, Clone)]
    pub struct Secure {
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    }

    impl Secure {
        /// Errors: the name is none that a certificate can have, or the authorities can't be read
        /// ([`Error::Tls`]).
        pub fn new(host: &str, settings: &UpstreamTls) -> Result<Secure> {
            let unusable = |error: &dyn std::fmt::Display| Error::Tls(format!("{host}: {error}"));
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map_err(|error| unusable(&error))?;
            let builder = match settings.verify {
                true => builder.with_root_certificates(pem::roots(settings.ca_file.as_deref())?),
                false => builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(Anyone(provider))),
            };
            let mut config = builder.with_no_client_auth();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok(Secure {
                config: Arc::new(config),
                name: ServerName::try_from(host.to_owned()).map_err(|error| unusable(&error))?,
            })
        }

        /// Agrees on a session. From here on the socket doesn't block.
        ///
        /// Errors: there is no agreement by `deadline`, or who is there can't be trusted.
        pub fn agree(&self, socket: &Socket, deadline: Instant) -> io::Result<Session> {
            socket.set_nonblocking(true)?;
            let new = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
            let mut tls = new.map_err(io::Error::other)?;
            while tls.is_handshaking() || tls.wants_write() {
                let step = match tls.wants_write() {
                    true => tls.write_tls(&mut &*socket),
                    false => receive(&mut tls, socket),
                };
                match step {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        let events = match tls.wants_write() {
                            true => PollFlags::OUT,
                            false => PollFlags::IN,
                        };
                        let left = deadline.saturating_duration_since(Instant::now());
                        wait(socket, events, Some(left))?;
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(Session(Mutex::new(tls)))
        }
    }

    /// What both sides have agreed on. Nobody waits under its lock: one thread may wait for bytes while
    /// another one sends.
    #[derive(Debug)]
    pub struct Session(Mutex<ClientConnection>);

    impl Session {
        pub fn is_sending(&self) -> bool {
            lock(&self.0).wants_write()
        }

        pub fn try_write(&self, socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
            let mut tls = lock(&self.0);
            let is_free = flush(&mut tls, socket)?;
            let count = tls.writer().write(bytes)?;
            flush(&mut tls, socket)?;
            match count == 0 && !(is_free && bytes.is_empty()) {
                true => Err(ErrorKind::WouldBlock.into()),
                false => Ok(count),
            }
        }

        pub fn try_read(&self, socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
            let mut tls = lock(&self.0);
            loop {
                match tls.reader().read(buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    other => return other,
                }
                receive(&mut tls, socket)?;
                // What it was may want an answer. Who can't send any more can still read.
                let _ = flush(&mut tls, socket);
            }
        }

        pub fn read(&self, socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
            loop {
                match self.try_read(socket, buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        wait(socket, PollFlags::IN, socket.read_timeout()?)?;
                    }
                    other => return other,
                }
            }
        }

        pub fn write(&self, socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
            let mut sent = None;
            loop {
                // Until all that was taken is on its way: who writes last may not come again.
                match self.try_write(socket, if sent.is_none() { bytes } else { &[] }) {
                    Ok(count) if self.is_sending() => sent = sent.or(Some(count)),
                    Ok(count) => return Ok(sent.unwrap_or(count)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                wait(socket, PollFlags::OUT, socket.write_timeout()?)?;
            }
        }

        pub fn close(&self, socket: &Socket) {
            lock(&self.0).send_close_notify();
            let _ = self.write(socket, &[]);
        }
    }

    // Reads what is there, and understands it.
    fn receive(tls: &mut ClientConnection, socket: &Socket) -> io::Result<usize> {
        let count = tls.read_tls(&mut &*socket)?;
        tls.process_new_packets()
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        Ok(count)
    }

    // Sends what is to be sent, as far as it is taken; returns whether that was all.
    fn flush(tls: &mut ClientConnection, socket: &Socket) -> io::Result<bool> {
        while tls.wants_write() {
            match tls.write_tls(&mut &*socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn wait(socket: &Socket, events: PollFlags, time: Option<Duration>) -> io::Result<()> {
        let time = time.map(Timespec::try_from).transpose();
        let time = time.map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(socket, events)], time.as_ref()) {
            Ok(0) => Err(ErrorKind::TimedOut.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Without the feature there is no session.
#[cfg(not(feature = "tls"))]
mod without {
    use std::io;
    use std::time::Instant;

    use socket2::Socket;

    use super::super::settings::UpstreamTls;
    use crate::base::error::{Error, Result};

    #[derive(Debug, Clone)]
    pub enum Secure {}

    impl Secure {
        pub fn new(_: &str, _: &UpstreamTls) -> Result<Secure> {
            let message = "this program was built without the feature tls";
            Err(Error::Tls(message.into()))
        }

        pub fn agree(&self, _: &Socket, _: Instant) -> io::Result<Session> {
            match *self {}
        }
    }

    #[derive(Debug)]
    pub enum Session {}

    impl Session {
        pub fn is_sending(&self) -> bool {
            match *self {}
        }

        pub fn try_write(&self, _: &Socket, _: &[u8]) -> io::Result<usize> {
            match *self {}
        }

        pub fn try_read(&self, _: &Socket, _: &mut [u8]) -> io::Result<usize> {
            match *self {}
        }

        pub fn read(&self, _: &Socket, _: &mut [u8]) -> io::Result<usize> {
            match *self {}
        }

        pub fn write(&self, _: &Socket, _: &[u8]) -> io::Result<usize> {
            match *self {}
        }

        pub fn close(&self, _: &Socket) {
            match *self {}
        }
    }
}
