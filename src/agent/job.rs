//! One request on its way through the agent.

use std::sync::Arc;

use super::outcome::{Ended, Spent};
use super::repeats::Key;
use super::reply::{Form, Owed, Patience, ReplyTo, json_properties};
use crate::base::budget::Share;
use crate::base::clock::Moment;
use crate::base::logging::excerpt;
use crate::http::{Failure, Problem, Response};
use crate::link::{PublishError, Publisher};
use crate::wire::deadline::whole_seconds;
use crate::wire::http::write_reply;
use crate::wire::json::legacy_error;
use crate::wire::reply::{TIMING, timing_text};
use crate::wire::{Hop, Message, Properties, Qos};

/// One request on its way from the `mqtt` thread to a worker.
pub(super) struct Job {
    pub service: usize,
    pub message: Message,
    pub reply_to: ReplyTo,
    pub received: Moment,
    pub deadline: Moment,
    // Its caller would have waited for longer than this agent's max_timeout.
    pub is_shortened: bool,
    pub publisher: Publisher,
    pub owed: Arc<Owed>,
    // What it is known again by, if it may come again.
    pub repeat: Option<Key>,
    // The memory that its body takes.
    pub memory: Share,
}

impl Job {
    /// Publishes how the request ended.
    pub fn end(&self, ended: &Ended, patience: Patience) {
        match ended {
            Ended::Answered(response, spent) => self.reply(response, *spent, patience),
            Ended::Failed(failure, spent) => self.reply_failure(failure, *spent, patience),
        }
    }

    // Publishes an answer of the upstream. The caller must not wait in vain for what can't be carried.
    fn reply(&self, response: &Response, spent: Spent, patience: Patience) {
        let failure = match self.publish(response, None, spent, patience) {
            Ok(()) | Err(PublishError::NotConnected(_)) => return,
            Err(why @ (PublishError::TooLarge { .. } | PublishError::NotSupported(_))) => {
                Failure::ReplyNotCarried(why.to_string())
            }
            Err(why @ (PublishError::Busy | PublishError::Stalled(_))) => {
                Failure::ReplyStalled(why.to_string())
            }
        };
        self.reply_failure(&failure, spent, Patience::None);
    }

    /// Publishes an error.
    pub fn reply_failure(&self, failure: &Failure, spent: Spent, patience: Patience) {
        let problem = Problem::from(failure.clone());
        let body = match self.reply_to.form {
            Form::Legacy => legacy_error(&problem.detail, &self.message.payload),
            Form::Json | Form::Http(_) => problem.document(None),
        };
        let mut response = Response::new(body.into());
        *response.status_mut() = problem.status;
        let _ = self.publish(&response, Some(problem.hop), spent, patience);
    }

    fn publish(
        &self,
        response: &Response,
        error: Option<Hop>,
        spent: Spent,
        patience: Patience,
    ) -> Result<(), PublishError> {
        let mut properties = match &self.reply_to.form {
            Form::Legacy => Properties::default(),
            Form::Json => json_properties(response.status(), error),
            Form::Http(method) => write_reply(response, error, method),
        };
        if self.reply_to.form != Form::Legacy {
            properties.correlation_data = self.reply_to.correlation.clone();
            let timing = timing_text(spent.queue, spent.upstream);
            properties.user.push((TIMING.to_owned(), timing));
            let left = self.deadline.since(Moment::now());
            // At least a second: zero would let the broker drop it at once.
            properties.message_expiry_interval = Some(whole_seconds(left).max(1));
        }
        let message = Message {
            topic: self.reply_to.topic.clone(),
            payload: response.body().to_bytes(),
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
