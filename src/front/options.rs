//! Which front, and its bounds.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::wire::whole_bytes;

/// Which HTTP server api_1 uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum FrontKind {
    /// This crate's own: strict, bounded in every direction.
    #[default]
    Guarded,
    /// The tiny_http library.
    #[cfg(feature = "tiny-front")]
    TinyHttp,
}

impl fmt::Display for FrontKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FrontKind::Guarded => "guarded",
            #[cfg(feature = "tiny-front")]
            FrontKind::TinyHttp => "tiny_http",
        })
    }
}

/// The bounds of an HTTP front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpLimits {
    /// Connections at a time; the next one gets a 503.
    pub max_connections: usize,
    /// The longest request line and headers together, in bytes.
    pub max_head_bytes: usize,
    /// The longest body, in bytes; 0: any, where it can be passed on as it comes.
    pub max_body_bytes: usize,
    /// How much memory the bodies of all requests and answers together may take, in bytes.
    pub max_buffered_bytes: usize,
    /// How long a client may take to send its whole head.
    pub head_timeout: Duration,
    /// How long a client may take to send its whole body, and to take its whole answer.
    pub body_timeout: Duration,
    /// How long a connection may stay open between requests.
    pub idle_timeout: Duration,
}

impl HttpLimits {
    /// How much memory all bodies together really may take: one of the largest size must always
    /// fit, both ways.
    pub fn buffered_bytes(&self) -> usize {
        self.max_buffered_bytes.max(2 * self.whole_bytes())
    }

    /// The longest body that is taken as a whole, in bytes.
    pub fn whole_bytes(&self) -> usize {
        whole_bytes(self.max_body_bytes)
    }
}

impl Default for HttpLimits {
    fn default() -> HttpLimits {
        HttpLimits {
            max_connections: 256,
            max_head_bytes: 16 * 1024,
            max_body_bytes: 0,
            max_buffered_bytes: 8 * 1024 * 1024,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
        }
    }
}
