//! The agent: MQTT requests in, calls to the upstream, replies out.
//!
//! The `mqtt` thread only sorts requests into a bounded pool; the workers check the deadline,
//! call the upstream and publish. It opens no port: all it needs is a way out to the broker.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use serde_json::value::RawValue;

use crate::config::{AgentSettings, Service};
use crate::error::{Error, Result};
use crate::gateway::{packet_limit, random_id};
use crate::http::problem::Problem;
use crate::http::upstream::{Upstream, UpstreamError};
use crate::http::{Request, Response};
use crate::link::{Link, LinkEvent, LinkOptions, PublishError, Publisher, Subscription};
use crate::logging::excerpt;
use crate::message::{
    self, ERROR, Hop, JSON, Message, PROBLEM_JSON, Properties, Qos, STATUS, add_received,
    legacy_error, time_left,
};
use crate::pool::{Pool, PoolOptions};
use crate::threads::lock;
use crate::topic::{Topic, TopicFilter};

/// How many replies may wait to be written to the broker.
const QUEUE: usize = 1024;
/// A worker that had nothing to do for this long ends.
const IDLE_WORKER: Duration = Duration::from_secs(10);
/// How long the broker may take to confirm that no more requests come.
const UNSUBSCRIBE: Duration = Duration::from_millis(500);
/// No request for this long after that means that none is on its way any more.
const QUIET: Duration = Duration::from_millis(200);

/// A running agent.
pub struct Agent {
    link: Link,
    pool: Arc<Pool<Job>>,
    worker: Arc<Worker>,
}

/// One request on its way from the `mqtt` thread to a worker.
struct Job {
    service: usize,
    message: Message,
    reply_to: ReplyTo,
    deadline: Instant,
    publisher: Publisher,
}

/// Where a request is answered.
struct ReplyTo {
    topic: String,
    correlation: Option<Bytes>,
    // It named a Response Topic, so it reads properties. Otherwise it speaks MQTT 3.1.1.
    modern: bool,
}

impl Agent {
    /// Starts the connection to the broker. Neither broker nor upstream need be there yet.
    ///
    /// Errors: what [`Link::start`] returns, or a service that can't work ([`Error::Usage`]).
    pub fn start(settings: AgentSettings) -> Result<Agent> {
        let subscriptions = settings.services.iter().map(subscription).collect();
        let options = LinkOptions {
            broker: settings.broker.clone(),
            // Two agents may have the same id by mistake; with the same client id they would
            // throw each other out for ever.
            client_id: format!("recado-agent-{}-{}", settings.id, random_id()),
            session_expiry: Duration::ZERO,
            keep_alive: settings.keep_alive,
            max_packet_bytes: packet_limit(settings.max_body_bytes),
            queue: QUEUE,
            manual_acknowledgement: false,
            subscriptions,
        };
        let pool_options = PoolOptions {
            name: "worker",
            max_workers: settings.workers,
            queue: settings.queue,
            stack_kib: 256,
            idle: IDLE_WORKER,
        };
        let worker = Arc::new(Worker::new(settings)?);
        let (intake, owned) = (Arc::clone(&worker), Arc::clone(&worker));
        let pool = Arc::new(Pool::new(pool_options, move |job| worker.work(job)));
        let for_link = Arc::clone(&pool);
        let link = Link::start(options, move |publisher, event| match event {
            LinkEvent::Ready => log::info!("ready as agent {}", intake.settings.id),
            LinkEvent::Message(message) => intake.take(publisher, &for_link, message),
            _ => {}
        })?;
        Ok(Agent {
            link,
            pool,
            worker: owned,
        })
    }

    /// Whether it is connected and subscribed; if not, why.
    pub fn ready(&self) -> std::result::Result<(), String> {
        self.link.publisher().ready()
    }

    /// Stops in order: take no more requests, answer those in hand, say goodbye to the broker,
    /// join every thread. Takes as long as the callers of what is in hand still wait, and a second
    /// at most beyond that.
    ///
    /// Errors: a thread did not end in time; the rest is stopped all the same.
    pub fn stop(self) -> Result<()> {
        self.link.unsubscribe(Instant::now() + UNSUBSCRIBE);
        self.wait_for_the_last();
        let last_deadline = lock(&self.worker.taken).last_deadline;
        let drained = last_deadline.max(Instant::now()) + Duration::from_millis(300);
        let worked = self.pool.join(drained);
        let left = self.link.stop(drained);
        worked.and(left)
    }
}

