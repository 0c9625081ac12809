//! What a front and a handler exchange.
//!
//! A front is an HTTP server: it owns sockets and threads, reads requests, calls the one
//! [`Handler`], and writes what that returns. A handler knows nothing of sockets and may block.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use http::{Method, Uri};
use socket2::SockRef;

use super::options::HttpLimits;
use crate::base::error::Result;
use crate::http::{Request, Response};

/// In which form a handler takes a request's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// All of it at once.
    Whole,
    /// All of it at once up to so many bytes, and else as it comes; and what a client sends once its
    /// connection is upgraded.
    Stream(usize),
}

/// Who broke an answer off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The client has gone, or takes it too slowly.
    Client,
    /// Where the answer came from.
    Source,
}

impl Cut {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Cut::Client => "client",
            Cut::Source => "source",
        }
    }
}

/// Answers requests. Called on many threads at a time; may block.
pub trait Handler: Send + Sync + 'static {
    /// In which form it takes the body of a request, of which only the head is here yet.
    fn takes(&self, _head: &Request) -> Takes {
        Takes::Whole
    }

    /// Answers one request of a client.
    fn handle(&self, request: Request, client: &Client<'_>) -> Response;

    /// Takes note of what became of a request: once for each, when its answer was sent, or was not.
    fn ended(&self, _exchange: &Exchange<'_>) {}
}

/// A request and what became of it.
pub struct Exchange<'a> {
    /// Where its connection comes from.
    pub peer: SocketAddr,
    /// What was asked for, unless that could not be read.
    pub asked: Option<(&'a Method, &'a Uri)>,
    /// The answer.
    pub response: &'a Response,
    /// How many bytes of the request's body were read.
    pub received: u64,
    /// How many bytes of the answer's body were sent.
    pub sent: u64,
    /// Who broke the answer off; none: it was sent to its end, as far as is known here.
    pub cut: Option<Cut>,
    /// How long all of it took, since the request was read (with tiny_http: since it began).
    pub took: Duration,
}

/// Who sent a request.
pub struct Client<'a> {
    /// Where the connection comes from.
    pub peer: SocketAddr,
    pub(super) connection: Option<&'a TcpStream>,
}

impl Client<'_> {
    /// One that never hangs up.
    #[cfg(test)]
    pub(crate) fn patient() -> Client<'static> {
        Client {
            peer: SocketAddr::from(([127, 0, 0, 1], 1)),
            connection: None,
        }
    }

    /// Whether an answer may be sent to it as it comes: one that is cut off must not look whole, and
    /// tiny_http can't close a connection.
    pub fn takes_streams(&self) -> bool {
        self.connection.is_some()
    }

    /// Whether it has closed the connection, so that nobody will read the answer. A client that
    /// has closed only its own direction counts as gone too: the two can't be told apart.
    pub fn has_hung_up(&self) -> bool {
        let Some(connection) = self.connection else {
            return false;
        };
        // Another thread may be reading the request's body.
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(connection).recv_with_flags(&mut byte, flags) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        }
    }
}

impl<F> Handler for F
where
    F: Fn(Request, &Client<'_>) -> Response + Send + Sync + 'static,
{
    fn handle(&self, request: Request, client: &Client<'_>) -> Response {
        self(request, client)
    }
}

/// A running HTTP server.
pub trait Front: Send + Sync {
    /// The address it listens on, with the real port.
    fn address(&self) -> SocketAddr;

    /// Bounds further connections like this. Returns whether it can do that.
    fn set_limits(&self, _limits: &HttpLimits) -> bool {
        false
    }

    /// Accepts no more connections, lets the requests in hand be answered, and joins its threads.
    ///
    /// Errors: a request is still being answered at `deadline`
    /// ([`Error::Thread`](crate::base::error::Error::Thread)).
    fn stop(self: Box<Self>, deadline: Instant) -> Result<()>;
}
