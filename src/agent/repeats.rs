//! Requests that come again, and the replies they got: so that none is executed twice.
//!
//! QoS 1 may deliver a request twice, a gateway repeats one that a broker was lost with, and a caller may repeat one on purpose, under one
//! `Idempotency-Key`. A repeat gets the same reply; while the first is still running, it waits for
//! it. The memory is bounded in entries, bytes and age. Time is passed in.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::outcome::Ended;
use crate::base::threads::lock;
use crate::wire::deadline::{DEADLINE_MS, SENT};
use crate::wire::{Message, Qos};

/// How many requests are remembered.
const MAX_ENTRIES: usize = 1024;
/// How many bytes of replies are remembered, and how many of requests wait.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// How long a reply is remembered: longer than any caller waits.
const MAX_AGE: Duration = Duration::from_secs(120);
/// How many repeats wait for one running request; further ones are dropped.
const MAX_WAITING: usize = 16;
/// The longest Idempotency-Key that is heeded, in bytes.
const MAX_KEY_BYTES: usize = 255;

/// Fields that differ from one attempt to the next.
const VOLATILE: [&str; 7] = [
    "x-request-id:",
    "x-forwarded-for:",
    "via:",
    "cdn-loop:",
    "forwarded:",
    "date:",
    "prefer:",
];

/// The longest correlation that is a key as it is, in bytes; of a longer one a digest is kept.
const MAX_CORRELATION: usize = 64;

/// What a request is known again by; whatever strangers send, it is short.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key(Arc<[u8]>);

impl Key {
    /// The key of a request, if it may come again: its Idempotency-Key together with what it asks
    /// for, else, with QoS 1 or where all `may_come_again`, its correlation.
    /// `seeds` are this process's own, so that nobody can prepare two requests with one key.
    pub fn of(message: &Message, seeds: &[RandomState; 2], may_come_again: bool) -> Option<Key> {
        let properties = &message.properties;
        let mut key = message.topic.clone().into_bytes();
        key.push(0);
        if let Some(given) = idempotency_key(message) {
            // Who asks belongs to it too, whatever the upstream knows that by: nobody gets the
            // reply to another's question.
            let fields = properties.user.iter().filter(|(name, field)| {
                let field = field.to_ascii_lowercase();
                name != DEADLINE_MS
                    && name != SENT
                    && !VOLATILE.iter().any(|name| field.starts_with(name))
            });
            let asked = (
                &message.payload,
                &properties.content_type,
                fields.collect::<Vec<_>>(),
            );
            for seed in seeds {
                key.extend(seed.hash_one(&asked).to_be_bytes());
            }
            key.extend(given);
            return (given.len() <= MAX_KEY_BYTES).then_some(Key(key.into()));
        }
        let correlation = properties.correlation_data.as_ref()?;
        (may_come_again || message.qos > Qos::AtMostOnce).then(|| {
            match correlation.len() <= MAX_CORRELATION {
                true => key.extend(correlation),
                false => {
                    for seed in seeds {
                        key.extend(seed.hash_one(correlation).to_be_bytes());
                    }
                }
            }
            Key(key.into())
        })
    }
}

// The Idempotency-Key of an HTTP request: a field that a caller repeats with a request it repeats.
fn idempotency_key(message: &Message) -> Option<&[u8]> {
    let mut fields = message.properties.user.iter();
    let (_, field) = fields.find(|(key, field)| {
        key == "h"
            && field
                .get(.."idempotency-key: ".len())
                .is_some_and(|name| name.eq_ignore_ascii_case("idempotency-key: "))
    })?;
    field
        .as_bytes()
        .get("idempotency-key: ".len()..)
        .filter(|key| !key.is_empty())
}

/// What is to be done with a request.
pub(super) enum Seen<T> {
    /// It is the first: execute it, then call [`Repeats::end`].
    New(T),
    /// The first is running: this one is kept, and comes back when it ends.
    Waiting,
    /// Too many wait for the first already, or too much of what waits.
    TooMany(T),
    /// The first has ended like this.
    Before(T, Ended),
}

/// The memory; `T` is a request.
pub(super) struct Repeats<T> {
    table: Mutex<Table<T>>,
}

struct Table<T> {
    entries: HashMap<Key, State<T>>,
    // Those that have ended, oldest first.
    ended: VecDeque<(Key, Instant)>,
    bytes: usize,
    // Of the requests that wait.
    waiting_bytes: usize,
}

