//! The thread that writes log lines, so that nobody else waits for a disk or a terminal.
//!
//! Lines pile up in a buffer; the thread takes all of it, writes it at once, and pauses. So a quiet
//! program writes each line at once, and a busy one writes many lines with one system call. The
//! buffer is bounded: what nobody takes is dropped and counted, rather than stop the program.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::{Level, Record};

use super::error::Result;
use super::flood::Flood;
use super::threads::{self, lock};

/// How many bytes of lines may wait to be written.
const CAPACITY: usize = 1024 * 1024;
/// How many bytes of memory for them are kept while there are none.
const KEPT: usize = 64 * 1024;
/// How long the thread pauses between two writes.
const PAUSE: Duration = Duration::from_millis(20);
/// What the lines are called that tell how many others are not written.
const COUNTS: &str = "recado::counts";
/// How long writing what is left may take at the end.
const GOODBYE: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Pending {
    state: Mutex<State>,
    changed: Condvar,
    flood: Flood,
}

#[derive(Default)]
struct State {
    // When it is to be told how many lines were not written.
    due: Option<Instant>,
    lines: Vec<u8>,
    lost: usize,
    // Whether the thread waits for a line.
    waiting: bool,
    closed: bool,
}

/// Where a logger writes its lines to; a clone is for another one.
pub(super) struct Lines {
    shared: Arc<Pending>,
    // The line that is being written, piece by piece.
    line: Vec<u8>,
}

/// The thread; dropping this writes what is left and joins it.
pub(super) struct Writer {
    shared: Arc<Pending>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread, which writes to `target`; where lines are lost, it says how many.
    pub fn start(
        target: impl Write + Send + 'static,
        lost_line: fn(usize) -> String,
    ) -> Result<(Writer, Lines)> {
        let shared = Arc::new(Pending::default());
        let own = Arc::clone(&shared);
        let thread = threads::spawn("log", 64, move || own.run(target, lost_line))?;
        let writer = Writer {
            shared: Arc::clone(&shared),
            thread: Some(thread),
        };
        let line = Vec::new();
        Ok((writer, Lines { shared, line }))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // Whoever should read the log may never do so.
            let _ = threads::join_until(thread, Instant::now() + GOODBYE);
        }
    }
}

impl Pending {
    fn run(&self, mut target: impl Write, lost_line: fn(usize) -> String) {
        let mut lines = Vec::new();
        loop {
            let closing = self.wait();
            self.tell_counts(closing);
            let (lost, closed) = {
                let mut state = lock(&self.state);
                state.waiting = false;
                std::mem::swap(&mut state.lines, &mut lines);
                (std::mem::take(&mut state.lost), state.closed)
            };
            // There is nowhere to report a failure to: the program goes on without its log.
            let _ = target.write_all(&lines);
            // To be used again, since a busy log would grow it anew each time; but a burst is not for ever.
            lines.clear();
            lines.shrink_to(KEPT);
            if lost > 0 {
                let _ = writeln!(target, "{}", lost_line(lost));
            }
            if closing && closed {
                return;
            }
            let state = lock(&self.state);
            let pause = self
                .changed
                .wait_timeout_while(state, PAUSE, |state| !state.closed);
            drop(pause.unwrap_or_else(PoisonError::into_inner));
        }
    }

    // Until there is something to do. Returns whether it is the end.
    fn wait(&self) -> bool {
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            let is_due = state.due.is_some_and(|due| due <= now);
            if !state.lines.is_empty() || state.lost > 0 || state.closed || is_due {
                return state.closed;
            }
            state.waiting = true;
            state = match state.due {
                None => {
                    let woken = self.changed.wait(state);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
                Some(due) => {
                    let woken = self.changed.wait_timeout(state, due - now);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    // Says how many lines were not written. They come to this thread as any others do.
    fn tell_counts(&self, is_end: bool) {
        let now = Instant::now();
        // Before the counts are taken: what is held back meanwhile says anew when it is due.
        if lock(&self.state)
            .due
            .take_if(|due| is_end || *due <= now)
            .is_none()
        {
            return;
        }
        let (counts, next) = self.flood.take(now, is_end);
        if let Some(next) = next {
            let mut state = lock(&self.state);
            state.due = Some(state.due.map_or(next, |due| due.min(next)));
        }
        for held in counts {
            let (count, example) = (held.count, held.example);
            log::log!(target: COUNTS, held.level, "{count} more like this: {example}");
        }
    }
}

impl Lines {
    /// Whether a record is to be written. One that isn't is counted, and that is told later.
    pub fn admits(&self, record: &Record<'_>) -> bool {
        if record.level() > Level::Warn || record.target() == COUNTS {
            return true;
        }
        let Err(due) = self.shared.flood.admits(record, Instant::now()) else {
            return true;
        };
        let mut state = lock(&self.shared.state);
        if state.due.is_none() {
            state.due = Some(due);
            self.shared.changed.notify_one();
        }
        false
    }
}

impl Clone for Lines {
    fn clone(&self) -> Lines {
        Lines {
            shared: Arc::clone(&self.shared),
            line: Vec::new(),
        }
    }
}

impl Write for Lines {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(piece);
        if self.line.ends_with(b"\n") {
            let mut state = lock(&self.shared.state);
            match state.lines.len() + self.line.len() <= CAPACITY {
                true => state.lines.extend_from_slice(&self.line),
                false => state.lost += 1,
            }
            // Only a thread that waits for a line needs to be woken: one that pauses looks anyway.
            if std::mem::take(&mut state.waiting) {
                self.shared.changed.notify_one();
            }
            drop(state);
            self.line.clear();
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Target(Arc<Mutex<Vec<u8>>>);

    impl Write for Target {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_there_in_its_order_in_the_end() {
        let target = Target::default();
        let (writer, mut lines) =
            Writer::start(target.clone(), |lost| format!("{lost} log lines were lost")).unwrap();
        let mut wanted = String::new();
        for number in 0..1000 {
            write!(lines, "{number}").unwrap();
            writeln!(lines, " a line").unwrap();
            wanted.push_str(&format!("{number} a line\n"));
        }
        drop(writer);
        assert_eq!(lock(&target.0).as_slice(), wanted.as_bytes());
    }

    #[test]
    fn what_nobody_takes_is_counted() {
        let target = Target::default();
        // The target is stuck while the test holds it.
        let held = Arc::clone(&target.0);
        let stuck = lock(&held);
        let (writer, mut lines) =
            Writer::start(target.clone(), |lost| format!("{lost} log lines were lost")).unwrap();
        let line = vec![b'x'; 1023];
        for _ in 0..3 * CAPACITY / 1024 {
            lines.write_all(&line).unwrap();
            lines.write_all(b"\n").unwrap();
        }
        drop(stuck);
        drop(writer);
        let written = String::from_utf8(lock(&held).clone()).unwrap();
        let kept = written.lines().filter(|line| line.starts_with('x')).count();
        let lost: usize = written
            .lines()
            .filter_map(|line| {
                line.split_once(" log lines were lost")?
                    .0
                    .parse::<usize>()
                    .ok()
            })
            .sum();
        assert!(lost > 0);
        assert_eq!(kept + lost, 3 * CAPACITY / 1024);
    }
}
