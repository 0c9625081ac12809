//! Worker threads that grow with the load and end when idle.
//!
//! All jobs go through one queue. A job that comes wakes an idle worker, or starts a new one, but only
//! a few may be on their way at a time: each of them, before it begins, wakes the next one if there is
//! more to do. So while the processors are free each job has a thread at once; while they are not,
//! those who are running already take the jobs, and nobody is woken who would only stand in line for
//! a processor.
//!
//! The worker that became idle last is the first to be woken. So as many threads are in use as the
//! load needs, and the others have been idle for long enough to end.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::error::Result;
use super::threads::{self, lock, recv_timeout};

/// How many workers may be on their way to a job.
const MAX_WAKING: usize = 2;

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
    crew: Arc<Crew<T>>,
}

struct Crew<T> {
    options: PoolOptions,
    run: Box<dyn Fn(T) + Send + Sync>,
    state: Mutex<State<T>>,
}

struct State<T> {
    queue: VecDeque<T>,
    // Those who wait to be woken, the last to come at the end; each by its own channel.
    idle: Vec<(usize, Sender<()>)>,
    // Those who were woken or started and have not looked at the queue yet. While the queue is not
    // empty there is one at least, or all workers are busy.
    waking: usize,
    // All of them, and how many there may be.
    workers: usize,
    max_workers: usize,
    started: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

impl<T: Send + 'static> Pool<T> {
    /// Makes a pool that runs `run` for each job. No thread is started before the first job.
    pub fn new(options: PoolOptions, run: impl Fn(T) + Send + Sync + 'static) -> Pool<T> {
        let max_workers = options.max_workers;
        Pool {
            crew: Arc::new(Crew {
                options,
                run: Box::new(run),
                state: Mutex::new(State {
                    queue: VecDeque::new(),
                    idle: Vec::new(),
                    waking: 0,
                    workers: 0,
                    max_workers,
                    started: 0,
                    threads: Vec::new(),
                    closed: false,
                }),
            }),
        }
    }

    /// Takes a job for an idle worker, a new one, or the next that is done. Never blocks.
    ///
    /// Gives the job back when all workers are busy and the queue is full, when the system has no
    /// thread for another worker, or when the pool is closed.
    pub fn submit(&self, job: T) -> std::result::Result<(), T> {
        let Crew { options, state, .. } = &*self.crew;
        let mut state = lock(state);
        // Each of these takes one job off the queue.
        let busy = state
            .workers
            .saturating_sub(state.idle.len() + state.waking);
        let free = state.max_workers.saturating_sub(busy);
        if state.closed || state.queue.len() >= free + options.queue {
            return Err(job);
        }
        state.queue.push_back(job);
        let certain = state.idle.len() + state.waking + options.queue;
        if state.queue.len() > certain || state.workers == 0 {
            // This job counts on a thread that there is not yet.
            if let Err(NoThread) = Crew::grow(&self.crew, &mut state) {
                return state.queue.pop_back().map_or(Ok(()), Err);
            }
            return Ok(());
        }
        let waker = Crew::next_to_wake(&self.crew, &mut state);
        drop(state);
        wake(waker);
        Ok(())
    }

    /// Lets there be so many workers at a time from now on. Those who are more end once they are idle.
    pub fn set_max_workers(&self, max_workers: usize) {
        lock(&self.crew.state).max_workers = max_workers;
    }

    /// Whether it takes no further job.
    pub fn is_closed(&self) -> bool {
        lock(&self.crew.state).closed
    }

    /// How many jobs wait for a worker.
    pub fn queued(&self) -> usize {
        lock(&self.crew.state).queue.len()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        lock(&self.crew.state).workers
    }

    /// Takes no further job, lets the workers finish those in hand and in the queue, and joins
    /// them.
    ///
    /// Errors: a worker is still busy at `deadline`
    /// ([`Error::Thread`](crate::base::error::Error::Thread)); a further call waits for it again.
    pub fn join(&self, deadline: Instant) -> Result<()> {
        {
            let mut state = lock(&self.crew.state);
            state.closed = true;
            // Those who wait see that there is nothing more to come.
            state.waking += state.idle.len();
            for (_, worker) in state.idle.drain(..) {
                wake(Some(worker));
            }
        }
        let mut first_failure = Ok(());
        let mut stuck = Vec::new();
        loop {
            let threads = std::mem::take(&mut lock(&self.crew.state).threads);
            if threads.is_empty() {
                break;
            }
            // While there is a queue they start further ones, which stand in the list before they end.
            for thread in threads {
                if let Err((thread, error)) = threads::try_join_until(thread, deadline) {
                    first_failure = first_failure.and(Err(error));
                    stuck.extend(thread);
                }
            }
        }
        lock(&self.crew.state).threads.extend(stuck);
        first_failure
    }
}

