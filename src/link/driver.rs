//! The `mqtt` thread: one connection after the other, and how long to wait in between.
//!
//! Each connection has a client, a queue and a state of its own, so nothing of one is left for the
//! next. Where there are several brokers, the next one has its turn as soon as one is lost, and keeps it.

use std::net::SocketAddr;
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, Packet, Publish};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, StateError};

use super::address::{Choice, choose};
use super::convert::{CONNECT_TIMEOUT, describe, from_publish, mqtt_options};
use super::greeting::explain;
use super::publish::LinkEvent;
use super::session::{End, Session, Wiring};
use super::url::Scheme;
use crate::base::backoff::Backoff;
use crate::base::error::Error;
use crate::base::threads::lock;
use crate::wire::{Message, Qos};

/// The first delay before connecting again.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest delay before connecting again.
const LAST_DELAY: Duration = Duration::from_secs(5);
/// The longest delay where it was not the broker itself that said no: asking the network again costs
/// nobody anything, and a broker that comes back is noticed soon.
const LAST_DELAY_NETWORK: Duration = Duration::from_millis(800);
/// A connection that lived this long was a success, after which the delays begin anew. Shorter
/// ones, as of two clients with one client id that throw each other out, must not spin.
const SETTLED: Duration = Duration::from_secs(1);
/// How many requests may be on their way to rumqttc. Messages are bounded by the outbox; besides them
/// there are subscriptions, and acknowledgements, of which a broker can ask for no more than this.
const REQUESTS: usize = 65_535 + 256;

pub(super) struct Driver {
    wiring: Wiring,
    // What the broker publishes if the connection just ends.
    will: Option<Message>,
    backoff: Backoff,
    // The broker's address that answered last, where its name has several.
    last_address: Option<SocketAddr>,
    // How many brokers were tried in vain since there was a connection that held.
    tried: usize,
    // Of each broker, the last failure that was logged as a warning, so that one that stays away is not
    // reported several times a second.
    last_failures: Vec<Option<String>>,
    // See `remember_qos2`.
    unfinished: Option<u16>,
}

impl Driver {
    pub(super) fn new(wiring: Wiring) -> Driver {
        Driver {
            will: wiring.options().will.clone(),
            last_failures: vec![None; wiring.options().brokers.len()],
            tried: 0,
            wiring,
            backoff: Backoff::new(FIRST_DELAY, LAST_DELAY),
            last_address: None,
            unfinished: None,
        }
    }

    pub(super) fn run(&mut self) {
        while !self.wiring.stop.is_stopped() {
            self.wiring.beat();
            let (end, lived) = self.connect();
            if lived.is_some_and(|lived| lived >= SETTLED) {
                self.backoff.reset();
                self.tried = 0;
            }
            let delay = match end {
                End::Stopped => return,
                End::GivenUp(reason) => {
                    self.wiring.outlet.close(&reason);
                    // At once: the broker would go on sending, and nobody reads it.
                    let eventloop = &mut self.wiring.connection.eventloop;
                    eventloop.clean();
                    eventloop.state.events.clear();
                    let broker = self.wiring.broker();
                    let delay = self.next_turn().unwrap_or(LAST_DELAY);
                    let millis = delay.as_millis();
                    log::error!("{broker}: {reason}; trying again in {millis} ms");
                    self.wiring.tell(LinkEvent::Down(reason));
                    delay
                }
                End::Failed(error) => self.on_failure(&error, lived.is_some()),
                End::Moved => self.go_to_first(),
            };
            if self.wiring.stop.sleep(delay) {
                return;
            }
        }
    }

    // One connection: how it ended and, if there was one, how long it lived.
    fn connect(&mut self) -> (End, Option<Duration>) {
        let address = match self.choose_address() {
            Ok(address) => address,
            Err(error) => return (End::Failed(ConnectionError::Io(error)), None),
        };
        // The files of TLS were readable at the start; if they are not now, the old ones still do.
        let broker = self.wiring.broker();
        let options = mqtt_options(self.wiring.options(), &broker, self.will.as_ref(), address);
        let options = options.unwrap_or_else(|error: Error| {
            log::warn!("{}", error.chain());
            self.wiring.connection.eventloop.options.clone()
        });
        let (client, eventloop) = AsyncClient::new(options, REQUESTS);
        self.wiring.connection.eventloop = eventloop;
        if let Some(packet_id) = self.unfinished.take() {
            self.remember_qos2(packet_id);
        }
        self.wiring.outlet.begin(client.clone());
        let mut session = Session::new(&mut self.wiring, client);
        let end = session.run();
        let connected = session.connected();
        if connected.is_some() {
            self.last_failures.fill(None);
        }
        (end, connected.map(|since| since.elapsed()))
    }

