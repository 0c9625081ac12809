//! A service with what was prepared for it, and which requests it lets through.

use http::Uri;

use super::settings::{Allow, Service, ServiceMode};
use crate::base::error::{Error, Result};
use crate::http::{Failure, Request};

// A service with what was prepared for it.
pub(super) struct Filter {
    // Of JSON mode: the URL that requests are posted to.
    pub target: Option<Uri>,
    // Of HTTP mode: the patterns of the paths that may be called, if not all may.
    paths: Option<matchit::Router<()>>,
    // Not everything at the upstream may be called, so no path may lead elsewhere.
    is_below: bool,
}

impl Filter {
    pub fn new(service: &Service) -> Result<Filter> {
        let mut live = Filter {
            target: None,
            paths: None,
            is_below: service.upstream.url.has_path(),
        };
        match &service.mode {
            ServiceMode::Json { path, .. } => {
                let url = service.upstream.url.join(path);
                let malformed = |error| Error::Usage(format!("{url:?} is no URL: {error}"));
                live.target = Some(url.parse().map_err(malformed)?);
            }
            ServiceMode::Http(mode) => {
                if !mode.allow.paths.is_empty() {
                    live.paths = Some(mode.allow.router().map_err(Error::Usage)?);
                }
                live.is_below |= !mode.path_prefix.is_empty() || live.paths.is_some();
            }
        }
        Ok(live)
    }

    /// Whether a request is on the list of those that may be called.
    ///
    /// Errors: it is not (403).
    pub fn check(&self, request: &Request, allow: &Allow) -> std::result::Result<(), Failure> {
        let refused = |what: &str| Err(Failure::NotAllowed(what.to_owned()));
        if !allow.methods.is_empty() && !allow.methods.contains(request.method()) {
            return refused(request.method().as_str());
        }
        let path = request.uri().path();
        if !allow.methods.is_empty() || self.is_below {
            let mut names = request.headers().keys();
            if let Some(name) = names.find(|name| OVERRIDES.contains(&name.as_str())) {
                return refused(&format!(
                    "the field {name}, which may change what is asked for"
                ));
            }
        }
        if !self.is_below {
            return Ok(());
        }
        // Decided on what the upstream will make of it.
        let Some(decoded) = plain(path) else {
            return refused(path);
        };
        match &self.paths {
            Some(paths) if paths.at(&decoded).is_err() => refused(path),
            _ => Ok(()),
        }
    }
}

/// Fields by which some frameworks let a request say that it means another method or path.
const OVERRIDES: [&str; 5] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
];

/// What some servers take for a dot or a slash besides these: other signs of the same looks, which
/// Unicode's compatibility forms or a best-fit code page turn into them.
const LOOKALIKES: [char; 9] = [
    '\u{2024}', '\u{2025}', '\u{2044}', '\u{2215}', '\u{29f8}', '\u{fe52}', '\u{ff0e}', '\u{ff0f}',
    '\u{ff3c}',
];

// The decoded path; None if some server may take it for another one than a pattern does: with a dot
// segment in any disguise, a hidden slash, or what only a second decoding tells.
fn plain(path: &str) -> Option<String> {
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8();
    let decoded = decoded.ok()?.into_owned();
    let slashes = |text: &str| text.matches('/').count();
    let odd = |c: char| c.is_control() || c == '\\' || c == '%' || LOOKALIKES.contains(&c);
    let is_plain = !decoded.contains(odd)
        && slashes(&decoded) == slashes(path)
        && !decoded.split('/').any(is_dot_segment);
    is_plain.then_some(decoded)
}

// `.` or `..`, perhaps with what some servers cut off: parameters, a query or a fragment that was
// encoded, white space, further dots behind white space.
fn is_dot_segment(segment: &str) -> bool {
    let name = segment.split([';', '?', '#']).next().unwrap_or_default();
    let name = name.trim();
    let dots_only = name.chars().all(|c| c == '.' || c.is_whitespace());
    matches!(name, "." | "..") || name.contains(char::is_whitespace) && dots_only
}

