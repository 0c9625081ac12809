//! Taking requests: who may ask, by when, whether it came before, and how each of them ends.

use std::collections::hash_map::RandomState;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;

use super::age::Ages;
use super::executor::Executor;
use super::job::Job;
use super::outcome::{Ended, Spent};
use super::repeats::{Key, Repeats, Seen};
use super::reply::{Form, Owed, Patience, ReplyTo};
use super::settings::{AgentSettings, Service, ServiceMode};
use crate::base::budget::Budget;
use crate::base::clock::Moment;
use crate::base::error::Result;
use crate::base::logging::excerpt;
use crate::base::pool::Pool;
use crate::base::threads::lock;
use crate::base::topic::Id;
use crate::http::Failure;
use crate::link::Publisher;
use crate::wire::Message;
use crate::wire::deadline::{sent, time_left};

/// The longest correlation of a request in HTTP mode, in bytes; ours have 16.
const MAX_CORRELATION: usize = 64;

/// What becomes of each request.
pub(super) struct Intake {
    executor: Executor,
    budget: Arc<Budget>,
    dropped: AtomicU64,
    repeats: Repeats<Box<Job>>,
    seeds: [RandomState; 2],
    ages: Mutex<Ages>,
    owed: Arc<Owed>,
    taken: Mutex<Taken>,
}

// What the stop must know of the requests taken so far.
struct Taken {
    last_arrival: Instant,
    last_deadline: Instant,
}

impl Intake {
    pub fn new(settings: AgentSettings) -> Result<Intake> {
        Ok(Intake {
            budget: Budget::new(settings.buffered_bytes()),
            executor: Executor::new(settings)?,
            dropped: AtomicU64::new(0),
            repeats: Repeats::new(),
            seeds: Default::default(),
            ages: Mutex::default(),
            owed: Arc::default(),
            taken: Mutex::new(Taken {
                last_arrival: Instant::now(),
                last_deadline: Instant::now(),
            }),
        })
    }

    fn settings(&self) -> &AgentSettings {
        self.executor.settings()
    }

    pub fn id(&self) -> &Id {
        &self.settings().id
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.settings().services.iter()
    }

    /// What requests are as old as; see [`Ages::beat`].
    pub fn beat(&self, now: Moment) {
        lock(&self.ages).beat(now);
    }

    /// Sends replies that found no place before.
    pub fn catch_up(&self, publisher: &Publisher) {
        self.owed.catch_up(publisher);
    }

    pub fn last_arrival(&self) -> Instant {
        lock(&self.taken).last_arrival
    }

    pub fn last_deadline(&self) -> Instant {
        lock(&self.taken).last_deadline
    }

    /// Takes a message. Runs on the mqtt thread.
    pub fn take(&self, publisher: &Publisher, pools: &[Pool<Box<Job>>], message: Message) {
        let received = Moment::now();
        let topic = message.topic.as_str();
        let mut services = self.services();
        let Some(number) = services.position(|service| service.request_topic.as_str() == topic)
        else {
            return self.drop_message(topic, "no service expects it");
        };
        if message.retain {
            return self.drop_message(topic, "it is retained, so it is from before");
        }
        let service = &self.settings().services[number];
        let reply_to = match self.reply_to(service, &message) {
            Ok(reply_to) => reply_to,
            Err(why) => return self.drop_message(topic, &why),
        };
        let (allowed, flaw) = match self.allowed(service, &message, received) {
            Ok(allowed) => (allowed, None),
            Err(flaw) => (service.timeout, Some(flaw)),
        };
        let deadline = received + allowed.min(self.settings().max_timeout);
        {
            let mut taken = lock(&self.taken);
            taken.last_arrival = Instant::now();
            taken.last_deadline = deadline.instant().max(taken.last_deadline);
        }
        let size = message.size();
        let job = Box::new(Job {
            service: number,
            message,
            reply_to,
            received,
            deadline,
            is_shortened: allowed > self.settings().max_timeout,
            publisher: publisher.clone(),
            owed: Arc::clone(&self.owed),
            repeat: None,
            memory: self.budget.share(),
        });
        if let Some(flaw) = flaw {
            let failure = Failure::Unreadable(flaw);
            return job.reply_failure(&failure, Spent::default(), Patience::None);
        }
        // What waits for a first that is running has a bound of its own.
        let Some(mut job) = self.unless_seen(job, Patience::None) else {
            return;
        };
        if !job.memory.grow(size) {
            let limit = self.settings().buffered_bytes();
            let detail = format!(
                "there is no memory for this request while so many others are in hand (max_buffered_bytes = {limit} of the agent)"
            );
            return self.refuse(&job, detail);
        }
        if let Err(job) = pools[number].submit(job) {
            let (workers, queue) = (service.workers, service.queue);
            let detail = format!(
                "all workers are busy and the queue is full (workers = {workers}, queue = {queue} of the agent)"
            );
            self.refuse(&job, detail);
        }
    }

