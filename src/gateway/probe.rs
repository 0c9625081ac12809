//! What a gateway asks the broker at connect, by messages to itself and to nobody.
//!
//! The message to itself goes out behind the subscription to the presences: when it comes back,
//! all retained ones are here. The acknowledgements of both tell whether the broker's "no matching
//! subscribers" (0x10, MQTT 5, section 3.4.2.1) can be believed: it must not say so of a topic
//! that this gateway is subscribed to, and it must say so of one that nobody can know.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::random_id;
use crate::link::{Acknowledgement, Delivery, Publisher};
use crate::message::{Correlation, Message, Properties, Qos};
use crate::threads::lock;
use crate::topic::Topic;

/// How long the message to itself may be under way before it is sent once more.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Probe {
    // Of the message to itself, and of the one to nobody.
    to_self: Correlation,
    to_nobody: Correlation,
    answers: Mutex<Answers>,
}

#[derive(Default)]
struct Answers {
    asked: Option<Instant>,
    warned: bool,
    finds_self: bool,
    misses_nobody: bool,
}

impl Probe {
    pub fn new(to_self: Correlation, to_nobody: Correlation) -> Probe {
        Probe {
            to_self,
            to_nobody,
            answers: Mutex::default(),
        }
    }

    /// Asks, on a new connection.
    pub fn ask(&self, publisher: &Publisher, inbox: &Topic) {
        *lock(&self.answers) = Answers {
            asked: Some(Instant::now()),
            ..Answers::default()
        };
        self.send_to_self(publisher, inbox);
        if publisher.offer().max_qos > Qos::AtMostOnce {
            let nobody = format!("{inbox}/{}", random_id());
            send(publisher, nobody, Qos::AtLeastOnce, &self.to_nobody);
        }
    }

    /// Asks once more if the message to itself has not come back; a broker may drop it, for
    /// example behind more retained messages than it queues.
    pub fn ask_again(&self, publisher: &Publisher, inbox: &Topic) {
        {
            let mut answers = lock(&self.answers);
            if answers.asked.is_some_and(|asked| asked.elapsed() < AGAIN) {
                return;
            }
            answers.asked = Some(Instant::now());
            if !std::mem::replace(&mut answers.warned, true) {
                log::warn!(
                    "the broker has not returned a message to {inbox}: may this gateway read that?"
                );
            }
        }
        self.send_to_self(publisher, inbox);
    }

    fn send_to_self(&self, publisher: &Publisher, inbox: &Topic) {
        // As the presences: a message with QoS 0 may overtake those with QoS 1.
        let qos = Qos::AtLeastOnce.min(publisher.offer().max_qos);
        send(publisher, inbox.to_string(), qos, &self.to_self);
    }

    /// Whether this is the message to itself.
    pub fn is_back(&self, message: &Message, inbox: &Topic) -> bool {
        let correlation = message.properties.correlation_data.as_deref();
        correlation == Some(&self.to_self.0) && message.topic == inbox.as_str()
    }

    /// Takes an acknowledgement. Returns whether it was of one of the two messages.
    pub fn acknowledged(&self, acknowledgement: &Acknowledgement) -> bool {
        let correlation = acknowledgement.correlation_data.as_deref();
        let mut answers = lock(&self.answers);
        if correlation == Some(&self.to_self.0) {
            answers.finds_self = acknowledgement.delivery == Delivery::Taken;
            if let Delivery::Refused(reason) = &acknowledgement.delivery {
                log::error!(
                    "the broker refuses messages to this gateway's own inbox {}: {reason}; it can't learn which agents are there before it may publish there",
                    acknowledgement.topic
                );
            }
            return true;
        }
        if correlation == Some(&self.to_nobody.0) {
            answers.misses_nobody = acknowledgement.delivery == Delivery::NobodySubscribed;
            return true;
        }
        false
    }

    /// Whether the broker tells truthfully that nobody is subscribed.
    pub fn tells_absence(&self) -> bool {
        let answers = lock(&self.answers);
        answers.finds_self && answers.misses_nobody
    }
}

fn send(publisher: &Publisher, topic: String, qos: Qos, correlation: &Correlation) {
    let sent = publisher.publish(Message {
        topic,
        qos,
        properties: Properties {
            correlation_data: Some(Bytes::copy_from_slice(&correlation.0)),
            ..Properties::default()
        },
        ..Message::default()
    });
    if let Err(why) = sent {
        log::warn!("can't ask the broker which agents are there: {why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(correlation: u8, delivery: Delivery) -> Acknowledgement {
        Acknowledgement {
            topic: "t".into(),
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
            let probe = Probe::new(Correlation([1; 16]), Correlation([2; 16]));
            assert!(!probe.acknowledged(&said(3, Taken)));
            assert!(probe.acknowledged(&said(1, of_self)));
            assert!(!probe.tells_absence());
            assert!(probe.acknowledged(&said(2, of_nobody)));
            assert_eq!(probe.tells_absence(), believed);
        }
    }
}
