//! api_1: HTTP requests in, MQTT requests out, replies back to who waits.
//!
//! A request runs on the thread of its connection: register a waiter, publish, block on the
//! waiter's channel. The reply comes in on the `mqtt` thread, which only looks the waiter up and
//! hands it over. The order is what makes it correct: a reply can't overtake its own waiter.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};

use crate::config::{Front as FrontKind, GatewaySettings, Route};
use crate::error::{Error, Result};
use crate::http::problem::{Problem, RETRY_AFTER};
use crate::http::{Front, Request, RequestId, Response, X_REQUEST_ID, guarded, tiny};
use crate::link::{Link, LinkEvent, LinkOptions, PublishError, Publisher, Subscription};
use crate::logging::excerpt;
use crate::message::{
    self, Correlation, Hop, JSON, JsonReply, Message, Qos, read_json_reply, received,
    request_properties,
};
use crate::pending::{Completion, Pending};
use crate::topic::{Id, Topic, TopicFilter};

/// How many messages may wait to be written to the broker.
const QUEUE: usize = 1024;
/// What a packet may hold besides the body, in bytes: topics, properties, headers.
const PACKET_OVERHEAD: usize = 64 * 1024;

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
    /// Errors: the address is taken ([`Error::Listen`]), or what [`Link::start`] and the fronts
    /// return.
    pub fn start(settings: GatewaySettings) -> Result<Gateway> {
        let listener = bind(settings.listen)?;
        let (link, shared) = Shared::start(&settings)?;
        let handler = move |request: Request, _peer: SocketAddr| shared.handle(&request);
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

    /// The address it listens on, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.front.address()
    }

    /// Stops in order: accept no more, answer what is in hand while replies can still come, say
    /// goodbye to the broker, join every thread. Takes the longest route's timeout plus a second
    /// at most.
    ///
    /// Errors: a thread did not end in time; the rest is stopped all the same.
    pub fn stop(self) -> Result<()> {
        let drained = Instant::now() + self.timeout + Duration::from_millis(300);
        let served = self.front.stop(drained);
        let left = self.link.stop(drained);
        served.and(left)
    }
}

/// Binds an address, so that errors name it.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).map_err(|source| Error::Listen { address, source })
}

struct Shared {
    publisher: Publisher,
    routes: Arc<[LiveRoute]>,
}

// A route and who waits on it.
struct LiveRoute {
    route: Route,
    inbox: Topic,
    pending: Pending<Reply>,
    max_body_bytes: usize,
}

/// What completes a waiter.
type Reply = std::result::Result<JsonReply, String>;

#[derive(Default)]
struct Dropped(AtomicU64);

impl Dropped {
    fn count(&self, topic: &str, why: &str) {
        let number = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        log::debug!(
            "dropped a message on {}: {why} ({number} so far)",
            excerpt(topic.as_bytes())
        );
    }
}

impl Shared {
    fn start(settings: &GatewaySettings) -> Result<(Link, Shared)> {
        let id = settings.id.clone().unwrap_or_else(random_id);
        let routes: Arc<[LiveRoute]> = settings
            .routes
            .iter()
            .map(|route| LiveRoute::new(route, &id, settings))
            .collect::<Result<_>>()?;
        let options = LinkOptions {
            broker: settings.broker.clone(),
            // A second process with the same client id would throw the first one out.
            client_id: format!("recado-gateway-{}", random_id()),
            session_expiry: Duration::ZERO,
            keep_alive: settings.keep_alive,
            max_packet_bytes: packet_limit(settings.http.max_body_bytes),
            queue: QUEUE,
            manual_acknowledgement: false,
            subscriptions: routes.iter().flat_map(LiveRoute::subscriptions).collect(),
        };
        let (inboxes, dropped) = (Arc::clone(&routes), Dropped::default());
        let link = Link::start(options, move |_, event| match event {
            LinkEvent::Ready => log::info!("ready as gateway {id}"),
            LinkEvent::Message(message) => receive(&inboxes, &message, &dropped),
            _ => {}
        })?;
        let publisher = link.publisher().clone();
        Ok((link, Shared { publisher, routes }))
    }

