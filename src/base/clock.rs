//! A clock that goes on while the machine is suspended. `Instant` stands still then, on Linux, and
//! what was in hand would look fresh when it wakes up.

use std::ops::Add;
use std::time::{Duration, Instant};

/// A point in time, as the duration since the machine was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Duration);

impl Moment {
    /// Now.
    #[cfg(target_os = "linux")]
    pub fn now() -> Moment {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // Neither is ever negative, and the second is below a billion.
        let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
        Moment(Duration::from_secs(seconds) + Duration::from_nanos(nanos))
    }

    /// Now; elsewhere the system's monotonic clock has to do.
    #[cfg(not(target_os = "linux"))]
    pub fn now() -> Moment {
        use std::sync::LazyLock;
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        Moment(START.elapsed())
    }

    /// This long after the start of the machine.
    #[cfg(test)]
    pub fn at(since_start: Duration) -> Moment {
        Moment(since_start)
    }

    /// How long it is after `earlier`; zero if it isn't.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The milliseconds since the machine was started.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// The same point, for what waits by the other clock.
    pub fn instant(self) -> Instant {
        Instant::now() + self.since(Moment::now())
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on() {
        let first = Moment::now();
        let later = first + Duration::from_secs(60);
        assert_eq!(later.since(first), Duration::from_secs(60));
        assert_eq!(first.since(later), Duration::ZERO);
        assert!(Moment::now() >= first);
        let left = later.instant().saturating_duration_since(Instant::now());
        assert!(left <= Duration::from_secs(60) && left > Duration::from_secs(30));
    }
}
