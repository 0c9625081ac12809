//! The live page: one document, out of three files that lie beside this one.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderName, HeaderValue, header};

use crate::http::{Body, Failure, Response};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page as an answer. Nothing in it is from anywhere else, or runs that is not part of it: its style
/// and its script are named by a number that nobody can guess (CSP Level 3, section 2.3.1).
///
/// Errors: the system gives no random numbers.
pub fn page() -> Result<Response, Failure> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|why| Failure::NoRandomNumbers(why.to_string()))?;
    let nonce = BASE64_STANDARD.encode(random);
    let document = PAGE
        .replace("{nonce}", &nonce)
        .replacen("{css}", STYLE, 1)
        .replacen("{js}", SCRIPT, 1);
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = Response::new(Body::from(document));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_its_own() {
        let response = page().unwrap();
        let text = String::from_utf8(response.body().as_bytes().to_vec()).unwrap();
        assert!(text.contains(STYLE) && text.contains(SCRIPT));
        for left in ["{nonce}", "{css}", "{js}", "http://", "https://"] {
            let outside = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!outside.contains(left), "{left}");
        }
        let policy = response.headers()["content-security-policy"]
            .to_str()
            .unwrap();
        let (_, nonce) = policy.split_once("script-src 'nonce-").unwrap();
        let (nonce, _) = nonce.split_once('\'').unwrap();
        assert_eq!(text.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
        let other = page().unwrap();
        assert_ne!(
            other.headers()["content-security-policy"].to_str().unwrap(),
            policy
        );
    }
}
