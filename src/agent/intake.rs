//! Taking requests: who may ask, by when, whether it came before, and how each of them ends.

use std::collections::hash_map::RandomState;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::age::Ages;
use super::executor::Executor;
use super::figures::Figures;
use super::job::Job;
use super::outcome::{Asked, Ended, Executed, Spent, log_end};
use super::repeats::{Key, Repeats, Seen};
use super::reply::{Owed, Patience, ReplyTo};
use super::settings::AgentSettings;
use super::terms::{allowed, is_here, offer};
use bytes::Bytes;

use crate::base::budget::Budget;
use crate::base::clock::Moment;
use crate::base::error::Result;
use crate::base::logging::excerpt;
use crate::base::pool::Pool;
use crate::base::threads::{StopSignal, lock};
use crate::base::topic::Id;
use crate::http::Failure;
use crate::link::{Brokers, Publisher, Way};
use crate::stream::Streams;
use crate::wire::Message;
use crate::wire::deadline::Sent;

/// How long it may take to see whether an upstream takes connections.
const CHECK: Duration = Duration::from_secs(3);

/// What becomes of each request.
pub(super) struct Intake {
    id: Id,
    executor: RwLock<Arc<Executor>>,
    budget: Arc<Budget>,
    figures: Arc<Figures>,
    repeats: Repeats<Box<Job>>,
    // Gateways repeat through another broker what was on its way when one was lost.
    may_all_come_again: bool,
    seeds: [RandomState; 2],
    ages: Mutex<Ages>,
    owed: Arc<Owed>,
    streams: Arc<Streams>,
    taken: Mutex<Taken>,
}

// What the stop must know of the requests taken so far.
struct Taken {
    last_arrival: Instant,
    last_deadline: Instant,
}

