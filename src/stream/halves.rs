//! Both halves of what two programs have between them, and how long the other one is silent. Pure.

use std::time::{Duration, Instant};

use super::flight::Flight;
use super::receiver::{Receiver, Violation};
use super::sender::Sender;
use super::why::Why;
use crate::wire::stream::Piece;

/// After how long a silence the other side is asked whether it is there, and after how long it counts
/// as gone.
const ASK: Duration = Duration::from_secs(15);
const ASK_STOPPED: Duration = Duration::from_millis(100);
const GONE: Duration = Duration::from_secs(50);

pub(super) struct Halves {
    pub sender: Option<Sender>,
    pub receiver: Option<Receiver>,
    /// When something of the bodies has moved last, and when the other side was heard.
    pub moved: Instant,
    pub heard: Instant,
    asked: Instant,
}

impl Halves {
    pub fn new(now: Instant) -> Halves {
        Halves {
            sender: None,
            receiver: None,
            moved: now,
            heard: now,
            asked: now,
        }
    }

    /// Whether both directions are over.
    pub fn is_over(&self) -> bool {
        self.sender.as_ref().is_none_or(Sender::is_done)
            && self.receiver.as_ref().is_none_or(Receiver::is_complete)
    }

    /// Whether there is something to send now.
    pub fn has_next(&self, now: Instant) -> bool {
        let receiver = self.receiver.as_ref();
        receiver.is_some_and(|it| it.has_next(now))
            || self.sender.as_ref().is_some_and(Sender::has_next)
    }

    /// The next message to send now; a part of a body only if there is a place for one.
    pub fn next(&mut self, now: Instant, flight: &Flight) -> Option<Piece> {
        if let Some(receiver) = &mut self.receiver
            && let Some(piece) = receiver.next(now)
        {
            return Some(piece);
        }
        let sender = self.sender.as_mut()?;
        if sender.has_data() && !flight.has_place() {
            return sender.question();
        }
        let next = sender.next(now);
        if flight.is_crowded(sender.in_flight()) {
            sender.ask_once();
        }
        next
    }

    /// Takes a message of the other side.
    ///
    /// Errors: it breaks the rules.
    pub fn take(&mut self, piece: Piece, now: Instant) -> Result<(), Violation> {
        self.heard = now;
        let moves = match (piece, &mut self.sender, &mut self.receiver) {
            (Piece::Data { offset, bytes }, _, Some(receiver)) => {
                let is_question = bytes.is_empty();
                receiver.data(offset, bytes, now)?;
                !is_question
            }
            (Piece::End { length }, _, Some(receiver)) => {
                receiver.end(length, now)?;
                true
            }
            (Piece::Credit { got, window }, Some(sender), _) => sender.credit(got, window, now),
            (Piece::Ended { length }, Some(sender), _) => {
                sender.ended(length);
                true
            }
            _ => false,
        };
        if moves {
            self.moved = now;
        }
        Ok(())
    }

    /// Why it counts as dead, if it does: nothing has moved for longer than `idle`, or the other side
    /// was not heard, though it could be.
    pub fn dead(&self, now: Instant, idle: Option<Duration>, can_hear: bool) -> Option<Why> {
        let since = |then: Instant| now.saturating_duration_since(then);
        if self.is_over() {
            return None;
        }
        if idle.is_some_and(|idle| since(self.moved) >= idle) {
            return Some(Why::Idle);
        }
        (can_hear && since(self.heard) >= GONE).then_some(Why::PeerGone)
    }

    /// Looks at the time. `is_full`: nobody may send any more, until somebody's bytes are confirmed.
    pub fn tick(&mut self, now: Instant, is_full: bool) {
        let since = |then: Instant| now.saturating_duration_since(then);
        let Some(sender) = &mut self.sender else {
            return;
        };
        sender.tick(now);
        // The receivers may have more than they have said.
        let is_stopped = is_full && sender.in_flight() > 0;
        let patience = if is_stopped { ASK_STOPPED } else { ASK };
        if since(self.heard) >= patience && since(self.asked) >= patience {
            self.asked = now;
            sender.ask();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Flight {
        Flight::new(1000, 100, 1_000_000)
    }

    fn full() -> Flight {
        let flight = empty();
        flight.flies(0, usize::MAX / 2);
        flight
    }

    #[test]
    fn who_is_silent_is_asked_and_then_given_up() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut halves = Halves::new(begun);
        halves.sender = Some(Sender::new(100, 100, begun));
        halves.tick(after(14), false);
        assert!(!halves.has_next(after(14)));
        halves.tick(after(15), false);
        let question = halves.next(after(15), &full()).unwrap();
        assert!(matches!(question, Piece::Data { bytes, .. } if bytes.is_empty()));
        assert_eq!(halves.dead(after(49), None, true), None);
        assert_eq!(halves.dead(after(50), None, true), Some(Why::PeerGone));
        assert_eq!(
            halves.dead(after(50), None, false),
            None,
            "nobody could be heard"
        );
        let credit = Piece::Credit {
            got: 0,
            window: 100,
        };
        halves.take(credit, after(50)).unwrap();
        assert_eq!(halves.dead(after(60), None, true), None);
        let idle = Some(Duration::from_secs(60));
        assert_eq!(
            halves.dead(after(60), idle, true),
            Some(Why::Idle),
            "that moves nothing"
        );
    }

    #[test]
    fn who_is_one_of_many_has_his_confirmed_soon() {
        let now = Instant::now();
        let mut halves = Halves::new(now);
        let mut sender = Sender::new(1000, 10, now);
        sender.push(vec![0; 40].into());
        halves.sender = Some(sender);
        let crowded = empty();
        crowded.flies(0, 100 * 1024);
        let mut sizes = Vec::new();
        while let Some(Piece::Data { bytes, .. }) = halves.next(now, &crowded) {
            sizes.push(bytes.len());
        }
        assert_eq!(
            sizes,
            [10, 0, 10, 10, 10],
            "one question until there is an answer"
        );
    }

    #[test]
    fn where_all_is_used_up_it_is_asked_what_has_come() {
        let now = Instant::now();
        let mut halves = Halves::new(now);
        let mut sender = Sender::new(100, 10, now);
        sender.push(vec![0; 20].into());
        halves.sender = Some(sender);
        assert!(matches!(
            halves.next(now, &empty()),
            Some(Piece::Data { offset: 0, .. })
        ));
        assert_eq!(halves.next(now, &full()), None);
        let later = now + ASK_STOPPED;
        halves.tick(later, true);
        let question = halves.next(later, &full());
        assert!(matches!(question, Some(Piece::Data { offset: 20, .. })));
    }
}
