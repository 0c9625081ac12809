//! The `mqtt` thread: one connection after the other, and how long to wait in between.
//!
//! Each connection has a client, a queue and a state of its own, so nothing of one is left for the
//! next.

use std::net::SocketAddr;
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, Packet, Publish};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, StateError};

use super::address::{Choice, choose};
use super::convert::{CONNECT_TIMEOUT, describe, from_publish, mqtt_options};
use super::greeting::explain;
use super::publish::{LinkEvent, LinkOptions};
use super::session::{End, Session, Wiring};
use crate::base::backoff::Backoff;
use crate::base::error::Error;
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
    // The last failure that was logged as a warning, so that a broker that stays away is not
    // reported several times a second.
    last_failure: Option<String>,
    // See `remember_qos2`.
    unfinished: Option<u16>,
}

impl Driver {
    pub(super) fn new(wiring: Wiring) -> Driver {
        Driver {
            will: wiring.options().will.clone(),
            wiring,
            backoff: Backoff::new(FIRST_DELAY, LAST_DELAY),
            last_address: None,
            last_failure: None,
            unfinished: None,
        }
    }

    pub(super) fn run(&mut self) {
        while !self.wiring.stop.is_stopped() {
            self.wiring.beat();
            let (end, lived) = self.connect();
            let delay = match end {
                End::Stopped => return,
                End::GivenUp(reason) => {
                    self.wiring.outlet.close(&reason);
                    // At once: the broker would go on sending, and nobody reads it.
                    let eventloop = &mut self.wiring.connection.eventloop;
                    eventloop.clean();
                    eventloop.state.events.clear();
                    log::error!("{reason}; trying again in {} s", LAST_DELAY.as_secs());
                    self.wiring.tell(LinkEvent::Down(reason));
                    LAST_DELAY
                }
                End::Failed(error) => {
                    if lived.is_some_and(|lived| lived >= SETTLED) {
                        self.backoff.reset();
                    }
                    self.on_failure(&error, lived.is_some())
                }
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
        let own = LinkOptions {
            broker: self.wiring.broker(),
            ..self.wiring.options().clone()
        };
        let options = mqtt_options(&own, self.will.as_ref(), address);
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
            self.last_failure = None;
        }
        (end, connected.map(|since| since.elapsed()))
    }

    // The broker's address that answers, where it matters which one it is.
    fn choose_address(&mut self) -> std::io::Result<Option<SocketAddr>> {
        let broker = self.wiring.broker();
        let (host, port) = (broker.host().to_owned(), broker.port());
        match choose(&host, port, &mut self.last_address, CONNECT_TIMEOUT)? {
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
            && !broker.is_tls()
        {
            reason = explain(broker.host(), broker.port())
                .unwrap_or_else(|| format!("{reason}; is that an MQTT port, and one without TLS?"));
        }
        // Messages that were read together with the failure.
        for event in std::mem::take(&mut self.wiring.connection.eventloop.state.events) {
            if let Event::Incoming(Packet::Publish(publish)) = event {
                self.wiring.tell(LinkEvent::Message(from_publish(publish)));
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
        if was_ready {
            log::warn!("broker lost: {reason}");
        } else if self.last_failure.as_ref() != Some(&reason) {
            log::warn!("no connection to {broker}: {reason}; trying again");
        } else {
            log::debug!("no connection to {broker}: {reason}");
        }
        self.last_failure = Some(reason.clone());
        self.wiring.tell(LinkEvent::Down(reason));
        let random = getrandom::u32().unwrap_or_default();
        let delay = self.backoff.next_delay(random);
        match is_networks(error) {
            true => delay.min(LAST_DELAY_NETWORK),
            false => delay,
        }
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

// Whether it was not the broker itself that said no.
fn is_networks(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::Io(_) | ConnectionError::Timeout(_) => true,
        // A handshake that was cut; one that failed was the broker's answer.
        #[cfg(feature = "tls")]
        ConnectionError::Tls(rumqttc::TlsError::Io(_)) => true,
        ConnectionError::MqttState(StateError::ServerDisconnect { .. }) => false,
        ConnectionError::MqttState(_) => true,
        _ => false,
    }
}
