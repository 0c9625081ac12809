//! The chunked transfer coding, decoded strictly (RFC 9112, section 7.1). Pure.

use super::bad_request::BadRequest;

/// The most bytes of chunk extensions and trailer fields together.
pub const MAX_EXTRA_BYTES: usize = 16 * 1024;

/// Decodes a body that arrives piece by piece.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    extra: usize,
    limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size { value: usize, digits: u8 },
    // Space between the size and an extension.
    Space { size: usize },
    Extension { size: usize },
    SizeEnd { size: usize },
    Data { left: usize },
    DataCr,
    DataEnd,
    // At the beginning of a trailer line, or of the empty line that ends the body.
    LineStart,
    Trailer { colon: bool },
    TrailerEnd,
    BodyEnd,
    Done,
}

impl Decoder {
    /// Decodes a body of at most `limit` bytes.
    pub fn new(limit: usize) -> Decoder {
        Decoder {
            state: State::Size {
                value: 0,
                digits: 0,
            },
            extra: 0,
            limit,
        }
    }

    /// Whether the body is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes what it can of `input`, appends the data to `body`, and returns how many bytes it
    /// took: all, unless the body ended within them.
    ///
    /// Errors: the coding is malformed (400), or the body is over the limit (413).
    pub fn decode(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<usize, BadRequest> {
        let mut at = 0;
        while at < input.len() && self.state != State::Done {
            if let State::Data { left } = self.state {
                let taken = left.min(input.len() - at);
                body.extend_from_slice(&input[at..at + taken]);
                at += taken;
                self.state = match left - taken {
                    0 => State::DataCr,
                    left => State::Data { left },
                };
                continue;
            }
            self.state = self.step(input[at], body.len())?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8, so_far: usize) -> Result<State, BadRequest> {
        let expect = |wanted: u8, next: State| {
            if byte == wanted {
                Ok(next)
            } else {
                Err(BadRequest::new("a chunk is malformed"))
            }
        };
        match self.state {
            State::Size { value, digits } => self.size(byte, value, digits, so_far),
            State::Space { size } => {
                self.count_extra()?;
                match byte {
                    b' ' | b'\t' => Ok(State::Space { size }),
                    b';' => Ok(State::Extension { size }),
                    _ => Err(BadRequest::new("a chunk size is malformed")),
                }
            }
            State::Extension { size } => {
                self.count_extra()?;
                match byte {
                    b'\r' => Ok(State::SizeEnd { size }),
                    b'\t' | b' '..=b'~' | 0x80.. => Ok(State::Extension { size }),
                    _ => Err(BadRequest::new("a chunk extension is malformed")),
                }
            }
            State::SizeEnd { size: 0 } => expect(b'\n', State::LineStart),
            State::SizeEnd { size } => expect(b'\n', State::Data { left: size }),
            State::DataCr => expect(b'\r', State::DataEnd),
            State::DataEnd => expect(
                b'\n',
                State::Size {
                    value: 0,
                    digits: 0,
                },
            ),
            State::LineStart => match byte {
                b'\r' => Ok(State::BodyEnd),
                byte if is_token(byte) => Ok(State::Trailer { colon: false }),
                _ => Err(BadRequest::new("a trailer field is malformed")),
            },
            State::Trailer { colon } => {
                self.count_extra()?;
                match byte {
                    b'\r' if colon => Ok(State::TrailerEnd),
                    b':' => Ok(State::Trailer { colon: true }),
                    b'\t' | b' '..=b'~' | 0x80.. if colon => Ok(State::Trailer { colon }),
                    byte if is_token(byte) => Ok(State::Trailer { colon }),
                    _ => Err(BadRequest::new("a trailer field is malformed")),
                }
            }
            State::TrailerEnd => expect(b'\n', State::LineStart),
            State::BodyEnd => expect(b'\n', State::Done),
            State::Data { .. } | State::Done => Ok(self.state),
        }
    }

    fn size(&self, byte: u8, value: usize, digits: u8, so_far: usize) -> Result<State, BadRequest> {
        let bad = BadRequest::new("a chunk size is malformed");
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b'\r' if digits > 0 => return Ok(State::SizeEnd { size: value }),
            b';' if digits > 0 => return Ok(State::Extension { size: value }),
            b' ' | b'\t' if digits > 0 => return Ok(State::Space { size: value }),
            _ => return Err(bad),
        };
        // Leading zeros count too, so that a size has an end.
        if digits == 16 {
            return Err(bad);
        }
        let value = value
            .checked_mul(16)
            .and_then(|value| value.checked_add(digit.into()))
            .filter(|value| *value <= self.limit.saturating_sub(so_far))
            .ok_or_else(|| BadRequest::body_over(self.limit))?;
        Ok(State::Size {
            value,
            digits: digits + 1,
        })
    }

    fn count_extra(&mut self) -> Result<(), BadRequest> {
        self.extra += 1;
        if self.extra > MAX_EXTRA_BYTES {
            return Err(BadRequest::new(
                "too many bytes of chunk extensions and trailer fields",
            ));
        }
        Ok(())
    }
}

/// Whether a byte may be part of a token: a method, a field name (RFC 9110, section 5.6.2).
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(input: &[u8], limit: usize) -> Result<(Vec<u8>, usize, bool), BadRequest> {
        let mut decoder = Decoder::new(limit);
        let mut body = Vec::new();
        let taken = decoder.decode(input, &mut body)?;
        Ok((body, taken, decoder.is_done()))
    }

