//! What the machine gives without us.

use std::fs::File;
use std::io::Write;
use std::time::Instant;

use alba_core::kv::{Durability, FjallKv, Kv, MemKv, WriteBatch};
use alba_metadata::machine::{Input, step};
use alba_metadata::nsm::Nsm;
use alba_metadata::txn::KvTxn;

use crate::{Bench, objects};

/// Batches made before the clock runs.
const BATCHES: usize = 300;

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

/// Puts per second, and CPU seconds per put, when their changes, made before, go into the store in batches of `clients`.
pub(crate) fn store(bench: &Bench, clients: usize) -> (f64, f64) {
    let model = MemKv::new();
    apply(&model, 1, &[Input::Internal(objects::namespace())]);
    let mut number = 0;
    let mut batches: Vec<WriteBatch> = Vec::new();
    for _ in 0..BATCHES {
        let inputs: Vec<_> = (0..clients)
            .map(|_| {
                number += 1;
                Input::Internal(objects::put(number))
            })
            .collect();
        batches.push(apply(&model, number, &inputs));
    }
    let directory = bench.directory();
    let kv = FjallKv::open(directory.path(), 32 << 20).unwrap();
    let (began, cpu, mut puts) = (Instant::now(), crate::cpu_seconds(), 0_u32);
    for batch in batches {
        kv.commit(batch, Durability::Sync).unwrap();
        puts += u32::try_from(clients).unwrap();
        if began.elapsed() > bench.seconds {
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    (f64::from(puts) / seconds, (crate::cpu_seconds() - cpu) / f64::from(puts))
}

/// Applies inputs in one batch and gives the batch.
pub(crate) fn apply(
    kv: &dyn Kv,
    wall: u64,
    inputs: &[Input<alba_core::wire::rpc::nsm::NsmCommand>],
) -> WriteBatch {
    let mut txn = KvTxn::new(kv);
    for input in inputs {
        step::<Nsm>(&mut txn, wall, input).unwrap();
    }
    let batch = txn.into_batch();
    kv.commit(batch.clone(), Durability::Eventual).unwrap();
    batch
}
