//! The life of a gateway.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::carrier::Carrier;
use super::router::Router;
use super::settings::{GatewaySettings, Route};
use super::{dispatch, forward};
use crate::base::error::Result;
use crate::base::threads::{self, lock};
use crate::front::{Client, Exchange, Front, FrontKind, Handler, Takes, bind, guarded};
use crate::http::{Request, Response};
use crate::link::{self, Links};
use crate::monitor::Monitor;
use crate::stream::{Streams, Why};
use crate::wire::stream::agent_at;

/// A running gateway.
pub struct Gateway {
    front: Box<dyn Front>,
    links: Links,
    monitor: Arc<Monitor>,
    streams: Arc<Streams>,
    // Looks after the time of streams.
    watch: JoinHandle<()>,
    carriers: Carriers,
    settings: Mutex<GatewaySettings>,
    // The routes that there were at the start: their replies can come in.
    subscribed: Vec<Route>,
    // The longest time that a request may take, of all settings that there were.
    longest: Mutex<Duration>,
}

// What requests are carried by; each by the one that there was when it came.
type Carriers = Arc<RwLock<Arc<Carrier>>>;

struct Dispatcher(Carriers);

fn present(carriers: &Carriers) -> Arc<Carrier> {
    Arc::clone(&carriers.read().unwrap_or_else(PoisonError::into_inner))
}

impl Handler for Dispatcher {
    fn takes(&self, head: &Request) -> Takes {
        forward::takes(&present(&self.0), head, Instant::now())
    }

    fn handle(&self, request: Request, client: &Client<'_>) -> Response {
        dispatch::handle(&present(&self.0), &request, client)
    }

    fn ended(&self, exchange: &Exchange<'_>) {
        present(&self.0).monitor.ended(exchange);
    }
}

fn warn_if_open(settings: &GatewaySettings) {
    if !settings.listen.ip().is_loopback() && !settings.access.asks() {
        log::warn!(
            "listening on {} without tokens: whoever reaches it may call every agent; set tokens_file or users_file in [access]",
            settings.listen
        );
    }
}

impl Gateway {
    /// Binds the address of `settings`, starts the connection to the broker and the HTTP server.
    /// The broker need not be there yet.
    ///
    /// Errors: the address is taken ([`Error::Listen`](crate::base::error::Error::Listen)), routes are in conflict
    /// ([`Error::Usage`](crate::base::error::Error::Usage)), or what [`Links::start`] and the fronts return.
    pub fn start(settings: GatewaySettings) -> Result<Gateway> {
        let listener = bind(settings.listen)?;
        warn_if_open(&settings);
        let (links, carrier) = Carrier::start(&settings)?;
        let (streams, brokers) = (carrier.inboxes.streams(), Arc::clone(&carrier.brokers));
        let streams = Arc::clone(streams);
        let watched = Arc::clone(&streams);
        let watch = streams.watch(move |now| {
            if brokers.somebody_left(now) {
                let is_gone = |peer: &str| {
                    let agent = agent_at(peer);
                    agent.is_some_and(|(id, instance)| !brokers.is_there(id, instance))
                };
                watched.abort_where(Why::PeerGone, is_gone);
            }
        })?;
        let monitor = Arc::clone(&carrier.monitor);
        let carriers: Carriers = Arc::new(RwLock::new(Arc::new(carrier)));
        let handler = Dispatcher(Arc::clone(&carriers));
        let front: Box<dyn Front> = match settings.front {
            FrontKind::Guarded => {
                Box::new(guarded::start(listener, settings.http.clone(), handler)?)
            }
            #[cfg(feature = "tiny-front")]
            FrontKind::TinyHttp => Box::new(crate::front::tiny::start(
                listener,
                settings.http.clone(),
                handler,
            )?),
        };
        log::info!("listening on http://{}", front.address());
        Ok(Gateway {
            front,
            links,
            monitor,
            streams,
            watch,
            carriers,
            subscribed: settings.routes.clone(),
            longest: Mutex::new(settings.longest_timeout()),
            settings: Mutex::new(settings),
        })
    }

    /// Looks whether a gateway could be started with these settings.
    ///
    /// Errors: routes are in conflict ([`Error::Usage`](crate::base::error::Error::Usage)), or the files for TLS can't be used
    /// ([`Error::Tls`](crate::base::error::Error::Tls)).
    pub fn check(settings: &GatewaySettings) -> Result<()> {
        Router::new(&settings.routes, &settings.names)?;
        link::check(&settings.brokers)
    }

    /// The address it listens on, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.front.address()
    }

    /// Whether requests can be answered; if not, why.
    pub fn ready(&self) -> std::result::Result<(), String> {
        let ready = present(&self.carriers).brokers.ready();
        ready.map_err(|failure| failure.to_string())
    }

    /// Whether the threads go on that requests need, the `mqtt` threads.
    pub fn is_alive(&self) -> bool {
        self.links.are_alive()
    }

    /// Goes on with other settings, without losing a request: each is answered with those that there were
    /// when its head, and what is taken of its body at once, had been read. Returns the keys that can't change so.
    ///
    /// Errors: as [`Gateway::check`]; then nothing has changed.
    pub fn reload(&self, wished: GatewaySettings) -> Result<Vec<String>> {
        Gateway::check(&wished)?;
        let mut settings = lock(&self.settings);
        let (mut next, mut fixed) = settings.reloaded(wished, &self.subscribed);
        warn_if_open(&next);
        let carrier = present(&self.carriers).with(&next)?;
        *self
            .carriers
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(carrier);
        if !self.front.set_limits(&next.http) && next.http != settings.http {
            fixed.push("[http]".to_owned());
            next.http = settings.http.clone();
        }
        self.links.reload(&next.brokers);
        let mut longest = lock(&self.longest);
        *longest = longest.max(next.longest_timeout());
        // Whoever looks may be one who may not any more: the page asks again.
        self.monitor.live.dismiss();
        *settings = next;
        Ok(fixed)
    }

    /// Stops in order: accept no more, answer what is in hand while replies can still come, say
    /// goodbye to the broker, join every thread. Takes the longest route's timeout plus a second
    /// at most; while there is no connection to the broker, four seconds, since an attempt to connect
    /// can't be cut short.
    ///
    /// Errors: a thread did not end in time; the rest is stopped all the same.
    pub fn stop(self) -> Result<()> {
        self.monitor.live.close();
        let timeout = *lock(&self.longest);
        let drained = Instant::now() + timeout + Duration::from_millis(300);
        let served = self.front.stop(drained);
        // What goes on for ever is ended only now, and takes a moment.
        let ended = drained + Duration::from_secs(1);
        let streams = self.streams.stop(ended);
        let watched = threads::join_until(self.watch, ended);
        let left = self.links.stop(drained);
        served.and(streams).and(watched).and(left)
    }
}
