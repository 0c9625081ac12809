//! The HTTP client that the agent calls its upstream with. Nothing outside this file and its folder
//! names `ureq`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::response::Parts;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use ureq::AsSendBody;
use ureq::config::Config;
use ureq::unversioned::resolver::Resolver;
use ureq::unversioned::transport::NextTimeout;

use super::body::AnswerBody;
use super::connection::Connection;
use super::dialer::Dialer;
use super::duplex::Duplex;
use super::error::UpstreamError;
use super::settings::UpstreamSettings;
use super::transport::{Connect, Exchange};
use crate::base::error::{Result, chain};
use crate::base::threads::lock;
use crate::http::body::{Beginning, Bounded, Resumed, begin};
use crate::http::{Body, Request, Response, Source, has_body};

/// How long an idle connection is kept: less than servers usually do.
const IDLE: Duration = Duration::from_secs(15);
/// How many clients a thread may have.
const MAX_CLIENTS: usize = 1024;
/// An answer that pauses for longer than this is a stream: short ones in several chunks should not
/// cost several messages.
const PAUSE: Duration = Duration::from_millis(5);

/// Calls an HTTP service, on many threads at a time, over connections that are used again.
pub struct Upstream {
    number: usize,
    config: Config,
    dialer: Dialer,
    limits: UpstreamLimits,
}

/// How much of an answer is taken.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamLimits {
    /// The longest body that is taken as a whole, in bytes.
    pub whole_bytes: usize,
    /// Up to this length a body is read as a whole where streams are taken, in bytes.
    pub inline_bytes: usize,
    /// The longest body of all; none: any.
    pub max_body_bytes: Option<u64>,
}

thread_local! {
    // Each thread has connections of its own: threads that share them would wait for each other
    // twice in every call. The thread that was idle for the shortest time gets the next request, so
    // there are no more connections than requests at a time. They are closed as the thread ends.
    static CLIENTS: RefCell<HashMap<usize, Client>> = RefCell::default();
}

// Cloning it is cheap: it is shared.
#[derive(Clone)]
struct Client {
    agent: ureq::Agent,
    exchange: Exchange,
}

