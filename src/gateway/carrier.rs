//! What the two modes share: the way to the broker and who waits there.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, header};

use super::access::{Caller, Gate};
use super::call::{Call, Inbox, Reply};
use super::inbox::Inboxes;
use super::presence::Presence;
use super::router::{Found, Router};
use super::settings::GatewaySettings;
use crate::base::error::Result;
use crate::base::topic::Id;
use crate::front::Client;
use crate::http::{Failure, Request, RequestId, Response};
use crate::link::{Link, LinkEvent, LinkOptions, Publisher};
use crate::monitor::Monitor;
use crate::monitor::trace::{Away, Trace};
use crate::wire::presence::agent_of;
use crate::wire::reply::AGENT;
use crate::wire::{JSON, packet_limit};

/// How many messages may wait to be written to the broker, unless more may wait for a reply.
const QUEUE: usize = 1024;

/// What every request of this gateway needs.
pub(super) struct Carrier {
    pub publisher: Publisher,
    pub router: Router,
    pub inboxes: Arc<Inboxes>,
    pub presence: Arc<Presence>,
    pub gate: Gate,
    /// What this gateway calls itself where a request has passed it.
    pub name: String,
    /// Whether requests get the field Via.
    pub via: bool,
    /// The longest body that is one message.
    pub whole_bytes: usize,
    pub monitor: Arc<Monitor>,
    /// The broker, without what is secret.
    pub broker: String,
    pub started: SystemTime,
}

impl Carrier {
    pub fn start(settings: &GatewaySettings) -> Result<(Link, Carrier)> {
        let id = settings.id.clone().unwrap_or_else(Id::random);
        let router = Router::new(&settings.routes, &settings.names)?;
        let monitor = Arc::new(Monitor::default());
        let inboxes = Inboxes::new(&router, &id, settings, Arc::clone(&monitor))?;
        let inboxes = Arc::new(inboxes);
        let presence = Arc::new(Presence::default());
        let options = LinkOptions {
            brokers: settings.brokers.urls().to_vec(),
            // A second process with the same client id would throw the first one out.
            client_id: format!("recado-gateway-{}", Id::random()),
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
        let name = format!("recado-{id}");
        let counted = Arc::clone(&monitor);
        let link = Link::start(options, move |publisher, event| match event {
            LinkEvent::Ready => {
                log::info!("ready as gateway {id}");
                counted.metrics.connected();
                known.connected(relied_upon && publisher.offer().retain);
                received.streams().connected(publisher, Instant::now());
                received.probe(publisher);
            }
            LinkEvent::Acknowledged(acknowledgement) => received.acknowledged(&acknowledgement),
            LinkEvent::Message(message) => received.receive(publisher, message, &known),
            LinkEvent::Down(_) => {
                known.forget();
                received.streams().disconnected();
            }
            _ => {}
        })?;
        let publisher = link.publisher().clone();
        let shared = Carrier {
            publisher,
            router,
            inboxes,
            presence,
            gate: Gate::new(settings.access.clone()),
            name,
            via: settings.via,
            whole_bytes: settings.http.whole_bytes(),
            monitor,
            broker: settings.brokers.to_string(),
            started: SystemTime::now(),
        };
        Ok((link, shared))
    }

    /// The same with other routes, names, limits and rules of access.
    ///
    /// Errors: routes are in conflict ([`Error::Usage`](crate::base::error::Error::Usage)).
    pub fn with(&self, settings: &GatewaySettings) -> Result<Carrier> {
        Ok(Carrier {
            publisher: Arc::clone(&self.publisher),
            router: Router::new(&settings.routes, &settings.names)?,
            inboxes: Arc::clone(&self.inboxes),
            presence: Arc::clone(&self.presence),
            gate: self.gate.with(settings.access.clone()),
            name: self.name.clone(),
            via: settings.via,
            whole_bytes: self.whole_bytes,
            monitor: Arc::clone(&self.monitor),
            broker: self.broker.clone(),
            started: self.started,
        })
    }

    pub fn ready(&self) -> std::result::Result<(), Failure> {
        self.publisher.ready().map_err(Failure::NotConnected)?;
        let inboxes = self.inboxes.check(&self.publisher);
        inboxes.map_err(Failure::NotReady)?;
        match self.presence.is_complete() {
            true => Ok(()),
            false => Err(self.not_known_yet()),
        }
    }

    pub fn not_known_yet(&self) -> Failure {
        self.inboxes.probe_again(&self.publisher);
        Failure::NotConnected("the broker has not said yet which agents are there".into())
    }
}

/// A request that leads to a route.
pub(super) struct Asked<'a> {
    pub route: usize,
    pub found: &'a Found<'a>,
    pub request: &'a Request,
    pub client: &'a Client<'a>,
    pub caller: Caller<'a>,
    pub id: &'a RequestId,
    pub begun: Instant,
}

/// An answer, and where its time went.
pub(super) struct Answer {
    pub response: Response,
    /// What was spent away from here; `None`: it did not leave.
    pub away: Option<Away>,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        Answer {
            response,
            away: None,
        }
    }
}

/// Calls, and takes note of what is called and who answers.
pub(super) fn call_traced(
    carrier: &Carrier,
    inbox: &Inbox,
    client: &Client<'_>,
    call: Call,
    trace: &mut Trace,
) -> std::result::Result<(Reply, Away), Failure> {
    trace.agent = agent_of(call.topic.as_str(), "request");
    if carrier.monitor.live.viewers() > 0 {
        trace.topic = Some(call.topic.clone());
        trace.inbox = Some(inbox.topic.clone());
        trace.correlation = Some(call.correlation);
    }
    let called = inbox.call(&carrier.publisher, client, &carrier.presence, call)?;
    let answers = called.0.message.properties.user(AGENT);
    if let Some(id) = answers.and_then(|id| Id::new(id).ok()) {
        trace.agent = Some(id);
    }
    Ok(called)
}

pub(super) fn json_response(body: Bytes) -> Response {
    let mut response = Response::new(body.into());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}
