//! The library's own test of log and state, and crashes at every step of building and installing snapshots.

use std::sync::Arc;

use alba_core::env::sim::disk::SimDiskDevice;
use alba_core::env::{Env, real};
use alba_core::ids::GroupId;
use bytes::Bytes;
use openraft::storage::RaftStateMachine;
use openraft::testing::{StoreBuilder, Suite, log_id};
use openraft::{EntryPayload, Membership, RaftSnapshotBuilder};
use tokio::sync::watch;

use super::cluster::Place;
use super::model::{ListCommand, Lists};
use crate::machine::Input;
use crate::model::Model;
use crate::raft::RaftLimits;
use crate::raft::home::Record;
use crate::raft::log::{LogLimits, LogStore};
use crate::raft::payload::{Batch, BatchId, FORMAT};
use crate::raft::snapshot::{Incoming, Offer};
use crate::raft::state::{Machine, State, applied_of};
use crate::raft::types::{LogId, Payload, StorageError, TypeConfig};

pub(super) const RECORD: Record = Record { id: 1, state: 1, complete: true };

async fn open(env: &Env, place: &Place) -> std::io::Result<State<Lists>> {
    let group = GroupId::new("lists").unwrap();
    let home = place.home();
    let record = match crate::raft::home::read(home.files.as_ref(), "replica").await? {
        Some(bytes) => crate::raft::home::unseal(&bytes)?,
        None => {
            home.save(RECORD).await?;
            RECORD
        }
    };
    State::open(env, &group, &home, record, Arc::new(watch::channel(0).0), &RaftLimits::default()).await
}

pub(super) fn entry(index: u64, commands: Vec<ListCommand>) -> openraft::Entry<TypeConfig> {
    let inputs =
        commands.into_iter().map(|command| postcard::to_stdvec(&Input::Internal(command)).unwrap().into());
    let id = BatchId { replica: 9, run: 9, sequence: index };
    let batch = Batch { format: FORMAT, id, wall: index, inputs: inputs.collect() };
    openraft::Entry { log_id: log_id(1, 9, index), payload: EntryPayload::Normal(Payload(batch.encode())) }
}

pub(super) fn push(key: &str, number: u64) -> ListCommand {
    ListCommand::Push { key: key.to_owned(), number }
}

pub(super) fn listed(state: &State<Lists>, key: &str) -> Vec<u64> {
    Lists::query(state.kv().as_ref(), &key.to_owned()).unwrap()
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine<Lists>, Place> for Builder {
    async fn build(&self) -> Result<(Place, LogStore, Machine<Lists>), StorageError> {
        let env = real::env();
        let place = Place::new(5);
        let (log, _) = LogStore::open(env.clone(), place.home().log, LogLimits::default()).await.unwrap();
        let state = open(&env, &place).await.unwrap();
        Ok((place, log, Machine::new(Arc::new(state))))
    }
}

#[test]
fn log_and_state_pass_the_librarys_suite() {
    Suite::test_all(Builder).unwrap();
}

/// A state with some entries, large enough for several blocks.
async fn filled(env: &Env, place: &Place) -> Machine<Lists> {
    let mut machine = Machine::new(Arc::new(open(env, place).await.unwrap()));
    let membership = Membership::new(vec![[9].into()], None);
    let first = openraft::Entry { log_id: log_id(1, 9, 0), payload: EntryPayload::Membership(membership) };
    machine.apply([first]).await.unwrap();
    for index in 1..=20 {
        let fill = ListCommand::Fill { key: format!("{index}"), bytes: 50_000 };
        machine.apply([entry(index, vec![push("a", index), fill])]).await.unwrap();
    }
    machine
}

#[tokio::test]
async fn a_snapshot_is_installed_wholly_or_not_at_all_wherever_the_power_is_cut() {
    let env = real::env();
    let source = Place::new(1);
    let mut machine = filled(&env, &source).await;
    let built = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let mut whole = 0;
    for cut in 1..200 {
        let place = Place::new(cut);
        {
            let mut old = Machine::new(Arc::new(open(&env, &place).await.unwrap()));
            old.apply([entry(1, vec![push("old", 7)])]).await.unwrap();
            old.settle().await.unwrap();
            old.state.kv().sync().unwrap();
            place.files.cut_power_after(cut);
            let result = old.install_snapshot(&built.meta, built.snapshot.clone()).await;
            if result.is_ok() {
                whole += 1;
            }
        }
        place.crash();
        let state = open(&env, &place).await.unwrap();
        let applied = applied_of(state.kv().as_ref()).unwrap();
        if applied.log == built.meta.last_log_id {
            assert_eq!(listed(&state, "a"), (1..=20).collect::<Vec<_>>());
            assert_eq!(listed(&state, "old"), [] as [u64; 0]);
            assert_eq!(applied.membership, built.meta.last_membership);
        } else {
            assert_eq!(applied.log, Some(log_id(1, 9, 1)), "cut {cut}");
            assert_eq!(listed(&state, "old"), [7]);
            assert_eq!(listed(&state, "a"), [] as [u64; 0]);
            assert_eq!(whole, 0, "what was installed is there");
        }
        assert!(place.states.0.lock().unwrap().len() <= 1, "nothing is left over");
        if whole > 2 {
            return;
        }
    }
    panic!("the installation never ended");
}

#[tokio::test]
async fn entries_that_a_crash_took_from_the_store_are_applied_again_and_none_twice() {
    let env = real::env();
    let place = Place::new(3);
    let mut machine = filled(&env, &place).await;
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_eq!(machine.state.durable(), 20);
    machine.apply([entry(21, vec![push("a", 21)])]).await.unwrap();
    drop(machine);
    place.crash();
    let mut machine = Machine::new(Arc::new(open(&env, &place).await.unwrap()));
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(1, 9, 20)), "what the snapshot synced");
    machine.apply([entry(21, vec![push("a", 21)])]).await.unwrap();
    machine.settle().await.unwrap();
    assert_eq!(listed(&machine.state, "a"), (1..=21).collect::<Vec<_>>());
    assert!(machine.get_current_snapshot().await.unwrap().is_some());
}

