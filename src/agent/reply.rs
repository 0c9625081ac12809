//! Where a reply goes, and in which form.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use http::{Method, StatusCode};

use super::settings::{AgentSettings, Service, ServiceMode};
use crate::base::clock::Moment;
use crate::base::threads::lock;
use crate::base::topic::Topic;
use crate::link::{PublishError, Publisher};
use crate::wire::reply::{ERROR, STATUS};
use crate::wire::{Hop, JSON, Message, PROBLEM_JSON, Properties};

/// How many replies may be owed, and how many bytes each may have.
const MAX_OWED: usize = 1024;
const OWED_BYTES: usize = 4 * 1024;

/// Where a request is answered.
pub(super) struct ReplyTo {
    pub topic: String,
    pub correlation: Option<Bytes>,
    pub form: Form,
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
    /// Where a request to a service is answered.
    ///
    /// Errors: nowhere; why.
    pub fn of(
        message: &Message,
        service: &Service,
        settings: &AgentSettings,
    ) -> Result<ReplyTo, String> {
        let properties = &message.properties;
        let form = match (&service.mode, &properties.response_topic) {
            (ServiceMode::Json { response_topic, .. }, None) => {
                return Ok(ReplyTo {
                    topic: response_topic.to_string(),
                    correlation: None,
                    form: Form::Legacy,
                });
            }
            (ServiceMode::Json { .. }, Some(_)) => Form::Json,
            (ServiceMode::Http { .. }, _) if properties.correlation_data.is_none() => {
                return Err("it has no correlation data".into());
            }
            (ServiceMode::Http { .. }, _) => {
                let method = properties.user("method").unwrap_or_default();
                Form::Http(Method::from_bytes(method.as_bytes()).unwrap_or_default())
            }
        };
        let topic = properties.response_topic.as_deref();
        let topic = topic.ok_or("it has no response topic")?;
        ReplyTo::checked(properties, topic, settings, form)
    }

    // A reply must go to a topic that is meant for replies; otherwise whoever can publish a request
    // could make the agent publish anywhere, even requests to itself.
    fn checked(
        properties: &Properties,
        response_topic: &str,
        settings: &AgentSettings,
        form: Form,
    ) -> Result<ReplyTo, String> {
        let topic = Topic::new(response_topic)
            .map_err(|error| format!("its response topic can't be used: {error}"))?;
        check_topic(&topic, settings)?;
        Ok(ReplyTo {
            topic: topic.into(),
            correlation: properties.correlation_data.clone(),
            form,
        })
    }
}

/// Looks whether something may be sent to a topic that a request names.
///
/// Errors: it may not; why.
pub(super) fn check_topic(topic: &Topic, settings: &AgentSettings) -> Result<(), String> {
    let prefixes = &settings.reply_prefixes;
    let allowed = |prefix: &String| topic.as_str().starts_with(prefix);
    if !prefixes.iter().any(allowed) {
        return Err(format!(
            "its response topic {topic} does not begin with any of reply_prefixes {prefixes:?}"
        ));
    }
    let mut services = settings.services.iter();
    let loops = services.any(|service| service.request_topic == *topic);
    // Another agent's, whatever it is called.
    if loops || topic.as_str().starts_with("recado/") && topic.as_str().ends_with("/request") {
        return Err(format!("its response topic {topic} is a request topic"));
    }
    for (end, what) in [("/presence", "a presence"), ("/stats", "for statistics")] {
        if topic.as_str().ends_with(end) {
            return Err(format!("its response topic {topic} is {what}"));
        }
    }
    Ok(())
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
    pub fn publish(
        &self,
        publisher: &Publisher,
        message: Message,
        deadline: Moment,
    ) -> Result<(), PublishError> {
        match publisher.publish(message.clone(), Some(deadline.instant())) {
            Err(why) if why.may_pass() && message.payload.len() <= OWED_BYTES => {
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
    pub fn catch_up(&self, publisher: &Publisher, now: Moment) {
        let mut replies = lock(&self.replies);
        while let Some((message, deadline)) = replies.front() {
            let until = Some(deadline.instant());
            if now < *deadline && publisher.publish(message.clone(), until).is_err() {
                return;
            }
            replies.pop_front();
        }
    }
}

pub(super) fn json_properties(status: StatusCode, error: Option<Hop>) -> Properties {
    let content_type = if error.is_some() { PROBLEM_JSON } else { JSON };
    // With room for what each reply has besides.
    let mut user = Vec::with_capacity(4);
    user.push((STATUS.to_owned(), status.as_str().to_owned()));
    let mut properties = Properties {
        content_type: Some(content_type.to_owned()),
        user,
        ..Properties::default()
    };
    if let Some(hop) = error {
        properties
            .user
            .push((ERROR.to_owned(), hop.as_str().to_owned()));
    }
    properties
}
