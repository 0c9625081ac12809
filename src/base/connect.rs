//! Connecting to a name that has several addresses (RFC 8305, section 5): a dead one costs a moment,
//! not the whole time.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};

// What a read or a write says that its time-out ended.
pub(crate) fn is_timeout(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// After how long without an answer the next address is tried too.
const NEXT: Duration = Duration::from_millis(250);

/// Connects to whichever of `addresses` answers first; each is tried 250 ms after the one before it,
/// or as soon as those before have failed.
///
/// Errors: none answered by `deadline` ([`io::ErrorKind::TimedOut`]), or all failed; then what the
/// last one said.
pub(crate) fn connect(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
    if let [only] = addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        // Zero is not allowed there.
        return match left.is_zero() {
            true => Err(timed_out()),
            false => TcpStream::connect_timeout(only, left),
        };
    }
    let mut waiting = addresses.iter();
    let mut attempts: Vec<Socket> = Vec::new();
    let mut next_at = Instant::now();
    let mut failure = None;
    loop {
        let now = Instant::now();
        if now >= deadline {
            return Err(timed_out());
        }
        if now >= next_at || attempts.is_empty() {
            match waiting.next().map(begin) {
                Some(Ok(attempt)) => attempts.push(attempt),
                Some(Err(error)) => failure = Some(error),
                None if attempts.is_empty() => {
                    return Err(failure.unwrap_or_else(|| io::ErrorKind::NotFound.into()));
                }
                None => {}
            }
            next_at = now + NEXT;
        }
        let until = match waiting.len() {
            0 => deadline,
            _ => deadline.min(next_at),
        };
        match first_ready(&mut attempts, until)? {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(error)) => failure = Some(error),
            None => {}
        }
    }
}

fn begin(address: &SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&(*address).into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        other => other.map(|()| socket),
    }
}

// The outcome of the first attempt that has one, which leaves the list; None: there was none in time.
fn first_ready(
    attempts: &mut Vec<Socket>,
    until: Instant,
) -> io::Result<Option<io::Result<TcpStream>>> {
    if attempts.is_empty() {
        return Ok(None);
    }
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).ok();
    let ready = {
        let mut polled: Vec<PollFd<'_>> = attempts
            .iter()
            .map(|socket| PollFd::new(socket, PollFlags::OUT))
            .collect();
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        polled.iter().position(|one| !one.revents().is_empty())
    };
    Ok(ready.map(|at| {
        let socket = attempts.remove(at);
        match socket.take_error()? {
            Some(error) => Err(error),
            None => {
                socket.set_nonblocking(false)?;
                Ok(socket.into())
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A listener that takes no connection any more: its queue is full.
    struct BlackHole {
        listener: Socket,
        _queued: Vec<Socket>,
    }

    impl BlackHole {
        fn new() -> BlackHole {
            let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            listener.bind(&any.into()).unwrap();
            listener.listen(0).unwrap();
            let address = listener.local_addr().unwrap().as_socket().unwrap();
            // More than it takes; the last ones hang.
            let queued = (0..8).map(|_| begin(&address).unwrap()).collect();
            BlackHole {
                listener,
                _queued: queued,
            }
        }

        fn address(&self) -> SocketAddr {
            self.listener.local_addr().unwrap().as_socket().unwrap()
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn a_dead_address_costs_a_moment() {
        let hole = BlackHole::new();
        let alone = connect(
            &[hole.address()],
            Instant::now() + Duration::from_millis(300),
        );
        assert_eq!(
            alone.unwrap_err().kind(),
            io::ErrorKind::TimedOut,
            "it is dead"
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let alive = listener.local_addr().unwrap();
        for addresses in [
            vec![hole.address(), alive],
            vec![hole.address(), hole.address(), alive],
            vec![alive, hole.address()],
        ] {
            let stream = connect(&addresses, soon()).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), alive);
        }
        let both = [hole.address(), hole.address()];
        let none = connect(&both, Instant::now() + Duration::from_millis(400));
        assert_eq!(none.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_refused_address_costs_nothing() {
        let free = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let alive = listener.local_addr().unwrap();
        let stream = connect(&[free, free, alive], soon()).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), alive);
        for refused in [&[free][..], &[free, free]] {
            let error = connect(refused, soon()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
        assert!(connect(&[], soon()).is_err());
    }
}
