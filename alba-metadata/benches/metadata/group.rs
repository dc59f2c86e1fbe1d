//! Clients that put objects into a group, each waiting for its answer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alba_core::env::real;
use alba_core::ids::GroupId;
use alba_core::kv::{FjallKv, Kv};
use alba_core::wire::rpc::RequestId;
use alba_metadata::machine::{Input, Output};
use alba_metadata::nsm::Nsm;
use alba_metadata::replicator::{Local, LocalLimits, Replicator, StoreOpener};

use crate::{Bench, objects};

/// Sizes of groups.
pub(crate) const REPLICAS: [usize; 1] = [1];

/// What came of it.
pub(crate) struct Load {
    pub(crate) per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

fn opener(directory: &Path) -> StoreOpener {
    let directory = directory.to_owned();
    Arc::new(move || {
        let kv: Arc<dyn Kv> = Arc::new(FjallKv::open(&directory, 32 << 20)?);
        Ok(kv)
    })
}

/// Puts for the bench's time.
pub(crate) async fn puts(bench: &Bench, _replicas: usize, clients: usize) -> Load {
    let env = real::env();
    let directory = bench.directory();
    let group = GroupId::new("nsm-0").unwrap();
    let local = Local::<Nsm>::start(env.clone(), &group, opener(directory.path()), LocalLimits::default())
        .await
        .unwrap();
    load(bench, clients, env, Arc::new(local)).await
}

async fn load(
    bench: &Bench,
    clients: usize,
    env: alba_core::env::Env,
    group: Arc<dyn Replicator<Nsm>>,
) -> Load {
    let patience = Duration::from_secs(60);
    group.propose(Input::Internal(objects::namespace()), env.deadline_in(patience)).await.unwrap();
    let numbers = Arc::new(AtomicU64::new(0));
    let (began, time) = (Instant::now(), bench.seconds);
    let mut running = Vec::new();
    for client in 0..clients {
        let (group, numbers, env) = (group.clone(), numbers.clone(), env.clone());
        running.push(tokio::spawn(async move {
            let mut nonce = [0; 16];
            nonce[..8].copy_from_slice(&u64::try_from(client).unwrap().to_le_bytes());
            let opened = group.propose(Input::OpenSession(nonce), env.deadline_in(patience)).await.unwrap();
            let Output::Session(session) = opened.0 else { panic!("no session") };
            let mut times = Vec::new();
            let mut sequence = 0;
            while began.elapsed() < time {
                sequence += 1;
                let id = RequestId { session, sequence, lowest_unacknowledged: sequence };
                let command = objects::put(numbers.fetch_add(1, Ordering::Relaxed));
                let started = Instant::now();
                let output =
                    group.propose(Input::Command(id, command), env.deadline_in(patience)).await.unwrap();
                assert!(matches!(output.0, Output::Done(Ok(_))), "{output:?}");
                times.push(started.elapsed());
            }
            times
        }));
    }
    let mut times = Vec::new();
    for client in running {
        times.extend(client.await.unwrap());
    }
    let seconds = began.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    let count = f64::from(u32::try_from(times.len()).unwrap());
    Load { per_second: count / seconds, p50: at(50), p99: at(99) }
}
