//! A stream between two programs: both halves under one lock, for the threads that read and write its
//! bytes, and for the mqtt thread, which brings what the other side says.
//!
//! Nobody publishes under this lock: who changes something lets the link ask for the messages, one at
//! a time, when there is a place for one. So nothing is queued twice, and what a message says is never
//! older than the moment in which it is sent.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::flight::Flight;
use super::halves::Halves;
use super::receiver::{Receiver, Violation};
use super::sender::Sender;
use super::why::Why;
use crate::base::threads::lock;
use crate::http::Chunk;
use crate::link::{Pieces, Publisher};
use crate::wire::stream::{Piece, STREAM};
use crate::wire::{Correlation, Message};

/// How often it is looked whether others have made room.
const LOOK: Duration = Duration::from_millis(200);

/// One stream, or one in each direction, with one peer.
pub struct Stream {
    correlation: Correlation,
    // Where the other side sends its messages.
    own_topic: Arc<str>,
    publisher: Publisher,
    flight: Arc<Flight>,
    idle: Option<Duration>,
    state: Mutex<State>,
    // Something came, or there is room for more, or it was given up.
    changed: Condvar,
}

struct State {
    // Where messages for the other side go, as soon as that is known.
    peer: Option<String>,
    halves: Halves,
    aborted: Option<Why>,
    // It was this side's wish, and the other one is to be told so.
    is_own_abort: bool,
    owes_abort: bool,
    // It has its turn at the link.
    is_in_turn: bool,
    // What it has of the flight, and of the memory for all.
    flying: usize,
    kept: usize,
    on_abort: Vec<Box<dyn FnOnce() + Send>>,
}

impl Stream {
    pub(super) fn new(
        correlation: Correlation,
        own_topic: Arc<str>,
        publisher: Publisher,
        flight: Arc<Flight>,
        idle: Option<Duration>,
        now: Instant,
    ) -> Stream {
        Stream {
            correlation,
            own_topic,
            publisher,
            flight,
            idle,
            state: Mutex::new(State {
                peer: None,
                halves: Halves::new(now),
                aborted: None,
                is_own_abort: false,
                owes_abort: false,
                is_in_turn: false,
                flying: 0,
                kept: 0,
                on_abort: Vec::new(),
            }),
            changed: Condvar::new(),
        }
    }

    /// The name of the request that it belongs to.
    pub fn correlation(&self) -> Correlation {
        self.correlation
    }

    /// Where the other side takes messages: from now on some can be sent.
    pub fn set_peer(self: &Arc<Self>, topic: &str) {
        let mut state = lock(&self.state);
        state.peer.get_or_insert_with(|| topic.to_owned());
        self.moved(state);
    }

    /// Where the other side takes messages, as far as that is known.
    pub fn peer(&self) -> Option<String> {
        lock(&self.state).peer.clone()
    }

    /// There is a body to come from the other side, which is promised as much of it as an
    /// [offer](super::Streams::offer) says.
    pub fn receive(&self) {
        let window = self.flight.first_window();
        let mut state = lock(&self.state);
        state
            .halves
            .receiver
            .get_or_insert_with(|| Receiver::new(window));
    }

    /// When something of it has moved last.
    pub fn last_moved(&self) -> Instant {
        lock(&self.state).halves.moved
    }

    /// Tells the other side at once what it may send.
    pub fn accept(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        if let Some(receiver) = &mut state.halves.receiver {
            receiver.reconnected();
        }
        self.moved(state);
    }

    /// There is a body for the other side, which takes so much of it for now.
    pub fn begin(self: &Arc<Self>, window: u64) {
        let overhead = 256 + 3 * self.own_topic.len();
        let packet = self.publisher.offer().max_packet_bytes;
        let piece = self
            .flight
            .piece_bytes()
            .min(packet.saturating_sub(overhead));
        let sender = Sender::new(window, piece, Instant::now());
        lock(&self.state).halves.sender.get_or_insert(sender);
    }

    /// The other side takes so much of a body that it has seen nothing of.
    pub fn grant(self: &Arc<Self>, window: u64) {
        let mut state = lock(&self.state);
        if let Some(sender) = &mut state.halves.sender {
            sender.credit(0, window, Instant::now());
        }
        self.moved(state);
    }

