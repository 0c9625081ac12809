//! The two HTTP servers, and what they exchange with who answers.

mod connection;
pub mod guarded;
mod handler;
mod incoming;
mod linger;
mod listen;
mod options;
mod outgoing;
mod reading;
mod response;
pub mod tiny;

pub use handler::{Client, Cut, Exchange, Front, Handler, Takes};
pub use listen::bind;
pub use options::{FrontKind, HttpLimits};
