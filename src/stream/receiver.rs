//! The half that receives.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::wire::stream::Piece;

/// How long a gap may stay before the sender is told; what comes in another order closes it by itself.
const GAP: Duration = Duration::from_millis(50);
/// How many pieces beyond a gap are kept.
const MAX_AHEAD: usize = 1024;
/// Pieces below the first size are joined, up to the second: each costs more than its bytes.
const SMALL: usize = 512;
const JOINED: usize = 4096;

/// The sender does what it must not do: the stream is to be aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation(pub &'static str);

/// What has come and is not read, and what may come.
#[derive(Debug)]
pub struct Receiver {
    window: u64,
    // In order, up to `got`; the first one is at `read`.
    ready: VecDeque<Bytes>,
    // Beyond a gap, by offset.
    ahead: BTreeMap<u64, Bytes>,
    got: u64,
    read: u64,
    // What the sender was promised; it is never taken back.
    limit: u64,
    length: Option<u64>,
    gap: Option<Instant>,
    // The sender asks for a word: the end has come, or something for the second time.
    is_asked: bool,
}

impl Receiver {
    /// For a sender that was promised `window` bytes.
    pub fn new(window: u64) -> Receiver {
        Receiver {
            window,
            ready: VecDeque::new(),
            ahead: BTreeMap::new(),
            got: 0,
            read: 0,
            limit: window,
            length: None,
            gap: None,
            is_asked: false,
        }
    }

    /// Takes a part of the body.
    ///
    /// Errors: it is beyond what was promised, or behind the end.
    pub fn data(&mut self, offset: u64, bytes: Bytes, now: Instant) -> Result<(), Violation> {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.limit {
            return Err(Violation("more was sent than the window allows"));
        }
        if self.length.is_some_and(|length| end > length) {
            return Err(Violation("something was sent behind the end"));
        }
        if end <= self.got || bytes.is_empty() {
            // It was sent again, or it is a question.
            self.is_asked = true;
            return Ok(());
        }
        self.put_ahead(offset, bytes);
        self.close_gap();
        self.note_gap(now);
        Ok(())
    }

    // Of two pieces with one offset the longer one counts; overlaps are cut when they are reached. A
    // sender that keeps to the window never has more under way than is kept here.
    fn put_ahead(&mut self, offset: u64, bytes: Bytes) {
        let known = self.ahead.get(&offset).map_or(0, Bytes::len);
        let kept: usize = self.ahead.values().map(Bytes::len).sum();
        let is_much = (kept + bytes.len()) as u64 > self.limit - self.read;
        if bytes.len() > known && !is_much && self.ahead.len() < MAX_AHEAD {
            self.ahead.insert(offset, bytes);
        }
    }

    fn put_ready(&mut self, bytes: Bytes) {
        match self.ready.back_mut() {
            Some(last) if bytes.len() < SMALL && last.len() + bytes.len() <= JOINED => {
                *last = [last.as_ref(), bytes.as_ref()].concat().into();
            }
            _ => self.ready.push_back(bytes),
        }
    }

    fn close_gap(&mut self) {
        while let Some(first) = self.ahead.first_entry()
            && *first.key() <= self.got
        {
            let (offset, mut bytes) = first.remove_entry();
            let end = offset + bytes.len() as u64;
            if end > self.got {
                // It fits: no piece is longer than the memory.
                let known = usize::try_from(self.got - offset).unwrap_or(usize::MAX);
                self.put_ready(bytes.split_off(known));
                self.got = end;
                self.gap = None;
            }
        }
    }

    fn note_gap(&mut self, now: Instant) {
        match self.ahead.is_empty() {
            true => self.gap = None,
            false => self.gap = self.gap.or(Some(now)),
        }
    }

    /// Takes the end.
    ///
    /// Errors: it contradicts what has come.
    pub fn end(&mut self, length: u64, now: Instant) -> Result<(), Violation> {
        let last = self.ahead.last_key_value();
        let known = last.map_or(self.got, |(offset, bytes)| offset + bytes.len() as u64);
        if self.length.is_some_and(|before| before != length) || length < known.max(self.got) {
            return Err(Violation(
                "two ends contradict each other, or the body goes on behind it",
            ));
        }
        self.length = Some(length);
        self.is_asked = true;
        if self.got < length {
            self.gap = self.gap.or(Some(now));
        }
        Ok(())
    }

    /// What has come next, in order, `max` bytes at the most; `None`: nothing for now, or nothing any
    /// more.
    pub fn read(&mut self, max: usize) -> Option<Bytes> {
        let first = self.ready.front_mut()?;
        let bytes = match first.len() <= max {
            true => self.ready.pop_front()?,
            false => first.split_to(max),
        };
        self.read += bytes.len() as u64;
        Some(bytes)
    }

    /// From now on this is how far beyond what is read may be sent, in bytes.
    pub fn set_window(&mut self, window: u64) {
        self.window = window;
    }

    /// Whether there is something to send now.
    pub fn has_next(&self, now: Instant) -> bool {
        match self.length == Some(self.got) {
            true => self.is_asked,
            false => self.is_asked || self.is_gap(now) || self.is_half(),
        }
    }

    fn is_gap(&self, now: Instant) -> bool {
        self.gap.is_some_and(|since| now >= since + GAP)
    }

    // Half a window was taken by whoever reads. A credit that promises no more would do harm: it is
    // acknowledged late, and brokers that don't turn Nagle's algorithm off hold the next one until then.
    fn is_half(&self) -> bool {
        let more = (self.read + self.window).saturating_sub(self.limit);
        more >= (self.window / 2).max(1)
    }

    /// The next message to send now.
    pub fn next(&mut self, now: Instant) -> Option<Piece> {
        if !self.has_next(now) {
            return None;
        }
        if self.length == Some(self.got) {
            self.is_asked = false;
            return Some(Piece::Ended { length: self.got });
        }
        if self.is_gap(now) {
            self.gap = Some(now);
        }
        if self.is_half() || self.is_asked {
            self.limit = self.limit.max(self.read + self.window);
        }
        self.is_asked = false;
        Some(Piece::Credit {
            got: self.got,
            window: self.limit - self.got,
        })
    }

    /// Says again what it has: either side has a new connection.
    pub fn reconnected(&mut self) {
        self.is_asked = true;
    }

    /// When to call [`next`](Receiver::next), if nothing comes before.
    pub fn due(&self) -> Option<Instant> {
        self.gap.map(|since| since + GAP)
    }

    /// How long the body is, if all of it has come.
    pub fn length(&self) -> Option<u64> {
        self.length.filter(|length| *length == self.got)
    }

    /// Whether all of it was read.
    pub fn is_complete(&self) -> bool {
        self.length == Some(self.read)
    }

    /// How many bytes it keeps.
    pub fn kept_bytes(&self) -> usize {
        let ready = usize::try_from(self.got - self.read).unwrap_or(usize::MAX);
        ready + self.ahead.values().map(Bytes::len).sum::<usize>()
    }
}
