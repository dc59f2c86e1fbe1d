//! A store for tests whose commits can be made to wait, to fail once without spoiling it, or to panic.

use std::ops::Bound;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use alba_core::kv::{Durability, Entry, Kv, KvError, KvRead, WriteBatch};

/// See the module.
pub(crate) struct Gated {
    kv: Box<dyn Kv>,
    /// What every commit must ask for.
    durability: Durability,
    shut: Mutex<bool>,
    /// Reads wait, too.
    shut_reads: Mutex<bool>,
    /// Commits so far, those that wait included.
    commits: Mutex<u32>,
    changed: Condvar,
    changed_reads: Condvar,
    fail: Mutex<bool>,
    /// The next commit, or read, panics.
    panic_commit: Mutex<bool>,
    panic_read: Mutex<bool>,
    /// Bytes of each commit.
    sizes: Mutex<Vec<usize>>,
}

impl Gated {
    pub(crate) fn new(kv: impl Kv, durability: Durability) -> Self {
        Self {
            kv: Box::new(kv),
            durability,
            shut: Mutex::default(),
            shut_reads: Mutex::default(),
            commits: Mutex::default(),
            changed: Condvar::new(),
            changed_reads: Condvar::new(),
            fail: Mutex::default(),
            panic_commit: Mutex::default(),
            panic_read: Mutex::default(),
            sizes: Mutex::default(),
        }
    }

    pub(crate) fn set(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
        self.changed.notify_all();
    }

    pub(crate) fn set_reads(&self, shut: bool) {
        *self.shut_reads.lock().unwrap() = shut;
        self.changed_reads.notify_all();
    }

    pub(crate) fn fail_next(&self) {
        *self.fail.lock().unwrap() = true;
    }

    pub(crate) fn panic_at_next_commit(&self) {
        *self.panic_commit.lock().unwrap() = true;
    }

    pub(crate) fn panic_at_next_read(&self) {
        *self.panic_read.lock().unwrap() = true;
    }

    pub(crate) fn is_shut(&self) -> bool {
        *self.shut.lock().unwrap()
    }

    /// Bytes of keys and values of each commit so far, those that wait included.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        self.sizes.lock().unwrap().clone()
    }

    pub(crate) fn commits(&self) -> u32 {
        *self.commits.lock().unwrap()
    }
}

impl KvRead for Gated {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let panics = std::mem::take(&mut *self.panic_read.lock().unwrap());
        assert!(!panics, "a read that panics");
        let shut = self.shut_reads.lock().unwrap();
        drop(self.changed_reads.wait_timeout_while(shut, Duration::from_secs(30), |shut| *shut).unwrap());
        self.kv.get(key)
    }

    fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<Entry>, KvError> {
        self.kv.scan(lower, upper, reverse, limit)
    }
}

impl Kv for Gated {
    fn snapshot(&self) -> Result<Box<dyn KvRead + Send + '_>, KvError> {
        self.kv.snapshot()
    }

    fn commit(&self, batch: WriteBatch, durability: Durability) -> Result<(), KvError> {
        assert_eq!(durability, self.durability);
        let size =
            |(key, value): (&Vec<u8>, &Option<Vec<u8>>)| key.len() + value.as_ref().map_or(0, Vec::len);
        self.sizes.lock().unwrap().push(batch.0.iter().map(size).sum());
        *self.commits.lock().unwrap() += 1;
        let panics = std::mem::take(&mut *self.panic_commit.lock().unwrap());
        assert!(!panics, "a commit that panics");
        let shut = self.shut.lock().unwrap();
        // A test that fails must still end.
        drop(self.changed.wait_timeout_while(shut, Duration::from_secs(30), |shut| *shut).unwrap());
        if std::mem::take(&mut *self.fail.lock().unwrap()) {
            return Err(KvError::Io("once".to_owned()));
        }
        self.kv.commit(batch, durability)
    }

    fn sync(&self) -> Result<(), KvError> {
        self.kv.sync()
    }
}
