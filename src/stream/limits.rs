//! The bounds of streams.

use std::time::Duration;

/// The bounds of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// A body up to this length travels in one message, in bytes.
    pub inline_bytes: usize,
    /// How many streams there may be at a time; 0: none.
    pub max_streams: usize,
    /// How far each may be ahead of its reader, in bytes.
    pub window: usize,
    /// How long nothing may move; none: for ever.
    pub idle: Option<Duration>,
}

impl Default for StreamLimits {
    fn default() -> StreamLimits {
        StreamLimits {
            inline_bytes: 64 * 1024,
            max_streams: 1024,
            window: 256 * 1024,
            idle: Some(Duration::from_secs(60)),
        }
    }
}

/// There are as many streams as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany(pub usize);
