//! Where replies come in, and how they find who waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::call::{Call, Inbox, Reply};
use super::pending::{Completion, Pending};
use super::presence::Presence;
use super::probe::Probe;
use super::router::Router;
use super::settings::GatewaySettings;
use crate::base::clock::Moment;
use crate::base::error::{Error, Result};
use crate::base::logging::excerpt;
use crate::base::topic::{Id, Topic, TopicFilter};
use crate::http::Failure;
use crate::link::{Acknowledgement, Delivery, Publisher, Subscription};
use crate::stream::{Streams, TooMany};
use crate::wire::deadline::{Sent, request_properties};
use crate::wire::json::received;
use crate::wire::reply::ERROR;
use crate::wire::stream::{Offer, agent_at, gateway_topic, read_length};
use crate::wire::{BadProperty, Correlation, Message, Qos, presence};

/// Every inbox of a gateway.
pub(super) struct Inboxes {
    // One for each JSON route, since old peers' replies are told apart by their topic; and one
    // for all HTTP routes.
    json: Vec<(usize, Inbox)>,
    http: Inbox,
    probe: Probe,
    dropped: AtomicU64,
    // Bodies that are no single message.
    streams: Arc<Streams>,
    // Names the clock that requests are stamped with.
    instance: String,
}

impl Inboxes {
    pub fn new(router: &Router, id: &Id, settings: &GatewaySettings) -> Result<Inboxes> {
        let inbox = |topic: String, old_peers| {
            Ok(Inbox {
                topic: Topic::new(topic).map_err(|error| Error::Usage(error.to_string()))?,
                old_peers,
                pending: Pending::new(settings.max_waiting),
                max_body_bytes: settings.http.whole_bytes(),
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
        let correlation = || random_correlation().map_err(|why| Error::Usage(why.to_string()));
        let json = json.collect::<Result<Vec<(usize, Inbox)>>>()?;
        let http = inbox(format!("recado/gateways/{id}/response"), None)?;
        let topics = [&http].into_iter().chain(json.iter().map(|(_, it)| it));
        let topics = topics.map(|inbox| inbox.topic.clone()).collect();
        Ok(Inboxes {
            json,
            http,
            probe: Probe::new(correlation()?, correlation()?, topics),
            dropped: AtomicU64::new(0),
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
            is_needed: true,
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
        all.extend(self.streams.subscription());
        all
    }

    fn all(&self) -> impl Iterator<Item = &Inbox> {
        self.json.iter().map(|(_, inbox)| inbox).chain([&self.http])
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
            open: false,
            correlation,
            deadline: begun + timeout,
            timeout,
            upload: None,
        })
    }

    /// Asks the broker what a new connection must know.
    pub fn probe(&self, publisher: &Publisher) {
        self.probe.ask(publisher, Instant::now());
    }

    /// Asks once more, if that took too long.
    pub fn probe_again(&self, publisher: &Publisher) {
        self.probe.ask_again(publisher, Instant::now());
    }

    /// Looks whether replies can reach this gateway.
    ///
    /// Errors: the broker does not let it read one of its inboxes; which.
    pub fn check(&self, publisher: &Publisher) -> std::result::Result<(), String> {
        self.probe.ask_again(publisher, Instant::now());
        match self.probe.unreadable(Instant::now()) {
            None => Ok(()),
            Some(inbox) => Err(format!("the broker does not let this gateway read {inbox}")),
        }
    }

    /// Takes what the broker said to a request with QoS 1: who waits for a reply to one that
    /// reached nobody need not wait any longer. Runs on the mqtt thread.
    pub fn acknowledged(&self, acknowledgement: &Acknowledgement) {
        let is_streams = self.streams.acknowledged(acknowledgement);
        if is_streams || self.probe.acknowledged(acknowledgement) {
            return;
        }
        let topic = &acknowledgement.topic;
        let failure = match &acknowledgement.delivery {
            Delivery::NobodySubscribed if self.probe.tells_absence() => {
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
    pub fn receive(&self, publisher: &Publisher, message: Message, known: &Presence) {
        let now = Instant::now();
        let is_awaited = |correlation| self.http.pending.awaits(correlation);
        if self.streams.take(publisher, &message, is_awaited, now)
            || known.update(&message.topic, &message.payload, now)
        {
            return;
        }
        match self.probe.is_back(&message) {
            None => {}
            Some(true) => return known.complete(Instant::now()),
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
                let reply = self.reply(publisher, message, correlation);
                inbox.pending.complete(correlation, reply, Instant::now())
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
                        let reply = Reply {
                            message,
                            opened: None,
                        };
                        inbox.pending.complete_oldest(&which, Ok(reply))
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

/// Errors: the system gives no random numbers. A correlation that could be guessed would be worse
/// than no answer.
fn random_correlation() -> std::result::Result<Correlation, Failure> {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(Correlation(bytes)),
        Err(error) => Err(Failure::NoRandomNumbers(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::{Access, Names, Route};
    use bytes::Bytes;

    use super::*;
    use crate::front::Client;
    use crate::link::{Memory, PublishError};
    use crate::wire::Properties;

    fn inboxes() -> Inboxes {
        let settings = GatewaySettings {
            broker: "mqtt://127.0.0.1".parse().unwrap(),
            listen: ([127, 0, 0, 1], 0).into(),
            id: None,
            front: Default::default(),
            keep_alive: Duration::from_secs(10),
            max_waiting: 1,
            presence: true,
            http: Default::default(),
            streams: Default::default(),
            access: Access::default(),
            routes: Route::built_in(),
            names: Names::built_in(),
            via: false,
        };
        let router = Router::new(&settings.routes, &settings.names).unwrap();
        Inboxes::new(&router, &Id::new("g").unwrap(), &settings).unwrap()
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
        let (inboxes, known) = (inboxes(), Presence::default());
        let (sent, publisher, _) = Memory::start();
        std::thread::scope(|scope| {
            scope.spawn(|| answer(&inboxes, sent.recv_timeout(LONG).unwrap()));
            let reply = inboxes
                .http
                .call(&publisher, &Client::patient(), &known, call(1, LONG));
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
            let known = Presence::default();
            let (_, publisher, _) = Memory::start();
            let inbox = inboxes.http.topic.to_string();
            let mut foreign = reply_to(&request, &inbox);
            foreign.properties.correlation_data = Some(Bytes::from_static(b"another"));
            let mut retained = reply_to(&request, &inbox);
            retained.retain = true;
            let elsewhere = reply_to(&request, "api/ping/response");
            for wrong in [foreign, retained, elsewhere] {
                inboxes.receive(
                    &publisher,
                    Message {
                        payload: Bytes::new(),
                        ..wrong
                    },
                    &known,
                );
            }
            inboxes.receive(&publisher, reply_to(&request, &inbox), &known);
        });
        assert_eq!(reply.unwrap().payload, "pong");
    }

    #[test]
    fn what_the_broker_refuses_need_not_be_waited_for() {
        let refused = |delivery: Delivery| {
            answered(move |inboxes, request| {
                inboxes.acknowledged(&Acknowledgement {
                    topic: request.topic,
                    correlation_data: request.properties.correlation_data,
                    delivery: delivery.clone(),
                });
            })
        };
        let denied = refused(Delivery::Refused("NotAuthorized".into())).unwrap_err();
        assert!(matches!(denied, Failure::Denied(why) if why.contains("NotAuthorized")));
    }

    #[test]
    fn a_call_that_can_not_succeed_fails_at_once() {
        let (inboxes, known, client) = (inboxes(), Presence::default(), Client::patient());
        let (sent, publisher, memory) = Memory::start();
        let call = |timeout| {
            let call = call(1, timeout);
            let reply = inboxes.http.call(&publisher, &client, &known, call);
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
        let _ticket = inboxes.http.pending.register(Correlation([2; 16]), None);
        assert_eq!(call(LONG), Failure::TooManyWaiting(1));
    }
}
