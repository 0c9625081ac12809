//! The life of a program that runs until it is told to stop.

use crate::base::error::Result;
use crate::base::threads::{Hangup, SignalThread, stop_signal};

/// Starts a service, waits for SIGINT or SIGTERM, stops it. The first failure is the result.
///
/// Errors: what `start` and `stop` return, or no signal handler.
pub fn run<S>(start: impl FnOnce() -> Result<S>, stop: impl FnOnce(S) -> Result<()>) -> Result<()> {
    let (trigger, signal) = stop_signal();
    // Before the service: a signal must not meet a half-started one unprepared.
    let signals = SignalThread::start(trigger, Hangup::Ignore)?;
    let service = start()?;
    signal.wait();
    let stopped = stop(service);
    let joined = signals.join();
    log::info!("stopped");
    stopped.and(joined)
}
