//! api_1: HTTP requests in, MQTT requests out, replies back to who waits.
//!
//! A request runs on the thread of its connection: register a waiter, publish, block on the
//! waiter's channel. The reply comes in on the `mqtt` thread, which only looks the waiter up and
//! hands it over. The order is what makes it correct: a reply can't overtake its own waiter.

mod access;
mod forward;
mod inbox;
mod json;
mod onward;
mod presence;
mod probe;
mod router;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::config::{Access, Admission, Front as FrontKind, GatewaySettings, Mode};
use crate::error::{Error, Result};
use crate::http::problem::{Problem, RETRY_AFTER};
use crate::http::{
    Client, Front, Request, RequestId, Response, Unanswered, X_REQUEST_ID, client_gone, guarded,
    tiny,
};
use crate::link::{Link, LinkEvent, LinkOptions, Publisher, check_tls};
use crate::logging::excerpt;
use crate::message::{Hop, JSON};
use crate::topic::Id;
use access::Caller;
use inbox::{Inboxes, Timing};
use presence::Presence;
use router::{Endpoint, Found, Router, with_slash};

/// How many messages may wait to be written to the broker, unless more may wait for a reply.
const QUEUE: usize = 1024;
/// What a packet may hold besides the body, in bytes: topics, properties, headers.
const PACKET_OVERHEAD: usize = 96 * 1024;

/// How many connections the system may accept before this program does.
const BACKLOG: i32 = 1024;
/// How many bytes of answers the system may hold for a client that takes them slowly; it would let
/// them grow to several MiB each.
const SEND_BUFFER: usize = 256 * 1024;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A running gateway.
pub struct Gateway {
    front: Box<dyn Front>,
    link: Link,
    timeout: Duration,
}

impl Gateway {
    /// Binds the address of `settings`, starts the connection to the broker and the HTTP server.
    /// The broker need not be there yet.
    ///
    /// Errors: the address is taken ([`Error::Listen`]), routes are in conflict
    /// ([`Error::Usage`]), or what [`Link::start`] and the fronts return.
    pub fn start(settings: GatewaySettings) -> Result<Gateway> {
        let listener = bind(settings.listen)?;
        if !settings.listen.ip().is_loopback() && settings.access.tokens.is_empty() {
            log::warn!(
                "listening on {} without tokens: whoever reaches it may call every agent; set tokens_file in [access]",
                settings.listen
            );
        }
        let (link, shared) = Shared::start(&settings)?;
        let handler = move |request: Request, client: &Client<'_>| shared.handle(&request, client);
        let front: Box<dyn Front> = match settings.front {
            FrontKind::Guarded => Box::new(guarded::start(listener, settings.http, handler)?),
            FrontKind::TinyHttp => Box::new(tiny::start(listener, settings.http, handler)?),
        };
        log::info!("listening on http://{}", front.address());
        let timeouts = settings.routes.iter().map(|route| route.timeout);
        Ok(Gateway {
            front,
            link,
            timeout: timeouts.max().unwrap_or_default(),
        })
    }

    /// Looks whether a gateway could be started with these settings.
    ///
    /// Errors: routes are in conflict ([`Error::Usage`]), or the files for TLS can't be used
    /// ([`Error::Tls`]).
    pub fn check(settings: &GatewaySettings) -> Result<()> {
        Router::new(&settings.routes)?;
        check_tls(&settings.broker)
    }

    /// The address it listens on, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.front.address()
    }

    /// Stops in order: accept no more, answer what is in hand while replies can still come, say
    /// goodbye to the broker, join every thread. Takes the longest route's timeout plus a second
    /// at most; while there is no connection to the broker, four seconds, since an attempt to connect
    /// can't be cut short.
    ///
    /// Errors: a thread did not end in time; the rest is stopped all the same.
    pub fn stop(self) -> Result<()> {
        let drained = Instant::now() + self.timeout + Duration::from_millis(300);
        let served = self.front.stop(drained);
        let left = self.link.stop(drained);
        served.and(left)
    }
}

