//! Everything that a caller can be told when its request fails: one name for each, and one table of
//! what it means. The words are [`Display`](fmt::Display)'s, the answer is a [`Problem`].

use std::fmt;
use std::time::Duration;

use http::{Method, StatusCode};

use super::bad_request::BadRequest;
use super::problem::{Outcome, Problem};
use super::types::client_gone;
use crate::wire::Hop;

/// What a request must show to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A bearer token.
    Token,
    /// A name and a password.
    Password,
    /// One of the two.
    Either,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wanted::Token => "a bearer token",
            Wanted::Password => "a name and a password",
            Wanted::Either => "a name and a password, or a bearer token,",
        })
    }
}

/// Why a request fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It is not HTTP, or more than the front allows.
    BadRequest(BadRequest),
    /// Nobody here has its name.
    UnknownHost(String),
    /// No route has its path.
    NoRoute(String),
    /// Its path has no such method.
    MethodNotAllowed {
        /// What was asked for.
        method: Method,
        /// What is allowed.
        allowed: Vec<Method>,
    },
    /// A part of its path that the topic of this form needs is not an id.
    NoTopic(String),
    /// It shows nothing that says who sends it, where that is needed.
    NoCredentials(Wanted),
    /// Nobody has the token that it carries.
    UnknownToken,
    /// Nobody has the name and the password that it carries.
    WrongPassword,
    /// Whoever sends it was wrong about that too often.
    TooManyAttempts,
    /// The token with this name is for something else.
    WrongToken(String),
    /// It has come by too often.
    Circle,
    /// Its target can't be passed on.
    BadTarget(String),
    /// Its body is not JSON, for this reason.
    BodyNotJson(String),
    /// It asks for an upgrade.
    Upgrade,
    /// As many connections as this are in use.
    TooManyConnections(usize),
    /// As many requests as this wait for a reply.
    TooManyWaiting(usize),
    /// As many bodies as this are on their way.
    TooManyStreams(usize),
    /// The same, found out when its answer came.
    NoStreamForAnswer(usize),
    /// Its body is no single message, and who would take it takes only such.
    NoStream(String),
    /// Its body was cut off, when a part of it was on its way already.
    BodyCut {
        /// The status that says so.
        status: StatusCode,
        /// Why.
        words: String,
    },
    /// Whoever takes its body has given up.
    StreamLost(String),
    /// There is no memory for its answer; the limit is this, in bytes.
    NoMemoryForAnswer(usize),
    /// Its time was up before it was sent.
    TooLate,
    /// The system gives no random numbers, for this reason.
    NoRandomNumbers(String),
    /// The handler panicked.
    Defect,
    /// Its client has gone.
    HungUp,
    /// As many as there may be look at the live page.
    TooManyViewers,
    /// This front sends no events.
    NoEvents,
    /// This build has no page.
    NoPage,

    /// There is no connection to the broker, for this reason.
    NotConnected(String),
    /// The broker takes no more at the moment, for this reason.
    Stalled(String),
    /// The broker was lost while it was on its way, for this reason.
    BrokerLost(String),
    /// It is larger than what the broker or this program carries.
    RequestTooLarge(String),
    /// The broker does not do what it needs.
    NotSupported(String),
    /// The broker denies something that it needs.
    Denied(String),
    /// The same, found out while it was on its way.
    DeniedMeanwhile(String),
    /// The same, of a gateway as a whole.
    NotReady(String),

    /// Nobody serves this.
    NoAgent(String),
    /// No agent has this id.
    UnknownAgent(String),
    /// Nobody answered within this time.
    NoReply(Duration),
    /// The reply can't be used, for this reason.
    BadReply(String),
    /// The reply is larger than this many bytes.
    ReplyOver(usize),
    /// What an agent says of it.
    Told(Problem),

    /// The agent can't read it.
    Unreadable(String),
    /// The same, with the status that says so.
    NotExecutable {
        /// The status.
        status: StatusCode,
        /// What is wrong.
        flaw: String,
    },
    /// The agent does not pass this on.
    NotAllowed(String),
    /// It is larger than this many bytes.
    RequestOver(usize),
    /// The agent has no place for it.
    AgentBusy(String),
    /// The same, found out when it was executed, or about to be.
    AgentBusyMeanwhile(String),
    /// It was repeated too often while the first is running.
    TooManyRepeats,
    /// Its reply can't be carried, for this reason.
    ReplyNotCarried(String),
    /// Its reply found no place on the way to the broker, for this reason.
    ReplyStalled(String),

    /// The upstream can't be reached, so nothing was executed.
    Unreachable(String),
    /// The upstream takes too long.
    UpstreamTooSlow(String),
    /// The upstream's answer can't be used.
    BadAnswer(String),
}

