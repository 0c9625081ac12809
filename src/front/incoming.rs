//! A request's body that is passed on as it comes, and what a client sends once its connection is
//! upgraded.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::base::connect::is_timeout;
use crate::base::threads::lock;
use crate::http::content::{Content, Rest};
use crate::http::{Chunk, Source};

/// How often it is looked whether somebody still wants it.
const LOOK: Duration = Duration::from_millis(200);
/// How long is read on of what nobody wants, and how long a pause ends that.
const DRAIN: Duration = Duration::from_secs(5);
const DRAIN_PAUSE: Duration = Duration::from_millis(500);

/// Reads from the client's connection, on whatever thread passes the body on.
pub(super) struct Incoming {
    stream: Arc<TcpStream>,
    length: Option<u64>,
    upgrades: bool,
    // How many bytes were read.
    read: AtomicU64,
    state: Mutex<State>,
    // Nobody wants it any more.
    is_cancelled: AtomicBool,
    // Nothing more will be read.
    is_done: Mutex<bool>,
    done: Condvar,
}

struct State {
    content: Content,
    owes_continue: bool,
    // Whether anything was asked for.
    is_begun: bool,
    timeout: Option<Duration>,
}

impl Incoming {
    /// `buffer`: what was read already.
    pub fn new(
        stream: Arc<TcpStream>,
        rest: Rest,
        buffer: Vec<u8>,
        owes_continue: bool,
    ) -> Incoming {
        let content = Content::new(rest, buffer);
        Incoming {
            stream,
            length: content.length(),
            upgrades: content.ends_with_connection(),
            read: AtomicU64::new(0),
            state: Mutex::new(State {
                content,
                owes_continue,
                is_begun: false,
                timeout: None,
            }),
            is_cancelled: AtomicBool::new(false),
            is_done: Mutex::new(false),
            done: Condvar::new(),
        }
    }

    /// What was read of the connection behind it, so that it can be used further; `None`: it was not
    /// read to its end, so nobody knows where the next request begins.
    pub fn behind(&self) -> Option<Vec<u8>> {
        self.cancel();
        let mut state = lock(&self.state);
        let is_behind = match self.upgrades {
            // Nobody has upgraded the connection.
            true => !state.is_begun,
            false => state.content.is_over(),
        };
        is_behind.then(|| state.content.take_buffer())
    }

    /// How many bytes were read so far.
    pub fn count(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Whether nobody reads it any more.
    pub fn is_done(&self) -> bool {
        *lock(&self.is_done)
    }

    /// Waits until nobody reads it any more.
    pub fn wait(&self) {
        let done = lock(&self.is_done);
        let waited = self.done.wait_while(done, |done| !*done);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Reads what the client still sends, for a while, and drops it.
    pub fn drain(&self) {
        self.cancel();
        let _state = lock(&self.state);
        let _ = self.stream.shutdown(Shutdown::Write);
        let _ = self.stream.set_read_timeout(Some(DRAIN_PAUSE));
        let until = Instant::now() + DRAIN;
        // Small, since hundreds of clients may be sent away at once.
        let mut scrap = [0; 4096];
        while Instant::now() < until && matches!((&*self.stream).read(&mut scrap), Ok(1..)) {}
    }

    fn set_done(&self) {
        *lock(&self.is_done) = true;
        self.done.notify_all();
    }

    fn fill(&self, state: &mut State, patience: Duration) -> io::Result<()> {
        if std::mem::take(&mut state.owes_continue) {
            (&*self.stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        // Zero would mean no time-out.
        let patience = patience.max(Duration::from_millis(1));
        if state.timeout != Some(patience) {
            self.stream.set_read_timeout(Some(patience))?;
            state.timeout = Some(patience);
        }
        state.content.fill(&*self.stream)
    }

    fn next(&self, state: &mut State, max: usize, patience: Duration) -> io::Result<Chunk> {
        state.is_begun = true;
        let until = Instant::now().checked_add(patience);
        loop {
            if self.is_cancelled.load(Ordering::SeqCst) {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            if let Some(chunk) = state.content.next(max)? {
                return Ok(chunk);
            }
            let now = Instant::now();
            let left = until.map_or(LOOK, |until| until.saturating_duration_since(now));
            match self.fill(state, left.min(LOOK)) {
                Err(error) if is_timeout(&error) && left <= LOOK => return Ok(Chunk::Nothing),
                Err(error) if is_timeout(&error) => {}
                other => other?,
            }
        }
    }
}

impl Source for Incoming {
    fn length(&self) -> Option<u64> {
        self.length
    }

    fn read(&self, max: usize, patience: Duration) -> io::Result<Chunk> {
        let mut state = lock(&self.state);
        let next = self.next(&mut state, max, patience);
        match &next {
            Ok(Chunk::Bytes(bytes)) => {
                self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            Ok(Chunk::Nothing) => {}
            Ok(Chunk::End) | Err(_) => self.set_done(),
        }
        next
    }

    fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::SeqCst);
        self.set_done();
    }
}
