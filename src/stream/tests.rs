//! Both halves over a network that loses, repeats, reorders and breaks.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::receiver::{Receiver, Violation};
use super::sender::Sender;
use crate::wire::stream::Piece;

const WINDOW: u64 = 1000;
const PIECE: usize = 100;

fn start() -> Instant {
    Instant::now()
}

fn body(length: usize) -> Bytes {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// What the network does to one message, or to everything.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Arrives,
    Lost,
    Twice,
    // Behind so many later ones.
    Late(usize),
    // Both ways are empty, and both sides are told.
    Reconnect,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Arrives),
        2 => Just(Fate::Lost),
        2 => Just(Fate::Twice),
        3 => (1..20usize).prop_map(Fate::Late),
        1 => Just(Fate::Reconnect),
    ]
}

struct World {
    sender: Sender,
    receiver: Receiver,
    source: VecDeque<Bytes>,
    to_receiver: VecDeque<Piece>,
    to_sender: VecDeque<Piece>,
    got: Vec<u8>,
    now: Instant,
    fates: VecDeque<Fate>,
}

impl World {
    fn new(content: &Bytes, cuts: &[usize], fates: Vec<Fate>) -> World {
        let now = start();
        let mut source = VecDeque::new();
        let mut rest = content.clone();
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let next = *cuts.next().unwrap();
            source.push_back(rest.split_to(next.min(rest.len())));
        }
        World {
            sender: Sender::new(WINDOW, PIECE, now),
            receiver: Receiver::new(WINDOW),
            source,
            to_receiver: VecDeque::new(),
            to_sender: VecDeque::new(),
            got: Vec::new(),
            now,
            fates: fates.into(),
        }
    }

    /// Sends a message each way and delivers one each way, as fate wants it.
    fn step(&mut self, reads: bool) {
        let room = self.sender.room();
        if let Some(next) = self.source.front_mut() {
            let part = next.split_to(next.len().min(room));
            let is_used = next.is_empty();
            self.sender.push(part);
            if is_used {
                self.source.pop_front();
            }
        } else {
            self.sender.finish();
        }
        self.sender.tick(self.now);
        let sent = self.sender.next(self.now);
        let fate = self.fates.pop_front().unwrap_or(Fate::Arrives);
        post(&mut self.to_receiver, sent, fate);
        let said = self.receiver.next(self.now);
        let fate = self.fates.pop_front().unwrap_or(Fate::Arrives);
        post(&mut self.to_sender, said, fate);
        if let Fate::Reconnect = fate {
            self.to_receiver.clear();
            self.to_sender.clear();
            self.sender.reconnected(self.now);
            self.receiver.reconnected();
        }
        match self.to_receiver.pop_front() {
            Some(Piece::Data { offset, bytes }) => {
                self.receiver.data(offset, bytes, self.now).unwrap();
            }
            Some(Piece::End { length }) => self.receiver.end(length, self.now).unwrap(),
            other => assert_eq!(other, None),
        }
        match self.to_sender.pop_front() {
            Some(Piece::Credit { got, window }) => {
                self.sender.credit(got, window, self.now);
            }
            Some(Piece::Ended { length }) => self.sender.ended(length),
            other => assert_eq!(other, None),
        }
        if reads && let Some(bytes) = self.receiver.read(usize::MAX) {
            self.got.extend_from_slice(&bytes);
        }
        assert!(self.sender.kept_bytes() as u64 <= WINDOW);
        assert!(self.receiver.kept_bytes() as u64 <= WINDOW);
        self.now += Duration::from_millis(7);
    }

    fn is_done(&self) -> bool {
        self.sender.is_done() && self.receiver.is_complete()
    }
}

fn post(way: &mut VecDeque<Piece>, message: Option<Piece>, fate: Fate) {
    let Some(message) = message else {
        return;
    };
    match fate {
        Fate::Arrives | Fate::Reconnect => way.push_back(message),
        Fate::Lost => {}
        Fate::Twice => way.extend([message.clone(), message]),
        Fate::Late(by) => way.insert(way.len().saturating_sub(by), message),
    }
}

