//! What everything else stands on: errors, topics, threads, clocks, sockets, log lines.

pub mod authority;
pub mod backoff;
pub mod budget;
pub mod clock;
pub mod connect;
pub mod error;
mod flood;
mod json_lines;
pub mod logging;
pub mod millis;
#[cfg(feature = "tls")]
pub(crate) mod pem;
pub mod pool;
pub mod process;
pub mod random;
pub mod scheduling;
pub mod supervisor;
pub mod threads;
pub mod topic;
pub mod version;
mod writer;
