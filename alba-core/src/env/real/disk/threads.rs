//! A bounded number of threads that may block, with a bounded queue before them. Reads go first, and some threads are for small ones
//! alone: a read of a block must not wait until a disk has read or written megabytes, nor for a processor with those that do.
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
    /// Reads something small: somebody waits for nothing else.
    SmallRead,
    /// Reads; it ends soon.
    Read,
    /// Anything else, which may take as long as the disk does to sync.
    Other,
}

#[derive(Default)]
struct Jobs {
    small_reads: VecDeque<Job>,
    reads: VecDeque<Job>,
    others: VecDeque<Job>,
    /// Threads for small reads that have nothing to do, or were woken and have not looked yet. Those that wait while there is something
    /// for them were all woken.
    readers_waiting: usize,
    /// Taken by threads that do everything, since one of them took something else.
    reads_in_a_row: usize,
    closed: bool,
}

impl Jobs {
    /// The next one for a thread that does everything.
    fn take(&mut self) -> Option<Job> {
        if self.reads_in_a_row >= READS_IN_A_ROW {
            self.reads_in_a_row = 0;
            if let Some(job) = self.others.pop_front() {
                return Some(job);
            }
        }
        if let Some(job) = self.take_read() {
            self.reads_in_a_row += 1;
            return Some(job);
        }
        self.reads_in_a_row = 0;
        self.others.pop_front()
    }

    fn take_read(&mut self) -> Option<Job> {
        // Whoever was woken for a small one is at it sooner: it need not wait for a processor, as those that do everything must.
        let left = self.small_reads.len() > self.readers_waiting;
        left.then(|| self.small_reads.pop_front()).flatten().or_else(|| self.reads.pop_front())
    }
}

struct Queue {
    jobs: Mutex<Jobs>,
    /// For threads that do everything.
    changed: Condvar,
    /// For threads that only do small reads.
    to_read: Condvar,
}

impl Queue {
    /// No code panics while it holds the lock, so a poisoned lock holds a sound state.
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, work: Work, job: Job) {
        let mut jobs = self.jobs();
        let wake = match work {
            Work::SmallRead => {
                // Is there one more of them than there are reads for them already? Else whoever comes first takes it.
                let reader = jobs.readers_waiting > jobs.small_reads.len();
                jobs.small_reads.push_back(job);
                if reader { &self.to_read } else { &self.changed }
            }
            Work::Read => {
                jobs.reads.push_back(job);
                &self.changed
            }
            Work::Other => {
                jobs.others.push_back(job);
                &self.changed
            }
        };
        // One that goes first would come at once, and wait for the lock.
        drop(jobs);
        wake.notify_one();
    }

    /// The next job for a thread that does everything; none when all are done and none can come.
    fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs();
        loop {
            if let Some(job) = jobs.take() {
                if !jobs.others.is_empty() {
                    // Perhaps it was woken for one of these: then somebody else has to come.
                    self.changed.notify_one();
                }
                return Some(job);
            }
            if jobs.closed {
                return None;
            }
            jobs = self.changed.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The same for a thread that only does small reads.
    fn next_small_read(&self) -> Option<Job> {
        let mut jobs = self.jobs();
        loop {
            if let Some(job) = jobs.small_reads.pop_front() {
                return Some(job);
            }
            if jobs.closed {
                return None;
            }
            jobs.readers_waiting += 1;
            jobs = self.to_read.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            jobs.readers_waiting -= 1;
        }
    }
}

/// Runs what there is, until nothing can come any more.
fn work(next: impl Fn() -> Option<Job>) {
    while let Some(job) = next() {
        // A job that panics told its caller by dropping the answer; the thread is needed for the next.
        drop(catch_unwind(AssertUnwindSafe(job)));
    }
}

/// The threads. When this is dropped they finish what is running and end; nobody waits for them, because a disk that
/// hangs would hang whoever waits.
pub(super) struct IoThreads {
    queue: Arc<Queue>,
    /// For small reads, and for the rest: neither waits for room that the other has.
    slots: [Slots; 2],
}

