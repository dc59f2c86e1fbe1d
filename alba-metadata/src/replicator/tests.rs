use std::sync::Arc;
use std::time::Duration;

use alba_core::env::sim::Simulation;
use alba_core::env::{Deadline, Env};
use alba_core::ids::{GroupId, ObjectId};
use alba_core::kv::{Durability, Kv, SimKvDevice};
use alba_core::wire::rpc::Consistency;
use alba_core::wire::rpc::RequestId;
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmCommand, NsmError, NsmOutcome, NsmQuery, Overwrite};

use super::*;
use crate::gated::Gated;
use crate::machine::Output;
use crate::nsm::fixtures::{NS, SPREAD, manifest, messages, name, put, sequence};
use crate::nsm::{Nsm, recount};

mod failing;

const LIMIT: Duration = Duration::from_secs(600);

fn opener(device: &SimKvDevice) -> StoreOpener {
    let device = device.clone();
    Arc::new(move || {
        let store: Arc<dyn Kv> = Arc::new(device.open());
        Ok(store)
    })
}

fn soon(env: &Env) -> Deadline {
    env.deadline_in(Duration::from_secs(10))
}

async fn start(env: &Env, device: &SimKvDevice) -> Local<Nsm> {
    let group = GroupId::new("nsm-0").unwrap();
    let local = Local::start(env.clone(), &group, opener(device), LocalLimits::default()).await.unwrap();
    local.propose(Input::Internal(NsmCommand::Deliver(messages())), soon(env)).await.unwrap();
    local
}

fn put_command(text: &str, id: u8) -> NsmCommand {
    sequence(vec![put(manifest(text, id, &[SPREAD]), Overwrite::NoPrevious)])
}

