//! How long to wait before the next connection attempt. Pure: randomness is passed in.

use std::time::Duration;

/// Delays that double from `first` to `last`, each with jitter.
///
/// Jitter spreads the clients of a broker that restarts: without it all of them would come back
/// in the same millisecond, again and again.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `first` and stays at `last` once it is reached.
    pub fn new(first: Duration, last: Duration) -> Backoff {
        Backoff {
            first,
            last,
            next: first,
        }
    }

    /// The next delay: 50 to 100 % of the doubled one before. `random` is any number.
    pub fn next_delay(&mut self, random: u32) -> Duration {
        let whole = self.next;
        self.next = (self.next * 2).min(self.last);
        whole / 2 + (whole / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// Starts again at the first delay, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LAST: Duration = Duration::from_secs(5);

    #[test]
    fn delays_double_up_to_the_last() {
        let mut backoff = Backoff::new(FIRST, LAST);
        let delays: Vec<u128> = (0..8)
            .map(|_| backoff.next_delay(u32::MAX).as_millis())
            .collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn jitter_takes_off_at_most_half() {
        for random in [0, 1, u32::MAX / 2, u32::MAX] {
            let delay = Backoff::new(FIRST, LAST).next_delay(random);
            assert!(delay >= FIRST / 2 && delay <= FIRST, "{delay:?}");
        }
    }

    #[test]
    fn a_success_starts_again() {
        let mut backoff = Backoff::new(FIRST, LAST);
        backoff.next_delay(0);
        backoff.next_delay(0);
        backoff.reset();
        assert_eq!(backoff.next_delay(u32::MAX), FIRST);
    }
}
