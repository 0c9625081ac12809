//! The half that sends.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::wire::stream::Piece;

/// How many pieces are kept at the most: many small ones take more memory than their bytes.
const MAX_PIECES: usize = 1024;
/// How long without progress before the receiver is asked what it has; doubled each time, up to the
/// other.
const PATIENCE: Duration = Duration::from_secs(1);
const MAX_PATIENCE: Duration = Duration::from_secs(5);
/// How long the receiver's complaint about a gap is taken for the same one.
const SAME_GAP: Duration = Duration::from_millis(40);

/// What is sent and not confirmed, and what may be sent.
#[derive(Debug)]
pub struct Sender {
    piece_bytes: usize,
    // The first one begins at what is confirmed, or before.
    kept: VecDeque<Kept>,
    // How many of these are sent.
    sent: usize,
    // Where the next byte of the source stands.
    length: u64,
    is_finished: bool,
    is_end_sent: bool,
    is_done: bool,
    // The receiver is to say once more what it takes, and was asked and has not answered yet.
    is_asking: bool,
    is_asked: bool,
    // The receiver has everything before this, and takes everything before that.
    got: u64,
    limit: u64,
    patience: Duration,
    progress: Instant,
    went_back: Option<Instant>,
    // How long the last piece that is confirmed took, there and back.
    round_trip: Option<Duration>,
}

#[derive(Debug)]
struct Kept {
    offset: u64,
    bytes: Bytes,
    sent: Instant,
}

impl Kept {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

impl Sender {
    /// For a receiver that takes `window` bytes for now. A piece has `piece_bytes` at the most.
    pub fn new(window: u64, piece_bytes: usize, now: Instant) -> Sender {
        Sender {
            piece_bytes: piece_bytes.max(1),
            kept: VecDeque::new(),
            sent: 0,
            length: 0,
            is_finished: false,
            is_end_sent: false,
            is_done: false,
            is_asking: false,
            is_asked: false,
            got: 0,
            limit: window,
            patience: PATIENCE,
            progress: now,
            went_back: None,
            round_trip: None,
        }
    }

    /// How many bytes of the source there is room for now.
    pub fn room(&self) -> usize {
        if self.is_finished || self.kept.len() >= MAX_PIECES {
            return 0;
        }
        let room = self.limit.saturating_sub(self.length);
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// Takes bytes of the source, no more than there is [room](Sender::room) for.
    pub fn push(&mut self, mut bytes: Bytes) {
        debug_assert!(bytes.len() as u64 <= self.limit.saturating_sub(self.length));
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(self.piece_bytes));
            let kept = Kept {
                offset: self.length,
                bytes: piece,
                sent: self.progress,
            };
            self.length = kept.end();
            self.kept.push_back(kept);
        }
    }

    /// The source is at its end.
    pub fn finish(&mut self) {
        self.is_finished = true;
    }

    /// The next message to send now.
    pub fn next(&mut self, now: Instant) -> Option<Piece> {
        if self.is_done {
            return None;
        }
        // A part of the body is lost on whom is not there any more, and others may wait for the answer.
        if let Some(question) = self.question() {
            return Some(question);
        }
        if let Some(kept) = self.kept.get_mut(self.sent) {
            self.sent += 1;
            kept.sent = now;
            // The wait for the receiver begins with the last message that is sent, not before.
            self.progress = now;
            return Some(Piece::Data {
                offset: kept.offset,
                bytes: kept.bytes.clone(),
            });
        }
        let is_over = self.is_finished && !self.is_end_sent;
        if is_over {
            self.is_end_sent = true;
            self.progress = now;
        }
        is_over.then_some(Piece::End {
            length: self.length,
        })
    }

    /// The question whether the receiver is there and what it has, if it is to be asked now.
    pub fn question(&mut self) -> Option<Piece> {
        let asks = std::mem::take(&mut self.is_asking) && !self.is_done;
        self.is_asked |= asks;
        asks.then(|| Piece::Data {
            offset: self.length,
            bytes: Bytes::new(),
        })
    }

