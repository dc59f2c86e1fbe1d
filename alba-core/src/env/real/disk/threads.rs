//! A bounded number of threads that may block, with a bounded queue before them. Reads go first, and a part of the threads is for
//! them alone: a read of a block must not wait until a disk has written megabytes, as all that write do.
//!
//! Disk work has threads of its own so that a slow disk cannot take those that other work needs, nor the other way
//! round. They decide nothing else about order: whoever cares about priorities keeps the queue short from outside.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::{Semaphore, oneshot};

use crate::env::real::urgency;

/// Jobs that may be queued or running, per thread. Others wait in line before the queue, where they can give up.
const JOBS_PER_THREAD: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// So many reads go before what waits, and then one of the others: however many there are, writing goes on.
const READS_IN_A_ROW: usize = 4;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Reads; it ends soon.
    Read,
    /// Anything else, which may take as long as the disk does to sync.
    Other,
}

struct Jobs {
    reads: VecDeque<Job>,
    others: VecDeque<Job>,
    /// Threads for reads that have nothing to do, or were woken and have not looked yet.
    readers_waiting: usize,
    /// Taken by threads that do everything, since one of them took something else.
    reads_in_a_row: usize,
    open: bool,
}

struct Queue {
    jobs: Mutex<Jobs>,
    /// For threads that do everything.
    changed: Condvar,
    /// For threads that only read.
    to_read: Condvar,
}

impl Queue {
    /// No code panics while it holds the lock, so a poisoned lock holds a sound state.
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, work: Work, job: Job) {
        let mut jobs = self.jobs();
        match work {
            Work::Read => {
                // Is there one more of them than there are reads for them already? Else whoever comes first takes it.
                let reader = jobs.readers_waiting > jobs.reads.len();
                jobs.reads.push_back(job);
                if reader { &self.to_read } else { &self.changed }.notify_one();
            }
            Work::Other => {
                jobs.others.push_back(job);
                self.changed.notify_one();
            }
        }
    }

    /// The next job for a thread that does `all`, or only reads; none when all are done and none can come.
    fn next(&self, all: bool) -> Option<Job> {
        let changed = if all { &self.changed } else { &self.to_read };
        let mut jobs = self.jobs();
        loop {
            if all && (jobs.reads.is_empty() || jobs.reads_in_a_row >= READS_IN_A_ROW) {
                jobs.reads_in_a_row = 0;
                if let Some(job) = jobs.others.pop_front() {
                    return Some(job);
                }
            }
            if let Some(job) = jobs.reads.pop_front() {
                if all {
                    jobs.reads_in_a_row += 1;
                    if !jobs.others.is_empty() {
                        // Perhaps it was woken for one of these: then somebody else has to come.
                        self.changed.notify_one();
                    }
                }
                return Some(job);
            }
            if !jobs.open {
                return None;
            }
            jobs.readers_waiting += usize::from(!all);
            jobs = changed.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            jobs.readers_waiting -= usize::from(!all);
        }
    }
}

/// Every fourth thread is only for reads; the first does everything, since it may be the only one.
fn does_all(thread: usize) -> bool {
    thread % 4 != 1
}

/// The threads. When this is dropped they finish what is running and end; nobody waits for them, because a disk that
/// hangs would hang whoever waits.
pub(super) struct IoThreads {
    queue: Arc<Queue>,
    slots: Arc<Semaphore>,
    jobs: usize,
}

