//! The streams of one program, by correlation, and the thread that looks after their time.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::connections::Connections;
use super::flight::Flight;
use super::limits::{StreamLimits, TooMany};
use super::lingering::{Ended, Lingering};
use super::live::Stream;
use super::why::Why;
use crate::base::error::Result;
use crate::base::pool::{Pool, PoolOptions};
use crate::base::threads::{self, lock};
use crate::base::topic::{Topic, TopicFilter};
use crate::link::{Acknowledgement, Delivery, Publisher, Subscription, Way};
use crate::wire::stream::{Offer, Piece, STREAM, agent_at, is_for_streams, is_probe, probe};
use crate::wire::{Correlation, Message, Qos};

/// A thread that had nothing to send for this long ends.
const IDLE_THREAD: Duration = Duration::from_secs(10);
/// How often it is looked what is due, while there are streams.
const TICK: Duration = Duration::from_millis(50);
/// How long a message to somebody whose stream is not known may wait to be sent.
const ANSWER: Duration = Duration::from_secs(5);

/// The longest piece, in bytes.
const PIECE_BYTES: usize = 32 * 1024;

type Cutter = Box<dyn Fn() + Send + Sync>;
type Work = Box<dyn FnOnce() + Send>;

/// All streams of a program.
pub struct Streams {
    limits: StreamLimits,
    topic: Topic,
    own_topic: Arc<str>,
    flight: Arc<Flight>,
    connections: Connections,
    // Those that send bodies on. A program's other threads are not for that: a thousand event
    // streams must not leave a short request without one.
    threads: Pool<Work>,
    state: Mutex<State>,
    // There is a stream to look after, or it is time to stop.
    woken: Condvar,
}

#[derive(Default)]
struct State {
    streams: HashMap<Correlation, Arc<Stream>>,
    lingering: Lingering,
    // What ends a request that has no stream yet, while it is executed.
    cutters: HashMap<Correlation, Cutter>,
    is_stopped: bool,
}

/// A stream of the table. Dropping it takes it off, and gives it up unless it is over.
pub struct Opened {
    streams: Arc<Streams>,
    stream: Arc<Stream>,
}

impl Streams {
    /// Makes an empty table. Messages for its streams come on `topic`; all of them together take no
    /// more than about `buffered_bytes` of memory.
    pub fn new(topic: Topic, limits: StreamLimits, buffered_bytes: usize) -> Arc<Streams> {
        let flight = Flight::new(limits.window as u64, PIECE_BYTES, buffered_bytes);
        Arc::new(Streams {
            own_topic: topic.as_str().into(),
            topic,
            flight: Arc::new(flight),
            limits,
            connections: Connections::default(),
            threads: Pool::new(
                PoolOptions {
                    name: "stream",
                    // One for each direction.
                    max_workers: 2 * limits.max_streams,
                    queue: 0,
                    stack_kib: 128,
                    idle: IDLE_THREAD,
                },
                |work: Work| work(),
            ),
            state: Mutex::default(),
            woken: Condvar::new(),
        })
    }

    /// What first messages say of it.
    pub fn offer(&self) -> Offer {
        Offer {
            topic: self.topic.clone(),
            window: self.flight.first_window(),
        }
    }

    /// Their bounds.
    pub fn limits(&self) -> &StreamLimits {
        &self.limits
    }

