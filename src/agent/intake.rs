//! Taking requests: who may ask, by when, whether it came before, and how each of them ends.

use std::collections::hash_map::RandomState;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use super::age::Ages;
use super::executor::Executor;
use super::job::Job;
use super::outcome::{Ended, Spent};
use super::repeats::{Key, Repeats, Seen};
use super::reply::{Owed, Patience, ReplyTo};
use super::settings::{AgentSettings, Service};
use super::terms::{allowed, offer};
use crate::base::budget::Budget;
use crate::base::clock::Moment;
use crate::base::error::Result;
use crate::base::logging::excerpt;
use crate::base::pool::Pool;
use crate::base::threads::lock;
use crate::base::topic::Id;
use crate::http::Failure;
use crate::link::Publisher;
use crate::stream::Streams;
use crate::wire::Message;
use crate::wire::deadline::Sent;

/// What becomes of each request.
pub(super) struct Intake {
    executor: Executor,
    budget: Arc<Budget>,
    dropped: AtomicU64,
    repeats: Repeats<Box<Job>>,
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
    pub fn take(
        &self,
        publisher: &Publisher,
        pools: &[Pool<Box<Job>>],
        message: Message,
        now: Moment,
    ) {
        let (topic, size) = (message.topic.clone(), message.size());
        let (job, flaw) = match self.job(publisher, message, now) {
            Ok(job) => job,
            Err(why) => return self.drop_message(&topic, &why),
        };
        {
            let mut taken = lock(&self.taken);
            taken.last_arrival = Instant::now();
            taken.last_deadline = job.deadline.instant().max(taken.last_deadline);
        }
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
        if let Err(job) = pools[job.service].submit(job) {
            let service = &self.settings().services[job.service];
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
        publisher: &Publisher,
        message: Message,
        now: Moment,
    ) -> std::result::Result<(Box<Job>, Option<String>), String> {
        let mut services = self.services();
        let number = services
            .position(|service| service.request_topic.as_str() == message.topic)
            .ok_or("no service expects it")?;
        if message.retain {
            return Err("it is retained, so it is from before".into());
        }
        let service = &self.settings().services[number];
        let reply_to = ReplyTo::of(&message, service, self.settings())?;
        let age = |sent: Option<Sent<'_>>| lock(&self.ages).of(sent, now);
        let (allowed, flaw) = match allowed(service, &message.properties, age) {
            Ok(allowed) => (allowed, None),
            Err(flaw) => (service.timeout, Some(flaw)),
        };
        let offer = offer(&message.properties, &self.streams, self.settings())?;
        let max_timeout = self.settings().max_timeout;
        let job = Job {
            service: number,
            message,
            reply_to,
            received: now,
            deadline: now + allowed.min(max_timeout),
            is_shortened: allowed > max_timeout,
            publisher: Arc::clone(publisher),
            owed: Arc::clone(&self.owed),
            repeat: None,
            memory: self.budget.share(),
            streams: Arc::clone(&self.streams),
            offer,
            opened: OnceLock::new(),
        };
        Ok((Box::new(job), flaw))
    }

    fn refuse(&self, job: &Job, detail: String) {
        log::warn!("{}: {detail}", job.message.topic);
        let ended = Ended::Failed(Failure::AgentBusy(detail), Spent::default());
        self.end(job, &ended, Patience::None);
    }

    // A request that came before gets the reply of the first, now or when there is one.
    fn unless_seen(&self, mut job: Box<Job>, patience: Patience) -> Option<Box<Job>> {
        let Some(key) = Key::of(&job.message, &self.seeds) else {
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
        let Some(key) = &job.repeat else {
            return;
        };
        if ended.is_stream() {
            return self.go_on_with_repeats(key, Moment::now());
        }
        for waiting in self.repeats.end(key, Some(ended), Instant::now()) {
            waiting.end(ended, patience);
        }
    }

    // The first is of no use for those who repeated it: the next of them is the first now.
    fn go_on_with_repeats(&self, key: &Key, now: Moment) {
        let waiting = self.repeats.end(key, None, Instant::now());
        for next in waiting.into_iter().collect::<Vec<_>>() {
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
                self.go_on_with_repeats(key, now);
            }
            return;
        }
        let running = Running { intake: self, job };
        let executed = self.executor.execute(job, left);
        let spent = Spent {
            queue: now.since(job.received),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use crossbeam_channel::Receiver;

    use super::*;
    use crate::base::pool::PoolOptions;
    use crate::base::topic::Topic;
    use crate::link::{Memory, PublishError};
    use crate::stream::StreamLimits;
    use crate::wire::reply::{STATUS, error};
    use crate::wire::{Hop, Properties, Qos};

    const INBOX: &str = "recado/gateways/g/response";

    /// An agent whose workers hand over what they get instead of working.
    struct Bench {
        intake: Intake,
        pools: Vec<Pool<Box<Job>>>,
        jobs: Receiver<Box<Job>>,
        sent: Receiver<Message>,
        publisher: Publisher,
        memory: Arc<Memory>,
    }

    fn start() -> Moment {
        Moment::at(Duration::from_secs(1000))
    }

    fn bench() -> Bench {
        let (sent, publisher, memory) = Memory::start();
        let (put, jobs) = crossbeam_channel::unbounded();
        let topic = Topic::new("recado/agents/shed/streams/1").unwrap();
        let streams = Streams::new(topic, StreamLimits::default(), 1000);
        let pool = |_| {
            let options = PoolOptions {
                name: "test",
                max_workers: 1,
                queue: 1000,
                stack_kib: 64,
                idle: Duration::from_secs(60),
            };
            let put = put.clone();
            Pool::new(options, move |job| put.send(job).unwrap())
        };
        Bench {
            intake: Intake::new(AgentSettings::example(), streams).unwrap(),
            pools: (0..2).map(pool).collect(),
            jobs,
            sent,
            publisher,
            memory,
        }
    }

    impl Bench {
        fn take(&self, message: &Message) {
            let (publisher, message) = (&self.publisher, message.clone());
            self.intake.take(publisher, &self.pools, message, start());
        }

        fn job(&self) -> Box<Job> {
            self.jobs.recv_timeout(Duration::from_secs(30)).unwrap()
        }

        /// The status and the hop of the only reply.
        fn reply(&self) -> (String, Option<Hop>) {
            let replies: Vec<Message> = self.sent.try_iter().collect();
            let [reply] = replies.try_into().unwrap();
            assert_eq!(reply.topic, INBOX);
            let properties = &reply.properties;
            let status = properties.user(STATUS).unwrap().to_owned();
            (status, error(properties).unwrap())
        }

        fn is_silent(&self) -> bool {
            self.sent.is_empty() && self.jobs.is_empty()
        }
    }

    fn request(user: &[(&str, &str)]) -> Message {
        let own = [("v", "1"), ("method", "GET"), ("target", "/")];
        let user = own.iter().chain(user);
        Message {
            topic: "recado/agents/shed/request".into(),
            properties: Properties {
                response_topic: Some(INBOX.into()),
                correlation_data: Some(Bytes::from_static(b"0123456789abcdef")),
                user: user
                    .map(|(name, value)| ((*name).into(), (*value).into()))
                    .collect(),
                ..Properties::default()
            },
            ..Message::default()
        }
    }

    #[test]
    fn what_nobody_can_be_told_of_is_dropped() {
        let bench = bench();
        let good = request(&[("deadline-ms", "3000")]);
        let mut elsewhere = good.clone();
        elsewhere.topic = "recado/agents/other/request".into();
        let mut old = good.clone();
        old.retain = true;
        let mut anonymous = good.clone();
        anonymous.properties.correlation_data = None;
        let mut hijack = good.clone();
        hijack.properties.response_topic = Some("recado/agents/shed/request".into());
        for bad in [elsewhere, old, anonymous, hijack] {
            bench.take(&bad);
            assert!(bench.is_silent(), "{bad:?}");
        }
        bench.take(&good);
        assert_eq!(bench.job().deadline, start() + Duration::from_secs(3));
    }

    #[test]
    fn what_can_not_be_executed_is_answered() {
        let bench = bench();
        let mut long = request(&[("deadline-ms", "1")]);
        long.properties.correlation_data = Some(vec![1; 65].into());
        for bad in [request(&[]), request(&[("deadline-ms", "soon")]), long] {
            bench.take(&bad);
            assert_eq!(bench.reply(), ("400".into(), Some(Hop::Agent)), "{bad:?}");
        }
        let mut large = request(&[("deadline-ms", "1000")]);
        large.payload = vec![0; 2000].into();
        bench.take(&large);
        assert_eq!(bench.reply(), ("503".into(), Some(Hop::Agent)), "no memory");
        assert!(bench.jobs.is_empty());
    }

    #[test]
    fn a_request_that_comes_again_is_executed_once() {
        let bench = bench();
        let mut message = request(&[("deadline-ms", "1000")]);
        message.qos = Qos::AtLeastOnce;
        bench.take(&message);
        let first = bench.job();
        bench.take(&message);
        assert!(bench.is_silent(), "it waits for the first");
        // Nothing listens there: not executed, so it may be tried again.
        bench.intake.work(&first, start());
        let replies: Vec<Message> = bench.sent.try_iter().collect();
        assert_eq!(replies.len(), 2);
        assert_eq!(replies[0], replies[1]);
        bench.take(&message);
        bench.job();
    }

    #[test]
    fn whose_time_is_up_is_not_executed() {
        let bench = bench();
        let mut message = request(&[("deadline-ms", "1000")]);
        message.qos = Qos::AtLeastOnce;
        bench.take(&message);
        let job = bench.job();
        bench.intake.work(&job, start() + Duration::from_secs(1));
        assert!(bench.is_silent());
        bench.take(&message);
        bench.job();
    }

    #[test]
    fn an_error_that_finds_no_place_is_sent_later() {
        let bench = bench();
        bench.memory.refuse(Some(PublishError::Busy));
        bench.take(&request(&[]));
        assert!(bench.is_silent());
        bench.memory.refuse(None);
        bench.intake.catch_up(&bench.publisher, start());
        assert_eq!(bench.reply(), ("400".into(), Some(Hop::Agent)));
        bench.memory.refuse(Some(PublishError::Busy));
        bench.take(&request(&[]));
        bench.memory.refuse(None);
        let late = start() + Duration::from_secs(60);
        bench.intake.catch_up(&bench.publisher, late);
        assert!(bench.is_silent(), "nobody waits for it any more");
    }

    #[test]
    fn an_answer_that_finds_no_place_is_an_error_that_gateways_understand() {
        let bench = bench();
        bench.take(&request(&[("deadline-ms", "1000")]));
        let job = bench.job();
        bench.memory.refuse(Some(PublishError::Busy));
        let response = crate::http::Response::new("large".into());
        let ended = Ended::Answered(response, Spent::default());
        job.end(&ended, Patience::UntilDeadline);
        bench.memory.refuse(None);
        bench.intake.catch_up(&bench.publisher, start());
        assert_eq!(bench.reply(), ("503".into(), Some(Hop::Agent)));
    }
}
