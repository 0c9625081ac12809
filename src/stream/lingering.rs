//! The streams that ended well a short while ago.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::wire::Correlation;

/// For how long they are remembered, and how many: the last message may have been lost, and the other
/// side asks once more.
const LINGER: Duration = Duration::from_secs(15);
const MAX_LINGERING: usize = 1024;

/// A stream that ended well, and how.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub correlation: Correlation,
    /// Where the other side takes messages.
    pub peer: String,
    /// How long the received body was, in bytes.
    pub length: u64,
}

/// Those that ended well, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Lingering(VecDeque<(Instant, Ended)>);

impl Lingering {
    pub fn find(&self, correlation: Correlation) -> Option<&Ended> {
        let mut all = self.0.iter().map(|(_, ended)| ended);
        all.find(|ended| ended.correlation == correlation)
    }

    pub fn add(&mut self, ended: Ended, now: Instant) {
        self.forget_old(now);
        if self.0.len() >= MAX_LINGERING {
            self.0.pop_front();
        }
        self.0.push_back((now, ended));
    }

    fn forget_old(&mut self, now: Instant) {
        let is_old = |(since, _): &mut (Instant, Ended)| *since + LINGER <= now;
        while self.0.pop_front_if(is_old).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: u8) -> Ended {
        Ended {
            correlation: Correlation([name; 16]),
            peer: "recado/agents/a/streams/1".into(),
            length: name.into(),
        }
    }

    #[test]
    fn what_is_old_and_what_is_too_much_is_forgotten() {
        let begun = Instant::now();
        let mut lingering = Lingering::default();
        lingering.add(ended(1), begun);
        lingering.add(ended(2), begun + LINGER / 2);
        let length = |lingering: &Lingering, name| {
            let found = lingering.find(Correlation([name; 16]));
            found.map(|ended| ended.length)
        };
        assert_eq!(length(&lingering, 1), Some(1));
        lingering.add(ended(3), begun + LINGER);
        assert_eq!(length(&lingering, 1), None);
        assert_eq!(length(&lingering, 2), Some(2));
        for _ in 0..MAX_LINGERING {
            lingering.add(ended(4), begun + LINGER);
        }
        assert_eq!(length(&lingering, 3), None);
        assert_eq!(lingering.0.len(), MAX_LINGERING);
    }
}