/// Binds an address, so that errors name it. The system may hold more connections for us than the
/// 128 of the standard library, so that a burst of clients isn't put off.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listen = || -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // Connections inherit it.
        socket.set_send_buffer_size(SEND_BUFFER)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listen().map_err(|source| Error::Listen { address, source })
}

struct Shared {
    publisher: Publisher,
    router: Router,
    inboxes: Arc<Inboxes>,
    presence: Arc<Presence>,
    access: Access,
}

/// A request that leads to a route.
struct Asked<'a> {
    route: usize,
    found: &'a Found<'a>,
    request: &'a Request,
    client: &'a Client<'a>,
    caller: Caller<'a>,
    id: &'a RequestId,
    begun: Instant,
}

/// An answer, and which share of the time was spent where.
struct Answer {
    response: Response,
    timing: Timing,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        Answer {
            response,
            timing: Timing::default(),
        }
    }
}

impl Shared {
    fn start(settings: &GatewaySettings) -> Result<(Link, Shared)> {
        let id = settings.id.clone().unwrap_or_else(random_id);
        let router = Router::new(&settings.routes)?;
        let inboxes = Arc::new(Inboxes::new(&router, &id, settings)?);
        let presence = Arc::new(Presence::default());
        let options = LinkOptions {
            broker: settings.broker.clone(),
            // A second process with the same client id would throw the first one out.
            client_id: format!("recado-gateway-{}", random_id()),
            session_expiry: Duration::ZERO,
            keep_alive: settings.keep_alive,
            max_packet_bytes: packet_limit(settings.http.max_body_bytes),
            queue: QUEUE.max(settings.max_waiting),
            queue_bytes: settings.http.buffered_bytes(),
            proves_topics: true,
            manual_acknowledgement: false,
            will: None,
            subscriptions: inboxes.subscriptions(),
        };
        let (received, known) = (Arc::clone(&inboxes), Arc::clone(&presence));
        let relied_upon = settings.presence;
        let link = Link::start(options, move |publisher, event| match event {
            LinkEvent::Ready => {
                log::info!("ready as gateway {id}");
                known.connected(relied_upon && publisher.offer().retain);
                received.probe(publisher);
            }
            LinkEvent::Acknowledged(acknowledgement) => received.acknowledged(&acknowledgement),
            LinkEvent::Message(message) => received.receive(message, &known),
            LinkEvent::Down(_) => known.forget(),
            _ => {}
        })?;
        let publisher = link.publisher().clone();
        let shared = Shared {
            publisher,
            router,
            inboxes,
            presence,
            access: settings.access.clone(),
        };
        Ok((link, shared))
    }

    fn handle(&self, request: &Request, client: &Client<'_>) -> Response {
        let begun = Instant::now();
        let id = RequestId::of(request.headers());
        let found = self.router.find(request);
        let answer = found.and_then(|found| self.answer(request, &found, client, &id, begun));
        let (mut response, timing) = match answer {
            Ok(answer) => (answer.response, answer.timing),
            Err(problem) => {
                log::warn!(
                    "request {id} from {}: {} {}: {} at the {}: {}",
                    client.peer.ip(),
                    request.method(),
                    excerpt(request.uri().path().as_bytes()),
                    problem.status.as_u16(),
                    problem.hop.as_str(),
                    excerpt(problem.detail.as_bytes())
                );
                let mut response = problem.response(&id);
                if problem.status == client_gone() {
                    response.extensions_mut().insert(Unanswered);
                }
                (response, Timing::default())
            }
        };
        let headers = response.headers_mut();
        if let Some(value) = id.header() {
            headers.insert(X_REQUEST_ID, value);
        }
        if let Ok(value) = HeaderValue::try_from(timing.header(begun.elapsed())) {
            headers.append(SERVER_TIMING, value);
        }
        response
    }

