//! One line for each request.

use std::borrow::Cow;
use std::fmt;

use http::uri::PathAndQuery;
use log::kv::{Error, Key, Source, Value, VisitSource};
use log::{Level, Record};

use super::trace::Trace;
use crate::base::logging::{Excerpt, excerpt};
use crate::base::millis::{Millis, millis};
use crate::front::Exchange;
use crate::http::{Problem, client_gone};

const TARGET: &str = "recado::access";
/// Targets up to this length are shown as they are, in bytes.
const SHORT: usize = 256;

/// Writes the line of a request; and where somebody has to do something about it, a warning too.
pub(super) fn write(exchange: &Exchange<'_>, failure: Option<&Problem>, trace: &Trace) {
    if Level::Info <= log::max_level() {
        let method = exchange.asked.map_or("-", |(method, _)| method.as_str());
        let line = Line {
            method: excerpt(method.as_bytes()),
            target: target(exchange),
            detail: failure.map(|problem| excerpt(problem.detail.as_bytes())),
            exchange,
            failure,
            trace,
        };
        // In one piece: each would find its way through a formatter, a logger and a writer.
        let text = line.to_string();
        log::logger().log(
            &Record::builder()
                .level(Level::Info)
                .target(TARGET)
                .key_values(&line)
                .args(format_args!("{text}"))
                .build(),
        );
    }
    if let Some(problem) = failure.filter(|problem| calls_for_action(problem)) {
        let (status, hop) = (problem.status.as_u16(), problem.hop.as_str());
        log::warn!(
            kind:% = format_args!("{status} {hop}"), request_id = trace.id.as_str();
            "request {}: {status} at the {hop}: {}",
            trace.id,
            excerpt(problem.detail.as_bytes())
        );
    }
}

// What only its client can mend is no matter of whoever runs this.
fn calls_for_action(problem: &Problem) -> bool {
    problem.status.is_server_error() && problem.status != client_gone()
}

// It stands between quotes. A target has no characters that could do harm besides, unless it is one that
// only tiny_http lets through.
fn target<'a>(exchange: &Exchange<'a>) -> Cow<'a, str> {
    let Some((_, target)) = exchange.asked else {
        return "-".into();
    };
    let plain = target.path_and_query().map(PathAndQuery::as_str);
    let is_plain = |c: u8| c.is_ascii_graphic() && c != b'"';
    match plain.filter(|it| it.len() <= SHORT && it.bytes().all(is_plain)) {
        Some(plain) if target.authority().is_none() => plain.into(),
        _ => {
            let shown = excerpt(target.to_string().as_bytes()).to_string();
            shown.replace('"', "\\\"").into()
        }
    }
}

struct Line<'a> {
    method: Excerpt<'a>,
    target: Cow<'a, str>,
    detail: Option<Excerpt<'a>>,
    exchange: &'a Exchange<'a>,
    failure: Option<&'a Problem>,
    trace: &'a Trace,
}

impl Line<'_> {
    fn status(&self) -> u16 {
        self.exchange.response.status().as_u16()
    }

    fn hop(&self) -> &'static str {
        self.failure.map_or(self.trace.hop, |it| it.hop).as_str()
    }
}

// The same by name, for log lines that are objects.
impl Source for Line<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), Error> {
        let (exchange, trace) = (self.exchange, self.trace);
        for (name, value) in [
            ("client", Value::from_display(&trace.client)),
            ("method", Value::from_display(&self.method)),
            ("target", Value::from(&*self.target)),
            ("status", Value::from(self.status())),
            ("bytes_in", Value::from(exchange.received)),
            ("bytes_out", Value::from(exchange.sent)),
            ("whole", Value::from(exchange.cut.is_none())),
            ("duration_ms", Value::from(millis(exchange.took))),
            ("hop", Value::from(self.hop())),
            ("route", Value::from(&*trace.route)),
            ("request_id", Value::from(trace.id.as_str())),
        ] {
            visitor.visit_pair(Key::from_str(name), value)?;
        }
        if let Some(agent) = &trace.agent {
            visitor.visit_pair(Key::from_str("agent"), Value::from(agent.as_str()))?;
        }
        if let Some(detail) = &self.detail {
            visitor.visit_pair(Key::from_str("detail"), Value::from_display(detail))?;
        }
        Ok(())
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (exchange, trace) = (self.exchange, self.trace);
        write!(
            f,
            "{} \"{} {}\" {} in={} out={} ms={} hop={} agent={} id={}",
            trace.client,
            self.method,
            self.target,
            self.status(),
            exchange.received,
            exchange.sent,
            Millis(exchange.took),
            self.hop(),
            trace.agent.as_ref().map_or("-", |id| id.as_str()),
            trace.id,
        )?;
        if let Some(cut) = exchange.cut {
            write!(f, " cut={}", cut.as_str())?;
        }
        match &self.detail {
            None => Ok(()),
            Some(detail) => write!(f, ": {detail}"),
        }
    }
}
