//! Worker threads that grow with the load and end when idle.
//!
//! An idle worker stands in a list, and only such a worker is given a job: whoever hands it one
//! takes it off the list in the same step. Counting idle workers in a variable looks simpler and
//! is wrong: between the wake-up of a worker and its first instruction it would count as idle for
//! the next job too, which then waits behind it.
//!
//! The worker that became idle last is the first to get a job again. So as many threads are in
//! use as the load needs, and the others have been idle for long enough to end.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use crate::error::Result;
use crate::threads::{self, lock};

/// How a [`Pool`] is built.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// The beginning of each worker's name; a number follows.
    pub name: &'static str,
    /// The most workers at a time.
    pub max_workers: usize,
    /// How many jobs may wait while all workers are busy; 0: none.
    pub queue: usize,
    /// The stack of a worker, in KiB.
    pub stack_kib: usize,
    /// A worker that had nothing to do for this long ends.
    pub idle: Duration,
}

/// A bounded pool of worker threads for jobs of one type.
pub struct Pool<T: Send + 'static> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    options: PoolOptions,
    run: Box<dyn Fn(T) + Send + Sync>,
    state: Mutex<State<T>>,
}

struct State<T> {
    // Those who wait for a job, the last to come at the end; each by its own channel.
    idle: Vec<(usize, Sender<Option<T>>)>,
    // Never filled while somebody is idle.
    queue: VecDeque<T>,
    workers: usize,
    started: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

impl<T: Send + 'static> Pool<T> {
    /// Makes a pool that runs `run` for each job. No thread is started before the first job.
    pub fn new(options: PoolOptions, run: impl Fn(T) + Send + Sync + 'static) -> Pool<T> {
        Pool {
            shared: Arc::new(Shared {
                options,
                run: Box::new(run),
                state: Mutex::new(State {
                    idle: Vec::new(),
                    queue: VecDeque::new(),
                    workers: 0,
                    started: 0,
                    threads: Vec::new(),
                    closed: false,
                }),
            }),
        }
    }

    /// Hands a job to an idle worker, else to a new one, else to the queue. Never blocks.
    ///
    /// Gives the job back when all workers are busy and the queue is full, or when the pool is
    /// closed.
    pub fn submit(&self, job: T) -> std::result::Result<(), T> {
        let mut state = lock(&self.shared.state);
        if state.closed {
            return Err(job);
        }
        if let Some((_, worker)) = state.idle.pop() {
            drop(state);
            // Its channel has room for one, and being off the list makes this the only sender.
            return match worker.try_send(Some(job)) {
                Ok(()) => Ok(()),
                Err(refused) => refused.into_inner().map_or(Ok(()), Err),
            };
        }
        if state.workers < self.shared.options.max_workers {
            return self.grow(&mut state, job);
        }
        if state.queue.len() < self.shared.options.queue {
            state.queue.push_back(job);
            return Ok(());
        }
        Err(job)
    }

    fn grow(&self, state: &mut State<T>, job: T) -> std::result::Result<(), T> {
        let number = state.started;
        let name = format!("{}-{number}", self.shared.options.name);
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let worker = Worker {
            shared: Arc::clone(&self.shared),
            number,
            jobs: receiver.clone(),
            sender: sender.clone(),
        };
        // Sent first, so that it can be taken back if the system has no thread left.
        let _ = sender.try_send(Some(job));
        match threads::spawn(&name, self.shared.options.stack_kib, move || worker.run()) {
            Ok(handle) => {
                state.started += 1;
                state.workers += 1;
                // Ended workers need no join; without this the list would grow for ever.
                state.threads.retain(|thread| !thread.is_finished());
                state.threads.push(handle);
                Ok(())
            }
            Err(error) => {
                log::warn!("{}: {}", self.shared.options.name, error.chain());
                receiver.try_recv().ok().flatten().map_or(Ok(()), Err)
            }
        }
    }

    /// Whether it takes no further job.
    pub fn is_closed(&self) -> bool {
        lock(&self.shared.state).closed
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        lock(&self.shared.state).workers
    }

    /// Takes no further job, lets the workers finish those in hand and in the queue, and joins
    /// them.
    ///
    /// Errors: a worker is still busy at `deadline`
    /// ([`Error::Thread`](crate::error::Error::Thread)); a further call waits for it again.
    pub fn join(&self, deadline: Instant) -> Result<()> {
        let threads = {
            let mut state = lock(&self.shared.state);
            state.closed = true;
            // Those who wait are told that there is nothing more to come.
            for (_, worker) in state.idle.drain(..) {
                let _ = worker.try_send(None);
            }
            std::mem::take(&mut state.threads)
        };
        let mut first_failure = Ok(());
        for thread in threads {
            if let Err((thread, error)) = threads::try_join_until(thread, deadline) {
                first_failure = first_failure.and(Err(error));
                lock(&self.shared.state).threads.extend(thread);
            }
        }
        first_failure
    }
}

struct Worker<T> {
    shared: Arc<Shared<T>>,
    number: usize,
    jobs: Receiver<Option<T>>,
    // What this worker puts into the list when it is idle.
    sender: Sender<Option<T>>,
}

