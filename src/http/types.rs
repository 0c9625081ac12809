//! Requests and answers, and what they are called.

use std::fmt;
use std::io::Write;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::body::Body;
use crate::base::random;

/// A request.
pub type Request = http::Request<Body>;

/// An answer.
pub type Response = http::Response<Body>;

/// The status of an answer that nobody will read, since its client has gone: the log shows it, and the
/// connection is closed without a word. Others use this number too, for the same.
pub fn client_gone() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT)
}

/// The header that names a request in answers and logs.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Marks a [`Response`] that is not to be sent: its client has gone.
#[derive(Debug, Clone, Copy)]
pub struct Unanswered;

/// Whether an answer with this status has a body (RFC 9110, section 6.4.1).
pub fn has_body(status: StatusCode) -> bool {
    !(status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED)
}

/// The name of one request: in the header `X-Request-Id`, in problem documents, in log lines.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId {
    // Here and not in a string: it is repeated in many places for each request. Zeros behind it.
    text: [u8; MAX_REQUEST_ID],
    length: u8,
}

const MAX_REQUEST_ID: usize = 64;

impl RequestId {
    /// Makes a new one.
    pub fn random() -> RequestId {
        let number = random::bytes().map_or(0, u64::from_ne_bytes);
        let mut id = [0; 16];
        // As many digits as there is room for.
        let _ = write!(&mut id[..], "{number:016x}");
        RequestId::of_bytes(&id)
    }

    fn of_bytes(id: &[u8]) -> RequestId {
        let mut text = [0; MAX_REQUEST_ID];
        text[..id.len()].copy_from_slice(id);
        RequestId {
            text,
            length: id.len() as u8,
        }
    }

    /// Takes the caller's own, if it sent one that is safe to repeat; else makes one.
    pub fn of(headers: &HeaderMap) -> RequestId {
        RequestId::given(headers.get(X_REQUEST_ID)).unwrap_or_else(RequestId::random)
    }

    /// Takes one that is safe to repeat: 1 to 64 of the characters `A-Z a-z 0-9 . _ -`.
    pub fn given(value: Option<&HeaderValue>) -> Option<RequestId> {
        let allowed = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        let sane = |id: &&[u8]| (1..=MAX_REQUEST_ID).contains(&id.len());
        let id = value.map(HeaderValue::as_bytes).filter(sane)?;
        id.iter().all(allowed).then(|| RequestId::of_bytes(id))
    }

    /// The value of the header `X-Request-Id`.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(self.as_str()).ok()
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({self})")
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
