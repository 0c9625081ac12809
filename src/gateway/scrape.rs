//! What a scrape of a gateway gets: its own figures, and those of its agents.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use http::{HeaderMap, HeaderValue, header};

use super::brokers::Brokers;
use super::carrier::Carrier;
use super::seen::{Seen, Wanted};
use super::views::View;
use crate::base::process::{taken, unix_seconds};
use crate::base::version;
use crate::http::{Failure, Response};
use crate::monitor::metrics::{Sheet, scrape};
use crate::wire::stats::Work;

/// How many agents have figures of their own, and how many of their services: a label must not have any
/// number of values.
const MAX_LABELLED: usize = 500;
const MAX_SERVICES: usize = 2000;

/// What a scrape gets.
pub(super) fn metrics(carrier: &Carrier, headers: &HeaderMap) -> Result<Response, Failure> {
    let view = View::of(carrier);
    let is_ready = carrier.brokers.ready().is_ok();
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
        brokers,
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
            "recado_ready",
            "Whether requests can be answered, as /readyz says",
            f64::from(is_ready),
        ),
    ] {
        sheet.gauge(name, help, value)?;
    }
    let connected = brokers.iter().map(|it| {
        let is_up = f64::from(it.way.own.connected().is_ok());
        ([("broker", it.way.broker.as_str())], is_up)
    });
    sheet.gauges(
        "recado_broker_connected",
        "Whether there is a connection to the broker",
        connected,
    )?;
    agents(sheet, brokers)?;
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

// What agents say of their work.
fn agents(sheet: &mut Sheet<'_>, brokers: &Brokers) -> fmt::Result {
    let now = Instant::now();
    let agents = brokers
        .agents_known(&Wanted::first(MAX_LABELLED), now)
        .agents;
    let (all, silent) = brokers.states(now);
    sheet.gauges(
        "recado_agents",
        "Agents that are there, by whether they say in time what they do",
        [
            ([("state", "ready")], (all - silent) as f64),
            ([("state", "silent")], silent as f64),
        ],
    )?;
    // Of several with one id, the one that said something last.
    let mut shown: BTreeMap<&str, &Seen> = BTreeMap::new();
    for agent in &agents {
        let best = shown.entry(&agent.announcement.id).or_insert(agent);
        let rank = |it: &Seen| (it.work.is_none(), it.last_seen_ms);
        if rank(agent) < rank(best) {
            *best = agent;
        }
    }
    let shown: Vec<(&str, &Seen)> = shown.into_iter().take(MAX_LABELLED).collect();
    sheet.gauges(
        "recado_agent_last_seen_seconds",
        "How long ago an agent said something, in seconds",
        shown
            .iter()
            .map(|(id, it)| ([("agent", *id)], it.last_seen_ms as f64 / 1e3)),
    )?;
    let stats = shown
        .iter()
        .filter_map(|(id, it)| Some((*id, it.work.as_ref()?)));
    let stats: Vec<(&str, &Work)> = stats.collect();
    work(sheet, &stats)?;
    upstreams(sheet, &stats)
}

type Of = fn(&Work) -> u64;

#[rustfmt::skip]
const COUNTERS: [(&str, &str, Of); 5] = [
    ("recado_agent_requests", "Requests that an agent executed, well or not", |it| it.requests),
    ("recado_agent_errors", "Those that ended with an error of the agent's own", |it| it.errors),
    ("recado_agent_refused_requests", "Requests for which an agent had no place", |it| it.refused),
    ("recado_agent_dropped_requests", "Requests that an agent did not execute: malformed, repeated, too late", |it| it.dropped),
    ("recado_agent_reconnects", "Connections of an agent to the broker after the first one", |it| it.reconnects),
];

#[rustfmt::skip]
const GAUGES: [(&str, &str, Of); 5] = [
    ("recado_agent_in_work", "Requests that an agent executes", |it| it.in_work),
    ("recado_agent_queued", "Requests that wait for a worker of an agent", |it| it.queued),
    ("recado_agent_streams", "Bodies that an agent has on their way in pieces", |it| it.open_streams),
    ("recado_agent_resident_memory_bytes", "Memory of an agent, in bytes", |it| it.resident_bytes),
    ("recado_agent_threads", "Threads of an agent", |it| it.threads),
];

fn work(sheet: &mut Sheet<'_>, works: &[(&str, &Work)]) -> fmt::Result {
    for (name, help, of) in COUNTERS {
        let rows = works.iter().map(|(id, it)| ([("agent", *id)], of(it)));
        sheet.counters(name, help, rows)?;
    }
    for (name, help, of) in GAUGES {
        let rows = works
            .iter()
            .map(|(id, it)| ([("agent", *id)], of(it) as f64));
        sheet.gauges(name, help, rows)?;
    }
    Ok(())
}

fn upstreams(sheet: &mut Sheet<'_>, works: &[(&str, &Work)]) -> fmt::Result {
    // Services of one name count as one: all of them must be there.
    let mut accepts: BTreeMap<(&str, &str), bool> = BTreeMap::new();
    for (id, work) in works {
        for upstream in &work.upstreams {
            if let Some(state) = upstream.accepts {
                let all = accepts.entry((id, &upstream.service)).or_insert(true);
                *all &= state;
            }
        }
    }
    let rows = accepts.into_iter().take(MAX_SERVICES);
    sheet.gauges(
        "recado_agent_upstream_accepts",
        "Whether what an agent's service calls takes connections",
        rows.map(|((agent, service), accepts)| {
            ([("agent", agent), ("service", service)], f64::from(accepts))
        }),
    )
}
