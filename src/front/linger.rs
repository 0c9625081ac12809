//! Closing connections that still have something to say.
//!
//! A socket closed with unread bytes makes the system send a reset, and a reset can destroy the
//! answer before the client has read it. So a connection that is refused early is half closed,
//! kept for a moment, emptied, and only then closed. One thread does this for all of them: each
//! stays for the same time, so the first to come is the first to go.

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use crate::base::error::Result;
use crate::base::threads::{self, StopSignal};

/// How long a connection is kept after its last answer.
const LINGER: Duration = Duration::from_millis(500);
/// How many connections are kept; those above are closed at once.
const CAPACITY: usize = 256;
/// How much of what a client still sends is read before the connection is closed anyway.
const MAX_DRAINED: usize = 256 * 1024;

/// The hand-over to the thread. Dropping the last clone ends it.
#[derive(Clone)]
pub(super) struct Linger {
    sender: Sender<(Arc<TcpStream>, Instant)>,
}

impl Linger {
    /// Starts the thread. Once stopped, it waits for nobody any more.
    pub(super) fn start(stop: StopSignal) -> Result<(Linger, JoinHandle<()>)> {
        let (sender, receiver) = crossbeam_channel::bounded(CAPACITY);
        let thread = threads::spawn("linger", 64, move || run(&receiver, &stop))?;
        Ok((Linger { sender }, thread))
    }

    /// Closes a connection whose last answer is written. Never blocks.
    pub(super) fn close(&self, stream: Arc<TcpStream>) {
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.set_nonblocking(true);
        let _ = self.sender.try_send((stream, Instant::now() + LINGER));
    }
}

fn run(receiver: &Receiver<(Arc<TcpStream>, Instant)>, stop: &StopSignal) {
    for (stream, until) in receiver {
        stop.sleep(until.saturating_duration_since(Instant::now()));
        drain(&stream);
    }
}

fn drain(mut stream: &TcpStream) {
    let mut scrap = [0; 4096];
    let mut drained = 0;
    while drained < MAX_DRAINED {
        match stream.read(&mut scrap) {
            Ok(0) => return,
            Ok(count) => drained += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
