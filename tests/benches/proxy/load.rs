//! Clients of the proxy, each waiting for its answer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alba_core::env::{Env, real};
use alba_core::ids::{NamespaceName, ObjectName};
use alba_proxy::client::ProxyClient;
use alba_tests::bench::cpu_seconds_of;
use alba_tests::bench::limits::as_f64;
use alba_tests::bench::times::Times;
use alba_tests::cluster::Cluster;
use alba_tests::{content, process};
use rand::RngExt;

/// `alba up` makes this namespace, with the default preset.
const NAMESPACE: &str = "demo";

/// Bytes of an object whose slices are read, and how many there are.
const SLICED: (u64, u64) = (5 << 20, 48);

const PATIENCE: Duration = Duration::from_secs(120);

/// What is done with whole objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Put,
    Get,
}

/// What came of it.
pub(crate) struct Load {
    pub(crate) per_second: f64,
    pub(crate) bytes_per_second: f64,
    /// Of each request.
    pub(crate) took: Vec<Duration>,
    pub(crate) cpu_per_gib: f64,
    /// By kind of daemon.
    pub(crate) cpu_by_kind: BTreeMap<String, f64>,
    pub(crate) cpu_per_request: f64,
}

impl Load {
    fn of(took: Vec<Duration>, bytes: u64, all: Duration, cpu: BTreeMap<String, f64>) -> Self {
        assert!(!took.is_empty(), "no request ended in time");
        let count = as_f64(u64::try_from(took.len()).unwrap());
        let total = as_f64(bytes) * count;
        let all_cpu: f64 = cpu.values().sum();
        let per_gib = |cpu: f64| cpu * f64::from(1 << 30) / total;
        Self {
            per_second: count / all.as_secs_f64(),
            bytes_per_second: total / all.as_secs_f64(),
            took,
            cpu_per_gib: per_gib(all_cpu),
            cpu_by_kind: cpu.into_iter().map(|(kind, cpu)| (kind, per_gib(cpu))).collect(),
            cpu_per_request: all_cpu / count,
        }
    }

    /// How long its requests took.
    pub(crate) fn times(&self) -> Times {
        Times::of(self.took.clone()).expect("there are some")
    }
}

/// Of all daemons of the cluster, by kind.
fn cpu(cluster: &Cluster) -> BTreeMap<String, f64> {
    let mut cpu = BTreeMap::new();
    for process in &cluster.ready.processes {
        let kind = process.name.rsplit_once('-').map_or(&*process.name, |(kind, _)| kind);
        *cpu.entry(kind.to_owned()).or_insert(0.0) += cpu_seconds_of(&process.pid.to_string());
    }
    cpu
}

fn since(mut now: BTreeMap<String, f64>, before: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    for (kind, cpu) in &mut now {
        *cpu -= before.get(kind).copied().unwrap_or(0.0);
    }
    now
}

/// The most memory that the proxy has had, in MiB.
pub(crate) fn proxy_memory(cluster: &Cluster) -> f64 {
    let pid = cluster.pid("proxy-0");
    as_f64(process::memory(pid).peak) / f64::from(1 << 20)
}

async fn connect(env: &Env, cluster: &Cluster) -> ProxyClient {
    ProxyClient::connect(env, cluster.proxy(), env.deadline_in(PATIENCE)).await.unwrap()
}

fn object(text: String) -> ObjectName {
    ObjectName::new(text).unwrap()
}