#[tokio::test]
async fn a_state_that_is_gone_comes_back_from_the_snapshot() {
    let env = real::env();
    let place = Place::new(4);
    let mut machine = filled(&env, &place).await;
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    drop(machine);
    place.states.0.lock().unwrap().clear();
    place.crash();
    let state = open(&env, &place).await.unwrap();
    assert_eq!(listed(&state, "a"), (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_unknown_format_or_command_halts_the_replica() {
    let env = real::env();
    for payload in [Bytes::from_static(b"\x63future"), {
        let id = BatchId { replica: 9, run: 9, sequence: 1 };
        Batch { format: FORMAT, id, wall: 1, inputs: vec![Bytes::from_static(b"\x01\x63")] }.encode()
    }] {
        let place = Place::new(6);
        let mut machine = Machine::new(Arc::new(open(&env, &place).await.unwrap()));
        let unknown =
            openraft::Entry { log_id: log_id(1, 9, 1), payload: EntryPayload::Normal(Payload(payload)) };
        assert!(machine.apply([unknown]).await.is_err());
        let reason = machine.state.halted().unwrap();
        assert!(reason.contains("must be updated"), "{reason}");
        assert!(machine.apply([entry(2, vec![push("a", 1)])]).await.is_err(), "nothing is applied after it");
        assert_eq!(applied_of(machine.state.kv().as_ref()).unwrap().log, None::<LogId>);
    }
}

#[tokio::test]
async fn a_snapshot_comes_in_by_chunks_and_goes_on_after_a_crash() {
    let env = real::env();
    let mut machine = filled(&env, &Place::new(1)).await;
    let built = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let file = &built.snapshot;
    let whole = file.file.read_at(0, usize::try_from(file.len).unwrap()).await.unwrap();
    let offer = Offer { meta: built.meta.clone(), len: file.len, hash: file.hash };
    let id = built.meta.snapshot_id.clone();
    let device = SimDiskDevice::new(8, 1 << 30);
    let mut incoming = Incoming::new(Arc::new(device.open()));
    assert_eq!(incoming.begin(offer.clone()).await.unwrap(), 0);
    assert_eq!(incoming.chunk("other", 0, whole.slice(..10)).await.unwrap(), None);
    assert_eq!(incoming.chunk(&id, 5, whole.slice(5..10)).await.unwrap(), Some(0), "not the next");
    assert_eq!(incoming.chunk(&id, 0, whole.slice(..700_000)).await.unwrap(), Some(700_000));
    assert_eq!(incoming.begin(offer.clone()).await.unwrap(), 700_000, "a lost connection");
    assert!(incoming.finish(&id).await.unwrap().is_none(), "not all is here");
    device.open_synced().await;
    device.crash();
    let mut incoming = Incoming::new(Arc::new(device.open()));
    let have = incoming.begin(offer.clone()).await.unwrap();
    assert!(have > 0 && have <= 700_000, "{have}");
    let rest = whole.slice(usize::try_from(have).unwrap()..);
    assert_eq!(incoming.chunk(&id, have, rest).await.unwrap(), Some(file.len));
    let (meta, received) = incoming.finish(&id).await.unwrap().unwrap();
    assert_eq!((meta, received.hash), (built.meta.clone(), file.hash));
    // Damage on the way is found, and the whole is fetched again.
    let mut incoming = Incoming::new(Arc::new(SimDiskDevice::new(9, 1 << 30).open()));
    incoming.begin(offer.clone()).await.unwrap();
    let mut damaged = whole.to_vec();
    damaged[300_000] ^= 1;
    incoming.chunk(&id, 0, damaged.into()).await.unwrap();
    assert!(incoming.finish(&id).await.is_err());
    assert_eq!(incoming.begin(offer).await.unwrap(), 0);
}

/// Makes what was written to a disk safe.
trait Synced {
    async fn open_synced(&self);
}

impl Synced for SimDiskDevice {
    async fn open_synced(&self) {
        use alba_core::env::Disk;
        let disk = self.open();
        for name in disk.list().await.unwrap() {
            disk.open(&name).await.unwrap().sync().await.unwrap();
        }
    }
}
