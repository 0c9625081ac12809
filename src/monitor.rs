//! What can be seen of a gateway from outside: the access log, metrics, and the live page.

mod access_log;
pub mod histogram;
pub mod live;
pub mod metrics;
#[cfg(feature = "page")]
pub mod page;
pub mod trace;

use std::sync::Arc;

use crate::front::Exchange;
use crate::http::{Problem, RequestId, X_REQUEST_ID};
use live::Live;
use metrics::Metrics;
use trace::Trace;

/// Takes note of all requests.
#[derive(Default)]
pub struct Monitor {
    /// What is counted.
    pub metrics: Metrics,
    /// Those who look on.
    pub live: Arc<Live>,
}

impl Monitor {
    /// A request has ended; its trace, if there is one, came with the answer.
    pub fn ended(&self, exchange: &Exchange<'_>) {
        let extensions = exchange.response.extensions();
        let failure = extensions.get::<Problem>();
        let mut untraced = None;
        let trace = match extensions.get::<Trace>() {
            Some(trace) => trace,
            None => &*untraced.insert(Trace::of_nothing(
                RequestId::given(exchange.response.headers().get(X_REQUEST_ID)),
                exchange.peer.ip(),
            )),
        };
        self.metrics.ended(exchange, failure, trace);
        access_log::write(exchange, failure, trace);
        self.live.ended(exchange, failure, trace);
    }
}
