//! What the disk and its file system can do. Rates in MB/s (10^6 bytes), of all threads together.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Bytes of the file that belong to one thread. As in `fio/*.fio`.
pub(crate) const RANGE: u64 = 64 << 20;

/// Where memory for O_DIRECT may begin.
const ALIGNMENT: usize = 4096;

/// Memory for O_DIRECT, of any bytes: some disks are faster with zeros.
pub(crate) struct Memory {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Memory {
    pub(crate) fn new(len: usize, seed: u64) -> Self {
        let mut bytes = vec![0; len + ALIGNMENT];
        StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, start, len }
    }

    pub(crate) fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// How a file is opened to bypass the page cache.
pub(crate) fn direct() -> i32 {
    i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap()
}

/// A file in `directory` for `threads` threads whose every block was written once and synced.
pub(crate) fn prewritten(directory: &Path, threads: usize) -> io::Result<PathBuf> {
    let path = directory.join("prewritten");
    let file = OpenOptions::new().write(true).create_new(true).custom_flags(direct()).open(&path)?;
    let mut memory = Memory::new(4 << 20, 0);
    let size = RANGE * u64::try_from(threads).unwrap();
    for offset in (0..size).step_by(4 << 20) {
        file.write_all_at(memory.get(), offset)?;
    }
    file.sync_all()?;
    Ok(path)
}

/// O_DIRECT pwrite + fdatasync, each thread round and round its own range of a [`prewritten`] file.
pub(crate) fn overwrite(path: &Path, threads: usize, block: usize, time: Duration) -> io::Result<f64> {
    each(threads, time, |thread, start| {
        let file = OpenOptions::new().write(true).custom_flags(direct()).open(path)?;
        let mut memory = Memory::new(block, thread);
        start.go();
        round(thread, block, start, |offset| {
            memory.get()[..8].copy_from_slice(&offset.to_le_bytes());
            file.write_all_at(memory.get(), offset)?;
            file.sync_data()
        })
    })
}

/// O_DIRECT pread, each thread round and round its own range of a [`prewritten`] file.
pub(crate) fn read(path: &Path, threads: usize, block: usize, time: Duration) -> io::Result<f64> {
    each(threads, time, |thread, start| {
        let file = OpenOptions::new().read(true).custom_flags(direct()).open(path)?;
        let mut memory = Memory::new(block, thread);
        start.go();
        round(thread, block, start, |offset| file.read_exact_at(memory.get(), offset))
    })
}

/// Appends through the page cache, each followed by fdatasync, each thread to a fresh file of its own. The files are
/// removed.
pub(crate) fn append(directory: &Path, threads: usize, block: usize, time: Duration) -> io::Result<f64> {
    let path = |thread: u64| directory.join(format!("append-{thread}"));
    let rate = each(threads, time, |thread, start| {
        let mut memory = Memory::new(block, thread);
        start.go();
        let file = File::create_new(path(thread))?;
        let mut bytes = 0_u64;
        while start.goes_on() {
            memory.get()[..8].copy_from_slice(&bytes.to_le_bytes());
            file.write_all_at(memory.get(), bytes)?;
            file.sync_data()?;
            bytes += u64::try_from(block).unwrap();
        }
        Ok(bytes)
    });
    // Not timed: it takes as long as the files are large.
    for thread in 0..u64::try_from(threads).unwrap() {
        std::fs::remove_file(path(thread))?;
    }
    rate
}

/// Blocks of the thread's range one after the other, from its beginning again at its end. Gives the bytes done.
fn round(
    thread: u64,
    block: usize,
    start: &Start<'_>,
    mut work: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<u64> {
    let block = u64::try_from(block).unwrap();
    let mut bytes = 0;
    while start.goes_on() {
        work(thread * RANGE + bytes % RANGE)?;
        bytes += block;
    }
    Ok(bytes)
}

/// The common start of all threads, and how long they go on.
pub(crate) struct Start<'a> {
    barrier: &'a Barrier,
    began: std::cell::Cell<Option<Instant>>,
    time: Duration,
}

impl Start<'_> {
    /// Waits for the others.
    pub(crate) fn go(&self) {
        self.barrier.wait();
        self.began.set(Some(Instant::now()));
    }

    pub(crate) fn goes_on(&self) -> bool {
        self.began.get().is_some_and(|began| began.elapsed() < self.time)
    }
}

/// Runs `work` on that many threads and gives MB/s of the bytes they say they did, until the last was done.
pub(crate) fn each(
    threads: usize,
    time: Duration,
    work: impl Fn(u64, &Start<'_>) -> io::Result<u64> + Sync,
) -> io::Result<f64> {
    let barrier = Barrier::new(threads);
    let results: Vec<io::Result<(u64, Duration)>> = thread::scope(|scope| {
        let (work, barrier) = (&work, &barrier);
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let start = Start { barrier, began: std::cell::Cell::new(None), time };
                    let bytes = work(u64::try_from(thread).unwrap(), &start)?;
                    Ok((bytes, start.began.get().map_or(time, |began| began.elapsed())))
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().expect("no measuring thread panics")).collect()
    });
    let mut bytes = 0;
    let mut longest = Duration::ZERO;
    for result in results {
        let (done, took) = result?;
        bytes += done;
        longest = longest.max(took);
    }
    Ok(per_second(bytes, longest) / 1e6)
}

/// A rate.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn per_second(amount: u64, time: Duration) -> f64 {
    amount as f64 / time.as_secs_f64()
}
