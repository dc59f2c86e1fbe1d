//! Open segment files, for readers, and the pins that keep a segment from being reused while one is read.
//!
//! It must never hand out a file for another life of its segment than the one asked for.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alba_core::env::{Disk, DiskFile};

use super::segment::file_name;

/// Most segment files held open for reading.
const OPEN_MAX: usize = 256;

struct Slot {
    generation: u64,
    /// One clone per reader.
    pins: Arc<()>,
}

#[derive(Default)]
struct State {
    slots: BTreeMap<u64, Slot>,
    open: BTreeMap<u64, Arc<dyn DiskFile>>,
    /// Numbers of `open`, the one opened first in front.
    order: std::collections::VecDeque<u64>,
}

/// All segments that may be read.
pub(crate) struct SegmentFiles {
    disk: Arc<dyn Disk>,
    state: Mutex<State>,
}

/// A file that is not reused while this lives.
pub(crate) struct Pinned {
    pub file: Arc<dyn DiskFile>,
    _pin: Arc<()>,
}

impl SegmentFiles {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, state: Mutex::default() }
    }

    /// No code panics while it holds the lock, so a poisoned lock holds a sound map.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A segment that can be read from now on, in this life of it.
    pub(crate) fn insert(&self, number: u64, generation: u64, file: Arc<dyn DiskFile>) {
        let mut state = self.lock();
        state.slots.insert(number, Slot { generation, pins: Arc::new(()) });
        keep_open(&mut state, number, file);
    }

    /// Pins a segment; none when it has another life by now, or is gone.
    pub(crate) async fn pin(&self, number: u64, generation: u64) -> io::Result<Option<Pinned>> {
        let (pin, open) = {
            let state = self.lock();
            let Some(slot) = state.slots.get(&number).filter(|slot| slot.generation == generation) else {
                return Ok(None);
            };
            (slot.pins.clone(), state.open.get(&number).cloned())
        };
        let file = match open {
            Some(file) => file,
            None => {
                let file = self.disk.open(&file_name(number)).await?;
                keep_open(&mut self.lock(), number, file.clone());
                file
            }
        };
        Ok(Some(Pinned { file, _pin: pin }))
    }

    /// Takes a segment that nobody reads away from readers; false when somebody does.
    pub(crate) fn retire(&self, number: u64) -> bool {
        let mut state = self.lock();
        match state.slots.get(&number) {
            Some(slot) if Arc::strong_count(&slot.pins) > 1 => false,
            _ => {
                state.slots.remove(&number);
                true
            }
        }
    }

    /// The file of a segment, whatever its life.
    pub(crate) async fn file(&self, number: u64) -> io::Result<Arc<dyn DiskFile>> {
        let open = self.lock().open.get(&number).cloned();
        match open {
            Some(file) => Ok(file),
            None => self.disk.open(&file_name(number)).await,
        }
    }
}

/// Remembers an open file; closes the one that was opened first when there are too many.
fn keep_open(state: &mut State, number: u64, file: Arc<dyn DiskFile>) {
    if state.open.insert(number, file).is_some() {
        return;
    }
    state.order.push_back(number);
    if state.order.len() > OPEN_MAX
        && let Some(oldest) = state.order.pop_front()
    {
        state.open.remove(&oldest);
    }
}