async fn exists(local: &Local<Nsm>, env: &Env, text: &str) -> bool {
    let query = NsmQuery::Manifests { namespace: NS, names: vec![name(text)] };
    match local.query(query, Consistency::Linearizable, soon(env)).await.unwrap().0 {
        Ok(NsmAnswer::Manifests(found)) => found[0].is_some(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_any_moment() {
    for seed in 0..20 {
        let sim = Simulation::new(seed);
        let device = SimKvDevice::new();
        let (first, second) = (sim.node(1), sim.node(2));
        let env = first.env();
        let acknowledged = sim
            .run(LIMIT, async {
                let local = start(&env, &device).await;
                let mut acknowledged = Vec::new();
                for id in 0..u8::try_from(seed).unwrap() + 3 {
                    let text = format!("object {id}");
                    let command = Input::Internal(put_command(&text, id));
                    assert!(matches!(
                        local.propose(command, soon(&env)).await.unwrap().0,
                        Output::Done(Ok(NsmOutcome::Stored(_)))
                    ));
                    acknowledged.push(text);
                }
                acknowledged
            })
            .unwrap();
        first.crash();
        // Nothing that was not synced stays.
        device.crash(0);
        let env = second.env();
        sim.run(LIMIT, async {
            let local = start(&env, &device).await;
            for text in &acknowledged {
                assert!(exists(&local, &env, text).await, "{text} was acknowledged");
            }
            let differences = read_with(&local, soon(&env), |store| recount(store, NS)).await.unwrap();
            assert_eq!(differences, []);
        })
        .unwrap();
    }
}

#[test]
fn many_waiting_commands_share_a_commit_and_each_gets_its_own_answer() {
    let sim = Simulation::new(3);
    let device = SimKvDevice::new();
    let env = sim.node(1).env();
    sim.run(LIMIT, async {
        let local = Arc::new(start(&env, &device).await);
        let before = *local.commits().borrow();
        let (answers, mut received) = tokio::sync::mpsc::unbounded_channel();
        for id in 0..50_u8 {
            let (local, answers, deadline) = (local.clone(), answers.clone(), soon(&env));
            // Every second one asks for a name that is taken by then.
            let command = Input::Internal(put_command(&format!("object {}", id / 2), id));
            env.spawn.spawn(
                "put",
                Box::pin(async move {
                    let output = local.propose(command, deadline).await.unwrap().0;
                    answers.send(output).unwrap();
                }),
            );
        }
        let (mut stored, mut refused) = (0, 0);
        for _ in 0..50 {
            match received.recv().await.unwrap() {
                Output::Done(Ok(_)) => stored += 1,
                Output::Done(Err(NsmError::OverwriteNotAllowed(_))) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((stored, refused), (25, 25));
        let commits = *local.commits().borrow() - before;
        assert!(commits < 25, "{commits} commits for 50 commands");
        let differences = read_with(local.as_ref(), soon(&env), |store| recount(store, NS)).await.unwrap();
        assert_eq!(differences, []);
    })
    .unwrap();
}

#[test]
fn a_failed_store_refuses_then_is_opened_again_and_the_retry_gets_the_first_answer() {
    let sim = Simulation::new(4);
    let device = SimKvDevice::new();
    let env = sim.node(1).env();
    sim.run(LIMIT, async {
        let local = start(&env, &device).await;
        let Output::Session(session) =
            local.propose(Input::OpenSession([1; 16]), soon(&env)).await.unwrap().0
        else {
            panic!()
        };
        let command = |sequence, command| {
            let id = RequestId { session, sequence, lowest_unacknowledged: 1 };
            Input::Command(id, command)
        };
        let first = local.propose(command(1, put_command("a", 1)), soon(&env)).await.unwrap().0;
        device.fail();
        let failed = local.propose(command(2, put_command("b", 2)), soon(&env)).await;
        assert!(matches!(failed, Err(ReplicationError::Store(_))), "{failed:?}");
        let read = local.query(NsmQuery::Statistics(NS), Consistency::Linearizable, soon(&env)).await;
        assert!(matches!(read, Err(ReplicationError::Store(_))), "a store that failed is not read either");
        // The device is well again.
        device.crash(0);
        env.clock.sleep_until(env.clock.now().plus(Duration::from_secs(1))).await;
        // The answer to the first was lost, say; the second never happened.
        assert_eq!(local.propose(command(1, put_command("a", 1)), soon(&env)).await.unwrap().0, first);
        let second = local.propose(command(2, put_command("b", 2)), soon(&env)).await.unwrap().0;
        assert!(matches!(second, Output::Done(Ok(NsmOutcome::Stored(_)))));
        assert!(exists(&local, &env, "a").await && exists(&local, &env, "b").await);
    })
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "on the real environment; the tasks give their results back")]
async fn nobody_hears_of_a_command_before_it_is_safe() {
    let env = alba_core::env::real::env();
    let device = SimKvDevice::new();
    let gated = Arc::new(Gated::new(device.open(), Durability::Sync));
    let group = GroupId::new("nsm-0").unwrap();
    let store: Arc<dyn Kv> = gated.clone();
    let open: StoreOpener = Arc::new(move || Ok(store.clone()));
    let local = Local::<Nsm>::start(env.clone(), &group, open, LocalLimits::default()).await.unwrap();
    let local = Arc::new(local);
    local.propose(Input::Internal(NsmCommand::Deliver(messages())), soon(&env)).await.unwrap();
    let propose = |text: &str, id: u8| {
        let (local, env, command) = (local.clone(), env.clone(), Input::Internal(put_command(text, id)));
        tokio::spawn(async move { local.propose(command, soon(&env)).await })
    };
    let reached = |number: u32| {
        let (gated, env) = (gated.clone(), env.clone());
        async move {
            let until = soon(&env);
            while gated.commits() < number {
                assert!(!until.left(env.clock.as_ref()).is_zero(), "it is not committed");
                tokio::task::yield_now().await;
            }
        }
    };
    gated.set(true);
    let first = propose("object 0", 0);
    reached(2).await;
    // Both come on top of the first, before that is in the store; the second asks for a name that it took.
    let others = [propose("object 0", 1), propose("object 2", 2)];
    assert!(!exists(&local, &env, "object 0").await, "readers see what is safe");
    assert!(!first.is_finished() && others.iter().all(|put| !put.is_finished()));
    gated.set(false);
    assert!(matches!(first.await.unwrap().unwrap().0, Output::Done(Ok(NsmOutcome::Stored(_)))));
    let [second, third] = others;
    let second = second.await.unwrap().unwrap().0;
    assert!(matches!(second, Output::Done(Err(NsmError::OverwriteNotAllowed(_)))), "{second:?}");
    assert!(matches!(third.await.unwrap().unwrap().0, Output::Done(Ok(NsmOutcome::Stored(_)))));
    assert!(exists(&local, &env, "object 0").await && exists(&local, &env, "object 2").await);
    let differences = read_with(local.as_ref(), soon(&env), |store| recount(store, NS)).await.unwrap();
    assert_eq!(differences, []);
    // What fails is not told, nor what was made on top of it.
    gated.set(true);
    let before = gated.commits();
    let failing = propose("object 3", 3);
    reached(before + 1).await;
    let behind = propose("object 4", 4);
    device.fail();
    gated.set(false);
    assert!(matches!(failing.await.unwrap(), Err(ReplicationError::Store(_))));
    assert!(matches!(behind.await.unwrap(), Err(ReplicationError::Store(_))));
    let query = NsmQuery::Manifests { namespace: NS, names: vec![name("object 0")] };
    let read = local.query(query, Consistency::Linearizable, soon(&env)).await;
    assert!(matches!(read, Err(ReplicationError::Store(_))), "{read:?}");
}

#[test]
fn a_command_whose_caller_went_away_still_counts_once() {
    let sim = Simulation::new(5);
    let device = SimKvDevice::new();
    let env = sim.node(1).env();
    sim.run(LIMIT, async {
        let local = start(&env, &device).await;
        let Output::Session(session) =
            local.propose(Input::OpenSession([1; 16]), soon(&env)).await.unwrap().0
        else {
            panic!()
        };
        let id = RequestId { session, sequence: 1, lowest_unacknowledged: 1 };
        let late =
            local.propose(Input::Command(id, put_command("a", 1)), env.deadline_in(Duration::ZERO)).await;
        let output = local.propose(Input::Command(id, put_command("a", 1)), soon(&env)).await.unwrap().0;
        let Output::Done(Ok(NsmOutcome::Stored(stored))) = output else { panic!("{late:?}, {output:?}") };
        assert_eq!(stored[0].object_id, ObjectId::new([1; 32]));
    })
    .unwrap();
}
