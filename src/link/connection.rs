//! A connection to the broker that stays up.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rumqttc::v5::Client;

use super::address;
use super::brokers::{Brokers, Turns};
use super::convert::{CONNECT_TIMEOUT, mqtt_options};
use super::driver::Driver;
use super::outlet::Outlet;
use super::publish::{LinkEvent, LinkOptions, Publisher};
use super::session::{GOODBYE, Wiring};
use super::transport;
use super::url::BrokerUrl;
use crate::base::error::Result;
use crate::base::threads::{self, StopTrigger, lock};

/// How long what is on its way may take before a connection is ended for another one.
const MOVING: Duration = Duration::from_secs(3);
/// Longer than the `mqtt` thread waits for anything: an attempt to connect, an event, the next attempt.
const STANDSTILL: Duration = Duration::from_secs(60);

/// A connection to the broker that stays up, and the thread that sees to it.
pub struct Link {
    outlet: Arc<Outlet>,
    publisher: Publisher,
    trigger: StopTrigger,
    unsubscribed: Receiver<()>,
    turns: Arc<Mutex<Turns>>,
    beat: Arc<Mutex<Instant>>,
    thread: JoinHandle<()>,
}

/// Looks whether this program can connect to the brokers as it is told to.
///
/// Errors: the files for TLS can't be used ([`Error::Tls`](crate::base::error::Error::Tls)), or it was built
/// without what is needed ([`Error::Usage`](crate::base::error::Error::Usage)).
pub fn check(brokers: &Brokers) -> Result<()> {
    let mut urls = brokers.urls().iter();
    urls.try_for_each(|url| transport::options("", url, None).map(|_| ()))
}

impl Link {
    /// Starts the `mqtt` thread, which connects in the background. `on_event` runs on it.
    ///
    /// Errors: no thread, or no usable certificates ([`Error::Tls`](crate::base::error::Error::Tls)).
    pub fn start(
        options: LinkOptions,
        on_event: impl FnMut(&Publisher, LinkEvent) + Send + 'static,
    ) -> Result<Link> {
        Link::run(Arc::new(Outlet::new(options)), on_event)
    }

    /// The same for an outlet that others may have already.
    pub(super) fn run(
        outlet: Arc<Outlet>,
        on_event: impl FnMut(&Publisher, LinkEvent) + Send + 'static,
    ) -> Result<Link> {
        let options = outlet.options();
        // Of these the runtime is what is kept: each connection has a client of its own.
        let first = &options.brokers[0];
        let own = mqtt_options(options, first, options.will.as_ref(), None)?;
        let (_, connection) = Client::new(own, 1);
        let turns = Arc::new(Mutex::new(Turns::new(options.brokers.clone())));
        let beat = Arc::new(Mutex::new(Instant::now()));
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
            turns: Arc::clone(&turns),
            beat: Arc::clone(&beat),
        });
        let thread = threads::spawn("mqtt", 512, move || driver.run())?;
        Ok(Link {
            outlet,
            publisher,
            trigger,
            unsubscribed,
            turns,
            beat,
            thread,
        })
    }

    /// The handle that other threads publish with.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Lets the next connection be made as these URLs say: to the same brokers, with other credentials or
    /// certificates.
    pub fn set_brokers(&self, brokers: Vec<BrokerUrl>) {
        lock(&self.turns).replace(brokers);
    }

    /// Goes back to the first broker, if there is another connection now and that one can be reached.
    pub fn return_to_first(&self) {
        let first = {
            let turns = lock(&self.turns);
            if turns.turn() == 0 || self.publisher.connected().is_err() {
                return;
            }
            turns.first().clone()
        };
        match address::reach(&first, CONNECT_TIMEOUT) {
            Ok(()) => self.outlet.move_on(Instant::now() + MOVING),
            Err(error) => log::warn!("not going back to {first}: {error}"),
        }
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
