//! What a gateway asks the broker at connect, by messages to itself and to nobody.
//!
//! The message to itself goes out behind the subscription to the presences: when it comes back,
//! all retained ones are here, but for those that some brokers send a little later. The
//! acknowledgements of both tell whether the broker's "no matching subscribers" (0x10, MQTT 5,
//! section 3.4.2.1) can be believed: it must not say so of a topic that this gateway is subscribed
//! to, and it must say so of one that nobody can know.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::base::threads::lock;
use crate::base::topic::{Id, Topic};
use crate::link::{Acknowledgement, Delivery, Publisher};
use crate::wire::{Correlation, Message, Properties, Qos};

/// How long the messages to itself may be under way before they are sent once more.
const AGAIN: Duration = Duration::from_secs(1);
/// After this long, and several attempts, an inbox counts as one that can't be read.
const UNREADABLE: Duration = Duration::from_secs(3);

pub(super) struct Probe {
    // Of the messages to itself and of the one to nobody.
    to_self: Correlation,
    to_nobody: Correlation,
    // The first one is that of HTTP routes.
    inboxes: Vec<Topic>,
    answers: Mutex<Answers>,
    // Every message to itself has come back, on this connection.
    all_is_well: AtomicBool,
}

#[derive(Default)]
struct Answers {
    first_asked: Option<Instant>,
    asked: Option<Instant>,
    // Of each inbox.
    inboxes: Vec<Readable>,
    finds_self: bool,
    misses_nobody: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readable {
    NotKnownYet,
    // The message has come back; or it may not be sent, so nothing can be learnt from it.
    Assumed,
    // It has not come back, and that was said.
    No,
}

impl Probe {
    /// `inboxes`: those of this gateway; that of HTTP routes is the first.
    pub fn new(to_self: Correlation, to_nobody: Correlation, inboxes: Vec<Topic>) -> Probe {
        Probe {
            to_self,
            to_nobody,
            inboxes,
            answers: Mutex::default(),
            all_is_well: AtomicBool::new(false),
        }
    }

    /// Asks, on a new connection.
    pub fn ask(&self, publisher: &Publisher, now: Instant) {
        self.all_is_well.store(false, Ordering::SeqCst);
        *lock(&self.answers) = Answers {
            first_asked: Some(now),
            asked: Some(now),
            inboxes: vec![Readable::NotKnownYet; self.inboxes.len()],
            ..Answers::default()
        };
        self.send_to_self(publisher, |_| true);
        if publisher.offer().max_qos > Qos::AtMostOnce
            && let Some(inbox) = self.inboxes.first()
        {
            let nobody = format!("{inbox}/{}", Id::random());
            send(publisher, nobody, Qos::AtLeastOnce, &self.to_nobody);
        }
    }

    /// When it asked last, on this connection.
    pub fn asked(&self) -> Option<Instant> {
        lock(&self.answers).asked
    }

    /// Asks once more where a message to itself has not come back; a broker may drop it, for
    /// example behind more retained messages than it queues.
    pub fn ask_again(&self, publisher: &Publisher, now: Instant) {
        if self.all_is_well.load(Ordering::SeqCst) {
            return;
        }
        let missing: Vec<bool> = {
            let mut answers = lock(&self.answers);
            if answers.asked.is_none_or(|asked| now < asked + AGAIN) {
                return;
            }
            answers.asked = Some(now);
            let states = answers.inboxes.iter();
            states.map(|state| *state != Readable::Assumed).collect()
        };
        self.send_to_self(publisher, |number| missing[number]);
    }

    /// Which inbox the broker does not let this gateway read, as far as that is known.
    pub fn unreadable(&self, now: Instant) -> Option<&Topic> {
        if self.all_is_well.load(Ordering::SeqCst) {
            return None;
        }
        let mut answers = lock(&self.answers);
        let has_tried = answers.first_asked < answers.asked;
        let is_late = |since: Instant| now >= since + UNREADABLE;
        if !has_tried || !answers.first_asked.is_some_and(is_late) {
            return None;
        }
        let missing = answers
            .inboxes
            .iter()
            .position(|state| *state != Readable::Assumed)?;
        let inbox = &self.inboxes[missing];
        if std::mem::replace(&mut answers.inboxes[missing], Readable::No) != Readable::No {
            log::error!(
                "the broker returns no message to {inbox}: it does not let this gateway read that; see its access list"
            );
        }
        Some(inbox)
    }

    fn send_to_self(&self, publisher: &Publisher, which: impl Fn(usize) -> bool) {
        // As the presences: a message with QoS 0 may overtake those with QoS 1.
        let qos = Qos::AtLeastOnce.min(publisher.offer().max_qos);
        for (number, inbox) in self.inboxes.iter().enumerate() {
            if which(number) {
                send(publisher, inbox.to_string(), qos, &self.to_self);
            }
        }
    }

