//! The head of an upstream's answer. Pure: bytes in, a decision out.
//!
//! It is read here and not by ureq, which takes 128 fields, refuses white space before a colon and
//! passes transfer codings over that it doesn't know. What ureq gets is a short head of our own: the
//! status, and how the body is delimited.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use httparse::ParserConfig;

use crate::http::header_map;

/// The longest head, in bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// The most fields in one.
const MAX_FIELDS: usize = 1024;

/// What the bytes that came so far begin with.
#[derive(Debug)]
pub(super) enum Found {
    /// No whole head yet.
    Nothing,
    /// A head of so many bytes that only informs (RFC 9110, section 15.2); the answer follows.
    Interim(usize),
    /// The head of the answer, and its length in bytes.
    Final(usize, Head),
}

/// A checked head.
#[derive(Debug)]
pub(super) struct Head {
    pub status: StatusCode,
    /// Every field, as it came; Content-Length once at the most, and only where it counts.
    pub headers: HeaderMap,
    /// Where the body ends, if there is one.
    pub end: End,
    /// The head for ureq.
    pub framing: Vec<u8>,
}

/// Where the body of an answer ends (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// After so many bytes.
    Length(u64),
    /// Where its coding says so.
    Chunked,
    /// With the connection.
    Close,
}

/// Looks for a head; `upgrades`: the request asked for another protocol, so the answer may be a 101.
///
/// Errors: what came is not HTTP, or nobody can say where its body ends; why.
pub(super) fn find(bytes: &[u8], upgrades: bool) -> Result<Found, String> {
    const BEGIN: &[u8] = b"HTTP/1.";
    let seen = bytes.len().min(BEGIN.len());
    if bytes[..seen] != BEGIN[..seen] {
        return Err("what it sent is not HTTP/1.1".into());
    }
    let Some(length) = end(bytes) else {
        return Ok(Found::Nothing);
    };
    let head = Bytes::copy_from_slice(&bytes[..length]);
    let lines = head.iter().filter(|byte| **byte == b'\n');
    let mut fields = vec![httparse::EMPTY_HEADER; lines.count().min(MAX_FIELDS)];
    let mut parsed = httparse::Response::new(&mut fields);
    let complete = ParserConfig::default()
        // RFC 9112, section 5.1.
        .allow_spaces_after_header_name_in_responses(true)
        .parse_response(&mut parsed, &head)
        .map_err(describe)?;
    let (httparse::Status::Complete(_), Some(code)) = (complete, parsed.code) else {
        return Err("the head of its answer is malformed".into());
    };
    match code {
        100 | 102..=199 => return Ok(Found::Interim(length)),
        200..=599 => {}
        101 if upgrades => {}
        _ => return Err(format!("its status {code} is no answer to this request")),
    }
    let status = StatusCode::from_u16(code).map_err(|error| error.to_string())?;
    let headers = header_map(&head, parsed.headers);
    let mut headers = headers.map_err(|flaw| format!("{flaw}, in the head of its answer"))?;
    let (end, framing) = framing(status, &mut headers, parsed.version == Some(0))?;
    let head = Head {
        status,
        headers,
        end,
        framing,
    };
    Ok(Found::Final(length, head))
}

// Where the empty line ends; a bare line feed counts as a line end (RFC 9112, section 2.2).
fn end(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == b'\n') {
        from += at + 1;
        match bytes[from..] {
            [b'\n', ..] => return Some(from + 1),
            [b'\r', b'\n', ..] => return Some(from + 2),
            _ => {}
        }
    }
    None
}

fn describe(error: httparse::Error) -> String {
    match error {
        httparse::Error::TooManyHeaders => {
            format!("the head of its answer has more than {MAX_FIELDS} fields")
        }
        httparse::Error::HeaderName | httparse::Error::HeaderValue => {
            "a field in the head of its answer is malformed".into()
        }
        other => format!("the head of its answer is malformed: {other}"),
    }
}

