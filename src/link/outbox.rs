//! What is on its way on one connection: what waits for a place, what rumqttc has and has not
//! written, what is written and not acknowledged. Pure: the time is passed in.
//!
//! rumqttc would take everything at once, keep it while the broker takes nothing, and send it late.
//! So it gets a little at a time, and what has waited for too long meanwhile is never sent.
//!
//! rumqttc doesn't say under which packet identifier a message goes out, but it writes messages in
//! the order in which it got them: what it reports as written is the oldest that it has.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::convert::check;
use super::limits::BrokerLimits;
use super::publish::{LinkOptions, Pieces, PublishError};
use crate::wire::{Message, Qos};

/// How many bytes and messages rumqttc has at a time, before they are written; one it may always have.
const HANDED_BYTES: usize = 64 * 1024;
const HANDED: usize = 128;
/// How many bytes of it may stand before a piece of a stream: a whole message that comes has to wait
/// for so much.
const HANDED_PIECES: usize = 32 * 1024;
/// Once rumqttc has had a message for this long, the connection counts as stalled, and no further
/// one is taken.
const STALLED: Duration = Duration::from_secs(1);
/// A message of at most so many bytes finds a place even where larger ones have taken all: an error
/// must get through.
const SMALL: usize = 4 * 1024;
/// How many topics are remembered on which the broker has taken a message.
const MAX_PROVEN: usize = 4096;

pub(super) struct Outbox {
    limits: BrokerLimits,
    /// How many bytes may wait to be written, and how many messages.
    max_bytes: usize,
    max_messages: usize,
    proves_topics: bool,
    // Those that wait for a place: without an acknowledgement to come, and with one. Each in its
    // order; only the latter wait for the broker to acknowledge others.
    waiting: [VecDeque<Waiting>; 2],
    // The streams that have pieces, in turn.
    turns: VecDeque<Arc<dyn Pieces>>,
    // How many ever waited, and how many of them in vain, since that was last said.
    count: u64,
    expired: usize,
    // When rumqttc got each of those that are not written, oldest first, and its size.
    handed: VecDeque<(Instant, usize)>,
    handed_bytes: usize,
    // Of all that is not written.
    bytes: usize,
    // What to know of those with QoS 1 and 2 that rumqttc has, in the same order.
    sent: VecDeque<Sent>,
    // The same once they are written, by packet identifier.
    written: HashMap<u16, Sent>,
    // Topics on which the broker has acknowledged a message of this connection.
    proven: HashSet<String>,
}

struct Waiting {
    number: u64,
    message: Message,
    size: usize,
    // After this it is of no use.
    deadline: Option<Instant>,
}

/// A message that the broker is to acknowledge.
pub(super) struct Sent {
    pub topic: String,
    pub correlation_data: Option<Bytes>,
    /// It would have gone with QoS 0, but for the proof that the broker takes messages on its topic.
    pub is_proof: bool,
}

impl Outbox {
    pub fn new(options: &LinkOptions, limits: BrokerLimits) -> Outbox {
        let (bytes, messages) = (options.queue_bytes, options.queue);
        Outbox::empty(bytes, messages, options.proves_topics, limits)
    }

    fn empty(
        max_bytes: usize,
        max_messages: usize,
        proves_topics: bool,
        limits: BrokerLimits,
    ) -> Outbox {
        Outbox {
            limits,
            max_bytes,
            max_messages,
            proves_topics,
            waiting: Default::default(),
            turns: VecDeque::new(),
            count: 0,
            expired: 0,
            handed: VecDeque::new(),
            handed_bytes: 0,
            bytes: 0,
            sent: VecDeque::new(),
            written: HashMap::new(),
            proven: HashSet::new(),
        }
    }

    pub fn limits(&self) -> &BrokerLimits {
        &self.limits
    }

