//! One HTTP connection of the guarded front: read, answer, again.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode, Version};

use super::handler::{Client, Handler};
use super::options::HttpLimits;
use super::response::write_head;
use crate::base::budget::{Budget, Share};
use crate::base::connect::is_timeout;
use crate::http::bad_request::BadRequest;
use crate::http::chunked::{Decoder, is_token};
use crate::http::framing::Framing;
use crate::http::head::{self, Head, Scanner};
use crate::http::{
    Failure, Problem, Request, RequestId, Response, Unanswered, X_REQUEST_ID, has_body,
};

const EMPTY_LINE: &[u8] = b"\r\n";

/// How many bytes of a head are read at a time, and of a body as a start.
const READ_BYTES: usize = 2048;

/// How many bytes of a chunked body are read at a time.
const READ_CHUNKED_BYTES: usize = 16 * 1024;

/// Bodies up to this size are sent together with their head, in one write.
const ONE_WRITE_BYTES: usize = 16 * 1024;

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

/// How a connection ended.
pub(super) enum Ending {
    /// Nothing is left to be said: close it.
    Close,
    /// The client may still be sending: close it gently.
    Linger,
}

/// Why no further request can be read.
enum Stop {
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

pub(super) struct Connection<'a> {
    slot: &'a Slot,
    limits: &'a HttpLimits,
    handler: &'a dyn Handler,
    stopping: &'a AtomicBool,
    // What the bodies of the present request and its answer take.
    share: Share,
    // The present request is HEAD, as far as is known; its answer has no body.
    is_head: bool,
    // What was read and not used yet.
    buffer: Vec<u8>,
    // What the socket's read time-out is set to; setting it is a system call.
    read_timeout: Option<Duration>,
    out: Vec<u8>,
}

