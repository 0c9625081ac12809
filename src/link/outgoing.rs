//! What was queued and has not been written yet, and what was written and not acknowledged.
//!
//! rumqttc holds messages back while the broker takes none or acknowledges none, and would send
//! them late. So nothing more is queued than it can send at once.
//!
//! rumqttc doesn't say under which packet identifier a message goes out, but it writes messages in
//! the order in which they were queued: what it reports as written is the oldest here.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::limits::BrokerLimits;
use super::publish::{LinkOptions, PublishError};
use crate::wire::{Message, Qos};

/// Once a message has waited this long to be written, the connection counts as stalled, and no
/// further one is queued behind it.
const STALLED: Duration = Duration::from_secs(1);
/// A message of at most so many bytes finds a place even where larger ones have taken all: an error
/// must get through.
const SMALL: usize = 4 * 1024;
/// How many topics are remembered on which the broker has taken a message.
const MAX_PROVEN: usize = 4096;

pub(super) struct Outgoing {
    /// How many bytes may wait to be written, and how many messages.
    max_bytes: usize,
    max_messages: usize,
    proves_topics: bool,
    // When each was queued, oldest first, and its size.
    queued: VecDeque<(Instant, usize)>,
    // Of all that is queued.
    bytes: usize,
    // What to know of those with QoS 1 and 2 among them, in the same order.
    sent: VecDeque<Sent>,
    // The same once they are written, by packet identifier.
    written: HashMap<u16, Sent>,
    // Topics on which the broker has acknowledged a message of this connection.
    proven: HashSet<String>,
    /// Counts whatever may have made room, for those who wait for it.
    pub changes: u64,
    /// How many wait for room.
    pub waiting: usize,
}

/// A message that the broker is to acknowledge.
pub(super) struct Sent {
    pub topic: String,
    pub correlation_data: Option<Bytes>,
    /// It would have gone with QoS 0, but for the proof that the broker takes messages on its topic.
    pub is_proof: bool,
}

impl Outgoing {
    pub fn new(options: &LinkOptions) -> Outgoing {
        Outgoing::empty(options.queue_bytes, options.queue, options.proves_topics)
    }

    fn empty(max_bytes: usize, max_messages: usize, proves_topics: bool) -> Outgoing {
        Outgoing {
            max_bytes,
            max_messages,
            proves_topics,
            queued: VecDeque::new(),
            bytes: 0,
            sent: VecDeque::new(),
            written: HashMap::new(),
            proven: HashSet::new(),
            changes: 0,
            waiting: 0,
        }
    }

    /// Takes note of a message of `size` bytes that is about to be queued. For one with QoS 1 or 2
    /// the lock must be held until it is.
    ///
    /// See [`LinkOptions::proves_topics`].
    pub fn add(
        &mut self,
        message: &mut Message,
        size: usize,
        limits: &BrokerLimits,
    ) -> Result<(), PublishError> {
        let now = Instant::now();
        if let Some(age) = self.stalled(now) {
            return Err(PublishError::Stalled(age));
        }
        // A single one may be as large as a packet may be.
        let too_large = self.bytes > 0 && self.bytes + size > self.max_bytes && size > SMALL;
        let is_full = self.sent.len() + self.written.len() >= limits.inflight;
        let wants_acknowledgement = message.qos > Qos::AtMostOnce;
        if too_large || self.queued.len() >= self.max_messages || wants_acknowledgement && is_full {
            return Err(PublishError::Busy);
        }
        let is_proof = self.proves_topics
            && !wants_acknowledgement
            && !is_full
            && limits.max_qos > Qos::AtMostOnce
            && !self.proven.contains(&message.topic);
        if is_proof {
            message.qos = Qos::AtLeastOnce;
        }
        if message.qos > Qos::AtMostOnce {
            self.sent.push_back(Sent {
                topic: message.topic.clone(),
                correlation_data: message.properties.correlation_data.clone(),
                is_proof,
            });
        }
        self.queued.push_back((now, size));
        self.bytes += size;
        Ok(())
    }

    /// For how long the oldest message has waited to be written, if that is too long.
    pub fn stalled(&self, now: Instant) -> Option<Duration> {
        let (since, _) = self.queued.front()?;
        Some(now.saturating_duration_since(*since)).filter(|age| *age > STALLED)
    }

    /// The one that was added last could not be queued.
    pub fn take_back(&mut self, qos: Qos) {
        if let Some((_, size)) = self.queued.pop_back() {
            self.bytes -= size;
        }
        if qos > Qos::AtMostOnce {
            self.sent.pop_back();
        }
    }

    pub fn written(&mut self, packet_id: u16) {
        if let Some((_, size)) = self.queued.pop_front() {
            self.bytes -= size;
        }
        if packet_id != 0
            && let Some(sent) = self.sent.pop_front()
        {
            self.written.insert(packet_id, sent);
        }
        self.changes += 1;
    }

