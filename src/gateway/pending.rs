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

use crate::base::threads::lock;
use crate::wire::Correlation;
use crate::wire::json::{Received, canonical};

/// How many callers that gave up are remembered, to tell a late reply from a foreign one.
const REMEMBERED: usize = 1024;

/// The table of waiting callers; `T` is what completes them.
pub struct Pending<T> {
    capacity: usize,
    table: Mutex<Table<T>>,
}

struct Table<T> {
    waiters: HashMap<Correlation, Waiter<T>>,
    // In order of registration, for replies that carry no correlation.
    order: BTreeMap<u64, Correlation>,
    next_sequence: u64,
    gave_up: VecDeque<(Correlation, Instant)>,
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
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let mut table = lock(&self.table);
        if table.waiters.len() >= self.capacity {
            return Err(Full);
        }
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
            reply: sender,
        };
        table.waiters.insert(correlation, waiter);
        Ok(Ticket {
            pending: self,
            correlation,
            reply: receiver,
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
    reply: Receiver<T>,
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
            if let Ok(reply) = self.reply.recv_timeout(left.min(every)) {
                self.is_off.set(true);
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
        self.reply.try_recv().map_err(|_| reason)
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::json::{ask, canonical};

    const NO_TIME: Duration = Duration::ZERO;

    fn id(number: u8) -> Correlation {
        Correlation([number; 16])
    }

    fn request(word: &str) -> Bytes {
        canonical(&ask(word)).unwrap()
    }

    #[test]
    fn each_reply_reaches_its_own_caller_once() {
        let pending = Pending::new(8);
        let first = pending.register(id(1), None, 0).unwrap();
        let second = pending.register(id(2), None, 0).unwrap();
        let now = Instant::now();
        assert_eq!(pending.complete(id(2), "two", now), Completion::Delivered);
        assert_eq!(pending.complete(id(1), "one", now), Completion::Delivered);
        assert_eq!(pending.complete(id(1), "again", now), Completion::Unknown);
        assert_eq!(pending.complete(id(9), "foreign", now), Completion::Unknown);
        assert_eq!(first.wait(NO_TIME), Some("one"));
        assert_eq!(second.wait(NO_TIME), Some("two"));
        assert!(pending.is_empty());
    }

    #[test]
    fn a_late_reply_is_told_from_a_foreign_one() {
        let pending: Pending<u32> = Pending::new(8);
        let ticket = pending.register(id(1), None, 0).unwrap();
        assert_eq!(ticket.wait(NO_TIME), None);
        let later = Instant::now() + Duration::from_secs(5);
        let Completion::Late(by) = pending.complete(id(1), 1, later) else {
            panic!("not late");
        };
        assert!(by >= Duration::from_secs(5) && by < Duration::from_secs(60));
        assert!(pending.is_empty());
    }

    #[test]
    fn who_waits_on_a_lost_connection_is_told() {
        let pending = Pending::new(8);
        let first = pending.register(id(1), None, 0).unwrap();
        let second = pending.register(id(2), Some(request("ping")), 1).unwrap();
        pending.lost(1, || "lost");
        assert_eq!(second.wait(NO_TIME), Some("lost"));
        assert_eq!(pending.len(), 1);
        pending.complete(id(1), "one", Instant::now());
        assert_eq!(first.wait(NO_TIME), Some("one"));
    }

    #[test]
    fn a_full_table_refuses_and_a_dropped_ticket_frees_its_place() {
        let pending: Pending<u32> = Pending::new(1);
        let ticket = pending.register(id(1), None, 0).unwrap();
        assert_eq!(pending.register(id(2), None, 0).err(), Some(Full));
        drop(ticket);
        assert!(pending.register(id(2), None, 0).is_ok());
    }

    #[test]
    fn without_correlation_the_oldest_equal_request_is_answered() {
        let pending = Pending::new(8);
        let ping_1 = pending.register(id(1), Some(request("ping")), 0).unwrap();
        let other = pending.register(id(2), Some(request("other")), 0).unwrap();
        let ping_2 = pending.register(id(3), Some(request("ping")), 0).unwrap();
        let closed = pending.register(id(4), None, 0).unwrap();
        let to = |word| Received::Request(request(word));
        assert_eq!(
            pending.complete_oldest(&to("ping"), 1),
            Completion::Delivered
        );
        assert_eq!(ping_1.wait(NO_TIME), Some(1));
        assert_eq!(
            pending.complete_oldest(&to("ping"), 2),
            Completion::Delivered
        );
        assert_eq!(ping_2.wait(NO_TIME), Some(2));
        assert_eq!(pending.complete_oldest(&to("ping"), 3), Completion::Unknown);
        let unknown = Received::Unknown;
        assert_eq!(pending.complete_oldest(&unknown, 4), Completion::Delivered);
        assert_eq!(other.wait(NO_TIME), Some(4));
        assert_eq!(pending.complete_oldest(&unknown, 5), Completion::Unknown);
        assert_eq!(closed.wait(NO_TIME), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Register(u8, bool),
        Complete(u8),
        CompleteOldest(u8),
        GiveUp(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..12u8, any::<bool>()).prop_map(|(who, open)| Step::Register(who, open)),
            (0..12u8).prop_map(Step::Complete),
            (0..4u8).prop_map(Step::CompleteOldest),
            (0..12u8).prop_map(Step::GiveUp),
        ]
    }

    proptest! {
        // The value of a reply is the request it answers; whatever happens in whatever order,
        // nobody gets another's.
        #[test]
        fn no_order_of_events_crosses_replies(steps in proptest::collection::vec(step(), 0..80)) {
            let pending: Pending<Bytes> = Pending::new(6);
            let word = |who: u8| request(&(who % 4).to_string());
            let mut tickets: HashMap<u8, Ticket<'_, Bytes>> = HashMap::new();
            let mut answered: HashMap<u8, Ticket<'_, Bytes>> = HashMap::new();
            for step in steps {
                match step {
                    Step::Register(who, open) => {
                        if tickets.contains_key(&who) || answered.contains_key(&who) {
                            continue;
                        }
                        let result = pending.register(id(who), open.then(|| word(who)), 0);
                        prop_assert_eq!(result.is_ok(), tickets.len() < 6);
                        if let Ok(ticket) = result {
                            tickets.insert(who, ticket);
                        }
                    }
                    Step::Complete(who) => {
                        let outcome = pending.complete(id(who), word(who), Instant::now());
                        prop_assert_eq!(outcome == Completion::Delivered, tickets.contains_key(&who));
                        answered.extend(tickets.remove_entry(&who));
                    }
                    Step::CompleteOldest(number) => {
                        let before = pending.len();
                        let received = Received::Request(word(number));
                        if pending.complete_oldest(&received, word(number)) == Completion::Delivered {
                            prop_assert_eq!(pending.len(), before - 1);
                            let done: Vec<u8> = tickets.iter()
                                .filter(|(_, ticket)| !ticket.reply.is_empty())
                                .map(|(who, _)| *who)
                                .collect();
                            prop_assert_eq!(done.len(), 1);
                            answered.extend(tickets.remove_entry(&done[0]));
                        }
                    }
                    Step::GiveUp(who) => {
                        if let Some(ticket) = tickets.remove(&who) {
                            prop_assert_eq!(ticket.wait(NO_TIME), None);
                        }
                    }
                }
                prop_assert_eq!(pending.len(), tickets.len());
            }
            for (who, ticket) in answered {
                prop_assert_eq!(ticket.wait(NO_TIME), Some(word(who)));
            }
        }
    }
}
