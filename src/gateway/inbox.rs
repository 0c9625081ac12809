//! Where replies come in, and how they find who waits for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::broker::Broker;
use super::call::{Call, Inbox, Reply};
use super::part::Part;
use super::pending::{Completion, Pending};
use super::presence::Presence;
use super::router::Router;
use super::settings::{GatewaySettings, Mode, PresenceSettings, Route};
use crate::base::clock::Moment;
use crate::base::error::{Error, Result};
use crate::base::logging::excerpt;
use crate::base::random;
use crate::base::topic::{Id, Topic, TopicFilter};
use crate::http::Failure;
use crate::link::{Acknowledgement, Delivery, Publisher, Subscription, Way};
use crate::monitor::Monitor;
use crate::monitor::metrics::Dropped;
use crate::stream::{Streams, TooMany};
use crate::wire::deadline::{Sent, request_properties};
use crate::wire::json::received;
use crate::wire::reply::ERROR;
use crate::wire::stream::{Offer, agent_at, gateway_topic, read_length};
use crate::wire::{BadProperty, Correlation, Message, Qos, stats};

/// Every inbox of a gateway.
pub(super) struct Inboxes {
    // One for each JSON route, since old peers' replies are told apart by their topic; and one
    // for all HTTP routes.
    json: Vec<Inbox>,
    http: Inbox,
    monitor: Arc<Monitor>,
    // Bodies that are no single message.
    streams: Arc<Streams>,
    // Names the clock that requests are stamped with.
    instance: String,
}

impl Inboxes {
    pub fn new(
        router: &Router,
        id: &Id,
        settings: &GatewaySettings,
        monitor: Arc<Monitor>,
    ) -> Result<Inboxes> {
        let inbox = |topic: String, old_peers| {
            Ok(Inbox {
                topic: Topic::new(topic).map_err(|error| Error::Usage(error.to_string()))?,
                old_peers,
                pending: Pending::new(settings.max_waiting),
                max_body_bytes: settings.http.whole_bytes(),
            })
        };
        let json = router.json_routes().map(|(route, response_topic)| {
            let template = &route.request_topic;
            let request_topic = template
                .expand(|_| None)
                .unwrap_or_else(|| response_topic.clone());
            let old_peers = Some((response_topic.clone(), request_topic));
            inbox(format!("{response_topic}/{id}"), old_peers)
        });
        Ok(Inboxes {
            json: json.collect::<Result<_>>()?,
            http: inbox(format!("recado/gateways/{id}/response"), None)?,
            monitor,
            streams: Streams::new(
                gateway_topic(id).map_err(|error| Error::Usage(error.to_string()))?,
                settings.streams,
                settings.http.buffered_bytes(),
            ),
            // It goes with every request, so it is short; it only tells the gateways of one agent apart.
            instance: Id::random().as_str()[..8].to_owned(),
        })
    }

    /// The streams of this gateway.
    pub fn streams(&self) -> &Arc<Streams> {
        &self.streams
    }

    /// The inbox of a route.
    pub fn of(&self, route: &Route) -> &Inbox {
        let own = match &route.mode {
            Mode::Http => None,
            Mode::Json { response_topic } => {
                let topic = response_topic.as_str();
                self.json.iter().find(|inbox| inbox.is_old(topic))
            }
        };
        own.unwrap_or(&self.http)
    }

    /// What to subscribe to; of presences, those of a part.
    pub fn subscriptions(&self, part: &Part) -> Vec<Subscription> {
        let subscription = |filter: TopicFilter, retained| Subscription {
            filter,
            qos: Qos::AtLeastOnce,
            group: None,
            retained,
            is_needed: true,
        };
        let mut all = Vec::new();
        for inbox in self.all() {
            all.push(subscription(TopicFilter::from(&inbox.topic), false));
            if let Some((old, _)) = &inbox.old_peers {
                all.push(subscription(TopicFilter::from(old), false));
            }
        }
        all.extend(part.filter().map(|filter| subscription(filter, true)));
        if let Ok(filter) = TopicFilter::new(stats::FILTER) {
            all.push(Subscription {
                qos: Qos::AtMostOnce,
                is_needed: false,
                ..subscription(filter, false)
            });
        }
        all.extend(self.streams.subscription());
        all
    }

    /// Where replies in HTTP mode come in.
    pub fn http_topic(&self) -> &Topic {
        &self.http.topic
    }

