//! The TCP connections under ureq: as its own ones, with fewer system calls per request.
//!
//! A request is sent in one piece instead of head and body apart; the socket's time-out is set in
//! coarse steps, so that it seldom changes; and whether an idle connection is still open is one
//! question instead of three. The buffers are our own too, and so is the reading of the answer's
//! head. An answer may come while the request is still being sent: what arrives then counts, even if
//! the connection ends behind it (RFC 9112, section 9.3).

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use http::StatusCode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use super::answer::{self, Found, Head, MAX_HEAD};
use super::buffers::{Elastic, Room, SEND_AT};
use super::connection::Connection;
use super::dialer::Dialer;
use crate::base::connect::is_timeout;
use crate::base::threads::lock;

/// The step of the socket's time-out.
const STEP: Duration = Duration::from_millis(250);
/// How long an upstream that has answered well may leave the rest of the request unread.
const UNREAD: Duration = Duration::from_secs(1);

/// What the connections of a client and whoever calls it tell each other.
#[derive(Debug, Default, Clone)]
pub(super) struct Exchange {
    /// How much the next request takes.
    pub room: Room,
    /// The head of the answer, once it is there.
    pub head: Arc<Mutex<Option<Head>>>,
    /// Until when whatever is under way may take.
    pub deadline: Arc<Mutex<Option<Instant>>>,
    /// The connection that was made last, so that another thread can end it, and whether one did.
    pub socket: Arc<Mutex<Weak<Connection>>>,
    pub is_cut: Arc<AtomicBool>,
}

impl Exchange {
    /// Ends the connection, whatever waits for it.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        if let Some(stream) = lock(&self.socket).upgrade() {
            stream.cut();
        }
    }
}

pub(super) struct Connect {
    pub exchange: Exchange,
    pub dialer: Dialer,
}

impl Connector for Connect {
    type Out = Tcp;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Tcp>, Error> {
        let left = Deadline::new(details.timeout, &self.exchange).left()?;
        let forever = Duration::from_secs(3600);
        let deadline = Instant::now() + left.min(forever);
        match self.dialer.connect(details.uri, &details.addrs, deadline) {
            Ok(stream) => Ok(Some(Tcp::new(stream, self.exchange.clone())?)),
            Err(error) if is_timeout(&error) => Err(Error::Timeout(ureq::Timeout::Connect)),
            Err(error) => Err(Error::Io(error)),
        }
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").finish_non_exhaustive()
    }
}

/// One connection.
pub(super) struct Tcp {
    stream: Arc<Connection>,
    buffers: Elastic,
    exchange: Exchange,
    // What the socket's read time-out is set to.
    read_timeout: Option<Duration>,
    awaits_head: bool,
    // Since it was last asked whether it is open.
    was_used: bool,
    // The rest of the request is not wanted, or can't be sent any more.
    is_given_up: bool,
    // Why it can't be sent.
    failure: Option<io::Error>,
}

impl Tcp {
    fn new(stream: Connection, exchange: Exchange) -> Result<Tcp, Error> {
        let stream = Arc::new(stream);
        *lock(&exchange.socket) = Arc::downgrade(&stream);
        // Whoever gave up while it was being made found nothing to end.
        if exchange.is_cut.load(Ordering::SeqCst) {
            return Err(io::Error::from(ErrorKind::ConnectionAborted).into());
        }
        Ok(Tcp {
            stream,
            buffers: Elastic::new(exchange.room.clone()),
            exchange,
            read_timeout: None,
            awaits_head: true,
            was_used: false,
            is_given_up: false,
            failure: None,
        })
    }

    // Sends what is in the buffer, or gives up; then there is something to read.
    fn send(&mut self, deadline: &Deadline) -> Result<(), Error> {
        let mut sent = 0;
        let mut early = Early::default();
        while !self.is_given_up && (sent < self.buffers.unsent().len() || self.stream.is_sending())
        {
            match self.stream.try_send(&self.buffers.unsent()[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait_for_room(&mut early, deadline.left()?)?;
                    self.is_given_up = early.is_enough();
                }
                Err(error) => {
                    self.is_given_up = true;
                    self.failure = Some(error);
                }
            }
        }
        if !self.buffers.unsent().is_empty() {
            self.buffers.sent();
        }
        Ok(())
    }