/// Jobs of a kind that may be queued or running.
struct Slots {
    free: Arc<Semaphore>,
    all: usize,
}

impl Slots {
    fn of(threads: usize) -> Self {
        let all = threads * JOBS_PER_THREAD;
        Self { free: Arc::new(Semaphore::new(all)), all }
    }
}

impl IoThreads {
    /// Starts `threads` of them, at least one, and half as many for small reads.
    pub(super) fn new(threads: usize, carry_bulk: bool) -> io::Result<Self> {
        let threads = threads.clamp(1, 1024);
        let readers = threads.div_ceil(2);
        let queue = Queue { jobs: Mutex::default(), changed: Condvar::new(), to_read: Condvar::new() };
        let started = Self { queue: Arc::new(queue), slots: [Slots::of(readers), Slots::of(threads)] };
        for n in 0..threads {
            let queue = started.queue.clone();
            thread::Builder::new().name(format!("disk-io-{n}")).spawn(move || {
                if carry_bulk {
                    urgency::serve_both()
                } else {
                    urgency::go_first()
                };
                work(|| queue.next());
            })?;
        }
        for n in 0..readers {
            let queue = started.queue.clone();
            thread::Builder::new().name(format!("disk-read-{n}")).spawn(move || {
                urgency::go_first();
                work(|| queue.next_small_read());
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
        let [small_reads, rest] = &self.slots;
        let slots = if kind == Work::SmallRead { small_reads } else { rest };
        let slot = slots.free.clone().acquire_owned().await.map_err(io::Error::other)?;
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
        self.slots.iter().map(|slots| slots.all.saturating_sub(slots.free.available_permits())).sum()
    }
}

impl Drop for IoThreads {
    fn drop(&mut self) {
        self.queue.jobs().closed = true;
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
    async fn a_small_read_does_not_wait_for_what_all_the_others_are_busy_with() {
        let threads = IoThreads::new(1, true).unwrap();
        let (blocks, end) = occupy(&threads, Work::Read);
        // As many as there may be.
        let mut others: Vec<_> =
            (0..JOBS_PER_THREAD).map(|_| Box::pin(threads.run(Work::Other, || Ok(())))).collect();
        for work in &mut others {
            assert!(!poll(work.as_mut()));
        }
        for n in 0..3 {
            assert_eq!(threads.run(Work::SmallRead, move || Ok(n)).await.unwrap(), n);
        }
        assert_eq!(threads.in_flight(), JOBS_PER_THREAD, "those that are no small reads wait");
        end.send(()).unwrap();
        blocks.await.unwrap();
        for work in others {
            work.await.unwrap();
        }
    }

    #[tokio::test]
    async fn small_reads_use_all_threads() {
        let threads = IoThreads::new(2, true).unwrap();
        let mut blockers: Vec<_> = (0..3).map(|_| occupy(&threads, Work::SmallRead)).collect();
        let mut next = pin!(threads.run(Work::SmallRead, || Ok(())));
        assert!(!poll(next.as_mut()));
        for (_, end) in &blockers {
            end.send(()).unwrap();
        }
        for (blocks, _) in &mut blockers {
            blocks.await.unwrap();
        }
        next.await.unwrap();
    }

    #[test]
    fn small_reads_are_left_to_threads_that_were_woken_for_them() {
        let (ran, order) = mpsc::channel();
        let job = |what: &'static str| -> Job {
            let ran = ran.clone();
            Box::new(move || ran.send(what).unwrap())
        };
        let mut jobs = Jobs { readers_waiting: 1, ..Jobs::default() };
        jobs.small_reads.extend([job("small 1"), job("small 2")]);
        jobs.reads.push_back(job("large"));
        jobs.others.push_back(job("other"));
        while let Some(job) = jobs.take() {
            job();
        }
        assert_eq!(order.try_iter().collect::<Vec<_>>(), ["small 1", "large", "other"]);
        jobs.readers_waiting = 0;
        jobs.take().unwrap()();
        assert_eq!(order.try_iter().collect::<Vec<_>>(), ["small 2"]);
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
