//! What an agent says of its work, every few seconds and when it is asked: on a topic of its own, with
//! QoS 0, kept by nobody. A broker may deny it; then all else goes on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::figures::Figures;
use super::job::Job;
use crate::base::clock::Moment;
use crate::base::error::{Error, Result};
use crate::base::pool::Pool;
use crate::base::process::taken;
use crate::base::threads::lock;
use crate::base::topic::{Id, Topic, TopicFilter};
use crate::link::{Publisher, Subscription};
use crate::stream::Streams;
use crate::wire::stats::{self, Stats, Work};
use crate::wire::{Message, Qos};

/// How often it may be asked: what somebody asks for must not cost more than asking.
const ASKED: Duration = Duration::from_millis(500);
/// Some brokers end the connection of who publishes what it may not. One that ends so soon after something
/// was said is suspicious; after so many in a row nothing is said for a while.
const SOON: Duration = Duration::from_secs(2);
const SUSPICIOUS: u32 = 3;
const QUIET: Duration = Duration::from_secs(3600);

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
    // When something was said on this connection: first, and last.
    first: Option<Moment>,
    said: Option<Moment>,
    // When somebody was answered last, and whether somebody waits.
    answered: Option<Moment>,
    is_asked: bool,
    ended_soon: u32,
    quiet_until: Option<Moment>,
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
        let mut state = lock(&self.state);
        *state = State {
            is_connected: true,
            ended_soon: state.ended_soon,
            quiet_until: state.quiet_until,
            ..State::default()
        };
    }

    /// There is none any more.
    pub fn disconnected(&self, now: Moment) {
        let mut state = lock(&self.state);
        state.is_connected = false;
        match state.first.take() {
            Some(first) if now.since(first) < SOON => state.ended_soon += 1,
            Some(_) => state.ended_soon = 0,
            None => {}
        }
        if state.ended_soon >= SUSPICIOUS {
            state.ended_soon = 0;
            state.quiet_until = Some(now + QUIET);
            log::warn!(
                "the broker ends the connection whenever something is said on {}: nothing is, for an hour (see its access list, or set stats_ms = 0)",
                self.topic
            );
        }
    }

    /// Says what is due. To be called every now and then.
    pub fn tick(&self, publisher: &Publisher, now: Moment) {
        {
            let mut state = lock(&self.state);
            let is_quiet = state.quiet_until.is_some_and(|until| now < until);
            if !state.is_connected || state.is_denied || is_quiet {
                return;
            }
            let since = |at: Option<Moment>, time| at.is_none_or(|at| now.since(at) >= time);
            let answers = state.is_asked && since(state.answered, ASKED);
            let is_due = self.every.is_some_and(|every| since(state.said, every));
            if !answers && !is_due {
                return;
            }
            if answers {
                state.is_asked = false;
                state.answered = Some(now);
            }
            state.said = Some(now);
            state.first.get_or_insert(now);
        }
        self.say(publisher, now);
    }

    /// Takes a message on its topic: an empty one asks, and is answered with the next [`Reports::tick`].
    /// Returns whether it was one. Runs on the mqtt thread.
    pub fn take(&self, message: &Message) -> bool {
        let is_own = message.topic == self.topic.as_str();
        if is_own && message.payload.is_empty() {
            lock(&self.state).is_asked = true;
        }
        is_own
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
            payload: self.stats(now).write().into(),
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
            work: Work {
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
            },
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
        assert_eq!(read.work.upstreams.len(), 2);
        assert!(tick(10_000).is_empty());
        assert_eq!(tick(10_001).len(), 1);
        assert!(!reports.is_refused("elsewhere", "x"));
        assert!(reports.is_refused(TOPIC, "NotAuthorized"));
        assert!(tick(30_000).is_empty());
        reports.disconnected(at(30_000));
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
        assert!(reports.take(&message(b"{}")), "its own");
        for (millis, answers) in [(0, 1), (1, 0), (499, 0), (500, 1)] {
            assert!(reports.take(&message(b"")));
            reports.tick(&publisher, at(millis));
            assert_eq!(sent.try_iter().count(), answers, "{millis}");
        }
        reports.tick(&publisher, at(2000));
        assert!(sent.is_empty(), "nobody asks");
        let elsewhere = Message::default();
        assert!(!reports.take(&elsewhere));
    }

    #[test]
    fn whom_it_costs_the_connection_to_say_something_is_quiet() {
        let (sent, publisher, _memory) = Memory::start();
        let reports = reports(Some(Duration::from_secs(10)));
        let connection = |begins: u64, lives: u64| {
            reports.connected();
            reports.tick(&publisher, at(begins));
            reports.disconnected(at(begins + lives));
            sent.try_iter().count()
        };
        assert_eq!(connection(0, 100), 1);
        assert_eq!(connection(10_000, 100), 1);
        assert_eq!(connection(20_000, 5_000), 1, "this one lived");
        for begins in [30_000, 40_000, 50_000] {
            assert_eq!(connection(begins, 100), 1);
        }
        assert_eq!(connection(60_000, 100), 0);
        assert_eq!(connection(3_700_000, 100), 1, "an hour later");
    }
}
