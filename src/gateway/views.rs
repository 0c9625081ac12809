//! What shows this gateway to who runs it, or learns from it: who is there, and the events of the page.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{HeaderValue, Method, header};
use serde::Serialize;
use serde_json::{Value, json};

use super::brokers::Brokers;
use super::carrier::{Carrier, json_response};
use super::inbox::Inboxes;
use super::seen::Wanted;
use crate::base::logging::excerpt;
use crate::base::version;
use crate::front::Client;
use crate::http::bad_request::BadRequest;
use crate::http::{Body, Failure, Request, Response};
use crate::monitor::Monitor;
use crate::monitor::histogram::Histogram;
use crate::monitor::live::{SHOWN, unix_millis};
use crate::monitor::metrics::HOPS;

/// How many agents a list has unless more or less are asked for, and how many it may have.
const PAGE: usize = 1000;
const MAX_PAGE: usize = 10_000;
/// How many agents the page is told of.
const MAX_SHOWN: usize = 200;

/// What is looked at.
#[derive(Clone)]
pub(super) struct View {
    pub monitor: Arc<Monitor>,
    pub inboxes: Arc<Inboxes>,
    pub brokers: Arc<Brokers>,
    pub started: SystemTime,
}

impl View {
    pub fn of(carrier: &Carrier) -> View {
        View {
            monitor: Arc::clone(&carrier.monitor),
            inboxes: Arc::clone(&carrier.inboxes),
            brokers: Arc::clone(&carrier.brokers),
            started: carrier.started,
        }
    }
}

/// Those who are there, in pages.
pub(super) fn agents(
    carrier: &Carrier,
    request: &Request,
    now: Instant,
) -> Result<Response, Failure> {
    let wanted = wanted(request.uri().query().unwrap_or_default())?;
    carrier.brokers.ready()?;
    let shown = carrier.brokers.agents(&wanted, now);
    let mut response = document(&shown);
    // RFC 8288, section 3.
    if let Some(next) = &shown.next {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("after", next);
        query.append_pair("limit", &wanted.limit.to_string());
        if let Some(service) = &wanted.service {
            query.append_pair("service", service);
        }
        let link = format!("</agents?{}>; rel=\"next\"", query.finish());
        if let Ok(link) = HeaderValue::from_str(&link) {
            response.headers_mut().insert(header::LINK, link);
        }
    }
    Ok(response)
}

// What a query asks for.
//
// Errors: it can't be answered; why.
fn wanted(query: &str) -> Result<Wanted, Failure> {
    let mut wanted = Wanted::first(PAGE);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "limit" => {
                let limit = value
                    .parse()
                    .ok()
                    .filter(|limit| (1..=MAX_PAGE).contains(limit));
                wanted.limit = limit.ok_or_else(|| {
                    BadRequest::new("limit is how many agents to list, from 1 to 10000")
                })?;
            }
            "after" => wanted.after = value.into_owned(),
            "service" => wanted.service = Some(value.into_owned()),
            // Whatever else it says is for somebody else.
            _ => {}
        }
    }
    Ok(wanted)
}

/// One of them.
pub(super) fn agent(carrier: &Carrier, id: &str, now: Instant) -> Result<Response, Failure> {
    carrier.brokers.ready()?;
    match carrier.brokers.agent(id, now) {
        Some(agent) => Ok(document(&agent)),
        None => Err(Failure::UnknownAgent(excerpt(id.as_bytes()).to_string())),
    }
}

// Strings and numbers only, with text for keys: it can't fail.
fn document(of: &impl Serialize) -> Response {
    json_response(serde_json::to_vec(of).unwrap_or_default().into())
}

/// The events of the page, for as long as their client looks.
pub(super) fn events(
    carrier: &Carrier,
    request: &Request,
    client: &Client<'_>,
) -> Result<Response, Failure> {
    if !client.takes_streams() {
        return Err(Failure::NoEvents);
    }
    let mut response = Response::default();
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("text/event-stream");
    headers.insert(header::CONTENT_TYPE, kind);
    let never = HeaderValue::from_static("no-store");
    headers.insert(header::CACHE_CONTROL, never);
    // For nginx, which would wait for more.
    let unbuffered = HeaderValue::from_static("no");
    headers.insert("x-accel-buffering", unbuffered);
    if *request.method() == Method::HEAD {
        return Ok(response);
    }
    let (view, live) = (View::of(carrier), &carrier.monitor.live);
    let watching = live.watch(&hello(carrier), move || state(&view));
    let watching = watching.ok_or(Failure::TooManyViewers)?;
    Ok(response.map(|_| Body::Stream(Arc::new(watching))))
}

fn hello(carrier: &Carrier) -> Value {
    json!({
        "gateway": carrier.name,
        "version": version::NUMBER,
        "broker": carrier.brokers.names(),
        "inbox": carrier.inboxes.http_topic().as_str(),
        "ping": carrier.router.has_ping(),
        "bounds_ms": Histogram::bounds_ms(),
        "shows_per_second": SHOWN,
    })
}

fn state(view: &View) -> Value {
    let (monitor, connected) = (&view.monitor, view.brokers.connected());
    let errors = HOPS.iter().zip(monitor.metrics.errors());
    let errors: serde_json::Map<String, Value> = errors
        .map(|(hop, count)| (hop.as_str().to_owned(), json!(count)))
        .collect();
    let shown = view
        .brokers
        .agents_known(&Wanted::first(MAX_SHOWN), Instant::now());
    json!({
        "time": unix_millis(),
        "connected": connected.is_ok(),
        "why": connected.err(),
        "requests": monitor.metrics.requests(),
        "waiting": view.inboxes.waiting(),
        "streams": view.inboxes.streams().count(),
        "viewers": monitor.live.viewers(),
        "errors": errors,
        "latency": monitor.metrics.total.counts(),
        "unshown": monitor.live.unshown(),
        "agents": shown.agents,
        "more_agents": shown.more_agents,
        "lost": shown.lost,
    })
}
