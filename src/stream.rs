//! A body on its way in pieces: the two halves of a stream. Pure: messages and the time go in,
//! messages come out; no I/O, no thread, no clock.
//!
//! Messages may be lost, come twice or in another order, and either side may lose its connection:
//! the same bytes come out at the other end, or an abort, and never more than a window is on its way.

mod receiver;
mod sender;

pub use receiver::{Receiver, Violation};
pub use sender::Sender;

#[cfg(test)]
mod tests;
