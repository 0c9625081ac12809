//! Which request goes where, and what every answer carries.

use std::time::Instant;

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;

use super::access::Caller;
use super::carrier::{Answer, Asked, Carrier, json_response};
use super::router::{Endpoint, Found, with_slash};
use super::settings::Mode;
use super::timing::Timing;
use super::{forward, json};
use crate::base::logging::excerpt;
use crate::front::Client;
use crate::http::{
    Failure, Problem, Request, RequestId, Response, Unanswered, X_REQUEST_ID, client_gone,
};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Answers a request.
pub(super) fn handle(carrier: &Carrier, request: &Request, client: &Client<'_>) -> Response {
    let begun = Instant::now();
    let id = RequestId::of(request.headers());
    let found = carrier.router.find(request);
    let answer = found.and_then(|found| answer(carrier, request, &found, client, &id, begun));
    let (mut response, timing) = match answer {
        Ok(answer) => (answer.response, answer.timing),
        Err(failure) => {
            let problem = Problem::from(failure);
            log::warn!(
                "request {id} from {}: {} {}: {} at the {}: {}",
                client.peer.ip(),
                request.method(),
                excerpt(request.uri().path().as_bytes()),
                problem.status.as_u16(),
                problem.hop.as_str(),
                excerpt(problem.detail.as_bytes())
            );
            let mut response = problem.response(&id);
            if problem.status == client_gone() {
                response.extensions_mut().insert(Unanswered);
            }
            (response, Timing::default())
        }
    };
    let headers = response.headers_mut();
    if let Some(value) = id.header() {
        headers.insert(X_REQUEST_ID, value);
    }
    if let Ok(value) = HeaderValue::try_from(timing.header(begun.elapsed())) {
        headers.append(SERVER_TIMING, value);
    }
    response
}

fn answer(
    carrier: &Carrier,
    request: &Request,
    found: &Found<'_>,
    client: &Client<'_>,
    id: &RequestId,
    begun: Instant,
) -> std::result::Result<Answer, Failure> {
    let (headers, gate) = (request.headers(), &carrier.gate);
    let caller = match found.endpoint {
        Endpoint::Health | Endpoint::Ready => Caller::Anybody,
        Endpoint::Agents | Endpoint::Agent => gate.admit(None, headers, client.peer)?,
        Endpoint::Route(route) | Endpoint::Slash(route) => {
            let route = &carrier.router.routes()[route];
            gate.admit(Some(route), headers, client.peer)?
        }
    };
    match found.endpoint {
        Endpoint::Health => Ok(status_document("ok").into()),
        Endpoint::Ready => carrier.ready().map(|()| status_document("ready").into()),
        Endpoint::Agents => {
            carrier.ready()?;
            let agents = json!({ "agents": carrier.presence.agents(begun) });
            Ok(json_response(agents.to_string().into()).into())
        }
        Endpoint::Agent => one_agent(carrier, found.parameter("id").unwrap_or_default(), begun),
        Endpoint::Slash(_) => Ok(redirect(&with_slash(request)).into()),
        Endpoint::Route(route) => {
            let asked = Asked {
                route,
                found,
                request,
                client,
                caller,
                id,
                begun,
            };
            match carrier.router.routes()[route].mode {
                Mode::Json { .. } => json::carry(carrier, &asked),
                Mode::Http => forward::carry(carrier, &asked),
            }
        }
    }
}

fn one_agent(carrier: &Carrier, id: &str, now: Instant) -> std::result::Result<Answer, Failure> {
    carrier.ready()?;
    match carrier.presence.agent(id, now) {
        Some(agent) => Ok(json_response(json!(agent).to_string().into()).into()),
        None => Err(Failure::UnknownAgent(excerpt(id.as_bytes()).to_string())),
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
