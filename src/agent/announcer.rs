//! The agent's presence: a retained message that says that it is there.
//!
//! Agents that share an id by mistake share one presence too. Each then hears of the other, keeps
//! the announcement up when the other vanishes, and leaves it alone when it stops itself.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use serde_json::json;

use crate::config::AgentSettings;
use crate::gateway::presence::{self, Announcement};
use crate::gateway::random_id;
use crate::link::{PublishError, Publisher};
use crate::message::{Message, Qos};
use crate::threads::lock;

/// How many agents with the same id are remembered.
const MAX_TWINS: usize = 64;

pub(super) struct Announcer {
    topic: String,
    instance: String,
    payload: Bytes,
    // The same, but leaving.
    goodbye: Bytes,
    // The other agents with this id that have been heard of.
    twins: Mutex<HashSet<String>>,
    leaving: AtomicBool,
    // The last announcement could not be sent.
    owed: AtomicBool,
    // It came back: the broker has it.
    announced: AtomicBool,
}

impl Announcer {
    pub fn new(settings: &AgentSettings) -> Announcer {
        let services = settings.services.iter();
        let names = services.clone().filter_map(|service| service.name.as_ref());
        let instance = random_id().to_string();
        let mut announcement = Announcement {
            id: settings.id.to_string(),
            services: names.map(ToString::to_string).collect(),
            since: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            topics: services
                .map(|service| service.request_topic.to_string())
                .collect(),
            instance: instance.clone(),
            leaving: false,
        };
        let payload = json!(announcement).to_string().into();
        announcement.leaving = true;
        Announcer {
            topic: presence::topic(&settings.id),
            instance,
            payload,
            goodbye: json!(announcement).to_string().into(),
            twins: Mutex::default(),
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

    /// Says that this agent is there; once it is leaving, that it is not.
    pub fn announce(&self, publisher: &Publisher) {
        match self.leaving.load(Ordering::SeqCst) {
            false => self.publish(publisher, self.payload.clone()),
            true => self.say_goodbye(publisher),
        }
    }

    /// Whether the broker is seen to have the announcement.
    pub fn is_announced(&self) -> bool {
        self.announced.load(Ordering::SeqCst)
    }

    /// Takes note that the connection is lost, and the announcement with it.
    pub fn disconnected(&self) {
        self.announced.store(false, Ordering::SeqCst);
    }

    /// Says that it is going to stop.
    pub fn leave(&self, publisher: &Publisher) {
        self.leaving.store(true, Ordering::SeqCst);
        self.say_goodbye(publisher);
    }

    // Nobody is left, or another agent with this id is: that one then announces itself.
    fn say_goodbye(&self, publisher: &Publisher) {
        let payload = match lock(&self.twins).is_empty() {
            true => Bytes::new(),
            false => self.goodbye.clone(),
        };
        self.publish(publisher, payload);
    }

    /// Takes what somebody published as this agent's presence.
    pub fn heard(&self, publisher: &Publisher, payload: &[u8]) {
        if payload.is_empty() {
            // A twin has vanished, or somebody meddles: this one is still here.
            lock(&self.twins).clear();
            if !self.leaving.load(Ordering::SeqCst) {
                self.announce(publisher);
            }
            return;
        }
        let Ok(other) = serde_json::from_slice::<Announcement>(payload) else {
            return;
        };
        let mut twins = lock(&self.twins);
        if other.instance == self.instance {
            self.announced.store(true, Ordering::SeqCst);
            return;
        }
        if other.leaving {
            twins.remove(&other.instance);
            drop(twins);
            return self.announce(publisher);
        }
        if twins.len() >= MAX_TWINS {
            return;
        }
        if twins.insert(other.instance) {
            drop(twins);
            log::warn!(
                "another agent announces itself on {}; give each its own id",
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

    fn publish(&self, publisher: &Publisher, payload: Bytes) {
        let offer = publisher.offer();
        let wished = self.message(payload);
        let sent = publisher.publish(Message {
            qos: wished.qos.min(offer.max_qos),
            retain: offer.retain,
            ..wished
        });
        match sent {
            Ok(()) => {}
            Err(PublishError::Busy) => self.owed.store(true, Ordering::SeqCst),
            Err(why) => log::warn!("can't announce on {}: {why}", self.topic),
        }
    }

    fn message(&self, payload: Bytes) -> Message {
        Message {
            topic: self.topic.clone(),
            payload,
            qos: Qos::AtLeastOnce,
            retain: true,
            ..Message::default()
        }
    }
}
