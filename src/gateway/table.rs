//! The table of agents. Time is passed in.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use crate::base::topic::Topic;
use crate::wire::presence::Announcement;
use crate::wire::stats::Work;

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

/// How many agents are taken note of, and how many of those with one id are told apart.
const MAX_AGENTS: usize = 4096;
pub(super) const MAX_TWINS: usize = 16;
/// How many are remembered that have vanished.
pub(super) const MAX_LOST: usize = 64;
/// The longest topic that is remembered for having been served, in bytes.
const MAX_LEFT: usize = 256;

#[derive(Default)]
pub(super) struct Table {
    // By id; those with one id differ in their instance.
    pub agents: BTreeMap<String, Vec<Known>>,
    pub count: usize,
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

pub(super) struct Known {
    pub announcement: Announcement,
    // When it said so last.
    heard: Instant,
    /// What it says of its work, and when it did.
    pub work: Option<Work>,
    pub seen: Instant,
}

impl Known {
    // When it counts as gone unless it says again that it is there: no will is left of an agent and
    // a broker that die together, and what the broker keeps of it would never be taken back.
    pub fn ends(&self) -> Option<Instant> {
        self.announcement.holds().map(|holds| self.heard + holds)
    }

    /// When it said something for the last time.
    pub fn last_seen(&self) -> Instant {
        self.heard.max(self.seen)
    }

    pub fn serves(&self, topic: &str) -> bool {
        self.announcement.topics.iter().any(|it| it == topic)
    }
}

impl Table {
    // Whether anybody who can serves this topic; None: nobody is there.
    pub fn serves(&self, topic: &Topic, inbox: &Topic) -> Option<Target> {
        let (mut found, mut denied) = (None, None);
        for known in self.agents.values().flatten() {
            if !known.serves(topic.as_str()) {
                continue;
            }
            let announcement = &known.announcement;
            let mut needed = announcement.denied.iter();
            let lacks = needed.find(|it| *it == topic.as_str() || *it == inbox.as_str());
            let Some(lacks) = lacks else {
                let so_far = found.unwrap_or(true);
                found = Some(so_far && announcement.streams);
                continue;
            };
            let verb = if *lacks == topic.as_str() {
                "read"
            } else {
                "write"
            };
            let id = &announcement.id;
            denied = Some(Target::Denied(format!(
                "the broker does not let agent {id} {verb} {lacks}"
            )));
        }
        match found {
            Some(streams) => Some(Target::There { streams }),
            None => denied,
        }
    }

    pub fn remember(&mut self, id: &str, announcement: Announcement, now: Instant) {
        for topic in &announcement.topics {
            self.left.remove(topic);
        }
        self.lost.retain(|lost| lost.agent != id);
        let mut known = Known {
            announcement,
            heard: now,
            work: None,
            seen: now,
        };
        if let Some(ends) = known.ends() {
            self.next_end = Some(self.next_end.map_or(ends, |next| next.min(ends)));
        }
        let instance = &known.announcement.instance;
        let same = |it: &&mut Known| it.announcement.instance == *instance;
        let twins = self.agents.entry(id.to_owned()).or_default();
        if let Some(before) = twins.iter_mut().find(same) {
            known.work = before.work.take();
            *before = known;
            return;
        }
        if self.count >= MAX_AGENTS || twins.len() >= MAX_TWINS {
            log::warn!(
                "more than {MAX_AGENTS} agents, or {MAX_TWINS} with one id: {id} is not taken note of"
            );
            if twins.is_empty() {
                self.agents.remove(id);
            }
            return;
        }
        match twins.len() {
            0 => log::info!("agent {id} is there"),
            others => log::error!(
                "{others} other agents have the id {id} too; they share its requests; give each its own"
            ),
        }
        twins.push(known);
        self.count += 1;
    }

    pub fn forget(&mut self, id: &str, instance: &str) {
        if let Some(twins) = self.agents.get_mut(id) {
            let before = twins.len();
            twins.retain(|known| known.announcement.instance != instance);
            self.count -= before - twins.len();
            if twins.is_empty() {
                self.agents.remove(id);
            }
        }
    }

    /// Forgets who is there.
    pub fn clear(&mut self) {
        *self = Table {
            lost: std::mem::take(&mut self.lost),
            ..Table::default()
        };
    }

    /// Its connection has ended.
    pub fn left(&mut self, id: &str, now: Instant) {
        self.gone(id, now, Self::lose);
    }

    /// It has said that it goes.
    pub fn goodbye(&mut self, id: &str, now: Instant) {
        self.gone(id, now, |_, _, _| {});
    }

    fn gone(&mut self, id: &str, now: Instant, each: impl Fn(&mut Table, &Known, Instant)) {
        if let Some(gone) = self.agents.remove(id) {
            log::info!("agent {id} has left");
            self.count -= gone.len();
            gone.iter().for_each(|known| each(self, known, now));
            self.note_left(gone, now);
        }
    }

    // Old agents say nothing when they leave, so nobody can tell of them.
    fn lose(&mut self, known: &Known, now: Instant) {
        if known.announcement.stats_ms.is_none() {
            return;
        }
        let id = &known.announcement.id;
        self.lost.retain(|lost| lost.agent != *id);
        if self.lost.len() >= MAX_LOST {
            self.lost.remove(0);
        }
        self.lost.push(Lost {
            agent: id.clone(),
            state: "silent",
            heard: known.last_seen(),
            vanished: now,
            last_seen_ms: 0,
        });
    }

    pub fn note_left(&mut self, gone: Vec<Known>, now: Instant) {
        self.left_since = Some(now);
        self.last_left = Some(now);
        for topic in gone.into_iter().flat_map(|known| known.announcement.topics) {
            if self.left.len() < MAX_AGENTS && topic.len() <= MAX_LEFT {
                self.left.insert(topic, now);
            }
        }
    }

    // Those who have not said for too long that they are there.
    pub fn end_the_silent(&mut self, now: Instant) {
        if self.next_end.is_none_or(|next| now < next) {
            return;
        }
        let mut silent = Vec::new();
        self.agents.retain(|id, twins| {
            let is_silent = |known: &mut Known| known.ends().is_some_and(|ends| ends <= now);
            for known in twins.extract_if(.., is_silent) {
                log::warn!(
                    "agent {id} has not said for too long that it is there: it counts as gone"
                );
                silent.push(known);
            }
            !twins.is_empty()
        });
        self.count -= silent.len();
        silent.iter().for_each(|known| self.lose(known, now));
        self.note_left(silent, now);
        let ends = self.agents.values().flatten().filter_map(Known::ends);
        self.next_end = ends.min();
    }
}
