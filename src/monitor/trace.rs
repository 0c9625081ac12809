//! What is known of one request, besides what its client sees.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::base::millis::Millis;
use crate::base::topic::{Id, Topic};
use crate::http::RequestId;
use crate::wire::{Correlation, Hop};

/// What a route is called that a request did not lead to.
fn no_route() -> Arc<str> {
    static NO_ROUTE: LazyLock<Arc<str>> = LazyLock::new(|| "none".into());
    Arc::clone(&NO_ROUTE)
}

/// What is known of one request. It travels with the answer, as an extension of it.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Its number, if those who look on were told that it has begun.
    pub number: Option<u64>,
    /// Its name.
    pub id: RequestId,
    /// Who sent it, as far as proxies are believed.
    pub client: IpAddr,
    /// The pattern of its route.
    pub route: Arc<str>,
    /// Whether it leads to no route: it is for the gateway itself, or is sent on by a 308.
    pub is_own: bool,
    /// Who answered.
    pub hop: Hop,
    /// The agent that it went to, if that is known.
    pub agent: Option<Id>,
    /// Where it was published; only while somebody looks, as the next one.
    pub topic: Option<Topic>,
    /// Where its reply was expected.
    pub inbox: Option<Topic>,
    /// What it was published with; likewise.
    pub correlation: Option<Correlation>,
    /// Where its time went until there was an answer.
    pub shares: Option<Shares>,
}

impl Trace {
    /// Of a request that was refused before anything was known of it.
    pub fn of_nothing(id: Option<RequestId>, client: IpAddr) -> Trace {
        Trace {
            number: None,
            id: id.unwrap_or_else(RequestId::random),
            client,
            route: no_route(),
            is_own: false,
            hop: Hop::Gateway,
            agent: None,
            topic: None,
            inbox: None,
            correlation: None,
            shares: None,
        }
    }
}

/// Where the time of a request went, until there was an answer to send.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shares {
    /// All of it.
    pub total: Duration,
    /// What was spent away from the gateway; `None`: it did not leave.
    pub away: Option<Away>,
}

/// Where a request's time went that left the gateway.
#[derive(Debug, Clone, Copy, Default)]
pub struct Away {
    /// Between publishing it and having the reply.
    pub total: Duration,
    /// In the agent's queue, as that says.
    pub queue: Duration,
    /// At the upstream, as the agent says.
    pub upstream: Duration,
}

impl Shares {
    /// What the gateway itself took.
    pub fn gateway(&self) -> Duration {
        let away = self.away.map(|away| away.total).unwrap_or_default();
        self.total.saturating_sub(away)
    }
}

impl Away {
    /// What the broker took, and the network to it from both sides.
    pub fn broker(&self) -> Duration {
        self.total.saturating_sub(self.queue + self.upstream)
    }
}

/// The value of Server-Timing.
impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gateway;dur={}", Millis(self.gateway()))?;
        let Some(away) = &self.away else {
            return Ok(());
        };
        write!(
            f,
            ", broker;dur={}, queue;dur={}, upstream;dur={}",
            Millis(away.broker()),
            Millis(away.queue),
            Millis(away.upstream),
        )
    }
}
