//! What is counted of requests, and how a scrape reads it (Prometheus text format 0.0.4, and OpenMetrics
//! 1.0). No label has more values than there are routes, methods, statuses, or agents.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, Method, header};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder, NoLabelSet,
    prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::histogram::Histogram;
use super::trace::Trace;
use crate::front::{Cut, Exchange};
use crate::http::Problem;
use crate::wire::Hop;

/// Where errors happen, in the order of a request's way.
pub const HOPS: [Hop; 4] = [Hop::Gateway, Hop::Broker, Hop::Agent, Hop::Upstream];

/// Why a message is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// Its caller has stopped waiting.
    Late,
    /// Nobody waits for it, or has ever.
    Unknown,
    /// It was kept by the broker, so it is from before.
    Retained,
    /// It does not say what it answers.
    Uncorrelated,
    /// It is on a topic where it does not belong.
    Foreign,
    /// It can't be read.
    Malformed,
}

impl Dropped {
    const ALL: [Dropped; 6] = [
        Dropped::Late,
        Dropped::Unknown,
        Dropped::Retained,
        Dropped::Uncorrelated,
        Dropped::Foreign,
        Dropped::Malformed,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Dropped::Late => "late",
            Dropped::Unknown => "unknown",
            Dropped::Retained => "retained",
            Dropped::Uncorrelated => "uncorrelated",
            Dropped::Foreign => "foreign",
            Dropped::Malformed => "malformed",
        }
    }
}

/// What is counted.
#[derive(Default)]
pub struct Metrics {
    answers: Family<Labels, Counter>,
    failures: Family<Failed, Counter>,
    requests: AtomicU64,
    errors: [AtomicU64; HOPS.len()],
    received: AtomicU64,
    sent: AtomicU64,
    /// How long requests take until there is an answer to send.
    pub total: Histogram,
    gateway: Histogram,
    broker: Histogram,
    queue: Histogram,
    upstream: Histogram,
    dropped: [AtomicU64; Dropped::ALL.len()],
    // By the client, and by where they came from.
    cut: [AtomicU64; 2],
    reconnects: AtomicU64,
    repeated: AtomicU64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels {
    route: Arc<str>,
    method: &'static str,
    code: u16,
}

// Who failed, and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Failed {
    hop: &'static str,
    code: u16,
}

impl EncodeLabelSet for Failed {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let code = self.code.to_string();
        [("hop", self.hop), ("code", &*code)].encode(encoder)
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let code = self.code.to_string();
        let pairs = [
            ("route", &*self.route),
            ("method", self.method),
            ("code", &code),
        ];
        pairs.encode(encoder)
    }
}

// A stranger may invent any other.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "other",
    }
}

impl Metrics {
    /// A request has ended.
    pub(super) fn ended(&self, exchange: &Exchange<'_>, failure: Option<&Problem>, trace: &Trace) {
        let labels = Labels {
            route: Arc::clone(&trace.route),
            method: exchange.asked.map_or("other", |(method, _)| known(method)),
            code: exchange.response.status().as_u16(),
        };
        self.answers.get_or_create(&labels).inc();
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.received
            .fetch_add(exchange.received, Ordering::Relaxed);
        self.sent.fetch_add(exchange.sent, Ordering::Relaxed);
        if let Some(problem) = failure {
            let hop = HOPS.iter().position(|hop| *hop == problem.hop);
            self.errors[hop.unwrap_or(0)].fetch_add(1, Ordering::Relaxed);
            let failed = Failed {
                hop: problem.hop.as_str(),
                code: problem.status.as_u16(),
            };
            self.failures.get_or_create(&failed).inc();
        }
        if let Some(cut) = exchange.cut {
            self.cut[cut as usize].fetch_add(1, Ordering::Relaxed);
        }
        let Some(shares) = trace.shares.filter(|_| !trace.is_own) else {
            return;
        };
        self.total.observe(shares.total);
        self.gateway.observe(shares.gateway());
        if let Some(away) = shares.away {
            self.broker.observe(away.broker());
            self.queue.observe(away.queue);
            self.upstream.observe(away.upstream);
        }
    }

