//! One inbox, and one call: a request that is published, and its caller that waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::broker::Broker;
use super::pending::{GaveUp, Pending};
use crate::base::topic::Topic;
use crate::front::Client;
use crate::http::Failure;
use crate::link::PublishError;
use crate::monitor::trace::Away;
use crate::stream::{Opened, Stream, Why};
use crate::wire::reply::timing;
use crate::wire::{Correlation, Message};

/// How often a waiting request looks whether its client is still there, and who it asks able to answer.
const LOOK: Duration = Duration::from_millis(200);

/// Longer than any body is on its way.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// One topic where replies come in, and who waits for them.
pub(super) struct Inbox {
    pub topic: Topic,
    // Where peers that know no Response Topic answer, and what they answer to.
    pub old_peers: Option<(Topic, Topic)>,
    pub pending: Pending<std::result::Result<Reply, Failure>>,
    pub max_body_bytes: usize,
}

/// What came back.
pub(super) struct Reply {
    pub message: Message,
    /// The stream that the body comes on, if it is not all here.
    pub opened: Option<Arc<Opened>>,
}

/// A request about to be published.
#[derive(Clone)]
pub(super) struct Call {
    pub topic: Topic,
    /// What is published on that topic.
    pub message: Message,
    /// Whether it changes nothing, so that it may be executed twice (RFC 9110, section 9.2.1).
    pub only_reads: bool,
    /// Whether a peer that knows no correlation may answer it.
    pub open: bool,
    pub correlation: Correlation,
    pub deadline: Instant,
    pub timeout: Duration,
    /// The stream of its body, if that is no single message.
    pub upload: Option<Arc<Stream>>,
}

impl Inbox {
    pub fn is_old(&self, topic: &str) -> bool {
        let old = self.old_peers.as_ref();
        old.is_some_and(|(response_topic, _)| response_topic.as_str() == topic)
    }

    /// Publishes a request and blocks for its reply, until the deadline.
    ///
    /// Errors: it could not be published, nobody replied in time, or the reply is too large.
    pub fn call(
        &self,
        broker: &Broker,
        client: &Client<'_>,
        call: Call,
    ) -> std::result::Result<(Reply, Away), Failure> {
        if call.deadline <= Instant::now() {
            return Err(Failure::TooLate);
        }
        // First the waiter, then the request: the reply must find it.
        let ticket = self
            .pending
            .register(
                call.correlation,
                call.open.then(|| call.message.payload.clone()),
                broker.way.number,
            )
            .map_err(|_| Failure::TooManyWaiting(self.pending.capacity()))?;
        let (published, known) = (Instant::now(), &broker.presence);
        let topic = call.topic;
        let sent = broker.way.own.publish(call.message, Some(call.deadline));
        sent.map_err(not_published)?;
        let upload = call.upload;
        let cut = || upload.as_ref().and_then(|stream| stream.aborted());
        // While a body is on its way, the time for the answer begins anew with each piece.
        let timeout = call.timeout;
        let deadline = match &upload {
            Some(_) => published + FOREVER,
            None => call.deadline,
        };
        let is_late = || {
            let moved = upload.as_ref().map(|stream| stream.last_moved());
            moved.is_some_and(|moved| moved.elapsed() >= timeout)
        };
        let is_wanted = || {
            cut().is_none()
                && !is_late()
                && !client.has_hung_up()
                && known.denied(&topic, &self.topic).is_none()
        };
        let reply =
            ticket
                .wait_while(deadline, LOOK, is_wanted)
                .map_err(|gave_up| match gave_up {
                    GaveUp::TimedOut => Failure::NoReply(timeout),
                    GaveUp::Unwanted => match (cut(), known.denied(&topic, &self.topic)) {
                        (Some(why), _) => not_uploaded(why),
                        (None, None) if is_late() => Failure::NoReply(timeout),
                        (None, Some(what)) => Failure::DeniedMeanwhile(what),
                        (None, None) => Failure::HungUp,
                    },
                })??;
        // What this side has found wrong with the body explains whatever the other one says.
        let own = upload.as_ref().and_then(|stream| stream.aborted_here());
        if let Some(why @ (Why::TooLarge | Why::Violation)) = own {
            return Err(not_uploaded(why));
        }
        if reply.message.payload.len() > self.max_body_bytes {
            return Err(Failure::ReplyOver(self.max_body_bytes));
        }
        let (queue, upstream) = timing(&reply.message.properties);
        let away = Away {
            total: published.elapsed(),
            queue,
            upstream,
        };
        broker.note_round_trip(away.total.saturating_sub(queue + upstream));
        Ok((reply, away))
    }
}

fn not_uploaded(why: Why) -> Failure {
    match why {
        Why::ClientGone => Failure::HungUp,
        Why::TooLarge => Failure::BodyCut {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            words: "the body is too large (max_body_bytes of the gateway)".into(),
        },
        Why::Violation => Failure::BodyCut {
            status: StatusCode::BAD_REQUEST,
            words: "the body is malformed".into(),
        },
        other => Failure::StreamLost(other.to_string()),
    }
}

fn not_published(error: PublishError) -> Failure {
    match error {
        PublishError::NotConnected(reason) => Failure::NotConnected(reason),
        PublishError::Busy | PublishError::Stalled(_) => Failure::Stalled(error.to_string()),
        PublishError::TooLarge { .. } => Failure::RequestTooLarge(error.to_string()),
        PublishError::NotSupported(_) => Failure::NotSupported(error.to_string()),
    }
}
