//! Publishing on the present connection, from any thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rumqttc::v5::AsyncClient;

use super::convert;
use super::limits::BrokerLimits;
use super::outbox::{Outbox, Sent};
use super::publish::{LinkOptions, Offer, Pieces, Publish, PublishError};
use crate::base::threads::lock;
use crate::wire::{Message, Properties, Qos};

/// What publishers and the `mqtt` thread share.
pub(super) struct Outlet {
    options: LinkOptions,
    state: Mutex<State>,
    // Something has made room, or there is a connection.
    moved: Condvar,
    // Set once the owner wants no more messages: a new connection then subscribes to nothing.
    quiet: AtomicBool,
    // The owner wants the present connection to end, and another one.
    moving: AtomicBool,
    // Why the owner has no use for this connection.
    useless: Mutex<Option<String>>,
}

struct State {
    // The way to the thread of the present connection or of the attempt to have one. Its name
    // notwithstanding nothing here is asynchronous: each call leaves a request in a channel.
    client: Option<AsyncClient>,
    phase: Phase,
    // How many wait for it to move.
    waiting: usize,
}

// What is on its way belongs to the connection, and is gone with it: nothing stale is ever sent on
// the next one.
enum Phase {
    Closed(String),
    Open {
        outbox: Box<Outbox>,
        filters: Vec<String>,
    },
}

impl Outlet {
    pub fn new(options: LinkOptions) -> Outlet {
        Outlet {
            options,
            state: Mutex::new(State {
                client: None,
                phase: Phase::Closed("not yet connected".into()),
                waiting: 0,
            }),
            moved: Condvar::new(),
            quiet: AtomicBool::new(false),
            moving: AtomicBool::new(false),
            useless: Mutex::default(),
        }
    }

    pub fn options(&self) -> &LinkOptions {
        &self.options
    }

    /// There is an attempt to connect.
    pub fn begin(&self, client: AsyncClient) {
        self.moving.store(false, Ordering::SeqCst);
        lock(&self.state).client = Some(client);
    }

    /// There is a connection, subscribed to these filters.
    pub fn open(&self, limits: BrokerLimits, filters: Vec<String>) {
        let limits = limits.less(self.options.prefix.extra_bytes());
        let mut state = lock(&self.state);
        let outbox = Box::new(Outbox::new(&self.options, limits));
        state.phase = Phase::Open { outbox, filters };
        self.has_moved(state);
    }

    /// There is none any more.
    pub fn close(&self, reason: &str) {
        let mut state = lock(&self.state);
        state.phase = Phase::Closed(reason.to_owned());
        self.has_moved(state);
    }

    fn has_moved(&self, state: MutexGuard<'_, State>) {
        let is_waited_for = state.waiting > 0;
        drop(state);
        if is_waited_for {
            self.moved.notify_all();
        }
    }

    /// A message is written.
    pub fn written(&self, packet_id: u16) {
        self.advance(|outbox| outbox.written(packet_id));
    }

    /// The broker has acknowledged a message, or refused it.
    pub fn acknowledged(&self, packet_id: u16, is_taken: bool) -> Option<Sent> {
        self.advance(|outbox| outbox.acknowledged(packet_id, is_taken))?
    }

    // Notes what has happened, and hands on what may go now.
    fn advance<T>(&self, note: impl FnOnce(&mut Outbox) -> T) -> Option<T> {
        let mut state = lock(&self.state);
        let State { client, phase, .. } = &mut *state;
        let Phase::Open { outbox, .. } = phase else {
            return None;
        };
        let noted = note(outbox);
        let now = Instant::now();
        while let Some(message) = outbox.next(now) {
            self.send(client.as_ref(), message);
        }
        let expired = outbox.take_expired();
        self.has_moved(state);
        if expired > 0 {
            log::warn!(
                "{expired} messages were not sent: their time was up before there was a place"
            );
        }
        Some(noted)
    }

    /// For how long the connection has taken nothing, if that is too long.
    pub fn stalled(&self) -> Option<Duration> {
        match &lock(&self.state).phase {
            Phase::Open { outbox, .. } => outbox.stalled(Instant::now()),
            Phase::Closed(_) => None,
        }
    }

    /// Why the owner has given the connection up, if it has.
    pub fn take_useless(&self) -> Option<String> {
        lock(&self.useless).take()
    }

    /// Ends the present connection behind all that is on its way, for another one.
    pub fn move_on(&self, deadline: Instant) {
        self.moving.store(true, Ordering::SeqCst);
        self.disconnect(deadline);
    }

    /// Whether a DISCONNECT is for that.
    pub fn take_moving(&self) -> bool {
        self.moving.swap(false, Ordering::SeqCst)
    }