    // How long the request may take from now on: what its caller had left when it was sent, without
    // what it was held up on its way.
    fn allowed(
        &self,
        service: &Service,
        message: &Message,
        received: Moment,
    ) -> std::result::Result<Duration, String> {
        let properties = &message.properties;
        let is_http = matches!(service.mode, ServiceMode::Http { .. });
        let correlation = properties.correlation_data.as_ref().map_or(0, Bytes::len);
        if is_http && correlation > MAX_CORRELATION {
            return Err(format!(
                "its correlation data has {correlation} bytes, allowed are {MAX_CORRELATION}"
            ));
        }
        let stated = time_left(properties).map_err(|bad| bad.to_string())?;
        let sent = sent(properties).map_err(|bad| bad.to_string())?;
        if stated.is_none() && is_http {
            return Err("the request states neither deadline-ms nor an expiry interval".into());
        }
        let age = lock(&self.ages).of(sent, received);
        Ok(stated.unwrap_or(service.timeout).saturating_sub(age))
    }

    fn refuse(&self, job: &Job, detail: String) {
        log::warn!("{}: {detail}", job.message.topic);
        let ended = Ended::Failed(Failure::AgentBusy(detail), Spent::default());
        self.end(job, &ended, Patience::None);
    }

    // A request that came before gets the reply of the first, now or when there is one.
    fn unless_seen(&self, mut job: Box<Job>, patience: Patience) -> Option<Box<Job>> {
        let idempotency_key = idempotency_key(&job.message);
        let Some(key) = Key::of(&job.message, idempotency_key, &self.seeds) else {
            return Some(job);
        };
        job.repeat = Some(key.clone());
        let bytes = job.message.size();
        match self.repeats.see(&key, job, bytes, Instant::now()) {
            Seen::New(job) => return Some(job),
            Seen::Waiting => {}
            Seen::TooMany(job) => {
                job.reply_failure(&Failure::TooManyRepeats, Spent::default(), patience);
            }
            Seen::Before(job, ended) => job.end(&ended, patience),
        }
        None
    }

    // Answers a request, and those that came again while it ran.
    fn end(&self, job: &Job, ended: &Ended, patience: Patience) {
        job.end(ended, patience);
        if let Some(key) = &job.repeat {
            for waiting in self.repeats.end(key, Some(ended), Instant::now()) {
                waiting.end(ended, patience);
            }
        }
    }

    fn reply_to(
        &self,
        service: &Service,
        message: &Message,
    ) -> std::result::Result<ReplyTo, String> {
        let properties = &message.properties;
        let response_topic = properties.response_topic.as_deref();
        match (&service.mode, response_topic) {
            (ServiceMode::Json { response_topic, .. }, None) => Ok(ReplyTo::legacy(response_topic)),
            (ServiceMode::Json { .. }, Some(topic)) => {
                ReplyTo::checked(properties, topic, self.settings(), Form::Json)
            }
            (ServiceMode::Http { .. }, Some(topic)) => {
                if properties.correlation_data.is_none() {
                    return Err("it has no correlation data".into());
                }
                let method = properties.user("method").unwrap_or_default();
                let method = Method::from_bytes(method.as_bytes()).unwrap_or_default();
                ReplyTo::checked(properties, topic, self.settings(), Form::Http(method))
            }
            (ServiceMode::Http { .. }, None) => Err("it has no response topic".into()),
        }
    }

    /// Executes a request and answers it, unless its time is up.
    pub fn work(&self, job: &Job) {
        let (begun, begun_at) = (Instant::now(), Moment::now());
        let left = job.deadline.since(begun_at);
        if left.is_zero() {
            self.drop_message(&job.message.topic, "its caller has stopped waiting");
            // Who repeated it may wait for longer: the next of them is the first now.
            let waiting = job.repeat.iter();
            let waiting = waiting.flat_map(|key| self.repeats.end(key, None, begun));
            for next in waiting.collect::<Vec<_>>() {
                if let Some(next) = self.unless_seen(next, Patience::UntilDeadline) {
                    self.work(&next);
                }
            }
            return;
        }
        let running = Running { intake: self, job };
        let executed = self.executor.execute(job, left);
        let spent = Spent {
            queue: begun_at.since(job.received),
            upstream: begun.elapsed(),
        };
        let ended = match executed {
            Ok(response) => Ended::Answered(response, spent),
            Err((asked, failure)) => {
                let (status, hop, _) = failure.meaning();
                log::warn!(
                    "request: {} -> {} at the {}: {}",
                    excerpt(asked.as_bytes()),
                    status.as_u16(),
                    hop.as_str(),
                    excerpt(failure.to_string().as_bytes())
                );
                Ended::Failed(failure, spent)
            }
        };
        self.end(job, &ended, Patience::UntilDeadline);
        drop(running);
    }

    fn drop_message(&self, topic: &str, why: &str) {
        let number = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        log::debug!(
            "dropped a request on {}: {} ({number} so far)",
            excerpt(topic.as_bytes()),
            excerpt(why.as_bytes())
        );
    }
}

// Forgets a request whose worker panics: its repeats would wait for ever.
struct Running<'a> {
    intake: &'a Intake,
    job: &'a Job,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.job.repeat
            && std::thread::panicking()
        {
            self.intake.repeats.abandon(key);
        }
    }
}

// The Idempotency-Key of an HTTP request: a field that a caller repeats with a request it repeats.
fn idempotency_key(message: &Message) -> Option<&[u8]> {
    let mut fields = message.properties.user.iter();
    let (_, field) = fields.find(|(key, field)| {
        key == "h"
            && field
                .get(.."idempotency-key: ".len())
                .is_some_and(|name| name.eq_ignore_ascii_case("idempotency-key: "))
    })?;
    field
        .as_bytes()
        .get("idempotency-key: ".len()..)
        .filter(|key| !key.is_empty())
}
