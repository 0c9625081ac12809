//! The HTTP client that the agent calls its upstream with. Nothing outside this room names `ureq`.

mod answer;
mod buffers;
mod client;
mod resolver;
mod transport;
mod url;

pub use client::{Upstream, UpstreamError};
pub use url::UpstreamUrl;
