//! Where replies come in, and how they find who waits for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;

use super::pending::{Completion, GaveUp, Pending};
use super::presence::Presence;
use super::probe::Probe;
use super::router::Router;
use super::settings::GatewaySettings;
use super::timing::Timing;
use crate::base::clock::Moment;
use crate::base::error::{Error, Result};
use crate::base::logging::excerpt;
use crate::base::topic::{Id, Topic, TopicFilter};
use crate::front::Client;
use crate::http::client_gone;
use crate::http::problem::{Problem, RETRY_AFTER};
use crate::link::{Acknowledgement, Delivery, PublishError, Publisher, Subscription};
use crate::wire::deadline::Sent;
use crate::wire::json::received;
use crate::wire::reply::{ERROR, timing};
use crate::wire::{Correlation, Hop, Message, Properties, Qos, presence};

/// How often a waiting request looks whether its client is still there, and who it asks able to answer.
const LOOK: Duration = Duration::from_millis(200);

/// Every inbox of a gateway.
pub(super) struct Inboxes {
    // One for each JSON route, since old peers' replies are told apart by their topic; and one
    // for all HTTP routes.
    json: Vec<(usize, Inbox)>,
    http: Inbox,
    probe: Probe,
    dropped: AtomicU64,
    // Names the clock that requests are stamped with.
    instance: String,
}

/// One topic where replies come in, and who waits for them.
pub(super) struct Inbox {
    topic: Topic,
    // Where peers that know no Response Topic answer, and what they answer to.
    old_peers: Option<(Topic, Topic)>,
    pending: Pending<std::result::Result<Message, Problem>>,
    max_body_bytes: usize,
}

/// A request about to be published.
pub(super) struct Call {
    pub topic: Topic,
    pub payload: Bytes,
    pub properties: Properties,
    pub qos: Qos,
    /// Whether a peer that knows no correlation may answer it.
    pub open: bool,
    pub correlation: Correlation,
    pub deadline: Instant,
    pub timeout: Duration,
}

impl Inboxes {
    pub fn new(router: &Router, id: &Id, settings: &GatewaySettings) -> Result<Inboxes> {
        let inbox = |topic: String, old_peers| {
            Ok(Inbox {
                topic: Topic::new(topic).map_err(|error| Error::Usage(error.to_string()))?,
                old_peers,
                pending: Pending::new(settings.max_waiting),
                max_body_bytes: settings.http.max_body_bytes,
            })
        };
        let json = router.json_routes().map(|(number, response_topic)| {
            let template = &router.routes()[number].request_topic;
            let request_topic = template
                .expand(|_| None)
                .unwrap_or_else(|| response_topic.clone());
            let old_peers = Some((response_topic.clone(), request_topic));
            Ok((number, inbox(format!("{response_topic}/{id}"), old_peers)?))
        });
        let correlation = || random_correlation().map_err(|problem| Error::Usage(problem.detail));
        let json = json.collect::<Result<Vec<(usize, Inbox)>>>()?;
        let http = inbox(format!("recado/gateways/{id}/response"), None)?;
        let topics = [&http].into_iter().chain(json.iter().map(|(_, it)| it));
        let topics = topics.map(|inbox| inbox.topic.clone()).collect();
        Ok(Inboxes {
            json,
            http,
            probe: Probe::new(correlation()?, correlation()?, topics),
            dropped: AtomicU64::new(0),
            // It goes with every request, so it is short; it only tells the gateways of one agent apart.
            instance: Id::random().as_str()[..8].to_owned(),
        })
    }

    /// The inbox of a route.
    pub fn of(&self, route: usize) -> &Inbox {
        let own = self.json.iter().find(|(number, _)| *number == route);
        own.map_or(&self.http, |(_, inbox)| inbox)
    }

    pub fn subscriptions(&self) -> Vec<Subscription> {
        let subscription = |filter: TopicFilter, retained| Subscription {
            filter,
            qos: Qos::AtLeastOnce,
            group: None,
            retained,
        };
        let mut all = Vec::new();
        for inbox in self.all() {
            all.push(subscription(TopicFilter::from(&inbox.topic), false));
            if let Some((old, _)) = &inbox.old_peers {
                all.push(subscription(TopicFilter::from(old), false));
            }
        }
        if let Ok(filter) = TopicFilter::new(presence::FILTER) {
            all.push(subscription(filter, true));
        }
        all
    }

    fn all(&self) -> impl Iterator<Item = &Inbox> {
        self.json.iter().map(|(_, inbox)| inbox).chain([&self.http])
    }