/// `clients` that put or get objects of `size` bytes, each from and to files of its own.
pub(crate) async fn whole(cluster: &Cluster, op: Op, size: u64, clients: usize, time: Duration) -> Load {
    let env = real::env();
    let namespace = NamespaceName::new(NAMESPACE).unwrap();
    let source = cluster.scratch().join(format!("source-{size}"));
    if !source.exists() {
        content::write_file(&source, "bench", size).unwrap();
    }
    let mut connections = Vec::new();
    for client in 0..clients {
        let mut proxy = connect(&env, cluster).await;
        if op == Op::Get {
            let name = object(format!("get-{size}-{client}"));
            let deadline = env.deadline_in(PATIENCE);
            proxy.upload_object(&namespace, &name, &source, true, None, deadline).await.unwrap();
        }
        connections.push(proxy);
    }
    static PUTS: AtomicU64 = AtomicU64::new(0);
    let (began, before) = (Instant::now(), cpu(cluster));
    let mut running = Vec::new();
    for (client, mut proxy) in connections.into_iter().enumerate() {
        let (env, namespace, source) = (env.clone(), namespace.clone(), source.clone());
        let target: PathBuf = cluster.scratch().join(format!("target-{client}"));
        running.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while began.elapsed() < time {
                let (started, deadline) = (Instant::now(), env.deadline_in(PATIENCE));
                match op {
                    Op::Put => {
                        let name = object(format!("put-{}", PUTS.fetch_add(1, Ordering::Relaxed)));
                        proxy.upload_object(&namespace, &name, &source, false, None, deadline).await.unwrap();
                    }
                    Op::Get => {
                        let name = object(format!("get-{size}-{client}"));
                        proxy.download_object(&namespace, &name, &target, false, deadline).await.unwrap();
                    }
                }
                times.push(started.elapsed());
            }
            drop(std::fs::remove_file(&target));
            times
        }));
    }
    let mut times = Vec::new();
    for client in running {
        times.extend(client.await.unwrap());
    }
    let all = began.elapsed();
    Load::of(times, size, all, since(cpu(cluster), &before))
}

/// Stores the objects whose slices are read.
pub(crate) async fn fill(cluster: &Cluster) -> Arc<Vec<ObjectName>> {
    let env = real::env();
    let namespace = NamespaceName::new(NAMESPACE).unwrap();
    let (size, count) = SLICED;
    let source = cluster.scratch().join("sliced");
    content::write_file(&source, "sliced", size).unwrap();
    let mut proxy = connect(&env, cluster).await;
    let mut names = Vec::new();
    for number in 0..count {
        let name = object(format!("sliced-{number}"));
        let deadline = env.deadline_in(PATIENCE);
        proxy.upload_object(&namespace, &name, &source, true, None, deadline).await.unwrap();
        names.push(name);
    }
    Arc::new(names)
}

/// `clients` that read slices of `len` bytes at random places.
pub(crate) async fn slices(
    cluster: &Cluster,
    objects: &Arc<Vec<ObjectName>>,
    len: u32,
    clients: usize,
    time: Duration,
) -> Load {
    let env = real::env();
    let namespace = NamespaceName::new(NAMESPACE).unwrap();
    let places = SLICED.0 / u64::from(len);
    // Everything once, so that what shall be cached is.
    let mut proxy = connect(&env, cluster).await;
    for name in objects.iter() {
        let whole = [(name.clone(), vec![(0, i32::try_from(SLICED.0).unwrap())])];
        proxy.read_slices(&namespace, &whole, false, env.deadline_in(PATIENCE)).await.unwrap();
    }
    let mut connections = vec![proxy];
    while connections.len() < clients {
        connections.push(connect(&env, cluster).await);
    }
    let (began, before) = (Instant::now(), cpu(cluster));
    let mut running = Vec::new();
    for mut proxy in connections {
        let (env, namespace, objects) = (env.clone(), namespace.clone(), objects.clone());
        running.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while began.elapsed() < time {
                let (name, place) = {
                    let mut rng = rand::rng();
                    (rng.random_range(0..objects.len()), rng.random_range(0..places))
                };
                let offset = i64::try_from(place * u64::from(len)).unwrap();
                let request = [(objects[name].clone(), vec![(offset, i32::try_from(len).unwrap())])];
                let started = Instant::now();
                let deadline = env.deadline_in(PATIENCE);
                let data = proxy.read_slices(&namespace, &request, false, deadline).await.unwrap();
                times.push(started.elapsed());
                assert_eq!(data.len(), usize::try_from(len).unwrap());
            }
            times
        }));
    }
    let mut times = Vec::new();
    for client in running {
        times.extend(client.await.unwrap());
    }
    let all = began.elapsed();
    Load::of(times, u64::from(len), all, since(cpu(cluster), &before))
}
