//! Between streams and bodies: who sends a body on, and who reads one that comes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::live::Stream;
use super::registry::{Opened, Streams};
use super::why::Why;
use crate::http::{Chunk, Source};

/// How long a body is waited for at a time. Who waits is woken when the stream is given up.
const LONG: Duration = Duration::from_secs(3600);

/// Sends a body on, on a thread of its own, as fast as the other side takes it; for now that is `window`
/// bytes. If it is cut off, the other side is told why.
pub fn send_on(
    streams: &Streams,
    source: Arc<dyn Source>,
    opened: &Arc<Opened>,
    window: u64,
    why: fn(&io::Error) -> Why,
) {
    let stream = Arc::clone(opened.stream());
    stream.begin(window);
    // The thread that reads it may be waiting for more.
    let waiting = Arc::clone(&source);
    stream.on_abort(move || waiting.cancel());
    let owner = Arc::clone(opened);
    let has_thread = streams.run(move || {
        let stream = owner.stream();
        let name = stream.correlation();
        match send(&*source, stream) {
            Ok(count) => return log::debug!("stream {name:?}: sent {count} bytes"),
            Err(error) if stream.aborted().is_none() => {
                let why = why(&error);
                log::warn!("stream {name:?}: {why}: {error}");
                stream.abort(why);
            }
            Err(_) => {}
        }
        source.cancel();
    });
    if !has_thread {
        log::warn!("there is no thread for a stream");
        stream.abort(Why::Stopping);
    }
}

fn send(source: &dyn Source, stream: &Arc<Stream>) -> io::Result<u64> {
    let mut count = 0;
    loop {
        let room = stream.room()?;
        match source.read(room, LONG)? {
            Chunk::Bytes(bytes) => {
                count += bytes.len() as u64;
                stream.write(bytes)?;
            }
            Chunk::Nothing => {}
            Chunk::End => break,
        }
    }
    stream.finish()?;
    Ok(count)
}

/// A body that comes from the other side. Cancelling or dropping it gives the stream up.
pub struct Incoming {
    opened: Arc<Opened>,
    length: Option<u64>,
    why: Why,
}

impl Incoming {
    /// Of this length, if that is known; `why` is what the other side is told when it is cancelled.
    pub fn new(opened: Arc<Opened>, length: Option<u64>, why: Why) -> Incoming {
        Incoming {
            opened,
            length,
            why,
        }
    }
}

impl Source for Incoming {
    fn length(&self) -> Option<u64> {
        self.length
    }

    fn read(&self, max: usize, patience: Duration) -> io::Result<Chunk> {
        Ok(self.opened.stream().read(max, patience)?)
    }

    fn cancel(&self) {
        self.opened.stream().abort(self.why);
    }
}
