//! The two HTTP servers, and what they exchange with who answers.

mod connection;
pub mod guarded;
mod handler;
mod linger;
mod listen;
mod options;
mod response;
pub mod tiny;

pub use handler::{Client, Front, Handler};
pub use listen::bind;
pub use options::{FrontKind, HttpLimits};
