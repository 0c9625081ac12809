//! Where a request's body ends, decided strictly (RFC 9112, section 6). Pure.

use http::{HeaderMap, StatusCode, Version, header};

use super::bad_request::BadRequest;

/// How the body is delimited (RFC 9112, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// It has this many bytes.
    Length(u64),
    /// It comes in chunks.
    Chunked,
}

// RFC 9112, section 6.3; anything ambiguous is refused.
pub(super) fn framing(headers: &HeaderMap, version: Version) -> Result<Framing, BadRequest> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(BadRequest::new("more than one Content-Length"));
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let encoding = encodings.next();
    if encodings.next().is_some() {
        return Err(BadRequest::new("more than one Transfer-Encoding"));
    }
    match (length, encoding) {
        (None, None) => Ok(Framing::Empty),
        (Some(_), Some(_)) => Err(BadRequest::new("Content-Length with Transfer-Encoding")),
        (Some(length), None) => content_length(length.as_bytes()),
        (None, Some(_)) if version == Version::HTTP_10 => {
            Err(BadRequest::new("Transfer-Encoding in HTTP/1.0"))
        }
        (None, Some(encoding)) if encoding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            Ok(Framing::Chunked)
        }
        (None, Some(encoding)) => Err(transfer_encoding_error(encoding.as_bytes())),
    }
}

// Section 6.1: a coding that the server does not know is a 501, if the body's end is known all
// the same; without `chunked` as the last one it is not.
fn transfer_encoding_error(encoding: &[u8]) -> BadRequest {
    let last = encoding.rsplit(|byte| *byte == b',').next();
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b", \t-_.".contains(byte);
    let chunked_last = last.is_some_and(|last| last.trim_ascii().eq_ignore_ascii_case(b"chunked"));
    let times = encoding
        .split(|byte| *byte == b',')
        .filter(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked"))
        .count();
    if chunked_last && times == 1 && encoding.iter().all(token) {
        BadRequest::with(
            StatusCode::NOT_IMPLEMENTED,
            "a transfer coding other than chunked",
        )
    } else {
        BadRequest::new("Transfer-Encoding is malformed")
    }
}

fn content_length(digits: &[u8]) -> Result<Framing, BadRequest> {
    let bad = BadRequest::new("Content-Length is not a number");
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    let text = std::str::from_utf8(digits).map_err(|_| bad)?;
    match text.parse() {
        Ok(0) => Ok(Framing::Empty),
        Ok(length) => Ok(Framing::Length(length)),
        // All digits: it is a number, only larger than any body.
        Err(_) => Err(BadRequest::with(
            StatusCode::PAYLOAD_TOO_LARGE,
            "Content-Length is larger than any limit",
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::head;

    fn framed(fields: &str) -> Result<Framing, u16> {
        head::parse(format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes())
            .map(|head| head.framing)
            .map_err(|error| error.status.as_u16())
    }

    #[test]
    fn every_ambiguous_framing_is_refused() {
        assert_eq!(framed("Content-Length: 5\r\n"), Ok(Framing::Length(5)));
        assert_eq!(framed("Content-Length: 0\r\n"), Ok(Framing::Empty));
        assert_eq!(
            framed("Transfer-Encoding: chunked\r\n"),
            Ok(Framing::Chunked)
        );
        assert_eq!(
            framed("Transfer-Encoding: Chunked\r\n"),
            Ok(Framing::Chunked)
        );
        for (fields, status) in [
            ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
            ("Content-Length: 5, 5\r\n", 400),
            ("Content-Length: +5\r\n", 400),
            ("Content-Length: -5\r\n", 400),
            ("Content-Length: 0x5\r\n", 400),
            ("Content-Length: 5 5\r\n", 400),
            ("Content-Length:\r\n", 400),
            ("Content-Length: 99999999999999999999999\r\n", 413),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                400,
            ),
            ("Transfer-Encoding: chunked, chunked\r\n", 400),
            ("Transfer-Encoding: gzip, chunked\r\n", 501),
            ("Transfer-Encoding: chunked, gzip\r\n", 400),
            ("Transfer-Encoding: identity\r\n", 400),
            ("Transfer-Encoding: xchunked\r\n", 400),
            ("Transfer-Encoding: \"chunked\"\r\n", 400),
            ("Transfer-Encoding: chunked;q=1\r\n", 400),
            ("Transfer-Encoding : chunked\r\n", 400),
            (" Transfer-Encoding: chunked\r\n", 400),
            ("X: y\r\n Transfer-Encoding: chunked\r\n", 400),
            ("Expect: a-miracle\r\n", 417),
        ] {
            assert_eq!(framed(fields), Err(status), "{fields:?}");
        }
    }

    proptest! {
        // Whatever is added to a head that is otherwise fine, its framing is the stated one or
        // the request is refused.
        #[test]
        fn framing_is_never_guessed(
            extra in "(Content-Length|Transfer-Encoding)[ \t]?:[ \t]?[0-9a-zA-Z,+ ]{0,10}",
        ) {
            let text = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n{extra}\r\n\r\n");
            prop_assert!(head::parse(text.as_bytes()).is_err());
        }
    }
}
