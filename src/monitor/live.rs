//! Those who look on, and what they are told: server-sent events, each a line of JSON.
//!
//! While nobody looks, it costs the reading of a number or two. Who looks reads on the thread of its own
//! connection; a request only leaves words for it, and never waits. One that takes them too slowly misses
//! some.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Method, Uri};
use serde_json::{Value, json};

use super::trace::{Shares, Trace};
use crate::base::millis::millis;
use crate::base::process::unix_seconds;
use crate::base::threads::lock;
use crate::front::Exchange;
use crate::http::{Chunk, Problem, Source};

/// How many may look at a time.
pub const MAX_VIEWERS: usize = 16;
/// How many requests are shown one by one in a second, and how many failures beyond that. The others are
/// counted: a thousand moving dots say less than a number, and cost the requests their processor.
pub const SHOWN: u32 = 50;
/// How many bytes may wait for one who looks.
const WAITING: usize = 256 * 1024;
/// How often the state of all is told.
const STATE: Duration = Duration::from_secs(1);
/// The longest target and detail that are told, in bytes.
const LONGEST: usize = 512;

/// Who looks, and what they are shown.
#[derive(Default)]
pub struct Live {
    viewers: AtomicUsize,
    state: Mutex<State>,
    // What all who look are told once a second, and since when it holds.
    snapshot: Mutex<Option<(Instant, Bytes)>>,
}

#[derive(Default)]
struct State {
    queues: Vec<Arc<Queue>>,
    second: Option<Instant>,
    shown: u32,
    failures: u32,
    unshown: u64,
    last: u64,
    is_closed: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    woken: Condvar,
}

#[derive(Default)]
struct Waiting {
    events: Vec<u8>,
    is_closed: bool,
}

impl Live {
    /// How many look.
    pub fn viewers(&self) -> usize {
        self.viewers.load(Ordering::Relaxed)
    }

    /// How many requests were not shown one by one.
    pub fn unshown(&self) -> u64 {
        lock(&self.state).unshown
    }

    /// Somebody looks: is greeted, and told the state of all once a second, as an event stream (HTML,
    /// section 9.2). Returns nothing if there are too many who do, or if this is the end.
    pub fn watch(
        self: &Arc<Self>,
        hello: &Value,
        state: impl Fn() -> Value + Send + Sync + 'static,
    ) -> Option<Watching> {
        let mut shared = lock(&self.state);
        if shared.is_closed || shared.queues.len() >= MAX_VIEWERS {
            return None;
        }
        let queue = Arc::new(Queue::default());
        queue.put(&event("hello", hello));
        shared.queues.push(Arc::clone(&queue));
        self.viewers.store(shared.queues.len(), Ordering::Relaxed);
        Some(Watching {
            live: Arc::clone(self),
            queue,
            state: Box::new(state),
            told: Mutex::new(None),
        })
    }

    // Made once for all who look, outside what requests wait for.
    fn state_at(&self, now: Instant, state: &dyn Fn() -> Value) -> Bytes {
        let mut snapshot = lock(&self.snapshot);
        match &*snapshot {
            Some((since, bytes)) if now.saturating_duration_since(*since) < STATE / 2 => {
                bytes.clone()
            }
            _ => {
                let bytes = Bytes::from(event("state", &state()));
                *snapshot = Some((now, bytes.clone()));
                bytes
            }
        }
    }

    /// A request has begun. Returns its number, if it is shown.
    pub fn begun(&self, method: &Method, target: &Uri, trace: &Trace) -> Option<u64> {
        if self.viewers() == 0 {
            return None;
        }
        let mut state = lock(&self.state);
        state.look_at_the_clock(Instant::now());
        if state.shown >= SHOWN {
            return None;
        }
        state.shown += 1;
        state.last += 1;
        let mut told = asked(method.as_str(), &target.to_string(), trace);
        told["n"] = json!(state.last);
        state.tell(&event("begun", &told));
        Some(state.last)
    }

    /// A request has ended.
    pub(super) fn ended(&self, exchange: &Exchange<'_>, failure: Option<&Problem>, trace: &Trace) {
        if self.viewers() == 0 || trace.is_own && failure.is_none() {
            return;
        }
        let mut state = lock(&self.state);
        state.look_at_the_clock(Instant::now());
        let number = match trace.number {
            Some(number) => number,
            None if failure.is_some() && state.failures < SHOWN => {
                state.failures += 1;
                state.last += 1;
                state.last
            }
            None => {
                state.unshown += 1;
                return;
            }
        };
        let mut told = ended(exchange, failure, trace);
        told["n"] = json!(number);
        state.tell(&event("ended", &told));
    }

