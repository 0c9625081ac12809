//! The HTTP client that the agent calls its upstream with. Nothing outside this file and its folder
//! names `ureq`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode, header};
use ureq::AsSendBody;
use ureq::config::Config;
use ureq::unversioned::resolver::DefaultResolver;

use super::resolver::Caching;
use super::transport::{Connect, Exchange};
use crate::base::error::chain;
use crate::base::threads::lock;
use crate::http::{Request, Response};

/// How long an idle connection is kept: less than servers usually do.
const IDLE: Duration = Duration::from_secs(15);

/// Calls HTTP services, on many threads at a time, over connections that are used again.
pub struct Upstream {
    number: usize,
    config: Config,
    resolver: Caching<DefaultResolver>,
    max_body_bytes: usize,
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

/// Why a call failed.
#[derive(Debug)]
pub enum UpstreamError {
    /// No connection could be made, so nothing was executed.
    Unreachable(String),
    /// The time was up. It may have been executed.
    TimedOut,
    /// The time was up in the middle of an answer with this status.
    Unfinished(StatusCode),
    /// The answer's body is over this limit, in bytes. It was executed.
    TooLarge(usize),
    /// The answer is of a type that has no end.
    Endless(String),
    /// The connection broke, or what came is not HTTP. It may have been executed.
    Broken(String),
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UpstreamError::Unreachable(reason) => {
                write!(f, "the upstream can't be reached: {reason}")
            }
            UpstreamError::TimedOut => f.write_str("the upstream did not answer in time"),
            UpstreamError::Unfinished(status) => write!(
                f,
                "the upstream began to answer ({}) but did not finish in time",
                status.as_u16()
            ),
            UpstreamError::TooLarge(limit) => write!(
                f,
                "the upstream's answer is larger than {limit} bytes (max_body_bytes of the agent)"
            ),
            UpstreamError::Endless(kind) => write!(
                f,
                "the upstream answers with {kind} without a length, which has no end and can't be carried: an answer is one message here"
            ),
            UpstreamError::Broken(reason) => write!(f, "the upstream failed: {reason}"),
        }
    }
}

impl Upstream {
    /// Makes a client that takes answers of at most `max_body_bytes`.
    pub fn new(max_body_bytes: usize) -> Upstream {
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
        Upstream {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            config,
            resolver: Caching::new(DefaultResolver::default()),
            max_body_bytes,
        }
    }

    // This thread's.
    fn client(&self) -> Client {
        CLIENTS.with_borrow_mut(|clients| {
            let client = clients.entry(self.number).or_insert_with(|| {
                let exchange = Exchange::default();
                let (config, resolver) = (self.config.clone(), self.resolver.clone());
                let connect = Connect {
                    exchange: exchange.clone(),
                    resolver: resolver.clone(),
                };
                let agent = ureq::Agent::with_parts(config, connect, resolver);
                Client { agent, exchange }
            });
            client.clone()
        })
    }

    /// Sends a request and reads the whole answer, within `timeout`. A request that may be repeated
    /// (RFC 9110, section 9.2.2) is repeated once if its connection ends without an answer: one
    /// from the pool may have been closed by the service just before.
    ///
    /// Errors: see [`UpstreamError`].
    pub fn call(
        &self,
        request: Request,
        timeout: Duration,
    ) -> std::result::Result<Response, UpstreamError> {
        let begun = Instant::now();
        let answer = match self.send(&request, timeout) {
            Err(error) if request.method().is_idempotent() && is_cut(&error) => {
                let left = timeout.saturating_sub(begun.elapsed());
                // The first attempt may have been executed, whatever becomes of the second.
                self.send(&request, left)
                    .map_err(|error| match call_error(error) {
                        UpstreamError::Unreachable(reason) => UpstreamError::Broken(reason),
                        other => other,
                    })
            }
            other => other.map_err(call_error),
        };
        let (parts, mut body) = answer?.into_parts();
        if request.method() != Method::HEAD
            && let Some(kind) = endless(&parts.headers)
        {
            return Err(UpstreamError::Endless(kind));
        }
        let body = body
            .with_config()
            .limit(self.max_body_bytes as u64)
            .read_to_vec()
            .map_err(|error| match error {
                ureq::Error::BodyExceedsLimit(_) => UpstreamError::TooLarge(self.max_body_bytes),
                ureq::Error::Timeout(_) => UpstreamError::Unfinished(parts.status),
                other => UpstreamError::Broken(chain(&other)),
            })?;
        Ok(Response::from_parts(parts, body.into()))
    }

    fn send(
        &self,
        request: &Request,
        timeout: Duration,
    ) -> std::result::Result<http::Response<ureq::Body>, ureq::Error> {
        let mut head = http::Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.headers_mut() = request.headers().clone();
        let body = request.body();
        let client = self.client();
        let (longest_line, head_size) = measure(request);
        client
            .exchange
            .room
            .set(longest_line, head_size + body.len());
        // An empty body says so with a Content-Length, which only these methods want
        // (RFC 9110, section 8.6).
        let says_length = [Method::POST, Method::PUT, Method::PATCH];
        let mut answer = match body.is_empty() && !says_length.contains(request.method()) {
            true => run(&client.agent, head, timeout),
            false => run(&client.agent, head.map(|()| body.as_bytes()), timeout),
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
    let request = agent.configure_request(request);
    agent.run(request.timeout_global(Some(timeout)).build())
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
