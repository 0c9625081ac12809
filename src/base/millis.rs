//! Times as people read them.

use std::fmt;
use std::time::Duration;

/// Milliseconds with three decimals.
pub struct Millis(pub Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Wide numbers take much longer to be written.
        let micros = u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX);
        write!(f, "{}.{:03}", micros / 1000, micros % 1000)
    }
}

/// Milliseconds, as a number.
pub fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