    /// The message that an acknowledgement is of; `is_taken`: the broker has it.
    pub fn acknowledged(&mut self, packet_id: u16, is_taken: bool) -> Option<Sent> {
        let sent = self.written.remove(&packet_id)?;
        if is_taken {
            if self.proven.len() >= MAX_PROVEN {
                self.proven.clear();
            }
            self.proven.insert(sent.topic.clone());
        } else {
            self.proven.remove(&sent.topic);
        }
        self.changes += 1;
        Some(sent)
    }

    /// Forgets everything of a connection that is lost.
    pub fn clear(&mut self) {
        *self = Outgoing {
            changes: self.changes + 1,
            waiting: self.waiting,
            ..Outgoing::empty(self.max_bytes, self.max_messages, self.proves_topics)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BrokerLimits = BrokerLimits {
        max_packet_bytes: 1000,
        is_brokers: false,
        max_qos: Qos::ExactlyOnce,
        retain: true,
        inflight: 2,
    };

    fn message(topic: &str, qos: Qos) -> Message {
        Message {
            topic: topic.into(),
            qos,
            ..Message::default()
        }
    }

    fn add(outgoing: &mut Outgoing, topic: &str, qos: Qos) -> Result<Qos, PublishError> {
        let mut message = message(topic, qos);
        outgoing.add(&mut message, 1, &LIMITS).map(|()| message.qos)
    }

    #[test]
    fn an_acknowledgement_finds_its_message() {
        let mut outgoing = Outgoing::empty(1000, 1000, true);
        let (once, plain) = (Qos::AtLeastOnce, Qos::AtMostOnce);
        outgoing.proven.insert("b".into());
        add(&mut outgoing, "a", once).unwrap();
        assert_eq!(add(&mut outgoing, "b", plain), Ok(plain));
        add(&mut outgoing, "c", once).unwrap();
        let two_under_way = add(&mut outgoing, "d", once);
        assert_eq!(two_under_way, Err(PublishError::Busy));
        for packet_id in [7, 0, 8] {
            outgoing.written(packet_id);
        }
        assert_eq!(outgoing.acknowledged(8, true).unwrap().topic, "c");
        assert!(outgoing.acknowledged(8, true).is_none(), "only once");
        add(&mut outgoing, "e", once).unwrap();
        outgoing.take_back(once);
        add(&mut outgoing, "f", once).unwrap();
        outgoing.written(8);
        assert_eq!(outgoing.acknowledged(7, true).unwrap().topic, "a");
        assert_eq!(outgoing.acknowledged(8, true).unwrap().topic, "f");
    }

    #[test]
    fn the_first_message_on_a_topic_is_the_proof_that_the_broker_takes_it() {
        let mut outgoing = Outgoing::empty(1000, 1000, true);
        let (once, plain) = (Qos::AtLeastOnce, Qos::AtMostOnce);
        assert_eq!(add(&mut outgoing, "a", plain), Ok(once));
        outgoing.written(1);
        assert_eq!(add(&mut outgoing, "a", plain), Ok(once), "no answer yet");
        outgoing.written(2);
        assert_eq!(
            add(&mut outgoing, "a", plain),
            Ok(plain),
            "two are under way"
        );
        outgoing.written(0);
        let sent = outgoing.acknowledged(1, true).unwrap();
        assert!(sent.is_proof);
        assert_eq!(add(&mut outgoing, "a", plain), Ok(plain));
        assert_eq!(add(&mut outgoing, "b", plain), Ok(once), "another topic");
        outgoing.written(0);
        outgoing.written(3);
        outgoing.acknowledged(2, false);
        outgoing.acknowledged(3, true);
        assert_eq!(add(&mut outgoing, "a", plain), Ok(once), "it was refused");
        outgoing.clear();
        assert_eq!(
            add(&mut outgoing, "b", plain),
            Ok(once),
            "another connection"
        );
        let mut first = message("a", plain);
        let no_qos_1 = BrokerLimits {
            max_qos: plain,
            ..LIMITS
        };
        outgoing.add(&mut first, 1, &no_qos_1).unwrap();
        assert_eq!(first.qos, plain);
    }

    #[test]
    fn a_small_message_finds_a_place_among_large_ones() {
        let mut outgoing = Outgoing::empty(100_000, 3, false);
        let mut large = |size| outgoing.add(&mut message("a", Qos::AtMostOnce), size, &LIMITS);
        assert_eq!(large(200_000), Ok(()), "alone");
        assert_eq!(large(SMALL + 1), Err(PublishError::Busy));
        assert_eq!(large(SMALL), Ok(()));
        assert_eq!(large(SMALL), Ok(()));
        assert_eq!(large(SMALL), Err(PublishError::Busy), "there are too many");
    }
}
