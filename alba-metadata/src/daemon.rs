//! The metadata daemon: configuration, the lock on its directory, the server.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alba_core::daemon::{Context, Daemon};
use alba_core::env::real::disk::{IoConfig, RealDisk};
use alba_core::env::real::quic::{self, QuicLimits};
use alba_core::env::{Connector, Disk, Env, Net, files};
use alba_core::ids::GroupId;
use alba_core::kv::{FjallKv, Kv, KvError};
use alba_core::net::asd::{OsdTransport, Reach};
use alba_core::net::rpc::{ServerLimits, serve};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::backup::scheduled::Schedule;
use crate::raft::{Home, OLDEST_PAYLOAD_FORMAT, PAYLOAD_FORMAT, RaftConfig, RaftLimits, States};
use crate::replicator::{LocalLimits, StoreOpener};
use crate::server::{AsdDevices, Node, NodeConfig, Replicated};

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
    /// The metadata servers that the groups are replicated over, by the address where each is reached (its `advertise`), this
    /// one included; empty: one copy, on this machine alone. Give all of them the same list before the first start: a group
    /// forms once, when all of them answer and none knows of it. A server that is started with nothing in its `data_dir` and
    /// the address of a member takes that member's place by itself. On a server that is added later the list names some of
    /// the others; an operator then adds its address to each group.
    #[serde(default)]
    pub nodes: Vec<SocketAddr>,
    /// PEM file with the certificate of the cluster's authority. With it, `tls_cert` and `tls_key` clients and the other
    /// servers are spoken to over QUIC (`listen` is a UDP port then), each side knowing the other by its certificate; without
    /// them over plain TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// PEM file with the own certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the own private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Groups hosted here: `abm`, and any other name for an NSM group.
    #[serde(default = "default_groups")]
    pub groups: Vec<GroupId>,
    /// The newest format of log entries that this server says it can apply to the groups it is a replica of. Less than the
    /// default makes it one of the version before, so that a group that is being updated does not agree on the newer format yet.
    #[serde(default = "default_entry_format")]
    pub newest_entry_format: u8,
    /// Where metrics and health are served; none: nowhere.
    #[serde(default)]
    pub metrics_listen: Option<SocketAddr>,
    /// Where each group's leader writes backups by itself; none: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_dir: Option<PathBuf>,
    /// Seconds between two backups of a group.
    #[serde(default = "default_backup_every")]
    pub backup_every: u64,
    /// Backups that are kept of each group; older ones are removed.
    #[serde(default = "default_backup_keep")]
    pub backup_keep: usize,
    /// Block cache per group, in bytes.
    #[serde(default = "default_cache")]
    pub cache_bytes: u64,
    /// Bytes of changes per group that are kept in memory until they go to a file; so much again up to four times while
    /// files are being written. Changes nothing in a group that was created with another value.
    #[serde(default = "default_memtable")]
    pub memtable_bytes: u64,
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

fn default_entry_format() -> u8 {
    PAYLOAD_FORMAT
}

fn default_backup_every() -> u64 {
    3600
}

fn default_backup_keep() -> usize {
    24
}

fn default_cache() -> u64 {
    32 << 20
}

fn default_memtable() -> u64 {
    // Searches in larger ones miss the processor's caches: with 64 MiB a put took a fifth more CPU time.
    16 << 20
}

fn default_connections() -> usize {
    ServerLimits::default().connections
}

fn default_bytes() -> usize {
    ServerLimits::default().bytes
}

/// Longest a server that ends waits until the others know.
const TELL: Duration = Duration::from_secs(1);

/// What the store of a group may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoreMemory {
    cache_bytes: u64,
    memtable_bytes: u64,
}

impl StoreMemory {
    pub(crate) fn open(self, directory: &Path) -> Result<FjallKv, KvError> {
        FjallKv::open_busy(directory, self.cache_bytes, self.memtable_bytes)
    }
}

impl MetadataConfig {
    pub(crate) fn memory(&self) -> StoreMemory {
        StoreMemory { cache_bytes: self.cache_bytes, memtable_bytes: self.memtable_bytes }
    }
}

