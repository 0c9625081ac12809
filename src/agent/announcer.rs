//! The agent's presence: a retained message that says that it is there.
//!
//! It is said again and again, and expires if it isn't: where agent and broker die together, no will
//! is left to take it back. Agents that share an id by mistake share one presence too. Each then hears
//! of the other, keeps the announcement up when the other vanishes, and leaves it alone when it stops
//! itself.
//!
//! What the broker denies this agent is part of it: nobody else could tell a gateway why no answer
//! comes.

use std::collections::{BTreeSet, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::json;

use super::settings::AgentSettings;
use crate::base::clock::Moment;
use crate::base::threads::lock;
use crate::base::topic::Id;
use crate::link::{PublishError, Publisher};
use crate::wire::presence::{self, Announcement};
use crate::wire::{Message, Properties, Qos};

/// How many agents with the same id are remembered.
const MAX_TWINS: usize = 64;
/// How many topics are named that the broker denies.
const MAX_DENIED: usize = 16;
/// How long it may take to know whether streams can come in.
const STREAMS: Duration = Duration::from_millis(500);
/// How long a message to this agent's own request topic may take.
const PROBE: Duration = Duration::from_secs(2);
/// The user property of such a message: whose it is.
const PROBE_OF: &str = "probe";

pub(super) struct Announcer {
    topic: String,
    // Where requests to this very agent come in.
    own_requests: Option<String>,
    announcement: Announcement,
    refresh: Duration,
    state: Mutex<State>,
    leaving: AtomicBool,
    // The last announcement could not be sent.
    owed: AtomicBool,
    // It came back: the broker has it.
    announced: AtomicBool,
    streams: AtomicBool,
}

#[derive(Default)]
struct State {
    // The other agents with this id that have been heard of.
    twins: HashSet<String>,
    denied: BTreeSet<String>,
    // Since when there is a connection on which nothing was said yet.
    connected: Option<Moment>,
    // When it was said last, on this connection.
    said: Option<Moment>,
    // When a message to itself was sent that has not come back.
    probed: Option<Moment>,
}

impl Announcer {
    pub fn new(settings: &AgentSettings, instance: &Id) -> Announcer {
        let services = settings.services.iter();
        let names = services.clone().filter_map(|service| service.name.as_ref());
        let topics: Vec<String> = services
            .clone()
            .map(|service| service.request_topic.to_string())
            .collect();
        let mut direct = services.filter(|service| service.name.is_none());
        Announcer {
            topic: presence::topic(&settings.id),
            own_requests: direct.next().map(|it| it.request_topic.to_string()),
            announcement: Announcement {
                id: settings.id.to_string(),
                services: names.map(ToString::to_string).collect(),
                since: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                topics,
                instance: instance.to_string(),
                refresh_s: Some(settings.presence_refresh.as_secs()),
                stats_ms: Some(
                    u64::try_from(settings.stats.unwrap_or_default().as_millis()).unwrap_or(0),
                ),
                denied: Vec::new(),
                streams: false,
                remembers: settings.brokers.are_used_at_once(),
                leaving: false,
            },
            refresh: settings.presence_refresh,
            state: Mutex::default(),
            leaving: AtomicBool::new(false),
            owed: AtomicBool::new(false),
            announced: AtomicBool::new(false),
            streams: AtomicBool::new(false),
        }
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// What the broker publishes when this agent vanishes.
    pub fn will(&self) -> Message {
        self.message(Bytes::new())
    }

    /// Whether the broker is seen to have the announcement.
    pub fn is_announced(&self) -> bool {
        self.announced.load(Ordering::SeqCst)
    }

    /// There is a connection: says that this agent is there, and asks itself whether the broker lets
    /// it read what it is asked.
    pub fn connected(&self, publisher: &Publisher, now: Moment) {
        self.announce(publisher, now);
        if let Some(topic) = &self.own_requests
            && publisher.offer().max_qos > Qos::AtMostOnce
        {
            let whose = (PROBE_OF.to_owned(), self.announcement.instance.clone());
            let sent = publisher.publish(
                Message {
                    topic: topic.clone(),
                    qos: Qos::AtLeastOnce,
                    properties: Properties {
                        correlation_data: Some(self.probe_name()),
                        user: vec![whose],
                        ..Properties::default()
                    },
                    ..Message::default()
                },
                None,
            );
            if sent.is_ok() {
                lock(&self.state).probed = Some(now);
            }
        }
    }

    /// Takes note that the connection is lost, and the announcement with it.
    pub fn disconnected(&self) {
        self.announced.store(false, Ordering::SeqCst);
        self.streams.store(false, Ordering::SeqCst);
        let mut state = lock(&self.state);
        state.connected = None;
        state.said = None;
        state.probed = None;
        state.denied.clear();
    }

    /// There is a connection, and soon it will be known whether streams can come in: the first
    /// announcement says so, and waits for that a little.
    pub fn connecting(&self, now: Moment) {
        lock(&self.state).connected = Some(now);
    }

    /// Whether streams can come in is known.
    pub fn takes_streams(&self, publisher: &Publisher, takes: bool, now: Moment) {
        let is_new = takes && !self.streams.swap(takes, Ordering::SeqCst);
        let is_first = lock(&self.state).connected.take().is_some();
        match (is_first, is_new) {
            (true, _) => self.connected(publisher, now),
            (false, true) => self.announce(publisher, now),
            (false, false) => {}
        }
    }

    /// Says again what has been said too long ago, and looks after the message to itself. To be
    /// called every now and then.
    pub fn tick(&self, publisher: &Publisher, now: Moment) {
        let connected = lock(&self.state).connected;
        if connected.is_some_and(|since| now.since(since) >= STREAMS) {
            self.takes_streams(publisher, false, now);
        }
        let (is_due, is_deaf) = {
            let mut state = lock(&self.state);
            let is_due = state
                .said
                .is_some_and(|said| now.since(said) >= self.refresh);
            let is_deaf = state.probed.is_some_and(|at| now.since(at) >= PROBE);
            // It may have gone to another one with this id.
            let is_deaf = is_deaf && state.twins.is_empty();
            if is_deaf {
                state.probed = None;
            }
            (is_due, is_deaf)
        };
        match &self.own_requests {
            Some(topic) if is_deaf => self.denied(publisher, topic, "read", now),
            _ if is_due => self.announce(publisher, now),
            _ => {}
        }
    }

    /// The broker does not let this agent do this with a topic.
    pub fn denied(&self, publisher: &Publisher, topic: &str, verb: &str, now: Moment) {
        log::error!(
            "the broker does not let this agent {verb} {topic}: see its access list; callers get a 502"
        );
        let is_new = {
            let mut state = lock(&self.state);
            state.denied.len() < MAX_DENIED && state.denied.insert(topic.to_owned())
        };
        if is_new {
            self.announce(publisher, now);
        }
    }

    /// Whether this is a message of some agent to itself, which is no request.
    pub fn is_probe(&self, message: &Message) -> bool {
        let Some(whose) = message.properties.user(PROBE_OF) else {
            return false;
        };
        if whose == self.announcement.instance {
            lock(&self.state).probed = None;
        }
        true
    }

    /// Whether an acknowledgement is of the message to itself: an agent that may not write there
    /// can't ask itself anything, and need not.
    pub fn is_probe_acknowledged(&self, correlation: Option<&Bytes>, is_taken: bool) -> bool {
        if correlation != Some(&self.probe_name()) {
            return false;
        }
        if !is_taken {
            lock(&self.state).probed = None;
        }
        true
    }

    fn probe_name(&self) -> Bytes {
        Bytes::copy_from_slice(self.announcement.instance.as_bytes())
    }

    /// Says that it is going to stop.
    pub fn leave(&self, publisher: &Publisher, now: Moment) {
        self.leaving.store(true, Ordering::SeqCst);
        self.announce(publisher, now);
    }

    /// Takes what somebody published as this agent's presence.
    pub fn heard(&self, publisher: &Publisher, payload: &[u8], now: Moment) {
        if payload.is_empty() {
            // A twin has vanished, or somebody meddles: this one is still here.
            lock(&self.state).twins.clear();
            if !self.leaving.load(Ordering::SeqCst) {
                self.announce(publisher, now);
            }
            return;
        }
        let Some(other) = Announcement::read(payload) else {
            return;
        };
        if other.instance == self.announcement.instance {
            self.announced.store(true, Ordering::SeqCst);
            return;
        }
        let mut state = lock(&self.state);
        if other.leaving {
            state.twins.remove(&other.instance);
            drop(state);
            return self.announce(publisher, now);
        }
        if state.twins.len() < MAX_TWINS && state.twins.insert(other.instance) {
            drop(state);
            log::error!(
                "another agent announces itself on {}: the two share its requests; give each its own id",
                self.topic
            );
            // So that it hears of this one. It hears once: both then know each other.
            self.announce(publisher, now);
        }
    }

    /// Says once more what could not be sent. To be called when something was written.
    pub fn catch_up(&self, publisher: &Publisher, now: Moment) {
        if self.owed.swap(false, Ordering::SeqCst) {
            self.announce(publisher, now);
        }
    }

    // Says that this agent is there; once it is leaving, that it is not.
    fn announce(&self, publisher: &Publisher, now: Moment) {
        let payload = self.payload(now);
        let offer = publisher.offer();
        let is_goodbye = payload.is_empty();
        let mut wished = self.message(payload);
        if is_goodbye {
            let goodbye = (presence::GOODBYE.to_owned(), "1".to_owned());
            wished.properties.user.push(goodbye);
        }
        let sent = publisher.publish(
            Message {
                qos: wished.qos.min(offer.max_qos),
                retain: offer.retain,
                ..wished
            },
            None,
        );
        match sent {
            Ok(()) => {}
            Err(PublishError::Busy | PublishError::Stalled(_)) => {
                self.owed.store(true, Ordering::SeqCst);
            }
            Err(why) => log::warn!("can't announce on {}: {why}", self.topic),
        }
    }

    fn payload(&self, now: Moment) -> Bytes {
        let mut state = lock(&self.state);
        state.said = Some(now);
        let leaving = self.leaving.load(Ordering::SeqCst);
        // Nobody is left, or another agent with this id is: that one then announces itself.
        if leaving && state.twins.is_empty() {
            return Bytes::new();
        }
        let announcement = Announcement {
            denied: state.denied.iter().cloned().collect(),
            streams: self.streams.load(Ordering::SeqCst),
            leaving,
            ..self.announcement.clone()
        };
        json!(announcement).to_string().into()
    }

    fn message(&self, payload: Bytes) -> Message {
        let lives = !payload.is_empty();
        Message {
            topic: self.topic.clone(),
            payload,
            qos: Qos::AtLeastOnce,
            retain: true,
            properties: Properties {
                message_expiry_interval: lives.then(|| presence::expiry(self.refresh.as_secs())),
                ..Properties::default()
            },
            ..Message::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::Receiver;

    use super::*;
    use crate::link::Memory;

    fn start() -> Moment {
        Moment::at(Duration::from_secs(1000))
    }

    /// An announcer that has just connected, and what it has said of itself.
    fn connected() -> (
        Announcer,
        Receiver<Message>,
        Publisher,
        std::sync::Arc<Memory>,
    ) {
        let announcer = Announcer::new(&AgentSettings::example(), &Id::random());
        let (sent, publisher, memory) = Memory::start();
        announcer.connected(&publisher, start());
        (announcer, sent, publisher, memory)
    }

    fn said(sent: &Receiver<Message>) -> Vec<Message> {
        sent.try_iter().collect()
    }

    fn announcement(message: &Message) -> Announcement {
        Announcement::read(&message.payload).unwrap()
    }

    fn twin(leaving: bool, announced: &Message) -> Vec<u8> {
        let twin = Announcement {
            instance: "another".into(),
            leaving,
            ..announcement(announced)
        };
        serde_json::to_vec(&twin).unwrap()
    }

    #[test]
    fn it_is_announced_once_the_broker_gives_the_announcement_back() {
        let (announcer, sent, publisher, _) = connected();
        let [announced, probe] = said(&sent).try_into().unwrap();
        assert_eq!(announced.topic, "recado/agents/shed/presence");
        assert!(announced.retain && announced.qos == Qos::AtLeastOnce);
        assert_eq!(announced.properties.message_expiry_interval, Some(50));
        assert_eq!(probe.topic, "recado/agents/shed/request");
        assert!(!announcer.is_announced());
        announcer.heard(&publisher, &announced.payload, start());
        assert!(announcer.is_announced() && said(&sent).is_empty());
        announcer.disconnected();
        assert!(!announcer.is_announced());
    }

    #[test]
    fn it_says_so_again_in_time_and_when_there_was_no_place() {
        let (announcer, sent, publisher, memory) = connected();
        said(&sent);
        let after = |seconds| start() + Duration::from_secs(seconds);
        announcer.is_probe_acknowledged(Some(&announcer.probe_name()), false);
        announcer.tick(&publisher, after(19));
        assert!(said(&sent).is_empty());
        memory.refuse(Some(PublishError::Busy));
        announcer.tick(&publisher, after(20));
        assert!(said(&sent).is_empty());
        memory.refuse(None);
        announcer.catch_up(&publisher, after(21));
        announcer.catch_up(&publisher, after(21));
        assert_eq!(said(&sent).len(), 1, "once is enough");
        announcer.tick(&publisher, after(40));
        assert!(said(&sent).is_empty());
        announcer.tick(&publisher, after(41));
        assert_eq!(said(&sent).len(), 1);
    }

    #[test]
    fn agents_with_one_id_hear_of_each_other_and_keep_the_presence_up() {
        let (announcer, sent, publisher, _) = connected();
        let announced = said(&sent).remove(0);
        let hear = |payload: &[u8]| {
            announcer.heard(&publisher, payload, start());
            said(&sent)
        };
        assert_eq!(hear(&twin(false, &announced)).len(), 1, "it must hear too");
        assert_eq!(hear(&twin(false, &announced)).len(), 0, "but only once");
        assert_eq!(hear(b"").len(), 1, "its will has taken this one's away");
        hear(&twin(false, &announced));
        announcer.leave(&publisher, start());
        let [goodbye] = said(&sent).try_into().unwrap();
        assert!(announcement(&goodbye).leaving, "the other one goes on");
        assert_eq!(hear(b"").len(), 0, "this one does not");
        let (alone, sent, publisher, _) = connected();
        said(&sent);
        alone.leave(&publisher, start());
        assert_eq!(said(&sent)[0].payload, "");
    }

    #[test]
    fn what_the_broker_denies_is_said() {
        let (announcer, sent, publisher, _) = connected();
        let probe = said(&sent).remove(1);
        let after = |seconds| start() + Duration::from_secs(seconds);
        announcer.tick(&publisher, after(1));
        assert!(said(&sent).is_empty(), "it may still come");
        announcer.tick(&publisher, after(2));
        let [complaint] = said(&sent).try_into().unwrap();
        assert_eq!(announcement(&complaint).denied, [probe.topic.as_str()]);
        announcer.denied(&publisher, &probe.topic, "read", after(2));
        assert!(said(&sent).is_empty(), "once is enough");
        announcer.disconnected();
        announcer.connected(&publisher, after(3));
        let probe = said(&sent).remove(1);
        assert!(announcer.is_probe(&probe), "it has come back");
        announcer.tick(&publisher, after(9));
        assert!(said(&sent).is_empty());
    }
}