impl IoThreads {
    /// Starts `threads` of them, at least one.
    pub(super) fn new(threads: usize, carry_bulk: bool) -> io::Result<Self> {
        let threads = threads.clamp(1, 1024);
        let jobs = threads * JOBS_PER_THREAD;
        let none = Jobs {
            reads: VecDeque::new(),
            others: VecDeque::new(),
            readers_waiting: 0,
            reads_in_a_row: 0,
            open: true,
        };
        let queue = Queue { jobs: Mutex::new(none), changed: Condvar::new(), to_read: Condvar::new() };
        let started = Self { queue: Arc::new(queue), slots: Arc::new(Semaphore::new(jobs)), jobs };
        for n in 0..threads {
            let queue = started.queue.clone();
            let all = does_all(n);
            thread::Builder::new().name(format!("disk-io-{n}")).spawn(move || {
                if all && carry_bulk {
                    urgency::serve_both()
                } else {
                    urgency::go_first()
                };
                while let Some(job) = queue.next(all) {
                    // A job that panics told its caller by dropping the answer; the thread is needed for the next.
                    drop(catch_unwind(AssertUnwindSafe(job)));
                }
            })?;
        }
        Ok(started)
    }

    /// Runs `work` on one of the threads. Given up before it started, it never runs; afterwards it runs to its end.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        kind: Work,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let slot = self.slots.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (answer, result) = oneshot::channel();
        let job = Box::new(move || {
            if answer.is_closed() {
                return;
            }
            let done = work();
            // Before the answer: who got it must not find its own work still counted.
            drop(slot);
            // Who gave up meanwhile gets no answer.
            drop(answer.send(done));
        });
        self.queue.add(kind, job);
        result.await.map_err(|_| io::Error::other("the disk operation panicked"))?
    }

    /// Jobs that wait for a thread or run.
    pub(super) fn in_flight(&self) -> usize {
        self.jobs.saturating_sub(self.slots.available_permits())
    }
}

