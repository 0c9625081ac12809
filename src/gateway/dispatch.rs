//! Which request goes where, and what every answer carries.

use std::fmt::Write;
use std::time::Instant;

use http::{HeaderName, HeaderValue, StatusCode, header};

use super::access::Caller;
use super::carrier::{Answer, Asked, Carrier, json_response};
use super::router::{Endpoint, Found, with_slash};
use super::settings::Mode;
use super::{forward, json, scrape, views};
use crate::front::Client;
use crate::http::failure::Wanted;
use crate::http::{
    Failure, Problem, Request, RequestId, Response, Unanswered, X_REQUEST_ID, client_gone,
};
#[cfg(feature = "page")]
use crate::monitor::page::page;
use crate::monitor::trace::{Shares, Trace};
use crate::wire::Hop;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Answers a request.
pub(super) fn handle(carrier: &Carrier, request: &Request, client: &Client<'_>) -> Response {
    let begun = Instant::now();
    let id = RequestId::of(request.headers());
    let address = carrier.gate.address(request.headers(), client.peer);
    let mut trace = Trace::of_nothing(Some(id), address);
    let found = carrier.router.find(request);
    if let Ok(found) = &found {
        trace.route = carrier.router.label(found.endpoint);
        trace.is_own = !matches!(found.endpoint, Endpoint::Route(_));
        if !trace.is_own {
            let live = &carrier.monitor.live;
            trace.number = live.begun(request.method(), request.uri(), &trace);
        }
    }
    let answer = found.and_then(|found| {
        let reached = Reached {
            carrier,
            request,
            found: &found,
            client,
            id: &id,
            begun,
        };
        reached.answer(&mut trace)
    });
    let (mut response, away) = match answer {
        Ok(answer) => (answer.response, answer.away),
        Err(failure) => {
            let mut response = Problem::from(failure).response(&id);
            if response.status() == client_gone() {
                response.extensions_mut().insert(Unanswered);
            }
            (response, None)
        }
    };
    if away.is_some() {
        trace.hop = Hop::Upstream;
    }
    let shares = Shares {
        total: begun.elapsed(),
        away,
    };
    trace.shares = Some(shares);
    let headers = response.headers_mut();
    if let Some(value) = id.header() {
        headers.insert(X_REQUEST_ID, value);
    }
    // As long as it gets, so that it is written in one piece.
    let mut timing = String::with_capacity(96);
    let _ = write!(timing, "{shares}");
    if let Ok(value) = HeaderValue::try_from(timing) {
        headers.append(SERVER_TIMING, value);
    }
    response.extensions_mut().insert(trace);
    response
}

// A request that has found what it leads to.
struct Reached<'a> {
    carrier: &'a Carrier,
    request: &'a Request,
    found: &'a Found<'a>,
    client: &'a Client<'a>,
    id: &'a RequestId,
    begun: Instant,
}

impl Reached<'_> {
    fn answer(&self, trace: &mut Trace) -> std::result::Result<Answer, Failure> {
        let Reached {
            carrier,
            request,
            found,
            begun,
            ..
        } = *self;
        let caller = self.admitted()?;
        let own: Response = match found.endpoint {
            Endpoint::Health => status_document("ok"),
            Endpoint::Ready => carrier.brokers.ready().map(|()| status_document("ready"))?,
            Endpoint::Agents => views::agents(carrier, request, begun)?,
            Endpoint::Agent => {
                let id = found.parameter("id").unwrap_or_default();
                views::agent(carrier, id, begun)?
            }
            #[cfg(feature = "page")]
            Endpoint::Page => page()?,
            #[cfg(not(feature = "page"))]
            Endpoint::Page => return Err(Failure::NoPage),
            Endpoint::Events => views::events(carrier, request, self.client)?,
            Endpoint::Metrics => scrape::metrics(carrier, request.headers())?,
            Endpoint::Slash(_) => redirect(&with_slash(request)),
            Endpoint::Route(route) => return self.carry(route, caller, trace),
        };
        Ok(own.into())
    }

    // Who sent it.
    //
    // Errors: it may not ask for this.
    fn admitted(&self) -> std::result::Result<Caller<'_>, Failure> {
        let (headers, gate) = (self.request.headers(), &self.carrier.gate);
        let peer = self.client.peer;
        match self.found.endpoint {
            Endpoint::Health | Endpoint::Ready => Ok(Caller::Anybody),
            Endpoint::Route(route) | Endpoint::Slash(route) => {
                let route = &self.carrier.router.routes()[route];
                gate.admit(Some(route), headers, peer)
            }
            // A browser can't show a token unless something asks for it: the page does, and shows
            // nothing before its events are admitted.
            Endpoint::Page => match gate.admit_monitor(headers, peer) {
                Err(Failure::NoCredentials(Wanted::Token)) => Ok(Caller::Anybody),
                admitted => admitted,
            },
            Endpoint::Agents | Endpoint::Agent | Endpoint::Events | Endpoint::Metrics => {
                gate.admit_monitor(headers, peer)
            }
        }
    }

    fn carry(
        &self,
        route: usize,
        caller: Caller<'_>,
        trace: &mut Trace,
    ) -> std::result::Result<Answer, Failure> {
        let asked = Asked {
            route,
            found: self.found,
            request: self.request,
            client: self.client,
            caller,
            id: self.id,
            begun: self.begun,
        };
        match self.carrier.router.routes()[route].mode {
            Mode::Json { .. } => json::carry(self.carrier, &asked, trace),
            Mode::Http => forward::carry(self.carrier, &asked, trace),
        }
    }
}

// The method and the body stay the same with this status.
fn redirect(location: &str) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn status_document(status: &str) -> Response {
    json_response(format!(r#"{{"status": "{status}"}}"#).into())
}