    // The upstream does not take more at the moment: it may have answered already.
    fn wait_for_room(&mut self, early: &mut Early, left: Duration) -> Result<(), Error> {
        let (events, left) = match early {
            Early {
                answer: None,
                has_ended: false,
            } => (PollFlags::IN | PollFlags::OUT, left),
            _ => (PollFlags::OUT, left.min(UNREAD)),
        };
        let mut polled = [PollFd::new(self.stream.socket(), events)];
        match poll(&mut polled, Timespec::try_from(left).ok().as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::Io(error.into())),
        }
        if polled[0].revents().contains(PollFlags::IN) {
            self.read_early(early)?;
        }
        Ok(())
    }

    fn read_early(&mut self, early: &mut Early) -> Result<(), Error> {
        loop {
            let target = self.buffers.input_append_buf();
            if target.is_empty() {
                return Ok(());
            }
            // There is something, so this does not block. An error comes again in the next send.
            let count = match self.stream.try_read(target) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                other => other.unwrap_or(0),
            };
            early.has_ended = count == 0;
            self.buffers.input_appended(count);
            if let Some((_, head)) = self.find_head()? {
                early.answer = Some((head.status, Instant::now()));
            }
            // What is left in a TLS session makes its socket no more readable.
            if count == 0 || early.answer.is_some() || !self.stream.is_tls() {
                return Ok(());
            }
        }
    }

    // The head of the answer, if it is there; what only informs is passed over.
    fn find_head(&mut self) -> Result<Option<(usize, Head)>, Error> {
        loop {
            let found = answer::find(self.buffers.input(), false);
            match found.map_err(|flaw| io::Error::new(ErrorKind::InvalidData, flaw))? {
                Found::Nothing => return Ok(None),
                Found::Interim(length) => self.buffers.input_consume(length),
                Found::Final(length, head) => return Ok(Some((length, head))),
            }
        }
    }

    // Reads until there is something more in the buffer; false at the end.
    fn read(&mut self, deadline: &Deadline) -> Result<bool, Error> {
        loop {
            let step = step(deadline.left()?);
            if self.read_timeout != Some(step) {
                self.stream.set_read_timeout(Some(step))?;
                self.read_timeout = Some(step);
            }
            let target = self.buffers.input_append_buf();
            if target.is_empty() {
                let flaw = format!("the head of its answer is larger than {MAX_HEAD} bytes");
                return Err(io::Error::new(ErrorKind::InvalidData, flaw).into());
            }
            match (&*self.stream).read(target) {
                Ok(count) => {
                    self.buffers.input_appended(count);
                    return Ok(count > 0);
                }
                Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn read_head(&mut self, deadline: &Deadline) -> Result<bool, Error> {
        loop {
            if let Some((length, head)) = self.find_head()? {
                self.buffers.replace_input(length, &head.framing);
                *lock(&self.exchange.head) = Some(head);
                self.awaits_head = false;
                return Ok(true);
            }
            match self.read(deadline) {
                Ok(true) => {}
                // What kept the request from being sent tells more than that nothing came.
                Ok(false) => {
                    let ended = || io::Error::from(ErrorKind::UnexpectedEof);
                    return Err(self.failure.take().unwrap_or_else(ended).into());
                }
                Err(Error::Io(error)) => {
                    return Err(self.failure.take().unwrap_or(error).into());
                }
                Err(other) => return Err(other),
            }
        }
    }
}

// What has come before all was sent.
#[derive(Default)]
struct Early {
    answer: Option<(StatusCode, Instant)>,
    has_ended: bool,
}

impl Early {
    // Whether the rest of the request is of no use any more (RFC 9112, section 9.3).
    fn is_enough(&self) -> bool {
        self.answer
            .is_some_and(|(status, since)| status.as_u16() >= 300 || since.elapsed() >= UNREAD)
    }
}

impl Transport for Tcp {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    // ureq hands over head and body apart, and then waits for input. Sent apart they would be two
    // system calls, two packets and, at the other side, two reads.
    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.awaits_head = true;
        self.was_used = true;
        self.buffers.written(amount);
        match self.buffers.unsent().len() < SEND_AT {
            true => Ok(()),
            false => self.send(&Deadline::new(timeout, &self.exchange)),
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let deadline = Deadline::new(timeout, &self.exchange);
        self.send(&deadline)?;
        if self.awaits_head {
            return self.read_head(&deadline);
        }
        self.read(&deadline).map_err(|error| match error {
            // ureq takes a reset for the end of a body that ends with the connection; but then half
            // of it would look whole (RFC 9112, section 8).
            Error::Io(error) => io::Error::other(format!("its answer was cut off: {error}")).into(),
            other => other,
        })
    }

    // Open, and nothing to read: what came unasked is not the answer to the next request. This is
    // asked after each request and before the next one, when nothing can have been missed.
    fn is_open(&mut self) -> bool {
        self.buffers.rest();
        if self.is_given_up || !self.buffers.unsent().is_empty() {
            return false;
        }
        std::mem::take(&mut self.was_used) || self.stream.is_idle()
    }

    fn is_tls(&self) -> bool {
        self.stream.is_tls()
    }
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tcp").field(&self.stream).finish()
    }
}

struct Deadline {
    at: Option<Instant>,
    reason: ureq::Timeout,
}

impl Deadline {
    fn new(timeout: NextTimeout, exchange: &Exchange) -> Deadline {
        // None: there is none.
        let at = Instant::now().checked_add(*timeout.after);
        let own = *lock(&exchange.deadline);
        Deadline {
            at: at.into_iter().chain(own).min(),
            reason: timeout.reason,
        }
    }

    fn left(&self) -> Result<Duration, Error> {
        let Some(at) = self.at else {
            return Ok(Duration::MAX);
        };
        match at.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(Error::Timeout(self.reason)),
            left => Ok(left),
        }
    }
}

// A time-out that is set for what is left would be another one each time, and a system call. One
// that is too short is no harm: its end is noticed, and the rest is waited for.
fn step(left: Duration) -> Duration {
    match left >= STEP {
        true => STEP * u32::try_from(left.as_millis() / STEP.as_millis()).unwrap_or(u32::MAX),
        false => left,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_never_longer_than_what_is_left() {
        let millis = |left| step(Duration::from_millis(left)).as_millis();
        assert_eq!(millis(1), 1);
        assert_eq!(millis(249), 249);
        assert_eq!(millis(250), 250);
        assert_eq!(millis(2_949), 2_750);
        assert!(step(Duration::MAX) > Duration::from_secs(3600));
    }
}
