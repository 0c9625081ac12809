//! Connecting to an upstream, whatever leads there.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use http::Uri;
use socket2::Socket;
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
            let stream = UnixStream::connect(path);
            let named = |error| refused(format!("{}: {error}", path.display()));
            return Ok(Connection::plain(stream.map_err(named)?));
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