    /// When a request is sent, for those who read it later.
    pub fn sent_now(&self) -> Sent<'_> {
        Sent {
            instance: &self.instance,
            millis: Moment::now().millis(),
        }
    }

    /// Asks the broker what a new connection must know.
    pub fn probe(&self, publisher: &Publisher) {
        self.probe.ask(publisher);
    }

    /// Asks once more, if that took too long.
    pub fn probe_again(&self, publisher: &Publisher) {
        self.probe.ask_again(publisher);
    }

    /// Looks whether replies can reach this gateway.
    ///
    /// Errors: the broker does not let it read one of its inboxes.
    pub fn check(&self, publisher: &Publisher) -> std::result::Result<(), Problem> {
        self.probe.ask_again(publisher);
        match self.probe.unreadable() {
            None => Ok(()),
            Some(inbox) => {
                let what = format!("the broker does not let this gateway read {inbox}");
                Err(denied(what))
            }
        }
    }

    /// Takes what the broker said to a request with QoS 1: who waits for a reply to one that
    /// reached nobody need not wait any longer. Runs on the mqtt thread.
    pub fn acknowledged(&self, acknowledgement: &Acknowledgement) {
        if self.probe.acknowledged(acknowledgement) {
            return;
        }
        let topic = &acknowledgement.topic;
        let problem = match &acknowledgement.delivery {
            Delivery::NobodySubscribed if self.probe.tells_absence() => no_agent(topic),
            Delivery::Taken | Delivery::NobodySubscribed => return,
            Delivery::Refused(reason) => {
                let what = format!("the broker refused the request on {topic}: {reason}");
                log::error!("{what}; may this gateway write there?");
                denied(what)
            }
        };
        let correlation = acknowledgement.correlation_data.as_deref();
        if let Some(correlation) = correlation.and_then(Correlation::from_bytes) {
            for inbox in self.all() {
                let refused = Err(problem.clone());
                inbox.pending.complete(correlation, refused, Instant::now());
            }
        }
    }

    /// Takes a message. Runs on the mqtt thread: looks a waiter up and hands the reply over.
    pub fn receive(&self, message: Message, known: &Presence) {
        if known.update(&message.topic, &message.payload, Instant::now()) {
            return;
        }
        match self.probe.is_back(&message) {
            None => {}
            Some(true) => return known.complete(),
            Some(false) => return,
        }
        self.log(&message);
        if message.retain {
            return self.drop_message(&message.topic, "it is retained, so it is from before");
        }
        let own = self
            .all()
            .find(|inbox| inbox.topic.as_str() == message.topic);
        let (inbox, is_own) = match own {
            Some(inbox) => (inbox, true),
            None => match self.all().find(|inbox| inbox.is_old(&message.topic)) {
                Some(inbox) => (inbox, false),
                None => return self.drop_message(&message.topic, "no route expects it"),
            },
        };
        let correlation = message.properties.correlation_data.as_deref();
        let topic = message.topic.clone();
        let completion = match correlation.map(Correlation::from_bytes) {
            Some(_) if !is_own => {
                return self.drop_message(&topic, "a correlated reply belongs into an inbox");
            }
            Some(Some(correlation)) => {
                if let Some((_, request_topic)) = &inbox.old_peers {
                    known.answered(request_topic, Instant::now());
                }
                inbox
                    .pending
                    .complete(correlation, Ok(message), Instant::now())
            }
            Some(None) => Completion::Unknown,
            None => match &inbox.old_peers {
                None => return self.drop_message(&topic, "it carries no correlation"),
                Some(_) if message.properties.user(ERROR).is_some() => {
                    return self.drop_message(&topic, "it reports an error to somebody else");
                }
                Some((_, request_topic)) => match received(&message.payload) {
                    Ok(which) => {
                        known.answered(request_topic, Instant::now());
                        inbox.pending.complete_oldest(&which, Ok(message))
                    }
                    Err(bad) => return self.drop_message(&topic, &bad.to_string()),
                },
            },
        };
        match completion {
            Completion::Delivered => {}
            Completion::Late(by) => {
                self.drop_message(&topic, &format!("late by {} ms", by.as_millis()));
            }
            Completion::Unknown => self.drop_message(&topic, "nobody waits for it"),
        }
    }

    // What an HTTP service answers may be confidential: only its size is logged.
    fn log(&self, message: &Message) {
        let topic = excerpt(message.topic.as_bytes());
        match message.topic == self.http.topic.as_str() {
            true => log::info!("Topic: {topic}, {} bytes", message.payload.len()),
            false => log::info!("Topic: {topic}, Message: {}", excerpt(&message.payload)),
        }
    }

    fn drop_message(&self, topic: &str, why: &str) {
        let number = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        let topic = excerpt(topic.as_bytes());
        log::debug!("dropped a message on {topic}: {why} ({number} so far)");
    }
}

