//! What everything else stands on: errors, topics, threads, clocks, sockets, log lines.

pub mod authority;
pub mod backoff;
pub mod budget;
pub mod clock;
pub mod connect;
pub mod error;
pub mod logging;
#[cfg(feature = "tls")]
pub(crate) mod pem;
pub mod pool;
pub mod threads;
pub mod topic;
mod writer;
