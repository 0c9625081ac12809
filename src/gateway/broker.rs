//! A broker as a gateway knows it: who is announced there, whether replies come in, and how long they take.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::presence::Presence;
use super::probe::Probe;
use super::table::Target;
use crate::base::topic::Topic;
use crate::http::Failure;
use crate::link::Way;
use crate::wire::{Correlation, Message};

/// One of the brokers.
pub(super) struct Broker {
    /// The way to it.
    pub way: Way,
    /// Who is announced there.
    pub presence: Presence,
    pub probe: Probe,
    was_connected: AtomicBool,
    // Microseconds; the mean of the last ones.
    round_trip: AtomicU64,
}

impl Broker {
    /// `names`: of the messages to itself and to nobody; `inboxes`: where replies come in.
    pub fn new(
        way: Way,
        presence: Presence,
        names: [Correlation; 2],
        inboxes: Vec<Topic>,
    ) -> Broker {
        let [to_self, to_nobody] = names;
        Broker {
            way,
            presence,
            probe: Probe::new(to_self, to_nobody, inboxes),
            was_connected: AtomicBool::new(false),
            round_trip: AtomicU64::new(0),
        }
    }

    /// There is a connection. `relied_upon`: whether the broker is to say who is there. Returns whether
    /// there was one before.
    pub fn connected(&self, relied_upon: bool) -> bool {
        let own = &self.way.own;
        self.presence.connected(relied_upon && own.offer().retain);
        self.round_trip.store(0, Ordering::Relaxed);
        self.probe.ask(own, Instant::now());
        self.was_connected.swap(true, Ordering::Relaxed)
    }

    /// Takes a message of this gateway to itself. Returns whether it was one.
    pub fn is_back(&self, message: &Message) -> bool {
        let now = Instant::now();
        let Some(is_first) = self.probe.is_back(message) else {
            return false;
        };
        if is_first {
            self.presence.complete(now);
            // A request and its reply go there and back once each.
            if let Some(asked) = self.probe.asked() {
                self.note_round_trip(2 * now.saturating_duration_since(asked));
            }
        }
        true
    }

    /// How long a request and its reply were with the broker.
    pub fn note_round_trip(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let mean = match self.round_trip.load(Ordering::Relaxed) {
            0 => took,
            before => before - before / 8 + took / 8,
        };
        // Where two threads do this at once, one of them is forgotten.
        self.round_trip.store(mean.max(1), Ordering::Relaxed);
    }

    /// The mean of that, in microseconds; as long as can be while it is not known.
    pub fn round_trip(&self) -> u64 {
        match self.round_trip.load(Ordering::Relaxed) {
            0 => u64::MAX,
            known => known,
        }
    }

    /// Whether requests can be sent there, and replies come in.
    ///
    /// Errors: there is no connection, or the broker does not let this gateway read.
    pub fn check(&self) -> Result<(), Failure> {
        self.way.own.connected().map_err(Failure::NotConnected)?;
        self.readable().map_err(Failure::Denied)
    }

    fn readable(&self) -> Result<(), String> {
        self.probe.ask_again(&self.way.own, Instant::now());
        match self.probe.unreadable(Instant::now()) {
            None => Ok(()),
            Some(inbox) => Err(format!("the broker does not let this gateway read {inbox}")),
        }
    }

    /// Whether requests can be answered.
    ///
    /// Errors: they can't; why.
    pub fn ready(&self) -> Result<(), Failure> {
        self.way.own.ready().map_err(Failure::NotConnected)?;
        self.readable().map_err(Failure::NotReady)?;
        match self.presence.is_complete() {
            true => Ok(()),
            false => Err(self.not_known_yet()),
        }
    }

    fn not_known_yet(&self) -> Failure {
        self.probe.ask_again(&self.way.own, Instant::now());
        Failure::NotConnected("the broker has not said yet which agents are there".into())
    }

    /// Whether all who serve a topic in HTTP mode take streams. `waits`: for who may be announced in a moment.
    ///
    /// Errors: nobody is there, or can be asked.
    pub fn serves_http(
        &self,
        topic: &Topic,
        inbox: &Topic,
        now: Instant,
        waits: bool,
    ) -> Result<bool, Failure> {
        self.check()?;
        match self.presence.http_target(topic, inbox, now, waits) {
            Target::There { streams } => Ok(streams),
            Target::Absent => Err(Failure::NoAgent(topic.to_string())),
            Target::NotKnownYet => Err(self.not_known_yet()),
            Target::Denied(what) => Err(Failure::Denied(what)),
        }
    }

    /// Whether somebody who serves a topic in JSON mode has announced itself. Old peers never do.
    ///
    /// Errors: nobody is there, or can be asked.
    pub fn serves_json(&self, topic: &Topic, inbox: &Topic, now: Instant) -> Result<bool, Failure> {
        self.check()?;
        let (target, is_announced) = self.presence.json_target(topic, inbox, now);
        match target {
            Target::There { .. } | Target::NotKnownYet => Ok(is_announced),
            Target::Absent => Err(Failure::NoAgent(topic.to_string())),
            Target::Denied(what) => Err(Failure::Denied(what)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Memory;

    #[test]
    fn the_round_trip_is_a_mean() {
        let (_, publisher, _) = Memory::start();
        let names = [Correlation([1; 16]), Correlation([2; 16])];
        let broker = Broker::new(
            Way::only(&publisher),
            Presence::default(),
            names,
            Vec::new(),
        );
        assert_eq!(broker.round_trip(), u64::MAX);
        broker.note_round_trip(Duration::from_micros(800));
        assert_eq!(broker.round_trip(), 800);
        broker.note_round_trip(Duration::from_micros(1600));
        assert_eq!(broker.round_trip(), 900);
        broker.note_round_trip(Duration::ZERO);
        assert_eq!(broker.round_trip(), 788);
    }
}
