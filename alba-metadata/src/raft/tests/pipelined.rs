//! The next change is applied while the last one is being written, by a store that can be made to wait and to fail.

use std::sync::Arc;
use std::time::Duration;

use alba_core::env::real;
use alba_core::ids::GroupId;
use alba_core::kv::{Durability, Kv, KvError, MemKv};
use openraft::RaftSnapshotBuilder;
use openraft::storage::RaftStateMachine;
use tokio::sync::watch;

use super::cluster::Place;
use super::model::{ListCommand, Lists};
use super::storage::{RECORD, entry, listed, push};
use crate::gated::Gated;
use crate::raft::RaftLimits;
use crate::raft::home::{Home, States};
use crate::raft::state::{Machine, State, applied_of};

struct One(Arc<Gated>);

impl States for One {
    fn open(&self, _: u64) -> Result<Arc<dyn Kv>, KvError> {
        Ok(self.0.clone())
    }

    fn remove(&self, _: u64) -> Result<(), KvError> {
        Ok(())
    }

    fn list(&self) -> Result<Vec<u64>, KvError> {
        Ok(vec![RECORD.state])
    }
}

async fn machine(store: &Arc<Gated>) -> (Place, Machine<Lists>) {
    machine_with(store, &RaftLimits::default()).await
}

async fn machine_with(store: &Arc<Gated>, limits: &RaftLimits) -> (Place, Machine<Lists>) {
    let place = Place::new(3);
    let home = Home { states: Arc::new(One(store.clone())), ..place.home() };
    home.save(RECORD).await.unwrap();
    let group = GroupId::new("lists").unwrap();
    let commits = Arc::new(watch::channel(0).0);
    let state = State::open(&real::env(), &group, &home, RECORD, commits, limits).await.unwrap();
    (place, Machine::new(Arc::new(state)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_sees_the_one_before_it_and_nobody_else_does_until_it_is_written() {
    let store = Arc::new(Gated::new(MemKv::new(), Durability::Eventual));
    let (_place, mut machine) = machine(&store).await;
    store.set(true);
    machine.apply([entry(1, vec![push("a", 1)])]).await.unwrap();
    assert_eq!(listed(&machine.state, "a"), [] as [u64; 0]);
    assert_eq!(applied_of(machine.state.kv().as_ref()).unwrap().log, None);
    let opening = async {
        tokio::task::yield_now().await;
        store.set(false);
    };
    // It appends to what the first one, which is not in the store yet, has made.
    let (second, ()) = tokio::join!(machine.apply([entry(2, vec![push("a", 2)])]), opening);
    second.unwrap();
    machine.settle().await.unwrap();
    assert_eq!(listed(&machine.state, "a"), [1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_change_that_was_lost_nothing_is_applied_any_more() {
    let store = Arc::new(Gated::new(MemKv::new(), Durability::Eventual));
    let (_place, mut machine) = machine(&store).await;
    store.fail_next();
    machine.apply([entry(1, vec![push("a", 1)])]).await.unwrap();
    // Whatever is asked for in between: a snapshot, say.
    let mut builder = machine.get_snapshot_builder().await;
    drop(builder.build_snapshot().await);
    for index in 2..4 {
        assert!(machine.apply([entry(index, vec![push("a", index)])]).await.is_err(), "{index}");
    }
    assert_eq!(listed(&machine.state, "a"), [] as [u64; 0]);
    assert_eq!(applied_of(machine.state.kv().as_ref()).unwrap().log, None);
    let failure = machine.state.failure().await;
    assert!(matches!(&failure, KvError::Io(reason) if reason == "once"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_ends_with_the_entry_that_makes_it_large() {
    const FILL: usize = 50_000;
    let store = Arc::new(Gated::new(MemKv::new(), Durability::Eventual));
    let limits = RaftLimits { change_bytes: 4 * FILL, ..RaftLimits::default() };
    let (_place, mut machine) = machine_with(&store, &limits).await;
    // Two to an entry, so that two entries reach the bound; small in the log.
    let entries = (1..=7_u64).map(|index| {
        let fill =
            |n: u64| ListCommand::Fill { key: format!("{index}.{n}"), bytes: u32::try_from(FILL).unwrap() };
        entry(index, vec![fill(0), push("a", index), fill(1)])
    });
    let answered = machine.apply(entries.collect::<Vec<_>>()).await.unwrap();
    assert_eq!(answered.len(), 7);
    machine.settle().await.unwrap();
    assert_eq!(listed(&machine.state, "a"), (1..=7).collect::<Vec<_>>());
    assert_eq!(applied_of(machine.state.kv().as_ref()).unwrap().log.unwrap().index, 7);
    let sizes = store.sizes();
    assert_eq!(sizes.len(), 4, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size < 5 * FILL), "{sizes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_does_not_end_fails_the_store() {
    let limits = RaftLimits { patience: Duration::from_millis(50), ..RaftLimits::default() };
    for by_upkeep in [true, false] {
        let store = Arc::new(Gated::new(MemKv::new(), Durability::Eventual));
        let (_place, mut machine) = machine_with(&store, &limits).await;
        machine.state.fail_if_stuck();
        store.set(true);
        machine.apply([entry(1, vec![push("a", 1)])]).await.unwrap();
        if by_upkeep {
            // Nothing comes after it.
            let env = real::env();
            env.clock.sleep_until(env.clock.now().plus(limits.patience)).await;
            machine.state.fail_if_stuck();
        } else {
            assert!(machine.apply([entry(2, vec![push("a", 2)])]).await.is_err());
        }
        let failure = machine.state.failure().await;
        assert!(failure.to_string().contains("not done after"), "{failure}");
        store.set(false);
        assert!(machine.apply([entry(3, vec![push("a", 3)])]).await.is_err() || by_upkeep);
    }
}
