//! Where a reply goes, and in which form.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};

use super::repeats::Ended;
use super::worker::Job;
use crate::clock::Moment;
use crate::config::AgentSettings;
use crate::http::Response;
use crate::http::problem::Problem;
use crate::link::{PublishError, Publisher};
use crate::logging::excerpt;
use crate::message::http::write_reply;
use crate::message::{
    self, ERROR, Hop, JSON, Message, PROBLEM_JSON, Properties, Qos, STATUS, TIMING, legacy_error,
    timing_text,
};
use crate::threads::lock;
use crate::topic::Topic;

/// How many replies may be owed, and how many bytes each may have.
const MAX_OWED: usize = 1024;
const OWED_BYTES: usize = 4 * 1024;

/// Where a request is answered.
pub(super) struct ReplyTo {
    topic: String,
    correlation: Option<Bytes>,
    form: Form,
}

/// What the requester reads.
#[derive(Clone, PartialEq)]
pub(super) enum Form {
    /// JSON, nothing else: it named no Response Topic, so it speaks MQTT 3.1.1.
    Legacy,
    /// JSON, and properties.
    Json,
    /// HTTP, asked with this method.
    Http(Method),
}

impl ReplyTo {
    /// Where old peers of a service are answered.
    pub fn legacy(response_topic: &Topic) -> ReplyTo {
        ReplyTo {
            topic: response_topic.to_string(),
            correlation: None,
            form: Form::Legacy,
        }
    }

    /// Checks a Response Topic. A reply must go to a topic that is meant for replies; otherwise
    /// whoever can publish a request could make the agent publish anywhere, even requests to
    /// itself.
    pub fn checked(
        properties: &Properties,
        response_topic: &str,
        settings: &AgentSettings,
        form: Form,
    ) -> Result<ReplyTo, String> {
        let topic = Topic::new(response_topic)
            .map_err(|error| format!("its response topic can't be used: {error}"))?;
        let prefixes = &settings.reply_prefixes;
        let allowed = |prefix: &String| topic.as_str().starts_with(prefix);
        if !prefixes.iter().any(allowed) {
            return Err(format!(
                "its response topic {topic} does not begin with any of reply_prefixes {prefixes:?}"
            ));
        }
        let mut services = settings.services.iter();
        let loops = services.any(|service| service.request_topic == topic);
        // Another agent's, whatever it is called.
        if loops || topic.as_str().starts_with("recado/") && topic.as_str().ends_with("/request") {
            return Err(format!("its response topic {topic} is a request topic"));
        }
        if topic.as_str().ends_with("/presence") {
            return Err(format!("its response topic {topic} is a presence"));
        }
        Ok(ReplyTo {
            topic: topic.to_string(),
            correlation: properties.correlation_data.clone(),
            form,
        })
    }
}

/// How long a reply may wait for a place on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// As long as its caller waits: on a worker's thread.
    UntilDeadline,
    /// Not at all: the mqtt thread must go on, and tries it again when something has moved.
    None,
}

/// Replies that found no place, and that nobody can wait with. They are errors, so they are small.
#[derive(Default)]
pub(super) struct Owed {
    replies: Mutex<VecDeque<(Message, Moment)>>,
}

impl Owed {
    fn publish(
        &self,
        publisher: &Publisher,
        message: Message,
        deadline: Moment,
    ) -> Result<(), PublishError> {
        match publisher.publish(message.clone()) {
            Err(PublishError::Busy | PublishError::Stalled(_) | PublishError::NotConnected(_))
                if message.payload.len() <= OWED_BYTES =>
            {
                let mut replies = lock(&self.replies);
                if replies.len() >= MAX_OWED {
                    replies.pop_front();
                }
                replies.push_back((message, deadline));
                Ok(())
            }
            other => other,
        }
    }

