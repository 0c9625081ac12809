//! Reading the requests of one connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{StatusCode, header};

use super::handler::{Handler, Takes};
use super::incoming::Incoming;
use super::options::HttpLimits;
use crate::base::budget::Share;
use crate::base::connect::is_timeout;
use crate::http::bad_request::BadRequest;
use crate::http::body::{Beginning, Bounded, Resumed, begin};
use crate::http::chunked::{Decoder, is_token};
use crate::http::content::Rest;
use crate::http::framing::Framing;
use crate::http::head::{self, Head, Scanner};
use crate::http::{Body, Source};

const EMPTY_LINE: &[u8] = b"\r\n";

/// How many bytes of a head are read at a time, and of a body as a start. glibc's allocator gives and takes
/// what is no larger in a few instructions (up to 1,032 bytes).
const READ_BYTES: usize = 1000;

/// How many bytes of a chunked body are read at a time.
const READ_CHUNKED_BYTES: usize = 16 * 1024;

/// A chunked body that pauses for longer than this is passed on as it comes.
const PAUSE: Duration = Duration::from_millis(5);

/// How long the first request of a connection may take that was accepted as the server stopped.
const STOPPING_TIMEOUT: Duration = Duration::from_millis(100);

/// What a connection shares with the server.
pub(super) struct Slot {
    pub stream: Arc<TcpStream>,
    pub peer: SocketAddr,
    /// Between requests or within one that is not complete. When the server stops, it lets such
    /// connections read what has arrived already, and no more.
    pub reading: AtomicBool,
}

/// Why no further request can be read.
pub(super) enum Stop {
    /// The client is gone or idle: there is nobody to answer.
    Silent,
    /// The request is refused.
    Refused(BadRequest),
}

impl From<BadRequest> for Stop {
    fn from(bad: BadRequest) -> Stop {
        Stop::Refused(bad)
    }
}

const TOO_SLOW: BadRequest = BadRequest::with(
    StatusCode::REQUEST_TIMEOUT,
    "the request came too slowly (head_timeout_ms and body_timeout_ms of the gateway)",
);

/// What is read, and how far.
pub(super) struct Reading<'a> {
    pub slot: &'a Slot,
    pub limits: &'a HttpLimits,
    pub stopping: &'a AtomicBool,
    // What the bodies of the present request and its answer take.
    pub share: Share,
    // The present request is HEAD, as far as is known; its answer has no body.
    pub is_head: bool,
    // What was read and not used yet.
    buffer: Vec<u8>,
    // What the socket's read time-out is set to; setting it is a system call.
    read_timeout: Option<Duration>,
}

/// A request, and where the rest of its body comes from if it is not all here.
pub(super) struct Arrived {
    pub head: Head,
    pub body: Body,
    pub incoming: Option<Arc<Incoming>>,
}

