//! Named threads, the stop signal, and joining with a deadline.
//!
//! A stop signal is a channel on which nothing is ever sent: closing it is the signal. That
//! makes it something a thread can wait on together with its other channels
//! (`select!`), sleep on (`recv_timeout`), or glance at, and it can't be missed.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, never, select_biased};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use super::error::{Error, Result};

/// Makes a connected pair: whoever holds the trigger can stop all who hold the signal.
pub fn stop_signal() -> (StopTrigger, StopSignal) {
    let (sender, receiver) = crossbeam_channel::bounded(0);
    let trigger = StopTrigger {
        sender: Arc::new(Mutex::new(Some(sender))),
    };
    (trigger, StopSignal { receiver })
}

/// The side that stops. Clones trigger the same signal; the last one dropped triggers it too.
#[derive(Clone, Debug)]
pub struct StopTrigger {
    sender: Arc<Mutex<Option<Sender<Infallible>>>>,
}

impl StopTrigger {
    /// Stops every holder of the signal. Further calls change nothing.
    pub fn stop(&self) {
        lock(&self.sender).take();
    }
}

/// The side that is stopped.
#[derive(Clone, Debug)]
pub struct StopSignal {
    receiver: Receiver<Infallible>,
}

impl StopSignal {
    /// Whether the signal was given.
    pub fn is_stopped(&self) -> bool {
        self.receiver.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Blocks until the signal is given.
    pub fn wait(&self) {
        let _ = self.receiver.recv();
    }

    /// Sleeps, but no longer than until the signal is given; `true` if it was.
    pub fn sleep(&self, duration: Duration) -> bool {
        self.receiver.recv_timeout(duration) == Err(RecvTimeoutError::Disconnected)
    }

    /// The channel itself, for `select!`: it never yields a message, it only closes.
    pub fn channel(&self) -> &Receiver<Infallible> {
        &self.receiver
    }
}

/// [`Receiver::recv_timeout`] for a thread that will most likely have to wait: it sleeps at once.
///
/// crossbeam's own first gives the processor away four times, with `sched_yield`. Beside a program
/// that computes, each of these lasts until that one's turn is over: 3 to 4 ms.
///
/// Errors: those of [`Receiver::recv_timeout`].
pub fn recv_timeout<T>(
    receiver: &Receiver<T>,
    timeout: Duration,
) -> std::result::Result<T, RecvTimeoutError> {
    select_biased! {
        recv(receiver) -> message => message.map_err(|_| RecvTimeoutError::Disconnected),
        // Of one operation alone `select_biased!` would make crossbeam's own.
        recv(never::<Infallible>()) -> _ => Err(RecvTimeoutError::Timeout),
        default(timeout) => Err(RecvTimeoutError::Timeout),
    }
}

/// Locks a mutex that guards no invariant a panic could break: a poisoned one is as good.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a thread with a name and a stack of `stack_kib` KiB.
///
/// The system keeps 15 bytes of the name, so the first ones must tell threads apart.
/// Errors: the system has no thread left ([`Error::System`]).
pub fn spawn<T, F>(name: &str, stack_kib: usize, body: F) -> Result<JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(stack_kib * 1024)
        .spawn(body)
        .map_err(|source| Error::System {
            action: "start a thread",
            source,
        })
}

/// Joins a thread that was told to end, but gives up at `deadline`.
///
/// `JoinHandle` knows no time-out, and a process that must exit can't wait for a thread that is
/// stuck in the kernel. Errors: it panicked, or it is still running ([`Error::Thread`]).
pub fn join_until<T>(handle: JoinHandle<T>, deadline: Instant) -> Result<T> {
    try_join_until(handle, deadline).map_err(|(_, error)| error)
}

