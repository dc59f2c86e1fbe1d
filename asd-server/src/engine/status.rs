//! What is wrong with the engine at the moment. Failing disks are states that are shown, not exits.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most lines of damage kept.
const DAMAGE_MAX: usize = 100;

#[derive(Debug, Default)]
struct Problems {
    writing: Option<String>,
    reading: Option<String>,
    index: Option<String>,
    damage: Vec<String>,
}

/// The state, changed by those who see it.
#[derive(Debug, Default)]
pub(crate) struct Status {
    problems: Mutex<Problems>,
    damaged_reads: AtomicU64,
}

/// The state at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineStatus {
    /// Why writes fail now; none when they do not.
    pub writing: Option<String>,
    /// The last read error of the device since writing last worked.
    pub reading: Option<String>,
    /// Why the index is not available; none when it is.
    pub index: Option<String>,
    /// What was found lost at the last start.
    pub damage: Vec<String>,
    /// Reads that met damaged bytes since the start.
    pub damaged_reads: u64,
}

impl Status {
    /// No code panics while it holds the lock, so a poisoned lock holds sound data.
    fn lock(&self) -> MutexGuard<'_, Problems> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write_failed(&self, error: &dyn Display) {
        tracing::error!(%error, "writing failed");
        self.lock().writing = Some(error.to_string());
    }

    pub(crate) fn write_succeeded(&self) {
        let mut problems = self.lock();
        problems.writing = None;
        problems.reading = None;
    }

    pub(crate) fn read_failed(&self, error: &dyn Display) {
        tracing::error!(%error, "reading failed");
        self.lock().reading = Some(error.to_string());
    }

    pub(crate) fn index_failed(&self, error: &dyn Display) {
        tracing::error!(%error, "the index failed; it is opened again");
        self.lock().index = Some(error.to_string());
    }

    pub(crate) fn opened(&self, damage: Vec<String>) {
        for line in &damage {
            tracing::error!("damage: {line}");
        }
        let mut problems = self.lock();
        problems.index = None;
        problems.damage = damage;
        problems.damage.truncate(DAMAGE_MAX);
    }

    pub(crate) fn damaged_read(&self) {
        self.damaged_reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn report(&self) -> EngineStatus {
        let problems = self.lock();
        EngineStatus {
            writing: problems.writing.clone(),
            reading: problems.reading.clone(),
            index: problems.index.clone(),
            damage: problems.damage.clone(),
            damaged_reads: self.damaged_reads.load(Ordering::Relaxed),
        }
    }
}
