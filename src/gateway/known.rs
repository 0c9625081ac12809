//! What is kept of an agent: as little as can be, since there may be hundreds of thousands of them. What
//! many say alike is kept once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::wire::presence::Announcement;
use crate::wire::stats::Work;

/// How much memory everything together may take that agents say differently from each other, in bytes.
const MAX_TERMS: usize = 64 * 1024 * 1024;
/// What a part of it takes beyond its text, in bytes.
const OVERHEAD: usize = 48;

/// What is kept of an agent.
pub(super) struct Known {
    pub instance: Box<str>,
    since: Since,
    terms: Arc<Terms>,
    // When it said last that it is there.
    heard: Instant,
    /// What it says of its work, and when it did.
    pub work: Option<Box<Work>>,
    pub seen: Instant,
}

// Since when an agent is there.
#[derive(PartialEq, Eq)]
enum Since {
    // In whole seconds since 1970.
    Second(u64),
    // Whatever it calls that.
    Text(Box<str>),
}

impl Since {
    fn of(text: String) -> Since {
        let parsed = humantime::parse_rfc3339(&text).ok();
        let second = parsed.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let since = second.map(|since| Since::Second(since.as_secs()));
        since
            .filter(|since| since.text() == text)
            .unwrap_or(Since::Text(text.into()))
    }

    fn text(&self) -> String {
        match self {
            Since::Text(text) => text.to_string(),
            Since::Second(second) => {
                // What can't be a time was not read as one.
                let time = UNIX_EPOCH.checked_add(Duration::from_secs(*second));
                let time = time.unwrap_or(SystemTime::UNIX_EPOCH);
                humantime::format_rfc3339_seconds(time).to_string()
            }
        }
    }
}

/// Whose the requests on a topic are, if they are one agent's alone.
pub(super) fn owner(topic: &str) -> Option<&str> {
    let rest = topic.strip_prefix("recado/agents/")?;
    rest.strip_suffix("/request")
}

/// A topic that an agent names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Named {
    /// That of the requests to this very agent.
    Own,
    /// Another one.
    Other(Box<str>),
}

impl Named {
    fn by(id: &str, topic: String) -> Named {
        match owner(&topic) == Some(id) {
            true => Named::Own,
            false => Named::Other(topic.into()),
        }
    }

    fn of(&self, id: &str) -> String {
        match self {
            Named::Own => format!("recado/agents/{id}/request"),
            Named::Other(topic) => topic.to_string(),
        }
    }

    fn is(&self, id: &str, topic: &str) -> bool {
        match self {
            Named::Own => owner(topic) == Some(id),
            Named::Other(other) => **other == *topic,
        }
    }
}

/// What agents have in common that do the same.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Terms {
    services: Vec<String>,
    version: String,
    pub topics: Vec<Named>,
    denied: Vec<Named>,
    refresh_s: Option<u64>,
    pub stats_ms: Option<u64>,
    pub streams: bool,
    pub remembers: bool,
}

impl Terms {
    fn size(&self) -> usize {
        let named = |all: &[Named]| -> usize {
            let size = |it: &Named| match it {
                Named::Own => OVERHEAD,
                Named::Other(topic) => OVERHEAD + topic.len(),
            };
            all.iter().map(size).sum()
        };
        let services = self.services.iter().map(|it| OVERHEAD + it.len());
        let texts = services.sum::<usize>() + self.version.len();
        4 * OVERHEAD + texts + named(&self.topics) + named(&self.denied)
    }

    /// Whether the broker denies its agents anything.
    pub fn are_denied_something(&self) -> bool {
        !self.denied.is_empty()
    }
}

impl Known {
    /// What an agent announces now. `None`: it says too much that nobody else does.
    pub fn new(announced: Announcement, common: &mut Common, now: Instant) -> Option<Known> {
        let id = announced.id;
        let named = |topics: Vec<String>| {
            let named = topics.into_iter().map(|topic| Named::by(&id, topic));
            named.collect()
        };
        let terms = Terms {
            services: announced.services,
            version: announced.version,
            topics: named(announced.topics),
            denied: named(announced.denied),
            refresh_s: announced.refresh_s,
            stats_ms: announced.stats_ms,
            streams: announced.streams,
            remembers: announced.remembers,
        };
        Some(Known {
            terms: common.share(terms)?,
            instance: announced.instance.into(),
            since: Since::of(announced.since),
            heard: now,
            work: None,
            seen: now,
        })
    }

    /// Takes note of an announcement that says the same as this one. Returns whether it did.
    pub fn is_repeated(&mut self, by: &Known, now: Instant) -> bool {
        let is_same = Arc::ptr_eq(&self.terms, &by.terms)
            && (&self.instance, &self.since) == (&by.instance, &by.since);
        if is_same {
            self.heard = now;
        }
        is_same
    }

