//! The callers that wait for a reply, by correlation.
//!
//! One table, one lock, held for a few map operations at a time. A caller registers *before* it
//! publishes, then blocks on its own channel; the thread that reads from the broker completes it.
//! Late, repeated and foreign replies are ordinary here: they find no waiter and are told apart,
//! so that they can be counted. Time is passed in.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};

use crate::base::threads::{lock, recv_timeout};
use crate::wire::Correlation;
use crate::wire::json::{Received, canonical};

/// How many callers that gave up are remembered, to tell a late reply from a foreign one.
const REMEMBERED: usize = 1024;
/// How many channels are kept to be used again: making one takes three allocations.
const SPARE: usize = 64;

/// The table of waiting callers; `T` is what completes them.
pub struct Pending<T> {
    capacity: usize,
    table: Mutex<Table<T>>,
}

// Room for one reply.
type Channel<T> = (Sender<T>, Receiver<T>);

struct Table<T> {
    waiters: HashMap<Correlation, Waiter<T>>,
    // In order of registration, for replies that carry no correlation.
    order: BTreeMap<u64, Correlation>,
    next_sequence: u64,
    gave_up: VecDeque<(Correlation, Instant)>,
    // Empty channels that nobody sends to.
    spare: Vec<Channel<T>>,
}

struct Waiter<T> {
    sequence: u64,
    // What its request has gone through.
    connection: usize,
    // Where a peer that knows no correlation may answer it.
    request: Option<Arc<Asked>>,
    reply: Sender<T>,
}

// A request, and its canonical form once that was needed: seldom, and it costs a parse.
struct Asked {
    payload: Bytes,
    canonical: OnceLock<Option<Bytes>>,
}

impl Asked {
    fn canonical(&self) -> Option<&Bytes> {
        let canonical = self.canonical.get_or_init(|| canonical(&self.payload).ok());
        canonical.as_ref()
    }
}

/// What became of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// Its caller has it.
    Delivered,
    /// Its caller gave up this long ago.
    Late(Duration),
    /// Nobody waits for it: repeated or foreign.
    Unknown,
}

/// Why a caller has stopped waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GaveUp {
    /// Its time is up.
    TimedOut,
    /// Nobody wants the reply any more.
    Unwanted,
}

/// All places are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl<T> Pending<T> {
    /// Makes a table for at most `capacity` callers.
    pub fn new(capacity: usize) -> Pending<T> {
        Pending {
            capacity,
            table: Mutex::new(Table {
                waiters: HashMap::new(),
                order: BTreeMap::new(),
                next_sequence: 0,
                gave_up: VecDeque::new(),
                spare: Vec::new(),
            }),
        }
    }

    /// Registers a caller. `request` is the JSON that it asks, if a peer may answer that without
    /// correlation, `None` if only a correlated reply will do; `connection` is what it goes through.
    ///
    /// Errors: the table is [`Full`].
    pub fn register(
        &self,
        correlation: Correlation,
        request: Option<Bytes>,
        connection: usize,
    ) -> Result<Ticket<'_, T>, Full> {
        let mut table = lock(&self.table);
        if table.waiters.len() >= self.capacity {
            return Err(Full);
        }
        let (sender, receiver) = table
            .spare
            .pop()
            .unwrap_or_else(|| crossbeam_channel::bounded(1));
        let sequence = table.next_sequence;
        table.next_sequence += 1;
        if request.is_some() {
            table.order.insert(sequence, correlation);
        }
        let request = request.map(|payload| Asked {
            payload,
            canonical: OnceLock::new(),
        });
        let request = request.map(Arc::new);
        let waiter = Waiter {
            sequence,
            connection,
            request,
            reply: sender.clone(),
        };
        table.waiters.insert(correlation, waiter);
        Ok(Ticket {
            pending: self,
            correlation,
            channel: (sender, receiver),
            is_off: Cell::new(false),
        })
    }

    /// Hands a correlated reply to its caller.
    pub fn complete(&self, correlation: Correlation, reply: T, now: Instant) -> Completion {
        let mut table = lock(&self.table);
        let Some(waiter) = table.remove(correlation) else {
            let gave_up = table.gave_up.iter().find(|(who, _)| *who == correlation);
            return match gave_up {
                Some((_, since)) => Completion::Late(now.saturating_duration_since(*since)),
                None => Completion::Unknown,
            };
        };
        drop(table);
        waiter.deliver(reply)
    }

    /// Hands a reply without correlation to the caller that has waited longest among those with
    /// an equal request, or among all, where the reply doesn't say what it answers.
    pub fn complete_oldest(&self, received: &Received, reply: T) -> Completion {
        let candidates: Vec<(Correlation, Option<Arc<Asked>>)> = {
            let table = lock(&self.table);
            let waiters = table.order.values();
            waiters
                .map(|correlation| {
                    let waiter = table.waiters.get(correlation);
                    let asked = waiter.and_then(|waiter| waiter.request.clone());
                    (*correlation, asked)
                })
                .collect()
        };
        // Parsing others' JSON takes its time: nobody waits for the table meanwhile.
        let mut equal = candidates.into_iter().filter(|(_, asked)| match received {
            Received::Unknown => true,
            Received::Request(request) => {
                asked.as_ref().and_then(|asked| asked.canonical()) == Some(request)
            }
        });
        // The first one that has not given up meanwhile.
        let waiter = equal.find_map(|(correlation, _)| lock(&self.table).remove(correlation));
        match waiter {
            Some(waiter) => waiter.deliver(reply),
            None => Completion::Unknown,
        }
    }

    /// Tells all whose requests have gone through a connection that it is lost.
    pub fn lost(&self, connection: usize, reply: impl Fn() -> T) {
        let mut table = lock(&self.table);
        let its = table.waiters.iter();
        let its = its.filter(|(_, waiter)| waiter.connection == connection);
        let its: Vec<Correlation> = its.map(|(correlation, _)| *correlation).collect();
        for correlation in its {
            if let Some(waiter) = table.remove(correlation) {
                waiter.deliver(reply());
            }
        }
    }

    // A channel that has done its work: its only reply is taken, so nothing can come by it any more.
    fn keep(&self, channel: Channel<T>) {
        let mut table = lock(&self.table);
        if table.spare.len() < SPARE {
            table.spare.push(channel);
        }
    }

    /// Whether somebody waits for a reply with this correlation.
    pub fn awaits(&self, correlation: Correlation) -> bool {
        lock(&self.table).waiters.contains_key(&correlation)
    }

    /// How many callers may wait at a time.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many callers wait.
    pub fn len(&self) -> usize {
        lock(&self.table).waiters.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn give_up(&self, correlation: Correlation, now: Instant) {
        let mut table = lock(&self.table);
        if table.remove(correlation).is_some() {
            if table.gave_up.len() == REMEMBERED {
                table.gave_up.pop_front();
            }
            table.gave_up.push_back((correlation, now));
        }
    }
}