proptest! {
    #[test]
    fn the_same_bytes_come_out_whatever_happens_on_the_way(
        length in 0..8000usize,
        cuts in proptest::collection::vec(1..400usize, 1..8),
        fates in proptest::collection::vec(fate(), 0..600),
        pauses in proptest::collection::vec(any::<bool>(), 1..50),
    ) {
        let content = body(length);
        let mut world = World::new(&content, &cuts, fates);
        let mut steps = 0;
        while !world.is_done() {
            // A reader that pauses, but not for ever.
            let reads = steps > 2000 || pauses[steps % pauses.len()];
            world.step(reads);
            steps += 1;
            prop_assert!(steps < 20_000, "it never ends: {:?} {:?}", world.sender, world.receiver);
        }
        prop_assert_eq!(&world.got, &content);
        prop_assert!(world.sender.next(world.now).is_none() && world.sender.due().is_none());
    }

    #[test]
    fn nothing_that_strangers_send_panics_or_fills_the_memory(
        pieces in proptest::collection::vec((0..1100u64, 0..300usize, any::<bool>()), 0..100),
        credits in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..30),
    ) {
        let now = start();
        let mut receiver = Receiver::new(WINDOW);
        for (offset, length, is_end) in pieces {
            let _ = match is_end {
                true => receiver.end(offset, now),
                false => receiver.data(offset, vec![0; length].into(), now),
            };
            let _ = receiver.next(now);
            prop_assert!(receiver.kept_bytes() as u64 <= 2 * WINDOW);
        }
        let mut sender = Sender::new(WINDOW, PIECE, now);
        sender.push(body(500));
        for (got, window) in credits {
            sender.credit(got, window, now);
            let _ = sender.next(now);
            prop_assert!(!sender.is_done());
        }
    }
}

/// All that is to be sent now.
fn sent(sender: &mut Sender, now: Instant) -> Vec<Piece> {
    std::iter::from_fn(|| sender.next(now)).collect()
}

fn offsets(pieces: &[Piece]) -> Vec<u64> {
    let offset = |piece: &Piece| match piece {
        Piece::Data { offset, .. } => Some(*offset),
        _ => None,
    };
    pieces.iter().filter_map(offset).collect()
}

#[test]
fn nothing_is_sent_beyond_the_window_and_an_event_at_once() {
    let now = start();
    let mut sender = Sender::new(250, PIECE, now);
    assert_eq!(sender.room(), 250);
    sender.push(body(30));
    assert_eq!(offsets(&sent(&mut sender, now)), [0], "it fills no piece");
    sender.push(body(220));
    assert_eq!(offsets(&sent(&mut sender, now)), [30, 130, 230]);
    assert_eq!(sender.room(), 0);
    sender.credit(130, 250, now);
    assert_eq!((sender.room(), sender.kept_bytes()), (130, 120));
    sender.credit(30, 350, now);
    assert_eq!(sender.room(), 130, "a credit from before");
}

#[test]
fn the_receiver_is_asked_later_and_later_and_its_answer_counts() {
    let begun = start();
    let after = |millis| begun + Duration::from_millis(millis);
    let mut sender = Sender::new(WINDOW, PIECE, begun);
    assert_eq!(sender.due(), None, "nothing is under way");
    sender.push(body(200));
    assert_eq!(offsets(&sent(&mut sender, begun)), [0, 100]);
    sender.tick(after(999));
    assert!(sent(&mut sender, after(999)).is_empty());
    let mut last = 0;
    for wait in [1000, 2000, 4000, 5000, 5000] {
        sender.tick(after(last + wait - 1));
        assert!(sent(&mut sender, after(last + wait - 1)).is_empty());
        last += wait;
        sender.tick(after(last));
        assert_eq!(offsets(&sent(&mut sender, after(last))), [200], "{last}");
    }
    sender.credit(0, WINDOW, after(last));
    assert_eq!(offsets(&sent(&mut sender, after(last))), [0, 100]);
    assert_eq!(sender.in_flight(), 200);
    sender.credit(100, WINDOW, after(last));
    assert_eq!(sender.due(), Some(after(last + 1000)));
    assert_eq!(sender.in_flight(), 100);
    sender.credit(100, WINDOW, after(last));
    assert_eq!(offsets(&sent(&mut sender, after(last))), [100], "a gap");
    sender.finish();
    assert_eq!(sent(&mut sender, after(last)), [Piece::End { length: 200 }]);
    sender.credit(200, WINDOW, after(last));
    assert!(!sender.is_done(), "it may not have seen the end");
    sender.push(Bytes::new());
    sender.ended(200);
    assert!(sender.is_done());
    assert_eq!((sender.in_flight(), sender.kept_bytes()), (0, 0));
}

