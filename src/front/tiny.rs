//! The other front, on tiny_http. The only file that names `tiny_http`.
//!
//! Good for a port that only friends reach: api_2's, and api_1's with `--front tiny_http`. What
//! it does not defend against is listed in docs/dependencies.md; two of its faults are cured
//! here, by a doorbell thread that connects to the server itself. It can leave a connection
//! without a thread until the next connection comes, so after each new client there are some that
//! do nothing else. And its accept loop ends for good on the first error, or panics, so now and
//! then one asks for an answer; if none comes, a new server is built on the same listener.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use http::{HeaderName, HeaderValue, Method, Uri, Version, header};
use socket2::SockRef;

use super::handler::{Client, Cut, Exchange, Front, Handler};
use super::listen::{connect, wake};
use super::options::HttpLimits;
use crate::base::error::{Error, Result};
use crate::base::pool::{Pool, PoolOptions};
use crate::base::threads::{self, StopSignal, StopTrigger, lock};
use crate::http::bad_request::BadRequest;
use crate::http::{Failure, Problem, Request, RequestId, Response, has_body};

/// The pause before each ring, which bounds how many there are in a second.
const RING_PAUSE: Duration = Duration::from_millis(2);
/// Rings for each new client. The connection that a ring sets free belongs to a new client, so
/// with more than one the rings reach all of them.
const RINGS_PER_PEER: usize = 2;
/// Rings that may be owed at a time, and clients that are remembered as not new.
const MAX_RINGS: usize = 1024;
/// The pause before a new server is built after an accept error.
const REBUILD_PAUSE: Duration = Duration::from_millis(50);
/// How often the doorbell asks for an answer when there is nothing else to do.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// How long that answer may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a server that accepts no more is still looked at after its last request, and how often.
const RETIRED_FOR: Duration = Duration::from_secs(60);
const RETIRED_POLL: Duration = Duration::from_millis(20);
/// How long to wait for a worker before looking again.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// A running server.
pub struct Tiny {
    address: SocketAddr,
    receive: JoinHandle<()>,
    doorbell: JoinHandle<()>,
    trigger: StopTrigger,
    server: Arc<Mutex<Arc<tiny_http::Server>>>,
    pool: Arc<Pool<tiny_http::Request>>,
}

/// Starts serving on a listener that the caller has bound. Of `limits` it keeps the number of
/// requests at a time and the size of bodies; tiny_http bounds nothing else.
///
/// Errors: no thread, or the listener is unusable ([`Error::System`]).
pub fn start(listener: TcpListener, limits: HttpLimits, handler: impl Handler) -> Result<Tiny> {
    let unusable = |source| Error::System {
        action: "prepare a listener",
        source,
    };
    let address = listener.local_addr().map_err(unusable)?;
    // Accepted sockets inherit both. Without the first an answer takes 40 ms; the second keeps a
    // client that does not read from holding a worker for ever.
    let socket = SockRef::from(&listener);
    socket.set_tcp_nodelay(true).map_err(unusable)?;
    socket
        .set_write_timeout(Some(limits.body_timeout))
        .map_err(unusable)?;
    let server = Arc::new(Mutex::new(Arc::new(build(&listener).map_err(unusable)?)));
    let options = PoolOptions {
        name: "http",
        max_workers: limits.max_connections,
        queue: 0,
        stack_kib: 256,
        idle: Duration::from_secs(10),
    };
    let pool = Arc::new(Pool::new(options, move |request| {
        answer(request, &handler, limits.whole_bytes());
    }));
    let (trigger, stop) = threads::stop_signal();
    let (ring, rings) = crossbeam_channel::bounded(MAX_RINGS);
    let doorbell = Doorbell {
        rings,
        address,
        server: Arc::clone(&server),
        check: format!("/{}", RequestId::random()),
        busy: Arc::new(AtomicBool::new(false)),
        deaf: Arc::new(AtomicBool::new(false)),
        stop: stop.clone(),
    };
    let receiver = ReceiveLoop {
        listener,
        server: Arc::clone(&server),
        stop,
        pool: Arc::clone(&pool),
        ring,
        check: doorbell.check.clone(),
        busy: Arc::clone(&doorbell.busy),
        deaf: Arc::clone(&doorbell.deaf),
    };
    let doorbell = threads::spawn("doorbell", 64, move || doorbell.run())?;
    let receive = threads::spawn("receive", 128, move || receiver.run())?;
    Ok(Tiny {
        address,
        receive,
        doorbell,
        trigger,
        server,
        pool,
    })
}