impl<T> Table<T> {
    fn remove(&mut self, correlation: Correlation) -> Option<Waiter<T>> {
        let waiter = self.waiters.remove(&correlation)?;
        self.order.remove(&waiter.sequence);
        Some(waiter)
    }
}

impl<T> Waiter<T> {
    fn deliver(self, reply: T) -> Completion {
        // Room for one, and removing the waiter made this the only sender: it never blocks. It
        // fails if the caller is just giving up.
        match self.reply.try_send(reply) {
            Ok(()) => Completion::Delivered,
            Err(_) => Completion::Late(Duration::ZERO),
        }
    }
}

/// A caller's place in the table. Dropping it gives the place up.
pub struct Ticket<'a, T> {
    pending: &'a Pending<T>,
    correlation: Correlation,
    // That of the waiter. It can't lose its sender while it is waited for.
    channel: Channel<T>,
    // Off the table, so nothing is left to be given up.
    is_off: Cell<bool>,
}

impl<T> Ticket<'_, T> {
    /// Blocks for the reply, but no longer than until `deadline`, and no longer than it is `wanted`,
    /// which is looked at `every` so often.
    ///
    /// Errors: see [`GaveUp`].
    pub fn wait_while(
        self,
        deadline: Instant,
        every: Duration,
        wanted: impl Fn() -> bool,
    ) -> Result<T, GaveUp> {
        let reason = loop {
            // By the clock each time: slices that end late must not add up.
            let left = deadline.saturating_duration_since(Instant::now());
            if let Ok(reply) = recv_timeout(&self.channel.1, left.min(every)) {
                self.is_off.set(true);
                self.pending.keep(self.channel.clone());
                return Ok(reply);
            }
            if left <= every {
                break GaveUp::TimedOut;
            }
            if !wanted() {
                break GaveUp::Unwanted;
            }
        };
        self.pending.give_up(self.correlation, Instant::now());
        // It may have come between the time-out and giving up.
        self.channel.1.try_recv().map_err(|_| reason)
    }

    /// Blocks for the reply, but no longer than `timeout`.
    pub fn wait(self, timeout: Duration) -> Option<T> {
        self.wait_while(Instant::now() + timeout, timeout, || true)
            .ok()
    }
}

impl<T> Drop for Ticket<'_, T> {
    fn drop(&mut self) {
        // This is for a caller that registered and then could not publish.
        if self.is_off.get() {
            return;
        }
        lock(&self.pending.table).remove(self.correlation);
    }
}

#[cfg(test)]
mod tests;
