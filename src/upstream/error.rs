//! Why an upstream gives no answer that can be used.

use std::fmt;

use http::StatusCode;

/// Why a call failed.
#[derive(Debug)]
pub enum UpstreamError {
    /// No connection could be made, so nothing was executed.
    Unreachable(String),
    /// The time was up. It may have been executed.
    TimedOut,
    /// The time was up in the middle of an answer with this status.
    Unfinished(StatusCode),
    /// The answer's body is over this limit, in bytes. It was executed.
    TooLarge(u64),
    /// The answer is of a type that has no end.
    Endless(String),
    /// The connection broke, or what came is not HTTP. It may have been executed.
    Broken(String),
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UpstreamError::Unreachable(reason) => {
                write!(f, "the upstream can't be reached: {reason}")
            }
            UpstreamError::TimedOut => f.write_str("the upstream did not answer in time"),
            UpstreamError::Unfinished(status) => write!(
                f,
                "the upstream began to answer ({}) but did not finish in time",
                status.as_u16()
            ),
            UpstreamError::TooLarge(limit) => write!(
                f,
                "the upstream's answer is larger than {limit} bytes (max_body_bytes of the agent)"
            ),
            UpstreamError::Endless(kind) => write!(
                f,
                "the upstream answers with {kind} without a length, which has no end and can't be carried: an answer is one message here"
            ),
            UpstreamError::Broken(reason) => write!(f, "the upstream failed: {reason}"),
        }
    }
}
