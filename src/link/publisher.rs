//! Publishing, from any thread.

use std::sync::atomic::AtomicBool;
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use std::time::Instant;

use rumqttc::v5::Client;

use super::convert;
use super::limits::BrokerLimits;
use super::outgoing::Outgoing;
use super::publish::{Offer, PublishError};
use crate::base::threads::lock;
use crate::wire::{Message, Properties, Qos};

/// Publishes through a link, from any thread.
#[derive(Clone)]
pub struct Publisher {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub client: Client,
    pub gate: RwLock<Gate>,
    pub max_packet_bytes: u32,
    // The filters subscribed to on the present connection.
    pub subscribed: Mutex<Vec<String>>,
    pub outgoing: Mutex<Outgoing>,
    // Something has made room, or the gate has opened.
    pub room: Condvar,
    pub manual_acknowledgement: bool,
    // Set once the owner wants no more messages: a reconnect then subscribes to nothing.
    pub quiet: AtomicBool,
    // Why the owner has no use for this connection.
    pub useless: Mutex<Option<String>>,
}

impl Shared {
    pub fn read_gate(&self) -> RwLockReadGuard<'_, Gate> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    // Somebody may find room now who had none.
    pub fn made_room(&self, outgoing: MutexGuard<'_, Outgoing>) {
        let is_waited_for = outgoing.waiting > 0;
        drop(outgoing);
        if is_waited_for {
            self.room.notify_all();
        }
    }

    pub fn write_gate(&self) -> RwLockWriteGuard<'_, Gate> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) enum Gate {
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
        let size = convert::check(message, limits)?;
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
                .try_publish(topic, convert::to_qos(qos), retain, payload)
        } else {
            let properties = convert::to_properties(properties);
            self.shared.client.try_publish_with_properties(
                topic,
                convert::to_qos(qos),
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

    /// Acknowledges a received message, with [`LinkOptions::manual_acknowledgement`](super::LinkOptions::manual_acknowledgement). One that is
    /// lost with the connection is harmless: the broker sends the message again.
    pub fn acknowledge(&self, message: &Message) {
        if !self.shared.manual_acknowledgement || message.qos == Qos::AtMostOnce {
            return;
        }
        let _ = self.shared.client.try_ack(&convert::to_publish(message));
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
