//! The bytes of an answer. Pure, but for the date.

use std::time::SystemTime;

use http::{Method, Version, header};

use crate::http::{Response, has_body};

/// The bytes of an answer after which the connection is closed.
pub(super) fn last_answer(response: &Response) -> Vec<u8> {
    let mut out = Vec::new();
    write_head(&mut out, response, &Method::GET, Version::HTTP_11, false);
    out.extend_from_slice(response.body().as_bytes());
    out
}

/// Writes the status line and the fields.
pub(super) fn write_head(
    out: &mut Vec<u8>,
    response: &Response,
    method: &Method,
    version: Version,
    keep_alive: bool,
) {
    let status = response.status();
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
    let mut dated = false;
    let mut stated_length = false;
    for (name, value) in response.headers() {
        // The connection and its framing are this server's own. Only the length of what HEAD
        // does not send is the handler's to say.
        if name == header::CONTENT_LENGTH {
            if *method != Method::HEAD || !has_body(status) {
                continue;
            }
            stated_length = true;
        } else if matches!(
            *name,
            header::CONNECTION | header::TRANSFER_ENCODING | header::TRAILER | header::UPGRADE
        ) {
            continue;
        }
        dated |= name == header::DATE;
        write_field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    if !dated {
        let date = httpdate::fmt_http_date(SystemTime::now());
        write_field(out, b"date", date.as_bytes());
    }
    // The answer to HEAD that has no body to count states none (RFC 9110, section 8.6).
    let is_counted = *method != Method::HEAD || !response.body().is_empty();
    if has_body(status) && !stated_length && is_counted {
        let length = response.body().len().to_string();
        write_field(out, b"content-length", length.as_bytes());
    }
    if !keep_alive {
        write_field(out, b"connection", b"close");
    } else if version == Version::HTTP_10 {
        write_field(out, b"connection", b"keep-alive");
    }
    out.extend_from_slice(b"\r\n");
}

fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
