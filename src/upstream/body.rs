//! The body of an answer, as it comes.

use std::io::{self, Read};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ureq::BodyReader;

use super::transport::Exchange;
use crate::base::threads::lock;
use crate::http::{Chunk, Source};

/// The first size of a read, and the largest, in bytes: a stream that is idle keeps no more than the
/// first.
const FIRST_READ: usize = 4 * 1024;
const LARGEST_READ: usize = 64 * 1024;

/// Reads from the connection that the answer comes on. Dropping it ends that, or gives it back.
pub(super) struct AnswerBody {
    exchange: Exchange,
    // Holds the connection, as long as somebody reads.
    _agent: ureq::Agent,
    length: Option<u64>,
    state: Mutex<State>,
}

struct State {
    reader: BodyReader<'static>,
    size: usize,
}

impl AnswerBody {
    /// Of this length, if that is known.
    pub fn new(
        body: ureq::Body,
        agent: ureq::Agent,
        exchange: Exchange,
        length: Option<u64>,
    ) -> AnswerBody {
        AnswerBody {
            exchange,
            _agent: agent,
            length,
            state: Mutex::new(State {
                reader: body.into_with_config().limit(u64::MAX).reader(),
                size: FIRST_READ,
            }),
        }
    }
}

impl Source for AnswerBody {
    fn length(&self) -> Option<u64> {
        self.length
    }

    fn read(&self, max: usize, patience: Duration) -> io::Result<Chunk> {
        let mut state = lock(&self.state);
        *lock(&self.exchange.deadline) = Instant::now().checked_add(patience);
        let mut buffer = vec![0; state.size.min(max)];
        let count = match state.reader.read(&mut buffer) {
            Ok(0) => return Ok(Chunk::End),
            Ok(count) => count,
            Err(error) if is_timeout(&error) => {
                state.size = FIRST_READ;
                return Ok(Chunk::Nothing);
            }
            Err(error) => return Err(error),
        };
        if count == state.size {
            state.size = (4 * count).min(LARGEST_READ);
        }
        // What is kept for a while should not keep a large buffer that it does not fill.
        Ok(Chunk::Bytes(match count < buffer.len() / 2 {
            true => Bytes::copy_from_slice(&buffer[..count]),
            false => {
                buffer.truncate(count);
                buffer.into()
            }
        }))
    }

    fn cancel(&self) {
        self.exchange.cut();
    }
}

fn is_timeout(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(ureq::Error::Timeout(_)))
}
