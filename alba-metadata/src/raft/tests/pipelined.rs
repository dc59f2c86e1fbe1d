//! The next change is applied while the last one is being written, by a store that can be made to wait and to fail.

use std::sync::Arc;

use alba_core::env::real;
use alba_core::ids::GroupId;
use alba_core::kv::{Durability, Kv, KvError, MemKv};
use openraft::RaftSnapshotBuilder;
use openraft::storage::RaftStateMachine;
use tokio::sync::watch;

use super::cluster::Place;
use super::model::Lists;
use super::storage::{RECORD, entry, listed, push};
use crate::gated::Gated;
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
    let place = Place::new(3);
    let home = Home { states: Arc::new(One(store.clone())), ..place.home() };
    home.save(RECORD).await.unwrap();
    let group = GroupId::new("lists").unwrap();
    let commits = Arc::new(watch::channel(0).0);
    let state = State::open(&real::env(), &group, &home, RECORD, commits, 8).await.unwrap();
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
