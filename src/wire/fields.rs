//! Which fields belong to one connection, or one message's framing, and are not carried (RFC 9110, section
//! 7.6.1).

use http::header::{self, HeaderMap, HeaderName};

/// Whether a field is about one connection or one message's framing, and so is not carried.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION
            | header::CONTENT_LENGTH
            | header::EXPECT
            | header::PROXY_AUTHENTICATE
            | header::PROXY_AUTHORIZATION
            | header::TE
            | header::TRAILER
            | header::TRANSFER_ENCODING
            | header::UPGRADE
    ) || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// Removes what is not carried, and what `Connection` says is not to be.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<String> = connection_options(headers)
        .into_iter()
        .map(str::to_owned)
        .collect();
    for name in listed {
        headers.remove(name.as_str());
    }
    remove_where(headers, is_hop_by_hop);
}

/// Removes the fields whose name is so.
pub(crate) fn remove_where(headers: &mut HeaderMap, is_so: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| is_so(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// The names that `Connection` lists.
pub(super) fn connection_options(headers: &HeaderMap) -> Vec<&str> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect()
}
