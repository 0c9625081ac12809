//! Whatever bytes a client sends: no panic, the same in pieces as at once, and nothing in a request
//! that could end a line of the next hop's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recado::http::chunked::Decoder;
use recado::http::framing::Framing;
use recado::http::head::{BadRequest, Scanner, parse};

const LIMIT: usize = 1000;

fuzz_target!(|data: &[u8]| {
    let whole = Scanner::default().scan(data);
    assert_eq!(scan_bytewise(data), whole);
    let Ok(Some(length)) = whole else {
        return;
    };
    let (head, rest) = data.split_at(length);
    let Ok(head) = parse(head) else {
        return;
    };
    for value in head.request.headers().values() {
        assert!(!value.as_bytes().iter().any(|byte| b"\r\n\0".contains(byte)));
    }
    assert!(head.request.headers().get_all("host").iter().count() <= 1);
    let lengths = head
        .request
        .headers()
        .get_all("content-length")
        .iter()
        .count();
    let codings = head
        .request
        .headers()
        .get_all("transfer-encoding")
        .iter()
        .count();
    match head.framing {
        Framing::Chunked => assert_eq!((lengths, codings), (0, 1)),
        Framing::Length(_) => assert_eq!((lengths, codings), (1, 0)),
        Framing::Empty => assert_eq!(codings, 0),
    }
    if head.framing == Framing::Chunked {
        let whole = decode(std::iter::once(rest));
        let pieces = decode(rest.chunks(1));
        assert_eq!(whole, pieces);
        if let Ok((body, _)) = whole {
            assert!(body.len() <= LIMIT);
        }
    }
});

fn scan_bytewise(data: &[u8]) -> Result<Option<usize>, BadRequest> {
    let mut scanner = Scanner::default();
    for end in 0..=data.len() {
        match scanner.scan(&data[..end]) {
            Ok(None) => {}
            found => return found,
        }
    }
    Ok(None)
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<(Vec<u8>, bool), BadRequest> {
    let mut decoder = Decoder::new(LIMIT);
    let mut body = Vec::new();
    for piece in pieces {
        decoder.decode(piece, &mut body)?;
    }
    Ok((body, decoder.is_done()))
}