    /// Ends what all who look are told: nobody may look any more.
    pub fn close(&self) {
        lock(&self.state).is_closed = true;
        self.dismiss();
    }

    /// Ends what all who look are told; they may look again, if they still may.
    pub fn dismiss(&self) {
        let state = lock(&self.state);
        for queue in &state.queues {
            lock(&queue.waiting).is_closed = true;
            queue.woken.notify_all();
        }
    }
}

impl State {
    fn look_at_the_clock(&mut self, now: Instant) {
        if self.second.is_none_or(|since| now - since >= STATE) {
            self.second = Some(now);
            self.shown = 0;
            self.failures = 0;
        }
    }

    fn tell(&mut self, event: &[u8]) {
        let mut is_missed = false;
        for queue in &self.queues {
            is_missed |= !queue.put(event);
        }
        self.unshown += u64::from(is_missed);
    }
}

impl Queue {
    fn put(&self, event: &[u8]) -> bool {
        let mut waiting = lock(&self.waiting);
        let has_place = waiting.events.len() + event.len() <= WAITING;
        // One that is larger than all that may wait must not be missed for ever.
        let has_place = has_place || waiting.events.is_empty();
        if has_place {
            waiting.events.extend_from_slice(event);
            self.woken.notify_one();
        }
        has_place
    }
}

fn event(name: &str, data: &Value) -> Vec<u8> {
    format!("event: {name}\ndata: {data}\n\n").into_bytes()
}

fn asked(method: &str, target: &str, trace: &Trace) -> Value {
    json!({
        "id": trace.id.as_str(),
        "method": method,
        "target": beginning(target),
        "route": &*trace.route,
        "agent": trace.agent.as_ref().map(|id| id.as_str()),
        "time": unix_millis(),
    })
}

fn ended(exchange: &Exchange<'_>, failure: Option<&Problem>, trace: &Trace) -> Value {
    let asked_for = exchange
        .asked
        .map(|(method, target)| (method.as_str(), target.to_string()));
    let (method, target) = asked_for.unwrap_or(("-", "-".to_owned()));
    let mut told = asked(method, &target, trace);
    let took = Shares {
        total: exchange.took,
        away: None,
    };
    let shares = trace.shares.unwrap_or(took);
    let away = |share: fn(&super::trace::Away) -> Duration| {
        shares.away.as_ref().map(|away| millis(share(away)))
    };
    let more = json!({
        "status": exchange.response.status().as_u16(),
        "hop": failure.map_or(trace.hop, |problem| problem.hop).as_str(),
        "detail": failure.map(|problem| beginning(&problem.detail)),
        "cut": exchange.cut.map(|cut| cut.as_str()),
        "in": exchange.received,
        "out": exchange.sent,
        "ms": {
            "total": millis(exchange.took),
            "gateway": millis(shares.gateway()),
            "broker": away(|it| it.broker()),
            "queue": away(|it| it.queue),
            "upstream": away(|it| it.upstream),
        },
        "topic": trace.topic.as_ref().map(|topic| topic.as_str()),
        "inbox": trace.inbox.as_ref().map(|topic| topic.as_str()),
        "correlation": trace.correlation.map(|it| format!("{:032x}", u128::from_be_bytes(it.0))),
    });
    if let (Value::Object(told), Value::Object(more)) = (&mut told, more) {
        told.extend(more);
    }
    told
}

fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

/// Milliseconds since 1970.
pub fn unix_millis() -> u64 {
    (unix_seconds(SystemTime::now()) * 1000.0) as u64
}

/// One who looks. Dropping this is looking away.
pub struct Watching {
    live: Arc<Live>,
    queue: Arc<Queue>,
    state: Box<dyn Fn() -> Value + Send + Sync>,
    // When the state was told last.
    told: Mutex<Option<Instant>>,
}

impl Source for Watching {
    fn length(&self) -> Option<u64> {
        None
    }

    fn read(&self, _max: usize, patience: Duration) -> io::Result<Chunk> {
        let now = Instant::now();
        let is_due = {
            let mut told = lock(&self.told);
            let is_due = told.is_none_or(|told| now - told >= STATE);
            if is_due {
                *told = Some(now);
            }
            is_due
        };
        if is_due {
            let state = self.live.state_at(now, &*self.state);
            self.queue.put(&state);
        }
        let waiting = lock(&self.queue.waiting);
        let is_idle = |it: &mut Waiting| it.events.is_empty() && !it.is_closed;
        let woken = self
            .queue
            .woken
            .wait_timeout_while(waiting, patience, is_idle);
        let mut waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        let events = std::mem::take(&mut waiting.events);
        Ok(match (events.is_empty(), waiting.is_closed) {
            (false, _) => Chunk::Bytes(Bytes::from(events)),
            (true, true) => Chunk::End,
            (true, false) => Chunk::Nothing,
        })
    }

