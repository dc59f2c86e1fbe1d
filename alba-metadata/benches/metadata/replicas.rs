//! Replicas in this process: real sockets on loopback, real disks, each replica in directories of its own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::real::disk::{IoConfig, RealDisk};
use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Disk, Env};
use alba_core::ids::GroupId;
use alba_core::kv::{Kv, KvError};
use alba_core::net::rpc::{Answer, Handler, ServerLimits, serve};
use alba_core::wire::rpc::{Refusal, Reply, Request};
use alba_metadata::nsm::Nsm;
use alba_metadata::raft::{AnyRaft, Home, Peers, Raft, RaftConfig, RaftLimits, States};
use alba_metadata::replicator::Replicator;
use async_trait::async_trait;

use crate::group::open;

/// State stores in a directory.
struct StatesIn(PathBuf);

impl StatesIn {
    fn path(&self, generation: u64) -> PathBuf {
        self.0.join(generation.to_string())
    }
}

impl States for StatesIn {
    fn open(&self, generation: u64) -> Result<Arc<dyn Kv>, KvError> {
        Ok(Arc::new(open(&self.path(generation))?))
    }

    fn remove(&self, generation: u64) -> Result<(), KvError> {
        std::fs::remove_dir_all(self.path(generation)).map_err(|error| KvError::Io(error.to_string()))
    }

    fn list(&self) -> Result<Vec<u64>, KvError> {
        let entries = std::fs::read_dir(&self.0).map_err(|error| KvError::Io(error.to_string()))?;
        Ok(entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect())
    }
}

struct Door(Arc<Raft<Nsm>>);

#[async_trait]
impl Handler for Door {
    async fn handle(&self, request: Request, _: Option<Duration>) -> Answer {
        match request {
            Request::Replicate(_, bytes) => Reply::Replicate(self.0.receive(&bytes).await.into()).into(),
            _ => Reply::Refused(Refusal::UnknownGroup).into(),
        }
    }
}

/// A replicated group.
pub(crate) struct Cluster {
    replicas: Vec<Arc<Raft<Nsm>>>,
    servers: Vec<AbortOnDrop>,
}

fn disk(directory: &Path) -> Arc<dyn Disk> {
    std::fs::create_dir_all(directory).unwrap();
    Arc::new(RealDisk::with(directory, IoConfig::default()).unwrap())
}

impl Cluster {
    pub(crate) async fn start(env: &Env, directory: &Path, count: usize) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..count {
            listeners.push(env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap());
        }
        let addresses: BTreeSet<SocketAddr> =
            listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let mut cluster = Self { replicas: Vec::new(), servers: Vec::new() };
        for (n, listener) in listeners.into_iter().enumerate() {
            let own = directory.join(n.to_string());
            let states = own.join("states");
            std::fs::create_dir_all(&states).unwrap();
            let home = Home {
                files: disk(&own.join("replica")),
                log: disk(&own.join("log")),
                states: Arc::new(StatesIn(states)),
            };
            let config = RaftConfig {
                group: GroupId::new("nsm-0").unwrap(),
                address: listener.local_addr().unwrap().to_string(),
                peers: addresses.iter().map(ToString::to_string).collect(),
                limits: RaftLimits::default(),
            };
            let raft = Arc::new(Raft::start(env, config, home, Peers::new(env)));
            let serving = serve(env.clone(), listener, Arc::new(Door(raft.clone())), ServerLimits::default());
            let task = async move {
                serving.await;
            };
            cluster.servers.push(env.spawn.spawn("door", Box::pin(task)).abort_on_drop());
            cluster.replicas.push(raft);
        }
        cluster
    }

    /// The replica that leads, as soon as all follow it.
    pub(crate) async fn leader(&self) -> Arc<Raft<Nsm>> {
        for _ in 0..6000 {
            for raft in &self.replicas {
                let voters = raft.status().map_or(0, |s| s.members.iter().filter(|m| m.voter).count());
                if *raft.leadership().borrow() && voters == self.replicas.len() {
                    return raft.clone();
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no leader");
    }

    /// Ends all; the directories may go then.
    pub(crate) async fn stop(self) {
        drop(self.servers);
        for mut raft in self.replicas {
            for _ in 0..1000 {
                match Arc::try_unwrap(raft) {
                    Ok(alone) => {
                        alone.stop().await;
                        break;
                    }
                    Err(shared) => raft = shared,
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}