    fn answer(
        &self,
        request: &Request,
        found: &Found<'_>,
        client: &Client<'_>,
        id: &RequestId,
        begun: Instant,
    ) -> std::result::Result<Answer, Problem> {
        let admission = match found.endpoint {
            Endpoint::Health | Endpoint::Ready => &Admission::Public,
            Endpoint::Agents | Endpoint::Agent => &Admission::AnyToken,
            Endpoint::Route(route) | Endpoint::Slash(route) => {
                &self.router.routes()[route].admission
            }
        };
        let caller = access::admit(&self.access, admission, request.headers())?;
        match found.endpoint {
            Endpoint::Health => Ok(status_document("ok").into()),
            Endpoint::Ready => self.ready().map(|()| status_document("ready").into()),
            Endpoint::Agents => {
                self.ready()?;
                let agents = json!({ "agents": self.presence.agents(begun) });
                Ok(json_response(agents.to_string().into()).into())
            }
            Endpoint::Agent => self.one_agent(found.parameter("id").unwrap_or_default(), begun),
            Endpoint::Slash(_) => Ok(redirect(&with_slash(request)).into()),
            Endpoint::Route(route) => {
                let asked = Asked {
                    route,
                    found,
                    request,
                    client,
                    caller,
                    id,
                    begun,
                };
                match self.router.routes()[route].mode {
                    Mode::Json { .. } => self.ask(&asked),
                    Mode::Http => self.forward(&asked),
                }
            }
        }
    }

    fn one_agent(&self, id: &str, now: Instant) -> std::result::Result<Answer, Problem> {
        self.ready()?;
        match self.presence.agent(id, now) {
            Some(agent) => Ok(json_response(json!(agent).to_string().into()).into()),
            None => {
                let detail = format!("no agent {} is there", excerpt(id.as_bytes()));
                Err(Problem::new(StatusCode::NOT_FOUND, Hop::Agent, detail))
            }
        }
    }

    fn ready(&self) -> std::result::Result<(), Problem> {
        self.publisher.ready().map_err(|why| broker_away(&why))?;
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let inboxes = self.inboxes.check(&self.publisher);
        inboxes.map_err(|problem| Problem { status, ..problem })?;
        match self.presence.is_complete() {
            true => Ok(()),
            false => Err(self.not_known_yet()),
        }
    }

    fn not_known_yet(&self) -> Problem {
        self.inboxes.probe_again(&self.publisher);
        broker_away("the broker has not said yet which agents are there")
    }
}

fn json_response(body: Bytes) -> Response {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

// The method and the body stay the same with this status.
fn redirect(location: &str) -> Response {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn status_document(status: &str) -> Response {
    json_response(format!(r#"{{"status": "{status}"}}"#).into())
}

fn broker_away(reason: &str) -> Problem {
    let detail = format!("there is no connection to the broker: {reason}");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, Hop::Broker, detail).retry_after(RETRY_AFTER)
}

fn no_agent(what: &str) -> Problem {
    let detail = format!("no agent that serves {what} is there");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, Hop::Agent, detail).retry_after(RETRY_AFTER)
}

/// An id for a process that was given none, or a part of one. It must be its own, not secret.
pub(crate) fn random_id() -> Id {
    let number = getrandom::u64().unwrap_or_else(|_| {
        // A system without random numbers: correlations will be refused, but two processes must not
        // have one id all the same.
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        (u64::from(std::process::id()) << 40) ^ since.as_nanos() as u64
    });
    // 16 hexadecimal digits are an id.
    Id::new(format!("{number:016x}")).unwrap_or_else(|_| unreachable!())
}

/// The largest packet that carries a body of `max_body_bytes`.
pub(crate) fn packet_limit(max_body_bytes: usize) -> u32 {
    u32::try_from(max_body_bytes + PACKET_OVERHEAD).unwrap_or(u32::MAX)
}
