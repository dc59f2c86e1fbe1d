//! The configuration files of a local cluster's processes.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use alba_client::ClientConfig;
use alba_core::env::files;
use toml::{Table, Value};

use super::plan::{FragmentCache, Planned, Role, Shape};
use super::supervisor::Program;
use crate::authority::{Authority, MemberFiles};
use crate::client_file::ClientFile;
use crate::error::CliError;

/// The directories and files below the data directory.
pub(super) struct Paths {
    /// The data directory, absolute.
    pub(super) root: PathBuf,
}

impl Paths {
    /// Makes the directories.
    pub(super) fn create(root: &Path) -> Result<Self, CliError> {
        let root = std::path::absolute(root).map_err(|error| CliError::file("find", root, &error))?;
        for part in ["config", "logs", "data"] {
            let path = root.join(part);
            files::create_dir_all(&path).map_err(|error| CliError::file("create", &path, &error))?;
        }
        Ok(Self { root })
    }

    /// Held by the supervisor.
    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The [`Shape`].
    pub(super) fn shape(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    /// The client configuration.
    pub(super) fn client(&self) -> PathBuf {
        self.root.join("client.toml")
    }

    /// Certificate and key of a member of this cluster; made when they are not there.
    pub(super) fn member(&self, name: &str) -> Result<MemberFiles, CliError> {
        let dir = self.root.join("tls");
        Authority::open_or_create(&dir)?.member(name, &dir)
    }

    /// Of one process.
    fn config(&self, name: &str) -> PathBuf {
        self.root.join("config").join(format!("{name}.toml"))
    }

    /// The cluster's key.
    pub(super) fn cluster_key(&self) -> PathBuf {
        self.root.join("tls").join("cluster.key")
    }

    /// Of one process.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// Of one process.
    fn data(&self, name: &str) -> PathBuf {
        self.root.join("data").join(name)
    }
}

/// Writes a process's configuration and says how to run it.
pub(super) fn program(
    paths: &Paths,
    process: &Planned,
    shape: &Shape,
    metadata: &[SocketAddr],
) -> Result<Program, CliError> {
    let mut table = Table::new();
    let mut set = |key: &str, value: Value| table.insert(key.to_owned(), value);
    if !process.role.is_agent() {
        set("listen", Value::String(process.listen.to_string()));
    }
    set("metrics_listen", Value::String(process.metrics.to_string()));
    let data = paths.data(&process.name);
    let data = data.to_str().ok_or_else(|| {
        CliError::usage(format!(
            "the data directory {} is no UTF-8 text; choose another one",
            paths.root.display()
        ))
    })?;
    if !matches!(process.role, Role::Asd { .. }) {
        let MemberFiles { ca, cert, key } = paths.member(&process.name)?;
        // Below the data directory, which is UTF-8.
        let text = |path: &Path| Value::String(path.to_string_lossy().into_owned());
        let mut files = vec![("tls_ca", text(&ca)), ("tls_cert", text(&cert)), ("tls_key", text(&key))];
        if process.role != Role::Metadata {
            files.push(("cluster_key", text(&paths.cluster_key())));
        }
        match process.role {
            Role::Metadata => files.into_iter().for_each(|(key, file)| drop(set(key, file))),
            // Of the object engine in it.
            _ => {
                let mut client: Table = files.into_iter().map(|(key, file)| (key.to_owned(), file)).collect();
                if shape.fragment_cache() == FragmentCache::Local {
                    client.insert("fragment_cache".to_owned(), Value::Table(fragment_cache(data)));
                }
                drop(set("client", Value::Table(client)));
            }
        }
    }
    match process.role {
        Role::Metadata => {
            if shape.replicated() {
                let nodes = metadata.iter().map(|server| Value::String(server.to_string()));
                set("nodes", Value::Array(nodes.collect()));
            }
            set("data_dir", Value::String(data.to_owned()));
            let groups = shape.groups();
            let groups = std::iter::once("abm").chain(groups.iter().map(String::as_str));
            set("groups", Value::Array(groups.map(Value::from).collect()));
        }
        Role::Asd { node } => {
            set("data_dir", Value::String(data.to_owned()));
            set("place", Value::String(format!("node-{node}")));
            // All share one disk of a machine that has other things to do: no space is taken ahead, few threads.
            set("prepare_ahead_segments", Value::Integer(0));
            set("io_threads", Value::Integer(4));
            if let Some(capacity) = shape.osd_capacity() {
                let capacity = i64::try_from(capacity)
                    .map_err(|_| CliError::usage(format!("--osd-capacity {capacity} is too large")))?;
                set("capacity_bytes", Value::Integer(capacity));
            }
        }
        Role::Proxy | Role::Maintenance | Role::Rebalancer => {
            let servers = metadata.iter().map(|server| Value::String(server.to_string()));
            set("metadata", Value::Array(servers.collect()));
        }
    }
    if let Role::Asd { .. } = process.role {
        table = Table::from_iter([("asd".to_owned(), Value::Table(table))]);
    }
    let path = paths.config(&process.name);
    let text = format!("# Written by `alba up` at every start.\n{table}");
    files::replace(&path, text.as_bytes()).map_err(|error| CliError::file("write", &path, &error))?;
    let args: [OsString; 4] =
        [process.role.command().into(), "--config".into(), path.into(), "--die-with-parent".into()];
    Ok(Program {
        name: process.name.clone(),
        args: args.into(),
        log: paths.log(&process.name),
        metrics: process.metrics,
    })
}

/// The fragment cache of a proxy whose directory is `data`. It shares the machine with all others: the sizes are modest.
fn fragment_cache(data: &str) -> Table {
    let entries = [
        ("kind", Value::from("local")),
        ("path", Value::String(format!("{data}/fragment-cache"))),
        ("ram_bytes", Value::Integer(128 << 20)),
        ("disk_bytes", Value::Integer(4 << 30)),
        ("cache_on_read", Value::Boolean(true)),
        ("cache_on_write", Value::Boolean(true)),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Writes the client configuration.
pub(super) fn client(
    paths: &Paths,
    proxies: Vec<SocketAddr>,
    metadata: Vec<SocketAddr>,
) -> Result<ClientConfig, CliError> {
    let MemberFiles { ca, cert, key } = paths.member("client")?;
    let client = ClientConfig {
        metadata,
        tls_ca: Some(ca),
        tls_cert: Some(cert),
        tls_key: Some(key),
        cluster_key: Some(paths.cluster_key()),
        ..ClientConfig::default()
    };
    let file = ClientFile { proxies, client };
    let path = paths.client();
    let text = format!("# Written by `alba up` at every start.\n{}", file.to_toml()?);
    files::replace(&path, text.as_bytes()).map_err(|error| CliError::file("write", &path, &error))?;
    Ok(file.client)
}
