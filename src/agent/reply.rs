//! Where a reply goes, and in which form.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};

use super::repeats::Ended;
use super::worker::Job;
use crate::config::AgentSettings;
use crate::http::Response;
use crate::http::problem::Problem;
use crate::link::PublishError;
use crate::logging::excerpt;
use crate::message::http::write_reply;
use crate::message::{
    self, ERROR, Hop, JSON, Message, PROBLEM_JSON, Properties, Qos, STATUS, TIMING, legacy_error,
    timing_text,
};
use crate::topic::Topic;

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

/// How long a request was where.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shares {
    pub queue: Duration,
    pub upstream: Duration,
}

impl Job {
    /// Publishes how the request ended.
    pub fn end(&self, ended: &Ended) {
        match ended {
            Ended::Answered(response, shares) => self.reply(response, *shares),
            Ended::Failed(problem, shares) => self.reply_problem(problem, *shares),
        }
    }

    // Publishes an answer of the upstream.
    fn reply(&self, response: &Response, shares: Shares) {
        let published = self.publish(response, None, shares);
        // The caller must not wait in vain for what can't be carried.
        if let Err(PublishError::TooLarge { limit, .. }) = published {
            let detail = format!("the reply does not fit a packet of {limit} bytes");
            let problem = Problem::new(StatusCode::BAD_GATEWAY, Hop::Agent, detail);
            self.reply_problem(&problem.outcome_unknown(), shares);
        }
    }

    /// Publishes an error.
    pub fn reply_problem(&self, problem: &Problem, shares: Shares) {
        let body = match self.reply_to.form {
            Form::Legacy => legacy_error(&problem.detail, &self.message.payload),
            Form::Json | Form::Http(_) => problem.document(None),
        };
        let mut response = Response::new(body);
        *response.status_mut() = problem.status;
        let _ = self.publish(&response, Some(problem.hop), shares);
    }

    fn publish(
        &self,
        response: &Response,
        error: Option<Hop>,
        shares: Shares,
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
            let left = self.deadline.saturating_duration_since(Instant::now());
            // At least a second: zero would let the broker drop it at once.
            properties.message_expiry_interval = Some(message::whole_seconds(left).max(1));
        }
        let published = self.publisher.publish(Message {
            topic: self.reply_to.topic.clone(),
            payload: response.body().clone(),
            qos: self.message.qos.min(Qos::AtLeastOnce),
            properties,
            ..Message::default()
        });
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
