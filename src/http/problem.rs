//! Errors as the HTTP client sees them: problem documents (RFC 9457).

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde::{Deserialize, Serialize};

use super::types::{RequestId, Response, X_REQUEST_ID};
use crate::wire::{Hop, PROBLEM_JSON};

/// After how many seconds to try again what failed for want of a place, of the broker or of an agent.
const RETRY_AFTER: u64 = 1;

/// Whether the request may have had an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was not executed; it is safe to send it again.
    NotExecuted,
    /// It may have been executed.
    Unknown,
}

/// One failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// What went wrong with this request, for a person.
    pub detail: String,
    /// Which component it went wrong at.
    pub hop: Hop,
    /// Whether the request may have had an effect.
    pub outcome: Outcome,
    /// The methods that the resource does allow, with 405.
    pub allow: Option<Vec<Method>>,
    /// How the client may say who it is, with 401 and 403 (RFC 9110, section 11.6.1).
    pub authenticate: &'static [&'static str],
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    hop: &'a str,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

impl Problem {
    /// The document, as `application/problem+json`.
    pub fn document(&self, request_id: Option<&RequestId>) -> Bytes {
        let document = Document {
            // No page describes them further: the title is the status's own (section 4.2.1).
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            hop: self.hop.as_str(),
            outcome: self.outcome,
            request_id: request_id.map(RequestId::as_str),
        };
        // Strings and numbers only: it can't fail.
        serde_json::to_vec(&document).unwrap_or_default().into()
    }

    /// Reads the document that an agent sent as the body of an error reply. What is missing or
    /// broken in it is made up for: the status and the hop stand in the reply's own properties.
    pub fn from_agent(status: StatusCode, hop: Hop, body: &[u8]) -> Problem {
        #[derive(Deserialize)]
        struct Received {
            detail: Option<String>,
            outcome: Option<Outcome>,
        }
        let received = serde_json::from_slice(body).unwrap_or(Received {
            detail: None,
            outcome: None,
        });
        Problem {
            status,
            detail: received
                .detail
                .unwrap_or_else(|| "the agent gave no detail".into()),
            hop,
            outcome: received.outcome.unwrap_or(Outcome::Unknown),
            allow: None,
            authenticate: &[],
        }
    }

    /// The answer to the HTTP client. It carries this with it, for who takes note of it.
    pub fn response(&self, request_id: &RequestId) -> Response {
        let mut response = Response::new(self.document(Some(request_id)).into());
        *response.status_mut() = self.status;
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(value) = request_id.header() {
            headers.insert(X_REQUEST_ID, value);
        }
        let later = [
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::TOO_MANY_REQUESTS,
        ];
        if later.contains(&self.status) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER));
        }
        for challenge in self.authenticate {
            let challenge = HeaderValue::from_static(challenge);
            headers.append(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(methods) = &self.allow {
            let methods: Vec<&str> = methods.iter().map(Method::as_str).collect();
            if let Ok(value) = HeaderValue::from_str(&methods.join(", ")) {
                headers.insert(header::ALLOW, value);
            }
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn problem(status: StatusCode, hop: Hop, detail: &str) -> Problem {
        Problem {
            status,
            detail: detail.into(),
            hop,
            outcome: Outcome::NotExecuted,
            allow: None,
            authenticate: &[],
        }
    }

    #[test]
    fn the_document_has_every_member() {
        let problem = problem(StatusCode::SERVICE_UNAVAILABLE, Hop::Broker, "no \"way\"");
        let id = RequestId::random();
        let response = problem.response(&id);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        assert_eq!(response.headers()["x-request-id"], id.as_str());
        let document: Value = serde_json::from_slice(response.body().as_bytes()).unwrap();
        assert_eq!(
            document,
            json!({
                "type": "about:blank",
                "title": "Service Unavailable",
                "status": 503,
                "detail": "no \"way\"",
                "hop": "broker",
                "outcome": "not-executed",
                "request_id": id.as_str(),
            })
        );
    }

    #[test]
    fn an_agents_problem_survives_the_way_back() {
        let sent = Problem {
            outcome: Outcome::Unknown,
            ..problem(StatusCode::GATEWAY_TIMEOUT, Hop::Upstream, "too slow")
        };
        let body = sent.document(None);
        assert_eq!(
            Problem::from_agent(StatusCode::GATEWAY_TIMEOUT, Hop::Upstream, &body),
            sent
        );
        let garbage = Problem::from_agent(StatusCode::BAD_GATEWAY, Hop::Agent, b"\xff");
        assert_eq!(garbage.outcome, Outcome::Unknown);
    }
}
