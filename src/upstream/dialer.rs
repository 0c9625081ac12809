//! Connecting to an upstream, whatever leads there.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http::Uri;
use socket2::{Domain, SockAddr, Socket, Type};
use ureq::unversioned::resolver::DefaultResolver;

use super::connection::Connection;
use super::resolver::Caching;
use super::settings::UpstreamSettings;
use super::tls::Secure;
use crate::base::connect::is_timeout;
use crate::base::error::Result;

/// Connects to one upstream. Clones share what they know.
#[derive(Debug, Clone)]
pub(super) struct Dialer {
    resolver: Caching<DefaultResolver>,
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    Tcp,
    Tls(Box<Secure>),
    Unix(PathBuf),
}

impl Dialer {
    /// Errors: the files for TLS can't be used
    /// ([`Error::Tls`](crate::base::error::Error::Tls)).
    pub fn new(upstream: &UpstreamSettings) -> Result<Dialer> {
        let url = &upstream.url;
        let way = match (url.socket(), url.scheme()) {
            (Some(path), _) => Way::Unix(path.to_owned()),
            (None, "https") => Way::Tls(Box::new(Secure::new(url.host(), &upstream.tls)?)),
            _ => Way::Tcp,
        };
        Ok(Dialer {
            resolver: Caching::new(DefaultResolver::default()),
            way,
        })
    }

    /// What finds the addresses to connect to.
    pub fn resolver(&self) -> &Caching<DefaultResolver> {
        &self.resolver
    }

    /// Connects to the first of these addresses that answers, unless there is another way.
    ///
    /// Errors: there is no connection by `deadline`; whatever is wrong, nothing was sent that could be
    /// executed ([`ErrorKind::TimedOut`], [`ErrorKind::ConnectionRefused`], or what the system says).
    pub fn connect(
        &self,
        uri: &Uri,
        addresses: &[SocketAddr],
        deadline: Instant,
    ) -> io::Result<Connection> {
        if let Way::Unix(path) = &self.way {
            return connect_unix(path, deadline).map(Connection::plain);
        }
        let stream = self.resolver.connect(uri, addresses, deadline)?;
        stream.set_nodelay(true)?;
        let Way::Tls(secure) = &self.way else {
            return Ok(Connection::plain(stream));
        };
        let socket = Socket::from(stream);
        match secure.agree(&socket, deadline) {
            Ok(session) => Ok(Connection::secure(socket, session)),
            Err(error) if is_timeout(&error) => Err(error),
            Err(error) => Err(refused(describe(&error.to_string()))),
        }
    }
}

// The listener may be so busy that it takes nobody for now.
fn connect_unix(path: &Path, deadline: Instant) -> io::Result<Socket> {
    let left = deadline.saturating_duration_since(Instant::now());
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(left.max(Duration::from_millis(1))))?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => socket.set_write_timeout(None).map(|()| socket),
        Err(error) if is_timeout(&error) => Err(ErrorKind::TimedOut.into()),
        Err(error) => Err(refused(format!("{}: {error}", path.display()))),
    }
}

fn refused(words: String) -> io::Error {
    io::Error::new(ErrorKind::ConnectionRefused, words)
}

fn describe(reason: &str) -> String {
    let advice = match reason {
        _ if reason.contains("UnknownIssuer") => {
            "; its certificate is not from an authority that is trusted here, see upstream_ca_file and upstream_verify"
        }
        _ if reason.contains("NotValidForName") || reason.contains("not valid for name") => {
            "; its certificate is for another name than the one in its URL"
        }
        _ if reason.contains("InvalidContentType") => "; it does not speak TLS there",
        _ => "",
    };
    format!("no TLS connection: {reason}{advice}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_that_takes_nobody_is_given_up() {
        let path = std::env::temp_dir().join(format!("recado-busy-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            let deadline = Instant::now() + Duration::from_millis(50);
            match connect_unix(&path, deadline) {
                Ok(socket) => waiting.push(socket),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100_000, "it takes everybody");
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(listener);
        let error = connect_unix(&path, Instant::now()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        std::fs::remove_file(&path).unwrap();
    }
}
