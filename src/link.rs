//! The connection to the broker. Nothing outside this file and its folder names `rumqttc`.
//!
//! One thread, named `mqtt`, drives the connection for as long as the link lives: it reads,
//! writes, pings, and after a failure it waits and connects again. Everybody else publishes
//! through a [`Publisher`], which never blocks. Events are delivered *on* the `mqtt` thread, so
//! what handles them must not block either.
//!
//! rumqttc's sync `Client` is not free of async inside: its `Connection` owns a private
//! single-threaded runtime, which the `mqtt` thread runs whenever it calls `recv`.
//!
//! Three rules shape this file:
//! - Nothing is published before the subscriptions are acknowledged, and nothing that was queued
//!   for a lost connection is sent on the next one: it would be stale. A gate guards both. To
//!   publish is to hold it open (a read lock); the `mqtt` thread closes it (a write lock), throws
//!   away what is queued, and only then connects again.
//! - rumqttc cuts the connection when asked to send a packet that the broker would not take, so
//!   every size is checked before.
//! - Stopping says goodbye: DISCONNECT goes out behind all that was published, and the thread
//!   ends when the broker has closed the connection.

mod address;
mod driver;
mod greeting;
mod limits;
mod outgoing;
mod tls;
mod wire;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use rumqttc::v5::{Client, ClientError};

use crate::config::BrokerUrl;
use crate::error::Result;
use crate::message::{Message, Properties, Qos};
use crate::threads::{self, StopTrigger, lock};
use crate::topic::{Id, TopicFilter};
use driver::Driver;
use limits::BrokerLimits;
use outgoing::Outgoing;

/// What a link connects to, and as whom.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// The broker.
    pub broker: BrokerUrl,
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
    /// Acknowledge no message of QoS 1 or 2 before the owner calls [`Publisher::acknowledge`].
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

/// Publishes through a link, from any thread.
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    gate: RwLock<Gate>,
    max_packet_bytes: u32,
    // The filters subscribed to on the present connection.
    subscribed: Mutex<Vec<String>>,
    outgoing: Mutex<Outgoing>,
    // Something has made room, or the gate has opened.
    room: Condvar,
    manual_acknowledgement: bool,
    // Set once the owner wants no more messages: a reconnect then subscribes to nothing.
    quiet: AtomicBool,
    // Why the owner has no use for this connection.
    useless: Mutex<Option<String>>,
}

impl Shared {
    fn read_gate(&self) -> RwLockReadGuard<'_, Gate> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    // Somebody may find room now who had none.
    fn made_room(&self, outgoing: MutexGuard<'_, Outgoing>) {
        let is_waited_for = outgoing.waiting > 0;
        drop(outgoing);
        if is_waited_for {
            self.room.notify_all();
        }
    }

    fn write_gate(&self) -> RwLockWriteGuard<'_, Gate> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Gate {
    Closed(String),
    Open(BrokerLimits),
}

impl Publisher {
    /// Queues a message for the broker. Never blocks.
    ///
    /// Errors: see [`PublishError`]; then nothing was queued. A message that was queued is sent
    /// on the present connection or, if that is lost first, not at all.
    pub fn publish(&self, message: Message) -> std::result::Result<(), PublishError> {
        self.try_publish(&mut Some(message))
    }

    /// The same, but waits for a place, or for a connection, until `deadline`. Not for the thread
    /// that events are delivered on.
    ///
    /// Errors: as [`Publisher::publish`].
    pub fn publish_before(
        &self,
        message: Message,
        deadline: Instant,
    ) -> std::result::Result<(), PublishError> {
        let shared = &*self.shared;
        let mut message = Some(message);
        loop {
            let seen = lock(&shared.outgoing).changes;
            let why = match self.try_publish(&mut message) {
                Err(
                    why @ (PublishError::NotConnected(_)
                    | PublishError::Busy
                    | PublishError::Stalled(_)),
                ) => why,
                other => return other,
            };
            let mut outgoing = lock(&shared.outgoing);
            outgoing.waiting += 1;
            while outgoing.changes == seen {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    outgoing.waiting -= 1;
                    return Err(why);
                }
                let waited = shared.room.wait_timeout(outgoing, left);
                outgoing = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            outgoing.waiting -= 1;
        }
    }

    // Takes the message only if it is queued.
    fn try_publish(&self, slot: &mut Option<Message>) -> std::result::Result<(), PublishError> {
        let gate = self.shared.read_gate();
        let limits = match &*gate {
            Gate::Open(limits) => limits,
            Gate::Closed(reason) => return Err(PublishError::NotConnected(reason.clone())),
        };
        let Some(message) = slot else {
            return Ok(());
        };
        let size = wire::check(message, limits)?;
        let mut outgoing = lock(&self.shared.outgoing);
        outgoing.add(message, size, limits)?;
        // Where nobody acknowledges anything, the order in which messages are queued does not matter,
        // and waking the mqtt thread under the lock would keep all other threads waiting.
        let ordered = (message.qos > Qos::AtMostOnce).then_some(outgoing);
        let Some(message) = slot.take() else {
            return Ok(());
        };
        let Message {
            topic,
            payload,
            qos,
            retain,
            properties,
            ..
        } = message;
        let result = if properties == Properties::default() {
            self.shared
                .client
                .try_publish(topic, wire::to_qos(qos), retain, payload)
        } else {
            let properties = wire::to_properties(properties);
            self.shared.client.try_publish_with_properties(
                topic,
                wire::to_qos(qos),
                retain,
                payload,
                properties,
            )
        };
        // Still under the gate's read lock: what was queued now is thrown away if the connection
        // is lost, never sent on the next one.
        result.map_err(|_| {
            ordered
                .unwrap_or_else(|| lock(&self.shared.outgoing))
                .take_back(qos);
            PublishError::Busy
        })
    }

