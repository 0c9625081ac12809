//! What is wrong with a request that is not HTTP, or more than is allowed.

use std::borrow::Cow;

use http::StatusCode;

/// Why a request is refused. The connection is closed after the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRequest {
    /// The status to answer with.
    pub status: StatusCode,
    /// What is wrong.
    pub reason: Cow<'static, str>,
}

impl BadRequest {
    /// A 400 with this reason.
    pub const fn new(reason: &'static str) -> BadRequest {
        BadRequest::with(StatusCode::BAD_REQUEST, reason)
    }

    /// Another status with this reason.
    pub const fn with(status: StatusCode, reason: &'static str) -> BadRequest {
        BadRequest {
            status,
            reason: Cow::Borrowed(reason),
        }
    }

    /// A 413 for a body of more than so many bytes.
    pub fn body_over(limit: usize) -> BadRequest {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        BadRequest::over(status, "the body is too large", "max_body_bytes", limit)
    }

    /// What is refused by a setting of this gateway, which is named.
    pub fn over(status: StatusCode, what: &str, setting: &str, value: usize) -> BadRequest {
        BadRequest {
            status,
            reason: format!("{what} ({setting} = {value} of the gateway)").into(),
        }
    }
}
