//! A store whose steps panic, do not end, or make large changes; on the real environment.

use std::cell::Cell;
use std::ops::Bound;
use std::sync::Mutex;

use alba_core::env::real;
use alba_core::env::spawn::{BlockingWork, Spawn, Task, TaskHandle};
use alba_core::kv::{Entry, KvRead, MemKv, WriteBatch};
use alba_core::wire::rpc::SessionId;

use super::*;
use crate::raft::tests::model::{ListCommand, Lists};

type Pushed = Result<(OutputOf<Lists>, Index), ReplicationError>;

/// A group whose store can be opened again only while it is not shut: else a step that waits still has it.
async fn lists(gated: &Arc<Gated>, limits: LocalLimits) -> (Env, Arc<Local<Lists>>, SessionId) {
    let env = real::env();
    let (store, group) = (gated.clone(), GroupId::new("lists").unwrap());
    let open: StoreOpener = Arc::new(move || {
        if store.is_shut() {
            return Err(KvError::Io("somebody has it open".to_owned()));
        }
        let store: Arc<dyn Kv> = store.clone();
        Ok(store)
    });
    let local = Arc::new(Local::<Lists>::start(env.clone(), &group, open, limits).await.unwrap());
    let Output::Session(session) = local.propose(Input::OpenSession([1; 16]), soon(&env)).await.unwrap().0
    else {
        panic!()
    };
    (env, local, session)
}

fn gated() -> Arc<Gated> {
    Arc::new(Gated::new(MemKv::new(), Durability::Sync))
}

fn push(session: SessionId, number: u64) -> Input<ListCommand> {
    push_to("a", session, number)
}

fn push_to(key: &str, session: SessionId, number: u64) -> Input<ListCommand> {
    let id = RequestId { session, sequence: number, lowest_unacknowledged: 1 };
    Input::Command(id, ListCommand::Push { key: key.to_owned(), number })
}

/// Asks again until the store is open.
async fn again(env: &Env, local: &Local<Lists>, input: &Input<ListCommand>) -> OutputOf<Lists> {
    let until = soon(env);
    loop {
        match local.propose(input.clone(), soon(env)).await {
            Ok((output, _)) => return output,
            Err(error) => {
                assert!(matches!(error, ReplicationError::Store(_)), "{error:?}");
                assert!(!until.left(env.clock.as_ref()).is_zero(), "{error}");
            }
        }
        env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(5))).await;
    }
}

async fn listed(env: &Env, local: &Local<Lists>) -> Vec<u64> {
    let read = local.query("a".to_owned(), Consistency::Linearizable, soon(env)).await;
    read.unwrap().0.unwrap()
}

