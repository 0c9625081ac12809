//! A connection to the broker that stays up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rumqttc::v5::{Client, ClientError};

use super::driver::{self, Driver};
use super::outgoing::Outgoing;
use super::publish::{LinkEvent, LinkOptions};
use super::publisher::{Gate, Publisher, Shared};
use super::url::BrokerUrl;
use super::{convert, tls};
use crate::base::error::Result;
use crate::base::threads::{self, StopTrigger, lock};

/// A connection to the broker that stays up, and the thread that sees to it.
pub struct Link {
    publisher: Publisher,
    trigger: StopTrigger,
    unsubscribed: Receiver<()>,
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
        // Besides messages there are subscriptions and the like.
        let (client, connection) =
            Client::new(convert::mqtt_options(&options, None)?, options.queue + 64);
        let publisher = Publisher {
            shared: Arc::new(Shared {
                client,
                gate: RwLock::new(Gate::Closed("not yet connected".into())),
                max_packet_bytes: options.max_packet_bytes,
                subscribed: Mutex::new(Vec::new()),
                outgoing: Mutex::new(Outgoing::new(&options)),
                room: Condvar::new(),
                manual_acknowledgement: options.manual_acknowledgement,
                quiet: AtomicBool::new(false),
                useless: Mutex::default(),
            }),
        };
        let (trigger, stop) = threads::stop_signal();
        let (on_unsubscribed, unsubscribed) = crossbeam_channel::bounded(16);
        let mut driver = Driver::new(
            connection,
            publisher.clone(),
            options,
            stop,
            Box::new(on_event),
            on_unsubscribed,
        );
        let thread = threads::spawn("mqtt", 512, move || driver.run())?;
        Ok(Link {
            publisher,
            trigger,
            unsubscribed,
            thread,
        })
    }

    /// The handle that other threads publish with.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Unsubscribes from everything and waits until the broker has confirmed it, so that it hands
    /// what comes next to others. Publishing goes on. Gives up quietly at `deadline`.
    pub fn unsubscribe(&self, deadline: Instant) {
        let shared = &self.publisher.shared;
        shared.quiet.store(true, Ordering::SeqCst);
        if self.publisher.connected().is_err() {
            return;
        }
        let filters = std::mem::take(&mut *lock(&shared.subscribed));
        let sent = filters
            .into_iter()
            .filter(|filter| shared.client.try_unsubscribe(filter.as_str()).is_ok())
            .count();
        for _ in 0..sent {
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
        let deadline = deadline.max(Instant::now() + convert::CONNECT_TIMEOUT) + driver::GOODBYE;
        self.trigger.stop();
        // Wakes the thread if it waits for the connection. If it doesn't take this, it is either
        // writing or waiting to connect again; it looks at the stop signal after both.
        while let Err(ClientError::TryRequest(_)) = self.publisher.shared.client.try_disconnect() {
            if self.thread.is_finished() || Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        threads::join_until(self.thread, deadline)
    }
}
