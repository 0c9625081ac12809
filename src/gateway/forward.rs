//! HTTP mode: any HTTP request to an agent, as if the service behind it were here.

use std::time::Duration;

use http::Version;
use http::header::{self, HeaderName};
use http::uri::PathAndQuery;

use super::carrier::{Answer, Asked, Carrier};
use super::onward::{append, ends_here, onward};
use super::table::Target;
use crate::http::{Body, Failure, Problem, Request};
use crate::wire::http::{read_reply, write_request};
use crate::wire::reply::error;

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Carries a request to an agent and its reply back.
pub(super) fn carry(carrier: &Carrier, asked: &Asked<'_>) -> std::result::Result<Answer, Failure> {
    let Asked {
        route: number,
        found,
        request,
        client,
        caller,
        id,
        begun,
    } = *asked;
    let route = &carrier.router.routes()[number];
    refuse_upgrade(request)?;
    if let Some(response) = ends_here(request, &route.methods) {
        return Ok(response.into());
    }
    let topic = carrier.router.topic(number, found)?;
    let inbox = carrier.inboxes.of(number);
    carrier
        .publisher
        .connected()
        .map_err(Failure::NotConnected)?;
    carrier
        .inboxes
        .check(&carrier.publisher)
        .map_err(Failure::Denied)?;
    match carrier.presence.http_target(&topic, inbox.topic(), begun) {
        Target::There => {}
        Target::Absent => return Err(Failure::NoAgent(topic.to_string())),
        Target::NotKnownYet => return Err(carrier.not_known_yet()),
        Target::Denied(what) => return Err(Failure::Denied(what)),
    }
    let target = carrier.router.target(number, request);
    let target: PathAndQuery = target.parse().map_err(|_| Failure::BadTarget(target))?;
    let timeout = timeout(request, route.timeout);
    let mut call = carrier.inboxes.prepare(inbox, topic, begun, timeout)?;
    call.properties.content_type = None;
    let trusted = carrier.access.trusts(client.peer);
    let onward = onward(request, client.peer, trusted, caller, id);
    write_request(&onward, &target, &mut call.properties);
    log::debug!(
        "request {id}: {} {target} to {} as {:?}",
        request.method(),
        call.topic,
        call.correlation
    );
    call.payload = onward.body().to_bytes();
    call.qos = route.qos;
    let (reply, timing) = inbox.call(&carrier.publisher, client, &carrier.presence, call)?;
    let mut response =
        read_reply(&reply, request.method()).map_err(|bad| Failure::BadReply(bad.to_string()))?;
    let error = error(&reply.properties).map_err(|bad| Failure::BadReply(bad.to_string()))?;
    if let Some(hop) = error {
        let told = Problem::from_agent(response.status(), hop, &reply.payload);
        return Err(Failure::Told(told));
    }
    append(response.headers_mut(), header::VIA, "1.1 recado");
    Ok(Answer {
        response: response.map(Body::from),
        timing,
    })
}

/// How long this caller waits: the route's time, or less if it asks for less (RFC 7240,
/// `Prefer: wait=N`, in seconds).
pub(super) fn timeout(request: &Request, longest: Duration) -> Duration {
    request
        .headers()
        .get_all(PREFER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']))
        .find_map(|preference| {
            let (name, seconds) = preference.split_once('=')?;
            let seconds = seconds.trim().trim_matches('"').parse().ok()?;
            let wait = name.trim().eq_ignore_ascii_case("wait");
            wait.then(|| Duration::from_secs(seconds))
        })
        .map_or(longest, |wished| wished.min(longest))
}

// A tunnel can't be carried as one request and one reply. A client that merely offers HTTP/2 is
// served with HTTP/1.1 (RFC 9110, section 7.8).
// In HTTP/1.0 there is no upgrade, so there the field says nothing.
fn refuse_upgrade(request: &Request) -> std::result::Result<(), Failure> {
    if request.version() == Version::HTTP_10 {
        return Ok(());
    }
    let wanted = request
        .headers()
        .get_all(header::UPGRADE)
        .iter()
        .any(|value| {
            let protocols = value.to_str().unwrap_or_default().split(',');
            protocols
                .into_iter()
                .any(|name| !name.trim().eq_ignore_ascii_case("h2c"))
        });
    if !wanted {
        return Ok(());
    }
    Err(Failure::Upgrade)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn request(fields: &[(&'static str, &str)]) -> Request {
        let mut request = Request::default();
        for (name, value) in fields {
            let value = HeaderValue::from_str(value).unwrap();
            request.headers_mut().append(*name, value);
        }
        request
    }

    #[test]
    fn a_caller_may_shorten_its_time_only() {
        let longest = Duration::from_secs(3);
        let wait = |value| timeout(&request(&[("prefer", value)]), longest).as_secs();
        assert_eq!(timeout(&request(&[]), longest), longest);
        assert_eq!(wait("wait=1"), 1);
        assert_eq!(wait("respond-async, Wait=\"2\""), 2);
        assert_eq!(wait("wait=0"), 0);
        assert_eq!(wait("wait=100"), 3);
        assert_eq!(wait("wait=-1"), 3);
        assert_eq!(wait("wait"), 3);
    }

    #[test]
    fn tunnels_are_refused() {
        let refused = |value| refuse_upgrade(&request(&[("upgrade", value)])).is_err();
        assert!(refused("websocket"));
        assert!(refused("h2c, websocket"));
        assert!(!refused("h2c"));
        assert!(refuse_upgrade(&request(&[])).is_ok());
        let mut old = request(&[("upgrade", "websocket")]);
        *old.version_mut() = Version::HTTP_10;
        assert!(refuse_upgrade(&old).is_ok());
    }
}
