//! How long something takes, counted by size. Threads don't wait for each other here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The bounds of the buckets, in microseconds; what is longer has one of its own.
const BOUNDS: [u64; 15] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// How many took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    /// The bounds of the buckets, in milliseconds.
    pub fn bounds_ms() -> Vec<f64> {
        BOUNDS.iter().map(|bound| *bound as f64 / 1000.0).collect()
    }

    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// How many there are in each bucket.
    pub fn counts(&self) -> Vec<u64> {
        let load = |bucket: &AtomicU64| bucket.load(Ordering::Relaxed);
        self.buckets.iter().map(load).collect()
    }

    /// The sum, in seconds.
    pub fn sum(&self) -> f64 {
        self.micros.load(Ordering::Relaxed) as f64 / 1e6
    }

    /// The upper bound of each bucket, in seconds, and how many there are in it.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS.iter().map(|bound| *bound as f64 / 1e6);
        bounds.chain([f64::INFINITY]).zip(self.counts()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for micros in [0, 250, 251, 10_000_000, 10_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut wanted = vec![0; BOUNDS.len() + 1];
        wanted[0] = 2;
        wanted[1] = 1;
        wanted[BOUNDS.len() - 1] = 1;
        wanted[BOUNDS.len()] = 1;
        assert_eq!(histogram.counts(), wanted);
        assert!((histogram.sum() - 20.000_502).abs() < 1e-9);
        assert_eq!(Histogram::bounds_ms()[..2], [0.25, 0.5]);
    }
}