    /// What is to happen when it is given up, by whichever side: somebody may have to be woken.
    pub fn on_abort(&self, act: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.state);
        match state.aborted {
            Some(_) => {
                drop(state);
                act();
            }
            None => state.on_abort.push(Box::new(act)),
        }
    }

    // Something has changed: whoever waits is woken, and the link asks for what is to be sent.
    fn moved(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        self.account(&mut state);
        let is_new = self.has_piece(&state) && !state.is_in_turn;
        state.is_in_turn |= is_new;
        drop(state);
        self.changed.notify_all();
        if is_new {
            self.publisher
                .publish_pieces(Arc::clone(self) as Arc<dyn Pieces>);
        }
    }

    fn has_piece(&self, state: &State) -> bool {
        let has_next = || state.aborted.is_none() && state.halves.has_next(Instant::now());
        state.peer.is_some() && (state.owes_abort || has_next())
    }

    fn account(&self, state: &mut State) {
        let is_over = state.aborted.is_some();
        let sender = state.halves.sender.as_ref().filter(|_| !is_over);
        let receiver = state.halves.receiver.as_ref().filter(|_| !is_over);
        let flying = sender.map_or(0, Sender::in_flight);
        let kept = sender.map_or(0, Sender::kept_bytes) + receiver.map_or(0, Receiver::kept_bytes);
        self.flight.flies(state.flying, flying);
        self.flight.keeps(state.kept, kept);
        (state.flying, state.kept) = (flying, kept);
    }

    /// Reads `max` bytes at the most of what comes from the other side, and waits for that as long as
    /// `patience`.
    ///
    /// Errors: it was given up; why.
    pub fn read(self: &Arc<Self>, max: usize, patience: Duration) -> Result<Chunk, Why> {
        let until = Instant::now() + patience;
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            if let Some(why) = state.aborted {
                return Err(why);
            }
            let Some(receiver) = &mut state.halves.receiver else {
                return Ok(Chunk::End);
            };
            receiver.set_window(self.flight.window());
            if let Some(bytes) = receiver.read(max) {
                state.halves.moved = now;
                self.moved(state);
                return Ok(Chunk::Bytes(bytes));
            }
            if receiver.is_complete() {
                return Ok(Chunk::End);
            }
            let left = until.saturating_duration_since(now);
            if left.is_zero() {
                return Ok(Chunk::Nothing);
            }
            state = self.wait(state, left);
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, time);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until the other side takes more, and returns how much.
    ///
    /// Errors: it was given up; why.
    pub fn room(&self) -> Result<usize, Why> {
        let mut state = lock(&self.state);
        loop {
            if let Some(why) = state.aborted {
                return Err(why);
            }
            let (room, kept) = match &state.halves.sender {
                Some(sender) => (sender.room(), sender.kept_bytes()),
                None => (0, 0),
            };
            // As with what is promised: less as the memory for all gets short.
            let most = usize::try_from(self.flight.window()).unwrap_or(usize::MAX);
            match room.min(most.saturating_sub(kept)) {
                0 => state = self.wait(state, LOOK),
                room => return Ok(room),
            }
        }
    }

    /// Sends bytes, for which there is room.
    ///
    /// Errors: it was given up; why.
    pub fn write(self: &Arc<Self>, bytes: Bytes) -> Result<(), Why> {
        let mut state = lock(&self.state);
        if let Some(why) = state.aborted {
            return Err(why);
        }
        if let Some(sender) = &mut state.halves.sender {
            sender.push(bytes);
        }
        state.halves.moved = Instant::now();
        self.moved(state);
        Ok(())
    }

    /// There is nothing more to send. Waits until the other side has all of it.
    ///
    /// Errors: it was given up; why.
    pub fn finish(self: &Arc<Self>) -> Result<(), Why> {
        let mut state = lock(&self.state);
        if let Some(sender) = &mut state.halves.sender {
            sender.finish();
        }
        self.moved(state);
        let mut state = lock(&self.state);
        loop {
            if let Some(why) = state.aborted {
                return Err(why);
            }
            if state.halves.sender.as_ref().is_none_or(Sender::is_done) {
                return Ok(());
            }
            state = self.wait(state, LOOK);
        }
    }

    /// Gives it up, unless it is over already, and tells the other side.
    pub fn abort(self: &Arc<Self>, why: Why) {
        self.give_up(why, true);
    }

    fn give_up(self: &Arc<Self>, why: Why, tells: bool) {
        let mut state = lock(&self.state);
        if state.aborted.is_some() {
            return;
        }
        if !state.halves.is_over() {
            state.aborted = Some(why);
            state.is_own_abort = tells;
            state.owes_abort = tells && state.peer.is_some();
            log::debug!("stream {:?}: given up: {why}", self.correlation);
        }
        // What it holds may hold this: it goes in any case.
        let acts = std::mem::take(&mut state.on_abort);
        let is_aborted = state.aborted.is_some();
        self.moved(state);
        if is_aborted {
            acts.into_iter().for_each(|act| act());
        }
    }

    /// Why it was given up, if it was.
    pub fn aborted(&self) -> Option<Why> {
        lock(&self.state).aborted
    }

    /// Why this side gave it up, if it did so first.
    pub fn aborted_here(&self) -> Option<Why> {
        let state = lock(&self.state);
        state.aborted.filter(|_| state.is_own_abort)
    }

    /// Whether both directions are over.
    pub fn is_over(&self) -> bool {
        let state = lock(&self.state);
        state.aborted.is_some() || state.halves.is_over()
    }

    /// How long the received body was, if all of it has come: the sender may ask once more.
    pub(super) fn received(&self) -> Option<(String, u64)> {
        let state = lock(&self.state);
        let length = state.halves.receiver.as_ref().and_then(Receiver::length)?;
        Some((state.peer.clone()?, length))
    }

    /// Takes a message of the other side. Runs on the mqtt thread.
    pub(super) fn take(self: &Arc<Self>, piece: Piece, now: Instant) {
        if let Piece::Abort { why } = piece {
            return self.give_up(Why::read(&why), false);
        }
        let mut state = lock(&self.state);
        match state.halves.take(piece, now) {
            Ok(()) => {
                let sender = state.halves.sender.as_mut();
                if let Some(time) = sender.and_then(Sender::take_round_trip) {
                    self.flight.note_round_trip(time);
                }
                self.moved(state);
            }
            Err(Violation(what)) => {
                drop(state);
                log::warn!("stream {:?}: {what}", self.correlation);
                self.give_up(Why::Violation, true);
            }
        }
    }

    /// There is a new connection.
    pub(super) fn reconnected(self: &Arc<Self>, now: Instant) {
        let mut state = lock(&self.state);
        // What it had its turn for was lost with the old one.
        state.is_in_turn = false;
        state.halves.heard = now;
        if let Some(sender) = &mut state.halves.sender {
            sender.reconnected(now);
        }
        if let Some(receiver) = &mut state.halves.receiver {
            receiver.reconnected();
        }
        self.moved(state);
    }

    /// Looks at the time. `is_connected`: the other side could be heard.
    pub(super) fn tick(self: &Arc<Self>, now: Instant, is_connected: bool) {
        let mut state = lock(&self.state);
        if state.aborted.is_some() {
            return;
        }
        let can_hear = is_connected && state.peer.is_some();
        if let Some(why) = state.halves.dead(now, self.idle, can_hear) {
            drop(state);
            return self.give_up(why, true);
        }
        state.halves.tick(now, self.flight.is_full());
        match self.has_piece(&state) {
            true => self.moved(state),
            false => self.account(&mut state),
        }
    }

    /// A place has become free for what is to be sent.
    pub(super) fn go_on(self: &Arc<Self>) {
        self.moved(lock(&self.state));
    }

    fn next(&self, state: &mut State, now: Instant) -> Option<Message> {
        let peer = state.peer.as_deref()?;
        if std::mem::take(&mut state.owes_abort) {
            let why = state.aborted.unwrap_or(Why::Unknown).to_string();
            return Some(Piece::Abort { why }.write(peer, self.correlation));
        }
        if state.aborted.is_some() {
            return None;
        }
        let piece = state.halves.next(now, &self.flight)?;
        // Who does not know this stream can say so, and who is to send to it learns where to.
        let is_question = match &piece {
            Piece::Data { bytes, .. } => bytes.is_empty(),
            Piece::Credit { .. } => true,
            _ => false,
        };
        let mut message = piece.write(peer, self.correlation);
        if is_question {
            let topic = self.own_topic.to_string();
            message.properties.user.push((STREAM.to_owned(), topic));
        }
        Some(message)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let state = lock(&self.state);
        self.flight.flies(state.flying, 0);
        self.flight.keeps(state.kept, 0);
    }
}

impl Pieces for Stream {
    fn next_piece(&self, now: Instant) -> Option<Message> {
        let mut state = lock(&self.state);
        let next = self.next(&mut state, now);
        state.is_in_turn = next.is_some();
        self.account(&mut state);
        next
    }
}
