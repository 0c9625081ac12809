//! What every reply says, in both modes: its status, whose error it is, where the time went. Pure.

use std::fmt;
use std::time::Duration;

use ::http::StatusCode;

use super::message::Properties;

/// The user property that carries a reply's HTTP status.
pub const STATUS: &str = "status";
/// The user property that marks a reply as the agent's own error, and names its hop.
pub const ERROR: &str = "error";
/// The user property that says how long a request was in the agent's queue and at its upstream.
pub const TIMING: &str = "timing";
/// The user property that names the agent that answers, where others could have.
pub const AGENT: &str = "agent";
/// The media type of JSON payloads.
pub const JSON: &str = "application/json";
/// The media type of problem documents (RFC 9457).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Which component an error belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// api_1.
    Gateway,
    /// The MQTT broker.
    Broker,
    /// The agent, or its absence.
    Agent,
    /// The HTTP service behind the agent.
    Upstream,
}

impl Hop {
    /// The name in problem documents and in the user property `error`.
    pub fn as_str(self) -> &'static str {
        match self {
            Hop::Gateway => "gateway",
            Hop::Broker => "broker",
            Hop::Agent => "agent",
            Hop::Upstream => "upstream",
        }
    }

    /// Reads a name; only hops at the agent's side can be named by a reply.
    pub fn from_reply(name: &str) -> Option<Hop> {
        match name {
            "agent" => Some(Hop::Agent),
            "upstream" => Some(Hop::Upstream),
            _ => None,
        }
    }
}

/// Why a reply in JSON mode can't be passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadReply(pub(super) String);

impl fmt::Display for BadReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The hop that a reply names as the one that failed, where the agent itself reports an error.
///
/// Errors: it names none that could be at its side.
pub fn error(properties: &Properties) -> Result<Option<Hop>, BadReply> {
    match properties.user(ERROR) {
        None => Ok(None),
        Some(name) => match Hop::from_reply(name) {
            Some(hop) => Ok(Some(hop)),
            None => Err(BadReply(format!("its error {name:?} names no hop"))),
        },
    }
}

/// The status that a reply states.
pub(super) fn status(text: &str) -> Result<StatusCode, BadReply> {
    text.parse()
        .ok()
        .filter(|code| (200..=599).contains(code))
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| BadReply(format!("its status {text:?} is not 200 to 599")))
}

/// What the agent says of its time: microseconds in its queue and at its upstream.
pub fn timing_text(queue: Duration, upstream: Duration) -> String {
    format!(
        "queue={};upstream={}",
        queue.as_micros(),
        upstream.as_micros()
    )
}

/// Reads what the agent says of its time; zero where it says nothing.
pub fn timing(properties: &Properties) -> (Duration, Duration) {
    let text = properties.user(TIMING).unwrap_or_default();
    let share = |name: &str| {
        let value = text.split(';').find_map(|part| part.strip_prefix(name));
        // An hour is longer than any request lives; more is a lie that could overflow a sum.
        let micros = value.and_then(|value| value.parse::<u64>().ok());
        Duration::from_micros(micros.unwrap_or_default().min(3_600_000_000))
    };
    (share("queue="), share("upstream="))
}
