//! What goes in and out of a link.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::prefix::Prefix;
use super::url::BrokerUrl;
use crate::base::topic::{Id, TopicFilter};
use crate::wire::{Message, Qos};

/// Publishes messages, from any thread.
pub trait Publish: Send + Sync {
    /// Takes a message for the broker. Never blocks. It is sent on the present connection, before
    /// `deadline` if there is one, or not at all.
    ///
    /// Errors: see [`PublishError`]; then it was not taken.
    fn publish(&self, message: Message, deadline: Option<Instant>) -> Result<(), PublishError>;

    /// The same, but waits for a place, or for a connection, until `deadline`. Not for the thread
    /// that events are delivered on.
    ///
    /// Errors: as [`Publish::publish`].
    fn publish_before(&self, message: Message, deadline: Instant) -> Result<(), PublishError>;

    /// Takes the pieces of a stream, one in turn with those of the others, until it has no more for
    /// now. Whole messages go first. Where there is no connection, it does nothing.
    fn publish_pieces(&self, stream: Arc<dyn Pieces>);

    /// Acknowledges a received message, with [`LinkOptions::manual_acknowledgement`]. One that is
    /// lost with the connection is harmless: the broker sends the message again.
    fn acknowledge(&self, message: &Message);

    /// What the broker does.
    fn offer(&self) -> Offer;

    /// Gives this connection up, and tries another one in some seconds. For the thread that events
    /// are delivered on.
    fn give_up(&self, reason: String);

    /// Whether there is a connection with all subscriptions.
    ///
    /// Errors: there is none, for this reason.
    fn connected(&self) -> Result<(), String>;

    /// Whether there is a connection that takes messages.
    ///
    /// Errors: there is none, for this reason.
    fn ready(&self) -> Result<(), String>;
}

/// A stream: where pieces come from, when there is a place for one.
pub trait Pieces: Send + Sync {
    /// The next message to send now; `None`: there is none for now. It is called under the lock of the
    /// link, so it must publish nothing.
    fn next_piece(&self, now: Instant) -> Option<Message>;
}

/// What other threads publish with.
pub type Publisher = Arc<dyn Publish>;

/// What a link connects to, and as whom.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// The brokers, one of which it is connected to at a time; one at least.
    pub brokers: Vec<BrokerUrl>,
    /// What this project's topics begin with there.
    pub prefix: Prefix,
    /// The client identifier: unique at this broker.
    pub client_id: String,
    /// Keep the session at the broker for this long while disconnected; zero: don't.
    pub session_expiry: Duration,
    /// The interval between pings, at least 5 s.
    pub keep_alive: Duration,
    /// The largest packet to take or to send, in bytes.
    pub max_packet_bytes: u32,
    /// How many messages may wait to be written, and how many bytes they may take.
    pub queue: usize,
    /// How many bytes they may take.
    pub queue_bytes: usize,
    /// Send the first message on each topic with QoS 1, until the broker has acknowledged one: what
    /// may not be published, it drops without a word.
    pub proves_topics: bool,
    /// Acknowledge no message of QoS 1 or 2 before the owner calls [`Publish::acknowledge`].
    pub manual_acknowledgement: bool,
    /// What the broker publishes for this client if its connection just ends.
    pub will: Option<Message>,
    /// What to subscribe to, anew after each reconnect.
    pub subscriptions: Vec<Subscription>,
}

/// One subscription.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// What to receive.
    pub filter: TopicFilter,
    /// The highest quality of service to receive it with.
    pub qos: Qos,
    /// The group that shares it, where the broker has shared subscriptions.
    pub group: Option<Id>,
    /// Whether to receive the retained messages that are there already.
    pub retained: bool,
    /// Whether a connection is of no use without it.
    pub is_needed: bool,
}

/// What a link tells its owner, on the `mqtt` thread.
#[derive(Debug)]
pub enum LinkEvent {
    /// The broker granted a subscription.
    Granted {
        /// As subscribed.
        filter: String,
        /// With this quality of service.
        qos: Qos,
    },
    /// The broker refused a subscription; the link will connect and try again.
    Refused {
        /// As subscribed.
        filter: String,
        /// Why.
        reason: String,
    },
    /// Connected, and every subscription acknowledged.
    Ready,
    /// The connection is lost or could not be made; the link will try again.
    Down(String),
    /// A message came.
    Message(Message),
    /// A QoS 0 message was written to the connection.
    Written,
    /// The broker acknowledged a QoS 1 or 2 message, or refused it.
    Acknowledged(Acknowledgement),
}

/// What the broker said to a message with QoS 1 or 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The message's topic.
    pub topic: String,
    /// The message's correlation data.
    pub correlation_data: Option<Bytes>,
    /// What became of it.
    pub delivery: Delivery,
}

/// What became of a message, as the broker says (MQTT 5, section 3.4.2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The broker has it.
    Taken,
    /// The broker has it, and knows nobody to give it to (reason code 0x10).
    NobodySubscribed,
    /// The broker refused it, for this reason.
    Refused(String),
}

/// What the broker says at connect that it does; everything while there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The highest quality of service that it takes messages with.
    pub max_qos: Qos,
    /// Whether it keeps retained messages.
    pub retain: bool,
    /// The largest packet that it, and this program, take, in bytes.
    pub max_packet_bytes: usize,
}

/// Why a message could not be published. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishError {
    /// There is no connection, for this reason.
    NotConnected(String),
    /// Too many messages wait to be written, or to be acknowledged.
    Busy,
    /// The connection has taken nothing for this long.
    Stalled(Duration),
    /// The packet would be larger than the broker or this link allows.
    TooLarge {
        /// Its size, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
        /// Whether it is the broker's own, and not this program's.
        is_brokers: bool,
    },
    /// The broker said at connect that it does not do this.
    NotSupported(&'static str),
}

impl PublishError {
    /// Whether it may be otherwise after a while.
    pub fn may_pass(&self) -> bool {
        match self {
            PublishError::NotConnected(_) | PublishError::Busy | PublishError::Stalled(_) => true,
            PublishError::TooLarge { .. } | PublishError::NotSupported(_) => false,
        }
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PublishError::NotConnected(reason) => write!(f, "no connection: {reason}"),
            PublishError::Busy => f.write_str("too many messages wait to be sent"),
            PublishError::Stalled(age) => {
                write!(
                    f,
                    "the connection has taken nothing for {} ms",
                    age.as_millis()
                )
            }
            PublishError::TooLarge {
                size,
                limit,
                is_brokers,
            } => {
                let whose = match is_brokers {
                    true => "the broker's limit",
                    false => "this program's limit, which follows from max_body_bytes",
                };
                write!(f, "the packet has {size} bytes, {whose} is {limit}")
            }
            PublishError::NotSupported(what) => write!(f, "the broker does not support {what}"),
        }
    }
}