    /// Tries again what is owed, and forgets whose caller has stopped waiting.
    pub fn catch_up(&self, publisher: &Publisher) {
        let mut replies = lock(&self.replies);
        let now = Moment::now();
        while let Some((message, deadline)) = replies.front() {
            if now < *deadline && publisher.publish(message.clone()).is_err() {
                return;
            }
            replies.pop_front();
        }
    }
}

/// How long a request was where.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shares {
    pub queue: Duration,
    pub upstream: Duration,
}

impl Job {
    /// Publishes how the request ended.
    pub fn end(&self, ended: &Ended, patience: Patience) {
        match ended {
            Ended::Answered(response, shares) => self.reply(response, *shares, patience),
            Ended::Failed(problem, shares) => self.reply_problem(problem, *shares, patience),
        }
    }

    // Publishes an answer of the upstream. The caller must not wait in vain for what can't be carried.
    fn reply(&self, response: &Response, shares: Shares, patience: Patience) {
        let problem = match self.publish(response, None, shares, patience) {
            Ok(()) | Err(PublishError::NotConnected(_)) => return,
            Err(why @ (PublishError::TooLarge { .. } | PublishError::NotSupported(_))) => {
                let detail = format!("the reply can't be carried: {why}");
                Problem::new(StatusCode::BAD_GATEWAY, Hop::Agent, detail)
            }
            Err(why @ (PublishError::Busy | PublishError::Stalled(_))) => {
                let detail = format!("the reply found no place on the way to the broker: {why}");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, Hop::Broker, detail)
            }
        };
        self.reply_problem(&problem.outcome_unknown(), shares, Patience::None);
    }

    /// Publishes an error.
    pub fn reply_problem(&self, problem: &Problem, shares: Shares, patience: Patience) {
        let body = match self.reply_to.form {
            Form::Legacy => legacy_error(&problem.detail, &self.message.payload),
            Form::Json | Form::Http(_) => problem.document(None),
        };
        let mut response = Response::new(body);
        *response.status_mut() = problem.status;
        let _ = self.publish(&response, Some(problem.hop), shares, patience);
    }

    fn publish(
        &self,
        response: &Response,
        error: Option<Hop>,
        shares: Shares,
        patience: Patience,
    ) -> Result<(), PublishError> {
        let mut properties = match &self.reply_to.form {
            Form::Legacy => Properties::default(),
            Form::Json => json_properties(response.status(), error),
            Form::Http(method) => write_reply(response, error, method),
        };
        if self.reply_to.form != Form::Legacy {
            properties.correlation_data = self.reply_to.correlation.clone();
            let timing = timing_text(shares.queue, shares.upstream);
            properties.user.push((TIMING.to_owned(), timing));
            let left = self.deadline.since(Moment::now());
            // At least a second: zero would let the broker drop it at once.
            properties.message_expiry_interval = Some(message::whole_seconds(left).max(1));
        }
        let message = Message {
            topic: self.reply_to.topic.clone(),
            payload: response.body().clone(),
            qos: self.message.qos.min(Qos::AtLeastOnce),
            properties,
            ..Message::default()
        };
        let published = match patience {
            Patience::UntilDeadline => {
                let deadline = self.deadline.instant();
                self.publisher.publish_before(message, deadline)
            }
            Patience::None => self.owed.publish(&self.publisher, message, self.deadline),
        };
        if let Err(why) = &published {
            let topic = excerpt(self.reply_to.topic.as_bytes());
            log::warn!("the reply to {topic} is not sent: {why}");
        }
        published
    }
}

fn json_properties(status: StatusCode, error: Option<Hop>) -> Properties {
    let content_type = if error.is_some() { PROBLEM_JSON } else { JSON };
    let mut properties = Properties {
        content_type: Some(content_type.to_owned()),
        user: vec![(STATUS.to_owned(), status.as_str().to_owned())],
        ..Properties::default()
    };
    if let Some(hop) = error {
        properties
            .user
            .push((ERROR.to_owned(), hop.as_str().to_owned()));
    }
    properties
}