    /// Whether a new connection is to subscribe to nothing.
    pub fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::SeqCst)
    }

    /// Asks the broker for no more messages, now and on every connection to come. Returns how many
    /// acknowledgements will come.
    pub fn unsubscribe(&self) -> usize {
        self.quiet.store(true, Ordering::SeqCst);
        let mut state = lock(&self.state);
        let State { client, phase, .. } = &mut *state;
        let (Some(client), Phase::Open { filters, .. }) = (client, phase) else {
            return 0;
        };
        let filters = std::mem::take(filters).into_iter();
        filters
            .filter(|filter| client.try_unsubscribe(filter.as_str()).is_ok())
            .count()
    }

    /// Asks for the end of the connection, behind all that is on its way; waits until `deadline` for
    /// that to have a place.
    pub fn disconnect(&self, deadline: Instant) {
        let mut state = lock(&self.state);
        while let Phase::Open { outbox, .. } = &state.phase
            && !outbox.is_handed()
        {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.wait(state, left);
        }
        if let Some(client) = &state.client {
            // It fails where the connection is over anyway.
            let _ = client.try_disconnect();
        }
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        state.waiting += 1;
        let waited = self.moved.wait_timeout(state, time);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.waiting -= 1;
        state
    }

    // Hands a message on. Where nobody acknowledges anything, the order does not matter, and waking
    // the mqtt thread under the lock would keep all other threads waiting.
    fn hand_on(&self, state: MutexGuard<'_, State>, next: Option<Message>) {
        if let Some(next) = next {
            let client = state.client.clone();
            let ordered = (next.qos > Qos::AtMostOnce).then_some(state);
            self.send(client.as_ref(), next);
            drop(ordered);
        }
    }

    // A message that finds no way is lost with its connection, which is over then.
    fn send(&self, client: Option<&AsyncClient>, message: Message) {
        let Some(client) = client else {
            return;
        };
        let message = self.options.prefix.outside(message);
        let (qos, retain) = (convert::to_qos(message.qos), message.retain);
        let _ = match message.properties == Properties::default() {
            true => client.try_publish(message.topic, qos, retain, message.payload),
            false => {
                let properties = convert::to_properties(message.properties);
                let (topic, payload) = (message.topic, message.payload);
                client.try_publish_with_properties(topic, qos, retain, payload, properties)
            }
        };
    }
}

impl State {
    // Takes the message, if there is a place for it. Returns what is to be handed on now; if there is
    // more, whatever is written next makes it go on.
    fn put(
        &mut self,
        message: &mut Option<Message>,
        deadline: Option<Instant>,
    ) -> Result<Option<Message>, PublishError> {
        let now = Instant::now();
        match &mut self.phase {
            Phase::Closed(reason) => Err(PublishError::NotConnected(reason.clone())),
            Phase::Open { outbox, .. } => {
                outbox.put(message, deadline, now)?;
                Ok(outbox.next(now))
            }
        }
    }
}

impl Publish for Outlet {
    fn publish(&self, message: Message, deadline: Option<Instant>) -> Result<(), PublishError> {
        let mut state = lock(&self.state);
        let next = state.put(&mut Some(message), deadline)?;
        self.hand_on(state, next);
        Ok(())
    }