    // The broker's address that answers, where it matters which one it is.
    fn choose_address(&mut self) -> std::io::Result<Option<SocketAddr>> {
        let broker = self.wiring.broker();
        let host = broker.host();
        match choose(&broker, &mut self.last_address, CONNECT_TIMEOUT)? {
            Choice::Name => Ok(None),
            Choice::Address(address) => {
                log::debug!("{host} has several addresses, {} answers", address.ip());
                Ok(Some(address))
            }
        }
    }

    // Returns how long to wait before the next attempt.
    fn on_failure(&mut self, error: &ConnectionError, was_connected: bool) -> Duration {
        let was_ready = self.wiring.publisher.connected().is_ok();
        let broker = self.wiring.broker();
        let mut reason = describe(error);
        if let ConnectionError::MqttState(_) = error
            && !was_connected
            && broker.scheme() == Scheme::Mqtt
            && broker.proxy().is_none()
        {
            reason = explain(broker.host(), broker.port())
                .unwrap_or_else(|| format!("{reason}; is that an MQTT port, and one without TLS?"));
        }
        // Messages that were read together with the failure.
        for event in std::mem::take(&mut self.wiring.connection.eventloop.state.events) {
            if let Event::Incoming(Packet::Publish(publish)) = event {
                let message = self.wiring.inside(from_publish(publish));
                self.wiring.tell(LinkEvent::Message(message));
            }
        }
        self.wiring.outlet.close(&reason);
        match error {
            ConnectionError::MqttState(StateError::Unsolicited(packet_id)) => {
                self.unfinished = Some(*packet_id);
            }
            ConnectionError::ConnectionRefused(code) => self.adapt_will(*code),
            _ => {}
        }
        let turn = lock(&self.wiring.turns).turn();
        let last_failure = &mut self.last_failures[turn];
        if was_ready {
            log::warn!("broker lost: {reason} ({broker})");
        } else if last_failure.as_ref() != Some(&reason) {
            log::warn!("no connection to {broker}: {reason}; trying again");
        } else {
            log::debug!("no connection to {broker}: {reason}");
        }
        *last_failure = Some(reason.clone());
        self.wiring.tell(LinkEvent::Down(reason));
        self.next_turn().unwrap_or_else(|| {
            let random = getrandom::u32().unwrap_or_default();
            let delay = self.backoff.next_delay(random);
            match is_networks(error) {
                true => delay.min(LAST_DELAY_NETWORK),
                false => delay,
            }
        })
    }

    // It is the next broker's turn. Unless all were tried in vain, it is tried soon: in a moment, so that
    // not all programs come at once.
    fn next_turn(&mut self) -> Option<Duration> {
        let mut turns = lock(&self.wiring.turns);
        turns.take_next();
        self.tried = (self.tried + 1) % turns.count();
        let random = f64::from(getrandom::u32().unwrap_or_default());
        (self.tried > 0).then(|| FIRST_DELAY.mul_f64(random / f64::from(u32::MAX)))
    }

    fn go_to_first(&mut self) -> Duration {
        let reason = "going back to the first broker";
        log::info!("{reason}");
        self.wiring.outlet.close(reason);
        self.wiring.tell(LinkEvent::Down(reason.into()));
        lock(&self.wiring.turns).take_first();
        Duration::ZERO
    }

    // A broker says in its CONNACK what it does not support, and refuses a CONNECT whose will
    // asks for it (MQTT 5, section 3.2.2.3).
    fn adapt_will(&mut self, code: ConnectReturnCode) {
        if let Some(will) = &mut self.will {
            match code {
                ConnectReturnCode::RetainNotSupported => will.retain = false,
                ConnectReturnCode::QoSNotSupported => will.qos = Qos::AtMostOnce,
                _ => {}
            }
        }
    }

    // A broker that resumes a session may begin with the second half of a QoS 2 delivery whose
    // first half was received on an earlier connection. rumqttc takes that PUBREL for an error, and
    // would take it so again on each new connection. Telling it of the first half mends it.
    fn remember_qos2(&mut self, packet_id: u16) {
        let state = &mut self.wiring.connection.eventloop.state;
        let mut first_half = Publish::new("", QoS::ExactlyOnce, "", None);
        first_half.pkid = packet_id;
        let _ = state.handle_incoming_packet(Packet::Publish(first_half));
        state.events.clear();
    }
}

// Whether it was not the broker itself that said no. That it is not available right now, as a cluster says
// that is without a leader, is no such answer.
fn is_networks(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::Io(_) | ConnectionError::Timeout(_) => true,
        ConnectionError::ConnectionRefused(ConnectReturnCode::ServerUnavailable) => true,
        #[cfg(feature = "proxy")]
        ConnectionError::Proxy(_) => true,
        // A handshake that was cut; one that failed was the broker's answer.
        #[cfg(feature = "tls")]
        ConnectionError::Tls(rumqttc::TlsError::Io(_)) => true,
        ConnectionError::MqttState(StateError::ServerDisconnect { .. }) => false,
        ConnectionError::MqttState(_) => true,
        _ => false,
    }
}
