//! The `mqtt` thread: one loop over the connection.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use rumqttc::Outgoing as OutgoingPacket;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Filter, Packet, PubAckReason, PubCompReason, PubRecReason, Publish,
    RetainForwardRule, SubAck, SubscribeReasonCode,
};
use rumqttc::v5::{
    Connection, ConnectionError, Event, MqttState, RecvTimeoutError, Request, StateError,
};

use super::address::{Choice, choose};
use super::convert::{CONNECT_TIMEOUT, describe, from_publish, from_qos, mqtt_options, to_qos};
use super::greeting::explain;
use super::limits::{BrokerLimits, INFLIGHT, shares_subscriptions};
use super::publish::{Acknowledgement, Delivery, LinkEvent, LinkOptions, Subscription};
use super::publisher::{Gate, Publisher};
use crate::base::backoff::Backoff;
use crate::base::error::Error;
use crate::base::threads::{StopSignal, lock};
use crate::wire::Qos;

/// The first delay before connecting again.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest delay before connecting again.
const LAST_DELAY: Duration = Duration::from_secs(5);
/// The longest delay where it was not the broker itself that said no: a broker is back, and soon seen.
const LAST_DELAY_NETWORK: Duration = Duration::from_millis(800);
/// A connection that lived this long was a success, after which the delays begin anew. Shorter
/// ones, as of two clients with one client id that throw each other out, must not spin.
const SETTLED: Duration = Duration::from_secs(1);
/// How long the broker may take to acknowledge all subscriptions.
const SUBACK: Duration = Duration::from_secs(10);
/// After how long without any event it is looked whether a message waits for longer than that.
const SILENCE: Duration = Duration::from_secs(15);
const STUCK: Duration = Duration::from_secs(10);
/// How many filters one SUBSCRIBE holds: some brokers take eight at the most.
const FILTERS: usize = 8;
/// How long the broker may take to close the connection after DISCONNECT.
pub(super) const GOODBYE: Duration = Duration::from_millis(500);

/// What the owner of a link does with its events.
pub(super) type OnEvent = Box<dyn FnMut(&Publisher, LinkEvent) + Send>;

pub(super) struct Driver {
    connection: Connection,
    publisher: Publisher,
    stop: StopSignal,
    options: LinkOptions,
    broker: String,
    // The broker's address that answered last, where its name has several.
    last_address: Option<SocketAddr>,
    on_event: OnEvent,
    on_unsubscribed: Sender<()>,
    limits: BrokerLimits,
    // The filters of each SUBSCRIBE of this connection: those not written yet, in their order, and
    // those not acknowledged yet, by packet identifier.
    asking: VecDeque<Vec<String>>,
    asked: HashMap<u16, Vec<String>>,
    // Since when there is a connection.
    connected: Option<Instant>,
    // Whether every subscription of it is acknowledged.
    is_open: bool,
    // Whether DISCONNECT was written.
    goodbye: bool,
    // The last failure that was logged as a warning, so that a broker that stays away is not
    // reported several times a second.
    last_failure: Option<String>,
}

impl Driver {
    pub(super) fn new(
        connection: Connection,
        publisher: Publisher,
        options: LinkOptions,
        stop: StopSignal,
        on_event: OnEvent,
        on_unsubscribed: Sender<()>,
    ) -> Driver {
        Driver {
            connection,
            publisher,
            stop,
            broker: options.broker.to_string(),
            last_address: None,
            on_event,
            on_unsubscribed,
            limits: BrokerLimits::offered(None, options.max_packet_bytes),
            asking: VecDeque::new(),
            asked: HashMap::new(),
            connected: None,
            is_open: false,
            goodbye: false,
            last_failure: None,
            options,
        }
    }

