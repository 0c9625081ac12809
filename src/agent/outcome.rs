//! How a request ended.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::base::logging::excerpt;
use crate::base::millis::millis;
use crate::http::problem::Outcome;
use crate::http::{Failure, Response};

/// How a request ended.
#[derive(Debug, Clone)]
pub(super) enum Ended {
    /// With an answer of the upstream.
    Answered(Response, Spent),
    /// With an error of the agent's own.
    Failed(Failure, Spent),
}

impl Ended {
    /// What was not executed may be tried again.
    pub fn is_final(&self) -> bool {
        match self {
            Ended::Answered(..) => true,
            Ended::Failed(failure, _) => failure.meaning().2 == Outcome::Unknown,
        }
    }

    /// Whether it is an answer whose body is still to come: nobody else can have that.
    pub fn is_stream(&self) -> bool {
        matches!(self, Ended::Answered(response, _) if response.body().stream().is_some())
    }

    pub fn bytes(&self) -> usize {
        match self {
            Ended::Answered(response, _) => {
                let fields = response.headers().iter();
                let head = fields.map(|(name, value)| name.as_str().len() + value.len());
                head.sum::<usize>() + response.body().len() + OVERHEAD
            }
            Ended::Failed(..) => OVERHEAD,
        }
    }
}

/// What an entry costs besides the body of its reply, in bytes.
const OVERHEAD: usize = 512;

/// How long a request was where.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    pub queue: Duration,
    pub upstream: Duration,
}

/// What the log calls a request.
#[derive(Clone)]
pub(super) struct Asked {
    pub words: String,
    pub id: String,
}

/// An answer, and what the log calls it: in JSON mode what was asked, and what was answered. It is put into
/// words only where they are shown.
pub(super) struct Executed {
    pub asked: Asked,
    pub question: Option<Bytes>,
    pub response: Response,
}

impl fmt::Display for Executed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (words, body) = (self.asked.words.as_bytes(), self.response.body());
        match (&self.question, body.stream()) {
            (Some(question), _) => {
                let answer = excerpt(body.as_bytes());
                write!(f, "{} -> response: {answer}", excerpt(question))
            }
            (None, None) => write!(f, "{} -> response: {} bytes", excerpt(words), body.len()),
            (None, Some(_)) => write!(f, "{} -> response: a stream", excerpt(words)),
        }
    }
}

/// Writes the line of a request that was executed, well or not.
pub(super) fn log_end(executed: &Result<Executed, (Asked, Failure)>, spent: Spent) {
    let (queue, upstream) = (millis(spent.queue), millis(spent.upstream));
    match executed {
        Ok(executed) => {
            let id = executed.asked.id.as_str();
            let status = executed.response.status().as_u16();
            log::info!(
                request_id = id, status, queue_ms = queue, upstream_ms = upstream;
                "request: {executed} ({id}, {status}, queue={queue} upstream={upstream})"
            );
        }
        Err((asked, failure)) => {
            let (status, hop, _) = failure.meaning();
            let (status, hop, id) = (status.as_u16(), hop.as_str(), asked.id.as_str());
            // What only its caller can mend is no matter of whoever runs this.
            let level = match status {
                500.. => log::Level::Warn,
                _ => log::Level::Info,
            };
            log::log!(
                level,
                kind:% = format_args!("{status} {hop}"), request_id = id, status, hop,
                queue_ms = queue, upstream_ms = upstream;
                "request: {} -> {status} at the {hop} ({id}, queue={queue} upstream={upstream}): {}",
                excerpt(asked.words.as_bytes()),
                excerpt(failure.to_string().as_bytes())
            );
        }
    }
}
