//! How a request ended.

use std::time::Duration;

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
