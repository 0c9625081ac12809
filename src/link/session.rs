//! One connection to the broker, from CONNECT to its end. On the `mqtt` thread.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Filter, Packet, PubAckReason, PubCompReason, PubRecReason, RetainForwardRule, SubAck,
    SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, Connection, ConnectionError, Event, RecvTimeoutError, Request};

use super::brokers::Turns;
use super::convert::{from_publish, from_qos, to_qos};
use super::limits::{BrokerLimits, shares_subscriptions};
use super::outlet::Outlet;
use super::publish::{Acknowledgement, Delivery, LinkEvent, LinkOptions, Publisher, Subscription};
use super::url::BrokerUrl;
use crate::base::threads::{StopSignal, lock};
use crate::wire::Message;

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

/// What every connection of a link uses.
pub(super) struct Wiring {
    pub connection: Connection,
    pub outlet: Arc<Outlet>,
    /// What connections go to, and as whom.
    pub turns: Arc<Mutex<Turns>>,
    /// The same, for the owner.
    pub publisher: Publisher,
    pub on_event: OnEvent,
    pub on_unsubscribed: Sender<()>,
    pub stop: StopSignal,
    /// When the thread went on last.
    pub beat: Arc<Mutex<Instant>>,
}

impl Wiring {
    pub fn options(&self) -> &LinkOptions {
        self.outlet.options()
    }

    /// A message that came, as it is inside of the program.
    pub fn inside(&self, message: Message) -> Message {
        self.options().prefix.inside(message)
    }

    /// Says that the thread goes on.
    pub fn beat(&self) {
        *lock(&self.beat) = Instant::now();
    }

    /// The broker whose turn it is.
    pub fn broker(&self) -> BrokerUrl {
        lock(&self.turns).current().clone()
    }

    pub fn tell(&mut self, event: LinkEvent) {
        (self.on_event)(&self.publisher, event);
    }
}

/// How a connection ended.
pub(super) enum End {
    /// As it was asked to.
    Stopped,
    /// As it was asked to, to begin with the first broker again.
    Moved,
    /// It is of no use, for this reason.
    GivenUp(String),
    /// It failed, or could not be made.
    Failed(ConnectionError),
}

pub(super) struct Session<'a> {
    wiring: &'a mut Wiring,
    client: AsyncClient,
    limits: BrokerLimits,
    // The filters of each SUBSCRIBE: those not written yet, in their order, and those not
    // acknowledged yet, by packet identifier.
    asking: VecDeque<Vec<String>>,
    asked: HashMap<u16, Vec<String>>,
    filters: Vec<String>,
    // Since when there is a connection.
    connected: Option<Instant>,
    // Whether every subscription of it is acknowledged.
    is_open: bool,
    end: Option<End>,
}