    /// Takes a message, to be handed on as long as `deadline` has not passed.
    ///
    /// Errors: there is no place for it, or the broker would not take it; then the message is still
    /// there.
    pub fn put(
        &mut self,
        message: &mut Option<Message>,
        deadline: Option<Instant>,
        now: Instant,
    ) -> Result<(), PublishError> {
        let Some(offered) = message else {
            return Ok(());
        };
        let size = check(offered, &self.limits)?;
        if let Some(age) = self.stalled(now) {
            return Err(PublishError::Stalled(age));
        }
        // A single one may be as large as a packet may be.
        let too_large = self.bytes > 0 && self.bytes + size > self.max_bytes && size > SMALL;
        if too_large || self.messages() >= self.max_messages {
            return Err(PublishError::Busy);
        }
        if let Some(message) = message.take() {
            self.bytes += size;
            self.count += 1;
            self.waiting[usize::from(message.qos > Qos::AtMostOnce)].push_back(Waiting {
                number: self.count,
                message,
                size,
                deadline,
            });
        }
        Ok(())
    }

    fn messages(&self) -> usize {
        self.handed.len() + self.waiting.iter().map(VecDeque::len).sum::<usize>()
    }

    /// From now on a stream's pieces have their turn, until it has none.
    pub fn take_turns(&mut self, stream: Arc<dyn Pieces>) {
        self.turns.push_back(stream);
    }

    /// Whether no whole message waits for a place any more.
    pub fn is_handed(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }

    /// The next message for rumqttc, if that may have one more.
    pub fn next(&mut self, now: Instant) -> Option<Message> {
        loop {
            // One less than rumqttc takes: at that number it takes nothing any more, nor QoS 0.
            let places = self.limits.inflight.saturating_sub(1).max(1);
            let has_place = self.sent.len() + self.written.len() < places;
            let number = |lane: &VecDeque<Waiting>| lane.front().map(|first| first.number);
            let lane = match (number(&self.waiting[0]), number(&self.waiting[1])) {
                (plain, Some(other)) if has_place && plain.is_none_or(|it| other < it) => 1,
                (Some(_), _) => 0,
                (None, _) => return self.next_piece(has_place, now),
            };
            let size = self.waiting[lane].front()?.size;
            let is_much = self.handed_bytes + size > HANDED_BYTES || self.handed.len() >= HANDED;
            if is_much && !self.handed.is_empty() {
                return None;
            }
            let next = self.waiting[lane].pop_front()?;
            if next.deadline.is_none_or(|deadline| now < deadline) {
                return Some(self.hand(next, has_place, now));
            }
            self.bytes -= size;
            self.expired += 1;
        }
    }

    // One of the stream whose turn it is. One that the broker would not take is left out, which its
    // stream notices as a loss.
    fn next_piece(&mut self, has_place: bool, now: Instant) -> Option<Message> {
        while self.handed_bytes < HANDED_PIECES && self.handed.len() < HANDED {
            let stream = self.turns.pop_front()?;
            let Some(message) = stream.next_piece(now) else {
                continue;
            };
            self.turns.push_back(stream);
            match check(&message, &self.limits) {
                Ok(size) => {
                    self.bytes += size;
                    let piece = Waiting {
                        number: self.count,
                        message,
                        size,
                        deadline: None,
                    };
                    return Some(self.hand(piece, has_place, now));
                }
                Err(why) => log::error!("a piece of a stream can't be sent: {why}"),
            }
        }
        None
    }

    /// How many were of no use any more when there was a place for them.
    pub fn take_expired(&mut self) -> usize {
        std::mem::take(&mut self.expired)
    }

    // See [`LinkOptions::proves_topics`].
    fn hand(&mut self, next: Waiting, has_place: bool, now: Instant) -> Message {
        let mut message = next.message;
        let is_proof = self.proves_topics
            && message.qos == Qos::AtMostOnce
            && has_place
            && self.limits.max_qos > Qos::AtMostOnce
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
        self.handed.push_back((now, next.size));
        self.handed_bytes += next.size;
        message
    }

    /// For how long the oldest message has waited to be written, if that is too long.
    pub fn stalled(&self, now: Instant) -> Option<Duration> {
        let (since, _) = self.handed.front()?;
        Some(now.saturating_duration_since(*since)).filter(|age| *age > STALLED)
    }