    #[test]
    fn chunks_extensions_and_trailers() {
        let input = b"4\r\nWiki\r\n6 ; a = \"b\"\r\npedia \r\n0\r\nX: y\r\nZ:\r\n\r\nGET";
        let (body, taken, done) = decode(input, 100).unwrap();
        assert_eq!(body, b"Wikipedia ");
        assert_eq!(&input[taken..], b"GET");
        assert!(done);
        assert_eq!(decode(b"000\r\n\r\n", 0).unwrap(), (vec![], 7, true));
        assert!(!decode(b"4\r\nWi", 10).unwrap().2);
    }

    #[test]
    fn every_doubt_is_an_error() {
        for (input, status) in [
            ("\r\n", 400),
            ("g\r\n", 400),
            ("-1\r\n", 400),
            ("+1\r\n", 400),
            ("0x1\r\n", 400),
            (" 1\r\n", 400),
            ("1 \r\n", 400),
            ("1\n", 400),
            ("1\rx", 400),
            ("1;a\nb", 400),
            ("1;\0", 400),
            ("1\r\naa", 400),
            ("1\r\na\n", 400),
            ("1\r\na\rX", 400),
            ("00000000000000000\r\n", 400),
            ("ffffffffffffffff\r\n", 413),
            ("b\r\n", 413),
            ("5\r\nabcde\r\n6\r\n", 413),
            ("0\r\nX\r\n", 400),
            ("0\r\n X: y\r\n", 400),
            ("0\r\n: y\r\n", 400),
            ("0\r\nX: y\n", 400),
            ("0\r\nX y: z\r\n", 400),
            ("0\r\n\n", 400),
            ("0\r\n\rX", 400),
        ] {
            let error = decode(input.as_bytes(), 10).unwrap_err();
            assert_eq!(error.status, status, "{input:?}: {}", error.reason);
        }
        let endless = format!("1;{}\r\n", "x".repeat(MAX_EXTRA_BYTES + 1));
        assert_eq!(decode(endless.as_bytes(), 10).unwrap_err().status, 400);
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_whatever_the_cuts(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8),
            step in 1usize..50,
            rest in any::<Vec<u8>>(),
        ) {
            let mut input = Vec::new();
            for chunk in &chunks {
                input.extend(format!("{:X}\r\n", chunk.len()).bytes());
                input.extend(chunk);
                input.extend(b"\r\n");
            }
            input.extend(b"0\r\n\r\n");
            let end = input.len();
            input.extend(&rest);
            let mut decoder = Decoder::new(1000);
            let mut body = Vec::new();
            let mut at = 0;
            while !decoder.is_done() {
                let piece = &input[at..(at + step).min(input.len())];
                at += decoder.decode(piece, &mut body).unwrap();
            }
            prop_assert_eq!(at, end);
            prop_assert_eq!(body, chunks.concat());
        }

        #[test]
        fn no_bytes_panic_or_pass_the_limit(input in any::<Vec<u8>>(), text in "[0-9a-f;:\r\nx]{0,60}") {
            for bytes in [input.as_slice(), text.as_bytes()] {
                if let Ok((body, taken, _)) = decode(bytes, 20) {
                    prop_assert!(body.len() <= 20 && taken <= bytes.len());
                }
            }
        }
    }
}