    /// Acknowledges a received message, with [`LinkOptions::manual_acknowledgement`]. One that is
    /// lost with the connection is harmless: the broker sends the message again.
    pub fn acknowledge(&self, message: &Message) {
        if !self.shared.manual_acknowledgement || message.qos == Qos::AtMostOnce {
            return;
        }
        let _ = self.shared.client.try_ack(&wire::to_publish(message));
    }

    /// What the broker does.
    pub fn offer(&self) -> Offer {
        match &*self.shared.read_gate() {
            Gate::Open(limits) => Offer {
                max_qos: limits.max_qos,
                retain: limits.retain,
            },
            Gate::Closed(_) => Offer {
                max_qos: Qos::ExactlyOnce,
                retain: true,
            },
        }
    }

    /// Gives this connection up, and tries another one in some seconds. For the thread that events
    /// are delivered on.
    pub fn give_up(&self, reason: String) {
        *lock(&self.shared.useless) = Some(reason);
    }

    /// Whether there is a connection with all subscriptions; if not, why.
    pub fn connected(&self) -> std::result::Result<(), String> {
        match &*self.shared.read_gate() {
            Gate::Open(_) => Ok(()),
            Gate::Closed(reason) => Err(reason.clone()),
        }
    }

    /// Whether there is a connection that takes messages; if not, why.
    pub fn ready(&self) -> std::result::Result<(), String> {
        self.connected()?;
        match lock(&self.shared.outgoing).stalled(Instant::now()) {
            None => Ok(()),
            Some(age) => Err(PublishError::Stalled(age).to_string()),
        }
    }
}

/// A connection to the broker that stays up, and the thread that sees to it.
pub struct Link {
    publisher: Publisher,
    trigger: StopTrigger,
    unsubscribed: Receiver<()>,
    thread: JoinHandle<()>,
}

/// Looks whether the files that a broker's URL needs for TLS can be used.
///
/// Errors: they can't ([`Error::Tls`](crate::error::Error::Tls)).
pub fn check_tls(broker: &BrokerUrl) -> Result<()> {
    match broker.is_tls() {
        true => tls::transport(broker.tls_files(), None).map(|_| ()),
        false => Ok(()),
    }
}

impl Link {
    /// Starts the `mqtt` thread, which connects in the background. `on_event` runs on it.
    ///
    /// Errors: no thread, or no usable certificates ([`Error::Tls`](crate::error::Error::Tls)).
    pub fn start(
        options: LinkOptions,
        on_event: impl FnMut(&Publisher, LinkEvent) + Send + 'static,
    ) -> Result<Link> {
        // Besides messages there are subscriptions and the like.
        let (client, connection) =
            Client::new(wire::mqtt_options(&options, None)?, options.queue + 64);
        let publisher = Publisher {
            shared: Arc::new(Shared {
                client,
                gate: RwLock::new(Gate::Closed("not yet connected".into())),
                max_packet_bytes: options.max_packet_bytes,
                subscribed: Mutex::new(Vec::new()),
                outgoing: Mutex::new(Outgoing::new(&options)),
                room: Condvar::new(),
                manual_acknowledgement: options.manual_acknowledgement,
                quiet: AtomicBool::new(false),
                useless: Mutex::default(),
            }),
        };
        let (trigger, stop) = threads::stop_signal();
        let (on_unsubscribed, unsubscribed) = crossbeam_channel::bounded(16);
        let mut driver = Driver::new(
            connection,
            publisher.clone(),
            options,
            stop,
            Box::new(on_event),
            on_unsubscribed,
        );
        let thread = threads::spawn("mqtt", 512, move || driver.run())?;
        Ok(Link {
            publisher,
            trigger,
            unsubscribed,
            thread,
        })
    }

    /// The handle that other threads publish with.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Unsubscribes from everything and waits until the broker has confirmed it, so that it hands
    /// what comes next to others. Publishing goes on. Gives up quietly at `deadline`.
    pub fn unsubscribe(&self, deadline: Instant) {
        let shared = &self.publisher.shared;
        shared.quiet.store(true, Ordering::SeqCst);
        if self.publisher.connected().is_err() {
            return;
        }
        let filters = std::mem::take(&mut *lock(&shared.subscribed));
        let sent = filters
            .into_iter()
            .filter(|filter| shared.client.try_unsubscribe(filter.as_str()).is_ok())
            .count();
        for _ in 0..sent {
            if self.unsubscribed.recv_deadline(deadline).is_err() {
                break;
            }
        }
    }

    /// Disconnects behind all that was published, and joins the thread.
    ///
    /// Errors: the thread is still stuck in the connection at `deadline`, or as long after the call
    /// as an attempt to connect may take ([`Error::Thread`](crate::error::Error::Thread)).
    pub fn stop(self, deadline: Instant) -> Result<()> {
        // An attempt to connect can't be cut short.
        let deadline = deadline.max(Instant::now() + wire::CONNECT_TIMEOUT) + driver::GOODBYE;
        self.trigger.stop();
        // Wakes the thread if it waits for the connection. If it doesn't take this, it is either
        // writing or waiting to connect again; it looks at the stop signal after both.
        while let Err(ClientError::TryRequest(_)) = self.publisher.shared.client.try_disconnect() {
            if self.thread.is_finished() || Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        threads::join_until(self.thread, deadline)
    }
}
