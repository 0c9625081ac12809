//! What all streams of a connection share: how much may be on its way, and how much be kept.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// How many bytes of all streams together may be sent and not confirmed, at the least and at the most.
/// What is more than the way holds only stands in queues, where a ping has to wait behind it: 1 MiB takes
/// 5 ms there where 160 KiB are as fast. And where both sides write without a bound, a broker that stops
/// reading while it writes stops both for good.
const IN_FLIGHT: usize = 160 * 1024;
const MOST_IN_FLIGHT: usize = 1024 * 1024;
/// What the way holds for each microsecond that it is long, in bytes: 100 MB/s.
const PER_MICROSECOND: u64 = 100;

/// Shared by all streams.
pub(super) struct Flight {
    window: u64,
    piece_bytes: usize,
    // How many bytes may be kept, in all.
    budget: usize,
    flying: AtomicUsize,
    kept: AtomicUsize,
    // The shortest time there and back, in microseconds; the others were in queues for longer.
    round_trip: AtomicU64,
    // Somebody found no place.
    is_waited_for: AtomicBool,
}

impl Flight {
    pub fn new(window: u64, piece_bytes: usize, budget: usize) -> Flight {
        Flight {
            window,
            piece_bytes,
            budget,
            flying: AtomicUsize::new(0),
            kept: AtomicUsize::new(0),
            round_trip: AtomicU64::new(u64::MAX),
            is_waited_for: AtomicBool::new(false),
        }
    }

    pub fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }

    /// How much a stream promises before anything of it was read: everybody says the same, at whatever
    /// time.
    pub fn first_window(&self) -> u64 {
        self.window.min(2 * self.piece_bytes as u64)
    }

    /// How much a stream may promise now: less as the memory for all gets short, but never nothing.
    pub fn window(&self) -> u64 {
        let left = self
            .budget
            .saturating_sub(self.kept.load(Ordering::Relaxed));
        (left as u64 / 8).clamp((self.piece_bytes as u64).min(self.window), self.window)
    }

    /// A piece took so long, there and back.
    pub fn note_round_trip(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.round_trip.fetch_min(micros, Ordering::Relaxed);
    }

    /// There is a new connection, perhaps by another way.
    pub fn forget_round_trip(&self) {
        self.round_trip.store(u64::MAX, Ordering::Relaxed);
    }

    // How much may be on its way.
    fn most(&self) -> usize {
        match self.round_trip.load(Ordering::Relaxed) {
            u64::MAX => IN_FLIGHT,
            micros => usize::try_from(micros.saturating_mul(PER_MICROSECOND))
                .unwrap_or(MOST_IN_FLIGHT)
                .clamp(IN_FLIGHT, MOST_IN_FLIGHT),
        }
    }

    /// Whether one more piece may be sent.
    pub fn has_place(&self) -> bool {
        let has_place = self.flying.load(Ordering::Relaxed) < self.most();
        if !has_place {
            self.is_waited_for.store(true, Ordering::Relaxed);
        }
        has_place
    }

    /// Whether half of all places are taken, not all of them by whoever has `own`: then that one should
    /// see to it that they get free.
    pub fn is_crowded(&self, own: usize) -> bool {
        let flying = self.flying.load(Ordering::Relaxed);
        flying > own && flying >= self.most() / 2
    }

    /// Whether somebody found no place.
    pub fn is_full(&self) -> bool {
        self.is_waited_for.load(Ordering::Relaxed)
    }

    /// Whether there is a place again, and somebody found none before; says so once.
    pub fn has_place_again(&self) -> bool {
        self.is_full()
            && self.flying.load(Ordering::Relaxed) < self.most() / 4 * 3
            && self.is_waited_for.swap(false, Ordering::Relaxed)
    }

    /// A stream has so much on its way now.
    pub fn flies(&self, before: usize, now: usize) {
        change(&self.flying, before, now);
    }

    /// A stream keeps so much now.
    pub fn keeps(&self, before: usize, now: usize) {
        change(&self.kept, before, now);
    }
}

fn change(sum: &AtomicUsize, before: usize, now: usize) {
    match now >= before {
        true => sum.fetch_add(now - before, Ordering::Relaxed),
        false => sum.fetch_sub(before - now, Ordering::Relaxed),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_way_holds_more() {
        let flight = Flight::new(256 * 1024, 16 * 1024, 1024 * 1024);
        assert_eq!(flight.most(), IN_FLIGHT);
        for (micros, most) in [(50_000, MOST_IN_FLIGHT), (5000, 500_000), (300, IN_FLIGHT)] {
            flight.note_round_trip(Duration::from_micros(micros));
            assert_eq!(flight.most(), most);
        }
        flight.note_round_trip(Duration::from_secs(1));
        assert_eq!(flight.most(), IN_FLIGHT, "that was in a queue");
        flight.forget_round_trip();
        assert_eq!(flight.most(), IN_FLIGHT);
    }

    #[test]
    fn windows_shrink_as_memory_gets_short_but_not_to_nothing() {
        let flight = Flight::new(256 * 1024, 16 * 1024, 1024 * 1024);
        assert_eq!(flight.window(), 128 * 1024);
        flight.keeps(0, 512 * 1024);
        assert_eq!(flight.window(), 64 * 1024);
        flight.keeps(512 * 1024, 10 * 1024 * 1024);
        assert_eq!(flight.window(), 16 * 1024);
        flight.keeps(10 * 1024 * 1024, 0);
        assert_eq!(flight.window(), 128 * 1024);
    }

    #[test]
    fn who_found_no_place_is_told_once() {
        let flight = Flight::new(256 * 1024, 16 * 1024, 1024 * 1024);
        flight.flies(0, IN_FLIGHT);
        assert!(!flight.has_place_again(), "nobody asked");
        assert!(!flight.has_place());
        assert!(!flight.has_place_again());
        flight.flies(IN_FLIGHT, 0);
        assert!(flight.has_place_again() && !flight.has_place_again());
        assert!(flight.has_place());
    }
}
