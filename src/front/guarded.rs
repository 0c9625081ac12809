//! The default front: an HTTP/1.1 server for a port that strangers can reach.
//!
//! One thread accepts; each connection has a thread of its own for as long as it lives, out of a
//! bounded pool. Everything is bounded: connections, head, body, and the time that a client may
//! take for each. A client above the bound gets a 503 and is closed.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::connection::{Connection, Ending};
use super::handler::{Cut, Exchange, Front, Handler};
use super::linger::Linger;
use super::listen::wake;
use super::options::HttpLimits;
use super::reading::Slot;
use super::response::last_answer;
use crate::base::budget::Budget;
use crate::base::error::{Error, Result};
use crate::base::pool::{Pool, PoolOptions};
use crate::base::threads::{self, StopSignal, StopTrigger, lock};
use crate::http::{Failure, Problem, RequestId};

/// How long a thread without a connection waits for the next one before it ends.
const IDLE_THREAD: Duration = Duration::from_secs(10);
/// How long to wait before accepting again when the system has no descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(20);
/// How long before the end of a stop the connections that are left are cut off.
const CUT_OFF: Duration = Duration::from_millis(200);

/// A running server.
pub struct Guarded {
    address: SocketAddr,
    server: Arc<Server>,
    accept: JoinHandle<()>,
    linger: JoinHandle<()>,
    trigger: StopTrigger,
    pool: Arc<Pool<Arc<Slot>>>,
}

struct Server {
    limits: RwLock<Arc<HttpLimits>>,
    handler: Box<dyn Handler>,
    budget: Arc<Budget>,
    stopping: AtomicBool,
    // So that connections can be woken when the server stops.
    slots: Mutex<Vec<Weak<Slot>>>,
}

/// Starts serving on a listener that the caller has bound.
///
/// Errors: no thread, or the listener is unusable ([`Error::System`]).
pub fn start(listener: TcpListener, limits: HttpLimits, handler: impl Handler) -> Result<Guarded> {
    let address = listener.local_addr().map_err(|source| Error::System {
        action: "read the address of a listener",
        source,
    })?;
    let (trigger, stop) = threads::stop_signal();
    let (linger, linger_thread) = Linger::start(stop.clone())?;
    let max_workers = limits.max_connections;
    let server = Arc::new(Server {
        budget: Budget::new(limits.buffered_bytes()),
        limits: RwLock::new(Arc::new(limits)),
        handler: Box::new(handler),
        stopping: AtomicBool::new(false),
        slots: Mutex::new(Vec::new()),
    });
    let options = PoolOptions {
        name: "http",
        max_workers,
        queue: 0,
        // 256 connections must be small; what is not touched costs nothing.
        stack_kib: 256,
        idle: IDLE_THREAD,
    };
    let (worker, closer) = (Arc::clone(&server), linger.clone());
    let pool = Arc::new(Pool::new(options, move |slot: Arc<Slot>| {
        serve(&worker, &closer, &slot);
    }));
    let acceptor = Acceptor {
        listener,
        server: Arc::clone(&server),
        pool: Arc::clone(&pool),
        linger,
        stop,
    };
    let accept = threads::spawn("accept", 128, move || acceptor.run())?;
    Ok(Guarded {
        address,
        server,
        accept,
        linger: linger_thread,
        trigger,
        pool,
    })
}

impl Front for Guarded {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn set_limits(&self, limits: &HttpLimits) -> bool {
        self.pool.set_max_workers(limits.max_connections);
        let own = self.server.limits.write();
        *own.unwrap_or_else(PoisonError::into_inner) = Arc::new(limits.clone());
        true
    }

