//! An answer whose body is passed on as it comes.

use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::handler::Client;
use super::response::Delimited;
use crate::http::{Chunk, Source};

/// How often it is looked whether the client is still there while there is nothing to send.
const LOOK: Duration = Duration::from_millis(200);

/// Writes a body behind its head, each piece as soon as it is here; `head` goes with the first one, or
/// alone if that takes a while. A piece may take the client as long as `patience`.
///
/// Errors: it was not written to its end, and the client is made to see that.
pub(super) fn pour(
    source: &dyn Source,
    delimited: Delimited,
    head: Vec<u8>,
    client: &Client<'_>,
    stream: &TcpStream,
    patience: Duration,
) -> io::Result<()> {
    let mut pouring = Pouring {
        stream,
        delimited,
        head,
        count: 0,
        patience,
    };
    // Where the end of the connection is the end of the body, an orderly one before its time would be a
    // lie. So until then it would be reset, even if this process is killed.
    let ends_with_connection = matches!(delimited, Delimited::Close | Delimited::Upgraded);
    if ends_with_connection {
        SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
    }
    let poured = pouring.run(source, client);
    match &poured {
        Ok(()) if ends_with_connection => SockRef::from(stream).set_linger(None)?,
        Ok(()) => {}
        Err(_) => source.cancel(),
    }
    poured
}

struct Pouring<'a> {
    stream: &'a TcpStream,
    delimited: Delimited,
    head: Vec<u8>,
    count: u64,
    patience: Duration,
}

impl Pouring<'_> {
    fn run(&mut self, source: &dyn Source, client: &Client<'_>) -> io::Result<()> {
        loop {
            let wait = if self.head.is_empty() {
                LOOK
            } else {
                Duration::ZERO
            };
            match source.read(usize::MAX, wait)? {
                Chunk::Bytes(bytes) => self.piece(&bytes)?,
                Chunk::Nothing if self.head.is_empty() => {
                    let is_upgraded = matches!(self.delimited, Delimited::Upgraded);
                    if !is_upgraded && client.has_hung_up() {
                        return Err(ErrorKind::ConnectionAborted.into());
                    }
                }
                Chunk::Nothing => self.write(&[])?,
                Chunk::End => return self.end(),
            }
        }
    }

    fn piece(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.count += bytes.len() as u64;
        match self.delimited {
            Delimited::Length(length) if self.count > length => {
                Err(io::Error::other("the body is longer than announced"))
            }
            Delimited::Chunked => {
                let size = format!("{:x}\r\n", bytes.len());
                self.write(&[size.as_bytes(), bytes, b"\r\n"])
            }
            _ => self.write(&[bytes]),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        match self.delimited {
            Delimited::Length(length) if self.count < length => {
                Err(ErrorKind::UnexpectedEof.into())
            }
            Delimited::Chunked => self.write(&[b"0\r\n\r\n"]),
            Delimited::Upgraded => {
                self.write(&[])?;
                self.stream.shutdown(Shutdown::Write)
            }
            Delimited::Length(_) | Delimited::Close | Delimited::Nothing => self.write(&[]),
        }
    }

    // Everything in one system call, as far as the connection takes it.
    fn write(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let head = std::mem::take(&mut self.head);
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(parts.len() + 1);
        slices.extend(
            [head.as_slice()]
                .iter()
                .chain(parts)
                .map(|part| IoSlice::new(part)),
        );
        let mut left = slices.as_mut_slice();
        IoSlice::advance_slices(&mut left, 0);
        let deadline = Instant::now() + self.patience;
        while !left.is_empty() {
            match (&mut &*self.stream).write_vectored(left) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut left, count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if !left.is_empty() && Instant::now() >= deadline {
                return Err(ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }
}