    /// Whether this is a message to itself, and if so, whether to the inbox of HTTP routes.
    pub fn is_back(&self, message: &Message) -> Option<bool> {
        let correlation = message.properties.correlation_data.as_deref();
        if correlation != Some(&self.to_self.0) {
            return None;
        }
        let mut inboxes = self.inboxes.iter();
        let number = inboxes.position(|inbox| inbox.as_str() == message.topic)?;
        self.assume(number);
        Some(number == 0)
    }

    fn assume(&self, number: usize) {
        let mut answers = lock(&self.answers);
        if let Some(state) = answers.inboxes.get_mut(number) {
            *state = Readable::Assumed;
        }
        let all = answers.inboxes.iter().all(|it| *it == Readable::Assumed);
        self.all_is_well.store(all, Ordering::SeqCst);
    }

    /// Takes an acknowledgement. Returns whether it was of one of these messages.
    pub fn acknowledged(&self, acknowledgement: &Acknowledgement) -> bool {
        let correlation = acknowledgement.correlation_data.as_deref();
        let (topic, delivery) = (&acknowledgement.topic, &acknowledgement.delivery);
        if correlation == Some(&self.to_nobody.0) {
            lock(&self.answers).misses_nobody = *delivery == Delivery::NobodySubscribed;
            return true;
        }
        if correlation != Some(&self.to_self.0) {
            return false;
        }
        let number = self.inboxes.iter().position(|it| it.as_str() == topic);
        if number == Some(0) {
            lock(&self.answers).finds_self = *delivery == Delivery::Taken;
        }
        match (delivery, number) {
            (Delivery::Refused(reason), Some(0)) => log::error!(
                "the broker refuses messages to this gateway's own inbox {topic}: {reason}; it can't learn which agents are there before it may publish there"
            ),
            (Delivery::Refused(_), Some(number)) => self.assume(number),
            _ => {}
        }
        true
    }

    /// Whether the broker tells truthfully that nobody is subscribed.
    pub fn tells_absence(&self) -> bool {
        let answers = lock(&self.answers);
        answers.finds_self && answers.misses_nobody
    }
}

fn send(publisher: &Publisher, topic: String, qos: Qos, correlation: &Correlation) {
    let sent = publisher.publish(
        Message {
            topic,
            qos,
            properties: Properties {
                correlation_data: Some(Bytes::copy_from_slice(&correlation.0)),
                ..Properties::default()
            },
            ..Message::default()
        },
        None,
    );
    if let Err(why) = sent {
        log::warn!("can't ask the broker which agents are there: {why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(correlation: u8, delivery: Delivery) -> Acknowledgement {
        Acknowledgement {
            topic: "inbox".into(),
            correlation_data: Some(Bytes::copy_from_slice(&[correlation; 16])),
            delivery,
        }
    }

    #[test]
    fn absence_is_believed_only_of_a_broker_that_tells_both_apart() {
        use Delivery::{NobodySubscribed, Taken};
        let refused = || Delivery::Refused("NotAuthorized".into());
        for (of_self, of_nobody, believed) in [
            (Taken, NobodySubscribed, true),
            (Taken, Taken, false),
            (NobodySubscribed, NobodySubscribed, false),
            (Taken, refused(), false),
            (refused(), NobodySubscribed, false),
        ] {
            let inboxes = vec![Topic::new("inbox").unwrap()];
            let probe = Probe::new(Correlation([1; 16]), Correlation([2; 16]), inboxes);
            assert!(!probe.acknowledged(&said(3, Taken)));
            assert!(probe.acknowledged(&said(1, of_self)));
            assert!(!probe.tells_absence());
            assert!(probe.acknowledged(&said(2, of_nobody)));
            assert_eq!(probe.tells_absence(), believed);
        }
    }

    #[test]
    fn an_inbox_that_returns_nothing_is_named() {
        let inboxes = ["inbox", "other"]
            .map(|name| Topic::new(name).unwrap())
            .to_vec();
        let probe = Probe::new(Correlation([1; 16]), Correlation([2; 16]), inboxes);
        let (sent, publisher, _) = crate::link::Memory::start();
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        probe.ask(&publisher, start);
        let [first, _, nobody]: [Message; 3] =
            sent.try_iter().collect::<Vec<_>>().try_into().unwrap();
        assert!(nobody.topic.starts_with("inbox/"));
        assert_eq!(probe.is_back(&first), Some(true));
        assert_eq!(probe.is_back(&nobody), None);
        probe.ask_again(&publisher, after(999));
        assert!(sent.is_empty());
        assert_eq!(
            probe.unreadable(after(3000)),
            None,
            "it was asked once only"
        );
        probe.ask_again(&publisher, after(1000));
        let [again]: [Message; 1] = sent.try_iter().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(again.topic, "other");
        assert_eq!(probe.unreadable(after(2999)), None);
        let unreadable = probe.unreadable(after(3000)).unwrap();
        assert_eq!(unreadable.as_str(), "other");
        assert_eq!(probe.is_back(&again), Some(false));
        assert_eq!(probe.unreadable(after(9000)), None);
    }
}