    /// How many requests wait for a reply.
    pub fn waiting(&self) -> usize {
        self.all().map(|inbox| inbox.pending.len()).sum()
    }

    fn all(&self) -> impl Iterator<Item = &Inbox> {
        self.json.iter().chain([&self.http])
    }

    /// When a request is sent, for those who read it later.
    fn sent_now(&self) -> Sent<'_> {
        Sent {
            instance: &self.instance,
            millis: Moment::now().millis(),
        }
    }

    /// A call that is to be answered within `timeout` after `begun`, without what it carries.
    pub fn prepare(
        &self,
        inbox: &Inbox,
        topic: Topic,
        begun: Instant,
        timeout: Duration,
    ) -> std::result::Result<Call, Failure> {
        let correlation = random_correlation()?;
        let time_left = timeout.saturating_sub(begun.elapsed());
        let sent = self.sent_now();
        Ok(Call {
            message: Message {
                topic: topic.to_string(),
                properties: request_properties(&inbox.topic, correlation, time_left, sent),
                ..Message::default()
            },
            topic,
            only_reads: false,
            open: false,
            correlation,
            deadline: begun + timeout,
            timeout,
            upload: None,
        })
    }

    /// What a broker is known by, from now on.
    ///
    /// Errors: the system gives no random numbers ([`Error::Usage`]).
    pub fn broker(&self, way: Way, presence: &PresenceSettings) -> Result<Broker> {
        let name = || random_correlation().map_err(|why| Error::Usage(why.to_string()));
        let topics = [&self.http].into_iter().chain(&self.json);
        let topics = topics.map(|inbox| inbox.topic.clone()).collect();
        let presence = Presence::new(presence.part.clone(), presence.max_agents);
        Ok(Broker::new(way, presence, [name()?, name()?], topics))
    }

    /// Tells all whose requests have gone through a broker that it is lost.
    pub fn lost(&self, broker: &Broker, reason: &str) {
        for inbox in self.all() {
            let connection = broker.way.number;
            let lost = || Err(Failure::BrokerLost(reason.to_owned()));
            inbox.pending.lost(connection, lost);
        }
    }

    /// Takes what the broker said to a request with QoS 1: who waits for a reply to one that
    /// reached nobody need not wait any longer. Runs on the mqtt thread.
    pub fn acknowledged(&self, broker: &Broker, acknowledgement: &Acknowledgement) {
        let is_streams = self.streams.acknowledged(acknowledgement);
        if is_streams || broker.probe.acknowledged(acknowledgement) {
            return;
        }
        let topic = &acknowledgement.topic;
        let failure = match &acknowledgement.delivery {
            Delivery::NobodySubscribed if broker.probe.tells_absence() => {
                Failure::NoAgent(topic.clone())
            }
            Delivery::Taken | Delivery::NobodySubscribed => return,
            Delivery::Refused(reason) => {
                let what = format!("the broker refused the request on {topic}: {reason}");
                log::error!("{what}; may this gateway write there?");
                Failure::Denied(what)
            }
        };
        let correlation = acknowledgement.correlation_data.as_deref();
        if let Some(correlation) = correlation.and_then(Correlation::from_bytes) {
            for inbox in self.all() {
                let refused = Err(failure.clone());
                inbox.pending.complete(correlation, refused, Instant::now());
            }
        }
    }

    /// Takes a message. Runs on the mqtt thread: looks a waiter up and hands the reply over.
    pub fn receive(&self, broker: &Broker, message: Message) {
        let (now, known) = (Instant::now(), &broker.presence);
        let is_awaited = |correlation| self.http.pending.awaits(correlation);
        let is_streams = self.streams.take(&broker.way, &message, is_awaited, now);
        if is_streams || known.take(&message, now) || broker.is_back(&message) {
            return;
        }
        self.log(&message);
        let topic = log::log_enabled!(log::Level::Debug).then(|| message.topic.clone());
        let (kind, why) = match self.deliver(broker, message) {
            Ok(Completion::Delivered) => return,
            Ok(Completion::Late(by)) => (Dropped::Late, format!("late by {} ms", by.as_millis())),
            Ok(Completion::Unknown) => (Dropped::Unknown, "nobody waits for it".into()),
            Err(unused) => unused,
        };
        self.monitor.metrics.dropped(kind);
        let topic = topic.unwrap_or_default();
        let topic = excerpt(topic.as_bytes());
        log::debug!("dropped a message on {topic}: {why}");
    }

    // Hands a reply to who waits for it.
    //
    // Errors: it is none that could be used; why.
    fn deliver(
        &self,
        broker: &Broker,
        message: Message,
    ) -> std::result::Result<Completion, (Dropped, String)> {
        let unused = |kind, why: &str| Err((kind, why.to_owned()));
        let known = &broker.presence;
        if message.retain {
            return unused(Dropped::Retained, "it is retained, so it is from before");
        }
        let topic = message.topic.as_str();
        let own = self.all().find(|inbox| inbox.topic.as_str() == topic);
        let is_own = own.is_some();
        let Some(inbox) = own.or_else(|| self.all().find(|inbox| inbox.is_old(topic))) else {
            return unused(Dropped::Foreign, "no route expects it");
        };
        let correlation = message.properties.correlation_data.as_deref();
        match (correlation.map(Correlation::from_bytes), &inbox.old_peers) {
            (Some(_), _) if !is_own => {
                unused(Dropped::Foreign, "a correlated reply belongs into an inbox")
            }
            (Some(Some(correlation)), old_peers) => {
                if let Some((_, request_topic)) = old_peers {
                    known.answered(request_topic, Instant::now());
                }
                let reply = self.reply(&broker.way.any, message, correlation);
                Ok(inbox.pending.complete(correlation, reply, Instant::now()))
            }
            (Some(None), _) => Ok(Completion::Unknown),
            (None, None) => unused(Dropped::Uncorrelated, "it carries no correlation"),
            (None, Some(_)) if message.properties.user(ERROR).is_some() => {
                unused(Dropped::Foreign, "it reports an error to somebody else")
            }
            (None, Some((_, request_topic))) => {
                let which = received(&message.payload);
                let which = which.map_err(|bad| (Dropped::Malformed, bad.to_string()))?;
                known.answered(request_topic, Instant::now());
                let reply = Reply {
                    message,
                    opened: None,
                };
                Ok(inbox.pending.complete_oldest(&which, Ok(reply)))
            }
        }
    }

    // A reply, and the stream of its body if that is no single message: it is there before anybody
    // knows of the reply, since its pieces follow at once.
    fn reply(
        &self,
        publisher: &Publisher,
        message: Message,
        correlation: Correlation,
    ) -> std::result::Result<Reply, Failure> {
        let bad = |bad: BadProperty| Failure::BadReply(bad.to_string());
        let offer = Offer::read(&message.properties).map_err(bad)?;
        let follows = read_length(&message.properties).map_err(bad)?.is_some();
        let Some(offer) = offer.filter(|_| follows) else {
            return Ok(Reply {
                message,
                opened: None,
            });
        };
        if agent_at(offer.topic.as_str()).is_none() {
            return Err(Failure::BadReply(format!(
                "its stream {} is none of an agent",
                offer.topic
            )));
        }
        if let Some(stream) = self.streams.find(correlation) {
            // The request has one: its answer comes on the same.
            stream.set_peer(offer.topic.as_str());
            stream.receive();
            stream.grant(offer.window);
            return Ok(Reply {
                message,
                opened: None,
            });
        }
        let opened = self.streams.open(correlation, publisher);
        let opened = opened.map_err(|TooMany(limit)| Failure::NoStreamForAnswer(limit))?;
        opened.stream().set_peer(offer.topic.as_str());
        opened.stream().receive();
        Ok(Reply {
            message,
            opened: Some(Arc::new(opened)),
        })
    }

    // What an HTTP service answers may be confidential.
    fn log(&self, message: &Message) {
        if message.topic != self.http.topic.as_str() {
            let topic = excerpt(message.topic.as_bytes());
            log::info!("Topic: {topic}, Message: {}", excerpt(&message.payload));
        }
    }
}