    fn handle(&self, request: &Request) -> Response {
        let id = RequestId::of(request.headers());
        let path = request.uri().path();
        let answer = match path {
            "/healthz" => only_get(request).map(|()| status_document("ok")),
            "/readyz" => only_get(request).and_then(|()| self.ready()),
            _ => match self.routes.iter().find(|live| live.route.path == path) {
                Some(live) => only_get(request).and_then(|()| self.ask(live, request, &id)),
                None => {
                    let detail = format!("there is no route for {path}");
                    Err(Problem::new(StatusCode::NOT_FOUND, Hop::Gateway, detail))
                }
            },
        };
        match answer {
            Ok(mut response) => {
                if let Ok(value) = HeaderValue::from_str(id.as_str()) {
                    response.headers_mut().insert(X_REQUEST_ID, value);
                }
                response
            }
            Err(problem) => {
                log::warn!(
                    "request {id}: {} {path}: {} at the {}: {}",
                    request.method(),
                    problem.status.as_u16(),
                    problem.hop.as_str(),
                    excerpt(problem.detail.as_bytes())
                );
                problem.response(&id)
            }
        }
    }

    fn ready(&self) -> std::result::Result<Response, Problem> {
        match self.publisher.ready() {
            Ok(()) => Ok(status_document("ready")),
            Err(reason) => Err(broker_away(&reason)),
        }
    }

    fn ask(
        &self,
        live: &LiveRoute,
        request: &Request,
        id: &RequestId,
    ) -> std::result::Result<Response, Problem> {
        let deadline = Instant::now() + live.route.timeout;
        let word = word(request.uri().query().unwrap_or_default());
        let payload = message::ask(&word);
        let correlation = random_correlation()?;
        // First the waiter, then the request: the reply must find it.
        let ticket = live
            .pending
            .register(correlation, message::canonical(&payload).ok())
            .map_err(|_| too_many())?;
        let time_left = deadline.saturating_duration_since(Instant::now());
        self.publisher
            .publish(Message {
                topic: live.route.request_topic.as_str().to_owned(),
                payload,
                qos: live.route.qos,
                properties: request_properties(&live.inbox, correlation, time_left),
                ..Message::default()
            })
            .map_err(|error| not_published(&error))?;
        log::debug!("request {id}: published as {correlation:?}");
        match ticket.wait(deadline.saturating_duration_since(Instant::now())) {
            Some(Ok(reply)) => reply_to_client(&reply),
            Some(Err(bad)) => {
                let detail = format!("the agent's reply can't be used: {bad}");
                Err(Problem::new(StatusCode::BAD_GATEWAY, Hop::Agent, detail).outcome_unknown())
            }
            None => Err(no_reply(live.route.timeout)),
        }
    }
}

impl LiveRoute {
    fn new(route: &Route, id: &Id, settings: &GatewaySettings) -> Result<LiveRoute> {
        let inbox = format!("{}/{id}", route.response_topic);
        Ok(LiveRoute {
            route: route.clone(),
            inbox: Topic::new(inbox).map_err(|error| Error::Usage(error.to_string()))?,
            pending: Pending::new(settings.max_waiting),
            max_body_bytes: settings.http.max_body_bytes,
        })
    }

    // The inbox, and the topic where MQTT 3.1.1 peers answer.
    fn subscriptions(&self) -> [Subscription; 2] {
        [&self.inbox, &self.route.response_topic].map(|topic| Subscription {
            filter: TopicFilter::from(topic),
            qos: Qos::AtLeastOnce,
            group: None,
            retained: false,
        })
    }
}

