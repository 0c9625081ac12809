//! What becomes of requests, without a broker: tests of the intake.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Receiver;
use http::StatusCode;

use super::intake::Intake;
use super::job::Job;
use super::outcome::{Ended, Spent};
use super::reply::Patience;
use super::settings::AgentSettings;
use crate::base::clock::Moment;
use crate::base::pool::{Pool, PoolOptions};
use crate::base::topic::Topic;
use crate::http::problem::Outcome;
use crate::http::{Body, Chunk, Problem, Source};
use crate::link::{Memory, PublishError, Way};
use crate::stream::{StreamLimits, Streams};
use crate::wire::reply::{STATUS, error};
use crate::wire::stream::Offer;
use crate::wire::{Hop, Message, Properties, Qos};

const INBOX: &str = "recado/gateways/g/response";

/// An agent whose workers hand over what they get instead of working.
struct Bench {
    intake: Intake,
    pools: Vec<Pool<Box<Job>>>,
    jobs: Receiver<Box<Job>>,
    sent: Receiver<Message>,
    way: Way,
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
        way: Way::only(&publisher),
        memory,
    }
}

impl Bench {
    fn take(&self, message: &Message) {
        let message = message.clone();
        self.intake.take(&self.way, &self.pools, message, start());
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
    bench.intake.catch_up(&bench.way.own, start());
    assert_eq!(bench.reply(), ("400".into(), Some(Hop::Agent)));
    bench.memory.refuse(Some(PublishError::Busy));
    bench.take(&request(&[]));
    bench.memory.refuse(None);
    let late = start() + Duration::from_secs(60);
    bench.intake.catch_up(&bench.way.own, late);
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
    bench.intake.catch_up(&bench.way.own, start());
    assert_eq!(bench.reply(), ("503".into(), Some(Hop::Agent)));
}

struct Endless;

impl Source for Endless {
    fn length(&self) -> Option<u64> {
        None
    }

    fn read(&self, _: usize, _: Duration) -> io::Result<Chunk> {
        Ok(Chunk::Nothing)
    }

    fn cancel(&self) {}
}

#[test]
fn an_answer_without_a_stream_does_not_look_as_if_nothing_was_executed() {
    let bench = bench();
    bench.take(&request(&[("deadline-ms", "1000")]));
    let mut job = bench.job();
    job.offer = Some(Offer {
        topic: Topic::new("recado/gateways/g/streams").unwrap(),
        window: 1000,
    });
    let limits = StreamLimits {
        max_streams: 0,
        ..StreamLimits::default()
    };
    let topic = Topic::new("recado/agents/shed/streams/1").unwrap();
    job.streams = Streams::new(topic, limits, 1000);
    let response = crate::http::Response::new(Body::Stream(Arc::new(Endless)));
    let ended = Ended::Answered(response, Spent::default());
    job.end(&ended, Patience::None);
    let replies: Vec<Message> = bench.sent.try_iter().collect();
    let problem = Problem::from_agent(StatusCode::OK, Hop::Agent, &replies[0].payload);
    assert_eq!(problem.outcome, Outcome::Unknown, "{}", problem.detail);
    assert!(problem.detail.contains("max_streams"), "{}", problem.detail);
    assert_eq!(replies[0].properties.user(STATUS), Some("503"));
}