impl<'a> Connection<'a> {
    pub(super) fn new(
        slot: &'a Slot,
        limits: &'a HttpLimits,
        handler: &'a dyn Handler,
        stopping: &'a AtomicBool,
        budget: &Arc<Budget>,
    ) -> Connection<'a> {
        Connection {
            slot,
            limits,
            handler,
            stopping,
            share: budget.share(),
            is_head: false,
            buffer: Vec::new(),
            read_timeout: None,
            out: Vec::new(),
        }
    }

    /// Serves requests until one side has had enough.
    pub(super) fn serve(mut self) -> Ending {
        loop {
            let (head, body) = match self.read_request() {
                Ok(request) => request,
                Err(Stop::Silent) => return Ending::Close,
                Err(Stop::Refused(bad)) => return self.refuse(bad),
            };
            let mut request = head.request;
            *request.body_mut() = body.into();
            let method = request.method().clone();
            let version = request.version();
            let response = self.answer(request);
            if response.extensions().get::<Unanswered>().is_some() {
                return Ending::Close;
            }
            let response = self.affordable(response);
            let keep_alive = head.keep_alive && !self.stopping.load(Ordering::SeqCst);
            if self.write(&response, &method, version, keep_alive).is_err() {
                return Ending::Close;
            }
            if !keep_alive {
                return Ending::Linger;
            }
            self.share.clear();
        }
    }

    // Clients that ask for much and take it slowly must not fill the memory.
    fn affordable(&mut self, response: Response) -> Response {
        if self.share.grow(response.body().len()) {
            return response;
        }
        let given = response.headers().get(X_REQUEST_ID);
        let id = RequestId::given(given).unwrap_or_else(RequestId::random);
        let failure = Failure::NoMemoryForAnswer(self.limits.buffered_bytes());
        log::warn!("request {id}: 503 at the gateway: {failure}");
        Problem::from(failure).response(&id)
    }

    fn answer(&self, request: Request) -> Response {
        let given = request.headers().get(X_REQUEST_ID).cloned();
        let handled = catch_unwind(AssertUnwindSafe(|| {
            let client = Client {
                peer: self.slot.peer,
                connection: Some(&self.slot.stream),
            };
            self.handler.handle(request, &client)
        }));
        handled.unwrap_or_else(|_| {
            let id = RequestId::given(given.as_ref()).unwrap_or_else(RequestId::random);
            log::error!("request {id}: the handler panicked");
            Problem::from(Failure::Defect).response(&id)
        })
    }

    fn refuse(&mut self, bad: BadRequest) -> Ending {
        log::debug!("{}: {} {}", self.slot.peer, bad.status, bad.reason);
        let response = Problem::from(Failure::from(bad)).response(&RequestId::random());
        let method = match self.is_head {
            true => Method::HEAD,
            false => Method::GET,
        };
        match self.write(&response, &method, Version::HTTP_11, false) {
            Ok(()) => Ending::Linger,
            Err(_) => Ending::Close,
        }
    }

    fn read_request(&mut self) -> Result<(Head, Bytes), Stop> {
        self.slot.reading.store(true, Ordering::SeqCst);
        self.is_head = false;
        if self.buffer.is_empty() || self.buffer == EMPTY_LINE {
            self.buffer.clear();
            self.wait_for_request()?;
        }
        let head = self.read_head()?;
        let deadline = Instant::now() + self.limits.body_timeout;
        let body = match head.framing {
            Framing::Empty => Bytes::new(),
            Framing::Length(length) => self.read_length(length, &head, deadline)?,
            Framing::Chunked => self.read_chunks(&head, deadline)?,
        };
        self.slot.reading.store(false, Ordering::SeqCst);
        if self.buffer.is_empty() {
            // The answer may take seconds, and a thousand others wait too.
            self.buffer = Vec::new();
        }
        Ok((head, body))
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
            self.fill_before(READ_BYTES, deadline)?;
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
            .filter(|length| *length <= self.limits.max_body_bytes)
            .ok_or_else(|| BadRequest::body_over(self.limits.max_body_bytes))?;
        let rest = self.buffer.split_off(length.min(self.buffer.len()));
        let mut body = std::mem::replace(&mut self.buffer, rest);
        if body.len() < length {
            self.send_continue(head, body.is_empty())?;
        }
        let mut afforded = 0;
        while body.len() < length {
            // Memory follows what really comes, not what was announced.
            let next = (body.len() / 2).clamp(READ_BYTES, 32 * READ_BYTES);
            let next = next.min(length - body.len());
            let wanted = body.len() + next;
            self.afford(wanted.saturating_sub(afforded))?;
            afforded = wanted.max(afforded);
            let left = time_left(deadline)?;
            used(self.append(&mut body, next, left))?;
        }
        self.afford(length - afforded)?;
        Ok(body.into())
    }

    fn read_chunks(&mut self, head: &Head, deadline: Instant) -> Result<Bytes, Stop> {
        let mut decoder = Decoder::new(self.limits.max_body_bytes);
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

    fn write(
        &mut self,
        response: &Response,
        method: &Method,
        version: Version,
        keep_alive: bool,
    ) -> io::Result<()> {
        self.out.clear();
        write_head(&mut self.out, response, method, version, keep_alive);
        let body = match has_body(response.status()) && *method != Method::HEAD {
            true => response.body().as_bytes(),
            false => &[],
        };
        let deadline = Instant::now() + self.limits.body_timeout;
        if body.len() <= ONE_WRITE_BYTES {
            self.out.extend_from_slice(body);
            self.write_before(&self.out, deadline)
        } else {
            self.write_before(&self.out, deadline)?;
            self.write_before(body, deadline)
        }
    }

    // The send time-out that the server set bounds each write; the deadline bounds them all.
    fn write_before(&self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            match (&*self.slot.stream).write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if !bytes.is_empty() && Instant::now() >= deadline {
                return Err(ErrorKind::TimedOut.into());
            }
        }
        Ok(())
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
