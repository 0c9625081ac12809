//! The life of an agent.

use std::sync::{Arc, Mutex, PoisonError};
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
use crate::base::threads::{self, StopSignal, StopTrigger, lock};
use crate::base::topic::{Id, Topic, TopicFilter};
use crate::link;
use crate::link::{
    Acknowledgement, Delivery, LinkEvent, LinkOptions, Links, Publisher, Subscription, Way,
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
/// When it is looked for the first time whether upstreams take connections.
const FIRST_CHECK: Duration = Duration::from_secs(1);
/// How long the broker may take to confirm that no more requests come.
const UNSUBSCRIBE: Duration = Duration::from_millis(500);
/// No request for this long after that means that none is on its way any more.
const QUIET: Duration = Duration::from_millis(200);

/// A running agent.
pub struct Agent {
    links: Links,
    // What belongs to each connection.
    posts: Arc<[Post]>,
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
    /// Errors: what [`Links::start`] returns, or a service that can't work
    /// ([`Error::Usage`](crate::base::error::Error::Usage)).
    pub fn start(settings: AgentSettings) -> Result<Agent> {
        warn_of_strangers(&settings);
        let instance = Id::random();
        let topic = agent_topic(&settings.id, instance.as_str());
        let topic = topic.map_err(|error| Error::Usage(error.to_string()))?;
        let streams = Streams::new(topic, settings.streams, settings.buffered_bytes());
        let intake = Arc::new(Intake::new(settings.clone(), Arc::clone(&streams))?);
        let services = settings.services.iter();
        let parts = Arc::new(Parts {
            pools: services
                .map(|service| pool(service, Arc::clone(&intake)))
                .collect(),
            intake: Arc::clone(&intake),
            streams: Arc::clone(&streams),
        });
        let (links, posts) = connect(&settings, &instance, &parts)?;
        let (trigger, stop) = threads::stop_signal();
        let check = match settings.upstream_check {
            None => None,
            Some(every) => Some(check_upstreams(every, Arc::clone(&intake), stop.clone())?),
        };
        let (pulse_of, told) = (Arc::clone(&intake), Arc::clone(&posts));
        let pulse = threads::spawn("pulse", 128, move || {
            while !stop.sleep(BEAT) {
                let now = Moment::now();
                pulse_of.beat(now);
                told.iter().for_each(|post| post.tick(now));
            }
        })?;
        Ok(Agent {
            links,
            posts,
            pools: Arc::clone(&parts.pools),
            intake,
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

    /// Whether it is connected, subscribed and announced at a broker, so that gateways find it; if not, why.
    pub fn ready(&self) -> std::result::Result<(), String> {
        let mut why = None;
        for post in self.posts.iter() {
            match post.ready() {
                Ok(()) => return Ok(()),
                Err(reason) => why = why.or(Some(reason)),
            }
        }
        Err(why.unwrap_or_default())
    }

    /// Whether the threads go on that requests need, the `mqtt` threads.
    pub fn is_alive(&self) -> bool {
        self.links.are_alive()
    }

    /// Goes on with other settings, without losing a request: each is executed with those that there were
    /// when a worker took it up. Returns the keys that can't change so.
    ///
    /// Errors: as [`Agent::check`]; then nothing has changed.
    pub fn reload(&self, wished: AgentSettings) -> Result<Vec<String>> {
        link::check(&wished.brokers)?;
        warn_of_strangers(&wished);
        let fixed = self.intake.reload(wished)?;
        self.links.reload(&self.intake.brokers());
        Ok(fixed)
    }

    /// Stops in order: say so, take no more requests, answer those in hand, say goodbye to the
    /// broker, join every thread. Takes as long as the callers of what is in hand still wait, and
    /// a second at most beyond that.
    ///
    /// Errors: a thread did not end in time; the rest is stopped all the same.
    pub fn stop(self) -> Result<()> {
        for post in self.posts.iter() {
            post.announcer.leave(&post.way.own, Moment::now());
        }
        self.links.unsubscribe(Instant::now() + UNSUBSCRIBE);
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
        first_failure.and(pulse).and(self.links.stop(drained))
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

// What all connections share.
struct Parts {
    intake: Arc<Intake>,
    pools: Arc<[Pool<Box<Job>>]>,
    streams: Arc<Streams>,
}

// What belongs to one connection: what is said there of this agent, and what comes in.
#[derive(Clone)]
struct Post {
    way: Way,
    announcer: Arc<Announcer>,
    reports: Arc<Reports>,
    parts: Arc<Parts>,
}

// Starts the connections to the brokers.
fn connect(
    settings: &AgentSettings,
    instance: &Id,
    parts: &Arc<Parts>,
) -> Result<(Links, Arc<[Post]>)> {
    let count = settings.brokers.connections().len();
    let announcers = (0..count).map(|_| Arc::new(Announcer::new(settings, instance)));
    let announcers: Vec<Arc<Announcer>> = announcers.collect();
    let reports = |_| {
        let who = (&settings.id, instance);
        let figures = Arc::clone(parts.intake.figures());
        let (pools, streams) = (Arc::clone(&parts.pools), Arc::clone(&parts.streams));
        Reports::new(who, settings.stats, figures, pools, streams).map(Arc::new)
    };
    let reports = (0..count).map(reports).collect::<Result<Vec<_>>>()?;
    let mut options = link_options(settings, &announcers[0]);
    options.subscriptions.extend(parts.streams.subscription());
    options
        .subscriptions
        .push(reports::subscription(&settings.id)?);
    let posts = Mutex::new(Vec::new());
    let links = Links::start(options, &settings.brokers, |way| {
        let post = Post {
            announcer: Arc::clone(&announcers[way.number]),
            reports: Arc::clone(&reports[way.number]),
            parts: Arc::clone(parts),
            way,
        };
        lock(&posts).push(post.clone());
        Ok(move |_: &Publisher, event| post.take(event))
    })?;
    let posts = posts.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((links, posts.into()))
}

impl Post {
    fn ready(&self) -> std::result::Result<(), String> {
        self.way.own.ready()?;
        match self.announcer.is_announced() {
            true => Ok(()),
            false => Err("the broker has not taken the presence yet".into()),
        }
    }

    // Says what is due.
    fn tick(&self, now: Moment) {
        self.announcer.tick(&self.way.own, now);
        self.reports.tick(&self.way.own, now);
    }

    // On the mqtt thread.
    fn take(&self, event: LinkEvent) {
        let now = Moment::now();
        let (
            Parts {
                intake, streams, ..
            },
            publisher,
        ) = (&*self.parts, &self.way.own);
        match event {
            LinkEvent::Ready => {
                log::info!("ready as agent {}", intake.id());
                match streams.limits().max_streams {
                    0 => self.announcer.connected(publisher, now),
                    _ => self.announcer.connecting(now),
                }
                streams.connected(&self.way, Instant::now());
                self.reports.connected();
                intake.catch_up(&self.way.any, now);
            }
            LinkEvent::Message(message) => self.take_message(message, now),
            LinkEvent::Written => {
                self.announcer.catch_up(publisher, now);
                intake.catch_up(&self.way.any, now);
            }
            LinkEvent::Acknowledged(acknowledgement) => {
                self.announcer.catch_up(publisher, now);
                intake.catch_up(&self.way.any, now);
                if !streams.acknowledged(&acknowledgement) {
                    refused(publisher, &acknowledgement, &self.announcer, &self.reports);
                }
            }
            LinkEvent::Down(_) => {
                self.announcer.disconnected();
                streams.disconnected(self.way.number, Instant::now());
                self.reports.disconnected(now);
            }
            LinkEvent::Granted { .. } | LinkEvent::Refused { .. } => {}
        }
    }

    fn take_message(&self, message: Message, now: Moment) {
        let (
            Parts {
                intake,
                streams,
                pools,
            },
            publisher,
        ) = (&*self.parts, &self.way.own);
        if message.topic == self.announcer.topic() {
            self.announcer.heard(publisher, &message.payload, now);
        } else if self.reports.take(&message) || self.announcer.is_probe(&message) {
            // It is taken.
        } else if streams.take(&self.way, &message, |_| false, Instant::now()) {
            let is_open = streams.is_open(self.way.number);
            self.announcer.takes_streams(publisher, is_open, now);
        } else {
            intake.take(&self.way, pools, message, now);
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
        // What is started beside this agent may not listen yet.
        let mut pause = every.min(FIRST_CHECK);
        while !stop.sleep(pause) {
            intake.check_upstreams(every, &stop);
            pause = every;
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
        // Each connection has its own.
        brokers: Vec::new(),
        prefix: settings.prefix.clone(),
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
