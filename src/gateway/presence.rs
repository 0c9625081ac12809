//! Who is there: the agents that have announced themselves.
//!
//! Each keeps a retained message on `recado/agents/<id>/presence` while it is connected; the
//! broker removes it when the agent is gone (its will) and the agent when it stops.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::part::Part;
use super::seen::{Seen, Shown, Wanted};
use super::table::{MAX_AGENTS, Table, Target};
use crate::base::threads::lock;
use crate::base::topic::{Id, Topic};
use crate::wire::Message;
use crate::wire::presence::{Announcement, GOODBYE, agent_of};
use crate::wire::stats::Stats;
use crate::wire::stream::agent_topic;

/// How many agents of a service are told that a client has gone; the others see it by their deadline.
const MAX_TOLD: usize = 64;
/// How often a request goes through to a JSON route whose announced agents have all left: an old
/// peer, which announces nothing, may have taken their place.
const BENEFIT_OF_DOUBT: Duration = Duration::from_secs(5);
/// How long an agent that has left may go on answering.
const LEAVING: Duration = Duration::from_secs(4);

/// How long an agent takes to say that it is still there, when another one with its id has left.
const SAYS_SO: Duration = Duration::from_millis(200);
/// How long after everything seems to be said what is missing is still waited for: nothing obliges a
/// broker to send retained messages before others, and rmqtt sends them from a task of their own.
const STRAGGLERS: Duration = Duration::from_secs(1);

/// Who is there, as far as the broker has said.
pub(super) struct Presence {
    // Whom it is about; the others are not there for this gateway.
    part: Part,
    table: Mutex<Table>,
    changed: Condvar,
}

impl Default for Presence {
    fn default() -> Presence {
        Presence::new(Part::default(), MAX_AGENTS)
    }
}

impl Presence {
    /// Takes note of so many agents of a part.
    pub fn new(part: Part, most: usize) -> Presence {
        Presence {
            part,
            table: Mutex::new(Table::new(most)),
            changed: Condvar::new(),
        }
    }

    /// Takes what an agent says of itself, or of its work. Returns whether it was that.
    pub fn take(&self, message: &Message, now: Instant) -> bool {
        let (topic, payload) = (&message.topic, &message.payload);
        // Replies pass here too: so what costs least is looked at first.
        if payload.is_empty()
            && let Some(id) = agent_of(topic, "presence")
            && message.properties.user(GOODBYE).is_some()
        {
            lock(&self.table).goodbye(id.as_str(), now);
        }
        self.update(topic, payload, now)
    }

    fn update(&self, topic: &str, payload: &[u8], now: Instant) -> bool {
        let Some(id) = agent_of(topic, "presence") else {
            return self.update_stats(topic, payload, now);
        };
        if !self.part.has(id.as_str()) {
            return true;
        }
        let announced = Announcement::read(payload).filter(|announced| announced.id == id.as_str());
        let mut table = lock(&self.table);
        match announced {
            // Another agent with this id will say that it is there.
            Some(announcement) if announcement.leaving => {
                table.forget(id.as_str(), &announcement.instance)
            }
            // Anything that is neither an announcement nor empty is not to be believed.
            None if !payload.is_empty() => {}
            Some(announcement) => table.remember(id.as_str(), announcement, now),
            None => table.left(id.as_str(), now),
        }
        self.changed.notify_all();
        true
    }

    fn update_stats(&self, topic: &str, payload: &[u8], now: Instant) -> bool {
        let Some(id) = agent_of(topic, "stats") else {
            return false;
        };
        // An empty one asks for them.
        if let Some(stats) = Stats::read(payload).filter(|stats| stats.id == id.as_str()) {
            lock(&self.table).note_stats(stats, now);
        }
        true
    }

    /// There is a connection, to a broker that can be relied upon to say who is there, or not.
    pub fn connected(&self, reliable: bool) {
        lock(&self.table).forgetful = !reliable;
    }

    /// The broker has said all that it knows.
    pub fn complete(&self, now: Instant) {
        lock(&self.table).complete = Some(now);
    }

    /// The connection is lost, and with it all knowledge.
    pub fn forget(&self) {
        lock(&self.table).clear();
        self.changed.notify_all();
    }

    /// Whether the broker has said all that it knows.
    pub fn is_complete(&self) -> bool {
        lock(&self.table).complete.is_some()
    }

    // The table, once what is sought is there or need not be waited for any longer. Blocks only in the
    // first second of a connection.
    fn search(
        &self,
        now: Instant,
        waits: bool,
        is_there: impl Fn(&Table) -> bool,
    ) -> MutexGuard<'_, Table> {
        let mut table = lock(&self.table);
        table.end_the_silent(now);
        let since = table.complete.filter(|_| !table.forgetful);
        let left = since.map_or(Duration::ZERO, |since| {
            (since + STRAGGLERS).saturating_duration_since(now)
        });
        if !waits || left.is_zero() || is_there(&table) {
            return table;
        }
        let is_missing = |table: &mut Table| table.complete.is_some() && !is_there(table);
        let waited = self.changed.wait_timeout_while(table, left, is_missing);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Those who are there.
    pub fn agents(&self, wanted: &Wanted, now: Instant) -> Shown {
        Shown::of(&mut self.search(now, true, |_| false), wanted, now)
    }