impl Failure {
    /// The contract: the status, the component that it belongs to, and whether the request may have
    /// had an effect.
    pub fn meaning(&self) -> (StatusCode, Hop, Outcome) {
        use Failure as F;
        use Hop::{Agent, Broker, Gateway, Upstream};
        use Outcome::{NotExecuted, Unknown};
        match self {
            F::BadRequest(bad) => (bad.status, Gateway, NotExecuted),
            F::UnknownHost(_) => (StatusCode::MISDIRECTED_REQUEST, Gateway, NotExecuted),
            F::NoRoute(_) | F::NoTopic(_) => (StatusCode::NOT_FOUND, Gateway, NotExecuted),
            F::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, Gateway, NotExecuted),
            F::NoCredentials(_) | F::UnknownToken | F::WrongPassword => {
                (StatusCode::UNAUTHORIZED, Gateway, NotExecuted)
            }
            F::TooManyAttempts => (StatusCode::TOO_MANY_REQUESTS, Gateway, NotExecuted),
            F::WrongToken(_) => (StatusCode::FORBIDDEN, Gateway, NotExecuted),
            F::Circle => (StatusCode::LOOP_DETECTED, Gateway, NotExecuted),
            F::BadTarget(_) | F::BodyNotJson(_) => (StatusCode::BAD_REQUEST, Gateway, NotExecuted),
            F::Upgrade | F::NoEvents | F::NoPage => {
                (StatusCode::NOT_IMPLEMENTED, Gateway, NotExecuted)
            }
            F::TooManyConnections(_)
            | F::TooManyWaiting(_)
            | F::TooManyStreams(_)
            | F::TooManyViewers => (StatusCode::SERVICE_UNAVAILABLE, Gateway, NotExecuted),
            F::BodyCut { status, .. } => (*status, Gateway, Unknown),
            F::NoStream(_) => (StatusCode::PAYLOAD_TOO_LARGE, Agent, NotExecuted),
            F::StreamLost(_) => (StatusCode::BAD_GATEWAY, Agent, Unknown),
            F::NoMemoryForAnswer(_) | F::NoStreamForAnswer(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, Gateway, Unknown)
            }
            F::TooLate => (StatusCode::GATEWAY_TIMEOUT, Gateway, NotExecuted),
            F::NoRandomNumbers(_) => (StatusCode::INTERNAL_SERVER_ERROR, Gateway, NotExecuted),
            F::Defect => (StatusCode::INTERNAL_SERVER_ERROR, Gateway, Unknown),
            // A client that only has closed its own direction must not read that it may repeat it.
            F::HungUp => (client_gone(), Gateway, Unknown),

