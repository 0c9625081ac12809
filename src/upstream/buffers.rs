//! The buffers of a connection to an upstream: as large as what passes through them, and next to
//! nothing while an answer is waited for. That is what an agent with a thousand slow requests is
//! made of.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ureq::unversioned::transport::Buffers;

use super::answer::MAX_HEAD;

/// The first size of the input buffer, in bytes: enough for most answers.
const FIRST_INPUT: usize = 2 * 1024;
/// Its largest size. The head of an answer must fit.
pub(super) const MAX_INPUT: usize = MAX_HEAD;
/// How many bytes are sent at a time.
pub(super) const SEND_AT: usize = 64 * 1024;
/// The largest output buffer that is kept while an answer is waited for, in bytes.
const KEPT: usize = 1024;

/// How much room the next request takes in the output buffer, in bytes. The connections of a client
/// and whoever calls it share one.
#[derive(Debug, Default, Clone)]
pub(super) struct Room(Arc<AtomicUsize>);

impl Room {
    /// For a request whose longest line has `longest_line` bytes, and which has `size` bytes in all.
    pub fn set(&self, longest_line: usize, size: usize) {
        // A line must fit, or ureq gives up; the rest may go in several pieces.
        let room = size.min(SEND_AT).max(longest_line);
        self.0.store(room, Ordering::Relaxed);
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed).max(256)
    }
}

pub(super) struct Elastic {
    room: Room,
    input: Vec<u8>,
    consumed: usize,
    filled: usize,
    // The last input filled all the room there was.
    was_full: bool,
    // The last call consumed something; see `Buffers::can_use_input`.
    progress: bool,
    output: Vec<u8>,
    unsent: usize,
}

impl Elastic {
    pub fn new(room: Room) -> Elastic {
        Elastic {
            room,
            input: Vec::new(),
            consumed: 0,
            filled: 0,
            was_full: false,
            progress: false,
            output: Vec::new(),
            unsent: 0,
        }
    }

    /// Takes note that ureq has written so many bytes to the output.
    pub fn written(&mut self, amount: usize) {
        self.unsent += amount;
    }

    /// What was written and not sent yet.
    pub fn unsent(&self) -> &[u8] {
        &self.output[..self.unsent]
    }

    /// All was sent: gives the memory back, unless it is little.
    pub fn sent(&mut self) {
        if self.output.len() > KEPT {
            self.output = Vec::new();
        }
        self.unsent = 0;
        self.rest();
    }

    /// Puts other bytes in place of the first `length` that were read.
    pub fn replace_input(&mut self, length: usize, by: &[u8]) {
        let old = self.consumed..self.consumed + length;
        self.input.splice(old, by.iter().copied());
        self.filled = self.filled + by.len() - length;
        self.progress = true;
    }

    /// Gives the memory of a large answer back that was read.
    pub fn rest(&mut self) {
        if self.input().is_empty() && self.input.len() > FIRST_INPUT {
            self.input = Vec::new();
            (self.consumed, self.filled) = (0, 0);
        }
    }
}

impl Buffers for Elastic {
    fn output(&mut self) -> &mut [u8] {
        let size = self.unsent + self.room.get();
        if self.output.len() < size {
            self.output.resize(size, 0);
        }
        &mut self.output[self.unsent..]
    }

    fn input(&self) -> &[u8] {
        &self.input[self.consumed..self.filled]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.input.copy_within(self.consumed..self.filled, 0);
        self.filled -= self.consumed;
        self.consumed = 0;
        if self.was_full || self.input.is_empty() {
            self.was_full = false;
            let size = (2 * self.input.len()).clamp(FIRST_INPUT, MAX_INPUT);
            self.input.resize(size, 0);
        }
        &mut self.input[self.filled..]
    }

    fn input_appended(&mut self, amount: usize) {
        self.filled += amount;
        self.was_full = self.filled == self.input.len();
    }

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        self.consumed += amount;
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.input_append_buf();
        self.output();
        (
            &mut self.input[self.filled..],
            &mut self.output[self.unsent..],
        )
    }

    fn can_use_input(&self) -> bool {
        !self.input().is_empty() && self.progress
    }
}

impl fmt::Debug for Elastic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elastic").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(buffers: &mut Elastic, bytes: &[u8]) -> usize {
        let target = buffers.input_append_buf();
        let count = bytes.len().min(target.len());
        target[..count].copy_from_slice(&bytes[..count]);
        buffers.input_appended(count);
        count
    }

    #[test]
    fn input_grows_with_what_comes_and_keeps_it() {
        let mut buffers = Elastic::new(Room::default());
        let sent: Vec<u8> = (0..MAX_INPUT + 1000).map(|at| at as u8).collect();
        let mut came = 0;
        while came < MAX_INPUT {
            came += put(&mut buffers, &sent[came..]);
            assert_eq!(buffers.input(), &sent[..came]);
        }
        assert_eq!(put(&mut buffers, &sent[came..]), 0, "that is the most");
        buffers.input_consume(1000);
        came += put(&mut buffers, &sent[came..]);
        assert_eq!(buffers.input(), &sent[1000..came]);
        assert_eq!(came, sent.len());
    }

    #[test]
    fn the_beginning_of_what_was_read_can_be_replaced() {
        for by in [&b"longer than before"[..], b"x", b""] {
            let mut buffers = Elastic::new(Room::default());
            put(&mut buffers, b"beforerest");
            buffers.replace_input(6, by);
            put(&mut buffers, b" and more");
            assert_eq!(buffers.input(), [by, b"rest and more"].concat());
        }
    }

    #[test]
    fn what_waits_is_small_again() {
        let mut buffers = Elastic::new(Room::default());
        while put(&mut buffers, &[1; MAX_INPUT]) > 0 {}
        buffers.input_consume(MAX_INPUT - 1);
        buffers.sent();
        assert_eq!(buffers.input(), [1], "what is unread stays");
        buffers.input_consume(1);
        buffers.sent();
        assert!(buffers.input.capacity() == 0 && buffers.output.capacity() == 0);
    }

    #[test]
    fn output_has_room_for_the_longest_line_behind_what_is_unsent() {
        let room = Room::default();
        let mut buffers = Elastic::new(room.clone());
        room.set(9000, 300);
        assert!(buffers.output().len() >= 9000);
        buffers.output()[..2].copy_from_slice(b"ab");
        buffers.written(2);
        assert!(buffers.output().len() >= 9000);
        assert_eq!(buffers.unsent(), b"ab");
        room.set(10, 10 * SEND_AT);
        buffers.sent();
        assert_eq!(buffers.output().len(), SEND_AT);
    }
}
