//! A connection to the broker that stays up.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rumqttc::v5::Client;

use super::convert::{CONNECT_TIMEOUT, mqtt_options};
use super::driver::Driver;
use super::outlet::Outlet;
use super::publish::{LinkEvent, LinkOptions, Publisher};
use super::session::{GOODBYE, Wiring};
use super::tls;
use super::url::BrokerUrl;
use crate::base::error::Result;
use crate::base::threads::{self, StopTrigger, lock};

/// Longer than the `mqtt` thread waits for anything: an attempt to connect, an event, the next attempt.
const STANDSTILL: Duration = Duration::from_secs(60);

/// A connection to the broker that stays up, and the thread that sees to it.
pub struct Link {
    outlet: Arc<Outlet>,
    publisher: Publisher,
    trigger: StopTrigger,
    unsubscribed: Receiver<()>,
    broker: Arc<Mutex<BrokerUrl>>,
    beat: Arc<Mutex<Instant>>,
    thread: JoinHandle<()>,
}

/// Looks whether the files that a broker's URL needs for TLS can be used.
///
/// Errors: they can't ([`Error::Tls`](crate::base::error::Error::Tls)).
pub fn check_tls(broker: &BrokerUrl) -> Result<()> {
    match broker.is_tls() {
        true => tls::transport(broker.tls_files(), None).map(|_| ()),
        false => Ok(()),
    }
}

impl Link {
    /// Starts the `mqtt` thread, which connects in the background. `on_event` runs on it.
    ///
    /// Errors: no thread, or no usable certificates ([`Error::Tls`](crate::base::error::Error::Tls)).
    pub fn start(
        options: LinkOptions,
        on_event: impl FnMut(&Publisher, LinkEvent) + Send + 'static,
    ) -> Result<Link> {
        // Of these the runtime is what is kept: each connection has a client of its own.
        let (_, connection) = Client::new(mqtt_options(&options, options.will.as_ref(), None)?, 1);
        let broker = Arc::new(Mutex::new(options.broker.clone()));
        let beat = Arc::new(Mutex::new(Instant::now()));
        let outlet = Arc::new(Outlet::new(options));
        let publisher: Publisher = outlet.clone();
        let (trigger, stop) = threads::stop_signal();
        let (on_unsubscribed, unsubscribed) = crossbeam_channel::bounded(16);
        let mut driver = Driver::new(Wiring {
            connection,
            outlet: Arc::clone(&outlet),
            publisher: Arc::clone(&publisher),
            on_event: Box::new(on_event),
            on_unsubscribed,
            stop,
            broker: Arc::clone(&broker),
            beat: Arc::clone(&beat),
        });
        let thread = threads::spawn("mqtt", 512, move || driver.run())?;
        Ok(Link {
            outlet,
            publisher,
            trigger,
            unsubscribed,
            broker,
            beat,
            thread,
        })
    }

    /// The handle that other threads publish with.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Lets the next connection be made as this URL says: with other credentials, or certificates.
    pub fn set_broker(&self, broker: BrokerUrl) {
        *lock(&self.broker) = broker;
    }

    /// Whether the thread goes on: it never waits for as long as this without looking.
    pub fn is_alive(&self) -> bool {
        lock(&self.beat).elapsed() < STANDSTILL
    }

    /// Unsubscribes from everything and waits until the broker has confirmed it, so that it hands
    /// what comes next to others. Publishing goes on. Gives up quietly at `deadline`.
    pub fn unsubscribe(&self, deadline: Instant) {
        for _ in 0..self.outlet.unsubscribe() {
            if self.unsubscribed.recv_deadline(deadline).is_err() {
                break;
            }
        }
    }

    /// Disconnects behind all that was published, and joins the thread.
    ///
    /// Errors: the thread is still stuck in the connection at `deadline`, or as long after the call
    /// as an attempt to connect may take ([`Error::Thread`](crate::base::error::Error::Thread)).
    pub fn stop(self, deadline: Instant) -> Result<()> {
        // An attempt to connect can't be cut short.
        let last = deadline.max(Instant::now() + CONNECT_TIMEOUT) + GOODBYE;
        self.trigger.stop();
        // Wakes the thread if it waits for the connection. Otherwise it is either writing or waiting
        // to connect again, and looks at the stop signal after both.
        self.outlet.disconnect(deadline);
        threads::join_until(self.thread, last)
    }
}