    pub(super) fn run(&mut self) {
        let mut backoff = Backoff::new(FIRST_DELAY, LAST_DELAY);
        loop {
            match self.next_event() {
                Ok(Ok(event)) => {
                    self.on_packet(event);
                    let useless = lock(&self.publisher.shared.useless).take();
                    if let Some(reason) = useless {
                        self.reconnect(reason);
                    }
                    if self.goodbye {
                        return self.wait_for_close();
                    }
                }
                Ok(Err(error)) => {
                    let lived = self.connected.take().map(|since| since.elapsed());
                    if lived.is_some_and(|lived| lived >= SETTLED) {
                        backoff.reset();
                    }
                    let delay = self.on_failure(&error, lived.is_some(), &mut backoff);
                    if self.stop.sleep(delay) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) if !self.is_open => {
                    self.reconnect("the broker does not acknowledge the subscriptions".into());
                }
                Err(RecvTimeoutError::Timeout) => {
                    let stalled = lock(&self.publisher.shared.outgoing).stalled(Instant::now());
                    if stalled.is_some_and(|age| age >= STUCK) {
                        self.reconnect("the connection is stuck: the broker takes nothing".into());
                    }
                }
                // All clients are gone; this driver holds one, so it can't be.
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    // rumqttc neither pings nor notices that nobody answers while it is stuck in a write; then there
    // is something that waits to be written, and no event. Giving up the wait for an event loses
    // nothing where nothing is being written. Before there is a connection it would cancel the
    // attempt.
    fn next_event(&mut self) -> Result<Result<Event, ConnectionError>, RecvTimeoutError> {
        let Some(connected) = self.connected else {
            if let Err(error) = self.choose_address() {
                return Ok(Err(ConnectionError::Io(error)));
            }
            let event = self.connection.recv();
            return event.map_err(|_| RecvTimeoutError::Disconnected);
        };
        // rumqttc takes several packets off the connection at a time. Those that are here already
        // need no runtime.
        if let Some(event) = self.connection.eventloop.state.events.pop_front() {
            return Ok(Ok(event));
        }
        let patience = match self.is_open {
            true => SILENCE,
            false => SUBACK.saturating_sub(connected.elapsed()),
        };
        match patience.is_zero() {
            true => Err(RecvTimeoutError::Timeout),
            false => self.connection.recv_timeout(patience),
        }
    }

    // Lets rumqttc connect to what answers.
    fn choose_address(&mut self) -> std::io::Result<()> {
        let broker = &self.options.broker;
        let (host, port) = (broker.host(), broker.port());
        let address = match choose(host, port, &mut self.last_address, CONNECT_TIMEOUT)? {
            Choice::Name => None,
            Choice::Address(address) => {
                log::debug!("{host} has several addresses, {} answers", address.ip());
                Some(address)
            }
        };
        // The files of TLS were readable at the start; if they are not now, the old ones still do.
        let options = mqtt_options(&self.options, address);
        let failed = |error: Error| log::warn!("{}", error.chain());
        options.map_or_else(failed, |it| self.connection.eventloop.options = it);
        Ok(())
    }

    fn on_packet(&mut self, event: Event) {
        match event {
            Event::Incoming(Packet::Publish(publish)) => {
                let message = from_publish(publish);
                self.tell(LinkEvent::Message(message));
            }
            Event::Incoming(Packet::ConnAck(connack)) => self.on_connack(&connack),
            Event::Incoming(Packet::SubAck(suback)) => self.on_suback(&suback),
            Event::Outgoing(OutgoingPacket::Subscribe(packet_id)) => {
                if let Some(filters) = self.asking.pop_front() {
                    self.asked.insert(packet_id, filters);
                }
            }
            Event::Incoming(Packet::UnsubAck(_)) => {
                let _ = self.on_unsubscribed.try_send(());
            }
            Event::Incoming(Packet::PubAck(ack)) => {
                let delivery = match ack.reason {
                    PubAckReason::Success => Delivery::Taken,
                    PubAckReason::NoMatchingSubscribers => Delivery::NobodySubscribed,
                    refused => {
                        self.release_collision(ack.pkid);
                        Delivery::Refused(format!("{refused:?}"))
                    }
                };
                self.on_acknowledged(ack.pkid, delivery);
            }
            Event::Incoming(Packet::PubRec(ack)) => match ack.reason {
                PubRecReason::Success | PubRecReason::NoMatchingSubscribers => {}
                refused => {
                    self.on_acknowledged(ack.pkid, Delivery::Refused(format!("{refused:?}")))
                }
            },
            Event::Incoming(Packet::PubComp(ack)) => {
                let delivery = match ack.reason {
                    PubCompReason::Success => Delivery::Taken,
                    refused => Delivery::Refused(format!("{refused:?}")),
                };
                self.on_acknowledged(ack.pkid, delivery);
            }
            Event::Outgoing(OutgoingPacket::Publish(packet_id)) => {
                let shared = &self.publisher.shared;
                let mut outgoing = lock(&shared.outgoing);
                outgoing.written(packet_id);
                shared.made_room(outgoing);
                if packet_id == 0 {
                    self.tell(LinkEvent::Written);
                }
            }
            // rumqttc announces one of its own when the broker breaks the protocol, and then
            // doesn't send it.
            Event::Outgoing(OutgoingPacket::Disconnect) => match self.stop.is_stopped() {
                true => self.goodbye = true,
                false => self.reconnect("the broker broke the protocol".into()),
            },
            _ => {}
        }
    }

    fn on_acknowledged(&mut self, packet_id: u16, delivery: Delivery) {
        let shared = &self.publisher.shared;
        let mut outgoing = lock(&shared.outgoing);
        let is_refused = matches!(delivery, Delivery::Refused(_));
        let sent = outgoing.acknowledged(packet_id, !is_refused);
        shared.made_room(outgoing);
        if let Some(sent) = sent {
            // Nobody asked for an acknowledgement of this one.
            if sent.is_proof && !is_refused {
                return self.tell(LinkEvent::Written);
            }
            self.tell(LinkEvent::Acknowledged(Acknowledgement {
                topic: sent.topic,
                correlation_data: sent.correlation_data,
                delivery,
            }));
        }
    }

    // A message whose packet identifier was still in use waits until that is acknowledged. rumqttc
    // forgets it where the acknowledgement is a refusal, and then sends nothing any more.
    fn release_collision(&mut self, packet_id: u16) {
        let eventloop = &mut self.connection.eventloop;
        let collision = eventloop.state.collision.take_if(|it| it.pkid == packet_id);
        if let Some(publish) = collision {
            eventloop.pending.push_front(Request::Publish(publish));
        }
    }

    fn tell(&mut self, event: LinkEvent) {
        (self.on_event)(&self.publisher, event);
    }

    fn on_connack(&mut self, connack: &ConnAck) {
        log::info!("Connected with reason code 0 to {}", self.broker);
        self.connected = Some(Instant::now());
        self.last_failure = None;
        let own = self.publisher.shared.max_packet_bytes;
        let offered = connack.properties.as_ref();
        self.limits = BrokerLimits::offered(offered, own);
        let shares = shares_subscriptions(offered);
        self.limits.note_what_is_missing();
        if !shares
            && self
                .options
                .subscriptions
                .iter()
                .any(|one| one.group.is_some())
        {
            log::warn!(
                "the broker has no shared subscriptions: several agents of a service, or with one id, each execute each request"
            );
        }
        // "No keep alive" from the server would make rumqttc ping without a pause.
        if offered.and_then(|p| p.server_keep_alive) == Some(0) {
            let options = &mut self.connection.eventloop.options;
            options.set_keep_alive(Duration::from_secs(60));
        }
        if self.stop.is_stopped() {
            let _ = self.publisher.shared.client.try_disconnect();
            return;
        }
        self.subscribe(shares);
    }

    fn subscribe(&mut self, shares: bool) {
        let shared = Arc::clone(&self.publisher.shared);
        let mut filters = Vec::new();
        if !shared.quiet.load(Ordering::SeqCst) {
            let all = self.options.subscriptions.iter();
            filters.extend(all.map(|subscription| self.filter(subscription, shares)));
        }
        let path = |filter: &Filter| filter.path.clone();
        let names: Vec<String> = filters.iter().map(path).collect();
        self.asked.clear();
        self.asking = names.chunks(FILTERS).map(<[String]>::to_vec).collect();
        *lock(&shared.subscribed) = names;
        // The channel is empty: nobody could publish since it was drained.
        let mut chunks = filters.chunks(FILTERS);
        if !chunks.all(|some| shared.client.try_subscribe_many(some.to_vec()).is_ok()) {
            self.reconnect("the subscriptions could not be queued".into());
        } else if filters.is_empty() {
            self.open();
        }
    }

    fn filter(&self, subscription: &Subscription, shares: bool) -> Filter {
        let filter = match &subscription.group {
            Some(group) if shares => subscription.filter.shared(group),
            _ => subscription.filter.clone(),
        };
        let qos = subscription.qos.min(self.limits.max_qos);
        let mut wire = Filter::new(filter.as_str(), to_qos(qos));
        if !subscription.retained {
            wire.retain_forward_rule = RetainForwardRule::Never;
        }
        wire
    }

    fn on_suback(&mut self, suback: &SubAck) {
        let Some(filters) = self.asked.remove(&suback.pkid) else {
            return;
        };
        let mut refusal = None;
        for (filter, code) in filters.into_iter().zip(&suback.return_codes) {
            match code {
                SubscribeReasonCode::Success(qos) => {
                    let qos = from_qos(*qos);
                    self.tell(LinkEvent::Granted { filter, qos });
                }
                refused => {
                    let reason = format!("{refused:?}");
                    refusal = Some(format!("subscription to {filter} refused: {reason}"));
                    self.tell(LinkEvent::Refused { filter, reason });
                }
            }
        }
        match refusal {
            Some(reason) => self.reconnect(reason),
            None if self.asked.is_empty() && self.asking.is_empty() => self.open(),
            None => {}
        }
    }

    fn open(&mut self) {
        let shared = &self.publisher.shared;
        *shared.write_gate() = Gate::Open(self.limits);
        self.is_open = true;
        let mut outgoing = lock(&shared.outgoing);
        outgoing.changes += 1;
        shared.made_room(outgoing);
        self.tell(LinkEvent::Ready);
    }

    // Gives this connection up; the next `recv` makes a new one.
    fn reconnect(&mut self, reason: String) {
        self.close_gate(&reason);
        self.connected = None;
        log::error!("{reason}; trying again in {} s", LAST_DELAY.as_secs());
        self.tell(LinkEvent::Down(reason));
        self.stop.sleep(LAST_DELAY);
    }

    // Returns how long to wait before the next attempt.
    fn on_failure(
        &mut self,
        error: &ConnectionError,
        was_connected: bool,
        backoff: &mut Backoff,
    ) -> Duration {
        let was_ready = self.publisher.connected().is_ok();
        let mut reason = describe(error);
        if let ConnectionError::MqttState(_) = error
            && !was_connected
            && !self.options.broker.is_tls()
        {
            let broker = &self.options.broker;
            reason = explain(broker.host(), broker.port())
                .unwrap_or_else(|| format!("{reason}; is that an MQTT port, and one without TLS?"));
        }
        // Messages that were read together with the failure.
        for event in std::mem::take(&mut self.connection.eventloop.state.events) {
            if let Event::Incoming(Packet::Publish(publish)) = event {
                self.tell(LinkEvent::Message(from_publish(publish)));
            }
        }
        self.close_gate(&reason);
        match error {
            ConnectionError::MqttState(StateError::Unsolicited(packet_id)) => {
                self.remember_qos2(*packet_id);
            }
            ConnectionError::ConnectionRefused(code) => self.adapt_will(*code),
            _ => {}
        }
        if was_ready {
            log::warn!("broker lost: {reason}");
        } else if self.last_failure.as_ref() != Some(&reason) {
            log::warn!("no connection to {}: {reason}; trying again", self.broker);
        } else {
            log::debug!("no connection to {}: {reason}", self.broker);
        }
        self.last_failure = Some(reason.clone());
        self.tell(LinkEvent::Down(reason));
        let delay = backoff.next_delay(getrandom::u32().unwrap_or_default());
        match error {
            ConnectionError::Io(_) | ConnectionError::Timeout(_) => delay.min(LAST_DELAY_NETWORK),
            // A handshake that was cut; one that failed was the broker's answer.
            #[cfg(feature = "tls")]
            ConnectionError::Tls(rumqttc::TlsError::Io(_)) => delay.min(LAST_DELAY_NETWORK),
            ConnectionError::MqttState(StateError::ServerDisconnect { .. }) => delay,
            ConnectionError::MqttState(_) => delay.min(LAST_DELAY_NETWORK),
            _ => delay,
        }
    }

    fn close_gate(&mut self, reason: &str) {
        let shared = &self.publisher.shared;
        let mut gate = shared.write_gate();
        *gate = Gate::Closed(reason.to_owned());
        // Nobody publishes while this thread holds the gate, so after this nothing stale is left.
        lock(&shared.outgoing).clear();
        self.is_open = false;
        let eventloop = &mut self.connection.eventloop;
        eventloop.clean();
        eventloop.pending.clear();
        // `clean` leaves a collision of packet identifiers behind, with which the next connection
        // would send nothing, and events of this connection.
        eventloop.state = MqttState::new(INFLIGHT, shared.manual_acknowledgement);
    }

    // A broker says in its CONNACK what it does not support, and refuses a CONNECT whose will
    // asks for it (MQTT 5, section 3.2.2.3).
    fn adapt_will(&mut self, code: ConnectReturnCode) {
        if let Some(will) = &mut self.options.will {
            match code {
                ConnectReturnCode::RetainNotSupported => will.retain = false,
                ConnectReturnCode::QoSNotSupported => will.qos = Qos::AtMostOnce,
                _ => {}
            }
        }
    }

    // A broker that resumes a session may begin with the second half of a QoS 2 delivery whose
    // first half an earlier process received. rumqttc takes that PUBREL for an error, and would
    // take it so again on each new connection. Telling it of the first half mends it.
    fn remember_qos2(&mut self, packet_id: u16) {
        let state = &mut self.connection.eventloop.state;
        let mut first_half = Publish::new("", QoS::ExactlyOnce, "", None);
        first_half.pkid = packet_id;
        let _ = state.handle_incoming_packet(Packet::Publish(first_half));
        state.events.clear();
    }

    // DISCONNECT is written. Closing at once could destroy it, and the last replies before it,
    // in the broker's receive buffer; so the broker closes first.
    fn wait_for_close(&mut self) {
        let shared = &self.publisher.shared;
        *shared.write_gate() = Gate::Closed("stopped".into());
        let deadline = Instant::now() + GOODBYE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.connection.recv_timeout(left) {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        log::info!("disconnected from {}", self.broker);
    }
}