#[cfg(test)]
mod tests {
    use super::super::settings::HttpMode;
    use super::*;
    use crate::base::topic::Topic;

    #[test]
    fn paths_that_only_look_allowed() {
        for path in [
            "/a",
            "/",
            "/a/b.c",
            "/a/...",
            "/.well-known/x",
            "/a/..b",
            "/%20",
            "/ol%C3%A1",
            "/a;b=..",
            "/a/b/",
            "/~x",
            "/a//b",
        ] {
            assert!(plain(path).is_some(), "{path}");
        }
        for path in [
            "/a/../b",
            "/a/..",
            "/./a",
            "/a/%2e%2e/b",
            "/a/%2E./b",
            "/a%2fb",
            "/a/..;/b",
            "/a/..;x=1/b",
            "/a/.;/b",
            "/a\\b",
            "/a%5cb",
            "/a/%252e%252e/b",
            "/a/..%00/b",
            "/a%00",
            "/a/..%0a/b",
            "/a%0d%0aX:b",
            "/a/..%09/b",
            "/a/..%20/b",
            "/a/%20../b",
            "/a/.%20./b",
            "/a/..%3f/b",
            "/a/..%23/b",
            "/a/%7f",
            // Not UTF-8, and a slash in an overlong form.
            "/a/%ff",
            "/a/..%c0%af/b",
            "/a/%c0%ae%c0%ae/b",
            // Signs that look like a dot or a slash.
            "/a/%ef%bc%8e%ef%bc%8e/b",
            "/a/%e2%80%a5/b",
            "/a%ef%bc%8fb",
            "/a%e2%88%95b",
            // Control characters beyond ASCII, and a space of another kind.
            "/a/%c2%85",
            "/a/..%c2%a0/b",
        ] {
            assert!(plain(path).is_none(), "{path}");
        }
    }

    fn allowed(allow: &Allow, method: &str, path: &str, field: Option<&'static str>) -> bool {
        let service = Service {
            name: None,
            request_topic: Topic::new("t").unwrap(),
            mode: ServiceMode::Http(HttpMode {
                allow: allow.clone(),
                ..HttpMode::default()
            }),
            upstream: crate::upstream::UpstreamSettings::at("http://127.0.0.1:1"),
            workers: 1,
            queue: 1,
            timeout: std::time::Duration::ZERO,
        };
        let mut request = Request::default();
        *request.method_mut() = method.parse().unwrap();
        *request.uri_mut() = path.parse().unwrap();
        if let Some(field) = field {
            let value = http::HeaderValue::from_static("DELETE");
            request.headers_mut().insert(field, value);
        }
        let filter = Filter::new(&service).unwrap();
        filter.check(&request, allow).is_ok()
    }

    #[test]
    fn what_counts_is_what_the_upstream_sees() {
        let paths = ["/pub/{*rest}", "/ol\u{e1}", "/b%20c"];
        let public = &Allow {
            paths: paths.map(str::to_owned).to_vec(),
            ..Allow::default()
        };
        let everything = &Allow::default();
        for (path, passes) in [
            ("/pub/x", true),
            ("/pub/", true),
            ("/%70ub/x", true),
            ("/pub/x?y=../..", true),
            ("/ol%C3%A1", true),
            ("/b%20c", true),
            ("/pub", false),
            ("/pub/..%00/adm", false),
            ("/pub/..%20/adm", false),
            ("/adm", false),
            ("//pub/x", false),
        ] {
            assert_eq!(allowed(public, "GET", path, None), passes, "{path}");
        }
        assert!(
            allowed(everything, "GET", "/a/../b", None),
            "everything may be called"
        );
        let override_field = Some("x-http-method-override");
        let gets = &Allow {
            methods: vec![http::Method::GET],
            ..Allow::default()
        };
        assert!(allowed(gets, "GET", "/a", None));
        assert!(!allowed(gets, "PUT", "/a", None));
        assert!(!allowed(gets, "GET", "/a", override_field));
        assert!(!allowed(public, "GET", "/pub/a", Some("x-original-url")));
        assert!(allowed(everything, "GET", "/a", override_field));
    }
}