// Runs on the mqtt thread: looks a waiter up and hands the reply over.
fn receive(routes: &[LiveRoute], message: &Message, dropped: &Dropped) {
    log::info!(
        "Topic: {}, Message: {}",
        message.topic,
        excerpt(&message.payload)
    );
    let expected = |live: &&LiveRoute| {
        let old = live.route.response_topic.as_str();
        message.topic == live.inbox.as_str() || message.topic == old
    };
    let Some(live) = routes.iter().find(expected) else {
        return dropped.count(&message.topic, "no route expects it");
    };
    if message.retain {
        return dropped.count(&message.topic, "it is retained, so it is from before");
    }
    let reply = || match message.payload.len() {
        length if length <= live.max_body_bytes => {
            read_json_reply(message).map_err(|bad| bad.to_string())
        }
        length => Err(format!(
            "it has {length} bytes, the limit is {}",
            live.max_body_bytes
        )),
    };
    let completion = match &message.properties.correlation_data {
        Some(_) if message.topic != live.inbox.as_str() => {
            return dropped.count(&message.topic, "a correlated reply belongs into an inbox");
        }
        Some(data) => match Correlation::from_bytes(data) {
            Some(correlation) => live.pending.complete(correlation, reply(), Instant::now()),
            None => Completion::Unknown,
        },
        None => match received(&message.payload) {
            Ok(which) => live.pending.complete_oldest(&which, reply()),
            Err(bad) => return dropped.count(&message.topic, &bad.to_string()),
        },
    };
    match completion {
        Completion::Delivered => {}
        Completion::Late(by) => {
            dropped.count(&message.topic, &format!("late by {} ms", by.as_millis()));
        }
        Completion::Unknown => dropped.count(&message.topic, "nobody waits for it"),
    }
}

fn reply_to_client(reply: &JsonReply) -> std::result::Result<Response, Problem> {
    if let Some(hop) = reply.error {
        return Err(Problem::from_agent(reply.status, hop, &reply.body));
    }
    let mut response = json(message::wrap_response(&reply.body));
    *response.status_mut() = reply.status;
    Ok(response)
}

fn only_get(request: &Request) -> std::result::Result<(), Problem> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(());
    }
    let detail = format!("{} is not allowed here", request.method());
    Err(Problem {
        allow: Some("GET, HEAD"),
        ..Problem::new(StatusCode::METHOD_NOT_ALLOWED, Hop::Gateway, detail)
    })
}

// The first `ask` of a query, "ping" where there is none.
fn word(query: &str) -> String {
    form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "ask")
        .map_or_else(|| "ping".to_owned(), |(_, value)| value.into_owned())
}

fn json(body: Bytes) -> Response {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

fn status_document(status: &str) -> Response {
    json(format!(r#"{{"status": "{status}"}}"#).into())
}

fn broker_away(reason: &str) -> Problem {
    let detail = format!("there is no connection to the broker: {reason}");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, Hop::Broker, detail).retry_after(RETRY_AFTER)
}

fn too_many() -> Problem {
    let detail = "too many requests wait for a reply";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, Hop::Gateway, detail).retry_after(RETRY_AFTER)
}

fn no_reply(timeout: Duration) -> Problem {
    let detail = format!("no reply within {} ms", timeout.as_millis());
    Problem::new(StatusCode::GATEWAY_TIMEOUT, Hop::Agent, detail).outcome_unknown()
}

fn not_published(error: &PublishError) -> Problem {
    match error {
        PublishError::NotConnected(reason) => broker_away(reason),
        PublishError::Busy => too_many(),
        PublishError::TooLarge { .. } => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Hop::Broker,
            format!("the request can't be carried: {error}"),
        ),
        PublishError::NotSupported(_) => {
            Problem::new(StatusCode::BAD_GATEWAY, Hop::Broker, error.to_string())
        }
    }
}

fn random_correlation() -> std::result::Result<Correlation, Problem> {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(Correlation(bytes)),
        // A correlation that could be guessed would be worse than no answer.
        Err(error) => Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Hop::Gateway,
            format!("the system gives no random numbers: {error}"),
        )),
    }
}

/// An id for a process that was given none, or a part of one.
pub(crate) fn random_id() -> Id {
    let text = format!("{:016x}", getrandom::u64().unwrap_or_default());
    // 16 hexadecimal digits are an id.
    Id::new(text).unwrap_or_else(|_| unreachable!())
}

/// The largest packet that carries a body of `max_body_bytes`.
pub(crate) fn packet_limit(max_body_bytes: usize) -> u32 {
    u32::try_from(max_body_bytes + PACKET_OVERHEAD).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_decoded() {
        assert_eq!(word(""), "ping");
        assert_eq!(word("x=1"), "ping");
        assert_eq!(word("ask=a%20b+c%22&ask=second"), "a b c\"");
        assert_eq!(word("ask="), "");
    }
}