impl Intake {
    pub fn new(settings: AgentSettings, streams: Arc<Streams>) -> Result<Intake> {
        Ok(Intake {
            streams,
            id: settings.id.clone(),
            may_all_come_again: settings.brokers.are_used_at_once(),
            budget: Budget::new(settings.buffered_bytes()),
            figures: Arc::new(Figures::new(&settings.services)),
            executor: RwLock::new(Arc::new(Executor::new(settings)?)),
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

    // What requests are executed by; each by the one that there was when a worker took it up.
    fn executor(&self) -> Arc<Executor> {
        let executor = self.executor.read();
        Arc::clone(&executor.unwrap_or_else(PoisonError::into_inner))
    }

    /// Goes on with other settings. Returns the keys that can't change so.
    ///
    /// Errors: a service can't work; then nothing has changed.
    pub fn reload(&self, wished: AgentSettings) -> Result<Vec<String>> {
        let (next, fixed) = self.executor().settings().reloaded(wished);
        let executor = Arc::new(Executor::new(next)?);
        self.figures.reloaded(&executor.settings().services);
        let own = self.executor.write();
        *own.unwrap_or_else(PoisonError::into_inner) = executor;
        Ok(fixed)
    }

    /// The brokers, and who this agent is there.
    pub fn brokers(&self) -> Brokers {
        self.executor().settings().brokers.clone()
    }

    /// What is counted.
    pub fn figures(&self) -> &Arc<Figures> {
        &self.figures
    }

    /// Tries whether those upstreams take connections that have not been called for a while.
    pub fn check_upstreams(&self, every: Duration, stop: &StopSignal) {
        let executor = self.executor();
        for service in 0..executor.settings().services.len() {
            if stop.is_stopped() || !self.figures.is_unseen(service, every, Moment::now()) {
                continue;
            }
            let reached = executor.reach(service, every.min(CHECK));
            self.figures.reached(service, reached, Moment::now());
        }
    }

    pub fn id(&self) -> &Id {
        &self.id
    }

    /// What requests are as old as; see [`Ages::beat`].
    pub fn beat(&self, now: Moment) {
        lock(&self.ages).beat(now);
    }

    /// Sends replies that found no place before.
    pub fn catch_up(&self, publisher: &Publisher, now: Moment) {
        self.owed.catch_up(publisher, now);
    }

    pub fn last_arrival(&self) -> Instant {
        lock(&self.taken).last_arrival
    }

    pub fn last_deadline(&self) -> Instant {
        lock(&self.taken).last_deadline
    }

    /// Takes a message that came now. Runs on the mqtt thread.
    pub fn take(&self, way: &Way, pools: &[Pool<Box<Job>>], message: Message, now: Moment) {
        let (topic, size) = (message.topic.clone(), message.size());
        let (job, flaw) = match self.job(way, message, now) {
            Ok(job) => job,
            Err(why) => return self.drop_message(&topic, &why),
        };
        {
            let mut taken = lock(&self.taken);
            taken.last_arrival = Instant::now();
            taken.last_deadline = job.deadline.instant().max(taken.last_deadline);
        }
        if let Some(failure) = flaw {
            return self.answer_unexecuted(&job, &failure, Patience::None);
        }
        // What waits for a first that is running has a bound of its own.
        let Some(mut job) = self.unless_seen(job, Patience::None) else {
            return;
        };
        if !job.memory.grow(size) {
            let limit = self.executor().settings().buffered_bytes();
            let detail = format!(
                "there is no memory for this request while so many others are in hand (max_buffered_bytes = {limit} of the agent)"
            );
            return self.refuse(&job, detail);
        }
        if let Err(job) = pools[job.service].submit(job) {
            let executor = self.executor();
            let service = &executor.settings().services[job.service];
            let (workers, queue) = (service.workers, service.queue);
            let detail = format!(
                "all workers are busy and the queue is full (workers = {workers}, queue = {queue} of the agent)"
            );
            self.refuse(&job, detail);
        }
    }

    // What is to be done for a message, and why it can't be, if somebody is to be told.
    //
    // Errors: nobody is; why.
    fn job(
        &self,
        way: &Way,
        message: Message,
        now: Moment,
    ) -> std::result::Result<(Box<Job>, Option<Failure>), String> {
        let executor = self.executor();
        let settings = executor.settings();
        let mut services = settings.services.iter();
        let number = services
            .position(|service| service.request_topic.as_str() == message.topic)
            .ok_or("no service expects it")?;
        if message.retain {
            return Err("it is retained, so it is from before".into());
        }
        let service = &settings.services[number];
        let reply_to = ReplyTo::of(&message, service, settings)?;
        let age = |sent: Option<Sent<'_>>| lock(&self.ages).of(sent, now);
        let (allowed, flaw) = match allowed(service, &message.properties, age) {
            Ok(allowed) => (allowed, None),
            Err(flaw) => (service.timeout, Some(Failure::Unreadable(flaw))),
        };
        let has_begun = self.may_all_come_again && is_here(&message.properties, &self.streams);
        let flaw = has_begun.then(begun).or(flaw);
        let offer = match has_begun {
            true => None,
            false => offer(&message.properties, &self.streams, way.number, settings)?,
        };
        let max_timeout = settings.max_timeout;
        let job = Job {
            service: number,
            message,
            reply_to,
            received: now,
            deadline: now + allowed.min(max_timeout),
            is_shortened: allowed > max_timeout,
            publisher: Arc::clone(&way.any),
            owed: Arc::clone(&self.owed),
            shared_by: service.name.as_ref().map(|_| self.id().clone()),
            repeat: None,
            memory: self.budget.share(),
            streams: Arc::clone(&self.streams),
            offer,
            opened: OnceLock::new(),
        };
        Ok((Box::new(job), flaw))
    }

    fn refuse(&self, job: &Job, detail: String) {
        self.figures.refused.add();
        log::warn!("{}: {detail}", job.message.topic);
        let ended = Ended::Failed(Failure::AgentBusy(detail), Spent::default());
        self.end(job, &ended, Patience::None);
    }

    // Answers a request that nobody executes, for a reason of its own.
    fn answer_unexecuted(&self, job: &Job, failure: &Failure, patience: Patience) {
        self.figures.dropped.add();
        let (topic, words) = (&job.message.topic, failure.to_string());
        log::info!("{topic}: {}", excerpt(words.as_bytes()));
        job.reply_failure(failure, Spent::default(), patience);
    }

    // A request that came before gets the reply of the first, now or when there is one.
    fn unless_seen(&self, mut job: Box<Job>, patience: Patience) -> Option<Box<Job>> {
        let Some(key) = Key::of(&job.message, &self.seeds, self.may_all_come_again) else {
            return Some(job);
        };
        job.repeat = Some(key.clone());
        let bytes = job.message.size();
        match self.repeats.see(&key, job, bytes, Instant::now()) {
            Seen::New(job) => return Some(job),
            Seen::Waiting => {}
            Seen::TooMany(job) => {
                self.answer_unexecuted(&job, &Failure::TooManyRepeats, patience);
            }
            Seen::Before(job, ended) => job.end(&ended, patience),
        }
        None
    }

    // Answers a request, and those that came again while it ran.
    fn end(&self, job: &Job, ended: &Ended, patience: Patience) {
        job.end(ended, patience);
        let Some(key) = &job.repeat else {
            return;
        };
        if ended.is_stream() {
            let same = job.message.properties.correlation_data.as_ref();
            return self.go_on_with_repeats(key, same, Moment::now());
        }
        for waiting in self.repeats.end(key, Some(ended), Instant::now()) {
            waiting.end(ended, patience);
        }
    }

    // The first is of no use for those who repeated it: the next of them is the first now. But whoever asked
    // the very same, which was delivered twice, is answered by the first: its answer is the stream with
    // this correlation.
    fn go_on_with_repeats(&self, key: &Key, answered: Option<&Bytes>, now: Moment) {
        for next in self.repeats.end(key, None, Instant::now()) {
            let correlation = next.message.properties.correlation_data.as_ref();
            if answered.is_some() && correlation == answered {
                next.reply_failure(&begun(), Spent::default(), Patience::None);
                continue;
            }
            if let Some(next) = self.unless_seen(next, Patience::UntilDeadline) {
                self.work(&next, now);
            }
        }
    }

    /// Executes a request and answers it, unless its time is up.
    pub fn work(&self, job: &Job, now: Moment) {
        let begun = Instant::now();
        let left = job.deadline.since(now);
        if left.is_zero() {
            self.drop_message(&job.message.topic, "its caller has stopped waiting");
            // Who repeated it may wait for longer.
            if let Some(key) = &job.repeat {
                self.go_on_with_repeats(key, None, now);
            }
            return;
        }
        let running = Running::begin(self, job);
        let executed = self.executor().execute(job, left);
        let spent = Spent {
            queue: now.since(job.received),
            upstream: begun.elapsed(),
        };
        self.note(job, &executed, spent);
        let ended = match executed {
            Ok(executed) => Ended::Answered(executed.response, spent),
            Err((_, failure)) => Ended::Failed(failure, spent),
        };
        self.end(job, &ended, Patience::UntilDeadline);
        drop(running);
    }

    fn drop_message(&self, topic: &str, why: &str) {
        self.figures.dropped.add();
        log::debug!(
            "dropped a request on {}: {}",
            excerpt(topic.as_bytes()),
            excerpt(why.as_bytes())
        );
    }

    // Counts and logs how a request ended.
    fn note(
        &self,
        job: &Job,
        executed: &std::result::Result<Executed, (Asked, Failure)>,
        spent: Spent,
    ) {
        let now = Moment::now();
        self.figures.requests.add();
        let ended = executed
            .as_ref()
            .map(|_| ())
            .map_err(|(_, failure)| failure);
        self.figures.called(job.service, ended, now);
        if ended.is_err() {
            self.figures.failed(now);
        }
        log_end(executed, spent);
    }
}

// What is said to a request that comes once more while its answer is on its way as a stream: the message
// that tells of it can't be sent again.
fn begun() -> Failure {
    Failure::ReplyStalled("its answer has begun already, as a stream".into())
}

// Forgets a request whose worker panics: its repeats would wait for ever.
struct Running<'a> {
    intake: &'a Intake,
    job: &'a Job,
}

impl<'a> Running<'a> {
    fn begin(intake: &'a Intake, job: &'a Job) -> Running<'a> {
        intake.figures.in_work.fetch_add(1, Ordering::Relaxed);
        Running { intake, job }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.intake.figures.in_work.fetch_sub(1, Ordering::Relaxed);
        if let Some(key) = &self.job.repeat
            && std::thread::panicking()
        {
            self.intake.repeats.abandon(key);
        }
    }
}