    pub fn written(&mut self, packet_id: u16) {
        if let Some((_, size)) = self.handed.pop_front() {
            self.handed_bytes -= size;
            self.bytes -= size;
        }
        if packet_id != 0
            && let Some(sent) = self.sent.pop_front()
        {
            self.written.insert(packet_id, sent);
        }
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
        Some(sent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: BrokerLimits = BrokerLimits {
        max_packet_bytes: 1_000_000,
        is_brokers: false,
        max_qos: Qos::ExactlyOnce,
        retain: true,
        inflight: 3,
    };
    const ONCE: Qos = Qos::AtLeastOnce;
    const PLAIN: Qos = Qos::AtMostOnce;

    fn outbox(proves_topics: bool) -> Outbox {
        Outbox::empty(200_000, 1000, proves_topics, LIMITS)
    }

    fn put(outbox: &mut Outbox, topic: &str, qos: Qos, bytes: usize) -> Result<(), PublishError> {
        let message = Message {
            topic: topic.into(),
            payload: vec![0; bytes].into(),
            qos,
            ..Message::default()
        };
        outbox.put(&mut Some(message), None, Instant::now())
    }

    /// What rumqttc gets now, with the quality of service.
    fn handed(outbox: &mut Outbox) -> Vec<(String, Qos)> {
        let next = || outbox.next(Instant::now());
        let all = std::iter::from_fn(next);
        all.map(|message| (message.topic, message.qos)).collect()
    }

    fn one(topic: &str, qos: Qos) -> Vec<(String, Qos)> {
        vec![(topic.into(), qos)]
    }

    #[test]
    fn an_acknowledgement_finds_its_message() {
        let mut outbox = outbox(false);
        for (topic, qos) in [("a", ONCE), ("b", PLAIN), ("c", ONCE)] {
            put(&mut outbox, topic, qos, 1).unwrap();
        }
        let order: Vec<String> = handed(&mut outbox).into_iter().map(|it| it.0).collect();
        assert_eq!(order, ["a", "b", "c"]);
        put(&mut outbox, "d", ONCE, 1).unwrap();
        assert_eq!(handed(&mut outbox), [], "two are under way");
        put(&mut outbox, "e", PLAIN, 1).unwrap();
        assert_eq!(handed(&mut outbox), one("e", PLAIN), "it need not wait");
        for packet_id in [7, 0, 8, 0] {
            outbox.written(packet_id);
        }
        assert_eq!(outbox.acknowledged(8, true).unwrap().topic, "c");
        assert!(outbox.acknowledged(8, true).is_none(), "only once");
        assert_eq!(handed(&mut outbox), one("d", ONCE));
        outbox.written(8);
        assert_eq!(outbox.acknowledged(7, true).unwrap().topic, "a");
        assert_eq!(outbox.acknowledged(8, true).unwrap().topic, "d");
        assert!(outbox.is_handed() && outbox.bytes == 0);
    }

    #[test]
    fn the_first_message_on_a_topic_is_the_proof_that_the_broker_takes_it() {
        let mut outbox = outbox(true);
        let goes = |outbox: &mut Outbox, topic: &str| {
            put(outbox, topic, PLAIN, 1).unwrap();
            handed(outbox)
        };
        assert_eq!(goes(&mut outbox, "a"), one("a", ONCE));
        outbox.written(1);
        assert_eq!(goes(&mut outbox, "a"), one("a", ONCE), "no answer yet");
        outbox.written(2);
        assert_eq!(goes(&mut outbox, "a"), one("a", PLAIN), "two are under way");
        outbox.written(0);
        assert!(outbox.acknowledged(1, true).unwrap().is_proof);
        assert_eq!(goes(&mut outbox, "a"), one("a", PLAIN));
        assert_eq!(goes(&mut outbox, "b"), one("b", ONCE), "another topic");
        outbox.written(0);
        outbox.written(3);
        outbox.acknowledged(2, false);
        outbox.acknowledged(3, true);
        assert_eq!(goes(&mut outbox, "a"), one("a", ONCE), "it was refused");
        outbox.written(1);
        outbox.acknowledged(1, true);
        outbox.limits.max_qos = PLAIN;
        assert_eq!(goes(&mut outbox, "c"), one("c", PLAIN), "it knows no other");
    }

    #[test]
    fn a_small_message_finds_a_place_among_large_ones() {
        let mut outbox = Outbox::empty(100_000, 3, false, LIMITS);
        assert_eq!(put(&mut outbox, "a", PLAIN, 200_000), Ok(()), "alone");
        let large = put(&mut outbox, "a", PLAIN, SMALL + 1);
        assert_eq!(large, Err(PublishError::Busy));
        assert_eq!(put(&mut outbox, "a", PLAIN, 1), Ok(()));
        assert_eq!(put(&mut outbox, "a", PLAIN, 1), Ok(()));
        let fourth = put(&mut outbox, "a", PLAIN, 1);
        assert_eq!(fourth, Err(PublishError::Busy), "there are too many");
    }

    #[test]
    fn rumqttc_has_little_at_a_time_and_nothing_is_sent_late() {
        let mut outbox = outbox(false);
        let begun = Instant::now();
        let deadline = Some(begun + Duration::from_secs(3));
        for topic in ["a", "b", "c"] {
            let message = Message {
                topic: topic.into(),
                payload: vec![0; 50_000].into(),
                ..Message::default()
            };
            outbox.put(&mut Some(message), deadline, begun).unwrap();
        }
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(outbox.next(begun).unwrap().topic, "a");
        assert_eq!(outbox.next(begun), None, "that is enough");
        let mut late = Some(Message::default());
        let stalled = outbox.put(&mut late, None, after(2));
        assert!(matches!(stalled, Err(PublishError::Stalled(_))));
        assert!(late.is_some(), "nothing is lost");
        outbox.written(0);
        assert_eq!(outbox.next(after(2)).unwrap().topic, "b");
        outbox.written(0);
        assert_eq!(outbox.next(after(3)), None, "nobody waits for it");
        assert_eq!(outbox.take_expired(), 1);
        assert!(outbox.is_handed() && outbox.bytes == 0);
    }

    proptest! {
        /// Whatever comes in whatever order: what is taken is handed on once, in the order of its
        /// kind, and never too much of it.
        #[test]
        fn all_is_handed_on_in_order(steps in proptest::collection::vec((0..4u8, 1..40_000usize), 1..200)) {
            let mut outbox = outbox(false);
            let now = Instant::now();
            let (mut taken, mut got, mut ids) = ([vec![], vec![]], [vec![], vec![]], VecDeque::new());
            let mut number = 0u32;
            let hand = |outbox: &mut Outbox, got: &mut [Vec<u32>; 2], ids: &mut VecDeque<u16>| {
                while let Some(message) = outbox.next(now) {
                    let lane = usize::from(message.qos > PLAIN);
                    got[lane].push(message.topic.parse().unwrap());
                    ids.push_back(if lane == 1 { got[1].len() as u16 } else { 0 });
                }
            };
            for (step, size) in steps {
                match step {
                    0 | 1 => {
                        let qos = if step == 0 { PLAIN } else { ONCE };
                        if put(&mut outbox, &number.to_string(), qos, size).is_ok() {
                            taken[usize::from(step)].push(number);
                        }
                        number += 1;
                    }
                    2 => if let Some(id) = ids.pop_front() { outbox.written(id) },
                    _ => { let id = outbox.written.keys().min().copied(); if let Some(id) = id { outbox.acknowledged(id, true); } }
                }
                hand(&mut outbox, &mut got, &mut ids);
                prop_assert!(outbox.handed.len() <= 1 || outbox.handed_bytes <= HANDED_BYTES);
                prop_assert!(outbox.sent.len() + outbox.written.len() <= LIMITS.inflight);
            }
            while !outbox.is_handed() || !ids.is_empty() {
                if let Some(id) = ids.pop_front() { outbox.written(id); }
                let id = outbox.written.keys().min().copied();
                if let Some(id) = id { outbox.acknowledged(id, true); }
                hand(&mut outbox, &mut got, &mut ids);
            }
            prop_assert_eq!(got, taken);
            prop_assert_eq!(outbox.bytes, 0);
        }
    }
}
