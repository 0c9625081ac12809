//! What the agent does with a request: take it or drop it, execute it, answer it.

use std::collections::hash_map::RandomState;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::value::RawValue;

use super::age::Ages;
use super::live_service::LiveService;
use super::repeats::{Ended, Key, Repeats, Seen};
use super::reply::{Form, Owed, Patience, ReplyTo, Shares};
use crate::budget::{Budget, Share};
use crate::clock::Moment;
use crate::config::{AgentSettings, Allow, Service, ServiceMode};
use crate::error::Result;
use crate::http::problem::Problem;
use crate::http::upstream::{Upstream, UpstreamError};
use crate::http::{Request, RequestId, Response, X_REQUEST_ID};
use crate::link::Publisher;
use crate::logging::excerpt;
use crate::message::http::read_request;
use crate::message::{Hop, JSON, Message, REQUEST_ID, add_received, sent, time_left};
use crate::pool::Pool;
use crate::threads::lock;
use crate::topic::Id;

/// The longest correlation of a request in HTTP mode, in bytes; ours have 16.
const MAX_CORRELATION: usize = 64;
/// Whatever is left of a caller's time, this much of it is the reply's.
const WAY_BACK: Duration = Duration::from_millis(50);

/// One request on its way from the `mqtt` thread to a worker.
pub(super) struct Job {
    service: usize,
    pub message: Message,
    pub reply_to: ReplyTo,
    received: Moment,
    pub deadline: Moment,
    // Its caller would have waited for longer than this agent's max_timeout.
    is_shortened: bool,
    pub publisher: Publisher,
    pub owed: Arc<Owed>,
    // What it is known again by, if it may come again.
    repeat: Option<Key>,
    // The memory that its body takes.
    share: Share,
}

/// The agent's settings and what it needs to work by them.
pub(super) struct Worker {
    settings: AgentSettings,
    live: Vec<LiveService>,
    upstream: Upstream,
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

impl Worker {
    pub fn new(settings: AgentSettings) -> Result<Worker> {
        let live = settings.services.iter().map(LiveService::new);
        let upstream = Upstream::new(settings.max_body_bytes);
        Ok(Worker {
            budget: Budget::new(settings.buffered_bytes()),
            live: live.collect::<Result<_>>()?,
            settings,
            upstream,
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

    pub fn id(&self) -> &Id {
        &self.settings.id
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.settings.services.iter()
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
        let service = &self.settings.services[number];
        let reply_to = match self.reply_to(service, &message) {
            Ok(reply_to) => reply_to,
            Err(why) => return self.drop_message(topic, &why),
        };
        let (allowed, flaw) = match self.allowed(service, &message, received) {
            Ok(allowed) => (allowed, None),
            Err(flaw) => (service.timeout, Some(flaw)),
        };
        let deadline = received + allowed.min(self.settings.max_timeout);
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
            is_shortened: allowed > self.settings.max_timeout,
            publisher: publisher.clone(),
            owed: Arc::clone(&self.owed),
            repeat: None,
            share: self.budget.share(),
        });
        if let Some(flaw) = flaw {
            let problem = Problem::new(StatusCode::BAD_REQUEST, Hop::Agent, flaw);
            return job.reply_problem(&problem, Shares::default(), Patience::None);
        }
        // What waits for a first that is running has a bound of its own.
        let Some(mut job) = self.unless_seen(job, Patience::None) else {
            return;
        };
        if !job.share.grow(size) {
            let limit = self.settings.buffered_bytes();
            let detail = format!(
                "there is no memory for this request while so many others are in hand (max_buffered_bytes = {limit} of the agent)"
            );
            return self.refuse(&job, &detail);
        }
        if let Err(job) = pools[number].submit(job) {
            let (workers, queue) = (service.workers, service.queue);
            let detail = format!(
                "all workers are busy and the queue is full (workers = {workers}, queue = {queue} of the agent)"
            );
            self.refuse(&job, &detail);
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

    fn refuse(&self, job: &Job, detail: &str) {
        log::warn!("{}: {detail}", job.message.topic);
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, Hop::Agent, detail);
        let ended = Ended::Failed(problem, Shares::default());
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
                let detail = "it was repeated too often while the first is running";
                let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, Hop::Agent, detail);
                let problem = problem.outcome_unknown();
                job.reply_problem(&problem, Shares::default(), patience);
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
                ReplyTo::checked(properties, topic, &self.settings, Form::Json)
            }
            (ServiceMode::Http { .. }, Some(topic)) => {
                if properties.correlation_data.is_none() {
                    return Err("it has no correlation data".into());
                }
                let method = properties.user("method").unwrap_or_default();
                let method = Method::from_bytes(method.as_bytes()).unwrap_or_default();
                ReplyTo::checked(properties, topic, &self.settings, Form::Http(method))
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
        let running = Running { worker: self, job };
        let executed = match &self.settings.services[job.service].mode {
            ServiceMode::Json { .. } => self.execute_json(job, left),
            ServiceMode::Http { path_prefix, allow } => {
                self.execute_http(job, path_prefix, allow, left)
            }
        };
        let shares = Shares {
            queue: begun_at.since(job.received),
            upstream: begun.elapsed(),
        };
        let ended = match executed {
            Ok(response) => Ended::Answered(response, shares),
            Err((asked, problem)) => {
                log::warn!(
                    "request: {} -> {} at the {}: {}",
                    excerpt(asked.as_bytes()),
                    problem.status.as_u16(),
                    problem.hop.as_str(),
                    excerpt(problem.detail.as_bytes())
                );
                Ended::Failed(problem, shares)
            }
        };
        self.end(job, &ended, Patience::UntilDeadline);
        drop(running);
    }

    fn execute_json(
        &self,
        job: &Job,
        left: Duration,
    ) -> std::result::Result<Response, (String, Problem)> {
        let payload = &job.message.payload;
        let id = job.message.properties.user(REQUEST_ID);
        let id = id.and_then(|id| HeaderValue::try_from(id).ok());
        let id = RequestId::given(id.as_ref());
        // Not the payload: what it holds is for the level info.
        let failed = |problem| (format!("{} ({})", job.message.topic, name(&id)), problem);
        self.check_size(payload).map_err(failed)?;
        if let Err(error) = serde_json::from_slice::<&RawValue>(payload) {
            let detail = format!("the request is not JSON: {error}");
            let problem = Problem::new(StatusCode::BAD_REQUEST, Hop::Agent, detail);
            return Err(failed(problem));
        }
        let mut request = Request::new(payload.clone());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.live[job.service].target.clone().unwrap_or_default();
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
        if let Some(id) = id.as_ref().and_then(RequestId::header) {
            request.headers_mut().insert(X_REQUEST_ID, id);
        }
        let answer = self.call(job, request, left).map_err(failed)?;
        let body = add_received(answer.body(), payload)
            .map_err(|bad| failed(not_json(&answer, &bad.to_string())))?;
        log::info!(
            "request: {} -> response: {} ({})",
            excerpt(payload),
            excerpt(&body),
            name(&id)
        );
        let mut response = Response::new(body);
        *response.status_mut() = answer.status();
        Ok(response)
    }

    fn execute_http(
        &self,
        job: &Job,
        path_prefix: &str,
        allow: &Allow,
        left: Duration,
    ) -> std::result::Result<Response, (String, Problem)> {
        let unread = |problem| (job.message.topic.clone(), problem);
        self.check_size(&job.message.payload).map_err(unread)?;
        let mut request = read_request(&job.message).map_err(|bad| {
            let detail = format!("the request can't be executed: {bad}");
            unread(Problem::new(bad.status, Hop::Agent, detail))
        })?;
        let id = RequestId::given(request.headers().get(X_REQUEST_ID));
        let asked = format!("{} {} ({})", request.method(), request.uri(), name(&id));
        let failed = |problem| (asked.clone(), problem);
        self.live[job.service]
            .check(&request, allow)
            .map_err(failed)?;
        let service = &self.settings.services[job.service];
        let target = match request.uri().path() {
            "*" => service.upstream.join(&format!("{path_prefix}/")),
            _ => service
                .upstream
                .join(&format!("{path_prefix}{}", request.uri())),
        };
        *request.uri_mut() = target.parse().map_err(|error| {
            let detail = format!("{target:?} is no URL: {error}");
            failed(Problem::new(StatusCode::BAD_REQUEST, Hop::Agent, detail))
        })?;
        let response = self.call(job, request, left).map_err(failed)?;
        log::info!(
            "request: {} -> response: {}, {} bytes",
            excerpt(asked.as_bytes()),
            response.status().as_u16(),
            response.body().len()
        );
        Ok(response)
    }

    fn check_size(&self, payload: &Bytes) -> std::result::Result<(), Problem> {
        let limit = self.settings.max_body_bytes;
        if payload.len() <= limit {
            return Ok(());
        }
        let detail =
            format!("the request is larger than {limit} bytes (max_body_bytes of the agent)");
        Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Hop::Agent,
            detail,
        ))
    }

