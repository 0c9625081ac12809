//! How a request ended.

use std::time::Duration;

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

/// An answer, and what the log calls it.
pub(super) struct Executed {
    pub asked: Asked,
    pub answered: String,
    pub response: Response,
}

/// Writes the line of a request that was executed, well or not.
pub(super) fn log_end(executed: &Result<Executed, (Asked, Failure)>, spent: Spent) {
    let (queue, upstream) = (millis(spent.queue), millis(spent.upstream));
    match executed {
        Ok(executed) => {
            let (asked, id) = (&executed.asked.words, executed.asked.id.as_str());
            let status = executed.response.status().as_u16();
            log::info!(
                request_id = id, status, queue_ms = queue, upstream_ms = upstream;
                "request: {} -> response: {} ({id}, {status}, queue={queue} upstream={upstream})",
                excerpt(asked.as_bytes()),
                executed.answered
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
