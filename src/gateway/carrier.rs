//! What the two modes share: the way to the broker and who waits there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, header};

use super::access::{Caller, Gate};
use super::broker::Broker;
use super::brokers::Brokers;
use super::call::{Call, Inbox, Reply};
use super::inbox::Inboxes;
use super::router::{Found, Router};
use super::settings::GatewaySettings;
use crate::base::error::Result;
use crate::base::threads::lock;
use crate::base::topic::Id;
use crate::front::Client;
use crate::http::problem::Outcome;
use crate::http::{Failure, Request, RequestId, Response};
use crate::link::{LinkEvent, LinkOptions, Links, Publisher};
use crate::monitor::Monitor;
use crate::monitor::trace::{Away, Trace};
use crate::wire::presence::agent_of;
use crate::wire::reply::AGENT;
use crate::wire::{JSON, packet_limit};

/// How many messages may wait to be written to the broker, unless more may wait for a reply.
const QUEUE: usize = 1024;

/// What every request of this gateway needs.
pub(super) struct Carrier {
    pub brokers: Arc<Brokers>,
    pub router: Router,
    pub inboxes: Arc<Inboxes>,
    pub gate: Gate,
    /// What this gateway calls itself where a request has passed it.
    pub name: String,
    /// Whether requests get the field Via.
    pub via: bool,
    /// The longest body that is one message.
    pub whole_bytes: usize,
    pub monitor: Arc<Monitor>,
    pub started: SystemTime,
}

impl Carrier {
    pub fn start(settings: &GatewaySettings) -> Result<(Links, Carrier)> {
        let id = settings.id.clone().unwrap_or_else(Id::random);
        let router = Router::new(&settings.routes, &settings.names)?;
        let monitor = Arc::new(Monitor::default());
        let inboxes = Inboxes::new(&router, &id, settings, Arc::clone(&monitor))?;
        let inboxes = Arc::new(inboxes);
        let (links, brokers) = connect(settings, &id, &inboxes, &monitor)?;
        let shared = Carrier {
            brokers: Arc::new(brokers),
            router,
            inboxes,
            gate: Gate::new(settings.access.clone()),
            name: format!("recado-{id}"),
            via: settings.via,
            whole_bytes: settings.http.whole_bytes(),
            monitor,
            started: SystemTime::now(),
        };
        Ok((links, shared))
    }

    /// The same with other routes, names, limits and rules of access.
    ///
    /// Errors: routes are in conflict ([`Error::Usage`](crate::base::error::Error::Usage)).
    pub fn with(&self, settings: &GatewaySettings) -> Result<Carrier> {
        Ok(Carrier {
            brokers: Arc::clone(&self.brokers),
            router: Router::new(&settings.routes, &settings.names)?,
            inboxes: Arc::clone(&self.inboxes),
            gate: self.gate.with(settings.access.clone()),
            name: self.name.clone(),
            via: settings.via,
            whole_bytes: self.whole_bytes,
            monitor: Arc::clone(&self.monitor),
            started: self.started,
        })
    }
}

// Starts the connections to the brokers.
fn connect(
    settings: &GatewaySettings,
    id: &Id,
    inboxes: &Arc<Inboxes>,
    monitor: &Arc<Monitor>,
) -> Result<(Links, Brokers)> {
    let options = LinkOptions {
        // Each connection has its own.
        brokers: Vec::new(),
        prefix: settings.prefix.clone(),
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
        subscriptions: inboxes.subscriptions(&settings.presence.part),
    };
    // What would be still in hand when a connection is lost comes by another one, or never.
    let are_several = settings.brokers.are_used_at_once();
    let brokers = Mutex::new(Vec::new());
    let links = Links::start(options, &settings.brokers, |way| {
        let broker = Arc::new(inboxes.broker(way, &settings.presence)?);
        lock(&brokers).push(Arc::clone(&broker));
        let (id, inboxes, monitor) = (id.clone(), Arc::clone(inboxes), Arc::clone(monitor));
        let relied_upon = settings.presence.is_relied_upon;
        Ok(move |_: &Publisher, event| match event {
            LinkEvent::Ready => {
                log::info!("ready as gateway {id}");
                inboxes.streams().connected(&broker.way, Instant::now());
                if broker.connected(relied_upon) {
                    monitor.metrics.reconnected();
                }
            }
            LinkEvent::Acknowledged(said) => inboxes.acknowledged(&broker, &said),
            LinkEvent::Message(message) => inboxes.receive(&broker, message),
            LinkEvent::Down(reason) => {
                broker.presence.forget();
                let streams = inboxes.streams();
                streams.disconnected(broker.way.number, Instant::now());
                if are_several {
                    inboxes.lost(&broker, &reason);
                }
            }
            _ => {}
        })
    })?;
    let brokers = brokers.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((links, Brokers::new(brokers)))
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

/// Calls through a broker, and takes note of what is called and who answers. What is lost with the broker
/// is repeated through another one, where that does no harm.
pub(super) fn call_traced(
    carrier: &Carrier,
    inbox: &Inbox,
    asked: &Asked<'_>,
    (broker, call): (&Broker, Call),
    trace: &mut Trace,
) -> std::result::Result<(Reply, Away), Failure> {
    trace.agent = agent_of(call.topic.as_str(), "request");
    if carrier.monitor.live.viewers() > 0 {
        trace.topic = Some(call.topic.clone());
        trace.inbox = Some(inbox.topic.clone());
        trace.correlation = Some(call.correlation);
    }
    let called = match carrier.brokers.are_several() && call.upload.is_none() {
        false => inbox.call(broker, asked.client, call)?,
        true => call_repeatedly(carrier, inbox, asked, (broker, call))?,
    };
    let answers = called.0.message.properties.user(AGENT);
    if let Some(id) = answers.and_then(|id| Id::new(id).ok()) {
        trace.agent = Some(id);
    }
    Ok(called)
}

fn call_repeatedly(
    carrier: &Carrier,
    inbox: &Inbox,
    asked: &Asked<'_>,
    (mut broker, call): (&Broker, Call),
) -> std::result::Result<(Reply, Away), Failure> {
    let brokers = &*carrier.brokers;
    let sole = broker.presence.sole_server(&call.topic);
    let mut tried = vec![broker.way.number];
    // Why it may have been executed already.
    let mut lost = None;
    loop {
        let failure = match inbox.call(broker, asked.client, call.clone()) {
            Err(failure @ (Failure::BrokerLost(_) | Failure::NotConnected(_))) => failure,
            Err(failure) => return Err(honest(failure, lost)),
            answered => return answered,
        };
        if matches!(failure, Failure::BrokerLost(_)) {
            lost.get_or_insert(failure.clone());
        }
        // What was not sent at all, and what only reads, does no harm when it is executed.
        let harmless = lost.is_none() || call.only_reads;
        let next = brokers.for_repeat(&tried, &call.topic, sole.as_deref(), harmless);
        broker = next.ok_or_else(|| honest(failure, lost.clone()))?;
        tried.push(broker.way.number);
        let name = &broker.way.broker;
        log::info!("request {}: repeated through {name}", asked.id);
        carrier.monitor.metrics.repeated();
    }
}

// What may have been executed through a broker that was lost is not called unexecuted because it could
// not be sent once more.
fn honest(failure: Failure, lost: Option<Failure>) -> Failure {
    let is_of_agent = matches!(failure, Failure::Told(_));
    match lost {
        Some(lost) if !is_of_agent && failure.meaning().2 == Outcome::NotExecuted => lost,
        _ => failure,
    }
}

pub(super) fn json_response(body: Bytes) -> Response {
    let mut response = Response::new(body.into());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}
