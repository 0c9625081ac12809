//! Bodies on their way in pieces.
//!
//! The two halves of a stream, [`Sender`] and [`Receiver`], are pure: messages and the time go in,
//! messages come out. Messages may be lost, come twice or in another order, and either side may lose
//! its connection: the same bytes come out at the other end, or an abort, and never more than a window
//! is on its way. A [`Stream`] puts them under a lock, for threads that read and write; [`Streams`] is
//! the table of all that a program has.

mod carry;
mod connections;
mod flight;
mod halves;
mod limits;
mod lingering;
mod live;
mod receiver;
mod registry;
mod sender;
mod why;

pub use carry::{Incoming, send_on};
pub use limits::{StreamLimits, TooMany};
pub use live::Stream;
pub use receiver::{Receiver, Violation};
pub use registry::{Endable, Opened, Streams};
pub use sender::Sender;
pub use why::Why;

#[cfg(test)]
mod tests;
