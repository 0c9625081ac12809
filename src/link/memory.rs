//! A link without a broker, for tests: what is published comes out at the other end of a channel.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::publish::{Offer, Pieces, Publish, PublishError, Publisher};
use crate::base::threads::lock;
use crate::wire::{Message, Qos};

pub(crate) struct Memory {
    sent: Sender<Message>,
    refusal: Mutex<Option<PublishError>>,
}

impl Memory {
    /// Makes one: the other side's end, the publisher's, and what decides how it behaves.
    pub fn start() -> (Receiver<Message>, Publisher, Arc<Memory>) {
        let (sent, received) = crossbeam_channel::unbounded();
        let memory = Arc::new(Memory {
            sent,
            refusal: Mutex::default(),
        });
        (received, memory.clone(), memory)
    }

    /// From now on nothing can be published, for this reason; `None`: everything can again.
    pub fn refuse(&self, why: Option<PublishError>) {
        *lock(&self.refusal) = why;
    }
}

impl Publish for Memory {
    fn publish(&self, message: Message, _: Option<Instant>) -> Result<(), PublishError> {
        self.connected().map_err(PublishError::NotConnected)?;
        match lock(&self.refusal).clone() {
            Some(why) => Err(why),
            None => {
                let _ = self.sent.send(message);
                Ok(())
            }
        }
    }

    fn publish_before(&self, message: Message, deadline: Instant) -> Result<(), PublishError> {
        self.publish(message, Some(deadline))
    }

    fn publish_pieces(&self, stream: Arc<dyn Pieces>) {
        while let Some(piece) = stream.next_piece(Instant::now()) {
            let _ = self.publish(piece, None);
        }
    }

    fn acknowledge(&self, _: &Message) {}

    fn offer(&self) -> Offer {
        Offer {
            max_qos: Qos::ExactlyOnce,
            retain: true,
            max_packet_bytes: 100_000,
        }
    }

    fn give_up(&self, _: String) {}

    fn connected(&self) -> Result<(), String> {
        match &*lock(&self.refusal) {
            Some(PublishError::NotConnected(reason)) => Err(reason.clone()),
            _ => Ok(()),
        }
    }

    fn ready(&self) -> Result<(), String> {
        match &*lock(&self.refusal) {
            Some(why) => Err(why.to_string()),
            None => Ok(()),
        }
    }
}
