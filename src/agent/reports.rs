//! What an agent says of its work, every few seconds and when it is asked: on a topic of its own, with
//! QoS 0, kept by nobody. A broker may deny it; then all else goes on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use super::figures::Figures;
use super::job::Job;
use crate::base::clock::Moment;
use crate::base::error::{Error, Result};
use crate::base::pool::Pool;
use crate::base::threads::lock;
use crate::base::topic::{Id, Topic, TopicFilter};
use crate::link::{Publisher, Subscription};
use crate::monitor::process::taken;
use crate::stream::Streams;
use crate::wire::stats::{self, Stats};
use crate::wire::{Message, Qos};

/// How often it may be asked: what somebody asks for must not cost more than asking.
const ASKED: Duration = Duration::from_millis(500);

/// Says what an agent does.
pub(super) struct Reports {
    topic: Topic,
    id: String,
    instance: String,
    // None: only when asked.
    every: Option<Duration>,
    figures: Arc<Figures>,
    pools: Arc<[Pool<Box<Job>>]>,
    streams: Arc<Streams>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_connected: bool,
    is_denied: bool,
    said: Option<Moment>,
    asked: Option<Moment>,
}

impl Reports {
    /// `who`: the id of the agent, and its instance.
    ///
    /// Errors: its topic is too long ([`Error::Usage`]).
    pub fn new(
        who: (&Id, &Id),
        every: Option<Duration>,
        figures: Arc<Figures>,
        pools: Arc<[Pool<Box<Job>>]>,
        streams: Arc<Streams>,
    ) -> Result<Reports> {
        Ok(Reports {
            topic: topic(who.0)?,
            id: who.0.to_string(),
            instance: who.1.to_string(),
            every,
            figures,
            pools,
            streams,
            state: Mutex::default(),
        })
    }

    /// There is a connection: soon it will say something.
    pub fn connected(&self) {
        self.figures.connections.add();
        *lock(&self.state) = State {
            is_connected: true,
            ..State::default()
        };
    }

    /// There is none any more.
    pub fn disconnected(&self) {
        lock(&self.state).is_connected = false;
    }

    /// Says what is due. To be called every now and then.
    pub fn tick(&self, publisher: &Publisher, now: Moment) {
        let Some(every) = self.every else {
            return;
        };
        {
            let mut state = lock(&self.state);
            let is_due = state.said.is_none_or(|said| now.since(said) >= every);
            if !is_due || !state.is_connected || state.is_denied {
                return;
            }
            state.said = Some(now);
        }
        self.say(publisher, now);
    }

    /// Takes a message on its topic: an empty one asks. Returns whether it was one.
    pub fn take(&self, publisher: &Publisher, message: &Message, now: Moment) -> bool {
        if message.topic != self.topic.as_str() {
            return false;
        }
        if message.payload.is_empty() {
            let mut state = lock(&self.state);
            let is_early = state.asked.is_some_and(|at| now.since(at) < ASKED);
            if !is_early {
                state.asked = Some(now);
                drop(state);
                self.say(publisher, now);
            }
        }
        true
    }

    /// Whether the broker has refused what is said here: then it is said no more on this connection.
    pub fn is_refused(&self, topic: &str, reason: &str) -> bool {
        let is_own = topic == self.topic.as_str();
        if is_own {
            log::warn!(
                "the broker refused a message on {topic}: {reason}; gateways show nothing of this agent's work (see its access list, or set stats_ms = 0)"
            );
            lock(&self.state).is_denied = true;
        }
        is_own
    }

    fn say(&self, publisher: &Publisher, now: Moment) {
        let message = Message {
            topic: self.topic.to_string(),
            payload: json!(self.stats(now)).to_string().into(),
            ..Message::default()
        };
        // The next one says as much.
        if let Err(why) = publisher.publish(message, None) {
            log::debug!("no statistics on {}: {why}", self.topic);
        }
    }

