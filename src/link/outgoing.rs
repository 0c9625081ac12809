//! What was queued and has not been written yet, and what was written and not acknowledged.
//!
//! rumqttc holds messages back while the broker takes none or acknowledges none, and would send
//! them late. So nothing more is queued than it can send at once.
//!
//! rumqttc doesn't say under which packet identifier a message goes out, but it writes messages in
//! the order in which they were queued: what it reports as written is the oldest here.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{BrokerLimits, PublishError};
use crate::message::{Message, Qos};

/// Once a message has waited this long to be written, the connection counts as stalled, and no
/// further one is queued behind it.
const STALLED: Duration = Duration::from_secs(1);
/// How many bytes of payload may wait to be written.
const MAX_BYTES: usize = 16 * 1024 * 1024;

#[derive(Default)]
pub(super) struct Outgoing {
    // When each was queued, oldest first, and the size of its payload.
    queued: VecDeque<(Instant, usize)>,
    // Of all payloads.
    bytes: usize,
    // What to know of those with QoS 1 and 2 among them, in the same order.
    sent: VecDeque<Sent>,
    // The same once they are written, by packet identifier.
    written: HashMap<u16, Sent>,
}

/// A message that the broker is to acknowledge.
pub(super) struct Sent {
    pub topic: String,
    pub correlation_data: Option<Bytes>,
}

impl Outgoing {
    /// Takes note of a message that is about to be queued. For one with QoS 1 or 2 the lock must be
    /// held until it is.
    pub fn add(&mut self, message: &Message, limits: &BrokerLimits) -> Result<(), PublishError> {
        let now = Instant::now();
        let oldest = self.queued.front();
        let stalled = oldest.is_some_and(|(since, _)| now - *since > STALLED);
        let size = message.payload.len();
        // A single one may be as large as a packet may be.
        let too_many = self.bytes > 0 && self.bytes + size > MAX_BYTES;
        let acknowledged = message.qos > Qos::AtMostOnce;
        if stalled
            || too_many
            || acknowledged && self.sent.len() + self.written.len() >= limits.inflight
        {
            return Err(PublishError::Busy);
        }
        if acknowledged {
            self.sent.push_back(Sent {
                topic: message.topic.clone(),
                correlation_data: message.properties.correlation_data.clone(),
            });
        }
        self.queued.push_back((now, size));
        self.bytes += size;
        Ok(())
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
    }

    pub fn acknowledged(&mut self, packet_id: u16) -> Option<Sent> {
        self.written.remove(&packet_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BrokerLimits = BrokerLimits {
        max_packet_bytes: 1000,
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

    #[test]
    fn an_acknowledgement_finds_its_message() {
        let mut outgoing = Outgoing::default();
        let (once, plain) = (Qos::AtLeastOnce, Qos::AtMostOnce);
        outgoing.add(&message("a", once), &LIMITS).unwrap();
        outgoing.add(&message("b", plain), &LIMITS).unwrap();
        outgoing.add(&message("c", once), &LIMITS).unwrap();
        assert_eq!(
            outgoing.add(&message("d", once), &LIMITS),
            Err(PublishError::Busy),
            "two are under way"
        );
        for packet_id in [7, 0, 8] {
            outgoing.written(packet_id);
        }
        assert_eq!(outgoing.acknowledged(8).unwrap().topic, "c");
        assert!(outgoing.acknowledged(8).is_none(), "only once");
        outgoing.add(&message("e", once), &LIMITS).unwrap();
        outgoing.take_back(once);
        outgoing.add(&message("f", once), &LIMITS).unwrap();
        outgoing.written(8);
        assert_eq!(outgoing.acknowledged(7).unwrap().topic, "a");
        assert_eq!(outgoing.acknowledged(8).unwrap().topic, "f");
    }
}
