//! What all streams of a connection share: how much may be on its way, and how much be kept.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How many bytes of all streams together may be sent and not confirmed: where both sides write without
/// a bound, a broker that stops reading while it writes stops both for good.
const IN_FLIGHT: usize = 1024 * 1024;

/// Shared by all streams.
pub(super) struct Flight {
    window: u64,
    piece_bytes: usize,
    // How many bytes may be kept, in all.
    budget: usize,
    flying: AtomicUsize,
    kept: AtomicUsize,
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
            is_waited_for: AtomicBool::new(false),
        }
    }

    pub fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }

    /// How much a stream promises before anything of it was read: everybody says the same, at whatever
    /// time.
    pub fn first_window(&self) -> u64 {
        self.window.min(4 * self.piece_bytes as u64)
    }

    /// How much a stream may promise now: less as the memory for all gets short, but never nothing.
    pub fn window(&self) -> u64 {
        let left = self
            .budget
            .saturating_sub(self.kept.load(Ordering::Relaxed));
        (left as u64 / 8).clamp((self.piece_bytes as u64).min(self.window), self.window)
    }

    /// Whether one more piece may be sent.
    pub fn has_place(&self) -> bool {
        let has_place = self.flying.load(Ordering::Relaxed) < IN_FLIGHT;
        if !has_place {
            self.is_waited_for.store(true, Ordering::Relaxed);
        }
        has_place
    }

    /// Whether somebody found no place.
    pub fn is_full(&self) -> bool {
        self.is_waited_for.load(Ordering::Relaxed)
    }

    /// Whether there is a place again, and somebody found none before; says so once.
    pub fn has_place_again(&self) -> bool {
        self.is_full()
            && self.flying.load(Ordering::Relaxed) < IN_FLIGHT / 4 * 3
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
