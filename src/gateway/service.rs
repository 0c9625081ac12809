//! The life of a gateway.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::carrier::Carrier;
use super::dispatch;
use super::router::Router;
use super::settings::GatewaySettings;
use crate::base::error::Result;
use crate::front::{Client, Front, FrontKind, bind, guarded, tiny};
use crate::http::Request;
use crate::link::{Link, check_tls};

/// A running gateway.
pub struct Gateway {
    front: Box<dyn Front>,
    link: Link,
    timeout: Duration,
}

impl Gateway {
    /// Binds the address of `settings`, starts the connection to the broker and the HTTP server.
    /// The broker need not be there yet.
    ///
    /// Errors: the address is taken ([`Error::Listen`](crate::base::error::Error::Listen)), routes are in conflict
    /// ([`Error::Usage`](crate::base::error::Error::Usage)), or what [`Link::start`] and the fronts return.
    pub fn start(settings: GatewaySettings) -> Result<Gateway> {
        let listener = bind(settings.listen)?;
        if !settings.listen.ip().is_loopback() && settings.access.tokens.is_empty() {
            log::warn!(
                "listening on {} without tokens: whoever reaches it may call every agent; set tokens_file in [access]",
                settings.listen
            );
        }
        let (link, carrier) = Carrier::start(&settings)?;
        let handler = move |request: Request, client: &Client<'_>| {
            dispatch::handle(&carrier, &request, client)
        };
        let front: Box<dyn Front> = match settings.front {
            FrontKind::Guarded => Box::new(guarded::start(listener, settings.http, handler)?),
            FrontKind::TinyHttp => Box::new(tiny::start(listener, settings.http, handler)?),
        };
        log::info!("listening on http://{}", front.address());
        let timeouts = settings.routes.iter().map(|route| route.timeout);
        Ok(Gateway {
            front,
            link,
            timeout: timeouts.max().unwrap_or_default(),
        })
    }

    /// Looks whether a gateway could be started with these settings.
    ///
    /// Errors: routes are in conflict ([`Error::Usage`](crate::base::error::Error::Usage)), or the files for TLS can't be used
    /// ([`Error::Tls`](crate::base::error::Error::Tls)).
    pub fn check(settings: &GatewaySettings) -> Result<()> {
        Router::new(&settings.routes)?;
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
        let left = self.link.stop(drained);
        served.and(left)
    }
}
