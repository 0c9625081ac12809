//! The table of agents. Time is passed in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::known::{Common, Known, Named, owner};
use crate::base::topic::Topic;
use crate::wire::presence::Announcement;

/// Whether a request finds anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// Somebody who serves it is there, or it can't be known.
    There {
        /// All who are known to serve it take streams.
        streams: bool,
    },
    /// Nobody is.
    Absent,
    /// The broker has not said yet who is there.
    NotKnownYet,
    /// Somebody is, but says that the broker denies something that it needs; what.
    Denied(String),
}

/// How many agents are taken note of unless something else is said, and how many of those with one id are
/// told apart.
pub const MAX_AGENTS: usize = 250_000;
pub(super) const MAX_TWINS: usize = 16;
/// How many agents are greeted one by one in the log.
const GREETED: usize = 1000;
/// How many are remembered that have vanished.
pub(super) const MAX_LOST: usize = 64;
/// How many topics are remembered for having been served, and how long one may be, in bytes.
const MAX_LEFT: usize = 4096;
const MAX_LEFT_BYTES: usize = 256;

pub(super) struct Table {
    // By id; those with one id differ in their instance.
    agents: BTreeMap<Arc<str>, Vec<Known>>,
    // Who takes requests from topics that are not of one agent alone.
    served: HashMap<Box<str>, Served>,
    common: Common,
    pub count: usize,
    most: usize,
    // No announcement ceases to hold before this.
    next_end: Option<Instant>,
    // Since when the broker seems to have delivered all that there was at the time of the subscription.
    pub complete: Option<Instant>,
    // It keeps no retained messages, or not for this gateway: who was there before is not known
    // and never will be.
    pub forgetful: bool,
    // Topics whose agents were there and left: when a request was last let through, or else when
    // the last agent left.
    pub left: BTreeMap<String, Instant>,
    // When the last agent left.
    pub left_since: Option<Instant>,
    // The same, until somebody has asked for it.
    pub last_left: Option<Instant>,
    // Who has vanished without a word.
    pub lost: Vec<Lost>,
}

// Who takes requests from a topic. Each request asks, so what matters is counted.
#[derive(Default)]
struct Served {
    ids: BTreeSet<Arc<str>>,
    // Those that the broker denies nothing, and those of them that take no streams.
    plain: usize,
    without_streams: usize,
    // Ids of those that it denies something.
    denied: BTreeSet<Arc<str>>,
}

/// An agent that has vanished without a word.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Lost {
    // Not `id`: who looks for that wants those who are there.
    pub agent: String,
    /// It says nothing any more, and the broker has ended its connection.
    pub state: &'static str,
    /// When it said something for the last time.
    #[serde(skip)]
    pub heard: Instant,
    #[serde(skip)]
    pub vanished: Instant,
    pub last_seen_ms: u64,
}

impl Table {
    /// An empty one, for this many agents.
    pub fn new(most: usize) -> Table {
        Table {
            agents: BTreeMap::new(),
            served: HashMap::new(),
            common: Common::default(),
            count: 0,
            most,
            next_end: None,
            complete: None,
            forgetful: false,
            left: BTreeMap::new(),
            left_since: None,
            last_left: None,
            lost: Vec::new(),
        }
    }

    // Whether anybody who can serves this topic; None: nobody is there.
    pub fn serves(&self, topic: &Topic, inbox: &Topic) -> Option<Target> {
        let topic = topic.as_str();
        let (mut found, mut denied) = (None, None);
        let served = self.served.get(topic);
        if let Some(served) = served.filter(|served| served.plain > 0) {
            found = Some(served.without_streams == 0);
        }
        let some_denied = served.into_iter().flat_map(|served| &served.denied);
        let some_denied = some_denied
            .flat_map(|id| self.twins(id))
            .filter(|(_, known)| known.terms().are_denied_something());
        for (id, known) in self.owners(topic).chain(some_denied) {
            if !known.serves(id, topic) {
                continue;
            }
            let Some(lacks) = known.lacks(id, [topic, inbox.as_str()]) else {
                found = Some(found.unwrap_or(true) && known.terms().streams);
                continue;
            };
            let verb = if lacks == topic { "read" } else { "write" };
            denied = Some(Target::Denied(format!(
                "the broker does not let agent {id} {verb} {lacks}"
            )));
        }
        match found {
            Some(streams) => Some(Target::There { streams }),
            None => denied,
        }
    }