impl Upstream {
    /// Makes a client of an upstream that takes answers within these limits.
    ///
    /// Errors: the files for TLS can't be used
    /// ([`Error::Tls`](crate::base::error::Error::Tls)).
    pub fn new(upstream: &UpstreamSettings, limits: UpstreamLimits) -> Result<Upstream> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let config = Config::builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .allow_non_standard_methods(true)
            // Empty: the caller's own pass through, and none is made up.
            .user_agent("")
            .accept("")
            .accept_encoding("")
            .max_idle_connections(1)
            .max_idle_connections_per_host(1)
            .max_idle_age(IDLE)
            .build();
        Ok(Upstream {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            config,
            dialer: Dialer::new(upstream)?,
            limits,
        })
    }

    // This thread's.
    fn client(&self) -> Client {
        CLIENTS.with_borrow_mut(|clients| {
            // Those of settings that are gone. A thread that is always busy would keep them for ever.
            if clients.len() >= MAX_CLIENTS && !clients.contains_key(&self.number) {
                clients.clear();
            }
            let client = clients.entry(self.number).or_insert_with(|| {
                let exchange = Exchange::default();
                let (config, dialer) = (self.config.clone(), self.dialer.clone());
                let resolver = dialer.resolver().clone();
                let connect = Connect {
                    exchange: exchange.clone(),
                    dialer,
                };
                let agent = ureq::Agent::with_parts(config, connect, resolver);
                Client { agent, exchange }
            });
            client.clone()
        })
    }

    /// What ends the call that this thread makes next, whoever waits for it: from another thread. To be
    /// made anew for each.
    pub fn cutter(&self) -> impl Fn() + Send + Sync + 'static {
        let exchange = self.client().exchange;
        exchange.is_cut.store(false, Ordering::SeqCst);
        move || exchange.cut()
    }

    // The connection ended before there was an answer, and nobody wanted that.
    fn is_cut(&self, error: &ureq::Error) -> bool {
        !self.client().exchange.is_cut.load(Ordering::SeqCst) && is_cut(error)
    }

    /// Sends a request and reads the whole answer, within `timeout`; or its head, where `streams` are
    /// taken and its body is long, or not over soon. A request that may be repeated (RFC 9110, section
    /// 9.2.2) is repeated once if its connection ends without an answer: one from the pool may have
    /// been closed by the service just before.
    ///
    /// Errors: see [`UpstreamError`].
    pub fn call(
        &self,
        request: Request,
        timeout: Duration,
        streams: bool,
    ) -> std::result::Result<Response, UpstreamError> {
        let begun = Instant::now();
        let is_head = request.method() == Method::HEAD;
        let repeated = request.method().is_idempotent().then(|| request.clone());
        let answer = match (self.send(request, timeout), repeated) {
            (Err(error), Some(request)) if self.is_cut(&error) => {
                let left = timeout.saturating_sub(begun.elapsed());
                // The first attempt may have been executed, whatever becomes of the second.
                self.send(request, left)
                    .map_err(|error| match call_error(error) {
                        UpstreamError::Unreachable(reason) => UpstreamError::Broken(reason),
                        other => other,
                    })
            }
            (other, _) => other.map_err(call_error),
        };
        let (parts, body) = answer?.into_parts();
        let has_body = !is_head && has_body(parts.status);
        let body = match streams && has_body {
            true => self.begin_answer(&parts, body)?,
            false => self.whole(&parts, body, has_body)?,
        };
        Ok(Response::from_parts(parts, body))
    }

    fn whole(
        &self,
        parts: &Parts,
        mut body: ureq::Body,
        has_body: bool,
    ) -> std::result::Result<Body, UpstreamError> {
        if has_body && let Some(kind) = endless(&parts.headers) {
            return Err(UpstreamError::Endless(kind));
        }
        let limit = self.limits.whole_bytes as u64;
        let body = body
            .with_config()
            .limit(limit)
            .read_to_vec()
            .map_err(|error| match error {
                ureq::Error::BodyExceedsLimit(_) => UpstreamError::TooLarge(limit),
                ureq::Error::Timeout(_) => UpstreamError::Unfinished(parts.status),
                other => UpstreamError::Broken(chain(&other)),
            })?;
        Ok(body.into())
    }

    fn begin_answer(
        &self,
        parts: &Parts,
        body: ureq::Body,
    ) -> std::result::Result<Body, UpstreamError> {
        let length = parts.headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
        let Client { agent, exchange } = self.client();
        let source = AnswerBody::new(body, agent, exchange, length);
        let body = self.begin(&parts.headers, Arc::new(source))?;
        if body.stream().is_some() {
            // The next request of this thread gets another connection.
            CLIENTS.with_borrow_mut(|clients| clients.remove(&self.number));
        }
        Ok(body)
    }

    /// Looks whether what is at `uri` takes connections.
    ///
    /// Errors: it does not, within this time; why.
    pub fn reach(&self, uri: &Uri, timeout: Duration) -> std::result::Result<(), UpstreamError> {
        self.connect(uri, Instant::now() + timeout).map(|_| ())
    }

    fn connect(
        &self,
        uri: &Uri,
        deadline: Instant,
    ) -> std::result::Result<Connection, UpstreamError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let resolving = NextTimeout {
            after: left.into(),
            reason: ureq::Timeout::Resolve,
            ..NextTimeout::default()
        };
        let found = self.dialer.resolver().resolve(uri, &self.config, resolving);
        let addresses = found.map_err(call_error)?;
        let stream = self.dialer.connect(uri, &addresses, deadline);
        stream.map_err(|error| UpstreamError::Unreachable(chain(&error)))
    }

    /// Connects for a request whose body goes on as it comes, or that asks for an upgrade, and sends its
    /// head.
    ///
    /// Errors: see [`UpstreamError`].
    pub fn open(
        &self,
        request: &Request,
        timeout: Duration,
    ) -> std::result::Result<Duplex, UpstreamError> {
        let deadline = Instant::now() + timeout;
        let stream = self.connect(request.uri(), deadline)?;
        let left = deadline.saturating_duration_since(Instant::now());
        Duplex::open(stream, request, left)
    }

    /// Waits for the answer to such a request; until when, is asked again and again.
    ///
    /// Errors: see [`UpstreamError`].
    pub fn answer(
        &self,
        duplex: &Duplex,
        until: &dyn Fn() -> Instant,
    ) -> std::result::Result<Response, UpstreamError> {
        let begun = duplex.answer(until)?;
        let body = match begun.body {
            None => Body::Empty,
            // What comes on it now is for others to understand.
            Some(body) if begun.status == StatusCode::SWITCHING_PROTOCOLS => {
                Body::Stream(Arc::new(body))
            }
            Some(body) => self.begin(&begun.headers, Arc::new(body))?,
        };
        let mut response = Response::new(body);
        *response.status_mut() = begun.status;
        *response.headers_mut() = begun.headers;
        Ok(response)
    }

    // A body as a whole, if it is short and over soon; else what is here, and where the rest comes from.
    fn begin(
        &self,
        headers: &HeaderMap,
        source: Arc<dyn Source>,
    ) -> std::result::Result<Body, UpstreamError> {
        let inline = self.limits.inline_bytes;
        let length = source.length();
        if let (Some(length), Some(limit)) = (length, self.limits.max_body_bytes)
            && length > limit
        {
            return Err(UpstreamError::TooLarge(limit));
        }
        let is_long = length.is_some_and(|length| length > inline as u64);
        let beginning = match is_long || endless(headers).is_some() {
            true => Beginning::Some(Vec::new()),
            false => begin(&*source, inline, PAUSE)
                .map_err(|error| UpstreamError::Broken(chain(&error)))?,
        };
        Ok(match beginning {
            Beginning::All(read) => read.into(),
            Beginning::Some(read) => {
                let resumed = Resumed::new(read, source);
                Body::Stream(Arc::new(Bounded::new(resumed, self.limits.max_body_bytes)))
            }
        })
    }

    fn send(
        &self,
        request: Request,
        timeout: Duration,
    ) -> std::result::Result<http::Response<ureq::Body>, ureq::Error> {
        let client = self.client();
        let (longest_line, head_size) = measure(&request);
        let (head, body) = request.into_parts();
        client
            .exchange
            .room
            .set(longest_line, head_size + body.len());
        *lock(&client.exchange.deadline) = Instant::now().checked_add(timeout);
        // An empty body says so with a Content-Length, which only these methods want
        // (RFC 9110, section 8.6).
        let says_length = [Method::POST, Method::PUT, Method::PATCH];
        let mut answer = match body.is_empty() && !says_length.contains(&head.method) {
            true => run(&client.agent, http::Request::from_parts(head, ()), timeout),
            false => {
                let request = http::Request::from_parts(head, body.as_bytes());
                run(&client.agent, request, timeout)
            }
        }?;
        // ureq has seen no more of it than it needs.
        if let Some(head) = lock(&client.exchange.head).take() {
            *answer.headers_mut() = head.headers;
        }
        Ok(answer)
    }
}

