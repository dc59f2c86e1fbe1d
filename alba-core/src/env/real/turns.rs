//! [`DeviceTurns`] among the processes of a machine, by file locks (`flock`): they end with the process that holds them, however it ends.
//!
//! Two files of the kernel stand for a device, which every process sees, may read, and nobody else locks: nothing is created anywhere. A
//! disk with partitions is one device. Where there are no such files (a memory file system, a network) there are no turns.
//!
//! Any process of the machine could keep such a lock. So a turn is waited for at most [`PATIENCE`], and then for a while none is taken.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::env::turns::{DeviceTurn, DeviceTurns, Direction};

/// A turn is waited for no longer. Of many daemons on one rotating disk each has its turn sooner.
const PATIENCE: Duration = Duration::from_secs(1);

/// So long none is taken after one was waited for in vain: one daemon that hangs must not slow the others down.
const PAUSE: Duration = Duration::from_secs(10);

/// See the module.
pub struct SharedTurns {
    reading: Line,
    writing: Line,
}

impl SharedTurns {
    /// The turns of the device that `directory` is on; none when it is on no device of its own. Blocks a little.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn of(directory: &Path) -> io::Result<Option<Self>> {
        let number = std::fs::metadata(directory)?.dev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let found = Path::new("/sys/dev/block").join(format!("{major}:{minor}"));
        let mut device = match found.canonicalize() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            device => device?,
        };
        if device.join("partition").exists() {
            device.pop();
        }
        Self::by(&device.join("stat"), &device.join("size")).map(Some)
    }

    /// With these files, which exist.
    fn by(reading: &Path, writing: &Path) -> io::Result<Self> {
        Ok(Self { reading: Line::new(reading)?, writing: Line::new(writing)? })
    }

    fn line(&self, direction: Direction) -> &Line {
        match direction {
            Direction::Read => &self.reading,
            Direction::Write => &self.writing,
        }
    }
}

#[async_trait]
impl DeviceTurns for SharedTurns {
    async fn take(&self, direction: Direction) -> Option<DeviceTurn> {
        let line = self.line(direction);
        if line.is_given_up() {
            return None;
        }
        if let Ok(turn) = tokio::time::timeout(PATIENCE, line.wait()).await {
            return turn.map(DeviceTurn::new);
        }
        line.give_up();
        let (path, direction) = (line.path.display(), direction.name());
        tracing::warn!(%path, direction, "a turn at the device was not to be had in time: going on without");
        metrics::counter!("alba_osd_device_turns_given_up_total").increment(1);
        None
    }
}

/// One lock.
struct Line {
    path: PathBuf,
    file: Arc<File>,
    /// Who of this process: a lock belongs to the open file, not to who took it.
    own: Arc<Semaphore>,
    /// To the thread that waits for other processes. It is begun when there are any. Who asks holds `own`, so at most one does.
    waiter: Mutex<Option<mpsc::Sender<Waiting>>>,
    began: Instant,
    /// No turns until then, in milliseconds.
    given_up: AtomicU64,
}

/// Somebody who waits for the lock.
struct Waiting {
    own: OwnedSemaphorePermit,
    answer: oneshot::Sender<Held>,
}

/// The lock.
struct Held {
    file: Arc<File>,
    _own: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        // It cannot fail on a file that is open; and would end with the process at last.
        let _ = flock(self.file.as_ref(), FlockOperation::Unlock);
    }
}

impl Line {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: Arc::new(File::open(path)?),
            path: path.to_owned(),
            own: Arc::new(Semaphore::new(1)),
            waiter: Mutex::new(None),
            began: Instant::now(),
            given_up: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_given_up(&self) -> bool {
        self.now() < self.given_up.load(Ordering::Relaxed)
    }

    fn give_up(&self) {
        let pause = u64::try_from(PAUSE.as_millis()).unwrap_or(u64::MAX);
        self.given_up.store(self.now().saturating_add(pause), Ordering::Relaxed);
    }