#[test]
fn credits_follow_the_reader_and_not_the_network() {
    let now = start();
    let mut receiver = Receiver::new(10_000);
    for offset in [0, 1000, 2000, 3000, 4000] {
        receiver.data(offset, body(1000), now).unwrap();
    }
    assert_eq!(receiver.next(now), None, "nobody has read");
    for _ in 0..4 {
        receiver.read(usize::MAX).unwrap();
    }
    assert_eq!(receiver.next(now), None, "less than half");
    receiver.read(usize::MAX).unwrap();
    let credit = Piece::Credit {
        got: 5000,
        window: 10_000,
    };
    assert_eq!(receiver.next(now), Some(credit));
    assert_eq!(receiver.next(now), None);
    let beyond = receiver.data(14_950, body(100), now);
    assert!(matches!(beyond, Err(Violation(_))));
}

#[test]
fn a_smaller_window_holds_from_then_on() {
    let now = start();
    let mut receiver = Receiver::new(1000);
    receiver.data(0, body(700), now).unwrap();
    receiver.set_window(100);
    assert!(receiver.read(usize::MAX).is_some());
    assert_eq!(receiver.next(now), None, "300 are promised, 100 were to be");
    receiver.data(700, body(300), now).unwrap();
    assert!(receiver.read(usize::MAX).is_some());
    let credit = Piece::Credit {
        got: 1000,
        window: 100,
    };
    assert_eq!(receiver.next(now), Some(credit));
}

#[test]
fn a_lost_credit_is_asked_for() {
    let begun = start();
    let after = |millis| begun + Duration::from_millis(millis);
    let (mut sender, mut receiver) = (Sender::new(100, 100, begun), Receiver::new(100));
    sender.push(body(100));
    sent(&mut sender, begun);
    receiver.data(0, body(100), begun).unwrap();
    receiver.read(usize::MAX).unwrap();
    sender.credit(100, 0, begun);
    assert!(receiver.next(begun).is_some(), "it is lost");
    assert_eq!((sender.room(), receiver.next(begun)), (0, None));
    assert_eq!(sender.due(), Some(after(1000)));
    sender.tick(after(1000));
    let [question]: [Piece; 1] = sent(&mut sender, after(1000)).try_into().unwrap();
    let Piece::Data { offset, bytes } = question else {
        panic!("it asks");
    };
    receiver.data(offset, bytes, after(1000)).unwrap();
    let Some(Piece::Credit { got, window }) = receiver.next(after(1000)) else {
        panic!("it answers");
    };
    sender.credit(got, window, after(1000));
    assert_eq!((sender.room(), sender.due()), (100, None));
}

#[test]
fn a_gap_that_stays_is_told_and_one_that_closes_is_not() {
    let begun = start();
    let after = |millis| begun + Duration::from_millis(millis);
    let mut receiver = Receiver::new(WINDOW);
    receiver.data(100, body(100), begun).unwrap();
    assert_eq!(receiver.due(), Some(after(50)));
    receiver.data(0, body(100), after(49)).unwrap();
    assert_eq!((receiver.next(after(60)), receiver.due()), (None, None));
    receiver.end(300, after(60)).unwrap();
    assert!(matches!(
        receiver.next(after(60)),
        Some(Piece::Credit { got: 200, .. })
    ));
    assert_eq!(receiver.next(after(109)), None);
    for again in [110, 160] {
        let complaint = receiver.next(after(again));
        assert!(matches!(
            complaint,
            Some(Piece::Credit {
                got: 200,
                window: 800
            })
        ));
    }
    receiver.data(200, body(100), after(170)).unwrap();
    assert!(!receiver.is_complete(), "nobody has read it");
    while receiver.read(usize::MAX).is_some() {}
    assert!(receiver.is_complete());
    receiver.end(300, after(180)).unwrap();
    let confirmed = receiver.next(after(180));
    assert_eq!(confirmed, Some(Piece::Ended { length: 300 }));
    assert!(receiver.end(299, begun).is_err() && receiver.end(301, begun).is_err());
    assert!(receiver.data(300, body(1), begun).is_err());
}
