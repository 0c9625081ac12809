//! One request on its way through the agent.

use std::io;
use std::sync::{Arc, OnceLock};

use super::outcome::{Ended, Spent};
use super::repeats::Key;
use super::reply::{Form, Owed, Patience, ReplyTo, json_properties};
use crate::base::budget::Share;
use crate::base::clock::Moment;
use crate::base::logging::excerpt;
use crate::base::topic::Id;
use crate::http::{Failure, Problem, Response, Source};
use crate::link::{PublishError, Publisher};
use crate::stream::{Opened, Streams, TooMany, Why, send_on};
use crate::wire::deadline::whole_seconds;
use crate::wire::http::write_reply;
use crate::wire::json::legacy_error;
use crate::wire::reply::{AGENT, TIMING, timing_text};
use crate::wire::stream::{Offer, write_length};
use crate::wire::{Correlation, Hop, Message, Properties, Qos};

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
    // This agent, where others could have got the request.
    pub shared_by: Option<Id>,
    // What it is known again by, if it may come again.
    pub repeat: Option<Key>,
    // The memory that its body takes.
    pub memory: Share,
    pub streams: Arc<Streams>,
    // What its caller says of streams, if it takes any.
    pub offer: Option<Offer>,
    // The stream that its body comes on, once it was opened.
    pub opened: OnceLock<Arc<Opened>>,
}

impl Job {
    // Until when its caller waits: while a body is on its way, the time for the answer begins anew with
    // each piece.
    fn due(&self) -> Moment {
        match self.opened.get() {
            None => self.deadline,
            Some(_) => (Moment::now() + self.deadline.since(self.received)).max(self.deadline),
        }
    }

    /// Publishes how the request ended.
    pub fn end(&self, ended: &Ended, patience: Patience) {
        match ended {
            Ended::Answered(response, spent) => self.reply(response, *spent, patience),
            Ended::Failed(failure, spent) => self.reply_failure(failure, *spent, patience),
        }
    }

    /// Its stream, opened now unless it is already.
    ///
    /// Errors: it can't be; why.
    pub fn open(&self, offer: &Offer) -> Result<Arc<Opened>, Failure> {
        if let Some(opened) = self.opened.get() {
            return Ok(Arc::clone(opened));
        }
        let correlation = self.message.properties.correlation_data.as_deref();
        let correlation = correlation
            .and_then(Correlation::from_bytes)
            .ok_or_else(|| {
                Failure::Unreadable("a stream needs 16 bytes of correlation data".into())
            })?;
        let opened = self.streams.open(correlation, &self.publisher);
        let opened = opened.map_err(|TooMany(limit)| {
            Failure::AgentBusy(format!(
                "all streams are in use (max_streams = {limit} of the agent)"
            ))
        })?;
        opened.stream().set_peer(offer.topic.as_str());
        Ok(Arc::clone(self.opened.get_or_init(|| Arc::new(opened))))
    }

    // Publishes the head of an answer, and lets its body follow.
    //
    // Errors: what its caller is to be told instead.
    fn reply_stream(
        &self,
        response: &Response,
        source: &Arc<dyn Source>,
        spent: Spent,
        patience: Patience,
    ) -> Result<(), Failure> {
        let no_offer = || Failure::ReplyNotCarried("its caller takes no stream".into());
        let offer = self.offer.as_ref().ok_or_else(no_offer)?;
        // It is executed already, so it must not look as if it were not.
        let opened = self.open(offer).map_err(|failure| match failure {
            Failure::AgentBusy(words) => Failure::AgentBusyMeanwhile(words),
            other => Failure::ReplyNotCarried(other.to_string()),
        })?;
        let published = self.publish(response, None, spent, patience);
        published.map_err(not_replied)?;
        let source = Arc::clone(source);
        let failed = |_: &io::Error| Why::UpstreamFailed;
        send_on(&self.streams, source, &opened, offer.window, failed);
        Ok(())
    }

    // Publishes an answer of the upstream. The caller must not wait in vain for what can't be carried.
    fn reply(&self, response: &Response, spent: Spent, patience: Patience) {
        if let Some(source) = response.body().stream() {
            if let Err(failure) = self.reply_stream(response, source, spent, patience) {
                source.cancel();
                self.reply_failure(&failure, spent, Patience::None);
            }
            return;
        }
        match self.publish(response, None, spent, patience) {
            Ok(()) | Err(PublishError::NotConnected(_)) => {}
            Err(why) => self.reply_failure(&not_replied(why), spent, Patience::None),
        }
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
        if let Some(source) = response.body().stream() {
            write_length(source.length(), &mut properties);
            self.streams.offer().write(&mut properties);
        }
        if self.reply_to.form != Form::Legacy {
            properties.correlation_data = self.reply_to.correlation.clone();
            let timing = timing_text(spent.queue, spent.upstream);
            properties.user.push((TIMING.to_owned(), timing));
            if let Some(name) = &self.shared_by {
                properties.user.push((AGENT.to_owned(), name.to_string()));
            }
            let left = self.due().since(Moment::now());
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
                let deadline = self.due().instant();
                self.publisher.publish_before(message, deadline)
            }
            Patience::None => self.owed.publish(&self.publisher, message, self.due()),
        };
        if let Err(why) = &published {
            let topic = excerpt(self.reply_to.topic.as_bytes());
            log::warn!("the reply to {topic} is not sent: {why}");
        }
        published
    }
}

fn not_replied(why: PublishError) -> Failure {
    match why {
        PublishError::TooLarge { .. } | PublishError::NotSupported(_) => {
            Failure::ReplyNotCarried(why.to_string())
        }
        PublishError::Busy | PublishError::Stalled(_) | PublishError::NotConnected(_) => {
            Failure::ReplyStalled(why.to_string())
        }
    }
}