    // A little less than the caller has left, so that the error of a slow upstream arrives before
    // the caller gives up.
    fn call(
        &self,
        job: &Job,
        request: Request,
        left: Duration,
    ) -> std::result::Result<Response, Problem> {
        let time = left - (left / 10).min(WAY_BACK);
        self.upstream.call(request, time).map_err(|error| {
            let mut problem = upstream_problem(&error);
            if problem.status == StatusCode::GATEWAY_TIMEOUT {
                problem.detail += &format!(" ({} ms)", time.as_millis());
                if job.is_shortened {
                    let limit = self.settings.max_timeout.as_millis();
                    problem.detail += &format!("; max_timeout_ms = {limit} of the agent is less than what the caller allows");
                }
            }
            problem
        })
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

fn name(id: &Option<RequestId>) -> &str {
    id.as_ref().map_or("-", RequestId::as_str)
}

// Forgets a request whose worker panics: its repeats would wait for ever.
struct Running<'a> {
    worker: &'a Worker,
    job: &'a Job,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.job.repeat
            && std::thread::panicking()
        {
            self.worker.repeats.abandon(key);
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

fn upstream_problem(error: &UpstreamError) -> Problem {
    let detail = error.to_string();
    let problem = |status| Problem::new(status, Hop::Upstream, detail);
    match error {
        UpstreamError::Unreachable(_) => problem(StatusCode::BAD_GATEWAY),
        UpstreamError::TimedOut | UpstreamError::Unfinished(_) => {
            problem(StatusCode::GATEWAY_TIMEOUT).outcome_unknown()
        }
        UpstreamError::TooLarge(_) | UpstreamError::Endless(_) | UpstreamError::Broken(_) => {
            problem(StatusCode::BAD_GATEWAY).outcome_unknown()
        }
    }
}

fn not_json(answer: &Response, why: &str) -> Problem {
    let status = answer.status().as_u16();
    let detail = format!("the upstream answered {status} with a body that can't be used: {why}");
    Problem::new(StatusCode::BAD_GATEWAY, Hop::Upstream, detail).outcome_unknown()
}