impl Front for Tiny {
    fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops. Threads of tiny_http's own that wait for the next request of an idle connection
    /// are not joined: it has no way to end them. They hold no request.
    fn stop(self: Box<Self>, deadline: Instant) -> Result<()> {
        self.trigger.stop();
        // In this order: the loop looks at the stop signal again before it waits again.
        lock(&self.server).unblock();
        let received = threads::join_until(self.receive, deadline);
        let rung = threads::join_until(self.doorbell, deadline);
        let served = self.pool.join(deadline);
        received.and(served).and(rung)
    }
}

fn build(listener: &TcpListener) -> std::io::Result<tiny_http::Server> {
    let clone = listener.try_clone()?;
    tiny_http::Server::from_listener(clone, None).map_err(std::io::Error::other)
}

struct ReceiveLoop {
    listener: TcpListener,
    // Replaced after an accept error, and shared with who stops it.
    server: Arc<Mutex<Arc<tiny_http::Server>>>,
    stop: StopSignal,
    pool: Arc<Pool<tiny_http::Request>>,
    ring: Sender<()>,
    // The path of the doorbell's own question.
    check: String,
    // All workers are busy, so no answer can be expected now.
    busy: Arc<AtomicBool>,
    // The doorbell got no answer.
    deaf: Arc<AtomicBool>,
}

impl ReceiveLoop {
    fn run(&self) {
        let mut known = HashSet::new();
        let mut retired = Vec::new();
        while !self.stop.is_stopped() {
            let server = Arc::clone(&lock(&self.server));
            let failure = match self.receive(&server, &mut retired) {
                Ok(Some(request)) => {
                    self.dispatch(request, &mut known);
                    None
                }
                Ok(None) => None,
                Err(_) if self.stop.is_stopped() => break,
                Err(error) => Some(error.to_string()),
            };
            let deaf = self.deaf.swap(false, Ordering::SeqCst);
            let failure = failure.or(deaf.then(|| "no answer to a connection".into()));
            if let Some(reason) = failure {
                log::error!("cannot accept connections: {reason}; trying again");
                retired.push((server, Instant::now()));
                self.rebuild();
            }
        }
        // What they have received already is still answered.
        retired.push((Arc::clone(&lock(&self.server)), Instant::now()));
        for (server, _) in retired {
            while let Ok(Some(request)) = server.try_recv() {
                self.dispatch(request, &mut known);
            }
        }
    }

    // The connections of a server that accepts no more live on, and so do their requests.
    fn receive(
        &self,
        server: &tiny_http::Server,
        retired: &mut Vec<(Arc<tiny_http::Server>, Instant)>,
    ) -> std::io::Result<Option<tiny_http::Request>> {
        if retired.is_empty() {
            return server.recv().map(Some);
        }
        retired.retain(|(_, last_used)| last_used.elapsed() < RETIRED_FOR);
        for (old, last_used) in retired {
            if let Ok(Some(request)) = old.try_recv() {
                *last_used = Instant::now();
                return Ok(Some(request));
            }
        }
        server.recv_timeout(RETIRED_POLL)
    }

    fn rebuild(&self) {
        while !self.stop.sleep(REBUILD_PAUSE) {
            if let Ok(rebuilt) = build(&self.listener) {
                *lock(&self.server) = Arc::new(rebuilt);
                return;
            }
        }
    }

    fn dispatch(&self, request: tiny_http::Request, known: &mut HashSet<SocketAddr>) {
        if request.url() == self.check {
            send(request, &Response::default());
            return;
        }
        if let Some(peer) = request.remote_addr() {
            if known.len() >= MAX_RINGS {
                known.clear();
            }
            if known.insert(*peer) {
                for _ in 0..RINGS_PER_PEER {
                    let _ = self.ring.try_send(());
                }
            }
        }
        // With all workers busy the others wait, in tiny_http's queue: to refuse one here could
        // block, since tiny_http reads the rest of a body before it lets go of a request.
        let mut waiting = self.pool.submit(request);
        while let Err(request) = waiting {
            if self.pool.is_closed() {
                break;
            }
            self.busy.store(true, Ordering::SeqCst);
            std::thread::sleep(BUSY_PAUSE);
            waiting = self.pool.submit(request);
        }
        self.busy.store(false, Ordering::SeqCst);
    }
}

struct Doorbell {
    rings: Receiver<()>,
    address: SocketAddr,
    server: Arc<Mutex<Arc<tiny_http::Server>>>,
    check: String,
    busy: Arc<AtomicBool>,
    deaf: Arc<AtomicBool>,
    stop: StopSignal,
}