impl<'a> Session<'a> {
    pub fn new(wiring: &'a mut Wiring, client: AsyncClient) -> Session<'a> {
        Session {
            limits: BrokerLimits::offered(None, wiring.options().max_packet_bytes),
            wiring,
            client,
            asking: VecDeque::new(),
            asked: HashMap::new(),
            filters: Vec::new(),
            connected: None,
            is_open: false,
            end: None,
        }
    }

    /// Since when there is a connection, if there is.
    pub fn connected(&self) -> Option<Instant> {
        self.connected
    }

    /// Connects, and goes on until the end.
    pub fn run(&mut self) -> End {
        loop {
            self.wiring.beat();
            match self.next_event() {
                Ok(Ok(event)) => {
                    self.on_event(event);
                    if let Some(reason) = self.wiring.outlet.take_useless() {
                        return End::GivenUp(reason);
                    }
                    if let Some(end) = self.end.take() {
                        return end;
                    }
                }
                Ok(Err(error)) => return End::Failed(error),
                Err(RecvTimeoutError::Timeout) if !self.is_open => {
                    return End::GivenUp(
                        "the broker does not acknowledge the subscriptions".into(),
                    );
                }
                Err(RecvTimeoutError::Timeout) => {
                    let stalled = self.wiring.outlet.stalled();
                    if stalled.is_some_and(|age| age >= STUCK) {
                        let reason = "the connection is stuck: the broker takes nothing";
                        return End::GivenUp(reason.into());
                    }
                }
                // All clients are gone; this session holds one, so it can't be.
                Err(RecvTimeoutError::Disconnected) => return End::Stopped,
            }
        }
    }

    // rumqttc neither pings nor notices that nobody answers while it is stuck in a write; then there
    // is something that waits to be written, and no event. Giving up the wait for an event loses
    // nothing where nothing is being written. Before there is a connection it would cancel the
    // attempt.
    fn next_event(&mut self) -> Result<Result<Event, ConnectionError>, RecvTimeoutError> {
        let connection = &mut self.wiring.connection;
        let Some(connected) = self.connected else {
            let event = connection.recv();
            return event.map_err(|_| RecvTimeoutError::Disconnected);
        };
        // rumqttc takes several packets off the connection at a time. Those that are here already
        // need no runtime.
        if let Some(event) = connection.eventloop.state.events.pop_front() {
            return Ok(Ok(event));
        }
        let patience = match self.is_open {
            true => SILENCE,
            false => SUBACK.saturating_sub(connected.elapsed()),
        };
        match patience.is_zero() {
            true => Err(RecvTimeoutError::Timeout),
            false => connection.recv_timeout(patience),
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Incoming(Packet::Publish(publish)) => {
                let message = self.wiring.inside(from_publish(publish));
                self.wiring.tell(LinkEvent::Message(message));
            }
            Event::Incoming(Packet::ConnAck(connack)) => self.on_connack(&connack),
            Event::Incoming(Packet::SubAck(suback)) => self.on_suback(&suback),
            Event::Outgoing(Outgoing::Subscribe(packet_id)) => {
                if let Some(filters) = self.asking.pop_front() {
                    self.asked.insert(packet_id, filters);
                }
            }
            Event::Incoming(Packet::UnsubAck(_)) => {
                let _ = self.wiring.on_unsubscribed.try_send(());
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
            Event::Outgoing(Outgoing::Publish(packet_id)) => {
                self.wiring.outlet.written(packet_id);
                if packet_id == 0 {
                    self.wiring.tell(LinkEvent::Written);
                }
            }
            // rumqttc announces one of its own when the broker breaks the protocol, and then
            // doesn't send it.
            Event::Outgoing(Outgoing::Disconnect) => {
                let moves = self.wiring.outlet.take_moving();
                match self.wiring.stop.is_stopped() {
                    true => {
                        self.wait_for_close();
                        self.end = Some(End::Stopped);
                    }
                    false if moves => {
                        self.wait_for_close();
                        self.end = Some(End::Moved);
                    }
                    false => self.give_up("the broker broke the protocol"),
                }
            }
            _ => {}
        }
    }

    fn give_up(&mut self, reason: impl Into<String>) {
        self.end = Some(End::GivenUp(reason.into()));
    }

    fn on_acknowledged(&mut self, packet_id: u16, delivery: Delivery) {
        let is_refused = matches!(delivery, Delivery::Refused(_));
        let outlet = &self.wiring.outlet;
        let Some(sent) = outlet.acknowledged(packet_id, !is_refused) else {
            return;
        };
        // Nobody asked for an acknowledgement of a proof.
        self.wiring.tell(match sent.is_proof && !is_refused {
            true => LinkEvent::Written,
            false => LinkEvent::Acknowledged(Acknowledgement {
                topic: sent.topic,
                correlation_data: sent.correlation_data,
                delivery,
            }),
        });
    }

    // A message whose packet identifier was still in use waits until that is acknowledged. rumqttc
    // forgets it where the acknowledgement is a refusal, and then sends nothing any more.
    fn release_collision(&mut self, packet_id: u16) {
        let eventloop = &mut self.wiring.connection.eventloop;
        let collision = eventloop.state.collision.take_if(|it| it.pkid == packet_id);
        if let Some(publish) = collision {
            eventloop.pending.push_front(Request::Publish(publish));
        }
    }

    fn on_connack(&mut self, connack: &ConnAck) {
        let options = self.wiring.options();
        log::info!("Connected with reason code 0 to {}", self.wiring.broker());
        self.connected = Some(Instant::now());
        let offered = connack.properties.as_ref();
        self.limits = BrokerLimits::offered(offered, options.max_packet_bytes);
        let shares = shares_subscriptions(offered);
        self.limits.note_what_is_missing();
        if !shares && options.subscriptions.iter().any(|it| it.group.is_some()) {
            log::warn!(
                "the broker has no shared subscriptions: several agents of a service, or with one id, each execute each request"
            );
        }
        // "No keep alive" from the server would make rumqttc ping without a pause.
        if offered.and_then(|p| p.server_keep_alive) == Some(0) {
            let options = &mut self.wiring.connection.eventloop.options;
            options.set_keep_alive(Duration::from_secs(60));
        }
        if self.wiring.stop.is_stopped() {
            let _ = self.client.try_disconnect();
            return;
        }
        self.subscribe(shares);
    }

    fn subscribe(&mut self, shares: bool) {
        let mut filters = Vec::new();
        if !self.wiring.outlet.is_quiet() {
            let all = self.wiring.options().subscriptions.iter();
            filters.extend(all.map(|subscription| self.filter(subscription, shares)));
        }
        self.filters = filters.iter().map(|filter| filter.path.clone()).collect();
        self.asking = self.filters.chunks(FILTERS).map(<[_]>::to_vec).collect();
        // The channel is empty: nobody could publish on this connection yet.
        let mut chunks = filters.chunks(FILTERS);
        if !chunks.all(|some| self.client.try_subscribe_many(some.to_vec()).is_ok()) {
            self.give_up("the subscriptions could not be queued");
        } else if filters.is_empty() {
            self.open();
        }
    }

    fn filter(&self, subscription: &Subscription, shares: bool) -> Filter {
        let filter = self.wiring.options().prefix.filter(&subscription.filter);
        let filter = match &subscription.group {
            Some(group) if shares => filter.shared(group),
            _ => filter,
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
                    self.wiring.tell(LinkEvent::Granted { filter, qos });
                }
                refused if !self.is_needed(&filter) => {
                    log::warn!("subscription to {filter} refused: {refused:?}; going on without");
                }
                refused => {
                    let reason = format!("{refused:?}");
                    refusal = Some(format!("subscription to {filter} refused: {reason}"));
                    self.wiring.tell(LinkEvent::Refused { filter, reason });
                }
            }
        }
        match refusal {
            Some(reason) => self.give_up(reason),
            None if self.asked.is_empty() && self.asking.is_empty() => self.open(),
            None => {}
        }
    }

    fn is_needed(&self, filter: &str) -> bool {
        let LinkOptions {
            subscriptions,
            prefix,
            ..
        } = self.wiring.options();
        let mut all = subscriptions.iter();
        all.all(|it| it.is_needed || prefix.filter(&it.filter).as_str() != filter)
    }

    fn open(&mut self) {
        let filters = std::mem::take(&mut self.filters);
        self.wiring.outlet.open(self.limits, filters);
        self.is_open = true;
        self.wiring.tell(LinkEvent::Ready);
    }

    // DISCONNECT is written. Closing at once could destroy it, and the last replies before it,
    // in the broker's receive buffer; so the broker closes first.
    fn wait_for_close(&mut self) {
        self.wiring.outlet.close("stopped");
        let deadline = Instant::now() + GOODBYE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.wiring.connection.recv_timeout(left) {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        log::info!("disconnected from {}", self.wiring.broker());
    }
}
