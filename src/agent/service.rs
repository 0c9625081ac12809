//! The life of an agent.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::age::BEAT;
use super::announcer::Announcer;
use super::executor::Executor;
use super::intake::Intake;
use super::job::Job;
use super::reports::{self, Reports};
use super::settings::{AgentSettings, Service};
use crate::base::clock::Moment;
use crate::base::error::{Error, Result};
use crate::base::pool::{Pool, PoolOptions};
use crate::base::threads::{self, StopSignal, StopTrigger};
use crate::base::topic::{Id, Topic, TopicFilter};
use crate::link;
use crate::link::{
    Acknowledgement, Delivery, Link, LinkEvent, LinkOptions, Publisher, Subscription,
};
use crate::stream::Streams;
use crate::wire::stream::agent_topic;
use crate::wire::{Message, Qos, packet_limit};

/// How many replies may wait to be written to the broker, unless more requests may be in hand.
const QUEUE: usize = 1024;
/// A worker that had nothing to do for this long ends.
const IDLE_WORKER: Duration = Duration::from_secs(10);
/// How much longer than all else an attempt to connect may take at the end.
const CONNECTING: Duration = Duration::from_secs(3);
/// How long the broker may take to confirm that no more requests come.
const UNSUBSCRIBE: Duration = Duration::from_millis(500);
/// No request for this long after that means that none is on its way any more.
const QUIET: Duration = Duration::from_millis(200);

/// A running agent.
pub struct Agent {
    link: Link,
    announcer: Arc<Announcer>,
    intake: Arc<Intake>,
    pools: Arc<[Pool<Box<Job>>]>,
    streams: Arc<Streams>,
    watch: JoinHandle<()>,
    // What happens without being asked for: the presence is refreshed, a standstill noticed.
    pulse: JoinHandle<()>,
    // Looks whether upstreams take connections.
    check: Option<JoinHandle<()>>,
    trigger: StopTrigger,
}

impl Agent {
    /// Starts the connection to the broker. Neither broker nor upstream need be there yet.
    ///
    /// Errors: what [`Link::start`] returns, or a service that can't work
    /// ([`Error::Usage`](crate::base::error::Error::Usage)).
    pub fn start(settings: AgentSettings) -> Result<Agent> {
        warn_of_strangers(&settings);
        let instance = Id::random();
        let announcer = Arc::new(Announcer::new(&settings, &instance));
        let topic = agent_topic(&settings.id, instance.as_str());
        let topic = topic.map_err(|error| Error::Usage(error.to_string()))?;
        let streams = Streams::new(topic, settings.streams, settings.buffered_bytes());
        let mut options = link_options(&settings, &announcer);
        options.subscriptions.extend(streams.subscription());
        options
            .subscriptions
            .push(reports::subscription(&settings.id)?);
        let (id, check) = (settings.id.clone(), settings.upstream_check);
        let every = settings.stats;
        let services = settings.services.clone();
        let intake = Arc::new(Intake::new(settings, Arc::clone(&streams))?);
        let pools: Arc<[Pool<Box<Job>>]> = services
            .iter()
            .map(|service| pool(service, Arc::clone(&intake)))
            .collect();
        let reports = Arc::new(Reports::new(
            (&id, &instance),
            every,
            Arc::clone(intake.figures()),
            Arc::clone(&pools),
            Arc::clone(&streams),
        )?);
        let parts = Parts {
            intake: Arc::clone(&intake),
            pools: Arc::clone(&pools),
            announcer: Arc::clone(&announcer),
            reports: Arc::clone(&reports),
            streams: Arc::clone(&streams),
        };
        let link = Link::start(options, move |publisher, event| {
            parts.take(publisher, event);
        })?;
        let (trigger, stop) = threads::stop_signal();
        let check = match check {
            None => None,
            Some(every) => Some(check_upstreams(every, Arc::clone(&intake), stop.clone())?),
        };
        let (publisher, presence) = (link.publisher().clone(), Arc::clone(&announcer));
        let pulse_of = Arc::clone(&intake);
        let pulse = threads::spawn("pulse", 128, move || {
            while !stop.sleep(BEAT) {
                let now = Moment::now();
                pulse_of.beat(now);
                presence.tick(&publisher, now);
                reports.tick(&publisher, now);
            }
        })?;
        Ok(Agent {
            link,
            announcer,
            intake,
            pools,
            watch: streams.watch(|_| {})?,
            streams,
            pulse,
            check,
            trigger,
        })
    }