    fn stop(self: Box<Self>, deadline: Instant) -> Result<()> {
        self.server.stopping.store(true, Ordering::SeqCst);
        self.trigger.stop();
        wake(self.address);
        let accepted = threads::join_until(self.accept, deadline);
        self.server
            .shut(Shutdown::Read, |slot| slot.reading.load(Ordering::SeqCst));
        // Whoever does not take its answer by then is cut off.
        let last_call = deadline.checked_sub(CUT_OFF).unwrap_or(deadline);
        let served = self.pool.join(last_call).or_else(|_| {
            self.server.shut(Shutdown::Both, |_| true);
            self.pool.join(deadline)
        });
        // The pool held the last senders to the linger thread.
        drop(self.pool);
        let lingered = threads::join_until(self.linger, deadline);
        accepted.and(served).and(lingered)
    }
}

impl Server {
    fn limits(&self) -> Arc<HttpLimits> {
        let limits = self.limits.read();
        Arc::clone(&limits.unwrap_or_else(PoisonError::into_inner))
    }

    fn shut(&self, how: Shutdown, which: impl Fn(&Slot) -> bool) {
        for slot in lock(&self.slots).iter().filter_map(Weak::upgrade) {
            if which(&slot) {
                // A client that waits to send more is told by a reset only.
                if how == Shutdown::Both {
                    let _ = SockRef::from(&slot.stream).set_linger(Some(Duration::ZERO));
                }
                let _ = slot.stream.shutdown(how);
            }
        }
    }
}

fn serve(server: &Server, linger: &Linger, slot: &Slot) {
    let limits = server.limits();
    let connection = Connection::new(
        slot,
        &limits,
        &*server.handler,
        &server.stopping,
        &server.budget,
    );
    if let Ending::Linger = connection.serve() {
        linger.close(Arc::clone(&slot.stream));
    }
}

struct Acceptor {
    listener: TcpListener,
    server: Arc<Server>,
    pool: Arc<Pool<Arc<Slot>>>,
    linger: Linger,
    stop: StopSignal,
}

impl Acceptor {
    fn run(&self) {
        let mut exhausted = false;
        while !self.stop.is_stopped() {
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    exhausted = false;
                    self.admit(stream, peer);
                }
                // The client was gone before it was accepted.
                Err(error) if is_transient(error.kind()) => {}
                Err(error) => {
                    if !exhausted {
                        log::error!("cannot accept connections: {error}; trying again");
                    }
                    exhausted = true;
                    self.stop.sleep(EXHAUSTED);
                }
            }
        }
        self.admit_the_queued();
    }

    // The system has accepted these already: to drop them would be to drop requests.
    fn admit_the_queued(&self) {
        if self.listener.set_nonblocking(true).is_ok() {
            while let Ok((stream, peer)) = self.listener.accept() {
                let _ = stream.set_nonblocking(false);
                self.admit(stream, peer);
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let _ = stream.set_write_timeout(Some(self.server.limits().body_timeout));
        let slot = Arc::new(Slot {
            stream: Arc::new(stream),
            peer,
            reading: AtomicBool::new(true),
        });
        {
            let mut slots = lock(&self.server.slots);
            // Cheap enough to do now and then, and it keeps the list as short as the pool.
            if slots.len() >= 2 * self.server.limits().max_connections {
                slots.retain(|slot| slot.strong_count() > 0);
            }
            slots.push(Arc::downgrade(&slot));
        }
        if let Err(slot) = self.pool.submit(slot) {
            self.refuse(&slot);
        }
    }

    fn refuse(&self, slot: &Slot) {
        let limit = self.server.limits().max_connections;
        let problem = Problem::from(Failure::TooManyConnections(limit));
        let response = problem.response(&RequestId::random());
        // It fits the socket's empty buffer, so this does not block the accept thread.
        let _ = slot.stream.set_nonblocking(true);
        let answer = last_answer(&response);
        let written = (&*slot.stream).write_all(&answer);
        self.server.handler.ended(&Exchange {
            peer: slot.peer,
            asked: None,
            response: &response,
            received: 0,
            sent: response.body().len() as u64,
            cut: written.err().map(|_| Cut::Client),
            took: Duration::ZERO,
        });
        self.linger.close(Arc::clone(&slot.stream));
    }
}

fn is_transient(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}
