//! A request whose body goes on as it comes, and whose answer may come meanwhile: an upload, or an
//! upgrade. ureq sends all of a request before it reads anything, and knows no upgrade.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode, header};

use super::answer::{self, End, Found, Head, MAX_HEAD};
use super::connection::Connection;
use super::error::UpstreamError;
use crate::base::connect::is_timeout;
use crate::base::threads::lock;
use crate::http::chunked::Decoder;
use crate::http::content::{Content, Rest};
use crate::http::sending::Sending;
use crate::http::{Chunk, Request, Source, has_body};

/// How long a body is waited for at a time. Who waits is woken when it is given up.
const LONG: Duration = Duration::from_secs(3600);
/// How often it is looked whether the time for an answer is up: that may be later than it was.
const LOOK: Duration = Duration::from_millis(200);
/// How many bytes of a head are read at a time.
const HEAD_READ: usize = 4 * 1024;

/// A connection on which the head of a request was sent.
pub struct Duplex {
    stream: Arc<Connection>,
    method: Method,
    sending: Sending,
    upgrades: bool,
}

/// The head of an answer, and where its body comes from, if it has one.
pub(super) struct Begun {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Option<DuplexBody>,
}

impl Duplex {
    /// Sends the head: of a request with the body that it has, which is not sent yet, or of one for an
    /// upgrade, if it has that field.
    ///
    /// Errors: the connection broke.
    pub(super) fn open(
        stream: Connection,
        request: &Request,
        timeout: Duration,
    ) -> Result<Duplex, UpstreamError> {
        let length = request.body().stream().and_then(|source| source.length());
        let upgrades = request.headers().contains_key(header::UPGRADE);
        let sending = match length {
            _ if upgrades => Sending::Close,
            Some(length) => Sending::Length(length),
            None => Sending::Chunked,
        };
        let head = head(request, sending);
        let sent = stream
            .set_write_timeout(Some(timeout.max(LOOK)))
            .and_then(|()| (&stream).write_all(&head))
            .and_then(|()| stream.set_write_timeout(None));
        sent.map_err(|error| UpstreamError::Broken(error.to_string()))?;
        Ok(Duplex {
            stream: Arc::new(stream),
            method: request.method().clone(),
            sending,
            upgrades,
        })
    }

    /// What ends the connection, whoever waits for it.
    pub fn cutter(&self) -> impl Fn() + Send + Sync + 'static {
        let stream = Arc::clone(&self.stream);
        move || {
            stream.cut();
        }
    }

    /// What sends the body, on another thread: all of it, as it comes. If it is cut off, the connection
    /// is too.
    pub fn sender(&self) -> impl FnOnce(&dyn Source) -> io::Result<()> + Send + 'static {
        let stream = Arc::clone(&self.stream);
        let (sending, upgrades) = (self.sending, self.upgrades);
        move |source| {
            let sent = send(source, &stream, sending);
            match &sent {
                Ok(()) if upgrades => {
                    stream.end_sending();
                }
                Ok(()) => {}
                Err(Failed::Source(_)) => {
                    stream.cut();
                }
                // It may have answered before it stopped reading.
                Err(Failed::Upstream(_)) => {}
            }
            sent.map_err(|(Failed::Source(error) | Failed::Upstream(error))| error)
        }
    }

    /// Waits for the head of the answer; until when, is asked again and again.
    ///
    /// Errors: none came, or none that is HTTP.
    pub(super) fn answer(&self, until: &dyn Fn() -> Instant) -> Result<Begun, UpstreamError> {
        let mut read = Vec::new();
        let broken = |error: io::Error| UpstreamError::Broken(error.to_string());
        loop {
            match answer::find(&read, self.upgrades).map_err(UpstreamError::Broken)? {
                Found::Interim(length) => drop(read.drain(..length)),
                Found::Final(length, head) => {
                    read.drain(..length);
                    return Ok(self.begun(head, read));
                }
                Found::Nothing if read.len() >= MAX_HEAD => {
                    let flaw = format!("the head of its answer is larger than {MAX_HEAD} bytes");
                    return Err(UpstreamError::Broken(flaw));
                }
                Found::Nothing => {
                    let left = until().saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(UpstreamError::TimedOut);
                    }
                    self.stream
                        .set_read_timeout(Some(left.min(LOOK)))
                        .map_err(broken)?;
                    let mut buffer = [0; HEAD_READ];
                    match (&*self.stream).read(&mut buffer) {
                        Ok(0) => return Err(broken(ErrorKind::UnexpectedEof.into())),
                        Ok(count) => read.extend_from_slice(&buffer[..count]),
                        Err(error) if is_timeout(&error) => {}
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => return Err(broken(error)),
                    }
                }
            }
        }
    }

    fn begun(&self, head: Head, buffer: Vec<u8>) -> Begun {
        let is_upgraded = head.status == StatusCode::SWITCHING_PROTOCOLS;
        let rest = match head.end {
            _ if is_upgraded => Rest::Close,
            End::Length(length) => Rest::Length(length),
            End::Chunked => Rest::Chunked(Decoder::new(usize::MAX)),
            End::Close => Rest::Close,
        };
        let has_body = is_upgraded || self.method != Method::HEAD && has_body(head.status);
        let body = has_body.then(|| {
            let content = Content::new(rest, buffer);
            DuplexBody {
                stream: Arc::clone(&self.stream),
                length: content.length(),
                state: Mutex::new(State {
                    content,
                    timeout: None,
                }),
            }
        });
        Begun {
            status: head.status,
            headers: head.headers,
            body,
        }
    }
}