    /// A message of the broker is not used.
    pub fn dropped(&self, why: Dropped) {
        self.dropped[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// There is a connection to a broker again.
    pub fn reconnected(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was sent once more, through another broker.
    pub fn repeated(&self) {
        self.repeated.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests have ended.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How many of them failed at each hop, in the order of [`HOPS`].
    pub fn errors(&self) -> [u64; HOPS.len()] {
        std::array::from_fn(|hop| self.errors[hop].load(Ordering::Relaxed))
    }

    /// Writes what is counted.
    ///
    /// Errors: the sheet can't be written.
    pub fn write(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        sheet.family(
            "recado_http_requests",
            "Requests that have ended, by route, method and status",
            &self.answers,
        )?;
        let durations = [
            ("total", &self.total),
            ("gateway", &self.gateway),
            ("broker", &self.broker),
            ("queue", &self.queue),
            ("upstream", &self.upstream),
        ];
        sheet.durations(&durations)?;
        sheet.family(
            "recado_request_errors",
            "Requests that recado answered with an error of its own, by where it happened and status",
            &self.failures,
        )?;
        let bytes = "Bytes of the bodies of";
        sheet.counter(
            "recado_request_body_bytes",
            &format!("{bytes} requests"),
            load(&self.received),
        )?;
        sheet.counter(
            "recado_response_body_bytes",
            &format!("{bytes} answers"),
            load(&self.sent),
        )?;
        let cut = [Cut::Client, Cut::Source].into_iter().zip(&self.cut);
        sheet.counters(
            "recado_cut_answers",
            "Answers that were not sent to their end, by who broke them off",
            cut.map(|(cut, count)| ([("by", cut.as_str())], load(count))),
        )?;
        sheet.counter(
            "recado_late_replies",
            "Replies whose callers had stopped waiting",
            load(&self.dropped[Dropped::Late as usize]),
        )?;
        let dropped = Dropped::ALL.iter().zip(&self.dropped);
        sheet.counters(
            "recado_dropped_messages",
            "Messages from the broker that were not used, by reason",
            dropped.map(|(why, count)| ([("reason", why.as_str())], load(count))),
        )?;
        sheet.counter(
            "recado_reconnects",
            "Connections to a broker after the first one",
            load(&self.reconnects),
        )?;
        sheet.counter(
            "recado_repeated_requests",
            "Requests that were sent once more, through another broker, since one was lost",
            load(&self.repeated),
        )
    }
}

/// What a scrape writes on.
pub struct Sheet<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Sheet<'_> {
    /// Writes a value that goes up and down.
    ///
    /// Errors: the sheet can't be written.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.head(name, help, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    /// The same for each of several label sets.
    ///
    /// Errors: the sheet can't be written.
    pub fn gauges<const N: usize, L: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = ([(&'static str, L); N], f64)>,
    ) -> fmt::Result {
        let mut head = self.head(name, help, MetricType::Gauge)?;
        for (labels, value) in rows {
            let labels = texts(&labels);
            head.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// Writes a count that only grows; its name gets `_total`.
    ///
    /// Errors: the sheet can't be written.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        count(&mut self.head(name, help, MetricType::Counter)?, value)
    }

    /// The same for each of several label sets.
    ///
    /// Errors: the sheet can't be written.
    pub fn counters<const N: usize, L: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = ([(&'static str, L); N], u64)>,
    ) -> fmt::Result {
        let mut head = self.head(name, help, MetricType::Counter)?;
        for (labels, value) in rows {
            let labels = texts(&labels);
            count(&mut head.encode_family(&labels)?, value)?;
        }
        Ok(())
    }

    /// Writes seconds of processor time, or the like; its name gets `_total`.
    ///
    /// Errors: the sheet can't be written.
    pub fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut head = self.head(name, help, MetricType::Counter)?;
        head.encode_counter::<NoLabelSet, f64, f64>(&value, None)
    }

    fn family<L>(&mut self, name: &str, help: &str, family: &Family<L, Counter>) -> fmt::Result
    where
        L: EncodeLabelSet + Clone + std::hash::Hash + Eq,
    {
        let head = self.head(name, help, MetricType::Counter)?;
        family.encode(head)
    }

    fn durations(&mut self, durations: &[(&str, &Histogram)]) -> fmt::Result {
        let help = "Time until there was an answer to send, by where it was spent, in seconds";
        let mut head = self.head(
            "recado_request_duration_seconds",
            help,
            MetricType::Histogram,
        )?;
        for (hop, histogram) in durations {
            let buckets = histogram.buckets();
            let count = buckets.iter().map(|(_, count)| count).sum();
            let labels = [("hop", *hop)];
            let mut family = head.encode_family(&labels)?;
            family.encode_histogram::<NoLabelSet>(histogram.sum(), count, &buckets, None)?;
        }
        Ok(())
    }

    fn head<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        let help = format!("{help}.");
        self.encoder.encode_descriptor(name, &help, None, kind)
    }
}

fn texts<'a, const N: usize, L: AsRef<str>>(
    labels: &'a [(&'static str, L); N],
) -> [(&'a str, &'a str); N] {
    std::array::from_fn(|number| (labels[number].0, labels[number].1.as_ref()))
}

fn count(encoder: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_counter::<NoLabelSet, u64, f64>(&value, None)
}

/// The media type of OpenMetrics, as a scraper asks for it and gets it.
const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Lets `write` fill a sheet, in the form that a request asks for. Returns it with its media type.
///
/// Errors: `write` fails.
pub fn scrape(
    headers: &HeaderMap,
    write: impl Fn(&mut Sheet<'_>) -> fmt::Result + Send + Sync + 'static,
) -> Result<(&'static str, String), fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(write)));
    let mut sheet = String::new();
    match is_wished(headers) {
        true => text::encode(&mut sheet, &registry).map(|()| (OPEN_METRICS_TYPE, sheet)),
        false => prometheus_text::encode(&mut sheet, &registry)
            .map(|()| (prometheus_text::CONTENT_TYPE, sheet)),
    }
}

// Whether OpenMetrics is asked for, and not with a weight of zero (RFC 9110, section 12.4.2).
fn is_wished(headers: &HeaderMap) -> bool {
    let fields = headers.get_all(header::ACCEPT).iter();
    let mut ranges = fields.flat_map(|field| field.to_str().unwrap_or_default().split(','));
    ranges.any(|range| {
        let mut parts = range
            .split(';')
            .map(|part| part.trim().to_ascii_lowercase());
        let is_kind = parts.next().is_some_and(|kind| kind == OPEN_METRICS);
        let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f64>().ok());
        is_kind && weight != Some(0.0)
    })
}

struct Scrape<W>(W);

impl<W> fmt::Debug for Scrape<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl<W> Collector for Scrape<W>
where
    W: Fn(&mut Sheet<'_>) -> fmt::Result + Send + Sync + 'static,
{
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(&mut Sheet { encoder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scraped(accept: &str, metrics: &Arc<Metrics>) -> (&'static str, String) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        let metrics = Arc::clone(metrics);
        scrape(&headers, move |sheet| metrics.write(sheet)).unwrap()
    }

    #[test]
    fn a_scrape_has_the_form_that_it_asks_for() {
        let metrics = Arc::new(Metrics::default());
        metrics.dropped(Dropped::Late);
        metrics.total.observe(std::time::Duration::from_millis(2));
        let (kind, sheet) = scraped("*/*", &metrics);
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
        let late = "# TYPE recado_late_replies_total counter\nrecado_late_replies_total 1\n";
        assert!(sheet.contains(late), "{sheet}");
        let accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.2";
        let (kind, sheet) = scraped(accept, &metrics);
        assert!(kind.starts_with(OPEN_METRICS), "{kind}");
        let unwanted = "application/openmetrics-text;q=0, text/plain";
        assert!(scraped(unwanted, &metrics).0.starts_with("text/plain"));
        let late = "# TYPE recado_late_replies counter\nrecado_late_replies_total 1\n";
        assert!(sheet.contains(late), "{sheet}");
        assert!(sheet.ends_with("# EOF\n"), "{sheet}");
        // The labels of a bucket have another order in each.
        for sheet in [sheet, scraped("", &metrics).1] {
            let is_bucket = |line: &&str| {
                ["hop=\"total\"", "le=\"0.0025\""]
                    .iter()
                    .all(|label| line.contains(label))
            };
            let counts: Vec<&str> = sheet.lines().filter(is_bucket).collect();
            assert!(
                matches!(counts[..], [one] if one.ends_with(" 1")),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn every_reason_has_its_own_count() {
        let metrics = Arc::new(Metrics::default());
        for (number, why) in Dropped::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, number);
            for _ in 0..=number {
                metrics.dropped(why);
            }
        }
        let (_, sheet) = scraped("*/*", &metrics);
        for (number, why) in Dropped::ALL.into_iter().enumerate() {
            let why = why.as_str();
            let line = format!(
                "recado_dropped_messages_total{{reason=\"{why}\"}} {}",
                number + 1
            );
            assert!(sheet.contains(&line), "{line}: {sheet}");
        }
    }
}