impl<T> Worker<T> {
    fn run(self) {
        // The first job was sent before the thread was started.
        let mut next = self.jobs.try_recv().ok().flatten();
        while let Some(job) = next {
            // A panic is a defect of ours, yet it must cost this job only.
            if catch_unwind(AssertUnwindSafe(|| (self.shared.run)(job))).is_err() {
                log::error!("a job panicked; its worker goes on");
            }
            next = self.next_job();
        }
    }

    // None: this worker is one no more. That is decided under the lock, so that no job is queued
    // for it in the meantime.
    fn next_job(&self) -> Option<T> {
        {
            let mut state = lock(&self.shared.state);
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            if state.closed {
                state.workers -= 1;
                return None;
            }
            state.idle.push((self.number, self.sender.clone()));
        }
        let received = match self.jobs.recv_timeout(self.shared.options.idle) {
            Ok(received) => received,
            Err(_) => {
                let mut state = lock(&self.shared.state);
                let place = state.idle.iter().position(|(who, _)| *who == self.number);
                if let Some(place) = place {
                    state.idle.remove(place);
                    state.workers -= 1;
                    return None;
                }
                drop(state);
                // Off the list: something is being sent just now.
                self.jobs.recv().ok().flatten()
            }
        };
        if received.is_none() {
            lock(&self.shared.state).workers -= 1;
        }
        received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(max_workers: usize, queue: usize) -> PoolOptions {
        PoolOptions {
            name: "test",
            max_workers,
            queue,
            stack_kib: 64,
            idle: Duration::from_secs(60),
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn full_workers_and_a_full_queue_give_the_job_back() {
        let (started, on_start) = crossbeam_channel::unbounded();
        let (release, gate) = crossbeam_channel::bounded::<()>(0);
        let (done, on_done) = crossbeam_channel::unbounded();
        let pool = Pool::new(options(2, 1), move |job: u32| {
            started.send(job).unwrap();
            let _ = gate.recv();
            done.send(job).unwrap();
        });
        assert_eq!(pool.submit(1), Ok(()));
        assert_eq!(pool.submit(2), Ok(()));
        let mut running = [on_start.recv().unwrap(), on_start.recv().unwrap()];
        running.sort_unstable();
        assert_eq!(running, [1, 2]);
        assert_eq!(pool.submit(3), Ok(()), "the queue has room for one");
        assert_eq!(pool.submit(4), Err(4));
        assert_eq!(pool.workers(), 2);
        drop(release);
        pool.join(soon()).unwrap();
        let mut finished: Vec<u32> = on_done.try_iter().collect();
        finished.sort_unstable();
        assert_eq!(finished, [1, 2, 3], "closing drains the queue");
        assert_eq!(pool.submit(5), Err(5), "a closed pool takes nothing");
    }

    #[test]
    fn a_burst_gets_a_worker_each() {
        // Every job waits for all the others: one that is parked behind a busy worker would
        // hang the test.
        const JOBS: usize = 50;
        let barrier = Arc::new(std::sync::Barrier::new(JOBS));
        let pool = Pool::new(options(JOBS, 0), move |()| {
            barrier.wait();
        });
        for _ in 0..4 {
            for _ in 0..JOBS {
                while pool.submit(()).is_err() {
                    std::thread::yield_now();
                }
            }
        }
        pool.join(soon()).unwrap();
    }

    #[test]
    fn closing_wakes_those_who_wait() {
        let (done, on_done) = crossbeam_channel::unbounded();
        let pool = Pool::new(options(4, 0), move |job: u32| done.send(job).unwrap());
        for job in 0..4 {
            pool.submit(job).unwrap();
            on_done.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        let limit = soon();
        loop {
            let state = lock(&pool.shared.state);
            if state.idle.len() == state.workers {
                break;
            }
            drop(state);
            assert!(Instant::now() < limit, "a worker without a job is not idle");
            std::thread::yield_now();
        }
        // They would wait for a minute.
        pool.join(Instant::now() + Duration::from_secs(20)).unwrap();
        assert_eq!(pool.workers(), 0);
    }

    #[test]
    fn idle_workers_end_and_a_panic_costs_one_job() {
        let mut options = options(1, 4);
        options.idle = Duration::from_millis(1);
        let (done, on_done) = crossbeam_channel::unbounded();
        let pool = Pool::new(options, move |job: u32| {
            assert!(job != 1, "on purpose");
            done.send(job).unwrap();
        });
        pool.submit(1).unwrap();
        pool.submit(2).unwrap();
        assert_eq!(on_done.recv_timeout(Duration::from_secs(10)), Ok(2));
        let limit = soon();
        while pool.workers() > 0 {
            assert!(Instant::now() < limit, "an idle worker stays for ever");
            std::thread::yield_now();
        }
        pool.submit(3).unwrap();
        assert_eq!(on_done.recv_timeout(Duration::from_secs(10)), Ok(3));
        pool.join(soon()).unwrap();
    }
}