impl<'a> Reading<'a> {
    pub fn new(
        slot: &'a Slot,
        limits: &'a HttpLimits,
        stopping: &'a AtomicBool,
        share: Share,
    ) -> Reading<'a> {
        Reading {
            slot,
            limits,
            stopping,
            share,
            is_head: false,
            buffer: Vec::new(),
            read_timeout: None,
        }
    }

    /// Reads the next one, its body in the form in which the handler takes it.
    ///
    /// Errors: there is none, or it is refused.
    pub fn read_request(&mut self, handler: &dyn Handler) -> Result<Arrived, Stop> {
        self.slot.reading.store(true, Ordering::SeqCst);
        self.is_head = false;
        if self.buffer.is_empty() || self.buffer == EMPTY_LINE {
            self.buffer.clear();
            self.wait_for_request()?;
        }
        let head = self.read_head()?;
        let deadline = Instant::now() + self.limits.body_timeout;
        let (body, incoming) = match takes(&head, handler) {
            Takes::Whole => (self.read_whole(&head, deadline)?, None),
            Takes::Stream(inline) => self.begin(&head, inline, deadline)?,
        };
        self.slot.reading.store(false, Ordering::SeqCst);
        if self.buffer.is_empty() {
            // The answer may take seconds, and a thousand others wait too.
            self.buffer = Vec::new();
        }
        Ok(Arrived {
            head,
            body,
            incoming,
        })
    }

    fn read_whole(&mut self, head: &Head, deadline: Instant) -> Result<Body, Stop> {
        Ok(match head.framing {
            Framing::Empty => Body::Empty,
            Framing::Length(length) => self.read_length(length, head, deadline)?.into(),
            Framing::Chunked => self.read_chunks(head, deadline)?.into(),
        })
    }

    // A body of up to `inline` bytes as a whole; of a longer one, or one that takes its time, what is
    // here.
    fn begin(
        &mut self,
        head: &Head,
        inline: usize,
        deadline: Instant,
    ) -> Result<(Body, Option<Arc<Incoming>>), Stop> {
        let limit = Some(self.limits.max_body_bytes).filter(|limit| *limit > 0);
        let rest = match head.framing {
            Framing::Length(length) => {
                if let Some(limit) = limit.filter(|limit| length > *limit as u64) {
                    return Err(BadRequest::body_over(limit).into());
                }
                if length <= inline as u64 {
                    return Ok((self.read_length(length, head, deadline)?.into(), None));
                }
                Rest::Length(length)
            }
            Framing::Chunked => Rest::Chunked(Decoder::new(usize::MAX)),
            Framing::Empty => Rest::Close,
        };
        let buffer = std::mem::take(&mut self.buffer);
        let waits = head.expects_continue && buffer.is_empty();
        let stream = Arc::clone(&self.slot.stream);
        let incoming = Arc::new(Incoming::new(stream, rest, buffer, waits));
        let limit = limit.map(|limit| limit as u64);
        let bounded = Bounded::new(Arc::clone(&incoming), limit);
        let source = Arc::new(bounded) as Arc<dyn Source>;
        if head.framing != Framing::Chunked || waits {
            return Ok((Body::Stream(source), Some(incoming)));
        }
        let beginning = begin(&*source, inline, PAUSE).map_err(|error| self.unread(&error))?;
        let (Beginning::All(read) | Beginning::Some(read)) = &beginning;
        self.afford(read.len())?;
        Ok(match beginning {
            Beginning::All(read) => {
                self.is_behind(Some(&incoming), false);
                (read.into(), None)
            }
            Beginning::Some(read) => {
                let resumed = Arc::new(Resumed::new(read, source));
                (Body::Stream(resumed), Some(incoming))
            }
        })
    }

    fn unread(&self, error: &io::Error) -> Stop {
        match error.kind() {
            ErrorKind::FileTooLarge => BadRequest::body_over(self.limits.max_body_bytes).into(),
            ErrorKind::InvalidData => BadRequest::new("a chunk is malformed").into(),
            _ => Stop::Silent,
        }
    }

    fn wait_for_request(&mut self) -> Result<(), Stop> {
        // In this order here and the other way round in the server: it sets `stopping` first,
        // then looks at `reading`. So either this sees the stop, or the server sees this.
        let timeout = match self.stopping.load(Ordering::SeqCst) {
            false => self.limits.idle_timeout,
            true => STOPPING_TIMEOUT,
        };
        match self.fill(READ_BYTES, timeout) {
            Ok(count) if count > 0 => Ok(()),
            _ => Err(Stop::Silent),
        }
    }

    fn read_head(&mut self) -> Result<Head, Stop> {
        let deadline = Instant::now() + self.limits.head_timeout;
        let mut scanner = Scanner::default();
        let mut first = true;
        loop {
            // RFC 9112, section 2.2: one empty line before a request is to be ignored.
            if first && self.buffer.len() >= 2 {
                first = false;
                if self.buffer.starts_with(EMPTY_LINE) {
                    self.buffer.drain(..2);
                }
                self.is_head = self.buffer.starts_with(b"HEAD ");
            }
            // What speaks another protocol need not be waited for.
            if self.buffer.first().is_some_and(|byte| !begins_head(*byte)) {
                return Err(BadRequest::new("a request begins with a method").into());
            }
            if !first && let Some(length) = scanner.scan(&self.buffer)? {
                self.check_head_size(length)?;
                self.is_head = self.buffer.starts_with(b"HEAD ");
                let head = head::parse(&self.buffer[..length])?;
                self.buffer.drain(..length);
                return Ok(head);
            }
            self.check_head_size(self.buffer.len())?;
            self.fill_before(READ_BYTES.max(self.buffer.len()), deadline)?;
        }
    }

    fn check_head_size(&self, size: usize) -> Result<(), BadRequest> {
        let limit = self.limits.max_head_bytes;
        if size > limit {
            // RFC 9112, section 3.
            if !self.buffer[..limit].contains(&b'\r') {
                let (status, what) = (StatusCode::URI_TOO_LONG, "the request line is too long");
                return Err(BadRequest::over(status, what, "max_head_bytes", limit));
            }
            return Err(BadRequest::over(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the request line and the headers are too long",
                "max_head_bytes",
                limit,
            ));
        }
        Ok(())
    }

    fn read_length(&mut self, length: u64, head: &Head, deadline: Instant) -> Result<Bytes, Stop> {
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= self.limits.whole_bytes())
            .ok_or_else(|| BadRequest::body_over(self.limits.whole_bytes()))?;
        let rest = self.buffer.split_off(length.min(self.buffer.len()));
        let mut body = std::mem::replace(&mut self.buffer, rest);
        if body.len() < length {
            self.send_continue(head, body.is_empty())?;
        }
        let mut afforded = 0;
        while body.len() < length {
            // Memory follows what really comes, not what was announced; and in few steps, since each
            // leaves a hole of the size before it.
            if body.len() >= afforded {
                let wanted = length.min(4 * body.len().max(READ_BYTES));
                self.afford(wanted - afforded)?;
                afforded = wanted;
                body.reserve_exact(wanted - body.len());
            }
            let next = (afforded - body.len()).min(32 * READ_BYTES);
            let left = time_left(deadline)?;
            used(self.append(&mut body, next, left))?;
        }
        self.afford(length - afforded)?;
        Ok(body.into())
    }

    fn read_chunks(&mut self, head: &Head, deadline: Instant) -> Result<Bytes, Stop> {
        let mut decoder = Decoder::new(self.limits.whole_bytes());
        let mut body = Vec::new();
        if self.buffer.is_empty() {
            self.send_continue(head, true)?;
        }
        loop {
            let had = body.len();
            let taken = decoder.decode(&self.buffer, &mut body)?;
            self.afford(body.len() - had)?;
            self.buffer.drain(..taken);
            if decoder.is_done() {
                return Ok(body.into());
            }
            self.fill_before(READ_CHUNKED_BYTES, deadline)?;
        }
    }

    fn afford(&mut self, bytes: usize) -> Result<(), BadRequest> {
        match self.share.grow(bytes) {
            true => Ok(()),
            false => Err(BadRequest::over(
                StatusCode::SERVICE_UNAVAILABLE,
                "there is no memory for this body while so many others are being received",
                "max_buffered_bytes",
                self.limits.buffered_bytes(),
            )),
        }
    }

    // RFC 9110, section 10.1.1: not needed once the client has begun to send.
    fn send_continue(&mut self, head: &Head, nothing_came: bool) -> Result<(), Stop> {
        if head.expects_continue && nothing_came {
            let line = b"HTTP/1.1 100 Continue\r\n\r\n";
            (&*self.slot.stream)
                .write_all(line)
                .map_err(|_| Stop::Silent)?;
        }
        Ok(())
    }

    fn fill_before(&mut self, at_most: usize, deadline: Instant) -> Result<(), Stop> {
        let left = time_left(deadline)?;
        used(self.fill(at_most, left)).map(|_| ())
    }

    fn fill(&mut self, at_most: usize, timeout: Duration) -> io::Result<usize> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = self.append(&mut buffer, at_most, timeout);
        self.buffer = buffer;
        read
    }

    fn append(
        &mut self,
        buffer: &mut Vec<u8>,
        at_most: usize,
        timeout: Duration,
    ) -> io::Result<usize> {
        let have = buffer.len();
        // Not the double, as growing by itself would.
        buffer.reserve_exact(at_most);
        buffer.resize(have + at_most, 0);
        let read = self.read(&mut buffer[have..], timeout);
        buffer.truncate(have + *read.as_ref().unwrap_or(&0));
        read
    }

    fn read(&mut self, target: &mut [u8], timeout: Duration) -> io::Result<usize> {
        if self.read_timeout != Some(timeout) {
            self.slot.stream.set_read_timeout(Some(timeout))?;
            self.read_timeout = Some(timeout);
        }
        loop {
            match (&*self.slot.stream).read(target) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Whether the connection is at the beginning of the next request. While the answer is passed on as
    /// it comes, the rest of the request may go on too.
    pub fn is_behind(&mut self, incoming: Option<&Incoming>, goes_on: bool) -> bool {
        let Some(incoming) = incoming else {
            return true;
        };
        // It has set one of its own.
        self.read_timeout = None;
        if goes_on && !incoming.is_done() {
            return false;
        }
        let behind = incoming.behind();
        let is_behind = behind.is_some();
        self.buffer = behind.unwrap_or_default();
        is_behind
    }
}

// The first byte of a method, or of the empty line before it. Blanks and the like have errors of
// their own.
fn begins_head(byte: u8) -> bool {
    is_token(byte) || byte == b'\r' || byte == b'\n'
}

// A deadline for the whole, not a time-out for each read: a byte a second must not hold a thread.
fn time_left(deadline: Instant) -> Result<Duration, BadRequest> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(TOO_SLOW),
        left => Ok(left),
    }
}

// What a read within a request means.
fn used(read: io::Result<usize>) -> Result<usize, Stop> {
    match read {
        Ok(0) => Err(Stop::Silent),
        Ok(count) => Ok(count),
        Err(error) if is_timeout(&error) => Err(TOO_SLOW.into()),
        Err(_) => Err(Stop::Silent),
    }
}

// In which form the body of a request is to be read.
fn takes(head: &Head, handler: &dyn Handler) -> Takes {
    let asks_upgrade = head.request.headers().contains_key(header::UPGRADE);
    match head.framing == Framing::Empty && !asks_upgrade {
        true => Takes::Whole,
        false => handler.takes(&head.request),
    }
}
