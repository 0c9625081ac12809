//! The HTTP client that the agent calls its upstream with. Nothing outside this room names `ureq`.

mod answer;
mod body;
mod buffers;
mod client;
mod connection;
mod dialer;
mod duplex;
mod error;
mod resolver;
mod settings;
mod tls;
mod transport;
#[cfg(feature = "tls")]
mod unverified;
mod url;

pub use client::{Upstream, UpstreamLimits};
pub use duplex::Duplex;
pub use error::UpstreamError;
pub use settings::{UpstreamSettings, UpstreamTls};
pub use url::UpstreamUrl;