    /// Looks whether an agent could be started with these settings.
    ///
    /// Errors: a service can't work ([`Error::Usage`](crate::base::error::Error::Usage)), or the files for
    /// TLS can't be used ([`Error::Tls`](crate::base::error::Error::Tls)).
    pub fn check(settings: &AgentSettings) -> Result<()> {
        Executor::new(settings.clone())?;
        link::check(&settings.brokers)
    }

    /// Whether it is connected, subscribed and announced, so that gateways find it; if not, why.
    pub fn ready(&self) -> std::result::Result<(), String> {
        self.link.publisher().ready()?;
        match self.announcer.is_announced() {
            true => Ok(()),
            false => Err("the broker has not taken the presence yet".into()),
        }
    }

    /// Whether the thread goes on that all requests need, the `mqtt` thread.
    pub fn is_alive(&self) -> bool {
        self.link.is_alive()
    }

    /// Goes on with other settings, without losing a request: each is executed with those that there were
    /// when a worker took it up. Returns the keys that can't change so.
    ///
    /// Errors: as [`Agent::check`]; then nothing has changed.
    pub fn reload(&self, wished: AgentSettings) -> Result<Vec<String>> {
        link::check(&wished.brokers)?;
        warn_of_strangers(&wished);
        let fixed = self.intake.reload(wished)?;
        self.link.set_brokers(self.intake.brokers().urls().to_vec());
        self.link.return_to_first();
        Ok(fixed)
    }

    /// Stops in order: say so, take no more requests, answer those in hand, say goodbye to the
    /// broker, join every thread. Takes as long as the callers of what is in hand still wait, and
    /// a second at most beyond that.
    ///
    /// Errors: a thread did not end in time; the rest is stopped all the same.
    pub fn stop(self) -> Result<()> {
        self.announcer.leave(self.link.publisher(), Moment::now());
        self.link.unsubscribe(Instant::now() + UNSUBSCRIBE);
        self.wait_for_the_last();
        let last_deadline = self.intake.last_deadline();
        let drained = last_deadline.max(Instant::now()) + Duration::from_millis(300);
        let mut first_failure = Ok(());
        for pool in self.pools.iter() {
            first_failure = first_failure.and(pool.join(drained));
        }
        // What goes on for ever is ended only now, and takes a moment.
        let ended = drained + Duration::from_secs(1);
        let streams = self.streams.stop(ended);
        let watch = threads::join_until(self.watch, ended);
        first_failure = first_failure.and(streams).and(watch);
        self.trigger.stop();
        let pulse = threads::join_until(self.pulse, ended);
        // It may be in the middle of an attempt to connect, and that has a bound of its own.
        let check = self
            .check
            .map(|it| threads::join_until(it, ended + CONNECTING));
        first_failure = first_failure.and(check.unwrap_or(Ok(())));
        first_failure.and(pulse).and(self.link.stop(drained))
    }

    // A broker may send what it had queued for this agent after it has confirmed UNSUBSCRIBE
    // (MQTT 5, section 3.10.4), and nothing says which message is the last.
    fn wait_for_the_last(&self) {
        let limit = Instant::now() + UNSUBSCRIBE;
        loop {
            let quiet_at = self.intake.last_arrival() + QUIET;
            let left = quiet_at
                .min(limit)
                .saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left);
        }
    }
}

// What takes part in the events of the link, on the mqtt thread.
struct Parts {
    intake: Arc<Intake>,
    pools: Arc<[Pool<Box<Job>>]>,
    announcer: Arc<Announcer>,
    reports: Arc<Reports>,
    streams: Arc<Streams>,
}

impl Parts {
    fn take(&self, publisher: &Publisher, event: LinkEvent) {
        let now = Moment::now();
        match event {
            LinkEvent::Ready => {
                log::info!("ready as agent {}", self.intake.id());
                match self.streams.limits().max_streams {
                    0 => self.announcer.connected(publisher, now),
                    _ => self.announcer.connecting(now),
                }
                self.streams.connected(publisher, Instant::now());
                self.reports.connected();
                self.intake.catch_up(publisher, now);
            }
            LinkEvent::Message(message) => self.take_message(publisher, message, now),
            LinkEvent::Written => {
                self.announcer.catch_up(publisher, now);
                self.intake.catch_up(publisher, now);
            }
            LinkEvent::Acknowledged(acknowledgement) => {
                self.announcer.catch_up(publisher, now);
                self.intake.catch_up(publisher, now);
                if !self.streams.acknowledged(&acknowledgement) {
                    refused(publisher, &acknowledgement, &self.announcer, &self.reports);
                }
            }
            LinkEvent::Down(_) => {
                self.announcer.disconnected();
                self.streams.disconnected();
                self.reports.disconnected(now);
            }
            LinkEvent::Granted { .. } | LinkEvent::Refused { .. } => {}
        }
    }

