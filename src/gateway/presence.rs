//! Who is there: the agents that have announced themselves.
//!
//! Each keeps a retained message on `recado/agents/<id>/presence` while it is connected; the
//! broker removes it when the agent is gone (its will) and the agent when it stops.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::seen::{Seen, Shown};
use super::table::{Table, Target};
use crate::base::threads::lock;
use crate::base::topic::{Id, Topic};
use crate::wire::Message;
use crate::wire::presence::{Announcement, GOODBYE, agent_of};
use crate::wire::stats::Stats;
use crate::wire::stream::agent_topic;

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
#[derive(Default)]
pub(super) struct Presence {
    table: Mutex<Table>,
    changed: Condvar,
}

impl Presence {
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

    /// Everybody who is there.
    pub fn agents(&self, now: Instant) -> Shown {
        Shown::of(&mut self.search(now, true, |_| false), now, usize::MAX)
    }

    /// Everybody who is known to be there now, without waiting for who might be.
    /// No more of them than `most`.
    pub fn agents_known(&self, now: Instant, most: usize) -> Shown {
        let mut table = lock(&self.table);
        table.end_the_silent(now);
        Shown::of(&mut table, now, most)
    }

    /// One agent, if it is there.
    pub fn agent(&self, id: &str, now: Instant) -> Option<Seen> {
        let table = self.search(now, true, |table| table.agents.contains_key(id));
        let first = table.agents.get(id)?.first()?;
        Some(Seen::of(first, now))
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
    pub fn json_target(&self, topic: &Topic, inbox: &Topic, now: Instant) -> Target {
        let mut table = lock(&self.table);
        table.end_the_silent(now);
        if let Some(found) = table.serves(topic, inbox) {
            return found;
        }
        match table.left.get_mut(topic.as_str()) {
            None => Target::There { streams: false },
            Some(last) if now.saturating_duration_since(*last) < BENEFIT_OF_DOUBT => Target::Absent,
            Some(last) => {
                *last = now;
                Target::There { streams: false }
            }
        }
    }

    /// Whether somebody who has announced itself serves this topic.
    pub fn is_served(&self, topic: &Topic) -> bool {
        let table = lock(&self.table);
        let mut known = table.agents.values().flatten();
        known.any(|known| known.serves(topic.as_str()))
    }

    /// The instance of the agent that serves this topic, if only one does.
    pub fn sole_server(&self, topic: &Topic) -> Option<String> {
        let table = lock(&self.table);
        let known = table.agents.values().flatten();
        let mut serving = known.filter(|known| known.serves(topic.as_str()));
        let first = serving.next()?;
        match serving.next() {
            None => Some(first.announcement.instance.clone()),
            Some(_) => None,
        }
    }

    /// Where those who serve this topic take what belongs to streams.
    pub fn stream_topics(&self, topic: &Topic) -> Vec<String> {
        let table = lock(&self.table);
        let known = table.agents.values().flatten();
        let serving =
            known.filter(|known| known.announcement.streams && known.serves(topic.as_str()));
        let topics = serving.filter_map(|known| {
            let id = Id::new(&*known.announcement.id).ok()?;
            agent_topic(&id, &known.announcement.instance).ok()
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
        let mut twins = table.agents.get(id).into_iter().flatten();
        twins.any(|known| known.announcement.instance == instance)
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
mod tests {
    use super::super::table::MAX_TWINS;
    use super::*;

    fn announcement(id: &str, topics: &[&str]) -> Vec<u8> {
        serde_json::to_vec(&Announcement {
            id: id.into(),
            services: vec!["web".into()],
            since: "2026-01-01T00:00:00Z".into(),
            version: "1".into(),
            topics: topics.iter().map(|name| (*name).to_owned()).collect(),
            instance: "1".into(),
            refresh_s: None,
            stats_ms: None,
            denied: Vec::new(),
            streams: false,
            leaving: false,
        })
        .unwrap()
    }

    fn long_ago() -> Instant {
        Instant::now().checked_sub(STRAGGLERS).unwrap()
    }

    fn inbox() -> Topic {
        topic("recado/gateways/g/response")
    }

    fn topic(text: &str) -> Topic {
        Topic::new(text).unwrap()
    }

    #[test]
    fn who_is_known_is_there_until_it_leaves() {
        let presence = Presence::default();
        let now = Instant::now();
        let requests = topic("recado/agents/demo/request");
        assert_eq!(
            presence.http_target(&requests, &inbox(), now, true),
            Target::NotKnownYet
        );
        presence.complete(long_ago());
        assert_eq!(
            presence.http_target(&requests, &inbox(), now, true),
            Target::Absent
        );
        let at = "recado/agents/demo/presence";
        assert!(presence.update(at, &announcement("demo", &[requests.as_str()]), now));
        assert_eq!(
            presence.http_target(&requests, &inbox(), now, true),
            Target::There { streams: false }
        );
        assert_eq!(
            presence.http_target(&topic("x/y"), &inbox(), now, true),
            Target::Absent
        );
        assert!(presence.update(at, b"", now));
        assert_eq!(
            presence.http_target(&requests, &inbox(), now, true),
            Target::Absent
        );
        presence.forget();
        assert_eq!(
            presence.http_target(&requests, &inbox(), now, true),
            Target::NotKnownYet
        );
        presence.connected(false);
        presence.complete(long_ago());
        assert_eq!(
            presence.http_target(&requests, &inbox(), now, true),
            Target::There { streams: false }
        );
    }

    #[test]
    fn who_is_announced_last_is_waited_for_at_the_beginning() {
        let presence = Presence::default();
        let now = Instant::now();
        let requests = topic("recado/agents/demo/request");
        // It could be waited for much longer than any test takes.
        presence.complete(now + Duration::from_secs(3600));
        std::thread::scope(|scope| {
            let asks = || presence.http_target(&requests, &inbox(), now, true);
            let asked = [scope.spawn(asks), scope.spawn(asks)];
            for (id, topics) in [("other", "x"), ("demo", requests.as_str())] {
                let at = format!("recado/agents/{id}/presence");
                presence.update(&at, &announcement(id, &[topics]), now);
            }
            for target in asked {
                assert_eq!(target.join().unwrap(), Target::There { streams: false });
            }
            let unknown = scope.spawn(|| presence.agent("unknown", now));
            presence.forget();
            assert!(unknown.join().unwrap().is_none());
        });
        presence.complete(now - STRAGGLERS + Duration::from_millis(5));
        assert_eq!(
            presence.http_target(&requests, &inbox(), now, true),
            Target::Absent
        );
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
        assert!(presence.agents(now).agents.is_empty());
    }

    #[test]
    fn old_peers_have_the_benefit_of_the_doubt() {
        let presence = Presence::default();
        presence.complete(long_ago());
        let now = Instant::now();
        let at = "recado/agents/demo/presence";
        let ping = topic("api/ping/request");
        assert_eq!(
            presence.json_target(&ping, &inbox(), now),
            Target::There { streams: false }
        );
        presence.update(at, &announcement("demo", &[ping.as_str()]), now);
        presence.update(at, b"", now);
        assert_eq!(presence.json_target(&ping, &inbox(), now), Target::Absent);
        assert_eq!(
            presence.json_target(&topic("other"), &inbox(), now),
            Target::There { streams: false }
        );
        let later = now + BENEFIT_OF_DOUBT;
        assert_eq!(
            presence.json_target(&ping, &inbox(), later),
            Target::There { streams: false }
        );
        assert_eq!(presence.json_target(&ping, &inbox(), later), Target::Absent);
        presence.answered(&ping, now);
        assert_eq!(
            presence.json_target(&ping, &inbox(), later),
            Target::Absent,
            "a last reply"
        );
        presence.answered(&ping, later);
        assert_eq!(
            presence.json_target(&ping, &inbox(), later),
            Target::There { streams: false }
        );
    }

    // An announcement with further members.
    fn saying(further: serde_json::Value) -> Vec<u8> {
        let announcement = announcement("demo", &["recado/agents/demo/request"]);
        let mut value: serde_json::Value = serde_json::from_slice(&announcement).unwrap();
        let further = further.as_object().unwrap().clone();
        value.as_object_mut().unwrap().extend(further);
        serde_json::to_vec(&value).unwrap()
    }

    #[test]
    fn who_is_silent_for_too_long_is_gone() {
        let presence = Presence::default();
        presence.complete(long_ago());
        let begun = Instant::now();
        let requests = topic("recado/agents/demo/request");
        let at = "recado/agents/demo/presence";
        let target = |seconds| {
            let now = begun + Duration::from_secs(seconds);
            presence.http_target(&requests, &inbox(), now, true)
        };
        let announce = |seconds| {
            let now = begun + Duration::from_secs(seconds);
            presence.update(at, &saying(serde_json::json!({ "refresh_s": 20 })), now);
        };
        announce(0);
        assert_eq!(target(49), Target::There { streams: false });
        announce(20);
        assert_eq!(target(69), Target::There { streams: false });
        assert_eq!(target(70), Target::Absent);
        let much_later = begun + Duration::from_secs(70);
        assert!(presence.agents(much_later).agents.is_empty());
        let now = begun + Duration::from_secs(71);
        assert_eq!(
            presence.json_target(&requests, &inbox(), now),
            Target::Absent
        );
        announce(80);
        assert_eq!(target(81), Target::There { streams: false });
        // Old agents say it once.
        presence.update(at, &saying(serde_json::json!({ "instance": "old" })), begun);
        assert_eq!(target(1_000_000), Target::There { streams: false });
    }

    #[test]
    fn two_with_one_id_are_two() {
        let presence = Presence::default();
        let now = Instant::now();
        let at = "recado/agents/demo/presence";
        for instance in ["1", "2", "1"] {
            presence.update(
                at,
                &saying(serde_json::json!({ "instance": instance })),
                now,
            );
        }
        let instances = || {
            let agents = presence.agents(now).agents.into_iter();
            agents
                .map(|it| it.announcement.instance)
                .collect::<Vec<_>>()
        };
        assert_eq!(instances(), ["1", "2"]);
        let goodbye = serde_json::json!({ "instance": "1", "leaving": true });
        presence.update(at, &saying(goodbye), now);
        assert_eq!(instances(), ["2"]);
        for number in 0..100 {
            let instance = number.to_string();
            presence.update(
                at,
                &saying(serde_json::json!({ "instance": instance })),
                now,
            );
        }
        assert_eq!(instances().len(), MAX_TWINS);
        presence.update(at, b"", now);
        assert!(instances().is_empty());
        assert_eq!(lock(&presence.table).count, 0);
    }

    #[test]
    fn what_the_broker_denies_an_agent_is_said() {
        let presence = Presence::default();
        let now = Instant::now();
        let requests = topic("recado/agents/demo/request");
        let at = "recado/agents/demo/presence";
        for (denied, verb) in [(requests.as_str(), "read"), (inbox().as_str(), "write")] {
            presence.update(at, &saying(serde_json::json!({ "denied": [denied] })), now);
            let expected = format!("the broker does not let agent demo {verb} {denied}");
            let target = presence.http_target(&requests, &inbox(), now, true);
            assert_eq!(target, Target::Denied(expected.clone()));
            assert_eq!(presence.denied(&requests, &inbox()), Some(expected));
        }
        presence.update(at, &saying(serde_json::json!({ "denied": ["other"] })), now);
        assert_eq!(
            presence.http_target(&requests, &inbox(), now, true),
            Target::There { streams: false }
        );
        assert_eq!(presence.denied(&requests, &inbox()), None);
    }
}
