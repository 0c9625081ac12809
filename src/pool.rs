//! Worker threads that grow with the load and end when idle.
//!
//! A job goes to a worker that is *waiting for it*, and only such a worker counts as idle: the
//! hand-over is a channel of capacity zero, on which `try_send` succeeds only while a receiver
//! stands ready. Counting idle workers in a variable looks simpler and is wrong: between the
//! wake-up of a worker and its first instruction it would count as idle for the next job too,
//! which then waits behind it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, select};

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

#[derive(Clone)]
struct Lanes<T> {
    idle: Sender<T>,
    queue: Sender<T>,
}

struct Shared<T> {
    options: PoolOptions,
    // None once the pool is closed: closing the channels is what ends the workers. Jobs are
    // submitted and workers end under this lock, so no job is queued for a worker that is
    // just leaving.
    lanes: Mutex<Option<Lanes<T>>>,
    run: Box<dyn Fn(T) + Send + Sync>,
    idle: Receiver<T>,
    queue: Receiver<T>,
    workers: AtomicUsize,
    started: AtomicUsize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl<T: Send + 'static> Pool<T> {
    /// Makes a pool that runs `run` for each job. No thread is started before the first job.
    pub fn new(options: PoolOptions, run: impl Fn(T) + Send + Sync + 'static) -> Pool<T> {
        let (idle_sender, idle) = crossbeam_channel::bounded(0);
        let (queue_sender, queue) = crossbeam_channel::bounded(options.queue);
        Pool {
            shared: Arc::new(Shared {
                options,
                lanes: Mutex::new(Some(Lanes {
                    idle: idle_sender,
                    queue: queue_sender,
                })),
                run: Box::new(run),
                idle,
                queue,
                workers: AtomicUsize::new(0),
                started: AtomicUsize::new(0),
                threads: Mutex::new(Vec::new()),
            }),
        }
    }

    /// Hands a job to an idle worker, else to a new one, else to the queue. Never blocks.
    ///
    /// Gives the job back when all workers are busy and the queue is full, or when the pool is
    /// closed.
    pub fn submit(&self, job: T) -> std::result::Result<(), T> {
        let lanes = lock(&self.shared.lanes);
        let Some(lanes) = lanes.as_ref() else {
            return Err(job);
        };
        let job = match lanes.idle.try_send(job) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => job,
        };
        let job = match self.grow(job) {
            Ok(()) => return Ok(()),
            Err(job) => job,
        };
        if self.shared.options.queue == 0 {
            return Err(job);
        }
        match lanes.queue.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => Err(job),
        }
    }

    // Called under the lock of `lanes`, so that no worker starts once the pool is closed.
    fn grow(&self, job: T) -> std::result::Result<(), T> {
        let shared = &self.shared;
        if shared.workers.load(Ordering::Relaxed) >= shared.options.max_workers {
            return Err(job);
        }
        shared.workers.fetch_add(1, Ordering::Relaxed);
        let number = shared.started.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", shared.options.name);
        // The job travels in a slot that this side keeps, so that it comes back when the system
        // has no thread left.
        let slot = Arc::new(Mutex::new(Some(job)));
        let (worker, worker_slot) = (Arc::clone(shared), Arc::clone(&slot));
        let spawned = threads::spawn(&name, shared.options.stack_kib, move || {
            let first = lock(&worker_slot).take();
            work(&worker, first);
        });
        match spawned {
            Ok(handle) => {
                let mut threads = lock(&shared.threads);
                // Ended workers need no join; without this the list would grow for ever.
                threads.retain(|thread| !thread.is_finished());
                threads.push(handle);
                Ok(())
            }
            Err(error) => {
                shared.workers.fetch_sub(1, Ordering::Relaxed);
                log::warn!("{}: {}", shared.options.name, error.chain());
                match lock(&slot).take() {
                    Some(job) => Err(job),
                    None => Ok(()),
                }
            }
        }
    }

    /// Whether it takes no further job.
    pub fn is_closed(&self) -> bool {
        lock(&self.shared.lanes).is_none()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.shared.workers.load(Ordering::Relaxed)
    }

    /// Takes no further job, lets the workers finish those in hand and in the queue, and joins
    /// them.
    ///
    /// Errors: a worker is still busy at `deadline` ([`Error::Thread`](crate::error::Error::Thread)); a further call waits for
    /// it again.
    pub fn join(&self, deadline: Instant) -> Result<()> {
        drop(lock(&self.shared.lanes).take());
        let threads = std::mem::take(&mut *lock(&self.shared.threads));
        let mut first_failure = Ok(());
        for thread in threads {
            if let Err((thread, error)) = threads::try_join_until(thread, deadline) {
                first_failure = first_failure.and(Err(error));
                lock(&self.shared.threads).extend(thread);
            }
        }
        first_failure
    }
}

fn work<T: Send + 'static>(shared: &Shared<T>, first: Option<T>) {
    let mut next = first.or_else(|| leave(shared));
    while let Some(job) = next {
        // A panic is a defect of ours, yet it must cost this job only.
        if catch_unwind(AssertUnwindSafe(|| (shared.run)(job))).is_err() {
            log::error!("a job panicked; its worker goes on");
        }
        next = wait_for_job(shared).or_else(|| leave(shared));
    }
}

// Ends the worker's membership, unless a job was queued since it stopped waiting.
fn leave<T>(shared: &Shared<T>) -> Option<T> {
    let _lanes = lock(&shared.lanes);
    let job = shared.queue.try_recv().ok();
    if job.is_none() {
        shared.workers.fetch_sub(1, Ordering::Relaxed);
    }
    job
}

fn wait_for_job<T>(shared: &Shared<T>) -> Option<T> {
    if shared.options.queue == 0 {
        return shared.idle.recv_timeout(shared.options.idle).ok();
    }
    // Both at once: with the queue looked at first and the other lane waited on after it, a job
    // queued in between would wait although this worker is free.
    select! {
        recv(shared.queue) -> job => job.ok(),
        recv(shared.idle) -> job => job.ok(),
        default(shared.options.idle) => None,
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