    fn stats(&self, now: Moment) -> Stats {
        let (figures, taken) = (&self.figures, taken());
        Stats {
            id: self.id.clone(),
            instance: self.instance.clone(),
            requests: figures.requests.get(),
            errors: figures.errors.get(),
            errors_last_minute: figures.errors_last_minute(now),
            refused: figures.refused.get(),
            dropped: figures.dropped.get(),
            in_work: figures.in_work.load(Ordering::Relaxed),
            queued: self.pools.iter().map(|pool| pool.queued() as u64).sum(),
            open_streams: self.streams.count() as u64,
            reconnects: figures.connections.get().saturating_sub(1),
            resident_bytes: taken.resident_bytes,
            threads: taken.threads,
            upstreams: figures.upstreams(),
        }
    }
}

/// What to subscribe to, so that it can be asked.
///
/// Errors: the topic is too long ([`Error::Usage`]).
pub(super) fn subscription(id: &Id) -> Result<Subscription> {
    Ok(Subscription {
        filter: TopicFilter::from(&topic(id)?),
        qos: Qos::AtMostOnce,
        group: None,
        retained: false,
        is_needed: false,
    })
}

fn topic(id: &Id) -> Result<Topic> {
    stats::topic(id).map_err(|error| Error::Usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::super::settings::AgentSettings;
    use super::*;
    use crate::link::Memory;
    use crate::stream::StreamLimits;

    const TOPIC: &str = "recado/agents/shed/stats";

    fn reports(every: Option<Duration>) -> Reports {
        let settings = AgentSettings::example();
        let topic = Topic::new("recado/agents/shed/streams/1").unwrap();
        let streams = Streams::new(topic, StreamLimits::default(), 1000);
        let figures = Arc::new(Figures::new(&settings.services));
        let instance = Id::new("i").unwrap();
        let who = (&settings.id, &instance);
        Reports::new(who, every, figures, Arc::new([]), streams).unwrap()
    }

    fn at(millis: u64) -> Moment {
        Moment::at(Duration::from_millis(1_000_000 + millis))
    }

    #[test]
    fn it_says_what_it_does_as_often_as_it_should() {
        let (sent, publisher, _memory) = Memory::start();
        let reports = reports(Some(Duration::from_secs(10)));
        let tick = |millis| {
            reports.tick(&publisher, at(millis));
            sent.try_iter().collect::<Vec<Message>>()
        };
        assert!(tick(0).is_empty(), "there is no connection");
        reports.connected();
        let said = tick(1);
        assert_eq!(said.len(), 1);
        assert_eq!((said[0].topic.as_str(), said[0].retain), (TOPIC, false));
        let read = Stats::read(&said[0].payload).unwrap();
        assert_eq!((read.id.as_str(), read.instance.as_str()), ("shed", "i"));
        assert_eq!(read.upstreams.len(), 2);
        assert!(tick(10_000).is_empty());
        assert_eq!(tick(10_001).len(), 1);
        assert!(!reports.is_refused("elsewhere", "x"));
        assert!(reports.is_refused(TOPIC, "NotAuthorized"));
        assert!(tick(30_000).is_empty());
        reports.disconnected();
        reports.connected();
        assert_eq!(tick(30_001).len(), 1);
    }

    #[test]
    fn who_asks_is_answered_but_not_flooded() {
        let (sent, publisher, _memory) = Memory::start();
        let reports = reports(None);
        reports.connected();
        reports.tick(&publisher, at(0));
        let message = |payload: &'static [u8]| Message {
            topic: TOPIC.into(),
            payload: payload.into(),
            ..Message::default()
        };
        assert!(reports.take(&publisher, &message(b"{}"), at(0)), "its own");
        assert!(sent.is_empty());
        for millis in [0, 1, 499, 500] {
            assert!(reports.take(&publisher, &message(b""), at(millis)));
        }
        assert_eq!(sent.try_iter().count(), 2);
        let elsewhere = Message::default();
        assert!(!reports.take(&publisher, &elsewhere, at(0)));
    }
}