/// The metadata daemon.
pub struct MetadataDaemon;

impl Daemon for MetadataDaemon {
    type Config = MetadataConfig;
    const NAME: &'static str = "metadata";
    const ABOUT: &'static str = "ALBA's metadata server: the ABM and NSM groups of a backend. With nodes = [\"ip:port\", ...] \
        in the configuration of each of three or five servers the groups are replicated over them. Commands of its own, \
        each with --help: init, join, backup, restore, fsck, export";

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
        let tls = [&config.tls_ca, &config.tls_cert, &config.tls_key];
        let given = tls.into_iter().flatten().count();
        if given != 0 && given != tls.len() {
            return Err("tls_ca, tls_cert and tls_key belong together: give all of them or none".to_owned());
        }
        if config.nodes.iter().any(|node| config.nodes.iter().filter(|other| *other == node).count() > 1) {
            return Err("nodes: an address is named twice".to_owned());
        }
        if !config.nodes.is_empty() && config.advertise.unwrap_or(config.listen).port() == 0 {
            return Err("nodes: a replicated server needs a fixed port in advertise or listen".to_owned());
        }
        if !config.listen.ip().is_loopback() && !config.insecure_listen && given == 0 {
            return Err(format!(
                "listen = \"{}\" is reachable from other machines without authentication; \
                 give tls_ca, tls_cert and tls_key, use a loopback address, or set insecure_listen = true",
                config.listen
            ));
        }
        let formats = OLDEST_PAYLOAD_FORMAT..=PAYLOAD_FORMAT;
        if !formats.contains(&config.newest_entry_format) {
            return Err(format!(
                "newest_entry_format = {} is not known; this version applies {OLDEST_PAYLOAD_FORMAT} to {PAYLOAD_FORMAT}",
                config.newest_entry_format
            ));
        }
        if config.backup_every == 0 || config.backup_keep == 0 {
            return Err("backup_every and backup_keep must be at least 1".to_owned());
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
        let env = match secured(&env, &config)? {
            Some(net) => Env { net, ..env },
            None => env,
        };
        let listener = env.net.listen(config.listen).await?;
        let listening = listener.local_addr()?;
        let advertise = config.advertise.unwrap_or(listening).to_string();
        let mut groups = BTreeMap::new();
        let mut replicated = Vec::new();
        for group in &config.groups {
            let directory = config.data_dir.join(group.as_str());
            let is_replica = directory.join(REPLICA).is_dir();
            if config.nodes.is_empty() {
                if is_replica {
                    anyhow::bail!(
                        "{} belongs to a replicated group: configure its nodes",
                        directory.display()
                    );
                }
                groups.insert(group.clone(), opener(directory, config.memory()));
            } else {
                if !is_replica && directory.exists() && std::fs::read_dir(&directory)?.next().is_some() {
                    anyhow::bail!("{} holds a group without replication; move it away", directory.display());
                }
                let peers = config.nodes.iter().map(ToString::to_string).collect();
                let (group, address) = (group.clone(), advertise.clone());
                let newest_format = config.newest_entry_format;
                let limits = RaftLimits { newest_format, ..RaftLimits::default() };
                let home = home(&directory, config.memory())?;
                replicated.push(Replicated { config: RaftConfig { group, address, peers, limits }, home });
            }
        }
        let node_config = NodeConfig { groups, advertise, limits: LocalLimits::default() };
        // Over TCP where they serve it, whatever the metadata servers speak.
        let connector = device_connector(&context.env, &config)?;
        let reach = Reach::new(context.env.clone(), connector, OsdTransport::Auto);
        let devices = Arc::new(AsdDevices::over(reach));
        let node = Node::start_with(env.clone(), node_config, replicated, devices).await?;
        let limits = ServerLimits {
            connections: config.max_connections,
            bytes: config.max_bytes_in_flight,
            ..ServerLimits::default()
        };
        let _backups = config.backup_dir.clone().map(|directory| {
            let every = Duration::from_secs(config.backup_every);
            node.backups(&Schedule { directory, every, keep: config.backup_keep })
        });
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
        let ended = tokio::select! {
            biased;
            // Requests under way are dropped: their clients retry under the same ids and hear what came of them.
            () = context.stop.wait() => Ok(()),
            error = serve(env.clone(), listener, node.clone(), limits) => {
                Err(error).context("the listener failed")
            }
            () = watch => Ok(()),
        };
        // Clients and the other replicas connect anew at once, also when the next process has another key.
        env.net.told(env.deadline_in(TELL)).await;
        ended
    }
}

/// One process per data directory. The lock goes with the process, however it ends.
pub(crate) fn lock(data_dir: &Path) -> anyhow::Result<File> {
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

/// The configured certificates.
fn identity(config: &MetadataConfig) -> anyhow::Result<Option<quic::Identity>> {
    let (Some(authority), Some(certificate), Some(key)) = (&config.tls_ca, &config.tls_cert, &config.tls_key)
    else {
        return Ok(None);
    };
    Ok(Some(quic::Identity::read(authority, certificate, key)?))
}

/// QUIC with the configured certificates; none: plain TCP.
pub(crate) fn secured(env: &Env, config: &MetadataConfig) -> anyhow::Result<Option<Arc<dyn Net>>> {
    let Some(identity) = identity(config)? else { return Ok(None) };
    let limits = QuicLimits { connections: config.max_connections, ..QuicLimits::default() };
    let net = quic::QuicNet::new(env.clock.clone(), identity, quic::METADATA, limits)?;
    Ok(Some(Arc::new(net)))
}

/// The way to OSDs that serve QUIC only, when there are certificates.
fn device_connector(env: &Env, config: &MetadataConfig) -> anyhow::Result<Option<Arc<dyn Connector>>> {
    let Some(identity) = identity(config)? else { return Ok(None) };
    let connector =
        quic::QuicConnector::new(env.clock.clone(), &identity, quic::ASD, &QuicLimits::default())?;
    Ok(Some(Arc::new(connector)))
}

/// The directory of a replica's own files, inside its group's; that of its log is beside it.
pub(crate) const REPLICA: &str = "replica";

/// The places of a replica: `replica/` (name, snapshots), `log/`, `state-N/`.
pub(crate) fn home(directory: &Path, memory: StoreMemory) -> anyhow::Result<Home> {
    let disk = |name: &str| -> anyhow::Result<Arc<dyn Disk>> {
        let path = directory.join(name);
        files::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Arc::new(RealDisk::with(
            path,
            IoConfig { threads: 4, buffer_bytes: 32 << 20, carries_bulk: false, ..IoConfig::default() },
        )?))
    };
    let states = Arc::new(StatesIn { directory: directory.to_owned(), memory });
    Ok(Home { log: disk("log")?, files: disk(REPLICA)?, states })
}

/// Stores in directories `state-N`.
pub(crate) struct StatesIn {
    pub(crate) directory: PathBuf,
    pub(crate) memory: StoreMemory,
}

/// What the names of their directories begin with.
const STATE: &str = "state-";

impl StatesIn {
    fn path(&self, generation: u64) -> PathBuf {
        self.directory.join(format!("{STATE}{generation}"))
    }
}

impl States for StatesIn {
    fn open(&self, generation: u64) -> Result<Arc<dyn Kv>, KvError> {
        let path = self.path(generation);
        files::create_dir_all(&path).map_err(|error| KvError::Io(error.to_string()))?;
        Ok(Arc::new(self.memory.open(&path)?))
    }

    fn remove(&self, generation: u64) -> Result<(), KvError> {
        match files::remove_dir_all(&self.path(generation)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(KvError::Io(error.to_string())),
            _ => Ok(()),
        }
    }

    fn list(&self) -> Result<Vec<u64>, KvError> {
        let failed = |error: std::io::Error| KvError::Io(error.to_string());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(STATE)).map(str::parse);
            if let Some(Ok(number)) = number {
                found.push(number);
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

fn opener(directory: PathBuf, memory: StoreMemory) -> StoreOpener {
    Arc::new(move || {
        files::create_dir_all(&directory).map_err(|error| KvError::Io(error.to_string()))?;
        let store: Arc<dyn Kv> = Arc::new(memory.open(&directory)?);
        Ok(store)
    })
}
