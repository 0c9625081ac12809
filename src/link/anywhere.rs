//! Publishing on whichever connection there is: for what may reach its receiver through any broker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::publish::{Offer, Pieces, Publish, PublishError, Publisher};
use crate::wire::Message;

/// How often who waits for a place looks whether there is one.
const LOOK: Duration = Duration::from_millis(5);

/// Several connections; one of them is preferred.
pub(super) struct Anywhere {
    // In the order in which they are tried.
    ways: Vec<Publisher>,
}

impl Anywhere {
    /// The connection with this number comes first.
    pub fn preferring(number: usize, all: &[Publisher]) -> Publisher {
        if let [only] = all {
            return Arc::clone(only);
        }
        let (before, from) = all.split_at(number);
        let ways = from.iter().chain(before).cloned().collect();
        Arc::new(Anywhere { ways })
    }

    fn present(&self) -> &Publisher {
        let connected = self.ways.iter().find(|way| way.connected().is_ok());
        connected.unwrap_or(&self.ways[0])
    }
}

impl Publish for Anywhere {
    fn publish(&self, message: Message, deadline: Option<Instant>) -> Result<(), PublishError> {
        self.present().publish(message, deadline)
    }

    // In turns, since a place may come free, or a connection come back, on any of them.
    fn publish_before(&self, message: Message, deadline: Instant) -> Result<(), PublishError> {
        loop {
            let tried = self.present().publish(message.clone(), Some(deadline));
            match tried {
                Err(why) if why.may_pass() && Instant::now() < deadline => {
                    std::thread::sleep(LOOK);
                }
                other => return other,
            }
        }
    }

    fn publish_pieces(&self, stream: Arc<dyn Pieces>) {
        self.present().publish_pieces(stream);
    }

    fn acknowledge(&self, message: &Message) {
        self.ways[0].acknowledge(message);
    }

    fn offer(&self) -> Offer {
        self.present().offer()
    }

    fn give_up(&self, reason: String) {
        self.ways[0].give_up(reason);
    }

    fn connected(&self) -> Result<(), String> {
        self.present().connected()
    }

    fn ready(&self) -> Result<(), String> {
        self.present().ready()
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn message() -> Message {
        Message {
            topic: "t".into(),
            ..Message::default()
        }
    }

    #[test]
    fn what_one_connection_can_not_take_another_does() {
        let (at_first, first, memory) = Memory::start();
        let (at_second, second, other) = Memory::start();
        let anywhere = Anywhere::preferring(1, &[first, second]);
        anywhere.publish(message(), None).unwrap();
        assert_eq!((at_first.len(), at_second.len()), (0, 1));
        let gone = || Some(PublishError::NotConnected("gone".into()));
        other.refuse(gone());
        anywhere.publish(message(), None).unwrap();
        assert_eq!((at_first.len(), at_second.len()), (1, 1));
        memory.refuse(gone());
        let refused = anywhere.publish(message(), None);
        assert_eq!(Some(refused.unwrap_err()), gone());
        std::thread::scope(|scope| {
            let waits = || anywhere.publish_before(message(), Instant::now() + LONG);
            let waiting = scope.spawn(waits);
            memory.refuse(None);
            waiting.join().unwrap().unwrap();
        });
        assert_eq!((at_first.len(), at_second.len()), (2, 1));
    }
}
