//! Where the memory of written memtables is given back.
//!
//! fjall drops a memtable that was written to a file under the lock that every read and commit needs, and frees its entries one by one:
//! 100 000 of them held up all commits of a metadata group for 25 to 45 ms. So each memtable is held here, too, and whoever drops
//! it last is a thread that nobody waits for. It must never hold one for longer than a moment that fjall has dropped.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A memtable.
pub(super) type Held = Arc<dyn Any + Send + Sync>;

/// How soon it is looked whether fjall has dropped one, where that is to be expected…
const SOON: Duration = Duration::from_millis(100);

/// … and where it is not: of a store that nothing is written to.
const LATE: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Memtables {
    /// Where the last one is that was noted: it is held, so no other can be there.
    newest: AtomicUsize,
    /// None: fjall drops them itself.
    holder: Option<(Sender<Held>, JoinHandle<()>)>,
}

impl Memtables {
    pub(super) fn new() -> Self {
        let (sender, noted) = mpsc::channel();
        let thread = thread::Builder::new().name("memtables".to_owned()).spawn(move || hold(&noted));
        Self { newest: AtomicUsize::new(0), holder: thread.ok().map(|thread| (sender, thread)) }
    }

    /// Writes go to `active` now.
    pub(super) fn note(&self, active: impl FnOnce() -> Held) {
        let Some((sender, _)) = &self.holder else { return };
        let active = active();
        let at = Arc::as_ptr(&active).addr();
        if self.newest.swap(at, Ordering::Relaxed) != at {
            // The thread lives as long as the sender.
            drop(sender.send(active));
        }
    }
}

impl Drop for Memtables {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.holder.take() {
            drop(sender);
            drop(thread.join());
        }
    }
}

fn hold(noted: &Receiver<Held>) {
    let mut held: Vec<Held> = Vec::new();
    loop {
        match noted.recv_timeout(if held.len() > 1 { SOON } else { LATE }) {
            // Two commits at once may both have noted it.
            Ok(active) if held.iter().any(|other| Arc::ptr_eq(other, &active)) => {}
            Ok(active) => held.push(active),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // What nobody else has, nobody else can get any more.
        held.retain(|memtable| Arc::strong_count(memtable) > 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;

    /// Tells which thread drops it.
    struct Told(Arc<Mutex<Vec<Option<String>>>>);

    impl Drop for Told {
        fn drop(&mut self) {
            self.0.lock().unwrap().push(thread::current().name().map(str::to_owned));
        }
    }

    #[test]
    fn they_are_dropped_by_a_thread_of_their_own_and_soon() {
        let dropped = Arc::new(Mutex::new(Vec::new()));
        let memtables = Memtables::new();
        let made: Vec<Held> = (0..3).map(|_| Arc::new(Told(dropped.clone())) as Held).collect();
        for memtable in &made {
            // Each commit notes it again.
            (0..100).for_each(|_| memtables.note(|| memtable.clone()));
        }
        let mut made = made.into_iter();
        drop(made.next());
        drop(made.next());
        #[allow(clippy::disallowed_methods)]
        let began = Instant::now();
        while dropped.lock().unwrap().len() < 2 {
            assert!(began.elapsed() < Duration::from_secs(20), "not dropped");
            thread::yield_now();
        }
        let by = Some("memtables".to_owned());
        assert_eq!(*dropped.lock().unwrap(), [by.clone(), by], "the third is still written to");
        drop(memtables);
        drop(made);
        assert_eq!(dropped.lock().unwrap().len(), 3, "nothing is held when the store is closed");
    }
}