    /// Takes a credit. Returns whether the receiver has got further.
    pub fn credit(&mut self, got: u64, window: u64, now: Instant) -> bool {
        if self.is_done || got < self.got || got > self.length {
            // From before, or of something that was never sent.
            return false;
        }
        self.is_asked = false;
        let limit = got.saturating_add(window);
        let (has_moved, has_grown) = (got > self.got, limit > self.limit);
        self.limit = self.limit.max(limit);
        if has_moved {
            self.got = got;
            while let Some(kept) = self.kept.pop_front_if(|kept| kept.end() <= got) {
                if self.sent > 0 {
                    self.sent -= 1;
                    self.round_trip = Some(now.saturating_duration_since(kept.sent));
                }
            }
        }
        if has_moved || has_grown {
            self.patience = PATIENCE;
            self.progress = now;
            self.went_back = None;
        } else if self.went_back.is_none_or(|since| now >= since + SAME_GAP) {
            // It says once more what it has: something is missing.
            self.go_back(now);
        }
        has_moved || has_grown
    }

    /// The receiver has everything, and the end.
    pub fn ended(&mut self, length: u64) {
        self.is_done |= self.is_finished && length == self.length;
        if self.is_done {
            self.kept.clear();
            self.got = self.length;
        }
    }

    /// Sends everything again that is not confirmed: either side has a new connection.
    pub fn reconnected(&mut self, now: Instant) {
        self.patience = PATIENCE;
        self.go_back(now);
    }

    fn go_back(&mut self, now: Instant) {
        self.sent = 0;
        self.is_end_sent = false;
        self.went_back = Some(now);
        self.progress = now;
    }

    /// When to call [`tick`](Sender::tick), if nothing comes before.
    pub fn due(&self) -> Option<Instant> {
        let is_shut = !self.is_finished && self.limit <= self.length;
        let waits = !self.has_data() && (self.in_flight() > 0 || self.is_end_sent || is_shut);
        (waits && !self.is_done).then(|| self.progress + self.patience)
    }

    /// Asks if there was no progress for too long: a piece may be lost, or the credit that would let it
    /// go on. The answer tells, and a receiver that is merely slow gets nothing twice.
    pub fn tick(&mut self, now: Instant) {
        if self.due().is_some_and(|due| now >= due) {
            self.patience = (self.patience * 2).min(MAX_PATIENCE);
            self.progress = now;
            self.is_asking = true;
        }
    }

    /// How many bytes are sent and not confirmed.
    pub fn in_flight(&self) -> usize {
        let next = self.kept.get(self.sent);
        let next = next.map_or(self.length, |kept| kept.offset);
        // It fits: they are in the memory.
        usize::try_from(next.saturating_sub(self.got)).unwrap_or(usize::MAX)
    }

    /// How long the last piece that was confirmed took, there and back; says so once.
    pub fn take_round_trip(&mut self) -> Option<Duration> {
        self.round_trip.take()
    }

    /// Whether there is something to send now.
    pub fn has_next(&self) -> bool {
        let is_over = self.is_finished && !self.is_end_sent;
        !self.is_done && (self.sent < self.kept.len() || self.is_asking || is_over)
    }

    /// Whether the next message is one with a part of the body.
    pub fn has_data(&self) -> bool {
        !self.is_done && self.sent < self.kept.len()
    }

    /// Asks for a word of the receiver, to see whether it is there.
    pub fn ask(&mut self) {
        self.is_asking = true;
    }

    /// The same, unless it was asked already: for somebody else's sake, who waits for what it has on its
    /// way.
    pub fn ask_once(&mut self) {
        self.is_asking |= !self.is_asked && self.in_flight() > 0;
    }

    /// Whether the receiver has all of it, and the end.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// How many bytes it keeps.
    pub fn kept_bytes(&self) -> usize {
        let first = self.kept.front().map_or(self.length, |kept| kept.offset);
        usize::try_from(self.length - first).unwrap_or(usize::MAX)
    }
}