fn quick() -> LocalLimits {
    LocalLimits { reopen_after: Duration::from_millis(10), ..LocalLimits::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_panics_fails_the_store_and_not_the_group() {
    let gated = gated();
    let (env, local, session) = lists(&gated, quick()).await;
    local.propose(push(session, 1), soon(&env)).await.unwrap();
    let steps = [Gated::panic_at_next_commit as fn(&Gated), Gated::panic_at_next_read];
    for (panics, number) in steps.into_iter().zip(2..) {
        panics(&gated);
        // A key of its own, which is not in the batch before: it is read in the store.
        let input = push_to(&format!("{number}"), session, number);
        let failed: Pushed = local.propose(input.clone(), soon(&env)).await;
        let Err(ReplicationError::Store(error)) = &failed else { panic!("{failed:?}") };
        assert!(error.to_string().contains("ended without an answer"), "{error}");
        // The retry counts once, and so does everything before it.
        assert_eq!(again(&env, &local, &input).await, Output::Done(Ok(1)));
        assert_eq!(local.trouble(), None);
    }
    local.propose(push(session, 4), soon(&env)).await.unwrap();
    assert_eq!(listed(&env, &local).await, [1, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_does_not_end_fails_the_store_until_it_has_ended() {
    let gated = gated();
    let limits = LocalLimits { patience: Duration::from_millis(50), ..quick() };
    let (env, local, session) = lists(&gated, limits).await;
    gated.set(true);
    let waiting: Pushed = local.propose(push(session, 1), soon(&env)).await;
    let Err(ReplicationError::Store(error)) = &waiting else { panic!("{waiting:?}") };
    assert!(error.to_string().contains("not done after"), "{error}");
    // From then on everybody hears at once.
    let refused: Pushed = local.propose(push(session, 2), soon(&env)).await;
    assert!(matches!(refused, Err(ReplicationError::Store(_))), "{refused:?}");
    assert!(local.trouble().is_some());
    let read = local.query("a".to_owned(), Consistency::Linearizable, soon(&env)).await;
    assert!(matches!(read, Err(ReplicationError::Store(_))), "{read:?}");
    gated.set(false);
    assert_eq!(again(&env, &local, &push(session, 1)).await, Output::Done(Ok(1)));
    assert_eq!(again(&env, &local, &push(session, 2)).await, Output::Done(Ok(2)));
    assert_eq!(listed(&env, &local).await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_applied_without_end_fails_the_store_until_it_has_ended() {
    let gated = gated();
    let limits = LocalLimits { patience: Duration::from_millis(50), ..quick() };
    let (env, local, session) = lists(&gated, limits).await;
    local.propose(push(session, 1), soon(&env)).await.unwrap();
    gated.set_reads(true);
    // A key of its own: it is read in the store.
    let stuck = push_to("b", session, 2);
    let waiting: Pushed = local.propose(stuck.clone(), env.deadline_in(Duration::from_millis(100))).await;
    assert!(matches!(waiting, Err(ReplicationError::Timeout)), "{waiting:?}");
    let until = soon(&env);
    while local.trouble().is_none() {
        assert!(!until.left(env.clock.as_ref()).is_zero(), "it has not failed");
        tokio::task::yield_now().await;
    }
    // From then on everybody hears at once.
    let refused: Pushed = local.propose(push(session, 3), soon(&env)).await;
    let Err(ReplicationError::Store(error)) = &refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("not done after"), "{error}");
    gated.set_reads(false);
    // It was not written, though it came to its end; the retry counts once.
    assert_eq!(again(&env, &local, &stuck).await, Output::Done(Ok(1)));
    assert_eq!(again(&env, &local, &push(session, 3)).await, Output::Done(Ok(2)));
    assert_eq!(listed(&env, &local).await, [1, 3]);
}

#[test]
fn a_batch_ends_with_the_command_that_makes_its_changes_large() {
    const FILL: usize = 60_000;
    const MOST: usize = 4 * FILL;
    let sim = Simulation::new(6);
    let env = sim.node(1).env();
    let gated = gated();
    sim.run(LIMIT, async {
        let store: Arc<dyn Kv> = gated.clone();
        let limits = LocalLimits { change_bytes: MOST, ..quick() };
        let group = GroupId::new("lists").unwrap();
        let open: StoreOpener = Arc::new(move || Ok(store.clone()));
        let local = Local::<Lists>::start(env.clone(), &group, open, limits).await.unwrap();
        let fill = |n: u64| {
            let bytes = u32::try_from(FILL).unwrap();
            Input::Internal(ListCommand::Fill { key: format!("{n}"), bytes })
        };
        // All of them wait before the first is looked at.
        let all = (0..40).map(|n| local.propose(fill(n), soon(&env)));
        for output in futures_util::future::join_all(all).await {
            assert_eq!(output.unwrap().0, Output::Done(Ok(0)));
        }
        // One that is larger than a batch may be has one of its own.
        let small = LocalLimits { change_bytes: 1, ..quick() };
        let store: Arc<dyn Kv> = gated.clone();
        let open: StoreOpener = Arc::new(move || Ok(store.clone()));
        let local = Local::<Lists>::start(env.clone(), &group, open, small).await.unwrap();
        let all = (40..43).map(|n| local.propose(fill(n), soon(&env)));
        assert!(futures_util::future::join_all(all).await.iter().all(Result::is_ok));
    })
    .unwrap();
    let sizes = gated.sizes();
    let (shared, single) = sizes.split_at(10);
    assert!(shared.iter().all(|size| (MOST..MOST + 1000).contains(size)), "{sizes:?}");
    assert!(single.iter().all(|size| (FILL..FILL + 1000).contains(size)), "{sizes:?}");
    assert_eq!(single.len(), 3);
}

thread_local! {
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// Knows the threads that may block.
struct Marked(Arc<dyn Spawn>);

impl Spawn for Marked {
    fn spawn(&self, name: &'static str, task: Task) -> TaskHandle {
        self.0.spawn(name, task)
    }

    fn run_blocking(&self, work: BlockingWork) {
        self.0.run_blocking(Box::new(move || {
            MAY_BLOCK.set(true);
            work();
            MAY_BLOCK.set(false);
        }));
    }
}

/// Tells where it was closed.
struct Closing {
    kv: MemKv,
    fails: Arc<Mutex<bool>>,
    closed: Arc<Mutex<Vec<bool>>>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.closed.lock().unwrap().push(MAY_BLOCK.get());
    }
}

impl KvRead for Closing {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        if *self.fails.lock().unwrap() {
            return Err(KvError::Io("a read that fails".to_owned()));
        }
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

impl Kv for Closing {
    fn snapshot(&self) -> Result<Box<dyn KvRead + Send + '_>, KvError> {
        self.kv.snapshot()
    }

    fn commit(&self, batch: WriteBatch, durability: Durability) -> Result<(), KvError> {
        self.kv.commit(batch, durability)
    }

    fn sync(&self) -> Result<(), KvError> {
        self.kv.sync()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_failed_is_closed_where_it_may_block() {
    let env = real::env();
    let env = Env { spawn: Arc::new(Marked(env.spawn.clone())), ..env };
    let (fails, closed): (Arc<Mutex<bool>>, Arc<Mutex<Vec<bool>>>) = Default::default();
    let open: StoreOpener = {
        let (fails, closed) = (fails.clone(), closed.clone());
        Arc::new(move || {
            Ok(Arc::new(Closing { kv: MemKv::new(), fails: fails.clone(), closed: closed.clone() }))
        })
    };
    let group = GroupId::new("lists").unwrap();
    let local = Local::<Lists>::start(env.clone(), &group, open, quick()).await.unwrap();
    for round in 1..=20 {
        // A key of its own, which is not in the batch before: it is read in the store.
        let push = Input::Internal(ListCommand::Push { key: format!("{round}"), number: 1 });
        // While commands are applied, which ends on the executor.
        *fails.lock().unwrap() = true;
        let failed: Pushed = local.propose(push.clone(), soon(&env)).await;
        assert!(matches!(failed, Err(ReplicationError::Store(_))), "{failed:?}");
        *fails.lock().unwrap() = false;
        let until = soon(&env);
        while closed.lock().unwrap().len() < round {
            assert!(!until.left(env.clock.as_ref()).is_zero(), "it is not closed");
            tokio::task::yield_now().await;
        }
        assert_eq!(again(&env, &local, &push).await, Output::Done(Ok(1)));
    }
    assert_eq!(*closed.lock().unwrap(), vec![true; 20]);
}