    fn publish_before(&self, message: Message, deadline: Instant) -> Result<(), PublishError> {
        let mut message = Some(message);
        let mut state = lock(&self.state);
        loop {
            let why = match state.put(&mut message, Some(deadline)) {
                Ok(next) => {
                    self.hand_on(state, next);
                    return Ok(());
                }
                Err(why) => why,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !why.may_pass() {
                return Err(why);
            }
            state = self.wait(state, left);
        }
    }

    fn publish_pieces(&self, stream: Arc<dyn Pieces>) {
        let mut state = lock(&self.state);
        let State { client, phase, .. } = &mut *state;
        if let Phase::Open { outbox, .. } = phase {
            outbox.take_turns(stream);
            let now = Instant::now();
            while let Some(message) = outbox.next(now) {
                self.send(client.as_ref(), message);
            }
        }
    }

    fn acknowledge(&self, message: &Message) {
        if self.options.manual_acknowledgement
            && message.qos > Qos::AtMostOnce
            && let Some(client) = &lock(&self.state).client
        {
            let _ = client.try_ack(&convert::to_publish(message));
        }
    }

    fn offer(&self) -> Offer {
        match &lock(&self.state).phase {
            Phase::Open { outbox, .. } => Offer {
                max_qos: outbox.limits().max_qos,
                retain: outbox.limits().retain,
                max_packet_bytes: outbox.limits().max_packet_bytes as usize,
            },
            Phase::Closed(_) => Offer {
                max_qos: Qos::ExactlyOnce,
                retain: true,
                max_packet_bytes: self.options.max_packet_bytes as usize,
            },
        }
    }

    fn give_up(&self, reason: String) {
        *lock(&self.useless) = Some(reason);
    }

    fn connected(&self) -> Result<(), String> {
        match &lock(&self.state).phase {
            Phase::Open { .. } => Ok(()),
            Phase::Closed(reason) => Err(reason.clone()),
        }
    }

    fn ready(&self) -> Result<(), String> {
        self.connected()?;
        match self.stalled() {
            None => Ok(()),
            Some(age) => Err(PublishError::Stalled(age).to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rumqttc::v5::{EventLoop, MqttOptions};

    use super::*;
    use crate::link::Prefix;

    const LONG: Duration = Duration::from_secs(30);
    const LIMITS: BrokerLimits = BrokerLimits {
        max_packet_bytes: 1000,
        is_brokers: false,
        max_qos: Qos::ExactlyOnce,
        retain: true,
        inflight: 2,
    };

    /// An outlet with an attempt to connect whose other end nobody sees to.
    fn outlet() -> (Outlet, EventLoop) {
        let outlet = Outlet::new(LinkOptions {
            brokers: vec!["mqtt://127.0.0.1".parse().unwrap()],
            prefix: Prefix::default(),
            client_id: "test".into(),
            session_expiry: Duration::ZERO,
            keep_alive: LONG,
            max_packet_bytes: 1000,
            queue: 2,
            queue_bytes: 100_000,
            proves_topics: false,
            manual_acknowledgement: false,
            will: None,
            subscriptions: Vec::new(),
        });
        let options = MqttOptions::new("test", "localhost", 1);
        let (client, eventloop) = AsyncClient::new(options, 100);
        outlet.begin(client);
        (outlet, eventloop)
    }

    fn message(qos: Qos) -> Message {
        Message {
            topic: "t".into(),
            qos,
            ..Message::default()
        }
    }

    #[test]
    fn who_may_wait_waits_for_a_connection_and_for_a_place() {
        let (outlet, _eventloop) = outlet();
        let publish = |qos| outlet.publish(message(qos), None);
        let waits = |time| outlet.publish_before(message(Qos::AtMostOnce), Instant::now() + time);
        let closed = Err(PublishError::NotConnected("not yet connected".into()));
        assert_eq!(publish(Qos::AtMostOnce), closed);
        assert_eq!(waits(Duration::ZERO), closed);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| waits(LONG));
            outlet.open(LIMITS, Vec::new());
            assert_eq!(waiting.join().unwrap(), Ok(()));
            assert_eq!(publish(Qos::AtMostOnce), Ok(()));
            assert_eq!(publish(Qos::AtMostOnce), Err(PublishError::Busy));
            let waiting = scope.spawn(|| waits(LONG));
            outlet.written(0);
            assert_eq!(waiting.join().unwrap(), Ok(()));
            let waiting = scope.spawn(|| waits(LONG));
            outlet.close("gone");
            outlet.open(LIMITS, Vec::new());
            assert_eq!(waiting.join().unwrap(), Ok(()), "nothing is left of before");
        });
        let too_large = Message {
            payload: vec![0; 2000].into(),
            ..message(Qos::AtMostOnce)
        };
        let refused = outlet.publish_before(too_large, Instant::now() + LONG);
        assert!(matches!(refused, Err(PublishError::TooLarge { .. })));
    }

    #[test]
    fn a_disconnect_waits_for_what_has_no_place_yet() {
        let (outlet, _eventloop) = outlet();
        outlet.open(LIMITS, Vec::new());
        for _ in 0..2 {
            outlet.publish(message(Qos::AtLeastOnce), None).unwrap();
        }
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| outlet.disconnect(Instant::now() + LONG));
            outlet.written(1);
            assert!(!waiting.is_finished(), "the second one waits for its place");
            assert_eq!(outlet.acknowledged(1, true).unwrap().topic, "t");
            waiting.join().unwrap();
        });
        outlet.close("gone");
        assert!(
            outlet.acknowledged(2, true).is_none(),
            "of another connection"
        );
        outlet.disconnect(Instant::now() + LONG);
    }

    #[test]
    fn who_is_quiet_subscribes_to_nothing_any_more() {
        let (outlet, _eventloop) = outlet();
        outlet.open(LIMITS, vec!["a".into(), "b".into()]);
        assert!(!outlet.is_quiet());
        assert_eq!(outlet.unsubscribe(), 2);
        assert!(outlet.is_quiet());
        assert_eq!(outlet.unsubscribe(), 0);
    }
}
