//! The life of a gateway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::carrier::Carrier;
use super::router::Router;
use super::settings::GatewaySettings;
use super::{dispatch, forward};
use crate::base::error::Result;
use crate::base::threads;
use crate::front::{Client, Front, FrontKind, Handler, Takes, bind, guarded, tiny};
use crate::http::{Request, Response};
use crate::link::{Link, check_tls};
use crate::stream::{Streams, Why};
use crate::wire::stream::agent_at;

/// A running gateway.
pub struct Gateway {
    front: Box<dyn Front>,
    link: Link,
    streams: Arc<Streams>,
    // Looks after the time of streams.
    watch: JoinHandle<()>,
    timeout: Duration,
}

struct Dispatcher(Carrier);

impl Handler for Dispatcher {
    fn takes(&self, head: &Request) -> Takes {
        forward::takes(&self.0, head, Instant::now())
    }

    fn handle(&self, request: Request, client: &Client<'_>) -> Response {
        dispatch::handle(&self.0, &request, client)
    }
}

impl Gateway {
    /// Binds the address of `settings`, starts the connection to the broker and the HTTP server.
    /// The broker need not be there yet.
    ///
    /// Errors: the address is taken ([`Error::Listen`](crate::base::error::Error::Listen)), routes are in conflict
    /// ([`Error::Usage`](crate::base::error::Error::Usage)), or what [`Link::start`] and the fronts return.
    pub fn start(settings: GatewaySettings) -> Result<Gateway> {
        let listener = bind(settings.listen)?;
        if !settings.listen.ip().is_loopback() && !settings.access.asks() {
            log::warn!(
                "listening on {} without tokens: whoever reaches it may call every agent; set tokens_file or users_file in [access]",
                settings.listen
            );
        }
        let (link, carrier) = Carrier::start(&settings)?;
        let (streams, presence) = (carrier.inboxes.streams(), Arc::clone(&carrier.presence));
        let streams = Arc::clone(streams);
        let watched = Arc::clone(&streams);
        let watch = streams.watch(move |now| {
            if presence.somebody_left(now) {
                let is_gone = |peer: &str| {
                    let agent = agent_at(peer);
                    agent.is_some_and(|(id, instance)| !presence.is_there(id, instance))
                };
                watched.abort_where(Why::PeerGone, is_gone);
            }
        })?;
        let handler = Dispatcher(carrier);
        let front: Box<dyn Front> = match settings.front {
            FrontKind::Guarded => Box::new(guarded::start(listener, settings.http, handler)?),
            FrontKind::TinyHttp => Box::new(tiny::start(listener, settings.http, handler)?),
        };
        log::info!("listening on http://{}", front.address());
        let timeouts = settings.routes.iter().map(|route| route.timeout);
        Ok(Gateway {
            front,
            link,
            streams,
            watch,
            timeout: timeouts.max().unwrap_or_default(),
        })
    }

    /// Looks whether a gateway could be started with these settings.
    ///
    /// Errors: routes are in conflict ([`Error::Usage`](crate::base::error::Error::Usage)), or the files for TLS can't be used
    /// ([`Error::Tls`](crate::base::error::Error::Tls)).
    pub fn check(settings: &GatewaySettings) -> Result<()> {
        Router::new(&settings.routes, &settings.names)?;
        check_tls(&settings.broker)
    }

    /// The address it listens on, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.front.address()
    }

    /// Stops in order: accept no more, answer what is in hand while replies can still come, say
    /// goodbye to the broker, join every thread. Takes the longest route's timeout plus a second
    /// at most; while there is no connection to the broker, four seconds, since an attempt to connect
    /// can't be cut short.
    ///
    /// Errors: a thread did not end in time; the rest is stopped all the same.
    pub fn stop(self) -> Result<()> {
        let drained = Instant::now() + self.timeout + Duration::from_millis(300);
        let served = self.front.stop(drained);
        // What goes on for ever is ended only now, and takes a moment.
        let ended = drained + Duration::from_secs(1);
        let streams = self.streams.stop(ended);
        let watched = threads::join_until(self.watch, ended);
        let left = self.link.stop(drained);
        served.and(streams).and(watched).and(left)
    }
}
