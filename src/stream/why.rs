//! Why a stream was given up, on both sides and in between.

use std::fmt;
use std::io;

/// Why a stream was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The client has closed its connection.
    ClientGone,
    /// The service's connection broke, or what it sent is not HTTP.
    UpstreamFailed,
    /// Nothing has moved for longer than `stream_idle_ms`.
    Idle,
    /// The other side has gone.
    PeerGone,
    /// This program stops.
    Stopping,
    /// The broker does not take its messages.
    Denied,
    /// The body is longer than a limit.
    TooLarge,
    /// The other side broke the rules.
    Violation,
    /// The other side does not know it, or does not say why.
    Unknown,
}

impl Why {
    const ALL: [Why; 9] = [
        Why::ClientGone,
        Why::UpstreamFailed,
        Why::Idle,
        Why::PeerGone,
        Why::Stopping,
        Why::Denied,
        Why::TooLarge,
        Why::Violation,
        Why::Unknown,
    ];

    /// The name on the wire and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::ClientGone => "client-gone",
            Why::UpstreamFailed => "upstream-failed",
            Why::Idle => "idle",
            Why::PeerGone => "peer-gone",
            Why::Stopping => "stopping",
            Why::Denied => "denied",
            Why::TooLarge => "too-large",
            Why::Violation => "violation",
            Why::Unknown => "unknown",
        }
    }

    pub(super) fn read(text: &str) -> Why {
        let found = Why::ALL.into_iter().find(|why| why.as_str() == text);
        found.unwrap_or(Why::Unknown)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for Why {}

impl From<Why> for io::Error {
    fn from(why: Why) -> io::Error {
        io::Error::other(why)
    }
}