impl Agent {
    // A broker may send what it had queued for this agent after it has confirmed UNSUBSCRIBE
    // (MQTT 5, section 3.10.4), and nothing says which message is the last.
    fn wait_for_the_last(&self) {
        let limit = Instant::now() + UNSUBSCRIBE;
        loop {
            let quiet_at = lock(&self.worker.taken).last_arrival + QUIET;
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

fn subscription(service: &Service) -> Subscription {
    Subscription {
        filter: TopicFilter::from(&service.request_topic),
        qos: Qos::AtLeastOnce,
        group: Some(service.name.clone()),
        retained: false,
    }
}

struct Worker {
    settings: AgentSettings,
    // The URL of each service, in the order of the settings.
    targets: Vec<Uri>,
    upstream: Upstream,
    dropped: AtomicU64,
    taken: Mutex<Taken>,
}

// What the stop must know of the requests taken so far.
struct Taken {
    last_arrival: Instant,
    last_deadline: Instant,
}

impl Worker {
    fn new(settings: AgentSettings) -> Result<Worker> {
        let targets = settings
            .services
            .iter()
            .map(|service| {
                let url = settings.upstream.join(&service.path);
                let malformed = |error| Error::Usage(format!("{url:?} is no URL: {error}"));
                url.parse::<Uri>().map_err(malformed)
            })
            .collect::<Result<_>>()?;
        let upstream = Upstream::new(settings.workers, settings.max_body_bytes);
        Ok(Worker {
            settings,
            targets,
            upstream,
            dropped: AtomicU64::new(0),
            taken: Mutex::new(Taken {
                last_arrival: Instant::now(),
                last_deadline: Instant::now(),
            }),
        })
    }

    // Runs on the mqtt thread.
    fn take(&self, publisher: &Publisher, pool: &Pool<Job>, message: Message) {
        let received = Instant::now();
        let topic = message.topic.as_str();
        let services = self.settings.services.iter();
        let Some(service) = services
            .clone()
            .position(|service| service.request_topic.as_str() == topic)
        else {
            return self.drop_message(topic, "no service expects it");
        };
        if message.retain {
            return self.drop_message(topic, "it is retained, so it is from before");
        }
        let reply_to = match self.reply_to(service, &message.properties) {
            Ok(reply_to) => reply_to,
            Err(why) => return self.drop_message(topic, &why),
        };
        let stated = time_left(&message.properties).unwrap_or(self.settings.timeout);
        let deadline = received + stated.min(self.settings.max_timeout);
        {
            let mut taken = lock(&self.taken);
            taken.last_arrival = received;
            taken.last_deadline = deadline.max(taken.last_deadline);
        }
        let job = Job {
            service,
            message,
            reply_to,
            deadline,
            publisher: publisher.clone(),
        };
        if let Err(job) = pool.submit(job) {
            let detail = "all workers are busy and the queue is full";
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, Hop::Agent, detail);
            log::warn!("{}: {detail}", job.message.topic);
            self.reply_problem(&job, &problem);
        }
    }

    // A reply must go to a topic that is meant for replies; otherwise whoever can publish a
    // request could make the agent publish anywhere, even requests to itself.
    fn reply_to(
        &self,
        service: usize,
        properties: &Properties,
    ) -> std::result::Result<ReplyTo, String> {
        let Some(topic) = &properties.response_topic else {
            return Ok(ReplyTo {
                topic: self.settings.services[service].response_topic.to_string(),
                correlation: None,
                modern: false,
            });
        };
        let topic = Topic::new(topic.as_str())
            .map_err(|error| format!("its response topic can't be used: {error}"))?;
        let prefixes = &self.settings.reply_prefixes;
        if !prefixes
            .iter()
            .any(|prefix| topic.as_str().starts_with(prefix))
        {
            return Err(format!(
                "its response topic {topic} does not begin with any of reply_prefixes {prefixes:?}"
            ));
        }
        let mut services = self.settings.services.iter();
        if services.any(|service| service.request_topic == topic) {
            return Err(format!("its response topic {topic} is a request topic"));
        }
        Ok(ReplyTo {
            topic: topic.to_string(),
            correlation: properties.correlation_data.clone(),
            modern: true,
        })
    }

    fn work(&self, job: Job) {
        let left = job.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return self.drop_message(&job.message.topic, "its caller has stopped waiting");
        }
        match self.execute(&job, left) {
            Ok((status, body)) => {
                log::info!(
                    "request: {} -> response: {}",
                    excerpt(&job.message.payload),
                    excerpt(&body)
                );
                self.reply(&job, status, None, body);
            }
            Err(problem) => {
                log::warn!(
                    "request: {} -> {} at the {}: {}",
                    excerpt(&job.message.payload),
                    problem.status.as_u16(),
                    problem.hop.as_str(),
                    excerpt(problem.detail.as_bytes())
                );
                self.reply_problem(&job, &problem);
            }
        }
    }

    fn execute(
        &self,
        job: &Job,
        left: Duration,
    ) -> std::result::Result<(StatusCode, Bytes), Problem> {
        let payload = &job.message.payload;
        if payload.len() > self.settings.max_body_bytes {
            let limit = self.settings.max_body_bytes;
            let detail = format!("the request is larger than {limit} bytes");
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                Hop::Agent,
                detail,
            ));
        }
        if let Err(error) = serde_json::from_slice::<&RawValue>(payload) {
            let detail = format!("the request is not JSON: {error}");
            return Err(Problem::new(StatusCode::BAD_REQUEST, Hop::Agent, detail));
        }
        let answer = self
            .upstream
            .call(self.post(job), upstream_time(left))
            .map_err(|error| upstream_problem(&error))?;
        let status = answer.status();
        add_received(answer.body(), payload)
            .map(|body| (status, body))
            .map_err(|bad| not_json(&answer, &bad.to_string()))
    }

    fn post(&self, job: &Job) -> Request {
        let mut request = Request::new(job.message.payload.clone());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.targets[job.service].clone();
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
        request
    }

    fn reply_problem(&self, job: &Job, problem: &Problem) {
        let body = match job.reply_to.modern {
            true => problem.document(None),
            false => legacy_error(&problem.detail, &job.message.payload),
        };
        self.reply(job, problem.status, Some(problem.hop), body);
    }

    fn reply(&self, job: &Job, status: StatusCode, error: Option<Hop>, body: Bytes) {
        let mut properties = Properties::default();
        if job.reply_to.modern {
            let content_type = if error.is_some() { PROBLEM_JSON } else { JSON };
            properties.content_type = Some(content_type.to_owned());
            properties.correlation_data = job.reply_to.correlation.clone();
            properties.user = vec![(STATUS.to_owned(), status.as_str().to_owned())];
            if let Some(hop) = error {
                properties
                    .user
                    .push((ERROR.to_owned(), hop.as_str().to_owned()));
            }
            let left = job.deadline.saturating_duration_since(Instant::now());
            // At least a second: zero would let the broker drop it at once.
            properties.message_expiry_interval = Some(message::whole_seconds(left).max(1));
        }
        let published = job.publisher.publish(Message {
            topic: job.reply_to.topic.clone(),
            payload: body,
            qos: job.message.qos.min(Qos::AtLeastOnce),
            properties,
            ..Message::default()
        });
        match published {
            Ok(()) => {}
            // The caller must not wait in vain for what can't be carried. A problem always fits.
            Err(PublishError::TooLarge { .. }) if error.is_none() => {
                let detail = "the reply is larger than a packet may be";
                let problem = Problem::new(StatusCode::BAD_GATEWAY, Hop::Agent, detail);
                self.reply_problem(job, &problem.outcome_unknown());
            }
            Err(why) => log::warn!("the reply to {} is lost: {why}", job.reply_to.topic),
        }
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

// A little less than the caller has left, so that the error of a slow upstream arrives before
// the caller gives up.
fn upstream_time(left: Duration) -> Duration {
    left - (left / 10).min(Duration::from_millis(50))
}

fn upstream_problem(error: &UpstreamError) -> Problem {
    let detail = error.to_string();
    let problem = |status| Problem::new(status, Hop::Upstream, detail);
    match error {
        UpstreamError::Unreachable(_) => problem(StatusCode::BAD_GATEWAY),
        UpstreamError::TimedOut => problem(StatusCode::GATEWAY_TIMEOUT).outcome_unknown(),
        UpstreamError::TooLarge(_) | UpstreamError::Broken(_) => {
            problem(StatusCode::BAD_GATEWAY).outcome_unknown()
        }
    }
}

fn not_json(answer: &Response, why: &str) -> Problem {
    let status = answer.status().as_u16();
    let detail = format!("the upstream answered {status} with a body that can't be used: {why}");
    Problem::new(StatusCode::BAD_GATEWAY, Hop::Upstream, detail).outcome_unknown()
}