// RFC 9112, section 6.3.
fn framing(
    status: StatusCode,
    headers: &mut HeaderMap,
    is_old: bool,
) -> Result<(End, Vec<u8>), String> {
    let length = content_length(headers)?;
    let is_chunked = is_chunked(headers, is_old)?;
    let named = |option: &[u8]| {
        let mut options = listed(headers, header::CONNECTION);
        options.any(|found| found.eq_ignore_ascii_case(option))
    };
    // Both together may be an attempt to smuggle: what follows on this connection is not trusted.
    let close =
        named(b"close") || is_old && !named(b"keep-alive") || is_chunked && length.is_some();
    headers.remove(header::CONTENT_LENGTH);
    let mut framing = Vec::with_capacity(80);
    framing.extend_from_slice(b"HTTP/1.1 ");
    framing.extend_from_slice(status.as_str().as_bytes());
    framing.extend_from_slice(b" \r\n");
    if is_chunked {
        framing.extend_from_slice(b"transfer-encoding: chunked\r\n");
    } else if let Some(length) = length {
        let value = HeaderValue::from(length);
        framing.extend_from_slice(b"content-length: ");
        framing.extend_from_slice(value.as_bytes());
        framing.extend_from_slice(b"\r\n");
        headers.insert(header::CONTENT_LENGTH, value);
    }
    if close {
        framing.extend_from_slice(b"connection: close\r\n");
    }
    framing.extend_from_slice(b"\r\n");
    let end = match (is_chunked, length) {
        (true, _) => End::Chunked,
        (false, Some(length)) => End::Length(length),
        (false, None) => End::Close,
    };
    Ok((end, framing))
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, String> {
    let mut length = None;
    for stated in listed(headers, header::CONTENT_LENGTH) {
        let is_number = stated.iter().all(u8::is_ascii_digit);
        let text = std::str::from_utf8(stated).ok().filter(|_| is_number);
        let number: u64 = text.and_then(|text| text.parse().ok()).ok_or_else(|| {
            let stated = String::from_utf8_lossy(stated);
            format!("its Content-Length {stated:?} is no length")
        })?;
        if length.is_some_and(|before| before != number) {
            return Err("it states more than one Content-Length".into());
        }
        length = Some(number);
    }
    Ok(length)
}

fn is_chunked(headers: &HeaderMap, is_old: bool) -> Result<bool, String> {
    let mut codings = listed(headers, header::TRANSFER_ENCODING);
    let Some(first) = codings.next() else {
        return Ok(false);
    };
    if is_old {
        return Err("it states a transfer coding, which HTTP/1.0 has not".into());
    }
    if codings.next().is_none() {
        if first.eq_ignore_ascii_case(b"chunked") {
            return Ok(true);
        }
        // Obsolete: the name for none.
        if first.eq_ignore_ascii_case(b"identity") {
            return Ok(false);
        }
    }
    let codings: Vec<_> = listed(headers, header::TRANSFER_ENCODING)
        .map(String::from_utf8_lossy)
        .collect();
    let codings = codings.join(", ");
    Err(format!(
        "its transfer coding {codings:?} is not understood here"
    ))
}

// The members of a list field.
fn listed(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(name).into_iter();
    values.flat_map(|value| {
        let members = value.as_bytes().split(|byte| *byte == b',');
        members.map(<[u8]>::trim_ascii)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framing_of(text: &str) -> Result<String, String> {
        match find(text.as_bytes(), false)? {
            Found::Final(length, head) => {
                assert_eq!(length, text.len(), "{text:?}");
                Ok(String::from_utf8(head.framing).unwrap())
            }
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn what_delimits_the_body_is_all_that_ureq_learns() {
        for (text, framing) in [
            ("HTTP/1.1 200 OK\r\nA: b\r\n\r\n", ""),
            ("HTTP/1.1 200\r\n\r\n", ""),
            ("HTTP/1.1 200 OK\nA: b\n\n", ""),
            (
                "HTTP/1.1 200 OK\r\nCONTENT-LENGTH:7\r\n\r\n",
                "content-length: 7\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 7, 7\r\n\r\n",
                "content-length: 7\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n",
                "transfer-encoding: chunked\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 1\r\n\r\n",
                "content-length: 1\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\nConnection: x, Close\r\n\r\n",
                "connection: close\r\n",
            ),
            ("HTTP/1.0 200 OK\r\n\r\n", "connection: close\r\n"),
            ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", ""),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
                "transfer-encoding: chunked\r\nconnection: close\r\n",
            ),
        ] {
            let expected = format!("HTTP/1.1 200 \r\n{framing}\r\n");
            assert_eq!(framing_of(text), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn a_head_is_whole_or_waited_for() {
        let text = b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n";
        for cut in 0..text.len() {
            assert!(
                matches!(find(&text[..cut], false), Ok(Found::Nothing)),
                "{cut}"
            );
        }
        let Ok(Found::Final(_, head)) = find(text, false) else {
            panic!("it is whole");
        };
        assert_eq!(head.headers["a"], "b");
        let interim = b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 2";
        assert!(matches!(find(interim, false), Ok(Found::Interim(34))));
        for other in [&b"SSH-2.0"[..], b"HTTP/2", b"\x15\x03", b"H\r\n"] {
            assert!(find(other, false).is_err(), "{other:?}");
        }
    }

    #[test]
    fn fields_are_bounded() {
        let head = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert!(framing_of(&head(MAX_FIELDS)).is_ok());
        let error = framing_of(&head(MAX_FIELDS + 1)).unwrap_err();
        assert!(error.contains("1024 fields"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in any::<Vec<u8>>(), fields in "([A-Za-z-]{1,18} ?: ?[ -~]{0,9}\r?\n){0,5}") {
            let _ = find(&bytes, false);
            let _ = find(format!("HTTP/1.1 200 OK\r\n{fields}\r\n").as_bytes(), false);
        }
    }
}