    /// The lock. None when it cannot be had at all.
    async fn wait(&self) -> Option<Held> {
        let own = self.own.clone().acquire_owned().await.ok()?;
        match flock(self.file.as_ref(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(Held { file: self.file.clone(), _own: own }),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(_) => return None,
        }
        let (answer, held) = oneshot::channel();
        self.ask(Waiting { own, answer })?;
        held.await.ok()
    }

    /// Hands over to the thread that waits.
    fn ask(&self, waiting: Waiting) -> Option<()> {
        // No code panics while it holds the lock.
        let mut waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner);
        if waiter.is_none() {
            let (asked, to_do) = mpsc::channel();
            let file = self.file.clone();
            // It may wait for longer than this process lives, so nobody waits for it.
            thread::Builder::new()
                .name("device-turn".into())
                .spawn(move || wait_for_all(&file, &to_do))
                .ok()?;
            *waiter = Some(asked);
        }
        waiter.as_ref()?.send(waiting).ok()
    }
}

/// Waits for the lock for one after the other. Who has gone meanwhile gives it back at once.
fn wait_for_all(file: &Arc<File>, to_do: &mpsc::Receiver<Waiting>) {
    for Waiting { own, answer } in to_do {
        let locked = loop {
            match flock(file.as_ref(), FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                locked => break locked,
            }
        };
        if locked.is_ok() {
            drop(answer.send(Held { file: file.clone(), _own: own }));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// As two processes have them: each has opened the files itself.
    fn two() -> (SharedTurns, SharedTurns) {
        let directory = tempfile::tempdir().unwrap();
        let (reading, writing) = (directory.path().join("reading"), directory.path().join("writing"));
        File::create(&reading).unwrap();
        File::create(&writing).unwrap();
        let turns = || SharedTurns::by(&reading, &writing).unwrap();
        (turns(), turns())
    }

    #[tokio::test]
    async fn one_reads_and_one_writes_at_a_time() {
        let (one, other) = two();
        let read = one.take(Direction::Read).await.expect("nobody else is there");
        let write = other.take(Direction::Write).await.expect("another may write meanwhile");
        let mut next = other.take(Direction::Read);
        assert!((&mut next).now_or_never().is_none());
        let mut own = one.take(Direction::Read);
        assert!((&mut own).now_or_never().is_none(), "one of the same process waits as well");
        drop(read);
        // Each is given back at the end of its line.
        assert!(next.await.is_some());
        assert!(own.await.is_some());
        assert!(one.take(Direction::Read).await.is_some());
        drop(write);
        assert!(one.take(Direction::Write).await.is_some());
    }

    #[tokio::test]
    async fn who_stops_waiting_leaves_the_turn_to_others() {
        let (one, other) = two();
        let held = one.take(Direction::Write).await.unwrap();
        assert!(other.take(Direction::Write).now_or_never().is_none(), "begun, and dropped");
        drop(held);
        assert!(one.take(Direction::Write).await.is_some());
        assert!(other.take(Direction::Write).await.is_some());
    }

    #[tokio::test]
    async fn one_that_hangs_is_not_waited_for_twice() {
        let (one, other) = two();
        let held = one.take(Direction::Read).await.unwrap();
        let began = Instant::now();
        assert!(other.take(Direction::Read).await.is_none());
        assert!(began.elapsed() >= PATIENCE);
        assert!(other.take(Direction::Read).now_or_never().unwrap().is_none(), "at once");
        assert!(other.take(Direction::Write).await.is_some(), "that is another lock");
        drop(held);
        assert!(one.take(Direction::Read).await.is_some());
        // As if the pause were over.
        other.reading.given_up.store(0, Ordering::Relaxed);
        assert!(other.take(Direction::Read).await.is_some());
    }

    #[test]
    fn the_device_of_a_directory_has_turns_and_a_file_system_of_the_kernel_has_none() {
        assert!(SharedTurns::of(Path::new("/proc")).unwrap().is_none());
        assert!(SharedTurns::of(Path::new("/nowhere")).is_err());
        // Which of both this one is depends on the machine.
        SharedTurns::of(tempfile::tempdir().unwrap().path()).unwrap();
    }
}