/// The same, but gives the handle of a thread that is still running back.
pub fn try_join_until<T>(
    handle: JoinHandle<T>,
    deadline: Instant,
) -> std::result::Result<T, (Option<JoinHandle<T>>, Error)> {
    let name = handle.thread().name().unwrap_or("unnamed").to_owned();
    let failed = |reason| Error::Thread { name, reason };
    let mut pause = Duration::from_micros(50);
    while !handle.is_finished() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err((Some(handle), failed("did not end in time")));
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(5));
    }
    handle.join().map_err(|_| (None, failed("panicked")))
}

/// What SIGHUP does: a terminal sends it as it closes, and scripts send it to daemons that reload
/// their settings.
#[derive(Debug, Clone)]
pub enum Hangup {
    /// This is told of it: a program that serves others goes on.
    Tell(Sender<()>),
    /// The same as SIGTERM.
    Stop,
}

/// Turns SIGINT and SIGTERM into a stop signal, and passes SIGHUP on, on a thread of its own.
///
/// The first signal asks for an orderly stop. A second one ends the process at once, for a user
/// who doesn't want to wait for the drain.
pub struct SignalThread {
    handle: Handle,
    thread: JoinHandle<()>,
}

impl SignalThread {
    /// Registers the handlers and starts the thread.
    ///
    /// Errors: the system refuses the handlers or the thread ([`Error::System`]).
    pub fn start(trigger: StopTrigger, hangup: Hangup) -> Result<SignalThread> {
        let system = |source| Error::System {
            action: "register signal handlers",
            source,
        };
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(system)?;
        let handle = signals.handle();
        let thread = spawn("signals", 64, move || {
            let mut stopping = false;
            for signal in &mut signals {
                if signal == SIGHUP
                    && let Hangup::Tell(on_hangup) = &hangup
                {
                    // One that waits already tells as much.
                    let _ = on_hangup.try_send(());
                    continue;
                }
                if stopping {
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
                stopping = true;
                let name = signal_hook::low_level::signal_name(signal).unwrap_or("signal");
                log::info!("{name}: stopping, a second one stops at once");
                trigger.stop();
            }
        })?;
        Ok(SignalThread { handle, thread })
    }

    /// Ends and joins the thread.
    pub fn join(self) -> Result<()> {
        self.handle.close();
        join_until(self.thread, Instant::now() + Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sleeps_at_once_misses_nothing() {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let (short, long) = (Duration::from_millis(1), Duration::from_secs(60));
        assert_eq!(
            recv_timeout(&receiver, short),
            Err(RecvTimeoutError::Timeout)
        );
        sender.send(1).unwrap();
        assert_eq!(recv_timeout(&receiver, short), Ok(1), "it was there before");
        let (answer, answers) = crossbeam_channel::bounded(1);
        let sleeper = spawn("sleeper", 64, move || {
            for _ in 0..1000 {
                answer.send(recv_timeout(&receiver, long)).unwrap();
            }
            recv_timeout(&receiver, long)
        });
        for number in 0..1000 {
            sender.send(number).unwrap();
            assert_eq!(answers.recv().unwrap(), Ok(number));
        }
        drop(sender);
        let last = sleeper.unwrap().join().unwrap();
        assert_eq!(last, Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_stop_wakes_whoever_sleeps_on_it() {
        let (trigger, signal) = stop_signal();
        assert!(!signal.is_stopped());
        let sleeper = spawn("sleeper", 64, move || signal.sleep(Duration::from_secs(60))).unwrap();
        trigger.stop();
        assert!(sleeper.join().unwrap());
    }

    #[test]
    fn a_dropped_trigger_is_a_stop() {
        let (trigger, signal) = stop_signal();
        drop(trigger);
        assert!(signal.is_stopped());
        assert!(signal.sleep(Duration::from_secs(60)));
    }

    #[test]
    fn joining_names_the_thread_that_panicked() {
        let thread = spawn("doomed", 64, || panic!("on purpose")).unwrap();
        let error = join_until(thread, Instant::now() + Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.to_string(), "thread doomed panicked");
    }
}
