//! The TCP connections under ureq: as its own ones, with fewer system calls per request.
//!
//! A request is sent in one piece instead of head and body apart; the socket's time-outs are set
//! in coarse steps, so that they seldom change; and whether an idle connection is still open is one
//! question instead of three. The buffers are our own too.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use socket2::SockRef;
use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use super::buffers::{Elastic, MAX_INPUT, Room, SEND_AT};
use crate::http::is_timeout;

/// The step of the socket's time-outs.
const STEP: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Connect {
    /// How much the next request takes.
    pub room: Room,
}

impl Connector for Connect {
    type Out = Tcp;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Tcp>, Error> {
        let deadline = Deadline::new(details.timeout);
        let mut left = details.addrs.len();
        let mut last = None;
        for address in details.addrs.iter() {
            // The addresses that are left share the time that is left.
            let time = deadline.left()? / u32::try_from(left).unwrap_or(1).max(1);
            left -= 1;
            match TcpStream::connect_timeout(address, time) {
                Ok(stream) => return Ok(Some(Tcp::new(stream, self.room.clone())?)),
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) if is_timeout(&error) => Err(Error::Timeout(ureq::Timeout::Connect)),
            Some(error) => Err(Error::Io(error)),
            None => Err(Error::HostNotFound),
        }
    }
}

/// One connection.
pub(super) struct Tcp {
    stream: TcpStream,
    buffers: Elastic,
    // What the socket's time-outs are set to.
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl Tcp {
    fn new(stream: TcpStream, room: Room) -> Result<Tcp, Error> {
        stream.set_nodelay(true)?;
        Ok(Tcp {
            stream,
            buffers: Elastic::new(room),
            read_timeout: None,
            write_timeout: None,
        })
    }

    fn send(&mut self, deadline: &Deadline) -> Result<(), Error> {
        if self.buffers.unsent().is_empty() {
            return Ok(());
        }
        let mut sent = 0;
        while sent < self.buffers.unsent().len() {
            let step = step(deadline.left()?);
            if self.write_timeout != Some(step) {
                self.stream.set_write_timeout(Some(step))?;
                self.write_timeout = Some(step);
            }
            match self.stream.write(&self.buffers.unsent()[sent..]) {
                Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                Ok(count) => sent += count,
                Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.buffers.sent();
        Ok(())
    }
}

impl Transport for Tcp {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    // ureq hands over head and body apart, and then waits for input. Sent apart they would be two
    // system calls, two packets and, at the other side, two reads.
    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.buffers.written(amount);
        match self.buffers.unsent().len() < SEND_AT {
            true => Ok(()),
            false => self.send(&Deadline::new(timeout)),
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let deadline = Deadline::new(timeout);
        self.send(&deadline)?;
        loop {
            let step = step(deadline.left()?);
            if self.read_timeout != Some(step) {
                self.stream.set_read_timeout(Some(step))?;
                self.read_timeout = Some(step);
            }
            let target = self.buffers.input_append_buf();
            if target.is_empty() {
                return Err(Error::LargeResponseHeader(MAX_INPUT, MAX_INPUT));
            }
            match self.stream.read(target) {
                Ok(count) => {
                    self.buffers.input_appended(count);
                    return Ok(count > 0);
                }
                Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    // Open, and nothing to read: what came unasked is not the answer to the next request. This is
    // asked before and after each request.
    fn is_open(&mut self) -> bool {
        self.buffers.rest();
        if !self.buffers.unsent().is_empty() {
            return false;
        }
        let mut byte = [MaybeUninit::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let peeked = SockRef::from(&self.stream).recv_with_flags(&mut byte, flags);
        matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
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
    fn new(timeout: NextTimeout) -> Deadline {
        Deadline {
            // None: there is none.
            at: Instant::now().checked_add(*timeout.after),
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
