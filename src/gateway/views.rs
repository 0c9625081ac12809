//! What shows this gateway to who runs it, or learns from it: the page, its events, metrics, and who is
//! there.

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Value, json};

use super::carrier::{Carrier, json_response};
use super::inbox::Inboxes;
use super::presence::Presence;
use super::seen::{Seen, State};
use crate::base::logging::excerpt;
use crate::base::version;
use crate::front::Client;
use crate::http::{Body, Failure, Request, Response};
use crate::link::Publisher;
use crate::monitor::Monitor;
use crate::monitor::histogram::Histogram;
use crate::monitor::live::{SHOWN, unix_millis};
use crate::monitor::metrics::{HOPS, Sheet, scrape};
use crate::monitor::process::{taken, unix_seconds};
use crate::wire::stats::Stats;

/// What is looked at.
#[derive(Clone)]
struct View {
    monitor: Arc<Monitor>,
    publisher: Publisher,
    inboxes: Arc<Inboxes>,
    presence: Arc<Presence>,
    started: SystemTime,
}

impl View {
    fn of(carrier: &Carrier) -> View {
        View {
            monitor: Arc::clone(&carrier.monitor),
            publisher: Arc::clone(&carrier.publisher),
            inboxes: Arc::clone(&carrier.inboxes),
            presence: Arc::clone(&carrier.presence),
            started: carrier.started,
        }
    }
}

/// Everybody who is there.
pub(super) fn agents(carrier: &Carrier, now: Instant) -> Result<Response, Failure> {
    carrier.ready()?;
    let agents = json!(carrier.presence.agents(now));
    Ok(json_response(agents.to_string().into()))
}

/// One of them.
pub(super) fn agent(carrier: &Carrier, id: &str, now: Instant) -> Result<Response, Failure> {
    carrier.ready()?;
    match carrier.presence.agent(id, now) {
        Some(agent) => Ok(json_response(json!(agent).to_string().into())),
        None => Err(Failure::UnknownAgent(excerpt(id.as_bytes()).to_string())),
    }
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
        "broker": carrier.broker,
        "inbox": carrier.inboxes.http_topic().as_str(),
        "ping": carrier.router.has_ping(),
        "bounds_ms": Histogram::bounds_ms(),
        "shows_per_second": SHOWN,
    })
}

fn state(view: &View) -> Value {
    let (monitor, connected) = (&view.monitor, view.publisher.ready());
    let errors = HOPS.iter().zip(monitor.metrics.errors());
    let errors: serde_json::Map<String, Value> = errors
        .map(|(hop, count)| (hop.as_str().to_owned(), json!(count)))
        .collect();
    let shown = view.presence.agents_known(Instant::now());
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
        "lost": shown.lost,
    })
}

