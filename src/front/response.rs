//! The bytes of an answer. Pure, but for the date.

use std::fmt::Display;
use std::io::Write;
use std::time::SystemTime;

use http::{Method, StatusCode, Version, header};
use httpdate::HttpDate;

use crate::http::{Response, has_body};

/// The bytes of an answer after which the connection is closed.
pub(super) fn last_answer(response: &Response) -> Vec<u8> {
    let mut out = Vec::new();
    write_head(&mut out, response, &Method::GET, Version::HTTP_11, false);
    out.extend_from_slice(response.body().as_bytes());
    out
}

/// How the end of an answer's body is told (RFC 9112, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delimited {
    /// It has none.
    Nothing,
    /// By its length.
    Length(u64),
    /// In chunks.
    Chunked,
    /// By the end of the connection.
    Close,
    /// It is no body: the connection belongs to another protocol from here on.
    Upgraded,
}

impl Delimited {
    /// How that of an answer to a request with this method and version is.
    pub fn of(response: &Response, method: &Method, version: Version) -> Delimited {
        let status = response.status();
        match response.body().stream() {
            Some(_) if status == StatusCode::SWITCHING_PROTOCOLS => Delimited::Upgraded,
            _ if !has_body(status) || *method == Method::HEAD => Delimited::Nothing,
            None => Delimited::Length(response.body().len() as u64),
            Some(source) => match source.length() {
                Some(length) => Delimited::Length(length),
                None if version == Version::HTTP_10 => Delimited::Close,
                None => Delimited::Chunked,
            },
        }
    }
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
    let delimited = Delimited::of(response, method, version);
    let mut dated = false;
    for (name, value) in response.headers() {
        // The connection and its framing are this server's own. Only the length of what HEAD
        // does not send is the handler's to say, and what the connection is upgraded to.
        let is_own = match *name {
            header::CONTENT_LENGTH => *method != Method::HEAD || !has_body(status),
            header::UPGRADE => delimited != Delimited::Upgraded,
            header::CONNECTION | header::TRANSFER_ENCODING | header::TRAILER => true,
            _ => false,
        };
        if is_own {
            continue;
        }
        dated |= name == header::DATE;
        write_field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    if !dated {
        write_shown(out, "date", HttpDate::from(SystemTime::now()));
    }
    match delimited {
        Delimited::Length(length) => {
            write_shown(out, "content-length", length);
        }
        Delimited::Chunked => write_field(out, b"transfer-encoding", b"chunked"),
        // The answer to HEAD that has no body to count states none (RFC 9110, section 8.6).
        Delimited::Nothing if *method == Method::HEAD && has_body(status) => {
            let is_stated = response.headers().contains_key(header::CONTENT_LENGTH);
            if !is_stated && !response.body().is_empty() {
                write_shown(out, "content-length", response.body().len());
            }
        }
        Delimited::Nothing | Delimited::Close | Delimited::Upgraded => {}
    }
    if delimited == Delimited::Upgraded {
        write_field(out, b"connection", b"upgrade");
    } else if !keep_alive {
        write_field(out, b"connection", b"close");
    } else if version == Version::HTTP_10 {
        write_field(out, b"connection", b"keep-alive");
    }
    out.extend_from_slice(b"\r\n");
}

fn write_shown(out: &mut Vec<u8>, name: &str, value: impl Display) {
    // Memory takes everything.
    let _ = write!(out, "{name}: {value}\r\n");
}

fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
