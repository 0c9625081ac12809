//! One HTTP connection of the guarded front: read, answer, again.

use std::io::{self, ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{Method, Version};

use super::handler::{Client, Cut, Exchange, Handler};
use super::incoming::Incoming;
use super::options::HttpLimits;
use super::outgoing::pour;
use super::reading::{Arrived, Reading, Slot, Stop};
use super::response::{Delimited, write_head};
use crate::base::budget::Budget;
use crate::http::bad_request::BadRequest;
use crate::http::{
    Failure, Problem, Request, RequestId, Response, Unanswered, X_REQUEST_ID, has_body,
};

/// Bodies up to this size are sent together with their head, in one write.
const ONE_WRITE_BYTES: usize = 16 * 1024;

/// How a connection ended.
pub(super) enum Ending {
    /// Nothing is left to be said: close it.
    Close,
    /// The client may still be sending: close it gently.
    Linger,
}

pub(super) struct Connection<'a> {
    reading: Reading<'a>,
    slot: &'a Slot,
    limits: &'a HttpLimits,
    handler: &'a dyn Handler,
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
            reading: Reading::new(slot, limits, stopping, budget.share()),
            slot,
            limits,
            handler,
            out: Vec::new(),
        }
    }

    /// Serves requests until one side has had enough.
    pub(super) fn serve(mut self) -> Ending {
        loop {
            let Arrived {
                head,
                body,
                incoming,
            } = match self.reading.read_request(self.handler) {
                Ok(request) => request,
                Err(Stop::Silent) => return Ending::Close,
                Err(Stop::Refused(bad)) => return self.refuse(bad),
            };
            let begun = Instant::now();
            let mut request = head.request;
            let whole = body.len() as u64;
            *request.body_mut() = body;
            let (method, uri) = (request.method().clone(), request.uri().clone());
            let version = request.version();
            let response = self.answer(request);
            let is_silent = response.extensions().get::<Unanswered>().is_some();
            let response = self.affordable(response);
            let delimited = Delimited::of(&response, &method, version);
            let keep_alive = head.keep_alive
                && delimited != Delimited::Close
                && !self.reading.stopping.load(Ordering::SeqCst)
                && self.is_behind(incoming.as_deref(), &response);
            let (sent, written) = match is_silent {
                true => (0, Err(Cut::Client)),
                false => self.write(&response, &method, version, keep_alive),
            };
            let upgraded = incoming.as_deref();
            let upgraded = upgraded.filter(|_| written.is_ok() && delimited == Delimited::Upgraded);
            if let Some(incoming) = upgraded {
                incoming.wait();
            }
            self.handler.ended(&Exchange {
                peer: self.slot.peer,
                asked: Some((&method, &uri)),
                response: &response,
                received: incoming.as_ref().map_or(whole, |it| it.count()),
                sent,
                cut: written.err(),
                took: begun.elapsed(),
            });
            if written.is_err() || upgraded.is_some() {
                return Ending::Close;
            }
            // It may still be sending, and would not read the answer if it were cut off.
            if let Some(incoming) = incoming.filter(|_| !keep_alive) {
                incoming.drain();
            }
            if !keep_alive {
                return Ending::Linger;
            }
            self.reading.share.clear();
        }
    }

    fn is_behind(&mut self, incoming: Option<&Incoming>, response: &Response) -> bool {
        let goes_on = response.body().stream().is_some();
        self.reading.is_behind(incoming, goes_on)
    }

    // Clients that ask for much and take it slowly must not fill the memory.
    fn affordable(&mut self, response: Response) -> Response {
        if self.reading.share.grow(response.body().len()) {
            return response;
        }
        let given = response.headers().get(X_REQUEST_ID);
        let id = RequestId::given(given).unwrap_or_else(RequestId::random);
        let failure = Failure::NoMemoryForAnswer(self.limits.buffered_bytes());
        let mut refused = Problem::from(failure).response(&id);
        // What is known of the request stays with it.
        let mut known = response.into_parts().0.extensions;
        known.extend(std::mem::take(refused.extensions_mut()));
        *refused.extensions_mut() = known;
        refused
    }

    fn answer(&self, request: Request) -> Response {
        let given = request.headers().get(X_REQUEST_ID).cloned();
        let handled = catch_unwind(AssertUnwindSafe(|| {
            self.handler.handle(request, &self.client())
        }));
        handled.unwrap_or_else(|_| {
            let id = RequestId::given(given.as_ref()).unwrap_or_else(RequestId::random);
            log::error!("request {id}: the handler panicked");
            Problem::from(Failure::Defect).response(&id)
        })
    }

    fn client(&self) -> Client<'_> {
        Client {
            peer: self.slot.peer,
            connection: Some(&self.slot.stream),
        }
    }

    fn refuse(&mut self, bad: BadRequest) -> Ending {
        self.reading.share.clear();
        let response = Problem::from(Failure::from(bad)).response(&RequestId::random());
        let method = match self.reading.is_head {
            true => Method::HEAD,
            false => Method::GET,
        };
        let (sent, written) = self.write(&response, &method, Version::HTTP_11, false);
        self.handler.ended(&Exchange {
            peer: self.slot.peer,
            asked: None,
            response: &response,
            received: 0,
            sent,
            cut: written.err(),
            took: Duration::ZERO,
        });
        match written {
            Ok(()) => Ending::Linger,
            Err(_) => Ending::Close,
        }
    }

    // Returns how many bytes of the body were written, too.
    fn write(
        &mut self,
        response: &Response,
        method: &Method,
        version: Version,
        keep_alive: bool,
    ) -> (u64, Result<(), Cut>) {
        self.out.clear();
        write_head(&mut self.out, response, method, version, keep_alive);
        if let Some(source) = response.body().stream() {
            let head = std::mem::take(&mut self.out);
            let delimited = Delimited::of(response, method, version);
            let (stream, patience) = (&*self.slot.stream, self.limits.body_timeout);
            return pour(&**source, delimited, head, &self.client(), stream, patience);
        }
        let body = match has_body(response.status()) && *method != Method::HEAD {
            true => response.body().as_bytes(),
            false => &[],
        };
        let deadline = Instant::now() + self.limits.body_timeout;
        let written = if body.len() <= ONE_WRITE_BYTES {
            self.out.extend_from_slice(body);
            self.write_before(&self.out, deadline)
        } else {
            let head = self.write_before(&self.out, deadline);
            head.and_then(|()| self.write_before(body, deadline))
        };
        let sent = if written.is_ok() { body.len() } else { 0 };
        (sent as u64, written.map_err(|_| Cut::Client))
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
