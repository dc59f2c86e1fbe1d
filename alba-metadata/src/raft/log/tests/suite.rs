//! openraft's storage suite, with a state machine that is only good for it.

use std::sync::atomic::{AtomicU64, Ordering};

use alba_core::env::real;
use alba_core::env::real::disk::RealDisk;
use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{
    OptionalSend, RaftSnapshotBuilder, RaftTypeConfig, SnapshotMeta, StorageError, StoredMembership,
};
use tempfile::TempDir;

use super::*;
use crate::raft::types::{NodeId, Replica, TypeConfig};

type SnapshotData = <TypeConfig as RaftTypeConfig>::SnapshotData;

/// What was applied last; snapshots are the same without content.
#[derive(Clone, Default)]
struct Machine {
    applied: Option<LogId>,
    membership: StoredMembership<NodeId, Replica>,
    snapshot: Option<SnapshotMeta<NodeId, Replica>>,
}

/// Builds into the machine it is of.
struct Builder(Arc<std::sync::Mutex<Machine>>);

struct Shared(Arc<std::sync::Mutex<Machine>>);

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Machine) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError<NodeId>> {
        let mut machine = self.0.lock().unwrap();
        let meta = SnapshotMeta {
            last_log_id: machine.applied,
            last_membership: machine.membership.clone(),
            snapshot_id: format!("{:?}", machine.applied),
        };
        machine.snapshot = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: Box::default() })
    }
}

impl RaftStateMachine<TypeConfig> for Shared {
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId>, StoredMembership<NodeId, Replica>), StorageError<NodeId>> {
        Ok(self.with(|machine| (machine.applied, machine.membership.clone())))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError<NodeId>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let apply = |machine: &mut Machine| {
            let answers = entries.into_iter().map(|entry| {
                machine.applied = Some(entry.log_id);
                if let EntryPayload::Membership(membership) = entry.payload {
                    machine.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            });
            answers.collect()
        };
        Ok(self.with(apply))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.0.clone())
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, StorageError<NodeId>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<NodeId, Replica>,
        _: Box<SnapshotData>,
    ) -> Result<(), StorageError<NodeId>> {
        self.with(|machine| {
            machine.applied = meta.last_log_id;
            machine.membership = meta.last_membership.clone();
            machine.snapshot = Some(meta.clone());
        });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError<NodeId>> {
        let meta = self.with(|machine| machine.snapshot.clone());
        Ok(meta.map(|meta| Snapshot { meta, snapshot: Box::default() }))
    }
}

struct OnSimulatedDisk(AtomicU64);

impl StoreBuilder<TypeConfig, LogStore, Shared> for OnSimulatedDisk {
    async fn build(&self) -> Result<((), LogStore, Shared), StorageError<NodeId>> {
        let disk = SimDiskDevice::new(self.0.fetch_add(1, Ordering::Relaxed), 1 << 30);
        let (store, _) = LogStore::open(real::env(), Arc::new(disk.open()), small()).await.unwrap();
        Ok(((), store, Shared(Arc::default())))
    }
}

struct OnRealDisk;

impl StoreBuilder<TypeConfig, LogStore, Shared, TempDir> for OnRealDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, Shared), StorageError<NodeId>> {
        let directory = tempfile::tempdir().unwrap();
        let env = real::env();
        let disk = RealDisk::new(directory.path(), env.spawn.clone());
        let (store, _) = LogStore::open(env, Arc::new(disk), small()).await.unwrap();
        Ok((directory, store, Shared(Arc::default())))
    }
}

#[test]
fn openraft_is_content_on_the_simulated_disk() {
    Suite::test_all(OnSimulatedDisk(AtomicU64::new(0))).unwrap();
}

#[test]
fn openraft_is_content_on_a_real_disk() {
    Suite::test_all(OnRealDisk).unwrap();
}
