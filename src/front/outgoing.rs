//! An answer whose body is passed on as it comes.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::handler::{Client, Cut};
use super::response::Delimited;
use crate::http::sending::{Sending, write_all};
use crate::http::{Chunk, Source};

/// How often it is looked whether the client is still there while there is nothing to send.
const LOOK: Duration = Duration::from_millis(200);

/// Writes a body behind its head, each piece as soon as it is here; `head` goes with the first one, or
/// alone if that takes a while. A piece may take the client as long as `patience`. Returns how many bytes
/// of it were written.
///
/// Errors: it was not written to its end, and the client is made to see that; who is to blame.
pub(super) fn pour(
    source: &dyn Source,
    delimited: Delimited,
    head: Vec<u8>,
    client: &Client<'_>,
    stream: &TcpStream,
    patience: Duration,
) -> (u64, Result<(), Cut>) {
    let sending = match delimited {
        Delimited::Length(length) => Sending::Length(length),
        Delimited::Chunked => Sending::Chunked,
        Delimited::Close | Delimited::Upgraded => Sending::Close,
        // Whoever sends one in spite of that must not be taken for the next answer.
        Delimited::Nothing => {
            source.cancel();
            let written = write_all(stream, &[&head], Some(patience));
            return (0, written.map_err(|_| Cut::Client));
        }
    };
    let mut pouring = Pouring {
        stream,
        sending,
        is_upgraded: delimited == Delimited::Upgraded,
        head,
        patience,
        written: 0,
        has_source_failed: false,
    };
    let poured = pouring.whole(source, client);
    if poured.is_err() {
        source.cancel();
    }
    let blamed = match pouring.has_source_failed {
        true => Cut::Source,
        false => Cut::Client,
    };
    (pouring.written, poured.map_err(|_| blamed))
}

struct Pouring<'a> {
    stream: &'a TcpStream,
    sending: Sending,
    is_upgraded: bool,
    head: Vec<u8>,
    patience: Duration,
    // How many bytes of the body.
    written: u64,
    has_source_failed: bool,
}

impl Pouring<'_> {
    // Where the end of the connection is the end of the body, an orderly one before its time would be a
    // lie. So until then it would be reset, even if this process is killed.
    fn whole(&mut self, source: &dyn Source, client: &Client<'_>) -> io::Result<()> {
        let ends_with_connection = self.sending == Sending::Close;
        if ends_with_connection {
            SockRef::from(self.stream).set_linger(Some(Duration::ZERO))?;
        }
        self.run(source, client)?;
        match ends_with_connection {
            true => SockRef::from(self.stream).set_linger(None),
            false => Ok(()),
        }
    }

    fn run(&mut self, source: &dyn Source, client: &Client<'_>) -> io::Result<()> {
        loop {
            let wait = if self.head.is_empty() {
                LOOK
            } else {
                Duration::ZERO
            };
            let head = std::mem::take(&mut self.head);
            let read = source.read(usize::MAX, wait);
            self.has_source_failed = read.is_err();
            match read? {
                Chunk::Bytes(bytes) => {
                    let patience = Some(self.patience);
                    self.sending.piece(self.stream, &head, &bytes, patience)?;
                    self.written += bytes.len() as u64;
                }
                Chunk::Nothing if head.is_empty() => {
                    if !self.is_upgraded && client.has_hung_up() {
                        return Err(ErrorKind::ConnectionAborted.into());
                    }
                }
                Chunk::Nothing => write_all(self.stream, &[&head], Some(self.patience))?,
                Chunk::End => {
                    self.sending.end(self.stream, &head, Some(self.patience))?;
                    return match self.is_upgraded {
                        true => self.stream.shutdown(Shutdown::Write),
                        false => Ok(()),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;

    use super::*;

    #[derive(Default)]
    struct Endless(AtomicBool);

    impl Source for Endless {
        fn length(&self) -> Option<u64> {
            None
        }

        fn read(&self, _: usize, _: Duration) -> io::Result<Chunk> {
            Ok(Chunk::Bytes(Bytes::from_static(b"HTTP/1.1 200 ")))
        }

        fn cancel(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn an_answer_that_has_no_body_gets_none() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let source = Endless::default();
        let head = b"HTTP/1.1 304 ".to_vec();
        let (to, patience) = (Client::patient(), Duration::from_secs(30));
        let poured = pour(&source, Delimited::Nothing, head, &to, &stream, patience);
        assert!(matches!(poured, (0, Ok(()))));
        drop(stream);
        let mut got = String::new();
        client.read_to_string(&mut got).unwrap();
        assert_eq!(got, "HTTP/1.1 304 ");
        assert!(source.0.load(Ordering::SeqCst), "nobody reads it");
    }
}
