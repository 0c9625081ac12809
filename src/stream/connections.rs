//! The connections by which messages for streams come in.

use std::sync::atomic::{AtomicU32, Ordering};

/// A bit for each connection; there are no more than brokers.
#[derive(Default)]
pub(super) struct Connections {
    there: AtomicU32,
    // Messages for streams are known to come in.
    open: AtomicU32,
}

impl Connections {
    /// There is one.
    pub fn made(&self, number: usize) {
        self.there.fetch_or(bit(number), Ordering::SeqCst);
    }

    /// A message to itself has come back on it.
    pub fn opened(&self, number: usize) {
        self.open.fetch_or(bit(number), Ordering::SeqCst);
    }

    /// It is lost.
    pub fn lost(&self, number: usize) {
        self.open.fetch_and(!bit(number), Ordering::SeqCst);
        self.there.fetch_and(!bit(number), Ordering::SeqCst);
    }

    /// Whether there is any.
    pub fn is_any(&self) -> bool {
        self.there.load(Ordering::SeqCst) != 0
    }

    /// Whether messages for streams come in on one.
    pub fn is_open(&self, number: usize) -> bool {
        self.open.load(Ordering::SeqCst) & bit(number) != 0
    }
}

fn bit(number: usize) -> u32 {
    1 << number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_is_told_apart() {
        let connections = Connections::default();
        for number in [0, 15] {
            connections.made(number);
        }
        connections.opened(15);
        assert!(!connections.is_open(0) && connections.is_open(15));
        connections.lost(15);
        assert!(!connections.is_open(15) && connections.is_any());
        connections.lost(0);
        assert!(!connections.is_any());
    }
}
