//! Who is there: the agents that have announced themselves.
//!
//! Each keeps a retained message on `recado/agents/<id>/presence` while it is connected; the
//! broker removes it when the agent is gone (its will) and the agent when it stops.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::threads::lock;
use crate::topic::{Id, Topic};

/// What presences are published below.
pub(crate) const FILTER: &str = "recado/agents/+/presence";
/// How often a request goes through to a JSON route whose announced agents have all left: an old
/// peer, which announces nothing, may have taken their place.
const BENEFIT_OF_DOUBT: Duration = Duration::from_secs(5);

/// How long an agent that has left may go on answering.
const LEAVING: Duration = Duration::from_secs(4);

/// How many agents are taken note of, and how many bytes each may say of itself.
const MAX_AGENTS: usize = 4096;
const MAX_ANNOUNCEMENT: usize = 16 * 1024;

/// What an agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Announcement {
    /// Its id.
    pub id: String,
    /// The services that it takes requests for.
    pub services: Vec<String>,
    /// Since when it is there, as RFC 3339.
    pub since: String,
    /// The version of its program.
    pub version: String,
    /// The topics that it takes requests from.
    #[serde(default)]
    pub topics: Vec<String>,
    /// Tells agents apart that have the same id.
    #[serde(default)]
    pub instance: String,
    /// This one is about to go; another with its id goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

/// The topic of an agent's presence.
pub(crate) fn topic(id: &Id) -> String {
    format!("recado/agents/{id}/presence")
}

/// Who is there, as far as the broker has said.
#[derive(Default)]
pub(super) struct Presence {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    agents: BTreeMap<String, Announcement>,
    // The broker has delivered all that there was at the time of the subscription.
    complete: bool,
    // It keeps no retained messages, or not for this gateway: who was there before is not known
    // and never will be.
    forgetful: bool,
    // Topics whose agents were there and left: when a request was last let through, or else when
    // the last agent left.
    left: BTreeMap<String, Instant>,
    // When the last agent left.
    left_since: Option<Instant>,
}

/// Whether a request finds anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Somebody who serves it is there, or it can't be known.
    There,
    /// Nobody is.
    Absent,
    /// The broker has not said yet who is there.
    NotKnownYet,
}

impl Presence {
    /// Takes a presence message. Returns whether it was one.
    pub fn update(&self, topic: &str, payload: &[u8], now: Instant) -> bool {
        let id = topic
            .strip_prefix("recado/agents/")
            .and_then(|rest| rest.strip_suffix("/presence"));
        let Some(id) = id.filter(|id| Id::new(*id).is_ok()) else {
            return false;
        };
        let mut table = lock(&self.table);
        let announced = serde_json::from_slice(payload)
            .ok()
            .filter(|_| payload.len() <= MAX_ANNOUNCEMENT)
            .filter(|announcement: &Announcement| announcement.id == id);
        match announced {
            // Another agent with this id will say that it is there.
            Some(announcement) if announcement.leaving => {}
            // Anything that is neither an announcement nor empty is not to be believed.
            None if !payload.is_empty() => {}
            Some(_) if table.agents.len() >= MAX_AGENTS && !table.agents.contains_key(id) => {
                log::warn!("more than {MAX_AGENTS} agents: {id} is not taken note of");
            }
            Some(announcement) => {
                for topic in &announcement.topics {
                    table.left.remove(topic);
                }
                let before = table.agents.insert(id.to_owned(), announcement);
                if before.is_none() {
                    log::info!("agent {id} is there");
                }
            }
            // It left.
            None => {
                if let Some(gone) = table.agents.remove(id) {
                    log::info!("agent {id} has left");
                    table.left_since = Some(now);
                    for topic in gone.topics {
                        if table.left.len() < MAX_AGENTS {
                            table.left.insert(topic, now);
                        }
                    }
                }
            }
        }
        true
    }

    /// There is a connection, to a broker that can be relied upon to say who is there, or not.
    pub fn connected(&self, reliable: bool) {
        lock(&self.table).forgetful = !reliable;
    }

    /// The broker has said all that it knows.
    pub fn complete(&self) {
        lock(&self.table).complete = true;
    }

    /// The connection is lost, and with it all knowledge.
    pub fn forget(&self) {
        *lock(&self.table) = Table::default();
    }

    /// Whether the broker has said all that it knows.
    pub fn is_complete(&self) -> bool {
        lock(&self.table).complete
    }