    /// What to subscribe to. A broker may deny it: then there are no streams, and all else goes on.
    pub fn subscription(&self) -> Option<Subscription> {
        (self.limits.max_streams > 0).then(|| Subscription {
            filter: TopicFilter::from(&self.topic),
            qos: Qos::AtLeastOnce,
            group: None,
            retained: false,
            is_needed: false,
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        lock(&self.state).streams.len()
    }

    /// Whether messages for its streams reach this program on a connection: one to itself has come back.
    pub fn is_open(&self, connection: usize) -> bool {
        self.connections.is_open(connection)
    }

    /// Opens one for a request.
    ///
    /// Errors: there are [`TooMany`].
    pub fn open(
        self: &Arc<Self>,
        correlation: Correlation,
        publisher: &Publisher,
    ) -> std::result::Result<Opened, TooMany> {
        let stream = Arc::new(Stream::new(
            correlation,
            Arc::clone(&self.own_topic),
            Arc::clone(publisher),
            Arc::clone(&self.flight),
            self.limits.idle,
            Instant::now(),
        ));
        let mut state = lock(&self.state);
        if state.streams.len() >= self.limits.max_streams {
            return Err(TooMany(self.limits.max_streams));
        }
        state.streams.insert(correlation, Arc::clone(&stream));
        if state.streams.len() == 1 {
            self.woken.notify_all();
        }
        drop(state);
        Ok(Opened {
            streams: Arc::clone(self),
            stream,
        })
    }

    /// Runs something on a thread of its own, which is joined when the streams are stopped. Returns
    /// whether there was one.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) -> bool {
        self.threads.submit(Box::new(work)).is_ok()
    }

    /// While what is returned lives, an abort of a request that has no stream yet ends it so. `cutter`
    /// must neither wait nor use these streams.
    pub fn ends(
        self: &Arc<Self>,
        correlation: Correlation,
        cutter: impl Fn() + Send + Sync + 'static,
    ) -> Endable {
        let cutter = Box::new(cutter);
        lock(&self.state).cutters.insert(correlation, cutter);
        Endable {
            streams: Arc::clone(self),
            correlation,
        }
    }

    /// Says to those at these topics that nobody waits for a request any more.
    pub fn give_up(&self, publisher: &Publisher, correlation: Correlation, topics: &[String]) {
        let why = Why::ClientGone.to_string();
        for topic in topics {
            let abort = Piece::Abort { why: why.clone() };
            let message = abort.write(topic, correlation);
            let _ = publisher.publish(message, Some(Instant::now() + ANSWER));
        }
    }

    /// The stream of a request, if there is one.
    pub fn find(&self, correlation: Correlation) -> Option<Arc<Stream>> {
        lock(&self.state).streams.get(&correlation).cloned()
    }

    /// Takes a message for a stream. Returns whether it was one. Of a stream that `is_awaited` the pieces
    /// have overtaken the message that tells of it. Runs on the mqtt thread.
    pub fn take(
        &self,
        way: &Way,
        message: &Message,
        is_awaited: impl Fn(Correlation) -> bool,
        now: Instant,
    ) -> bool {
        if message.topic != *self.own_topic {
            return false;
        }
        if is_probe(message) {
            self.connections.opened(way.number);
            return true;
        }
        let (correlation, piece) = match Piece::read(message) {
            Ok(read) => read,
            Err(bad) => {
                log::debug!("dropped a message on {}: {bad}", self.own_topic);
                return true;
            }
        };
        match self.find(correlation) {
            Some(stream) => {
                // The first one of an agent that takes a body says where to.
                if stream.peer().is_none()
                    && let Some(topic) = message.properties.user(STREAM)
                    && agent_at(topic).is_some()
                {
                    stream.set_peer(topic);
                }
                stream.take(piece, now);
            }
            // They are sent again.
            None if is_awaited(correlation) => {}
            None => self.take_unknown(&way.any, correlation, &piece, message),
        }
        if self.flight.has_place_again() {
            self.all().iter().for_each(Stream::go_on);
        }
        true
    }

    // Of a stream that ended well, or that nobody here knows.
    fn take_unknown(
        &self,
        publisher: &Publisher,
        correlation: Correlation,
        piece: &Piece,
        message: &Message,
    ) {
        let lingering = lock(&self.state).lingering.find(correlation).cloned();
        let (topic, answer) = match (piece, lingering) {
            (Piece::End { .. } | Piece::Data { .. }, Some(ended)) => {
                let length = ended.length;
                (ended.peer, Piece::Ended { length })
            }
            (Piece::Abort { .. }, _) => {
                // Under the lock: a request that is over is not there any more, and its thread may be
                // at the next one.
                let state = lock(&self.state);
                return state.cutters.get(&correlation).iter().for_each(|cut| cut());
            }
            (Piece::Ended { .. }, _) | (_, Some(_)) => return,
            (_, None) => {
                // An empty message elsewhere could mean that an agent has left.
                let topic = message.properties.user(STREAM);
                let Some(topic) = topic.filter(|topic| is_for_streams(topic)) else {
                    return;
                };
                let why = Why::Unknown.to_string();
                (topic.to_owned(), Piece::Abort { why })
            }
        };
        let _ = publisher.publish(
            answer.write(&topic, correlation),
            Some(Instant::now() + ANSWER),
        );
    }

    /// Takes what the broker said to a message. Returns whether that was one of a stream.
    pub fn acknowledged(&self, acknowledgement: &Acknowledgement) -> bool {
        let correlation = acknowledgement.correlation_data.as_deref();
        let stream = correlation.and_then(Correlation::from_bytes);
        let Some(stream) = stream.and_then(|known| self.find(known)) else {
            return acknowledgement.topic == *self.own_topic;
        };
        if stream.peer().as_ref() != Some(&acknowledgement.topic) {
            return false;
        }
        if let Delivery::Refused(reason) = &acknowledgement.delivery {
            let topic = &acknowledgement.topic;
            log::error!("the broker refused a message on {topic}: {reason}; see its access list");
            stream.abort(Why::Denied);
        }
        true
    }

    /// There is a connection: what was on its way on the old one is sent again.
    pub fn connected(&self, way: &Way, now: Instant) {
        self.connections.made(way.number);
        if self.limits.max_streams > 0 {
            let _ = way.own.publish(probe(&self.topic), None);
        }
        self.send_again(now);
    }

    /// It is lost. What was on its way is sent again if there is another one.
    pub fn disconnected(&self, connection: usize, now: Instant) {
        self.connections.lost(connection);
        if self.connections.is_any() {
            self.send_again(now);
        }
    }

    fn send_again(&self, now: Instant) {
        self.flight.forget_round_trip();
        for stream in self.all() {
            stream.reconnected(now);
        }
    }

    /// Gives up those whose peer is so.
    pub fn abort_where(&self, why: Why, is_so: impl Fn(&str) -> bool) {
        for stream in self.all() {
            if stream.peer().is_some_and(|peer| is_so(&peer)) {
                stream.abort(why);
            }
        }
    }

    /// Gives up all of them, and ends their threads, except for the one that watches them.
    ///
    /// Errors: a thread does not end in time ([`Error::Thread`](crate::base::error::Error::Thread)).
    pub fn stop(&self, deadline: Instant) -> Result<()> {
        lock(&self.state).is_stopped = true;
        self.woken.notify_all();
        for stream in self.all() {
            stream.abort(Why::Stopping);
        }
        self.threads.join(deadline)
    }

    /// Starts the thread that looks after their time, and calls `each` whenever it does. It ends with
    /// [`Streams::stop`].
    ///
    /// Errors: the system has no thread left ([`Error::System`](crate::base::error::Error::System)).
    pub fn watch(
        self: &Arc<Self>,
        each: impl Fn(Instant) + Send + 'static,
    ) -> Result<JoinHandle<()>> {
        let streams = Arc::clone(self);
        threads::spawn("streams", 128, move || {
            while streams.wait() {
                let is_connected = streams.connections.is_any();
                let now = Instant::now();
                each(now);
                for stream in streams.all() {
                    stream.tick(now, is_connected);
                }
            }
        })
    }

    // Until there may be something to do; false: it is time to stop.
    fn wait(&self) -> bool {
        let mut state = lock(&self.state);
        while state.streams.is_empty() && !state.is_stopped {
            let woken = self.woken.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        if !state.is_stopped {
            let woken = self.woken.wait_timeout(state, TICK);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        !state.is_stopped
    }

    fn all(&self) -> Vec<Arc<Stream>> {
        lock(&self.state).streams.values().cloned().collect()
    }

    fn close(&self, stream: &Arc<Stream>) {
        stream.abort(Why::ClientGone);
        let now = Instant::now();
        let mut state = lock(&self.state);
        state.streams.remove(&stream.correlation());
        if stream.aborted().is_none()
            && let Some((peer, length)) = stream.received()
        {
            let correlation = stream.correlation();
            let ended = Ended {
                correlation,
                peer,
                length,
            };
            state.lingering.add(ended, now);
        }
    }
}

/// A request that an abort ends. Dropping it takes that back.
pub struct Endable {
    streams: Arc<Streams>,
    correlation: Correlation,
}

impl Drop for Endable {
    fn drop(&mut self) {
        lock(&self.streams.state).cutters.remove(&self.correlation);
    }
}

impl Opened {
    /// The stream.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.streams.close(&self.stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Memory;

    const OWN: &str = "recado/gateways/g/streams";
    const NAME: Correlation = Correlation([7; 16]);

    fn streams() -> Arc<Streams> {
        let topic = Topic::new(OWN).unwrap();
        Streams::new(topic, StreamLimits::default(), 1_000_000)
    }

    fn asked_from(piece: Piece, topic: &str) -> Message {
        let mut message = piece.write(OWN, NAME);
        message.properties.user.push((STREAM.into(), topic.into()));
        message
    }

    const NOT_STREAMS: [&str; 6] = [
        "recado/agents/a/presence",
        "recado/agents/a/request",
        "recado/gateways/g/response",
        "recado/agents/a/streams/",
        "recado/agents/a/b/streams/1",
        "home/lamp",
    ];

    #[test]
    fn a_stranger_is_answered_where_streams_are_and_nowhere_else() {
        let (sent, publisher, _) = Memory::start();
        let question = || Piece::Data {
            offset: 0,
            bytes: bytes::Bytes::new(),
        };
        for topic in NOT_STREAMS {
            let message = asked_from(question(), topic);
            assert!(streams().take(&Way::only(&publisher), &message, |_| false, Instant::now()));
            assert!(sent.is_empty(), "{topic}");
        }
        for topic in ["recado/agents/a/streams/1", "recado/gateways/h/streams"] {
            let message = asked_from(question(), topic);
            streams().take(&Way::only(&publisher), &message, |_| true, Instant::now());
            assert!(sent.is_empty(), "its first message is still to come");
            streams().take(&Way::only(&publisher), &message, |_| false, Instant::now());
            let answer = sent.try_recv().unwrap();
            assert_eq!(answer.topic, topic);
            assert!(matches!(
                Piece::read(&answer),
                Ok((NAME, Piece::Abort { .. }))
            ));
        }
    }

    #[test]
    fn only_an_agent_says_where_a_body_goes() {
        let (sent, publisher, _) = Memory::start();
        let streams = streams();
        let opened = streams.open(NAME, &publisher).unwrap();
        opened.stream().begin(0);
        let credit = || Piece::Credit { got: 0, window: 10 };
        for topic in NOT_STREAMS.into_iter().chain([OWN]) {
            let message = asked_from(credit(), topic);
            streams.take(&Way::only(&publisher), &message, |_| false, Instant::now());
            assert_eq!(opened.stream().peer(), None, "{topic}");
        }
        let agent = "recado/agents/a/streams/1";
        streams.take(
            &Way::only(&publisher),
            &asked_from(credit(), agent),
            |_| false,
            Instant::now(),
        );
        assert_eq!(opened.stream().peer().as_deref(), Some(agent));
        opened.stream().write(vec![1; 10].into()).unwrap();
        assert_eq!(sent.try_recv().unwrap().topic, agent);
    }
}