    /// Those who are known to be there now, without waiting for who might be.
    pub fn agents_known(&self, wanted: &Wanted, now: Instant) -> Shown {
        let mut table = lock(&self.table);
        table.end_the_silent(now);
        Shown::of(&mut table, wanted, now)
    }

    /// How many are there, and how many of them are silent.
    pub fn states(&self, now: Instant) -> (usize, usize) {
        lock(&self.table).states(now)
    }

    /// One agent, if it is there.
    pub fn agent(&self, id: &str, now: Instant) -> Option<Seen> {
        let table = self.search(now, true, |table| table.twins(id).next().is_some());
        let (_, first) = table.twins(id).next()?;
        Some(Seen::of(id, first, now))
    }

    /// Whether a request on this topic, in HTTP mode, finds anybody: there every agent announces
    /// itself, so who isn't known isn't there. It is answered on `inbox`. `waits`: for who may be announced
    /// in a moment.
    pub fn http_target(&self, topic: &Topic, inbox: &Topic, now: Instant, waits: bool) -> Target {
        let table = self.search(now, waits, |table| table.serves(topic, inbox).is_some());
        match (table.serves(topic, inbox), table.complete.is_some()) {
            (Some(found), _) => found,
            (None, true) if table.forgetful => Target::There { streams: false },
            (None, true) => Target::Absent,
            (None, false) => Target::NotKnownYet,
        }
    }

    /// The same in JSON mode: there old peers never announce themselves, so it takes evidence that
    /// nobody is there, and even then a request goes through now and then.
    /// With it: whether somebody who serves it has announced itself.
    pub fn json_target(&self, topic: &Topic, inbox: &Topic, now: Instant) -> (Target, bool) {
        let mut table = lock(&self.table);
        table.end_the_silent(now);
        if let Some(found) = table.serves(topic, inbox) {
            return (found, true);
        }
        let target = match table.left.get_mut(topic.as_str()) {
            None => Target::There { streams: false },
            Some(last) if now.saturating_duration_since(*last) < BENEFIT_OF_DOUBT => Target::Absent,
            Some(last) => {
                *last = now;
                Target::There { streams: false }
            }
        };
        (target, false)
    }

    /// Whether somebody who has announced itself serves this topic.
    pub fn is_served(&self, topic: &Topic) -> bool {
        let table = lock(&self.table);
        table.servers(topic.as_str()).next().is_some()
    }

    /// The instance of the agent that serves this topic, if only one does, and knows a request again that
    /// comes by another broker.
    pub fn sole_server(&self, topic: &Topic) -> Option<String> {
        let table = lock(&self.table);
        let mut serving = table.servers(topic.as_str());
        let (_, first) = serving.next()?;
        match serving.next() {
            None if first.terms().remembers => Some(first.instance.to_string()),
            None | Some(_) => None,
        }
    }

    /// Where those who serve this topic take what belongs to streams; of many, some.
    pub fn stream_topics(&self, topic: &Topic) -> Vec<String> {
        let table = lock(&self.table);
        let serving = table.servers(topic.as_str());
        let serving = serving.filter(|(_, known)| known.terms().streams);
        let topics = serving.take(MAX_TOLD).filter_map(|(id, known)| {
            let id = Id::new(id).ok()?;
            agent_topic(&id, &known.instance).ok()
        });
        topics.map(|topic| topic.to_string()).collect()
    }

    /// Whether somebody has left, some time ago, since this was asked last. One whose id another agent
    /// has too says meanwhile that it is still there.
    pub fn somebody_left(&self, now: Instant) -> bool {
        let mut table = lock(&self.table);
        table.end_the_silent(now);
        let is_due = |left: &mut Instant| now >= *left + SAYS_SO;
        table.last_left.take_if(is_due).is_some()
    }

    /// Whether this agent is known to be there.
    pub fn is_there(&self, id: &str, instance: &str) -> bool {
        let table = lock(&self.table);
        let mut twins = table.twins(id);
        twins.any(|(_, known)| *known.instance == *instance)
    }

    /// What the broker denies all who serve this topic, if it does: a request that is on its way to
    /// them is waited for in vain.
    pub fn denied(&self, topic: &Topic, inbox: &Topic) -> Option<String> {
        match lock(&self.table).serves(topic, inbox) {
            Some(Target::Denied(what)) => Some(what),
            _ => None,
        }
    }

    /// Somebody has answered a request on this topic: an agent that is just leaving answers what
    /// it has in hand, but later than that it must be one that has not announced itself.
    pub fn answered(&self, topic: &Topic, now: Instant) {
        let mut table = lock(&self.table);
        if table.left.is_empty() || table.left_since.is_some_and(|since| now < since + LEAVING) {
            return;
        }
        table.left.remove(topic.as_str());
    }
}

#[cfg(test)]
mod tests;
