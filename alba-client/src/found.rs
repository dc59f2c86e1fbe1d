//! Repair on read: what readers found missing or damaged goes to the durable work queue of the ABM (features §3.4, §3.7).
//!
//! A reader only leaves a note and goes on. A task in the background looks at each note with the current manifest, since a
//! reader's may be stale, and hands what is still so to the ABM: at most [`WORK_PAGE`] notes a second. Notes are kept in
//! memory, so a crash loses them; scrubbing and the next reader find the same again.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use alba_core::env::{Clock, Deadline, MetaError, Moment};
use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceName, ObjectId, ObjectVersion};
use alba_core::manifest::Manifest;
use alba_core::wire::rpc::abm::{AbmCommand, WORK_PAGE, WorkItem};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery};

use crate::ClientError;
use crate::engine::Engine;
use crate::namespaces::unexpected;

/// Notes that wait at most: about 1 MiB with names of some hundred bytes.
const WAITING: usize = 4096;

/// For so long a fragment is not handed over again.
const AGAIN: Duration = Duration::from_secs(600);

/// Fragments remembered as handed over.
const REMEMBERED: usize = 16 * 1024;

/// Time in which notes gather, and between two hand-overs.
const PAUSE: Duration = Duration::from_secs(1);

/// Longest pause after failed hand-overs.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A fragment as it was placed at a version.
type Key = (ObjectId, ChunkIndex, FragmentIndex, ObjectVersion);

struct Note {
    namespace: NamespaceName,
    key: Key,
    item: WorkItem,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Note>,
    /// Waiting, or handed over a short while ago.
    known: BTreeMap<Key, Moment>,
    /// Is there a task that hands over?
    running: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Found {
    state: Mutex<State>,
}

impl State {
    fn is_known(&self, key: &Key, now: Moment) -> bool {
        self.known.get(key).is_some_and(|at| now.since(*at) < AGAIN)
    }

    /// Takes a note. False: there are too many.
    fn add(&mut self, note: Note, now: Moment) -> bool {
        if self.is_known(&note.key, now) {
            return true;
        }
        if self.waiting.len() >= WAITING {
            return false;
        }
        if self.known.len() >= REMEMBERED {
            self.known.retain(|_, at| now.since(*at) < AGAIN);
        }
        if self.known.len() < REMEMBERED {
            self.known.insert(note.key, now);
        }
        self.waiting.push_back(note);
        true
    }
}

impl Found {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs while it is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fragment is missing or damaged. Never waits. Items of other kinds are none of this.
    pub(crate) fn found(&self, engine: &Arc<Engine>, namespace: &NamespaceName, item: WorkItem) {
        let WorkItem::RepairBadFragment { object, chunk, fragment, version, .. } = &item else { return };
        let key = (*object, *chunk, *fragment, *version);
        let note = Note { namespace: namespace.clone(), key, item };
        let start = {
            let mut state = self.state();
            if !state.add(note, engine.env.clock.now()) {
                engine.counters.repairs_dropped.add(1);
            }
            !state.waiting.is_empty() && !std::mem::replace(&mut state.running, true)
        };
        if start {
            let task = hand_over(Arc::downgrade(engine), Arc::clone(&engine.env.clock));
            engine.env.spawn.spawn("repairs-found", Box::pin(task));
        }
    }

    fn take(&self) -> Vec<Note> {
        let mut state = self.state();
        let count = state.waiting.len().min(WORK_PAGE);
        let notes: Vec<Note> = state.waiting.drain(..count).collect();
        state.running = !notes.is_empty();
        notes
    }