    /// All who serve a topic, with their ids.
    pub fn servers<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = (&'a str, &'a Known)> {
        let served = self.served.get(topic).into_iter();
        let others = served.flat_map(|served| &served.ids);
        let others = others.flat_map(|id| self.twins(id));
        let all = self.owners(topic).chain(others);
        all.filter(move |(id, known)| known.serves(id, topic))
    }

    // Those whose own topic this is.
    fn owners(&self, topic: &str) -> impl Iterator<Item = (&str, &Known)> {
        let entry = owner(topic).and_then(|id| self.agents.get_key_value(id));
        let twins = entry.into_iter();
        twins.flat_map(|(id, twins)| twins.iter().map(move |known| (&**id, known)))
    }

    /// Those with an id.
    pub fn twins<'a>(&'a self, id: &'a str) -> impl Iterator<Item = (&'a str, &'a Known)> {
        let twins = self.agents.get(id).into_iter().flatten();
        twins.map(move |known| (id, known))
    }

    /// The same, to be changed.
    pub fn twins_mut(&mut self, id: &str) -> impl Iterator<Item = &mut Known> {
        self.agents.get_mut(id).into_iter().flatten()
    }

    /// Everybody, by id.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Known)> {
        self.behind("")
    }

    /// Those whose ids come after one.
    pub fn behind(&self, id: &str) -> impl Iterator<Item = (&str, &Known)> {
        let range = (Bound::Excluded(id), Bound::Unbounded);
        let range = self.agents.range::<str, _>(range);
        range.flat_map(|(id, twins)| twins.iter().map(move |known| (&**id, known)))
    }

    pub fn remember(&mut self, id: &str, announcement: Announcement, now: Instant) {
        for topic in &announcement.topics {
            self.left.remove(topic);
        }
        self.lost.retain(|lost| lost.agent != id);
        let Some(mut known) = Known::new(announcement, &mut self.common, now) else {
            log::warn!("there is no memory for what agent {id} says: it is not taken note of");
            return;
        };
        if let Some(ends) = known.ends() {
            self.next_end = Some(self.next_end.map_or(ends, |next| next.min(ends)));
        }
        if self
            .twins_mut(id)
            .any(|before| before.is_repeated(&known, now))
        {
            return;
        }
        if let Some((before, at)) = self.take(id, &known.instance) {
            known.work = before.work;
            return self.put(id, known, at);
        }
        let others = self.agents.get(id).map_or(0, Vec::len);
        if self.count >= self.most || others >= MAX_TWINS {
            let most = self.most;
            log::warn!(
                "more than {most} agents, or {MAX_TWINS} with one id: {id} is not taken note of"
            );
            return;
        }
        match others {
            0 if self.count < GREETED => log::info!("agent {id} is there"),
            0 => log::debug!("agent {id} is there"),
            others => log::error!(
                "{others} other agents have the id {id} too; they share its requests; give each its own"
            ),
        }
        self.put(id, known, others);
    }

    // `at`: its place among those with its id.
    fn put(&mut self, id: &str, known: Known, at: usize) {
        let id = match self.agents.get_key_value(id) {
            Some((id, _)) => Arc::clone(id),
            None => id.into(),
        };
        for topic in other_topics(&known) {
            let served = match self.served.get_mut(topic) {
                Some(served) => served,
                None => self.served.entry(topic.into()).or_default(),
            };
            served.ids.insert(Arc::clone(&id));
            match known.terms().are_denied_something() {
                true => drop(served.denied.insert(Arc::clone(&id))),
                false => {
                    served.plain += 1;
                    served.without_streams += usize::from(!known.terms().streams);
                }
            }
        }
        self.count += 1;
        match self.agents.get_mut(&id) {
            Some(twins) => twins.insert(at.min(twins.len()), known),
            // Room for one: more would be most of what they take.
            None => drop(self.agents.insert(id, vec![known])),
        }
    }

    // Takes one off, if it is there, and says at which place among those with its id it was.
    fn take(&mut self, id: &str, instance: &str) -> Option<(Known, usize)> {
        let twins = self.agents.get_mut(id)?;
        let number = twins.iter().position(|it| *it.instance == *instance)?;
        let known = twins.remove(number);
        if twins.is_empty() {
            self.agents.remove(id);
        }
        self.count -= 1;
        for topic in other_topics(&known) {
            self.serves_no_more(id, topic, &known);
        }
        Some((known, number))
    }

    fn serves_no_more(&mut self, id: &str, topic: &str, gone: &Known) {
        let twins = self.agents.get(id).into_iter().flatten();
        let mut left = twins.filter(|twin| twin.serves(id, topic)).peekable();
        let serves_still = left.peek().is_some();
        let is_denied_still = left.any(|twin| twin.terms().are_denied_something());
        let Some(served) = self.served.get_mut(topic) else {
            return;
        };
        if !gone.terms().are_denied_something() {
            served.plain -= 1;
            served.without_streams -= usize::from(!gone.terms().streams);
        }
        if !is_denied_still {
            served.denied.remove(id);
        }
        if !serves_still {
            served.ids.remove(id);
        }
        if served.ids.is_empty() {
            self.served.remove(topic);
        }
    }

    pub fn forget(&mut self, id: &str, instance: &str) {
        self.take(id, instance);
    }

    /// Forgets who is there.
    pub fn clear(&mut self) {
        *self = Table {
            lost: std::mem::take(&mut self.lost),
            ..Table::new(self.most)
        };
    }

    /// Its connection has ended.
    pub fn left(&mut self, id: &str, now: Instant) {
        self.gone(id, now, Self::lose);
    }

    /// It has said that it goes.
    pub fn goodbye(&mut self, id: &str, now: Instant) {
        self.gone(id, now, |_, _, _, _| {});
    }

    fn gone(&mut self, id: &str, now: Instant, each: impl Fn(&mut Table, &str, &Known, Instant)) {
        let instances = self.twins(id).map(|(_, known)| known.instance.clone());
        let instances: Vec<Box<str>> = instances.collect();
        if instances.is_empty() {
            return;
        }
        match self.count < GREETED {
            true => log::info!("agent {id} has left"),
            false => log::debug!("agent {id} has left"),
        }
        for instance in instances {
            if let Some((known, _)) = self.take(id, &instance) {
                each(self, id, &known, now);
                self.note_left(id, &known, now);
            }
        }
    }

    // Old agents say nothing when they leave, so nobody can tell of them.
    fn lose(&mut self, id: &str, known: &Known, now: Instant) {
        if known.terms().stats_ms.is_none() {
            return;
        }
        self.lost.retain(|lost| lost.agent != id);
        if self.lost.len() >= MAX_LOST {
            self.lost.remove(0);
        }
        self.lost.push(Lost {
            agent: id.to_owned(),
            state: "silent",
            heard: known.last_seen(),
            vanished: now,
            last_seen_ms: 0,
        });
    }

    fn note_left(&mut self, id: &str, gone: &Known, now: Instant) {
        self.left_since = Some(now);
        self.last_left = Some(now);
        for topic in gone.announcement(id).topics {
            if self.left.len() < MAX_LEFT && topic.len() <= MAX_LEFT_BYTES {
                self.left.insert(topic, now);
            }
        }
    }

    // Those who have not said for too long that they are there.
    pub fn end_the_silent(&mut self, now: Instant) {
        if self.next_end.is_none_or(|next| now < next) {
            return;
        }
        let is_silent = |known: &Known| known.ends().is_some_and(|ends| ends <= now);
        let silent = self.all().filter(|(_, known)| is_silent(known));
        let silent: Vec<(String, Box<str>)> = silent
            .map(|(id, known)| (id.to_owned(), known.instance.clone()))
            .collect();
        for (id, instance) in silent {
            log::warn!("agent {id} has not said for too long that it is there: it counts as gone");
            if let Some((known, _)) = self.take(&id, &instance) {
                self.lose(&id, &known, now);
                self.note_left(&id, &known, now);
            }
        }
        self.next_end = self.all().filter_map(|(_, known)| known.ends()).min();
    }
}