impl<T: Send + 'static> Crew<T> {
    // Sees to it that somebody looks at the queue: starts a worker, or says whom to wake once the
    // lock is free. Where the system has no thread left, those who are busy will look.
    fn next_to_wake(crew: &Arc<Crew<T>>, state: &mut State<T>) -> Option<Sender<()>> {
        if state.queue.is_empty() || state.waking >= MAX_WAKING {
            return None;
        }
        if let Some((_, waker)) = state.idle.pop() {
            state.waking += 1;
            return Some(waker);
        }
        if state.workers < state.max_workers {
            let _ = Crew::grow(crew, state);
        }
        None
    }

    fn grow(crew: &Arc<Crew<T>>, state: &mut State<T>) -> std::result::Result<(), NoThread> {
        let number = state.started;
        let name = format!("{}-{number}", crew.options.name);
        let worker = Worker::new(Arc::clone(crew), number);
        match threads::spawn(&name, crew.options.stack_kib, move || worker.run()) {
            Ok(handle) => {
                state.started += 1;
                state.workers += 1;
                state.waking += 1;
                // Ended workers need no join; without this the list would grow for ever.
                state.threads.retain(|thread| !thread.is_finished());
                state.threads.push(handle);
                Ok(())
            }
            Err(error) => {
                log::warn!("{}: {}", crew.options.name, error.chain());
                Err(NoThread)
            }
        }
    }
}

// The system has no thread left.
struct NoThread;

// Its channel has room for one, and being off the list makes the caller the only sender.
fn wake(waker: Option<Sender<()>>) {
    if let Some(waker) = waker {
        let _ = waker.try_send(());
    }
}

struct Worker<T> {
    crew: Arc<Crew<T>>,
    number: usize,
    wake_up: Receiver<()>,
    // What this worker puts into the list when it is idle.
    waker: Sender<()>,
}

impl<T: Send + 'static> Worker<T> {
    fn new(crew: Arc<Crew<T>>, number: usize) -> Worker<T> {
        let (waker, wake_up) = crossbeam_channel::bounded(1);
        Worker {
            crew,
            number,
            wake_up,
            waker,
        }
    }

    fn run(self) {
        let mut is_waking = true;
        while let Some(job) = self.next_job(is_waking) {
            is_waking = false;
            // A panic is a defect of ours, yet it must cost this job only.
            if catch_unwind(AssertUnwindSafe(|| (self.crew.run)(job))).is_err() {
                log::error!("a job panicked; its worker goes on");
            }
        }
    }

    // None: this worker is one no more. That is decided under the lock, so that nobody counts on it.
    fn next_job(&self, mut is_waking: bool) -> Option<T> {
        loop {
            let mut state = lock(&self.crew.state);
            if is_waking {
                state.waking -= 1;
            }
            if let Some(job) = state.queue.pop_front() {
                let waker = Crew::next_to_wake(&self.crew, &mut state);
                drop(state);
                wake(waker);
                return Some(job);
            }
            if state.closed {
                state.workers -= 1;
                return None;
            }
            state.idle.push((self.number, self.waker.clone()));
            drop(state);
            if !self.sleep() {
                return None;
            }
            is_waking = true;
        }
    }

    // Returns whether it was woken; if not, its time was up.
    fn sleep(&self) -> bool {
        if recv_timeout(&self.wake_up, self.crew.options.idle).is_err() {
            let mut state = lock(&self.crew.state);
            let place = state.idle.iter().position(|(who, _)| *who == self.number);
            if let Some(place) = place {
                state.idle.remove(place);
                state.workers -= 1;
                return false;
            }
            drop(state);
            // Off the list: it is being woken just now.
            let _ = self.wake_up.recv();
        }
        true
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
    fn closing_waits_for_those_who_start_as_it_closes_too() {
        const JOBS: usize = 10;
        for _ in 0..20 {
            let barrier = std::sync::Barrier::new(JOBS);
            let (done, on_done) = crossbeam_channel::unbounded();
            let pool = Pool::new(options(JOBS, JOBS), move |()| {
                barrier.wait();
                done.send(()).unwrap();
            });
            for _ in 0..JOBS {
                pool.submit(()).unwrap();
            }
            pool.join(soon()).unwrap();
            assert_eq!((on_done.len(), pool.workers()), (JOBS, 0));
        }
    }

    #[test]
    fn without_a_thread_the_job_comes_back() {
        let mut options = options(2, 4);
        // More than there are addresses: the system refuses.
        options.stack_kib = 1 << 40;
        let pool = Pool::new(options, |_: u32| {});
        for job in [1, 2] {
            assert_eq!(pool.submit(job), Err(job));
        }
        assert_eq!(pool.workers(), 0);
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
            let state = lock(&pool.crew.state);
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
