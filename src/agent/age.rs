//! How old a request is when it is read. Time is passed in.
//!
//! A request states how long its caller waits, from when it was published. What passes before it is
//! read here counts too: a broker that holds it, a connection that stalls, a process that is stopped,
//! a machine that sleeps. Its sender's clock is not ours; but the smallest difference between the two
//! that was ever seen is the one of a request that came straight away, and what exceeds it is time on
//! the way. Of requests that state no time of sending it is known only whether this process stood
//! still just before it read them.

use std::collections::HashMap;
use std::time::Duration;

use crate::base::clock::Moment;
use crate::wire::deadline::Sent;

/// How many gateways' clocks are remembered.
const MAX_GATEWAYS: usize = 256;
/// How far two clocks may drift apart, in parts per million: what a clock that is being corrected may
/// do.
const DRIFT_PPM: u64 = 500;
/// After this long the smallest difference counts anew, beside the one before: a clock that was set,
/// or a way that has become longer for good, must not make every request look old for ever.
const WINDOW: Duration = Duration::from_secs(60);
/// How often the pulse beats.
pub(super) const BEAT: Duration = Duration::from_millis(250);
/// A beat that is late by more than this: the process stood still.
const STANDSTILL: Duration = Duration::from_millis(250);
/// How long after a standstill what was waiting meanwhile is still being read.
const AFTERMATH: Duration = Duration::from_secs(1);

/// The clocks of the gateways, against this one.
#[derive(Default)]
pub(super) struct Ages {
    clocks: HashMap<String, Clock>,
    pulse: Option<Pulse>,
}

struct Clock {
    // The smallest differences of this window and the one before it, and when each was seen.
    current: (i128, Moment),
    before: Option<(i128, Moment)>,
    window: Moment,
}

struct Pulse {
    last: Moment,
    // The last standstill: since when, until when.
    stood: Option<(Moment, Moment)>,
}

impl Ages {
    /// How long ago a request that is read now was sent, beyond what the way takes anyway.
    pub fn of(&mut self, sent: Option<Sent<'_>>, now: Moment) -> Duration {
        match sent {
            Some(sent) => self.by_clock(sent, now),
            None => self.by_pulse(now),
        }
    }

    fn by_clock(&mut self, sent: Sent<'_>, now: Moment) -> Duration {
        let difference = i128::from(now.millis()) - i128::from(sent.millis);
        let Some(clock) = self.clocks.get_mut(sent.instance) else {
            self.forget_one();
            let clock = Clock {
                current: (difference, now),
                before: None,
                window: now,
            };
            self.clocks.insert(sent.instance.to_owned(), clock);
            // The first one tells nothing.
            return self.by_pulse(now);
        };
        let least = clock.least(now).min(difference);
        clock.see(difference, now);
        let excess = u64::try_from(difference - least).unwrap_or(0);
        Duration::from_millis(excess)
    }

    // The one that was heard of least recently makes room.
    fn forget_one(&mut self) {
        if self.clocks.len() < MAX_GATEWAYS {
            return;
        }
        let oldest = self.clocks.iter().min_by_key(|(_, clock)| clock.window);
        if let Some(name) = oldest.map(|(name, _)| name.clone()) {
            self.clocks.remove(&name);
        }
    }

    // All that can be said is that it came after the standstill began.
    fn by_pulse(&self, now: Moment) -> Duration {
        let Some(pulse) = &self.pulse else {
            return Duration::ZERO;
        };
        // It may stand still no more, and the pulse not know it yet.
        if now.since(pulse.last) > BEAT + STANDSTILL {
            return now.since(pulse.last);
        }
        match pulse.stood {
            Some((since, until)) if now.since(until) < AFTERMATH => now.since(since),
            _ => Duration::ZERO,
        }
    }

    /// The pulse: to be called each [`BEAT`].
    pub fn beat(&mut self, now: Moment) {
        let Some(pulse) = &mut self.pulse else {
            self.pulse = Some(Pulse {
                last: now,
                stood: None,
            });
            return;
        };
        if now.since(pulse.last) > BEAT + STANDSTILL {
            pulse.stood = Some((pulse.last, now));
        }
        pulse.last = now;
    }
}

impl Clock {
    // The smallest difference that two clocks which drift apart may have by now.
    fn least(&self, now: Moment) -> i128 {
        let drifted = |(difference, seen): (i128, Moment)| {
            let drift = now.since(seen).as_millis() * u128::from(DRIFT_PPM) / 1_000_000;
            difference + i128::try_from(drift).unwrap_or(i128::MAX / 2)
        };
        let current = drifted(self.current);
        self.before
            .map_or(current, |before| current.min(drifted(before)))
    }