fn other_topics(known: &Known) -> impl Iterator<Item = &str> {
    let topics = known.terms().topics.iter();
    topics.filter_map(|topic| match topic {
        Named::Own => None,
        Named::Other(topic) => Some(&**topic),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOPICS: [&str; 4] = [
        "recado/agents/a/request",
        "recado/agents/b/request",
        "recado/services/web/request",
        "api/ping/request",
    ];

    #[derive(Debug, Clone)]
    enum Event {
        Said(u8, u8, u8, u8, bool),
        Forgotten(u8, u8),
        Left(u8),
        Time(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        let said = (0..3u8, 0..3u8, 0..16u8, 0..16u8, any::<bool>());
        prop_oneof![
            6 => said.prop_map(|(id, twin, topics, denied, streams)| {
                Event::Said(id, twin, topics, denied, streams)
            }),
            2 => (0..3u8, 0..3u8).prop_map(|(id, twin)| Event::Forgotten(id, twin)),
            1 => (0..3u8).prop_map(Event::Left),
            1 => (0..60u64).prop_map(Event::Time),
        ]
    }

    fn named(id: u8) -> String {
        ["a", "b", "c"][usize::from(id)].to_owned()
    }

    fn chosen(bits: u8) -> Vec<String> {
        let chosen = TOPICS.iter().enumerate();
        let chosen = chosen.filter(|(number, _)| bits & (1 << number) != 0);
        chosen.map(|(_, topic)| (*topic).to_owned()).collect()
    }

    // What `Table::serves` says, found by looking at everybody.
    fn serves(table: &Table, topic: &str) -> Option<bool> {
        let said = table.all().map(|(id, known)| known.announcement(id));
        let has = |topics: &[String]| topics.iter().any(|it| it == topic);
        let able = said.filter(|said| has(&said.topics) && !has(&said.denied));
        able.map(|said| said.streams)
            .reduce(|one, other| one && other)
    }

    proptest! {
        #[test]
        fn what_is_counted_is_what_everybody_says(events in prop::collection::vec(event(), 1..60)) {
            let mut table = Table::new(1000);
            let inbox = Topic::new("recado/gateways/g/response").unwrap();
            let mut now = Instant::now();
            for event in events {
                match event {
                    Event::Said(id, twin, topics, denied, streams) => {
                        let said = serde_json::json!({
                            "id": named(id), "services": [], "since": "", "version": "1",
                            "topics": chosen(topics), "instance": twin.to_string(),
                            // Seldom anything is denied.
                            "denied": chosen(denied & topics & denied.rotate_left(1)),
                            "streams": streams, "refresh_s": 20,
                        });
                        table.remember(&named(id), serde_json::from_value(said).unwrap(), now);
                    }
                    Event::Forgotten(id, twin) => table.forget(&named(id), &twin.to_string()),
                    Event::Left(id) => table.left(&named(id), now),
                    Event::Time(seconds) => {
                        now += std::time::Duration::from_secs(seconds);
                        table.end_the_silent(now);
                    }
                }
                prop_assert_eq!(table.count, table.all().count());
                for text in TOPICS {
                    let topic = Topic::new(text).unwrap();
                    let streams = match table.serves(&topic, &inbox) {
                        Some(Target::There { streams }) => Some(streams),
                        Some(Target::Denied(_)) => {
                            let is_served = table.servers(text).next().is_some();
                            prop_assert!(is_served);
                            None
                        }
                        _ => {
                            prop_assert!(table.servers(text).next().is_none());
                            None
                        }
                    };
                    prop_assert_eq!(streams, serves(&table, text));
                }
            }
            for id in 0..3 {
                table.left(&named(id), now);
            }
            prop_assert!(table.served.is_empty() && table.count == 0);
        }
    }
}