fn head(request: &Request, sending: Sending) -> Vec<u8> {
    let uri = request.uri();
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let mut head = format!("{} {target} HTTP/1.1\r\n", request.method());
    if !request.headers().contains_key(header::HOST) {
        head.push_str(&format!("host: {authority}\r\n"));
    }
    head.push_str(&match sending {
        Sending::Close => "connection: upgrade\r\n".to_owned(),
        Sending::Length(length) => format!("content-length: {length}\r\n"),
        Sending::Chunked => "transfer-encoding: chunked\r\n".to_owned(),
    });
    let mut head = head.into_bytes();
    for (name, value) in request.headers() {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

enum Failed {
    Source(io::Error),
    Upstream(io::Error),
}

impl Failed {
    // A body that is not as long as it was announced is its source's fault.
    fn of(error: io::Error) -> Failed {
        match error.kind() {
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => Failed::Source(error),
            _ => Failed::Upstream(error),
        }
    }
}

fn send(source: &dyn Source, stream: &Connection, mut sending: Sending) -> Result<(), Failed> {
    loop {
        match source.read(usize::MAX, LONG).map_err(Failed::Source)? {
            Chunk::Bytes(bytes) => sending.piece(stream, b"", &bytes, None),
            Chunk::Nothing => Ok(()),
            Chunk::End => return sending.end(stream, b"", None).map_err(Failed::of),
        }
        .map_err(Failed::of)?;
    }
}

/// The body of an answer, or what comes once the connection is upgraded.
pub(super) struct DuplexBody {
    stream: Arc<Connection>,
    length: Option<u64>,
    state: Mutex<State>,
}

struct State {
    content: Content,
    timeout: Option<Duration>,
}

impl Source for DuplexBody {
    fn length(&self) -> Option<u64> {
        self.length
    }

    fn read(&self, max: usize, patience: Duration) -> io::Result<Chunk> {
        let mut state = lock(&self.state);
        loop {
            if let Some(chunk) = state.content.next(max)? {
                return Ok(chunk);
            }
            // Zero would mean no time-out.
            let patience = patience.max(Duration::from_millis(1));
            if state.timeout != Some(patience) {
                self.stream.set_read_timeout(Some(patience))?;
                state.timeout = Some(patience);
            }
            match state.content.fill(&*self.stream) {
                Err(error) if is_timeout(&error) => return Ok(Chunk::Nothing),
                other => other?,
            }
        }
    }

    fn cancel(&self) {
        self.stream.cut();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::http::Body;

    /// A body that was promised to be so long, and what comes of it.
    struct Promised(Option<u64>, Mutex<VecDeque<&'static str>>);

    impl Source for Promised {
        fn length(&self) -> Option<u64> {
            self.0
        }

        fn read(&self, _: usize, _: Duration) -> io::Result<Chunk> {
            Ok(match lock(&self.1).pop_front() {
                Some(part) => Chunk::Bytes(part.into()),
                None => Chunk::End,
            })
        }

        fn cancel(&self) {}
    }

    /// What an upstream gets behind the head, and whether all was sent.
    fn sent(length: Option<u64>, parts: &[&'static str]) -> (String, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let source = Arc::new(Promised(
            length,
            Mutex::new(parts.iter().copied().collect()),
        ));
        let mut request = Request::new(Body::Stream(source.clone()));
        let uri = format!("http://{}/x", listener.local_addr().unwrap());
        *request.uri_mut() = uri.parse().unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Connection::plain(stream);
        let duplex = Duplex::open(stream, &request, Duration::from_secs(30)).unwrap();
        let (mut upstream, _) = listener.accept().unwrap();
        let is_sent = duplex.sender()(&*source).is_ok();
        drop(duplex);
        let mut got = String::new();
        upstream.read_to_string(&mut got).unwrap();
        let (_, body) = got.split_once("\r\n\r\n").unwrap();
        (body.to_owned(), is_sent)
    }

    #[test]
    fn a_body_has_the_length_that_was_promised() {
        assert_eq!(sent(Some(4), &["ab", "cd"]), ("abcd".into(), true));
        let chunks = "2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert_eq!(sent(None, &["ab", "c"]), (chunks.into(), true));
        // What came behind it would be a request of its own, that nobody has looked at.
        assert_eq!(
            sent(Some(4), &["ab", "cdGET /secret"]),
            ("ab".into(), false)
        );
        assert_eq!(
            sent(Some(4), &["abcd", "GET /secret"]),
            ("abcd".into(), false)
        );
        assert_eq!(sent(Some(4), &["ab"]), ("ab".into(), false));
    }
}
