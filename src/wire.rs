//! What travels, byte for byte: messages, and HTTP and JSON within them. Pure: no I/O, no clock.

pub mod deadline;
pub mod fields;
pub mod http;
pub mod json;
pub mod message;
pub mod presence;
pub mod reply;
pub mod stats;
pub mod stream;

pub use message::{BadProperty, Correlation, Message, Properties, Qos, packet_limit, whole_bytes};
pub use reply::{Hop, JSON, PROBLEM_JSON};
