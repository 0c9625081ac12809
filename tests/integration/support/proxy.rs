//! A TCP proxy that does to connections what bad networks do.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::local;

/// How often a thread looks whether it shall end.
const LOOK: Duration = Duration::from_millis(20);

pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accept: Option<JoinHandle<()>>,
}

struct Shared {
    target: u16,
    stopped: AtomicBool,
    // Nothing is passed on while this is set.
    stalled: AtomicBool,
    // How long each piece is on its way, in milliseconds; pieces follow each other without a pause.
    delay: AtomicU64,
    // The next piece is spoilt.
    corrupt: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Passes on to a port of this machine, whether anybody is there or not.
    pub fn start(target: u16) -> Proxy {
        let listener = TcpListener::bind(local(0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target,
            stopped: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            delay: AtomicU64::new(0),
            corrupt: AtomicBool::new(false),
            streams: Mutex::new(Vec::new()),
        });
        let own = Arc::clone(&shared);
        let accept = std::thread::spawn(move || {
            for client in listener.incoming() {
                if own.stopped.load(Ordering::SeqCst) {
                    break;
                }
                if let Ok(client) = client {
                    own.pass_on(client);
                }
            }
        });
        Proxy {
            address,
            shared,
            accept: Some(accept),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Passes nothing on, or goes on where it stopped.
    pub fn stall(&self, stalled: bool) {
        self.shared.stalled.store(stalled, Ordering::SeqCst);
    }

    /// Holds every piece up for this long.
    pub fn delay(&self, delay: Duration) {
        let millis = delay.as_millis() as u64;
        self.shared.delay.store(millis, Ordering::SeqCst);
    }

    /// Spoils the beginning of what comes next.
    pub fn corrupt(&self) {
        self.shared.corrupt.store(true, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.cut();
        let _ = TcpStream::connect(self.address);
        let _ = self.accept.take().unwrap().join();
    }
}

impl Shared {
    fn pass_on(self: &Arc<Shared>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(local(self.target)) else {
            return;
        };
        let (Ok(client_2), Ok(server_2)) = (client.try_clone(), server.try_clone()) else {
            return;
        };
        for stream in [&client, &server] {
            let _ = stream.set_nodelay(true);
            let _ = stream.set_read_timeout(Some(LOOK));
        }
        {
            let mut streams = self.streams.lock().unwrap();
            streams.retain(|stream| stream.peer_addr().is_ok());
            streams.extend(
                [client.try_clone(), server.try_clone()]
                    .into_iter()
                    .flatten(),
            );
        }
        for (from, to) in [(client, server), (server_2, client_2)] {
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.pump(from, to));
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 16 * 1024];
        loop {
            if self.stopped.load(Ordering::SeqCst) {
                break;
            }
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if is_nothing(error.kind()) => continue,
                Err(_) => break,
            };
            while self.stalled.load(Ordering::SeqCst) && !self.stopped.load(Ordering::SeqCst) {
                std::thread::sleep(LOOK);
            }
            std::thread::sleep(Duration::from_millis(self.delay.load(Ordering::SeqCst)));
            if self.corrupt.swap(false, Ordering::SeqCst) {
                // No MQTT packet begins like this.
                buffer[..count.min(2)].fill(0xff);
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

fn is_nothing(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
