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
}

#[derive(Default)]
struct State {
    // The other agents with this id that have been heard of.
    twins: HashSet<String>,
    denied: BTreeSet<String>,
    // When it was said last, on this connection.
    said: Option<Moment>,
    // When a message to itself was sent that has not come back.
    probed: Option<Moment>,
}

impl Announcer {
    pub fn new(settings: &AgentSettings) -> Announcer {
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
                instance: Id::random().to_string(),
                refresh_s: Some(settings.presence_refresh.as_secs()),
                denied: Vec::new(),
                leaving: false,
            },
            refresh: settings.presence_refresh,
            state: Mutex::default(),
            leaving: AtomicBool::new(false),
            owed: AtomicBool::new(false),
            announced: AtomicBool::new(false),
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
    pub fn connected(&self, publisher: &Publisher) {
        self.announce(publisher);
        if let Some(topic) = &self.own_requests
            && publisher.offer().max_qos > Qos::AtMostOnce
        {
            let whose = (PROBE_OF.to_owned(), self.announcement.instance.clone());
            let sent = publisher.publish(Message {
                topic: topic.clone(),
                qos: Qos::AtLeastOnce,
                properties: Properties {
                    correlation_data: Some(self.probe_name()),
                    user: vec![whose],
                    ..Properties::default()
                },
                ..Message::default()
            });
            if sent.is_ok() {
                lock(&self.state).probed = Some(Moment::now());
            }
        }
    }

    /// Takes note that the connection is lost, and the announcement with it.
    pub fn disconnected(&self) {
        self.announced.store(false, Ordering::SeqCst);
        let mut state = lock(&self.state);
        state.said = None;
        state.probed = None;
        state.denied.clear();
    }

    /// Says again what has been said too long ago, and looks after the message to itself. To be
    /// called every now and then.
    pub fn tick(&self, publisher: &Publisher, now: Moment) {
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
            Some(topic) if is_deaf => self.denied(publisher, topic, "read"),
            _ if is_due => self.announce(publisher),
            _ => {}
        }
    }

    /// The broker does not let this agent do this with a topic.
    pub fn denied(&self, publisher: &Publisher, topic: &str, verb: &str) {
        log::error!(
            "the broker does not let this agent {verb} {topic}: see its access list; callers get a 502"
        );
        let is_new = {
            let mut state = lock(&self.state);
            state.denied.len() < MAX_DENIED && state.denied.insert(topic.to_owned())
        };
        if is_new {
            self.announce(publisher);
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
    pub fn leave(&self, publisher: &Publisher) {
        self.leaving.store(true, Ordering::SeqCst);
        self.announce(publisher);
    }

    /// Takes what somebody published as this agent's presence.
    pub fn heard(&self, publisher: &Publisher, payload: &[u8]) {
        if payload.is_empty() {
            // A twin has vanished, or somebody meddles: this one is still here.
            lock(&self.state).twins.clear();
            if !self.leaving.load(Ordering::SeqCst) {
                self.announce(publisher);
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
            return self.announce(publisher);
        }
        if state.twins.len() < MAX_TWINS && state.twins.insert(other.instance) {
            drop(state);
            log::error!(
                "another agent announces itself on {}: the two share its requests; give each its own id",
                self.topic
            );
            // So that it hears of this one. It hears once: both then know each other.
            self.announce(publisher);
        }
    }

    /// Says once more what could not be sent. To be called when something was written.
    pub fn catch_up(&self, publisher: &Publisher) {
        if self.owed.swap(false, Ordering::SeqCst) {
            self.announce(publisher);
        }
    }

    // Says that this agent is there; once it is leaving, that it is not.
    fn announce(&self, publisher: &Publisher) {
        let payload = self.payload(Moment::now());
        let offer = publisher.offer();
        let wished = self.message(payload);
        let sent = publisher.publish(Message {
            qos: wished.qos.min(offer.max_qos),
            retain: offer.retain,
            ..wished
        });
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