    fn see(&mut self, difference: i128, now: Moment) {
        if now.since(self.window) >= WINDOW {
            self.before = Some(self.current);
            self.current = (difference, now);
            self.window = now;
        } else if difference <= self.current.0 {
            self.current = (difference, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn sent(millis: u64) -> Option<Sent<'static>> {
        Some(Sent {
            instance: "a",
            millis,
        })
    }

    #[test]
    fn what_a_request_was_held_up_is_its_age() {
        let start = Moment::at(millis(1_000_000));
        let mut ages = Ages::default();
        // The other clock says something else entirely; the way takes 5 ms.
        assert_eq!(ages.of(sent(1_000), start + millis(5)), Duration::ZERO);
        assert_eq!(ages.of(sent(2_000), start + millis(1_005)), Duration::ZERO);
        assert_eq!(ages.of(sent(3_000), start + millis(4_005)), millis(1_999));
        // A faster one counts from then on.
        assert_eq!(ages.of(sent(5_000), start + millis(4_001)), Duration::ZERO);
        assert_eq!(ages.of(sent(6_000), start + millis(5_101)), millis(100));
        let other = Sent {
            instance: "b",
            millis: 9_999_999,
        };
        assert_eq!(ages.of(Some(other), start + millis(6_000)), Duration::ZERO);
    }

    #[test]
    fn a_pause_of_hours_is_no_excuse_and_drift_is() {
        let hour = Duration::from_secs(3600);
        let start = Moment::at(millis(1_000_000));
        let mut ages = Ages::default();
        ages.of(sent(0), start);
        let drifted = start + hour + millis(1_800);
        assert_eq!(ages.of(sent(3_600_000), drifted), Duration::ZERO);
        let mut ages = Ages::default();
        ages.of(sent(0), start);
        let stalled = start + hour + millis(7_000);
        assert_eq!(ages.of(sent(3_600_000), stalled), millis(7_000 - 1_803));
    }

    #[test]
    fn a_clock_that_was_set_is_followed_after_two_windows() {
        let start = Moment::at(millis(1_000_000));
        let mut ages = Ages::default();
        ages.of(sent(0), start);
        let mut last = Duration::MAX;
        for second in 1..=130 {
            // It was put back by five seconds.
            last = ages.of(sent(second * 1000), start + millis(second * 1000 + 5_000));
        }
        assert_eq!(last, Duration::ZERO);
    }

    #[test]
    fn an_old_gateways_requests_are_as_old_as_the_standstill() {
        let start = Moment::at(millis(1_000_000));
        let mut ages = Ages::default();
        for beat in 0..4 {
            ages.beat(start + BEAT * beat);
        }
        let last = start + BEAT * 3;
        assert_eq!(ages.of(None, last + millis(100)), Duration::ZERO);
        // Read before the pulse beats again, and after it.
        let woken = last + millis(2_000);
        assert_eq!(ages.of(None, woken), millis(2_000));
        ages.beat(woken);
        assert_eq!(ages.of(None, woken + millis(10)), millis(2_010));
        for beat in 1..=4 {
            ages.beat(woken + BEAT * beat);
        }
        assert_eq!(ages.of(None, woken + AFTERMATH), Duration::ZERO);
    }

    #[test]
    fn the_memory_is_bounded() {
        let start = Moment::at(millis(1_000_000));
        let mut ages = Ages::default();
        for number in 0..1000 {
            let instance = format!("g{number}");
            let sent = Sent {
                instance: &instance,
                millis: 0,
            };
            ages.of(Some(sent), start + millis(number));
        }
        assert_eq!(ages.clocks.len(), MAX_GATEWAYS);
        assert!(ages.clocks.contains_key("g999"));
    }

    proptest! {
        #[test]
        fn no_clock_panics_and_a_steady_way_has_no_age(
            offset in any::<u64>(),
            steps in proptest::collection::vec(0u64..100_000, 1..50),
        ) {
            let start = Moment::at(millis(1_000_000));
            let mut ages = Ages::default();
            let mut passed = 0;
            for step in steps {
                passed += step;
                let age = ages.of(sent(offset.saturating_add(passed)), start + millis(passed));
                if offset < u64::MAX / 2 {
                    prop_assert_eq!(age, Duration::ZERO);
                }
            }
        }
    }
}
