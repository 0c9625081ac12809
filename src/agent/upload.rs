//! A request whose body is no single message, or that asks for an upgrade: the body is taken from its
//! caller once there is a connection to the upstream, and goes on while the answer comes.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{StatusCode, header};

use super::job::Job;
use crate::http::body::Bounded;
use crate::http::{Body, Failure, Request, Response};
use crate::stream::{Incoming, Opened, Why};
use crate::upstream::{Duplex, Upstream, UpstreamError};

/// Why there is no answer.
pub(super) enum NotExchanged {
    Upstream(UpstreamError),
    Agent(Failure),
}

/// A body on its way to the upstream.
pub(super) struct Upload<'a> {
    job: &'a Job,
    opened: Arc<Opened>,
    source: Arc<Bounded<Incoming>>,
    limit: Option<usize>,
}

impl<'a> Upload<'a> {
    /// Opens its stream; `limit`: how long it may be, in bytes.
    ///
    /// Errors: there can't be one, or the body is longer; what its caller is to be told.
    pub fn open(
        job: &'a Job,
        length: Option<u64>,
        limit: Option<usize>,
    ) -> Result<Upload<'a>, Failure> {
        if let Some(limit) = limit
            && length.is_some_and(|length| length > limit as u64)
        {
            return Err(Failure::RequestOver(limit));
        }
        let no_offer = || Failure::AgentBusy("this agent takes no streams at the moment".into());
        let opened = job.open(job.offer.as_ref().ok_or_else(no_offer)?)?;
        opened.stream().receive();
        let incoming = Incoming::new(Arc::clone(&opened), length, Why::UpstreamFailed);
        Ok(Upload {
            job,
            opened,
            source: Arc::new(Bounded::new(incoming, limit.map(|limit| limit as u64))),
            limit,
        })
    }

    /// Sends the request and waits for the head of the answer: as long as `time` after the last piece of
    /// the body.
    ///
    /// Errors: see [`NotExchanged`].
    pub fn exchange(
        &self,
        upstream: &Upstream,
        mut request: Request,
        time: Duration,
    ) -> Result<Response, NotExchanged> {
        let stream = self.opened.stream();
        let source = Arc::clone(&self.source);
        *request.body_mut() = Body::Stream(source);
        let upgrades = request.headers().contains_key(header::UPGRADE);
        let duplex = upstream.open(&request, time);
        let duplex = duplex.map_err(NotExchanged::Upstream)?;
        stream.on_abort(duplex.cutter());
        // Nothing of another protocol is taken before the upstream speaks it.
        if !upgrades {
            self.send(&duplex)?;
            stream.accept();
        }
        let answered = upstream.answer(&duplex, &|| match stream.aborted() {
            Some(_) => Instant::now(),
            None => stream.last_moved() + time,
        });
        let response = answered.map_err(|error| match self.limit {
            Some(limit) if self.source.is_over() => {
                NotExchanged::Agent(Failure::RequestOver(limit))
            }
            _ => NotExchanged::Upstream(error),
        })?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.send(&duplex)?;
        }
        Ok(response)
    }

    // Lets the body go on, on a thread of its own.
    fn send(&self, duplex: &Duplex) -> Result<(), NotExchanged> {
        let (send, source) = (duplex.sender(), Arc::clone(&self.source));
        let opened = Arc::clone(&self.opened);
        let has_thread = self.job.streams.run(move || {
            if let Err(error) = send(&*source) {
                let stream = opened.stream();
                log::debug!("stream {:?}: {error}", stream.correlation());
                if error.kind() == ErrorKind::FileTooLarge {
                    stream.abort(Why::TooLarge);
                }
            }
        });
        // The upstream has the head already.
        let busy = || Failure::AgentBusyMeanwhile("there is no thread for a stream".into());
        has_thread
            .then_some(())
            .ok_or_else(|| NotExchanged::Agent(busy()))
    }
}