            F::NotConnected(_) | F::Stalled(_) | F::NotReady(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, Broker, NotExecuted)
            }
            F::RequestTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, Broker, NotExecuted),
            F::NotSupported(_) | F::Denied(_) => (StatusCode::BAD_GATEWAY, Broker, NotExecuted),
            F::DeniedMeanwhile(_) | F::BrokerLost(_) => (StatusCode::BAD_GATEWAY, Broker, Unknown),

            F::NoAgent(_) => (StatusCode::SERVICE_UNAVAILABLE, Agent, NotExecuted),
            F::UnknownAgent(_) => (StatusCode::NOT_FOUND, Agent, NotExecuted),
            F::NoReply(_) => (StatusCode::GATEWAY_TIMEOUT, Agent, Unknown),
            F::BadReply(_) | F::ReplyOver(_) => (StatusCode::BAD_GATEWAY, Agent, Unknown),
            F::Told(problem) => (problem.status, problem.hop, problem.outcome),

            F::Unreadable(_) => (StatusCode::BAD_REQUEST, Agent, NotExecuted),
            F::NotExecutable { status, .. } => (*status, Agent, NotExecuted),
            F::NotAllowed(_) => (StatusCode::FORBIDDEN, Agent, NotExecuted),
            F::RequestOver(_) => (StatusCode::PAYLOAD_TOO_LARGE, Agent, NotExecuted),
            F::AgentBusy(_) => (StatusCode::SERVICE_UNAVAILABLE, Agent, NotExecuted),
            // A reply can't name the broker: what it says is what the agent knows.
            F::TooManyRepeats | F::ReplyStalled(_) | F::AgentBusyMeanwhile(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, Agent, Unknown)
            }
            F::ReplyNotCarried(_) => (StatusCode::BAD_GATEWAY, Agent, Unknown),

            F::Unreachable(_) => (StatusCode::BAD_GATEWAY, Upstream, NotExecuted),
            F::UpstreamTooSlow(_) => (StatusCode::GATEWAY_TIMEOUT, Upstream, Unknown),
            F::BadAnswer(_) => (StatusCode::BAD_GATEWAY, Upstream, Unknown),
        }
    }

    // How the client may say who it is (RFC 6750, section 3, and RFC 7617, section 2). A browser asks for
    // name and password where Basic comes first.
    fn challenges(&self) -> &'static [&'static str] {
        const BASIC: &str = r#"Basic realm="recado", charset="UTF-8""#;
        const BEARER: &str = r#"Bearer realm="recado""#;
        match self {
            Failure::NoCredentials(Wanted::Token) => &[BEARER],
            Failure::NoCredentials(Wanted::Either) => &[BASIC, BEARER],
            Failure::NoCredentials(Wanted::Password) | Failure::WrongPassword => &[BASIC],
            Failure::UnknownToken => &[r#"Bearer realm="recado", error="invalid_token""#],
            Failure::WrongToken(_) => &[r#"Bearer realm="recado", error="insufficient_scope""#],
            _ => &[],
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Failure as F;
        match self {
            F::BadRequest(bad) => f.write_str(&bad.reason),
            F::UnknownHost(name) => write!(f, "no host here has the name {name}"),
            F::NoRoute(path) => write!(f, "there is no route for {path}"),
            F::MethodNotAllowed { method, .. } => write!(f, "{method} is not allowed here"),
            F::NoTopic(form) => write!(
                f,
                "the path names no topic of the form {form}: ids are 1 to 64 of A-Z a-z 0-9 _ -, and . between them"
            ),
            F::NoCredentials(wanted) => write!(f, "this needs {wanted} in the field Authorization"),
            F::WrongPassword => f.write_str("nobody here has this name and this password"),
            F::TooManyAttempts => f.write_str("whoever sends this was wrong about who he is too often; try again later"),
            F::UnknownToken => f.write_str("the token is not known here"),
            F::WrongToken(name) => write!(f, "the token {name} is not for this"),
            F::Circle => f.write_str("the request has come by here before and goes in a circle (CDN-Loop): does the agent's upstream lead back to this gateway?"),
            F::BadTarget(target) => write!(f, "the target {target:?} can't be passed on"),
            F::BodyNotJson(why) => write!(f, "the body is not JSON: {why}"),
            F::Upgrade => {
                f.write_str("a protocol upgrade can't be carried: the agent, or the front of this gateway, takes no streams")
            }
            F::TooManyConnections(limit) => write!(
                f,
                "all connections of this server are in use (max_connections = {limit} of the gateway)"
            ),
            F::TooManyWaiting(limit) => write!(
                f,
                "too many requests wait for a reply (max_waiting = {limit} of the gateway)"
            ),
            F::TooManyStreams(limit) | F::NoStreamForAnswer(limit) => write!(
                f,
                "too many bodies are on their way (max_streams = {limit} of the gateway)"
            ),
            F::NoStream(topic) => write!(
                f,
                "the body is no single message, and not everybody who serves {topic} takes others"
            ),
            F::BodyCut { words, .. } => f.write_str(words),
            F::StreamLost(why) => write!(f, "the body was not taken to its end: {why}"),
            F::NoMemoryForAnswer(limit) => write!(
                f,
                "there is no memory for this answer while so many others are being sent (max_buffered_bytes = {limit} of the gateway)"
            ),
            F::TooLate => f.write_str("the time to wait is up before the request could be sent"),
            F::NoRandomNumbers(why) => write!(f, "the system gives no random numbers: {why}"),
            F::Defect => f.write_str("the request met a defect; see the gateway's log"),
            F::HungUp => f.write_str("the client hung up before there was a reply"),
            F::TooManyViewers => f.write_str("as many as there may be look at this already, or the gateway stops"),
            F::NoEvents => f.write_str("this front (tiny_http) sends no events; the front guarded does"),
            F::NoPage => f.write_str("this gateway was built without its page (feature page); it has events and metrics"),

            F::NotConnected(why) => write!(f, "there is no connection to the broker: {why}"),
            F::Stalled(why) => write!(f, "the broker takes no more at the moment: {why}"),
            F::BrokerLost(why) => {
                write!(f, "the broker was lost while the request was on its way: {why}")
            }
            F::RequestTooLarge(why) => write!(f, "the request can't be carried: {why}"),

            F::NoAgent(what) => write!(f, "no agent that serves {what} is there"),
            F::UnknownAgent(id) => write!(f, "no agent {id} is there"),
            F::NoReply(timeout) => write!(f, "no reply within {} ms", timeout.as_millis()),
            F::BadReply(why) => write!(f, "the agent's reply can't be used: {why}"),
            F::ReplyOver(limit) => write!(
                f,
                "the agent's reply is larger than {limit} bytes (max_body_bytes of the gateway)"
            ),
            F::Told(problem) => f.write_str(&problem.detail),

            F::NotExecutable { flaw, .. } => write!(f, "the request can't be executed: {flaw}"),
            F::NotAllowed(what) => write!(f, "this agent does not pass on {what}"),
            F::RequestOver(limit) => write!(
                f,
                "the request is larger than {limit} bytes (max_body_bytes of the agent)"
            ),
            F::TooManyRepeats => {
                f.write_str("it was repeated too often while the first is running")
            }
            F::ReplyNotCarried(why) => write!(f, "the reply can't be carried: {why}"),
            F::ReplyStalled(why) => {
                write!(
                    f,
                    "the reply found no place on the way to the broker: {why}"
                )
            }

            F::NotSupported(words)
            | F::Denied(words)
            | F::DeniedMeanwhile(words)
            | F::NotReady(words)
            | F::Unreadable(words)
            | F::AgentBusy(words)
            | F::AgentBusyMeanwhile(words)
            | F::Unreachable(words)
            | F::UpstreamTooSlow(words)
            | F::BadAnswer(words) => f.write_str(words),
        }
    }
}

impl From<BadRequest> for Failure {
    fn from(bad: BadRequest) -> Failure {
        Failure::BadRequest(bad)
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Problem {
        let (status, hop, outcome) = failure.meaning();
        Problem {
            status,
            hop,
            outcome,
            detail: failure.to_string(),
            authenticate: failure.challenges(),
            allow: match failure {
                Failure::MethodNotAllowed { allowed, .. } => Some(allowed),
                Failure::Told(problem) => problem.allow,
                _ => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::RequestId;
    use super::*;

    /// The contract once more, as a caller reads it.
    #[test]
    fn every_failure_says_what_the_contract_says() {
        use Failure as F;
        let words = || "words".to_owned();
        let told = Problem::from_agent(StatusCode::BAD_GATEWAY, Hop::Upstream, b"");
        for (failure, expected) in [
            (BadRequest::new("words").into(), "400 gateway not-executed"),
            (BadRequest::body_over(1).into(), "413 gateway not-executed"),
            (F::UnknownHost(words()), "421 gateway not-executed"),
            (F::NoRoute(words()), "404 gateway not-executed"),
            (F::NoTopic(words()), "404 gateway not-executed"),
            (F::NoCredentials(Wanted::Either), "401 gateway not-executed"),
            (F::WrongPassword, "401 gateway not-executed"),
            (F::TooManyAttempts, "429 gateway not-executed"),
            (F::UnknownToken, "401 gateway not-executed"),
            (F::WrongToken(words()), "403 gateway not-executed"),
            (F::Circle, "508 gateway not-executed"),
            (F::BadTarget(words()), "400 gateway not-executed"),
            (F::BodyNotJson(words()), "400 gateway not-executed"),
            (F::Upgrade, "501 gateway not-executed"),
            (F::TooManyConnections(1), "503 gateway not-executed"),
            (F::TooManyWaiting(1), "503 gateway not-executed"),
            (F::NoMemoryForAnswer(1), "503 gateway unknown"),
            (F::TooManyStreams(1), "503 gateway not-executed"),
            (F::NoStreamForAnswer(1), "503 gateway unknown"),
            (F::NoStream(words()), "413 agent not-executed"),
            (
                F::BodyCut {
                    status: StatusCode::PAYLOAD_TOO_LARGE,
                    words: words(),
                },
                "413 gateway unknown",
            ),
            (F::StreamLost(words()), "502 agent unknown"),
            (F::TooLate, "504 gateway not-executed"),
            (F::NoRandomNumbers(words()), "500 gateway not-executed"),
            (F::Defect, "500 gateway unknown"),
            (F::HungUp, "499 gateway unknown"),
            (F::TooManyViewers, "503 gateway not-executed"),
            (F::NoEvents, "501 gateway not-executed"),
            (F::NoPage, "501 gateway not-executed"),
            (F::NotConnected(words()), "503 broker not-executed"),
            (F::Stalled(words()), "503 broker not-executed"),
            (F::BrokerLost(words()), "502 broker unknown"),
            (F::RequestTooLarge(words()), "413 broker not-executed"),
            (F::NotSupported(words()), "502 broker not-executed"),
            (F::Denied(words()), "502 broker not-executed"),
            (F::DeniedMeanwhile(words()), "502 broker unknown"),
            (F::NotReady(words()), "503 broker not-executed"),
            (F::NoAgent(words()), "503 agent not-executed"),
            (F::UnknownAgent(words()), "404 agent not-executed"),
            (F::NoReply(Duration::ZERO), "504 agent unknown"),
            (F::BadReply(words()), "502 agent unknown"),
            (F::ReplyOver(1), "502 agent unknown"),
            (F::Told(told), "502 upstream unknown"),
            (F::Unreadable(words()), "400 agent not-executed"),
            (F::NotAllowed(words()), "403 agent not-executed"),
            (F::RequestOver(1), "413 agent not-executed"),
            (F::AgentBusy(words()), "503 agent not-executed"),
            (F::AgentBusyMeanwhile(words()), "503 agent unknown"),
            (F::TooManyRepeats, "503 agent unknown"),
            (F::ReplyNotCarried(words()), "502 agent unknown"),
            (F::ReplyStalled(words()), "503 agent unknown"),
            (F::Unreachable(words()), "502 upstream not-executed"),
            (F::UpstreamTooSlow(words()), "504 upstream unknown"),
            (F::BadAnswer(words()), "502 upstream unknown"),
        ] {
            let text = format!("{failure:?}");
            let problem = Problem::from(failure);
            let response = problem.response(&RequestId::random());
            let document: serde_json::Value =
                serde_json::from_slice(response.body().as_bytes()).unwrap();
            let member = |name: &str| document[name].as_str().unwrap();
            let status = response.status();
            let found = [status.as_str(), member("hop"), member("outcome")];
            assert_eq!(found.join(" "), expected, "{text}");
            assert!(member("detail").len() > 4, "{text}");
            let says_when = response.headers().contains_key("retry-after");
            assert_eq!(
                says_when,
                [429, 503].contains(&response.status().as_u16()),
                "{text}"
            );
        }
        let failure = F::MethodNotAllowed {
            method: Method::PUT,
            allowed: vec![Method::GET, Method::HEAD],
        };
        let response = Problem::from(failure).response(&RequestId::random());
        assert_eq!(response.status(), 405);
        assert_eq!(response.headers()["allow"], "GET, HEAD");
        let not_executable = F::NotExecutable {
            status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            flaw: words(),
        };
        assert_eq!(Problem::from(not_executable).status, 505);
    }
}
