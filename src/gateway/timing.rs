//! Where the time of a request went.

use std::fmt;
use std::time::Duration;

/// Which share of a request's time was spent where.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Timing {
    /// Between publishing the request and having the reply.
    pub away: Option<Duration>,
    pub queue: Duration,
    pub upstream: Duration,
}

impl Timing {
    /// The value of Server-Timing, for a request that took `total`.
    pub fn header(&self, total: Duration) -> String {
        let Some(away) = self.away else {
            return format!("gateway;dur={}", Millis(total));
        };
        format!(
            "gateway;dur={}, broker;dur={}, queue;dur={}, upstream;dur={}",
            Millis(total.saturating_sub(away)),
            Millis(away.saturating_sub(self.queue + self.upstream)),
            Millis(self.queue),
            Millis(self.upstream),
        )
    }
}

// Milliseconds with three decimals.
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        write!(f, "{}.{:03}", micros / 1000, micros % 1000)
    }
}
