//! The content of a message, taken out of what a connection brings, as it comes (RFC 9112, section 6).

use std::io::{self, ErrorKind, Read};

use bytes::Bytes;

use super::body::Chunk;
use super::chunked::Decoder;

/// The first size of a read, and the largest, in bytes: what is idle keeps no more than the first.
const FIRST_READ: usize = 4 * 1024;
const LARGEST_READ: usize = 64 * 1024;

/// Where the content ends.
#[derive(Debug)]
pub enum Rest {
    /// After so many bytes.
    Length(u64),
    /// Where its coding says so.
    Chunked(Decoder),
    /// With the connection.
    Close,
}

/// The content of one message.
#[derive(Debug)]
pub struct Content {
    // What was read and not used yet.
    buffer: Bytes,
    rest: Rest,
    has_ended: bool,
    size: usize,
}

impl Content {
    /// `buffer`: what was read of it already.
    pub fn new(rest: Rest, buffer: Vec<u8>) -> Content {
        Content {
            buffer: buffer.into(),
            rest,
            has_ended: false,
            size: FIRST_READ,
        }
    }

    /// How long it will be, if that is known.
    pub fn length(&self) -> Option<u64> {
        match self.rest {
            Rest::Length(length) => Some(length),
            Rest::Chunked(_) | Rest::Close => None,
        }
    }

    /// Whether it ends with the connection.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self.rest, Rest::Close)
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        match &self.rest {
            Rest::Length(left) => *left == 0,
            Rest::Chunked(decoder) => decoder.is_done(),
            Rest::Close => self.has_ended && self.buffer.is_empty(),
        }
    }

    /// What was read behind it.
    pub fn take_buffer(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer).into()
    }

    /// The next of it, `max` bytes at the most; `None`: something has to be read first.
    ///
    /// Errors: it is malformed ([`ErrorKind::InvalidData`]).
    pub fn next(&mut self, max: usize) -> io::Result<Option<Chunk>> {
        while !self.buffer.is_empty() && !self.is_over() {
            let bytes = self.take(self.buffer.len().min(max))?;
            if !bytes.is_empty() {
                return Ok(Some(Chunk::Bytes(bytes)));
            }
        }
        Ok(self.is_over().then_some(Chunk::End))
    }

    fn take(&mut self, have: usize) -> io::Result<Bytes> {
        match &mut self.rest {
            Rest::Close => Ok(self.buffer.split_to(have)),
            Rest::Length(left) => {
                let count = have.min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                Ok(self.buffer.split_to(count))
            }
            Rest::Chunked(decoder) => {
                let mut body = Vec::new();
                let taken = decoder.decode(&self.buffer[..have], &mut body);
                let taken =
                    taken.map_err(|bad| io::Error::new(ErrorKind::InvalidData, bad.reason))?;
                let _ = self.buffer.split_to(taken);
                Ok(body.into())
            }
        }
    }

    /// Reads once from the connection. To be called when there is nothing left.
    ///
    /// Errors: what that says, or it ended within the content ([`ErrorKind::UnexpectedEof`]).
    pub fn fill(&mut self, mut connection: impl Read) -> io::Result<()> {
        let mut read = vec![0; self.size];
        let count = loop {
            match connection.read(&mut read) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.size = FIRST_READ;
                    return Err(error);
                }
                Ok(count) => break count,
            }
        };
        if count == 0 {
            self.has_ended = true;
            return match self.rest {
                Rest::Close => Ok(()),
                Rest::Length(_) | Rest::Chunked(_) => Err(ErrorKind::UnexpectedEof.into()),
            };
        }
        if count == self.size {
            self.size = (4 * count).min(LARGEST_READ);
        }
        // What is kept for a while should not keep a large buffer that it does not fill.
        self.buffer = match count < read.len() / 2 {
            true => Bytes::copy_from_slice(&read[..count]),
            false => {
                read.truncate(count);
                read.into()
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads all of it, from a connection that brings it in pieces.
    fn read(
        rest: Rest,
        begun: &[u8],
        pieces: &[&[u8]],
        max: usize,
    ) -> (Vec<u8>, io::Result<Vec<u8>>) {
        let mut content = Content::new(rest, begun.to_vec());
        let mut pieces = pieces.iter().copied();
        let mut piece: &[u8] = &[];
        let mut got = Vec::new();
        loop {
            match content.next(max) {
                Ok(Some(Chunk::Bytes(bytes))) => {
                    assert!(bytes.len() <= max);
                    got.extend_from_slice(&bytes);
                }
                Ok(Some(Chunk::Nothing)) => panic!("there is no such thing here"),
                Ok(Some(Chunk::End)) => return (got, Ok(content.take_buffer())),
                Ok(None) => {
                    if piece.is_empty() {
                        piece = pieces.next().unwrap_or_default();
                    }
                    if let Err(error) = content.fill(&mut piece) {
                        return (got, Err(error));
                    }
                }
                Err(error) => return (got, Err(error)),
            }
        }
    }

    fn chunked() -> Rest {
        Rest::Chunked(Decoder::new(usize::MAX))
    }

    #[test]
    fn what_stands_behind_it_is_left() {
        let (got, behind) = read(Rest::Length(4), b"ab", &[b"c", b"dGET"], 10);
        assert_eq!((got, behind.unwrap()), (b"abcd".to_vec(), b"GET".to_vec()));
        let (got, behind) = read(chunked(), b"2\r\nab\r", &[b"\n0\r\n", b"\r\nGET"], 10);
        assert_eq!((got, behind.unwrap()), (b"ab".to_vec(), b"GET".to_vec()));
        let (got, behind) = read(Rest::Close, b"ab", &[b"c"], 1);
        assert_eq!((got, behind.unwrap()), (b"abc".to_vec(), Vec::new()));
        let (got, behind) = read(Rest::Length(0), b"GET", &[], 1);
        assert_eq!((got, behind.unwrap()), (Vec::new(), b"GET".to_vec()));
    }

    #[test]
    fn half_of_it_is_an_error() {
        let kind = |(_, result): (Vec<u8>, io::Result<Vec<u8>>)| result.unwrap_err().kind();
        let cut = ErrorKind::UnexpectedEof;
        assert_eq!(kind(read(Rest::Length(4), b"abc", &[], 10)), cut);
        assert_eq!(kind(read(chunked(), b"2\r\nab\r\n", &[], 10)), cut);
        let malformed = read(chunked(), b"x", &[], 10);
        assert_eq!(kind(malformed), ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn the_same_bytes_come_out_however_they_come(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..9000), 0..9),
            max in 1..70_000usize,
        ) {
            let all = pieces.concat();
            let refs: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(read(Rest::Close, b"", &refs, max).0, &all[..]);
            prop_assert_eq!(read(Rest::Length(all.len() as u64), b"", &refs, max).0, &all[..]);
            let coded = pieces.iter().map(|piece| {
                [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
            });
            let coded = [coded.collect::<Vec<_>>().concat(), b"0\r\n\r\n".to_vec()].concat();
            let refs: Vec<&[u8]> = coded.chunks(1000).collect();
            prop_assert_eq!(read(chunked(), b"", &refs, max).0, all);
        }
    }
}