enum State<T> {
    // Those who wait, each with its size in bytes.
    Running(Vec<(T, usize)>),
    Ended(Ended),
}

impl<T> Repeats<T> {
    pub fn new() -> Repeats<T> {
        Repeats {
            table: Mutex::new(Table {
                entries: HashMap::new(),
                ended: VecDeque::new(),
                bytes: 0,
                waiting_bytes: 0,
            }),
        }
    }

    /// Looks up a request of so many bytes and, if it is new, remembers that it runs.
    pub fn see(&self, key: &Key, request: T, bytes: usize, now: Instant) -> Seen<T> {
        let mut guard = lock(&self.table);
        let table = &mut *guard;
        table.forget_old(now);
        match table.entries.get_mut(key) {
            None => {
                table
                    .entries
                    .insert(key.clone(), State::Running(Vec::new()));
                Seen::New(request)
            }
            Some(State::Running(waiting)) => {
                let held = table.waiting_bytes + bytes;
                if waiting.len() >= MAX_WAITING || held > MAX_BYTES {
                    return Seen::TooMany(request);
                }
                table.waiting_bytes = held;
                waiting.push((request, bytes));
                Seen::Waiting
            }
            Some(State::Ended(ended)) => Seen::Before(request, ended.clone()),
        }
    }

    /// Forgets a request that runs no more and has not ended.
    pub fn abandon(&self, key: &Key) {
        let mut table = lock(&self.table);
        if let Some(State::Running(_)) = table.entries.get(key) {
            table.remove(key);
        }
    }

    /// Remembers how a request ended, and gives back those that waited for it. `None`: it was
    /// dropped unexecuted.
    pub fn end(&self, key: &Key, ended: Option<&Ended>, now: Instant) -> Vec<T> {
        let mut table = lock(&self.table);
        let waiting = table.remove(key);
        if let Some(ended) = ended.filter(|ended| ended.is_final()) {
            table.bytes += ended.bytes();
            let state = State::Ended(ended.clone());
            table.entries.insert(key.clone(), state);
            table.ended.push_back((key.clone(), now));
            table.forget_old(now);
        }
        waiting
    }
}

