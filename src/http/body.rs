//! What a request or an answer carries.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::base::threads::lock;

/// What a [`Source`] has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// The next bytes.
    Bytes(Bytes),
    /// Nothing for now.
    Nothing,
    /// The content is over.
    End,
}

/// Content that comes piece by piece.
pub trait Source: Send + Sync {
    /// How many bytes it will have in all, if that is known.
    fn length(&self) -> Option<u64>;

    /// Reads `max` bytes at the most, and waits for them as long as `patience`.
    ///
    /// Errors: it was cut off; what came so far is not all of it.
    fn read(&self, max: usize, patience: Duration) -> io::Result<Chunk>;

    /// Nobody will read on: whoever makes it need not. Never blocks.
    fn cancel(&self);
}

impl<S: Source + ?Sized> Source for Arc<S> {
    fn length(&self) -> Option<u64> {
        (**self).length()
    }

    fn read(&self, max: usize, patience: Duration) -> io::Result<Chunk> {
        (**self).read(max, patience)
    }

    fn cancel(&self) {
        (**self).cancel();
    }
}

/// The content of a request or an answer (RFC 9110, section 6.4). Everything that makes, carries or
/// sends one does so through this.
#[derive(Clone, Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// All of it.
    Whole(Bytes),
    /// What is still to come. Clones share it.
    Stream(Arc<dyn Source>),
}

impl Body {
    /// How many bytes there are already.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether it has no bytes, nor will have any.
    pub fn is_empty(&self) -> bool {
        self.stream().is_none() && self.len() == 0
    }

    /// The bytes that there are already: none of a stream.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Body::Empty | Body::Stream(_) => &[],
            Body::Whole(bytes) => bytes,
        }
    }

    /// The same, to be kept; they are shared, not copied.
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Body::Empty | Body::Stream(_) => Bytes::new(),
            Body::Whole(bytes) => bytes.clone(),
        }
    }

    /// Where the rest comes from, if it is not all here.
    pub fn stream(&self) -> Option<&Arc<dyn Source>> {
        match self {
            Body::Stream(source) => Some(source),
            Body::Empty | Body::Whole(_) => None,
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Empty => f.write_str("Empty"),
            Body::Whole(bytes) => f.debug_tuple("Whole").field(bytes).finish(),
            Body::Stream(source) => f.debug_tuple("Stream").field(&source.length()).finish(),
        }
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(content: T) -> Body {
        let bytes = content.into();
        match bytes.is_empty() {
            true => Body::Empty,
            false => Body::Whole(bytes),
        }
    }
}

/// How far the beginning of a [`Source`] was read.
#[derive(Debug)]
pub enum Beginning {
    /// To its end.
    All(Vec<u8>),
    /// Not so far: it goes on behind this.
    Some(Vec<u8>),
}

/// Reads a source to its end, if that comes soon: within `max` bytes, with no pause longer than `pause`
/// between them, and with four of these in all.
///
/// Errors: it was cut off.
pub fn begin(source: &dyn Source, max: usize, pause: Duration) -> io::Result<Beginning> {
    let mut read = Vec::new();
    let until = Instant::now() + 4 * pause;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // One byte more than fits tells that there is more.
        match source.read(max + 1 - read.len(), pause.min(left))? {
            Chunk::Bytes(bytes) => read.extend_from_slice(&bytes),
            Chunk::End => return Ok(Beginning::All(read)),
            Chunk::Nothing => return Ok(Beginning::Some(read)),
        }
        if read.len() > max {
            return Ok(Beginning::Some(read));
        }
    }
}

/// A source whose beginning was read already.
pub struct Resumed {
    source: Arc<dyn Source>,
    beginning: Mutex<Bytes>,
}

impl Resumed {
    /// What was read, and where it goes on.
    pub fn new(beginning: Vec<u8>, source: Arc<dyn Source>) -> Resumed {
        Resumed {
            source,
            beginning: Mutex::new(beginning.into()),
        }
    }
}

impl Source for Resumed {
    fn length(&self) -> Option<u64> {
        self.source.length()
    }

    fn read(&self, max: usize, patience: Duration) -> io::Result<Chunk> {
        let mut beginning = lock(&self.beginning);
        if beginning.is_empty() {
            drop(beginning);
            return self.source.read(max, patience);
        }
        let count = max.min(beginning.len());
        Ok(Chunk::Bytes(beginning.split_to(count)))
    }

    fn cancel(&self) {
        self.source.cancel();
    }
}

/// A source that may not have more than so many bytes.
pub struct Bounded<S> {
    source: S,
    limit: Option<u64>,
    count: AtomicU64,
}

impl<S: Source> Bounded<S> {
    /// Of `limit` bytes at the most; none: of any length.
    pub fn new(source: S, limit: Option<u64>) -> Bounded<S> {
        Bounded {
            source,
            limit,
            count: AtomicU64::new(0),
        }
    }
}

impl<S> Bounded<S> {
    /// Whether it had more than it may.
    pub fn is_over(&self) -> bool {
        let count = self.count.load(Ordering::Relaxed);
        self.limit.is_some_and(|limit| count > limit)
    }
}

impl<S: Source> Source for Bounded<S> {
    fn length(&self) -> Option<u64> {
        self.source.length()
    }

    /// Errors: it has more than it may ([`io::ErrorKind::FileTooLarge`]), or was cut off.
    fn read(&self, max: usize, patience: Duration) -> io::Result<Chunk> {
        let chunk = self.source.read(max, patience)?;
        if let Chunk::Bytes(bytes) = &chunk {
            let new = bytes.len() as u64;
            let count = self.count.fetch_add(new, Ordering::Relaxed) + new;
            if self.limit.is_some_and(|limit| count > limit) {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
        Ok(chunk)
    }

    fn cancel(&self) {
        self.source.cancel();
    }
}