impl Inbox {
    /// Where replies are to be sent.
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    fn is_old(&self, topic: &str) -> bool {
        let old = self.old_peers.as_ref();
        old.is_some_and(|(response_topic, _)| response_topic.as_str() == topic)
    }

    /// Publishes a request and blocks for its reply, until the deadline.
    ///
    /// Errors: it could not be published, nobody replied in time, or the reply is too large.
    pub fn call(
        &self,
        publisher: &Publisher,
        client: &Client<'_>,
        known: &Presence,
        call: Call,
    ) -> std::result::Result<(Message, Timing), Problem> {
        if call.deadline <= Instant::now() {
            let detail = "the time to wait is up before the request could be sent";
            return Err(Problem::new(
                StatusCode::GATEWAY_TIMEOUT,
                Hop::Gateway,
                detail,
            ));
        }
        // First the waiter, then the request: the reply must find it.
        let ticket = self
            .pending
            .register(call.correlation, call.open.then(|| call.payload.clone()))
            .map_err(|_| too_many(self.pending.capacity()))?;
        let published = Instant::now();
        let topic = call.topic;
        publisher
            .publish(Message {
                topic: topic.to_string(),
                payload: call.payload,
                qos: call.qos,
                properties: call.properties,
                ..Message::default()
            })
            .map_err(|error| not_published(&error))?;
        let is_wanted = || !client.has_hung_up() && known.denied(&topic, &self.topic).is_none();
        let reply = ticket
            .wait_while(call.deadline, LOOK, is_wanted)
            .map_err(|gave_up| match gave_up {
                GaveUp::TimedOut => no_reply(call.timeout),
                GaveUp::Unwanted => match known.denied(&topic, &self.topic) {
                    Some(what) => denied(what).outcome_unknown(),
                    None => hung_up(),
                },
            })??;
        if reply.payload.len() > self.max_body_bytes {
            let limit = self.max_body_bytes;
            let detail = format!(
                "the agent's reply is larger than {limit} bytes (max_body_bytes of the gateway)"
            );
            return Err(bad_reply(detail));
        }
        let (queue, upstream) = timing(&reply.properties);
        let timing = Timing {
            away: Some(published.elapsed()),
            queue,
            upstream,
        };
        Ok((reply, timing))
    }
}

pub(super) fn bad_reply(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_GATEWAY, Hop::Agent, detail).outcome_unknown()
}

fn too_many(limit: usize) -> Problem {
    let detail =
        format!("too many requests wait for a reply (max_waiting = {limit} of the gateway)");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, Hop::Gateway, detail).retry_after(RETRY_AFTER)
}

/// What nobody can do for a caller before somebody has changed the broker's access list.
pub(super) fn denied(what: String) -> Problem {
    Problem::new(StatusCode::BAD_GATEWAY, Hop::Broker, what)
}

// Nobody reads this but the log. A client that only has closed its own direction must not read that
// it may repeat the request.
fn hung_up() -> Problem {
    let detail = "the client hung up before there was a reply";
    Problem::new(client_gone(), Hop::Gateway, detail).outcome_unknown()
}

fn no_reply(timeout: Duration) -> Problem {
    let detail = format!("no reply within {} ms", timeout.as_millis());
    Problem::new(StatusCode::GATEWAY_TIMEOUT, Hop::Agent, detail).outcome_unknown()
}

fn not_published(error: &PublishError) -> Problem {
    match error {
        PublishError::NotConnected(reason) => broker_away(reason),
        PublishError::Busy | PublishError::Stalled(_) => {
            let detail = format!("the broker takes no more at the moment: {error}");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, Hop::Broker, detail)
                .retry_after(RETRY_AFTER)
        }
        PublishError::TooLarge { .. } => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Hop::Broker,
            format!("the request can't be carried: {error}"),
        ),
        PublishError::NotSupported(_) => {
            Problem::new(StatusCode::BAD_GATEWAY, Hop::Broker, error.to_string())
        }
    }
}

/// Errors: the system gives no random numbers. A correlation that could be guessed would be worse
/// than no answer.
pub(super) fn random_correlation() -> std::result::Result<Correlation, Problem> {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(Correlation(bytes)),
        Err(error) => Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Hop::Gateway,
            format!("the system gives no random numbers: {error}"),
        )),
    }
}

pub(super) fn broker_away(reason: &str) -> Problem {
    let detail = format!("there is no connection to the broker: {reason}");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, Hop::Broker, detail).retry_after(RETRY_AFTER)
}

pub(super) fn no_agent(what: &str) -> Problem {
    let detail = format!("no agent that serves {what} is there");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, Hop::Agent, detail).retry_after(RETRY_AFTER)
}