impl Doorbell {
    fn run(&self) {
        while !self.stop.is_stopped() {
            match self.rings.recv_timeout(CHECK_EVERY) {
                Ok(()) => {
                    std::thread::sleep(RING_PAUSE);
                    wake(self.address);
                }
                Err(RecvTimeoutError::Timeout) => {
                    if !self.is_answered() && !self.is_answered() {
                        self.deaf.store(true, Ordering::SeqCst);
                        lock(&self.server).unblock();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    // Asked twice, since it could be this very connection that is left without a thread. Only
    // silence counts: without a descriptor left to connect with, nothing is known.
    fn is_answered(&self) -> bool {
        let Ok(mut stream) = connect(self.address) else {
            return true;
        };
        if self.busy.load(Ordering::SeqCst) {
            return true;
        }
        let request = format!("GET {} HTTP/1.0\r\n\r\n", self.check);
        let asked = stream
            .set_read_timeout(Some(CHECK_TIMEOUT))
            .and_then(|()| stream.write_all(request.as_bytes()));
        asked.is_ok() && matches!(stream.read(&mut [0; 16]), Ok(1..))
    }
}

fn answer(mut request: tiny_http::Request, handler: &dyn Handler, max_body_bytes: usize) {
    let peer = request
        .remote_addr()
        .copied()
        .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
    let begun = Instant::now();
    let mut asked = None;
    let mut received = 0;
    let response = match convert(&mut request, max_body_bytes) {
        Ok(converted) => {
            let client = Client {
                peer,
                connection: None,
            };
            asked = Some((converted.method().clone(), converted.uri().clone()));
            received = converted.body().len() as u64;
            handler.handle(converted, &client)
        }
        Err(bad) => Problem::from(Failure::from(bad)).response(&RequestId::random()),
    };
    let sent = send(request, &response);
    handler.ended(&Exchange {
        peer,
        asked: asked.as_ref().map(|(method, uri)| (method, uri)),
        response: &response,
        received,
        sent: sent.unwrap_or(0),
        cut: sent.is_none().then_some(Cut::Client),
        took: begun.elapsed(),
    });
}

fn convert(
    request: &mut tiny_http::Request,
    max_body_bytes: usize,
) -> std::result::Result<Request, BadRequest> {
    let bad = BadRequest::new;
    let mut converted = Request::default();
    *converted.method_mut() = Method::from_bytes(request.method().as_str().as_bytes())
        .map_err(|_| bad("the method is not a token"))?;
    *converted.uri_mut() = request
        .url()
        .parse::<Uri>()
        .map_err(|_| bad("the target is malformed"))?;
    *converted.version_mut() = match (request.http_version().0, request.http_version().1) {
        (1, 0) => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    for field in request.headers() {
        let name = HeaderName::from_bytes(field.field.as_str().as_str().as_bytes())
            .map_err(|_| bad("a header name is malformed"))?;
        let value = HeaderValue::from_bytes(field.value.as_str().as_bytes())
            .map_err(|_| bad("a header value is malformed"))?;
        converted.headers_mut().append(name, value);
    }
    let too_large = BadRequest::body_over(max_body_bytes);
    if request
        .body_length()
        .is_some_and(|length| length > max_body_bytes)
    {
        return Err(too_large);
    }
    // To it, what asks for an upgrade has a body without an end.
    let asks_upgrade = |value: &HeaderValue| {
        let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
        text.contains("upgrade")
    };
    let mut options = converted.headers().get_all(header::CONNECTION).iter();
    let most = match options.any(asks_upgrade) {
        true => request.body_length().unwrap_or(0),
        false => max_body_bytes + 1,
    };
    let mut body = Vec::new();
    request
        .as_reader()
        .take(most as u64)
        .read_to_end(&mut body)
        .map_err(|_| bad("the body ended early"))?;
    if body.len() > max_body_bytes {
        return Err(too_large);
    }
    *converted.body_mut() = body.into();
    Ok(converted)
}

// Returns how many bytes of the body were sent; `None`: the client is gone.
fn send(request: tiny_http::Request, response: &Response) -> Option<u64> {
    let is_sent = has_body(response.status()) && *request.method() != tiny_http::Method::Head;
    let headers = response
        .headers()
        .iter()
        .filter(|(name, _)| {
            // tiny_http frames the answer itself.
            **name != header::CONTENT_LENGTH
                && **name != header::TRANSFER_ENCODING
                && **name != header::CONNECTION
        })
        .filter_map(|(name, value)| {
            tiny_http::Header::from_bytes(name.as_str().as_bytes(), value.as_bytes()).ok()
        })
        .collect();
    // It would announce the length of a body that it then, rightly, does not send.
    let body = match has_body(response.status()) {
        true => response.body().to_bytes(),
        false => Bytes::new(),
    };
    let length = body.len();
    let sent = tiny_http::Response::new(
        tiny_http::StatusCode(response.status().as_u16()),
        headers,
        std::io::Cursor::new(body),
        Some(length),
        None,
    )
    // Above 32 KiB it would send chunks.
    .with_chunked_threshold(usize::MAX);
    let responded = request.respond(sent);
    responded
        .ok()
        .map(|()| if is_sent { length as u64 } else { 0 })
}