/// Errors: the system gives no random numbers. A correlation that could be guessed would be worse
/// than no answer.
fn random_correlation() -> std::result::Result<Correlation, Failure> {
    match random::bytes() {
        Ok(bytes) => Ok(Correlation(bytes)),
        Err(error) => Err(Failure::NoRandomNumbers(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::front::Client;
    use crate::link::{Memory, PublishError};
    use crate::wire::Properties;

    fn inboxes() -> Inboxes {
        let settings = GatewaySettings::example();
        let router = Router::new(&settings.routes, &settings.names).unwrap();
        let id = Id::new("g").unwrap();
        Inboxes::new(&router, &id, &settings, Arc::default()).unwrap()
    }

    fn call(correlation: u8, timeout: Duration) -> Call {
        let topic = Topic::new("recado/agents/a/request").unwrap();
        Call {
            message: Message {
                topic: topic.to_string(),
                properties: Properties {
                    correlation_data: Some(Bytes::copy_from_slice(&[correlation; 16])),
                    ..Properties::default()
                },
                ..Message::default()
            },
            topic,
            only_reads: false,
            open: false,
            correlation: Correlation([correlation; 16]),
            deadline: Instant::now() + timeout,
            timeout,
            upload: None,
        }
    }

    const LONG: Duration = Duration::from_secs(30);

    /// Calls, and lets somebody answer on the mqtt thread's behalf.
    fn answered(
        answer: impl Fn(&Inboxes, Message) + Sync,
    ) -> std::result::Result<Message, Failure> {
        let inboxes = inboxes();
        let (sent, publisher, _) = Memory::start();
        let broker = inboxes
            .broker(Way::only(&publisher), &PresenceSettings::default())
            .unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| answer(&inboxes, sent.recv_timeout(LONG).unwrap()));
            let reply = inboxes
                .http
                .call(&broker, &Client::patient(), call(1, LONG));
            reply.map(|(reply, _)| reply.message)
        })
    }

    fn reply_to(request: &Message, topic: &str) -> Message {
        Message {
            topic: topic.into(),
            payload: Bytes::from_static(b"pong"),
            properties: request.properties.clone(),
            ..Message::default()
        }
    }

    #[test]
    fn a_reply_finds_who_waits_for_it_and_nothing_else_does() {
        let reply = answered(|inboxes, request| {
            let (_, publisher, _) = Memory::start();
            let broker = inboxes
                .broker(Way::only(&publisher), &PresenceSettings::default())
                .unwrap();
            let inbox = inboxes.http.topic.to_string();
            let mut foreign = reply_to(&request, &inbox);
            foreign.properties.correlation_data = Some(Bytes::from_static(b"another"));
            let mut retained = reply_to(&request, &inbox);
            retained.retain = true;
            let elsewhere = reply_to(&request, "api/ping/response");
            for wrong in [foreign, retained, elsewhere] {
                inboxes.receive(
                    &broker,
                    Message {
                        payload: Bytes::new(),
                        ..wrong
                    },
                );
            }
            inboxes.receive(&broker, reply_to(&request, &inbox));
        });
        assert_eq!(reply.unwrap().payload, "pong");
    }

    #[test]
    fn what_the_broker_refuses_need_not_be_waited_for() {
        let refused = |delivery: Delivery| {
            answered(move |inboxes, request| {
                let (_, publisher, _) = Memory::start();
                let broker = inboxes
                    .broker(Way::only(&publisher), &PresenceSettings::default())
                    .unwrap();
                inboxes.acknowledged(
                    &broker,
                    &Acknowledgement {
                        topic: request.topic,
                        correlation_data: request.properties.correlation_data,
                        delivery: delivery.clone(),
                    },
                );
            })
        };
        let denied = refused(Delivery::Refused("NotAuthorized".into())).unwrap_err();
        assert!(matches!(denied, Failure::Denied(why) if why.contains("NotAuthorized")));
    }

    #[test]
    fn a_call_that_can_not_succeed_fails_at_once() {
        let (inboxes, client) = (inboxes(), Client::patient());
        let (sent, publisher, memory) = Memory::start();
        let broker = inboxes
            .broker(Way::only(&publisher), &PresenceSettings::default())
            .unwrap();
        let call = |timeout| {
            let call = call(1, timeout);
            let reply = inboxes.http.call(&broker, &client, call);
            reply.map(|_| ()).unwrap_err()
        };
        assert_eq!(call(Duration::ZERO), Failure::TooLate);
        assert!(sent.is_empty());
        let short = Duration::from_millis(5);
        assert_eq!(call(short), Failure::NoReply(short));
        memory.refuse(Some(PublishError::NotConnected("gone".into())));
        assert_eq!(call(LONG), Failure::NotConnected("gone".into()));
        memory.refuse(Some(PublishError::Busy));
        assert!(matches!(call(LONG), Failure::Stalled(_)));
        let _ticket = inboxes.http.pending.register(Correlation([2; 16]), None, 0);
        assert_eq!(call(LONG), Failure::TooManyWaiting(1));
    }
}
