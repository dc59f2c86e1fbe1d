//! What the machine gives without us.

use std::fs::File;
use std::io::Write;
use std::time::Instant;

use alba_core::kv::{Durability, Kv, MemKv, WriteBatch};
use alba_core::wire::rpc::nsm::NsmCommand;
use alba_core::wire::rpc::{RequestId, SessionId};
use alba_metadata::machine::{Input, Output, step};
use alba_metadata::nsm::Nsm;
use alba_metadata::txn::KvTxn;

use crate::{Bench, group, objects};

/// Appends of 4 KiB with their syncs, per second.
pub(crate) fn fdatasync(bench: &Bench) -> f64 {
    let directory = bench.directory();
    let mut file = File::create(directory.path().join("raw")).unwrap();
    let block = [7_u8; 4096];
    let (began, mut done) = (Instant::now(), 0_u32);
    while began.elapsed() < bench.seconds {
        file.write_all(&block).unwrap();
        file.sync_data().unwrap();
        done += 1;
    }
    f64::from(done) / began.elapsed().as_secs_f64()
}

/// Puts made before the clock runs; the measurement ends with them, if not before.
const MADE: usize = 240_000;

/// Puts per second, and CPU seconds per put, when group commit is all there is: batches of `together` puts, of the sessions of `clients` in
/// turn, as the model makes them, remembered replies included, are committed and synced one after the other. They are made before the
/// clock runs, which does not stand while the store merges what it has.
pub(crate) fn store(bench: &Bench, clients: usize, together: usize) -> (f64, f64) {
    let model = MemKv::new();
    let sessions = sessions(&model, clients);
    let rounds = (1..).flat_map(|sequence| sessions.iter().map(move |session| (sequence, *session)));
    let mut puts = (0_u32..).zip(rounds);
    let made: Vec<WriteBatch> = (0..MADE / together)
        .map(|_| {
            let inputs: Vec<_> = puts.by_ref().take(together).collect();
            let first = inputs.first().map_or(0, |(number, _)| u64::from(*number));
            let inputs = inputs.into_iter().map(|(number, (sequence, session))| {
                let id = RequestId { session, sequence, lowest_unacknowledged: sequence };
                Input::Command(id, objects::put(number.into()))
            });
            let batch = batch(&model, first, inputs);
            model.commit(batch.clone(), Durability::Eventual).unwrap();
            batch
        })
        .collect();
    drop(model);
    let directory = bench.directory();
    let kv = group::open(directory.path()).unwrap();
    let (began, before, mut batches) = (Instant::now(), crate::cpu_seconds(), 0_u32);
    for batch in made {
        kv.commit(batch, Durability::Sync).unwrap();
        batches += 1;
        if began.elapsed() > bench.seconds {
            break;
        }
    }
    let (spent, cpu) = (began.elapsed(), crate::cpu_seconds() - before);
    let puts = f64::from(batches) * f64::from(u32::try_from(together).unwrap());
    (puts / spent.as_secs_f64(), cpu / puts)
}

/// A namespace and a session for each client.
pub(crate) fn sessions(kv: &dyn Kv, clients: usize) -> Vec<SessionId> {
    apply(kv, 1, [Input::Internal(objects::namespace())]);
    let mut txn = KvTxn::new(kv);
    let sessions = (0..clients).map(|client| {
        match step::<Nsm>(&mut txn, 1, &Input::OpenSession(objects::nonce(client))).unwrap() {
            Output::Session(session) => session,
            other => panic!("{other:?}"),
        }
    });
    let sessions = sessions.collect();
    kv.commit(txn.into_batch(), Durability::Eventual).unwrap();
    sessions
}

/// Applies inputs in one batch and commits it.
pub(crate) fn apply(kv: &dyn Kv, wall: u64, inputs: impl IntoIterator<Item = Input<NsmCommand>>) {
    kv.commit(batch(kv, wall, inputs), Durability::Eventual).unwrap();
}

/// The changes that inputs come to.
pub(crate) fn batch(
    kv: &dyn Kv,
    wall: u64,
    inputs: impl IntoIterator<Item = Input<NsmCommand>>,
) -> WriteBatch {
    let mut txn = KvTxn::new(kv);
    for input in inputs {
        step::<Nsm>(&mut txn, wall, &input).unwrap();
    }
    txn.into_batch()
}
