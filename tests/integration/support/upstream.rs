//! An upstream that answers with the bytes that a test wants, and ends connections as it wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;

use super::{PATIENCE, local};

/// One connection to it.
pub struct Visit {
    stream: BufReader<TcpStream>,
}

impl Visit {
    /// Reads the head of a request, line ends included; None if the connection ends instead.
    pub fn head(&mut self) -> Option<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if !matches!(self.stream.read_until(b'\n', &mut head), Ok(1..)) {
                return None;
            }
        }
        Some(head.into_iter().map(char::from).collect())
    }

    /// Reads a whole request, whose body has a Content-Length if it has any.
    pub fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let head = self.head()?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.trim().parse().unwrap())
        });
        let mut body = vec![0; length.unwrap_or(0)];
        self.stream.read_exact(&mut body).ok()?;
        Some((head, body))
    }

    /// Reads so many bytes; false if the connection ends before.
    pub fn read_exactly(&mut self, bytes: &mut [u8]) -> bool {
        self.stream.read_exact(bytes).is_ok()
    }

    /// Reads what there is; 0 at the end.
    pub fn read_some(&mut self, bytes: &mut [u8]) -> usize {
        self.stream.read(bytes).unwrap_or(0)
    }

    /// Reads a chunk; an empty one is the last. None if the connection ends instead.
    pub fn read_chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .ok()
            .filter(|count| *count > 0)?;
        let size = usize::from_str_radix(line.trim_end(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).ok()?;
        chunk.truncate(size);
        Some(chunk)
    }

    /// Reads all chunks. None if the connection ends before the last one.
    pub fn read_chunks(&mut self) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            match self.read_chunk()? {
                chunk if chunk.is_empty() => return Some(all),
                chunk => all.extend_from_slice(&chunk),
            }
        }
    }

    /// Whether all was sent, to somebody who may be gone.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    /// Sends no more.
    pub fn shut_down_sending(&mut self) {
        let _ = self.stream.get_mut().shutdown(Shutdown::Write);
    }

    pub fn send(&mut self, bytes: &[u8]) {
        // Whoever asked may be gone.
        let _ = self.stream.get_mut().write_all(bytes);
    }

    /// Ends the connection as a crash does.
    pub fn reset(self) {
        let socket = SockRef::from(self.stream.get_ref());
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Waits until the other side has closed the connection.
    pub fn wait_for_close(&mut self) {
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
    }
}

/// A running upstream.
pub struct RawUpstream {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    accept: Option<JoinHandle<()>>,
}

impl RawUpstream {
    /// Serves each connection on a thread of its own.
    pub fn start(serve: impl Fn(Visit) + Send + Sync + 'static) -> RawUpstream {
        let listener = TcpListener::bind(local(0)).unwrap();
        let address = listener.local_addr().unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let (serve, ending) = (Arc::new(serve), Arc::clone(&stopped));
        let accept = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ending.load(Ordering::SeqCst) {
                    break;
                }
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || {
                    serve(Visit {
                        stream: BufReader::new(stream),
                    });
                });
            }
        });
        RawUpstream {
            address,
            stopped,
            accept: Some(accept),
        }
    }

    /// Answers each request with these bytes, and closes the connection behind them.
    pub fn answering(bytes: impl Into<String>) -> RawUpstream {
        let bytes = bytes.into();
        RawUpstream::choosing(move |_| bytes.clone())
    }

    /// The same, with bytes that depend on the head of the request.
    pub fn choosing(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> RawUpstream {
        RawUpstream::start(move |mut visit| {
            if let Some((head, _)) = visit.request() {
                visit.send(answer(&head).as_bytes());
            }
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.accept.take().unwrap().join();
    }
}