    fn take_message(&self, publisher: &Publisher, message: Message, now: Moment) {
        if message.topic == self.announcer.topic() {
            self.announcer.heard(publisher, &message.payload, now);
        } else if self.reports.take(&message) || self.announcer.is_probe(&message) {
            // It is taken.
        } else if self
            .streams
            .take(publisher, &message, |_| false, Instant::now())
        {
            let is_open = self.streams.is_open();
            self.announcer.takes_streams(publisher, is_open, now);
        } else {
            self.intake.take(publisher, &self.pools, message, now);
        }
    }
}

fn warn_of_strangers(settings: &AgentSettings) {
    for service in &settings.services {
        let upstream = &service.upstream;
        if !upstream.tls.verify && upstream.url.scheme() == "https" {
            let url = &upstream.url;
            log::warn!(
                "nobody checks who is at {url} (upstream_verify = false): whoever is on the way can take its place"
            );
        }
    }
}

// A thread of its own: an upstream that does not answer must hold nothing else up.
fn check_upstreams(
    every: Duration,
    intake: Arc<Intake>,
    stop: StopSignal,
) -> Result<JoinHandle<()>> {
    threads::spawn("check", 256, move || {
        intake.check_upstreams(every, &stop);
        while !stop.sleep(every) {
            intake.check_upstreams(every, &stop);
        }
    })
}

fn refused(
    publisher: &Publisher,
    acknowledgement: &Acknowledgement,
    presence: &Announcer,
    reports: &Reports,
) {
    let Acknowledgement {
        topic,
        correlation_data,
        delivery,
    } = acknowledgement;
    let refused = match delivery {
        Delivery::Refused(reason) => Some(reason),
        Delivery::Taken | Delivery::NobodySubscribed => None,
    };
    let correlation = correlation_data.as_ref();
    if presence.is_probe_acknowledged(correlation, refused.is_none()) {
        return;
    }
    let Some(reason) = refused else {
        return;
    };
    if reports.is_refused(topic, reason) {
        return;
    }
    // Without its presence nobody finds this agent, yet it would get its share of what others are
    // asked.
    if topic == presence.topic() {
        publisher.give_up(format!(
            "the broker refused a message on {topic}: {reason}; this agent may not have this id there"
        ));
    } else {
        log::warn!("the broker refused the reply to {topic}: {reason}");
        presence.denied(publisher, topic, "write", Moment::now());
    }
}

fn link_options(settings: &AgentSettings, announcer: &Announcer) -> LinkOptions {
    let services = settings.services.iter();
    let in_hand = services.clone().map(|it| it.workers + it.queue);
    let mut subscriptions: Vec<Subscription> = services
        .map(|service| subscription(service, &settings.id))
        .collect();
    if let Ok(topic) = Topic::new(announcer.topic()) {
        subscriptions.push(Subscription {
            filter: TopicFilter::from(&topic),
            qos: Qos::AtLeastOnce,
            group: None,
            retained: false,
            is_needed: true,
        });
    }
    LinkOptions {
        brokers: settings.brokers.urls().to_vec(),
        // Two agents may have the same id by mistake; with the same client id they would throw
        // each other out for ever.
        client_id: format!("recado-agent-{}-{}", settings.id, Id::random()),
        session_expiry: Duration::ZERO,
        keep_alive: settings.keep_alive,
        max_packet_bytes: packet_limit(settings.max_body_bytes),
        queue: in_hand.sum::<usize>().max(QUEUE),
        queue_bytes: settings.buffered_bytes(),
        proves_topics: true,
        manual_acknowledgement: false,
        will: Some(announcer.will()),
        subscriptions,
    }
}

// Shared in any case: two agents with one id, by mistake, must not both execute what is meant for one.
fn subscription(service: &Service, id: &Id) -> Subscription {
    Subscription {
        filter: TopicFilter::from(&service.request_topic),
        qos: Qos::AtLeastOnce,
        group: Some(service.name.as_ref().unwrap_or(id).clone()),
        retained: false,
        is_needed: true,
    }
}

fn pool(service: &Service, intake: Arc<Intake>) -> Pool<Box<Job>> {
    let options = PoolOptions {
        name: "worker",
        max_workers: service.workers,
        queue: service.queue,
        stack_kib: 256,
        idle: IDLE_WORKER,
    };
    Pool::new(options, move |job: Box<Job>| {
        intake.work(&job, Moment::now())
    })
}
