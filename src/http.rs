//! HTTP: what a front and a handler exchange, and the pieces of both fronts.
//!
//! A front is an HTTP server: it owns sockets and threads, reads requests, calls the one
//! [`Handler`], and writes what that returns. A handler knows nothing of sockets and may block.

pub mod chunked;
mod connection;
pub mod framing;
pub mod guarded;
pub mod head;
mod linger;
pub mod problem;
pub mod tiny;
pub mod upstream;

use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::error::Result;

/// A request with its whole body.
pub type Request = http::Request<Bytes>;
/// An answer with its whole body.
pub type Response = http::Response<Bytes>;

/// The status of an answer that nobody will read, since its client has gone: the log shows it, and the
/// connection is closed without a word. Others use this number too, for the same.
pub fn client_gone() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT)
}

/// The header that names a request in answers and logs.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers requests. Called on many threads at a time; may block.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request of a client.
    fn handle(&self, request: Request, client: &Client<'_>) -> Response;
}

/// Marks a [`Response`] that is not to be sent: its client has gone.
#[derive(Debug, Clone, Copy)]
pub struct Unanswered;

/// Who sent a request.
pub struct Client<'a> {
    /// Where the connection comes from.
    pub peer: SocketAddr,
    connection: Option<&'a TcpStream>,
}

impl Client<'_> {
    /// Whether it has closed the connection, so that nobody will read the answer. A client that
    /// has closed only its own direction counts as gone too: the two can't be told apart.
    pub fn has_hung_up(&self) -> bool {
        let Some(connection) = self.connection else {
            return false;
        };
        // Only this thread uses the connection, and it is not reading now.
        let _ = connection.set_nonblocking(true);
        let seen = connection.peek(&mut [0]);
        let _ = connection.set_nonblocking(false);
        match seen {
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

    /// Accepts no more connections, lets the requests in hand be answered, and joins its threads.
    ///
    /// Errors: a request is still being answered at `deadline`
    /// ([`Error::Thread`](crate::error::Error::Thread)).
    fn stop(self: Box<Self>, deadline: Instant) -> Result<()>;
}

/// Whether an answer with this status has a body (RFC 9110, section 6.4.1).
fn has_body(status: StatusCode) -> bool {
    !(status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED)
}

// What a read or a write says that its time-out ended.
pub(crate) fn is_timeout(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// The name of one request: in the header `X-Request-Id`, in problem documents, in log lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// Makes a new one.
    pub fn random() -> RequestId {
        RequestId(format!("{:016x}", getrandom::u64().unwrap_or_default()))
    }

    /// Takes the caller's own, if it sent one that is safe to repeat; else makes one.
    pub fn of(headers: &HeaderMap) -> RequestId {
        RequestId::given(headers.get(X_REQUEST_ID)).unwrap_or_else(RequestId::random)
    }

    /// Takes one that is safe to repeat: 1 to 64 of the characters `A-Z a-z 0-9 . _ -`.
    pub fn given(value: Option<&HeaderValue>) -> Option<RequestId> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let sane = |id: &&str| (1..=64).contains(&id.len()) && id.chars().all(allowed);
        value
            .and_then(|value| value.to_str().ok())
            .filter(sane)
            .map(|id| RequestId(id.to_owned()))
    }

    /// The value of the header `X-Request-Id`.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_that_could_do_harm_is_replaced() {
        let id = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, value.parse().unwrap());
            RequestId::of(&headers).to_string()
        };
        assert_eq!(id("abc-1.2_3"), "abc-1.2_3");
        for bad in ["", "a b", "a\"b", "<script>", &"x".repeat(65)] {
            assert_ne!(id(bad), bad);
            assert_eq!(id(bad).len(), 16);
        }
    }
}
