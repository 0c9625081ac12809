//! A connection to each of several brokers.

use std::sync::Arc;
use std::time::Instant;

use super::anywhere::Anywhere;
use super::brokers::{Brokers, list};
use super::connection::Link;
use super::outlet::Outlet;
use super::publish::{LinkEvent, LinkOptions, Publisher};
use crate::base::error::{Error, Result};

/// The ways to publish that belong to one connection.
#[derive(Clone)]
pub struct Way {
    /// Which connection it is.
    pub number: usize,
    /// Its brokers, without what is secret.
    pub broker: String,
    /// On this connection, or not at all.
    pub own: Publisher,
    /// On this connection or, while there is none, on another one.
    pub any: Publisher,
}

impl Way {
    /// The only one.
    #[cfg(test)]
    pub(crate) fn only(publisher: &Publisher) -> Way {
        Way {
            number: 0,
            broker: "mqtt://test:1883".into(),
            own: Arc::clone(publisher),
            any: Arc::clone(publisher),
        }
    }
}

/// The connections of a program, one at least. Where one broker after the other is used, it is one.
pub struct Links {
    links: Vec<Link>,
}

impl Links {
    /// Starts a thread for each connection. `options`: of each, but for the brokers. What `on_event` makes
    /// runs on the thread of its connection.
    ///
    /// Errors: as [`Link::start`], or what `on_event` returns.
    pub fn start<E>(
        options: LinkOptions,
        brokers: &Brokers,
        on_event: impl Fn(Way) -> Result<E>,
    ) -> Result<Links>
    where
        E: FnMut(&Publisher, LinkEvent) + Send + 'static,
    {
        let connections = brokers.connections();
        let outlet = |(number, brokers)| {
            // Brokers may know each other's clients, and would throw one of them out.
            let client_id = match number {
                0 => options.client_id.clone(),
                _ => format!("{}-{number}", options.client_id),
            };
            Arc::new(Outlet::new(LinkOptions {
                brokers,
                client_id,
                ..options.clone()
            }))
        };
        let outlets: Vec<Arc<Outlet>> = connections.into_iter().enumerate().map(outlet).collect();
        let own: Vec<Publisher> = outlets.iter().map(|it| it.clone() as Publisher).collect();
        let link = |(number, outlet): (usize, Arc<Outlet>)| {
            let way = Way {
                number,
                broker: list(&outlet.options().brokers),
                own: Arc::clone(&own[number]),
                any: Anywhere::preferring(number, &own),
            };
            Link::run(outlet, on_event(way)?)
        };
        let links = outlets.into_iter().enumerate().map(link);
        Ok(Links {
            links: links.collect::<Result<_>>()?,
        })
    }

    /// Lets the next connections be made with other credentials or certificates, and goes back to the first
    /// broker where another one was used instead.
    pub fn reload(&self, brokers: &Brokers) {
        for (link, urls) in self.links.iter().zip(brokers.connections()) {
            link.set_brokers(urls);
            link.return_to_first();
        }
    }

    /// Whether their threads go on.
    pub fn are_alive(&self) -> bool {
        self.links.iter().all(Link::is_alive)
    }

    /// As [`Link::unsubscribe`], on each.
    pub fn unsubscribe(&self, deadline: Instant) {
        self.links
            .iter()
            .for_each(|link| link.unsubscribe(deadline));
    }

    /// As [`Link::stop`], on each.
    ///
    /// Errors: as there; the others are stopped all the same.
    pub fn stop(self, deadline: Instant) -> Result<()> {
        // At the same time: each may be in the middle of an attempt to connect.
        std::thread::scope(|scope| {
            let links = self.links.into_iter();
            let stops = links.map(|link| scope.spawn(move || link.stop(deadline)));
            let stops: Vec<_> = stops.collect();
            let stopped = stops.into_iter().map(|stop| {
                stop.join().unwrap_or_else(|_| {
                    let (name, reason) = ("stop".into(), "panicked");
                    Err(Error::Thread { name, reason })
                })
            });
            stopped.fold(Ok(()), Result::and)
        })
    }
}
