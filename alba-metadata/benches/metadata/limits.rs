//! What the machine gives without us.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use alba_core::kv::{Durability, Kv, WriteBatch};
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

/// Puts per second, and CPU seconds per put, when group commit is all there is: batches of one put of each of `clients`, as
/// the model makes them, remembered replies included, are committed and synced one after the other. The clock stands
/// while a batch is made; what the store does in the background meanwhile is for free.
pub(crate) fn store(bench: &Bench, clients: usize) -> (f64, f64) {
    let directory = bench.directory();
    let kv = group::open(directory.path()).unwrap();
    let sessions = sessions(&kv, clients);
    let (mut spent, mut cpu, mut puts) = (Duration::ZERO, 0.0, 0_u32);
    for sequence in 1.. {
        let first = puts;
        let inputs = (first..).zip(&sessions).map(|(number, session)| {
            let id = RequestId { session: *session, sequence, lowest_unacknowledged: sequence };
            Input::Command(id, objects::put(number.into()))
        });
        let batch = batch(&kv, u64::from(first), inputs);
        puts += u32::try_from(clients).unwrap();
        let (began, before) = (Instant::now(), crate::cpu_seconds());
        kv.commit(batch, Durability::Sync).unwrap();
        spent += began.elapsed();
        cpu += crate::cpu_seconds() - before;
        if spent > bench.seconds {
            break;
        }
    }
    (f64::from(puts) / spent.as_secs_f64(), cpu / f64::from(puts))
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