    /// What could not be handed over waits again, behind the others: one namespace that does not answer must not hold up
    /// the rest.
    fn give_back(&self, notes: Vec<Note>) {
        self.state().waiting.extend(notes);
    }
}

/// Until nothing is left, or the client is gone; the next note starts it anew.
async fn hand_over(engine: Weak<Engine>, clock: Arc<dyn Clock>) {
    let mut pause = PAUSE;
    loop {
        clock.sleep_until(clock.now().plus(pause)).await;
        let Some(engine) = engine.upgrade() else { return };
        let notes = engine.found.take();
        if notes.is_empty() {
            return;
        }
        let deadline = engine.deadline_in(engine.config.request_timeout());
        let left = add_work(&engine, notes, deadline).await;
        pause = if left.is_empty() { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        engine.found.give_back(left);
    }
}

/// Does the manifest still place the fragment so?
fn still_so(manifest: &Manifest, (object, chunk, fragment, version): &Key) -> bool {
    let entry = manifest.chunks.get(chunk.index()).and_then(|chunk| chunk.fragments.get(fragment.index()));
    manifest.object_id == *object
        && entry.is_some_and(|entry| entry.location.is_some() && entry.version == *version)
}

/// Hands over what is still so. Gives the notes for which that could not be done.
async fn add_work(engine: &Engine, notes: Vec<Note>, deadline: Deadline) -> Vec<Note> {
    let mut manifests: BTreeMap<ObjectId, Result<Option<Box<Manifest>>, ClientError>> = BTreeMap::new();
    let (mut current, mut left) = (Vec::with_capacity(notes.len()), Vec::new());
    for note in notes {
        let manifest = match manifests.entry(note.key.0) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                place.insert(manifest_of(engine, &note.namespace, note.key.0, deadline).await)
            }
        };
        match manifest {
            Ok(Some(manifest)) if still_so(manifest, &note.key) => current.push(note),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "not known whether a repair is due");
                left.push(note);
            }
        }
    }
    if current.is_empty() {
        return left;
    }
    let count = u64::try_from(current.len()).unwrap_or(u64::MAX);
    let items = current.iter().map(|note| note.item.clone()).collect();
    match engine.tell_directory(AbmCommand::AddWork(items), deadline).await {
        Ok(_) => engine.counters.repairs_handed_over.add(count),
        // The same again would be refused again.
        Err(ClientError::Meta(MetaError::Abm(error))) => {
            engine.counters.repairs_dropped.add(count);
            tracing::warn!(%error, count, "repairs refused; scrubbing finds them");
        }
        Err(error) => {
            tracing::debug!(%error, "repairs not handed over");
            left.extend(current);
        }
    }
    left
}

/// The manifest of an object as it is now; none when it is gone, with its namespace perhaps.
async fn manifest_of(
    engine: &Engine,
    namespace: &NamespaceName,
    object: ObjectId,
    deadline: Deadline,
) -> Result<Option<Box<Manifest>>, ClientError> {
    let namespace = match engine.namespaces.resolve(namespace, deadline).await {
        Ok(namespace) => namespace,
        Err(ClientError::NamespaceUnknown(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let query = || NsmQuery::ManifestById { namespace: namespace.id, object };
    match engine.ask_group(&namespace, query, deadline).await? {
        NsmAnswer::Manifest(manifest) => Ok(manifest),
        _ => Err(unexpected("Manifest")),
    }
}

#[cfg(test)]
mod tests {
    use alba_core::ids::{NamespaceId, ObjectName};

    use super::*;

    fn note(number: u32) -> Note {
        let key = (ObjectId::new([7; 32]), ChunkIndex(number), FragmentIndex(0), ObjectVersion(0));
        let item = WorkItem::RepairBadFragment {
            namespace: NamespaceId::from_u32(1),
            object: key.0,
            name: ObjectName::new("o").unwrap(),
            chunk: key.1,
            fragment: key.2,
            version: key.3,
        };
        Note { namespace: NamespaceName::new("ns").unwrap(), key, item }
    }

    #[test]
    fn notes_are_taken_once_and_no_more_than_there_is_room_for() {
        let repairs = Found::default();
        let at = |seconds| Moment(Duration::from_secs(seconds));
        let add = |number, seconds| repairs.state().add(note(number), at(seconds));
        assert!(add(0, 0) && add(0, 0) && add(1, 0));
        assert_eq!(repairs.take().len(), 2);
        assert!(add(0, 599), "handed over already");
        assert_eq!(repairs.take().len(), 0);
        assert!(add(0, 600));
        assert_eq!(repairs.take().len(), 1);
        let taken = (10..).take_while(|number| add(*number, 600)).count();
        assert_eq!(taken, WAITING);
        let first = repairs.take();
        assert_eq!(first.len(), WORK_PAGE);
        repairs.give_back(first);
        assert_eq!(repairs.take().first().map(|note| note.key.1), Some(ChunkIndex(110)), "behind the others");
    }
}
