//! api_2: the demo service behind the agent, and a few paths to try things with.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::base::error::Result;
use crate::base::threads::{self, StopSignal, StopTrigger};
use crate::front::{Client, Front, HttpLimits, bind, tiny};
use crate::http::{Request, Response};
use crate::wire::JSON;

/// The longest that `/sleep` sleeps.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// The longest that a `/sleep` goes on once the service stops.
const LAST_SLEEP: Duration = Duration::from_secs(2);

/// A running demo service.
pub struct Backend {
    front: Box<dyn Front>,
    trigger: StopTrigger,
}

impl Backend {
    /// Binds `listen` and serves; port 0 takes a free one.
    ///
    /// Errors: the address is taken ([`Error::Listen`](crate::base::error::Error::Listen)), or no
    /// thread.
    pub fn start(listen: SocketAddr) -> Result<Backend> {
        let (trigger, stop) = threads::stop_signal();
        let handler = move |request: Request, _: &Client<'_>| handle(&request, &stop);
        let front = tiny::start(bind(listen)?, HttpLimits::default(), handler)?;
        log::info!("listening on http://{}", front.address());
        Ok(Backend {
            front: Box::new(front),
            trigger,
        })
    }

    /// The address it listens on, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.front.address()
    }

    /// Accepts no more, answers what is in hand, joins its threads. Takes three seconds at most,
    /// so a longer `/sleep` is cut short.
    ///
    /// Errors: a request is still being answered.
    pub fn stop(self) -> Result<()> {
        self.trigger.stop();
        self.front
            .stop(Instant::now() + LAST_SLEEP + Duration::from_secs(1))
    }
}

fn handle(request: &Request, stop: &StopSignal) -> Response {
    let path = request.uri().path();
    match path {
        "/ping" => ping(request),
        "/echo" => echo(request),
        "/sleep" => sleep(request, stop),
        _ => match path.strip_prefix("/status/").map(str::parse::<u16>) {
            Some(Ok(code @ 200..=599)) => status(code),
            Some(_) => answer(
                StatusCode::BAD_REQUEST,
                &message("the status must be 200 to 599"),
            ),
            None => answer(
                StatusCode::NOT_FOUND,
                &message("try /ping, /echo, /sleep?ms=N or /status/N"),
            ),
        },
    }
}

fn ping(request: &Request) -> Response {
    let asked = match *request.method() {
        Method::GET | Method::HEAD => Ok(query(request, "ask")),
        Method::POST => asked_in_body(request.body().as_bytes()),
        _ => {
            let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, &message("use GET or POST"));
            let allowed = HeaderValue::from_static("GET, HEAD, POST");
            response.headers_mut().insert(header::ALLOW, allowed);
            return response;
        }
    };
    match asked {
        Ok(Some(word)) if word == "ping" => answer(StatusCode::OK, &message("pong")),
        Ok(Some(word)) => answer(
            StatusCode::BAD_REQUEST,
            &message(&format!("unknown ask: {word}")),
        ),
        Ok(None) => answer(StatusCode::BAD_REQUEST, &message("ask is missing")),
        Err(why) => answer(StatusCode::BAD_REQUEST, &message(&why)),
    }
}

fn asked_in_body(body: &[u8]) -> std::result::Result<Option<String>, String> {
    let value: Value =
        serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
    Ok(match value.get("ask") {
        None => None,
        Some(Value::String(word)) => Some(word.clone()),
        Some(other) => Some(other.to_string()),
    })
}

fn echo(request: &Request) -> Response {
    let mut headers = Map::new();
    for name in request.headers().keys() {
        let values: Vec<Value> = request
            .headers()
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into())
            .collect();
        headers.insert(name.as_str().to_owned(), values.into());
    }
    let echoed = json!({
        "method": request.method().as_str(),
        "target": request.uri().to_string(),
        "headers": headers,
        "body": String::from_utf8_lossy(request.body().as_bytes()),
    });
    answer(StatusCode::OK, &echoed.to_string())
}

fn sleep(request: &Request, stop: &StopSignal) -> Response {
    match query(request, "ms").map(|text| text.parse().map(Duration::from_millis)) {
        Some(Ok(time)) if time <= MAX_SLEEP => {
            let begun = Instant::now();
            if stop.sleep(time) {
                let left = time.saturating_sub(begun.elapsed());
                std::thread::sleep(left.min(LAST_SLEEP));
            }
            let slept = format!("slept {} ms", time.as_millis());
            answer(StatusCode::OK, &message(&slept))
        }
        _ => answer(
            StatusCode::BAD_REQUEST,
            &message("ms must be a number from 0 to 30000"),
        ),
    }
}

fn status(code: u16) -> Response {
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
    let reason = code.canonical_reason().unwrap_or("no name");
    answer(code, &message(reason))
}

// The first value of a query parameter.
fn query(request: &Request, name: &str) -> Option<String> {
    form_urlencoded::parse(request.uri().query()?.as_bytes())
        .find(|(found, _)| found == name)
        .map(|(_, value)| value.into_owned())
}

// `{"message": …}`, with the spaces that the contract shows.
fn message(text: &str) -> String {
    format!(r#"{{"message": {}}}"#, Value::from(text))
}

fn answer(status: StatusCode, body: &str) -> Response {
    let mut response = Response::new(body.to_owned().into());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

#[cfg(test)]
mod tests {

    use super::*;

    fn ask(method: Method, target: &str, body: &'static str) -> (u16, String) {
        let mut request = Request::new(body.into());
        *request.method_mut() = method;
        *request.uri_mut() = target.parse().unwrap();
        let (_trigger, stop) = threads::stop_signal();
        let response = handle(&request, &stop);
        let body = String::from_utf8(response.body().as_bytes().to_vec()).unwrap();
        (response.status().as_u16(), body)
    }

    #[test]
    fn ping_is_answered_with_pong() {
        let pong = (200, r#"{"message": "pong"}"#.to_owned());
        assert_eq!(ask(Method::GET, "/ping?ask=ping", ""), pong);
        assert_eq!(ask(Method::POST, "/ping", r#"{"ask": "ping"}"#), pong);
    }

    #[test]
    fn anything_else_is_answered_with_the_reason() {
        let unknown = (400, r#"{"message": "unknown ask: x"}"#.to_owned());
        assert_eq!(ask(Method::GET, "/ping?ask=x", ""), unknown);
        assert_eq!(ask(Method::POST, "/ping", r#"{"ask": "x"}"#), unknown);
        let (status, body) = ask(Method::POST, "/ping", "ping");
        assert_eq!(status, 400);
        assert!(body.contains("the body is not JSON: expected"), "{body}");
        assert_eq!(ask(Method::POST, "/ping", "{}").0, 400);
        assert_eq!(ask(Method::GET, "/ping", "").0, 400);
        assert_eq!(ask(Method::DELETE, "/ping", "").0, 405);
    }

    #[test]
    fn paths_to_try_things_with() {
        assert_eq!(ask(Method::GET, "/status/418", "").0, 418);
        assert_eq!(ask(Method::GET, "/status/99", "").0, 400);
        assert_eq!(ask(Method::GET, "/sleep?ms=0", "").0, 200);
        assert_eq!(ask(Method::GET, "/sleep?ms=30001", "").0, 400);
        assert_eq!(ask(Method::GET, "/sleep", "").0, 400);
        let (status, body) = ask(Method::PUT, "/echo?a=b", "hello");
        let value: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 200);
        assert_eq!(value["method"], "PUT");
        assert_eq!(value["target"], "/echo?a=b");
        assert_eq!(value["body"], "hello");
    }
}