    /// What it has announced.
    pub fn announcement(&self, id: &str) -> Announcement {
        let terms = &self.terms;
        let named = |topics: &[Named]| topics.iter().map(|it| it.of(id)).collect();
        Announcement {
            id: id.to_owned(),
            services: terms.services.clone(),
            since: self.since.text(),
            version: terms.version.clone(),
            topics: named(&terms.topics),
            instance: self.instance.to_string(),
            refresh_s: terms.refresh_s,
            stats_ms: terms.stats_ms,
            denied: named(&terms.denied),
            streams: terms.streams,
            remembers: terms.remembers,
            leaving: false,
        }
    }

    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    // When it counts as gone unless it says again that it is there: no will is left of an agent and
    // a broker that die together, and what the broker keeps of it would never be taken back.
    pub fn ends(&self) -> Option<Instant> {
        let holds = Announcement::holds(self.terms.refresh_s);
        holds.map(|holds| self.heard + holds)
    }

    /// Whether it should have said something of its work, if it said anything so long ago. Who never has
    /// may not be allowed to, or not be heard here.
    pub fn is_overdue(&self, since: Duration) -> bool {
        self.work.is_some() && Announcement::is_overdue(self.terms.stats_ms, since)
    }

    /// When it said something for the last time.
    pub fn last_seen(&self) -> Instant {
        self.heard.max(self.seen)
    }

    pub fn serves(&self, id: &str, topic: &str) -> bool {
        self.terms.topics.iter().any(|it| it.is(id, topic))
    }

    /// Which of these the broker denies it.
    pub fn lacks<'a>(&self, id: &str, needed: [&'a str; 2]) -> Option<&'a str> {
        let denied = &self.terms.denied;
        let mut needed = needed.into_iter();
        needed.find(|topic| denied.iter().any(|it| it.is(id, topic)))
    }

    pub fn offers(&self, service: &str) -> bool {
        self.terms.services.iter().any(|it| it == service)
    }
}

/// What agents say alike, each once.
#[derive(Default)]
pub(super) struct Common {
    all: HashSet<Arc<Terms>>,
    bytes: usize,
    // How many there may be before it is looked what nobody says any more.
    next_look: usize,
}

impl Common {
    // None: there is no memory for more.
    fn share(&mut self, terms: Terms) -> Option<Arc<Terms>> {
        if let Some(known) = self.all.get(&terms) {
            return Some(Arc::clone(known));
        }
        if self.all.len() >= self.next_look || self.bytes + terms.size() > MAX_TERMS {
            self.all.retain(|terms| Arc::strong_count(terms) > 1);
            self.bytes = self.all.iter().map(|terms| terms.size()).sum();
            self.next_look = (2 * self.all.len()).max(64);
        }
        let bytes = self.bytes + terms.size();
        if bytes > MAX_TERMS {
            return None;
        }
        self.bytes = bytes;
        let terms = Arc::new(terms);
        self.all.insert(Arc::clone(&terms));
        Some(terms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(id: &str, since: &str, topics: &[&str]) -> Announcement {
        serde_json::from_value(serde_json::json!({
            "id": id, "services": ["web"], "since": since, "version": "1", "instance": id,
            "topics": topics, "denied": [topics[0]], "refresh_s": 20,
        }))
        .unwrap()
    }

    #[test]
    fn what_is_kept_is_what_was_said() {
        let mut common = Common::default();
        for (id, since) in [("a", "2026-01-01T00:00:00Z"), ("b.c", "lately"), ("d", "")] {
            let own = format!("recado/agents/{id}/request");
            for topics in [[own.as_str(), "recado/services/web/request"], ["x", "y"]] {
                let said = announced(id, since, &topics);
                let known = Known::new(said.clone(), &mut common, Instant::now()).unwrap();
                assert_eq!(known.announcement(id), said);
                assert!(topics.iter().all(|topic| known.serves(id, topic)));
                assert!(!known.serves("other", &own));
                assert_eq!(known.lacks(id, [topics[1], topics[0]]), Some(topics[0]));
            }
        }
    }

    #[test]
    fn what_many_say_is_kept_once_and_what_nobody_says_is_forgotten() {
        let mut common = Common::default();
        let mut all = Vec::new();
        for number in 0..1000 {
            let id = format!("agent-{number}");
            let own = format!("recado/agents/{id}/request");
            let said = announced(&id, "2026-01-01T00:00:00Z", &[&own]);
            all.push(Known::new(said, &mut common, Instant::now()).unwrap());
        }
        assert_eq!(common.all.len(), 1);
        for number in 0..1000 {
            let said = announced("a", "", &[&format!("topic/{number}")]);
            Known::new(said, &mut common, Instant::now()).unwrap();
        }
        assert!(common.all.len() < 200, "{}", common.all.len());
    }

    #[test]
    fn what_is_said_differently_has_a_bound() {
        let mut common = Common::default();
        let mut all = Vec::new();
        let long = "x".repeat(15_000);
        let mut keep = |number: u32| {
            let said = announced("a", "", &[&format!("{number}/{long}")]);
            let known = Known::new(said, &mut common, Instant::now());
            let is_kept = known.is_some();
            all.extend(known);
            is_kept
        };
        let kept = (0..10_000).find(|number| !keep(*number));
        assert!((2000..5000).contains(&kept.unwrap()), "{kept:?}");
        all.clear();
        let said = announced("a", "", &["something else"]);
        assert!(Known::new(said, &mut common, Instant::now()).is_some());
    }
}