impl<T> Table<T> {
    // Forgets a request, and gives back those that waited for it.
    fn remove(&mut self, key: &Key) -> Vec<T> {
        let waiting = match self.entries.remove(key) {
            Some(State::Running(waiting)) => waiting,
            Some(State::Ended(ended)) => {
                self.bytes -= ended.bytes();
                self.ended.retain(|(old, _)| old != key);
                Vec::new()
            }
            None => Vec::new(),
        };
        self.waiting_bytes -= waiting.iter().map(|(_, bytes)| bytes).sum::<usize>();
        waiting.into_iter().map(|(request, _)| request).collect()
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((_, since)) = self.ended.front() {
            let old = now.saturating_duration_since(*since) > MAX_AGE;
            if !old && self.ended.len() <= MAX_ENTRIES && self.bytes <= MAX_BYTES {
                return;
            }
            let Some((key, _)) = self.ended.pop_front() else {
                return;
            };
            if let Some(State::Ended(ended)) = self.entries.remove(&key) {
                self.bytes -= ended.bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::outcome::Spent;
    use super::*;
    use crate::http::{Failure, Response};
    use crate::wire::Properties;

    fn key(correlation: &'static str) -> Key {
        let message = Message {
            qos: Qos::AtLeastOnce,
            properties: Properties {
                correlation_data: Some(Bytes::from_static(correlation.as_bytes())),
                ..Properties::default()
            },
            ..Message::default()
        };
        Key::of(&message, &Default::default(), false).unwrap()
    }

    fn answered(size: usize) -> Ended {
        Ended::Answered(Response::new(vec![0; size].into()), Spent::default())
    }

    #[test]
    fn a_repeat_waits_for_the_first_and_later_ones_get_its_reply() {
        let repeats = Repeats::new();
        let now = Instant::now();
        assert!(matches!(repeats.see(&key("a"), 1, 1, now), Seen::New(1)));
        assert!(matches!(repeats.see(&key("a"), 2, 1, now), Seen::Waiting));
        assert!(matches!(repeats.see(&key("b"), 3, 1, now), Seen::New(3)));
        assert_eq!(repeats.end(&key("a"), Some(&answered(1)), now), [2]);
        let Seen::Before(4, Ended::Answered(reply, _)) = repeats.see(&key("a"), 4, 1, now) else {
            panic!("it is not remembered");
        };
        assert_eq!(reply.body().len(), 1);
        let later = now + MAX_AGE + Duration::from_secs(1);
        assert!(matches!(repeats.see(&key("a"), 5, 1, later), Seen::New(5)));
    }

    #[test]
    fn what_was_not_executed_may_be_tried_again() {
        let repeats = Repeats::new();
        let now = Instant::now();
        let failed = Ended::Failed(Failure::Unreachable("refused".into()), Spent::default());
        let unknown = Ended::Failed(Failure::BadAnswer("cut".into()), Spent::default());
        for (ended, again) in [(Some(failed), true), (None, true), (Some(unknown), false)] {
            assert!(matches!(repeats.see(&key("a"), 1, 1, now), Seen::New(1)));
            assert!(repeats.end(&key("a"), ended.as_ref(), now).is_empty());
            let seen = repeats.see(&key("a"), 2, 1, now);
            assert_eq!(matches!(seen, Seen::New(2)), again);
            if again {
                repeats.end(&key("a"), None, now);
            }
        }
    }

    #[test]
    fn the_memory_is_bounded() {
        let repeats = Repeats::new();
        let now = Instant::now();
        let names = ["a", "b", "c", "d"];
        for name in names {
            assert!(matches!(repeats.see(&key(name), (), 1, now), Seen::New(())));
            repeats.end(&key(name), Some(&answered(MAX_BYTES / 3)), now);
        }
        let table = lock(&repeats.table);
        assert!(table.bytes <= MAX_BYTES);
        assert_eq!(table.entries.len(), 2, "the oldest had to go");
        drop(table);
        let waiting: Vec<bool> = (0..MAX_WAITING + 2)
            .map(|_| matches!(repeats.see(&key("z"), (), 1, now), Seen::TooMany(())))
            .collect();
        assert_eq!(waiting.iter().filter(|too_many| **too_many).count(), 1);
        let see = |bytes| repeats.see(&key("y"), (), bytes, now);
        assert!(matches!(see(1), Seen::New(())));
        assert!(matches!(see(MAX_BYTES - MAX_WAITING), Seen::Waiting));
        assert!(
            matches!(see(1), Seen::TooMany(())),
            "they would hold too much"
        );
        repeats.end(&key("y"), None, now);
        assert!(matches!(see(1), Seen::New(())));
        assert!(matches!(see(MAX_BYTES - MAX_WAITING), Seen::Waiting));
    }

    #[test]
    fn only_what_may_come_again_has_a_key() {
        let seeds = Default::default();
        let of = |message: &Message, key: Option<&str>| {
            let mut message = message.clone();
            let field = key.map(|key| ("h".to_owned(), format!("Idempotency-Key: {key}")));
            message.properties.user.extend(field);
            Key::of(&message, &seeds, false)
        };
        let mut message = Message::default();
        assert_eq!(of(&message, None), None);
        message.properties.correlation_data = Some(Bytes::from_static(b"x"));
        assert_eq!(of(&message, None), None, "QoS 0 comes once");
        let mine = Some("mine");
        let first = of(&message, mine).unwrap();
        assert_eq!(of(&message, mine).unwrap(), first);
        let mut other_body = message.clone();
        other_body.payload = Bytes::from_static(b"another body");
        assert_ne!(of(&other_body, mine).unwrap(), first);
        let mut other_asker = message.clone();
        let field = ("h".to_owned(), "Authorization: Bearer b".to_owned());
        other_asker.properties.user.push(field);
        assert_ne!(of(&other_asker, mine).unwrap(), first);
        assert_eq!(of(&message, Some(&"k".repeat(256))), None, "too long a key");
        message.qos = Qos::AtLeastOnce;
        let mut correlated = |data: Vec<u8>| {
            message.properties.correlation_data = Some(data.into());
            of(&message, None).unwrap()
        };
        let long = correlated(vec![1; 60_000]);
        assert!(long.0.len() < 100, "it is kept for two minutes");
        assert_eq!(correlated(vec![1; 60_000]), long);
        assert_ne!(correlated(vec![1; 60_001]), long);
        assert_ne!(correlated(vec![2; 60_000]), long);
    }
}
