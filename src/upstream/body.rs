//! The body of an answer, as it comes.

use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ureq::BodyReader;

use super::transport::Exchange;
use crate::base::threads::lock;
use crate::http::content::{Content, Rest};
use crate::http::{Chunk, Source};

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
    content: Content,
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
                // ureq sees to the framing: what it reads ends where the content does.
                content: Content::new(Rest::Close, Vec::new()),
            }),
        }
    }
}

impl Source for AnswerBody {
    fn length(&self) -> Option<u64> {
        self.length
    }

    fn read(&self, max: usize, patience: Duration) -> io::Result<Chunk> {
        let State { reader, content } = &mut *lock(&self.state);
        *lock(&self.exchange.deadline) = Instant::now().checked_add(patience);
        loop {
            if let Some(chunk) = content.next(max)? {
                return Ok(chunk);
            }
            match content.fill(&mut *reader) {
                Err(error) if is_timeout(&error) => return Ok(Chunk::Nothing),
                other => other?,
            }
        }
    }

    fn cancel(&self) {
        self.exchange.cut();
    }
}

fn is_timeout(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(ureq::Error::Timeout(_)))
}
