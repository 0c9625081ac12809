//! How content that goes out piece by piece is framed (RFC 9112, section 6), and written.

use std::io::{self, ErrorKind, IoSlice, Write};
use std::time::{Duration, Instant};

/// How the end of content is told to whom it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// By its length: so many bytes are still to come.
    Length(u64),
    /// In chunks.
    Chunked,
    /// By the end of the connection.
    Close,
}

impl Sending {
    /// Writes the next piece, and `head` before it.
    ///
    /// Errors: there is more than was announced, and nothing of it is written: behind the content, it
    /// would be taken for another message ([`ErrorKind::InvalidData`]); or see [`write_all`].
    pub fn piece(
        &mut self,
        to: impl Write,
        head: &[u8],
        bytes: &[u8],
        patience: Option<Duration>,
    ) -> io::Result<()> {
        match self {
            Sending::Length(left) => {
                *left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
                    let flaw = "there is more of a body than was announced";
                    io::Error::new(ErrorKind::InvalidData, flaw)
                })?;
                write_all(to, &[head, bytes], patience)
            }
            Sending::Chunked => {
                let size = format!("{:x}\r\n", bytes.len());
                write_all(to, &[head, size.as_bytes(), bytes, b"\r\n"], patience)
            }
            Sending::Close => write_all(to, &[head, bytes], patience),
        }
    }

    /// Writes what stands behind the last piece, and `head` before it.
    ///
    /// Errors: there was less than was announced ([`ErrorKind::UnexpectedEof`]); or see [`write_all`].
    pub fn end(self, to: impl Write, head: &[u8], patience: Option<Duration>) -> io::Result<()> {
        match self {
            Sending::Length(1..) => Err(ErrorKind::UnexpectedEof.into()),
            Sending::Chunked => write_all(to, &[head, b"0\r\n\r\n"], patience),
            Sending::Length(0) | Sending::Close => write_all(to, &[head], patience),
        }
    }
}

/// Writes all of it, in one system call as far as the connection takes it, within `patience`; none: for
/// ever.
///
/// Errors: what the connection says; it takes longer ([`ErrorKind::TimedOut`]).
pub fn write_all(
    mut to: impl Write,
    parts: &[&[u8]],
    patience: Option<Duration>,
) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut left = slices.as_mut_slice();
    // Empty ones go.
    IoSlice::advance_slices(&mut left, 0);
    let deadline = patience.map(|patience| Instant::now() + patience);
    while !left.is_empty() {
        match to.write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut left, count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if !left.is_empty() && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // What is written, and whether that was all.
    fn written(mut sending: Sending, pieces: &[&str]) -> (String, Result<(), ErrorKind>) {
        let mut out = Vec::new();
        let mut write = || {
            for piece in pieces {
                sending.piece(&mut out, b"", piece.as_bytes(), None)?;
            }
            sending.end(&mut out, b"", None)
        };
        let result = write().map_err(|error| error.kind());
        (String::from_utf8(out).unwrap(), result)
    }

    #[test]
    fn the_end_is_where_it_was_announced() {
        let chunks = "2\r\nab\r\n1\r\nc\r\n0\r\n\r\n".to_owned();
        assert_eq!(written(Sending::Chunked, &["ab", "c"]), (chunks, Ok(())));
        assert_eq!(
            written(Sending::Close, &["ab", "c"]),
            ("abc".into(), Ok(()))
        );
        assert_eq!(written(Sending::Close, &[]), (String::new(), Ok(())));
        for (pieces, length, got, result) in [
            (["ab", "cd"], 4, "abcd", Ok(())),
            (["ab", "cde"], 4, "ab", Err(ErrorKind::InvalidData)),
            (["abcd", "e"], 4, "abcd", Err(ErrorKind::InvalidData)),
            (["ab", "c"], 4, "abc", Err(ErrorKind::UnexpectedEof)),
            (["a", ""], 0, "", Err(ErrorKind::InvalidData)),
        ] {
            let written = written(Sending::Length(length), &pieces);
            assert_eq!(written, (got.into(), result), "{pieces:?}");
        }
    }

    #[test]
    fn the_head_goes_before_whatever_comes_first() {
        let mut out = Vec::new();
        Sending::Length(1)
            .piece(&mut out, b"head ", b"a", None)
            .unwrap();
        Sending::Chunked.end(&mut out, b"head ", None).unwrap();
        assert_eq!(out, b"head ahead 0\r\n\r\n");
    }
}
