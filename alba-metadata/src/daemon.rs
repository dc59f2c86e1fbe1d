//! The metadata daemon: configuration, the lock on its directory, the server.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alba_core::daemon::{Context, Daemon};
use alba_core::env::files;
use alba_core::ids::GroupId;
use alba_core::kv::{FjallKv, Kv, KvError};
use alba_core::net::rpc::{ServerLimits, serve};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::replicator::{LocalLimits, StoreOpener};
use crate::server::{AsdDevices, Node, NodeConfig};

/// Configuration of the metadata daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataConfig {
    /// Where its groups are kept, each in a directory of its own.
    pub data_dir: PathBuf,
    /// Where clients connect. Not on loopback only with `insecure_listen`.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Where clients are told to connect (`ip:port`), when that is another address than `listen`.
    #[serde(default)]
    pub advertise: Option<SocketAddr>,
    /// Allows a `listen` address that other machines reach without authentication.
    #[serde(default)]
    pub insecure_listen: bool,
    /// Groups hosted here: `abm`, and any other name for an NSM group.
    #[serde(default = "default_groups")]
    pub groups: Vec<GroupId>,
    /// Where metrics and health are served; none: nowhere.
    #[serde(default)]
    pub metrics_listen: Option<SocketAddr>,
    /// Block cache per group, in bytes.
    #[serde(default = "default_cache")]
    pub cache_bytes: u64,
    /// Connections at once.
    #[serde(default = "default_connections")]
    pub max_connections: usize,
    /// Requests and answers in memory, in bytes.
    #[serde(default = "default_bytes")]
    pub max_bytes_in_flight: usize,
}

fn default_listen() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 4000).into()
}

fn default_groups() -> Vec<GroupId> {
    // Both are valid names.
    ["abm", "nsm-0"].into_iter().filter_map(|name| GroupId::new(name).ok()).collect()
}

fn default_cache() -> u64 {
    32 << 20
}

fn default_connections() -> usize {
    ServerLimits::default().connections
}

fn default_bytes() -> usize {
    ServerLimits::default().bytes
}

/// The metadata daemon.
pub struct MetadataDaemon;

impl Daemon for MetadataDaemon {
    type Config = MetadataConfig;
    const NAME: &'static str = "metadata";
    const ABOUT: &'static str = "ALBA's metadata server: the ABM and NSM groups of a backend";

    fn check(config: &MetadataConfig) -> Result<(), String> {
        if config.groups.is_empty() {
            return Err("groups is empty: name at least one, such as \"abm\" or \"nsm-0\"".to_owned());
        }
        for group in &config.groups {
            let name = group.as_str();
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if !plain {
                return Err(format!("groups: {name:?} must consist of letters, digits, - and _"));
            }
            if config.groups.iter().filter(|other| *other == group).count() > 1 {
                return Err(format!("groups: {name:?} is named twice"));
            }
        }
        if !config.listen.ip().is_loopback() && !config.insecure_listen {
            return Err(format!(
                "listen = \"{}\" is reachable from other machines without authentication; \
                 use a loopback address or set insecure_listen = true",
                config.listen
            ));
        }
        if config.max_connections == 0 || config.max_bytes_in_flight < 1 << 20 {
            return Err("max_connections must be at least 1, max_bytes_in_flight at least 1048576".to_owned());
        }
        Ok(())
    }

    fn metrics_listen(config: &MetadataConfig) -> Option<SocketAddr> {
        config.metrics_listen
    }

    async fn run(config: MetadataConfig, context: Context) -> anyhow::Result<()> {
        let env = context.env.clone();
        if config.insecure_listen {
            tracing::warn!(listen = %config.listen, "insecure_listen: anyone who reaches this address can change metadata");
        }
        files::create_dir_all(&config.data_dir)
            .with_context(|| format!("cannot create data_dir {}", config.data_dir.display()))?;
        let _lock = lock(&config.data_dir)?;
        let listener = env.net.listen(config.listen).await?;
        let listening = listener.local_addr()?;
        let mut groups = BTreeMap::new();
        for group in &config.groups {
            let directory = config.data_dir.join(group.as_str());
            groups.insert(group.clone(), opener(directory, config.cache_bytes));
        }
        let advertise = config.advertise.unwrap_or(listening).to_string();
        let node_config = NodeConfig { groups, advertise, limits: LocalLimits::default() };
        let node = Node::start(env.clone(), node_config, Arc::new(AsdDevices::new(env.clone()))).await?;
        let limits = ServerLimits {
            connections: config.max_connections,
            bytes: config.max_bytes_in_flight,
            ..ServerLimits::default()
        };
        tracing::info!(%listening, groups = ?config.groups, "serving");
        let watch = async {
            loop {
                match node.trouble() {
                    None => context.health.set_ready(),
                    Some(trouble) => context.health.set_not_ready(trouble),
                }
                env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(500))).await;
            }
        };
        tokio::select! {
            biased;
            // Requests under way are dropped: their clients retry under the same ids and hear what came of them.
            () = context.stop.wait() => Ok(()),
            error = serve(env.clone(), listener, node.clone(), limits) => {
                Err(error).context("the listener failed")
            }
            () = watch => Ok(()),
        }
    }
}

/// One process per data directory. The lock goes with the process, however it ends.
fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let path = data_dir.join("LOCK");
    let file = files::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(error) => Err(anyhow::anyhow!(
            "data_dir {} cannot be locked ({error}): another process uses it; stop that one or name another directory",
            data_dir.display()
        )),
    }
}

fn opener(directory: PathBuf, cache_bytes: u64) -> StoreOpener {
    Arc::new(move || {
        files::create_dir_all(&directory).map_err(|error| KvError::Io(error.to_string()))?;
        let store: Arc<dyn Kv> = Arc::new(FjallKv::open(&directory, cache_bytes)?);
        Ok(store)
    })
}