    fn cancel(&self) {
        lock(&self.queue.waiting).is_closed = true;
        self.queue.woken.notify_all();
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut state = lock(&self.live.state);
        state
            .queues
            .retain(|queue| !Arc::ptr_eq(queue, &self.queue));
        self.live
            .viewers
            .store(state.queues.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http::StatusCode;

    use super::*;
    use crate::http::{Body, Failure, RequestId, Response};

    fn trace(number: Option<u64>) -> Trace {
        let client = SocketAddr::from(([192, 0, 2, 1], 9)).ip();
        Trace {
            number,
            ..Trace::of_nothing(Some(RequestId::random()), client)
        }
    }

    fn end(live: &Live, number: Option<u64>, failure: Option<&Problem>) {
        let response: Response = http::Response::new(Body::Empty);
        let (method, target) = (Method::GET, Uri::from_static("/a?b"));
        let exchange = Exchange {
            peer: ([192, 0, 2, 1], 9).into(),
            asked: Some((&method, &target)),
            response: &response,
            received: 0,
            sent: 0,
            cut: None,
            took: Duration::from_micros(1500),
        };
        live.ended(&exchange, failure, &trace(number));
    }

    fn begin(live: &Live) -> Option<u64> {
        live.begun(&Method::GET, &Uri::from_static("/a?b"), &trace(None))
    }

    fn watch(live: &Arc<Live>) -> Option<Watching> {
        live.watch(&json!({"hello": true}), || json!({"state": true}))
    }

    fn read(watching: &Watching) -> String {
        match watching.read(usize::MAX, Duration::ZERO).unwrap() {
            Chunk::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            Chunk::Nothing => "nothing".into(),
            Chunk::End => "end".into(),
        }
    }

    #[test]
    fn who_looks_is_told_and_who_does_not_costs_nothing() {
        let live = Arc::new(Live::default());
        assert_eq!(begin(&live), None);
        let watching = watch(&live).unwrap();
        let hello =
            "event: hello\ndata: {\"hello\":true}\n\nevent: state\ndata: {\"state\":true}\n\n";
        assert_eq!(read(&watching), hello);
        assert_eq!(read(&watching), "nothing", "the state is not due again");
        let number = begin(&live);
        assert_eq!(number, Some(1));
        end(&live, number, None);
        let told = read(&watching);
        assert!(told.starts_with("event: begun\n"), "{told}");
        assert!(
            told.contains("event: ended\n") && told.contains("\"total\":1.5"),
            "{told}"
        );
        drop(watching);
        assert_eq!((live.viewers(), begin(&live)), (0, None));
    }

    #[test]
    fn of_many_some_are_shown_and_all_failures_that_there_is_place_for() {
        let live = Arc::new(Live::default());
        let watching = watch(&live).unwrap();
        read(&watching);
        let shown = (0..10 * SHOWN).filter(|_| begin(&live).is_some()).count();
        assert_eq!(shown, SHOWN as usize);
        end(&live, None, None);
        assert_eq!(live.unshown(), 1);
        read(&watching);
        let problem = Problem::from(Failure::NoAgent("x".into()));
        assert_eq!(problem.status, StatusCode::SERVICE_UNAVAILABLE);
        for _ in 0..2 * SHOWN {
            end(&live, None, Some(&problem));
        }
        assert_eq!(
            read(&watching).matches("event: ended").count(),
            SHOWN as usize
        );
        assert_eq!(live.unshown(), 1 + u64::from(SHOWN));
    }

    #[test]
    fn one_who_reads_nothing_fills_no_memory() {
        let live = Arc::new(Live::default());
        let watching = watch(&live).unwrap();
        let long = vec![b'x'; 1000];
        let taken = (0..10_000).filter(|_| watching.queue.put(&long)).count();
        assert!(taken * long.len() <= WAITING);
        read(&watching);
        assert!(
            watching.queue.put(&vec![b'x'; 2 * WAITING]),
            "nothing else waits"
        );
        assert!(!watching.queue.put(b"x"));
        read(&watching);
    }

    #[test]
    fn there_is_an_end() {
        let live = Arc::new(Live::default());
        let all: Vec<_> = (0..MAX_VIEWERS).map(|_| watch(&live).unwrap()).collect();
        assert!(watch(&live).is_none(), "too many");
        live.close();
        read(&all[0]);
        assert_eq!(read(&all[0]), "end");
        drop(all);
        assert!(watch(&live).is_none(), "it is the end");
    }
}
