//! A service with what was prepared for it, and which requests it lets through.

use http::{StatusCode, Uri};

use crate::config::{Allow, Service, ServiceMode};
use crate::error::{Error, Result};
use crate::http::Request;
use crate::http::problem::Problem;
use crate::message::Hop;

// A service with what was prepared for it.
pub(super) struct LiveService {
    // Of JSON mode: the URL that requests are posted to.
    pub target: Option<Uri>,
    // Of HTTP mode: the patterns of the paths that may be called, if not all may.
    paths: Option<matchit::Router<()>>,
    // Not everything at the upstream may be called, so no path may lead elsewhere.
    is_below: bool,
}

impl LiveService {
    pub fn new(service: &Service) -> Result<LiveService> {
        let mut live = LiveService {
            target: None,
            paths: None,
            is_below: service.upstream.has_path(),
        };
        match &service.mode {
            ServiceMode::Json { path, .. } => {
                let url = service.upstream.join(path);
                let malformed = |error| Error::Usage(format!("{url:?} is no URL: {error}"));
                live.target = Some(url.parse().map_err(malformed)?);
            }
            ServiceMode::Http { allow, .. } if !allow.paths.is_empty() => {
                let mut paths = matchit::Router::new();
                for path in &allow.paths {
                    let conflict = |error| Error::Usage(format!("the path {path:?}: {error}"));
                    paths.insert(path.as_str(), ()).map_err(conflict)?;
                    // `{*rest}` may be empty: /public/.
                    if let Some((before, _)) = path.split_once("{*") {
                        let _ = paths.insert(before, ());
                    }
                }
                live.paths = Some(paths);
            }
            ServiceMode::Http { .. } => {}
        }
        if let ServiceMode::Http { path_prefix, .. } = &service.mode {
            live.is_below |= !path_prefix.is_empty() || live.paths.is_some();
        }
        Ok(live)
    }

    /// Whether a request is on the list of those that may be called.
    ///
    /// Errors: it is not (403).
    pub fn check(&self, request: &Request, allow: &Allow) -> std::result::Result<(), Problem> {
        let refused = |what: &str| {
            let detail = format!("this agent does not pass on {what}");
            Err(Problem::new(StatusCode::FORBIDDEN, Hop::Agent, detail))
        };
        if !allow.methods.is_empty() && !allow.methods.contains(request.method()) {
            return refused(request.method().as_str());
        }
        let path = request.uri().path();
        if self.is_below && is_devious(path) {
            return refused(path);
        }
        match &self.paths {
            Some(paths) if paths.at(path).is_err() => refused(path),
            _ => Ok(()),
        }
    }
}

// A path that the upstream may take for another one than a pattern does: with `..`, or with a
// slash or a backslash that is hidden.
fn is_devious(path: &str) -> bool {
    let decoded = percent_encoding::percent_decode_str(path).collect::<Vec<u8>>();
    let slashes = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'/').count();
    let mut segments = decoded.split(|byte| *byte == b'/');
    // Some servers take `..;x` for `..`.
    let bare =
        |segment: &[u8]| segment.split(|byte| *byte == b';').next() == Some(b"..".as_slice());
    segments.any(|segment| segment == b"." || segment.starts_with(b".;") || bare(segment))
        || decoded.contains(&b'\\')
        || decoded.contains(&b'%')
        || slashes(&decoded) != slashes(path.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_only_look_allowed() {
        for path in ["/a", "/a/b.c", "/a/...", "/%20", "/ol%C3%A1"] {
            assert!(!is_devious(path), "{path}");
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
        ] {
            assert!(is_devious(path), "{path}");
        }
    }
}
