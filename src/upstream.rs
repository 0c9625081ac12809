//! The HTTP client that the agent calls its upstream with. Nothing outside this room names `ureq`.

mod answer;
mod body;
mod buffers;
mod client;
mod duplex;
mod error;
mod resolver;
mod transport;
mod url;

pub use client::{Upstream, UpstreamLimits};
pub use duplex::Duplex;
pub use error::UpstreamError;
pub use url::UpstreamUrl;