impl Drop for IoThreads {
    fn drop(&mut self) {
        self.queue.jobs().open = false;
        self.queue.changed.notify_all();
        self.queue.to_read.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::task::{Context, Waker};
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn poll<T>(work: Pin<&mut impl Future<Output = T>>) -> bool {
        work.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// A job that tells when it runs and waits until it may end.
    fn blocker() -> (impl FnOnce() -> io::Result<()> + Send + 'static, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (runs, running) = mpsc::channel();
        let (end, may_end) = mpsc::channel();
        let job = move || {
            runs.send(()).map_err(io::Error::other)?;
            may_end.recv().map_err(io::Error::other)
        };
        (job, running, end)
    }

    /// Has a thread that does such a job, until it is told to end.
    fn occupy(
        threads: &IoThreads,
        kind: Work,
    ) -> (Pin<Box<impl Future<Output = io::Result<()>>>>, mpsc::Sender<()>) {
        let (job, running, end) = blocker();
        let mut blocks = Box::pin(threads.run(kind, job));
        assert!(!poll(blocks.as_mut()));
        running.recv_timeout(SOON).unwrap();
        (blocks, end)
    }

    /// A job that tells when it was its turn.
    fn note(
        order: &mpsc::Sender<&'static str>,
        what: &'static str,
    ) -> impl FnOnce() -> io::Result<()> + Send + 'static {
        let order = order.clone();
        move || order.send(what).map_err(io::Error::other)
    }

    #[tokio::test]
    async fn runs_on_named_threads_and_passes_results_and_errors_on() {
        let threads = IoThreads::new(2, true).unwrap();
        let name = threads
            .run(Work::Other, || Ok(thread::current().name().map(str::to_owned)))
            .await
            .unwrap()
            .unwrap();
        assert!(name.starts_with("disk-io-"), "{name}");
        let failed =
            threads.run(Work::Other, || Err::<(), _>(io::ErrorKind::StorageFull.into())).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
        assert_eq!(threads.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_costs_no_thread() {
        let threads = IoThreads::new(1, true).unwrap();
        for _ in 0..3 {
            threads.run(Work::Other, || -> io::Result<()> { panic!("as tests do") }).await.unwrap_err();
        }
        assert_eq!(threads.run(Work::Other, || Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_what_is_given_up_before_it_starts_never_runs() {
        let threads = IoThreads::new(1, true).unwrap();
        let (blocks, end) = occupy(&threads, Work::Other);

        let ran = Arc::new(AtomicUsize::new(0));
        let count = || {
            let ran = ran.clone();
            move || {
                ran.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        };
        let mut queued: Vec<_> =
            (0..JOBS_PER_THREAD + 3).map(|_| Box::pin(threads.run(Work::Other, count()))).collect();
        for work in &mut queued {
            assert!(!poll(work.as_mut()));
        }
        assert_eq!(threads.in_flight(), JOBS_PER_THREAD, "the rest waits outside");
        assert_eq!(threads.queue.jobs().others.len(), JOBS_PER_THREAD - 1);
        let last = queued.pop().unwrap();
        queued.clear();
        end.send(()).unwrap();
        blocks.await.unwrap();
        last.await.unwrap();
        assert_eq!(ran.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_read_does_not_wait_for_what_all_the_others_are_busy_with() {
        let threads = IoThreads::new(2, true).unwrap();
        let (blocks, end) = occupy(&threads, Work::Other);
        let mut next = pin!(threads.run(Work::Other, || Ok(())));
        assert!(!poll(next.as_mut()));
        for n in 0..3 {
            assert_eq!(threads.run(Work::Read, move || Ok(n)).await.unwrap(), n);
        }
        assert_eq!(threads.in_flight(), 2, "those that are no reads wait");
        end.send(()).unwrap();
        blocks.await.unwrap();
        next.await.unwrap();
    }

    #[tokio::test]
    async fn reads_use_all_threads_and_go_before_the_rest() {
        let threads = IoThreads::new(2, true).unwrap();
        let mut blockers: Vec<_> = (0..2).map(|_| occupy(&threads, Work::Read)).collect();
        let (order, done) = mpsc::channel();
        let mut write = pin!(threads.run(Work::Other, note(&order, "write")));
        assert!(!poll(write.as_mut()));
        let mut read = pin!(threads.run(Work::Read, note(&order, "read")));
        assert!(!poll(read.as_mut()));
        // Whichever of the two becomes free first; the one for reads leaves the write alone.
        for what in ["read", "write"] {
            let (blocks, end) = blockers.remove(0);
            end.send(()).unwrap();
            blocks.await.unwrap();
            assert_eq!(done.recv_timeout(SOON).unwrap(), what);
        }
    }

    #[tokio::test]
    async fn reads_that_never_end_do_not_keep_writes_away() {
        let threads = IoThreads::new(1, true).unwrap();
        let (blocks, end) = occupy(&threads, Work::Read);
        let (order, done) = mpsc::channel();
        let mut write = pin!(threads.run(Work::Other, note(&order, "write")));
        assert!(!poll(write.as_mut()));
        let mut reads: Vec<_> = (0..2 * READS_IN_A_ROW)
            .map(|_| Box::pin(threads.run(Work::Read, note(&order, "read"))))
            .collect();
        for read in &mut reads {
            assert!(!poll(read.as_mut()));
        }
        end.send(()).unwrap();
        blocks.await.unwrap();
        let order: Vec<_> = (0..=2 * READS_IN_A_ROW).map(|_| done.recv_timeout(SOON).unwrap()).collect();
        assert_eq!(order.iter().position(|what| *what == "write"), Some(READS_IN_A_ROW - 1));
    }

    #[tokio::test]
    async fn the_threads_end_when_it_is_dropped_and_running_work_gets_to_its_end() {
        let threads = IoThreads::new(3, false).unwrap();
        let (job, running, end) = blocker();
        let (done, is_done) = mpsc::channel();
        {
            let mut work = pin!(threads.run(Work::Other, move || {
                job()?;
                done.send(()).map_err(io::Error::other)
            }));
            assert!(!poll(work.as_mut()));
            running.recv_timeout(SOON).unwrap();
        }
        let queue = Arc::downgrade(&threads.queue);
        drop(threads);
        end.send(()).unwrap();
        is_done.recv_timeout(SOON).unwrap();
        let start = std::time::Instant::now();
        while queue.strong_count() > 0 {
            assert!(start.elapsed() < SOON, "threads are left");
            thread::yield_now();
        }
    }
}