fn run(
    agent: &ureq::Agent,
    request: http::Request<impl AsSendBody>,
    timeout: Duration,
) -> std::result::Result<http::Response<ureq::Body>, ureq::Error> {
    // Each phase may take all of the time; what bounds them together is the deadline of the exchange,
    // which is another one once the body is read.
    let request = agent
        .configure_request(request)
        .timeout_resolve(Some(timeout))
        .timeout_connect(Some(timeout))
        .timeout_send_request(Some(timeout))
        .timeout_recv_response(Some(timeout));
    agent.run(request.build())
}

// The bytes of the longest line of a request's head, and of all of it; rather too many than too few:
// ureq writes the last field and the empty line at once.
fn measure(request: &Request) -> (usize, usize) {
    // What ureq adds: Host, Content-Length, and the rest of the request line.
    const OWN: usize = 256;
    let uri = request.uri();
    let target = uri.path().len() + uri.query().map_or(0, str::len);
    let authority = uri
        .authority()
        .map_or(0, |authority| authority.as_str().len());
    let first = OWN + target + authority + request.method().as_str().len();
    let fields = request.headers().iter();
    let lines = fields.map(|(name, value)| name.as_str().len() + value.len() + 6);
    lines.fold((first, first), |(longest, all), line| {
        (longest.max(line), all + line)
    })
}

// The type of an answer that goes on for ever, if it is one.
fn endless(headers: &HeaderMap) -> Option<String> {
    if headers.contains_key(header::CONTENT_LENGTH) {
        return None;
    }
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let kind = kind.split(';').next()?.trim().to_ascii_lowercase();
    let endless = ["text/event-stream", "multipart/x-mixed-replace"];
    endless.contains(&kind.as_str()).then_some(kind)
}

// The connection ended before there was an answer.
fn is_cut(error: &ureq::Error) -> bool {
    use std::io::ErrorKind;
    match error {
        ureq::Error::Io(io) => matches!(
            io.kind(),
            ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
        ),
        _ => false,
    }
}

fn call_error(error: ureq::Error) -> UpstreamError {
    use std::io::ErrorKind;
    match &error {
        ureq::Error::ConnectionFailed
        | ureq::Error::HostNotFound
        | ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            UpstreamError::Unreachable(chain(&error))
        }
        ureq::Error::Io(io) => match io.kind() {
            ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::AddrNotAvailable => UpstreamError::Unreachable(chain(io)),
            ErrorKind::TimedOut | ErrorKind::WouldBlock => UpstreamError::TimedOut,
            _ => UpstreamError::Broken(chain(io)),
        },
        ureq::Error::Timeout(_) => UpstreamError::TimedOut,
        other => UpstreamError::Broken(chain(other)),
    }
}