    /// Everybody who is there.
    pub fn agents(&self) -> Vec<Announcement> {
        lock(&self.table).agents.values().cloned().collect()
    }

    /// One agent, if it is there.
    pub fn agent(&self, id: &str) -> Option<Announcement> {
        lock(&self.table).agents.get(id).cloned()
    }

    /// Whether a request on this topic, in HTTP mode, finds anybody: there every agent announces
    /// itself, so who isn't known isn't there.
    pub fn http_target(&self, topic: &Topic) -> Target {
        let table = lock(&self.table);
        match (table.serves(topic.as_str()), table.complete) {
            (true, _) => Target::There,
            (false, true) if table.forgetful => Target::There,
            (false, true) => Target::Absent,
            (false, false) => Target::NotKnownYet,
        }
    }

    /// The same in JSON mode: there old peers never announce themselves, so it takes evidence that
    /// nobody is there, and even then a request goes through now and then.
    pub fn json_target(&self, topic: &Topic, now: Instant) -> Target {
        let mut table = lock(&self.table);
        if table.serves(topic.as_str()) {
            return Target::There;
        }
        match table.left.get_mut(topic.as_str()) {
            None => Target::There,
            Some(last) if now.saturating_duration_since(*last) < BENEFIT_OF_DOUBT => Target::Absent,
            Some(last) => {
                *last = now;
                Target::There
            }
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

impl Table {
    fn serves(&self, topic: &str) -> bool {
        let mut agents = self.agents.values();
        agents.any(|agent| agent.topics.iter().any(|served| served == topic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement(id: &str, topics: &[&str]) -> Vec<u8> {
        serde_json::to_vec(&Announcement {
            id: id.into(),
            services: vec!["web".into()],
            since: "2026-01-01T00:00:00Z".into(),
            version: "1".into(),
            topics: topics.iter().map(|name| (*name).to_owned()).collect(),
            instance: "1".into(),
            leaving: false,
        })
        .unwrap()
    }

    fn topic(text: &str) -> Topic {
        Topic::new(text).unwrap()
    }

    #[test]
    fn who_is_known_is_there_until_it_leaves() {
        let presence = Presence::default();
        let now = Instant::now();
        let requests = topic("recado/agents/demo/request");
        assert_eq!(presence.http_target(&requests), Target::NotKnownYet);
        presence.complete();
        assert_eq!(presence.http_target(&requests), Target::Absent);
        let at = "recado/agents/demo/presence";
        assert!(presence.update(at, &announcement("demo", &[requests.as_str()]), now));
        assert_eq!(presence.http_target(&requests), Target::There);
        assert_eq!(presence.http_target(&topic("x/y")), Target::Absent);
        assert!(presence.update(at, b"", now));
        assert_eq!(presence.http_target(&requests), Target::Absent);
        presence.forget();
        assert_eq!(presence.http_target(&requests), Target::NotKnownYet);
        presence.connected(false);
        presence.complete();
        assert_eq!(presence.http_target(&requests), Target::There);
    }

    #[test]
    fn garbage_announces_nobody() {
        let presence = Presence::default();
        let now = Instant::now();
        for payload in [&b"x"[..], b"{}", b"null", &announcement("other", &[])] {
            assert!(presence.update("recado/agents/demo/presence", payload, now));
        }
        assert!(!presence.update("recado/agents/a b/presence", &announcement("a b", &[]), now));
        assert!(!presence.update("somewhere/else", b"", now));
        assert!(presence.agents().is_empty());
    }

    #[test]
    fn old_peers_have_the_benefit_of_the_doubt() {
        let presence = Presence::default();
        presence.complete();
        let now = Instant::now();
        let at = "recado/agents/demo/presence";
        let ping = topic("api/ping/request");
        assert_eq!(presence.json_target(&ping, now), Target::There);
        presence.update(at, &announcement("demo", &[ping.as_str()]), now);
        presence.update(at, b"", now);
        assert_eq!(presence.json_target(&ping, now), Target::Absent);
        assert_eq!(presence.json_target(&topic("other"), now), Target::There);
        let later = now + BENEFIT_OF_DOUBT;
        assert_eq!(presence.json_target(&ping, later), Target::There);
        assert_eq!(presence.json_target(&ping, later), Target::Absent);
        presence.answered(&ping, now);
        assert_eq!(
            presence.json_target(&ping, later),
            Target::Absent,
            "a last reply"
        );
        presence.answered(&ping, later);
        assert_eq!(presence.json_target(&ping, later), Target::There);
    }
}