/// What a scrape gets.
pub(super) fn metrics(carrier: &Carrier, headers: &HeaderMap) -> Result<Response, Failure> {
    let view = View::of(carrier);
    let is_ready = carrier.ready().is_ok();
    // It only fails where a string can't be written to.
    let scraped = scrape(headers, move |sheet| write(sheet, &view, is_ready));
    let (kind, sheet) = scraped.map_err(|_| Failure::Defect)?;
    let mut response = Response::new(sheet.into());
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

fn write(sheet: &mut Sheet<'_>, view: &View, is_ready: bool) -> fmt::Result {
    let View {
        monitor,
        publisher,
        inboxes,
        ..
    } = view;
    let build = [
        ("version", version::NUMBER),
        ("commit", version::COMMIT),
        ("features", version::FEATURES),
    ];
    sheet.gauges(
        "recado_build_info",
        "What this program was built from",
        [(build, 1.0)],
    )?;
    monitor.metrics.write(sheet)?;
    let connected = f64::from(publisher.connected().is_ok());
    for (name, help, value) in [
        (
            "recado_waiting_requests",
            "Requests that wait for a reply",
            inboxes.waiting() as f64,
        ),
        (
            "recado_streams",
            "Bodies on their way in pieces",
            inboxes.streams().count() as f64,
        ),
        (
            "recado_viewers",
            "Those who look at the live page",
            monitor.live.viewers() as f64,
        ),
        (
            "recado_broker_connected",
            "Whether there is a connection to the broker",
            connected,
        ),
        (
            "recado_ready",
            "Whether requests can be answered, as /readyz says",
            f64::from(is_ready),
        ),
    ] {
        sheet.gauge(name, help, value)?;
    }
    agent_figures(sheet, &view.presence.agents_known(Instant::now()).agents)?;
    let taken = taken();
    for (name, help, value) in [
        (
            "process_resident_memory_bytes",
            "Memory, in bytes",
            taken.resident_bytes as f64,
        ),
        ("process_threads", "Threads", taken.threads as f64),
        (
            "process_open_fds",
            "File descriptors",
            taken.descriptors as f64,
        ),
        (
            "process_max_fds",
            "How many file descriptors there may be",
            taken.most_descriptors as f64,
        ),
        (
            "process_start_time_seconds",
            "When it was started, in seconds since 1970",
            unix_seconds(view.started),
        ),
    ] {
        sheet.gauge(name, help, value)?;
    }
    sheet.seconds(
        "process_cpu_seconds",
        "Processor time, in seconds",
        taken.processor_seconds,
    )
}

/// How many agents have figures of their own: a label must not have any number of values.
const MAX_LABELLED: usize = 500;

// What agents say of their work: for each id the first that has it.
fn agent_figures(sheet: &mut Sheet<'_>, agents: &[Seen]) -> fmt::Result {
    let count = |state| agents.iter().filter(|it| it.state == state).count() as f64;
    sheet.gauges(
        "recado_agents",
        "Agents that are there, by whether they say in time what they do",
        [
            ([("state", "ready")], count(State::Ready)),
            ([("state", "silent")], count(State::Silent)),
        ],
    )?;
    let mut shown: Vec<&Seen> = agents.iter().collect();
    shown.dedup_by_key(|it| &it.announcement.id);
    shown.truncate(MAX_LABELLED);
    let label = |it: &&Seen| [("agent", it.announcement.id.clone())];
    sheet.gauges(
        "recado_agent_last_seen_seconds",
        "How long ago an agent said something, in seconds",
        shown
            .iter()
            .map(|it| (label(it), it.last_seen_ms as f64 / 1e3)),
    )?;
    let with_stats = || {
        shown
            .iter()
            .filter_map(|it| Some((label(it), it.stats.as_ref()?)))
    };
    type Of = fn(&Stats) -> u64;
    let counters: [(&str, &str, Of); 5] = [
        (
            "requests",
            "Requests that an agent executed, well or not",
            |it| it.requests,
        ),
        (
            "errors",
            "Those that ended with an error of the agent's own",
            |it| it.errors,
        ),
        (
            "refused_requests",
            "Requests for which an agent had no place",
            |it| it.refused,
        ),
        (
            "dropped_requests",
            "Requests that nobody could be told of, or waited for",
            |it| it.dropped,
        ),
        (
            "reconnects",
            "Connections of an agent to the broker after the first one",
            |it| it.reconnects,
        ),
    ];
    for (name, help, of) in counters {
        let rows = with_stats().map(|(label, stats)| (label, of(stats)));
        sheet.counters(&format!("recado_agent_{name}"), help, rows)?;
    }
    let gauges: [(&str, &str, Of); 5] = [
        ("in_work", "Requests that an agent executes", |it| {
            it.in_work
        }),
        (
            "queued",
            "Requests that wait for a worker of an agent",
            |it| it.queued,
        ),
        (
            "streams",
            "Bodies that an agent has on their way in pieces",
            |it| it.open_streams,
        ),
        (
            "resident_memory_bytes",
            "Memory of an agent, in bytes",
            |it| it.resident_bytes,
        ),
        ("threads", "Threads of an agent", |it| it.threads),
    ];
    for (name, help, of) in gauges {
        let rows = with_stats().map(|(label, stats)| (label, of(stats) as f64));
        sheet.gauges(&format!("recado_agent_{name}"), help, rows)?;
    }
    let states = with_stats().flat_map(|(label, stats)| {
        let [(_, agent)] = label;
        stats.upstreams.iter().filter_map(move |it| {
            let labels = [("agent", agent.clone()), ("service", it.service.clone())];
            Some((labels, f64::from(it.accepts?)))
        })
    });
    sheet.gauges(
        "recado_agent_upstream_accepts",
        "Whether what an agent's service calls takes connections",
        states,
    )
}
