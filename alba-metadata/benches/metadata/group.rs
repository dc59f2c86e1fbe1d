//! Clients that put objects into a group, each waiting for its answer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alba_core::env::real;
use alba_core::ids::GroupId;
use alba_core::kv::{FjallKv, Kv, KvError};
use alba_core::wire::rpc::RequestId;
use alba_metadata::machine::{Input, Output};
use alba_metadata::nsm::Nsm;
use alba_metadata::replicator::{Local, LocalLimits, Replicator, StoreOpener};

use crate::replicas::Cluster;
use crate::{Bench, objects};

/// Opens a store with the memory that a group has by default. ALBA_BENCH_MEMTABLE sets another size of memtables, in MiB.
pub(crate) fn open(directory: &Path) -> Result<FjallKv, KvError> {
    let mib = std::env::var("ALBA_BENCH_MEMTABLE").ok().map_or(16, |text| text.parse().expect("a number"));
    FjallKv::open_busy(directory, 32 << 20, mib << 20)
}

/// What a put goes through.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// One store without replication.
    Local,
    /// So many replicas.
    Raft(usize),
}

/// All of them, with their names.
pub(crate) const KINDS: [(&str, Kind); 3] =
    [("local", Kind::Local), ("raft-1", Kind::Raft(1)), ("raft-3", Kind::Raft(3))];

/// What came of it.
pub(crate) struct Load {
    puts: usize,
    pub(crate) per_second: f64,
    /// CPU seconds per put.
    pub(crate) cpu: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// Puts that shared a commit of the store, in the mean and rounded up; where that was counted.
    pub(crate) per_batch: Option<usize>,
}

impl Load {
    /// Of the times that single puts took, all of them, and the CPU seconds.
    pub(crate) fn of(mut times: Vec<Duration>, all: Duration, cpu: f64) -> Self {
        times.sort_unstable();
        let at = |part: usize| times[(times.len() - 1) * part / 100];
        let count = f64::from(u32::try_from(times.len()).unwrap());
        Self {
            puts: times.len(),
            per_second: count / all.as_secs_f64(),
            cpu: cpu / count,
            p50: at(50),
            p99: at(99),
            per_batch: None,
        }
    }
}

fn opener(directory: &Path) -> StoreOpener {
    let directory = directory.to_owned();
    Arc::new(move || {
        let kv: Arc<dyn Kv> = Arc::new(open(&directory)?);
        Ok(kv)
    })
}

/// Puts for the bench's time.
pub(crate) async fn puts(bench: &Bench, kind: Kind, clients: usize) -> Load {
    let env = real::env();
    let directory = bench.directory();
    match kind {
        Kind::Local => {
            let group = GroupId::new("nsm-0").unwrap();
            let open = opener(directory.path());
            let local = Local::<Nsm>::start(env.clone(), &group, open, LocalLimits::default()).await.unwrap();
            let commits = local.commits();
            let mut load = load(bench, clients, env, Arc::new(local)).await;
            let batches = usize::try_from(*commits.borrow()).unwrap();
            load.per_batch = Some(load.puts.div_ceil(batches));
            load
        }
        Kind::Raft(count) => {
            let cluster = Cluster::start(&env, directory.path(), count).await;
            let leader = cluster.leader().await;
            let load = load(bench, clients, env, leader).await;
            cluster.stop().await;
            load
        }
    }
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
    let (began, cpu, time) = (Instant::now(), crate::cpu_seconds(), bench.seconds);
    let mut running = Vec::new();
    for client in 0..clients {
        let (group, numbers, env) = (group.clone(), numbers.clone(), env.clone());
        running.push(tokio::spawn(async move {
            let open = Input::OpenSession(objects::nonce(client));
            let opened = group.propose(open, env.deadline_in(patience)).await.unwrap();
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
    Load::of(times, began.elapsed(), crate::cpu_seconds() - cpu)
}
