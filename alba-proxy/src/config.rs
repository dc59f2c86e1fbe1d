//! The proxy's configuration. Sizes are in bytes, times in milliseconds.

mod original;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use alba_client::ClientConfig;
use alba_core::config::{Reloaded, reload};
use serde::{Deserialize, Serialize};

pub use original::Transport;

/// Keys that take effect when the configuration is read again (HUP), beside `log_level`.
const LIVE: [&str; 17] = [
    "max_client_connections",
    "request_timeout_ms",
    "min_transfer_rate",
    "handshake_timeout_ms",
    "max_request_bytes_in_flight",
    "drain_timeout_ms",
    "slow_request_ms",
    "upload_slack",
    "client.upload_slack",
    "client.request_timeout_ms",
    "client.refresh_ms",
    "client.refresh_watched_ms",
    "client.max_bytes_in_flight",
    "client.max_client_bytes_in_flight",
    "client.max_uploads",
    "client.hedge_min_ms",
    "client.hedge_max_ms",
];

/// What an operator can set. Only `metadata` has no default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    /// Where volume drivers connect. The protocol has no authentication: anything but loopback needs
    /// `insecure_listen`.
    #[serde(default = "defaults::listen")]
    pub listen: SocketAddr,
    /// Allows `listen` to be an address that others can reach.
    #[serde(default)]
    pub insecure_listen: bool,
    /// Socket file where clients of this host may connect too; absent: none. Its directory must exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_unix: Option<PathBuf>,
    /// Permission bits of that file, in octal.
    #[serde(default = "defaults::listen_unix_mode")]
    pub listen_unix_mode: String,
    /// Where `/metrics` and `/health` are served; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// Metadata servers; any one that answers is enough.
    #[serde(default)]
    pub metadata: Vec<SocketAddr>,
    /// Connections beyond this many are closed at once.
    #[serde(default = "defaults::max_client_connections")]
    pub max_client_connections: usize,
    /// Deadline of a request, without what its bytes add (`min_transfer_rate`).
    #[serde(default = "defaults::request_timeout_ms")]
    pub request_timeout_ms: u64,
    /// In bytes per second: a request that moves n bytes has n / `min_transfer_rate` more time.
    #[serde(default = "defaults::min_transfer_rate")]
    pub min_transfer_rate: u64,
    /// How long a new connection may take to say magic and version.
    #[serde(default = "defaults::handshake_timeout_ms")]
    pub handshake_timeout_ms: u64,
    /// Longest request frame (uploads by value) and longest answer.
    #[serde(default = "defaults::max_frame_bytes")]
    pub max_frame_bytes: u64,
    /// All large request frames in memory together; requests wait for room, to their deadline.
    #[serde(default = "defaults::max_request_bytes_in_flight")]
    pub max_request_bytes_in_flight: u64,
    /// How long running requests may take to end when the proxy is told to stop.
    #[serde(default = "defaults::drain_timeout_ms")]
    pub drain_timeout_ms: u64,
    /// A request that took so long from its first byte to the last of its answer gets a log line that says where the time
    /// went; 0: none does.
    #[serde(default = "defaults::slow_request_ms")]
    pub slow_request_ms: u64,
    /// The original's name for `client.upload_slack`, which it overrides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_slack: Option<f64>,
    /// The original's: the address of `listen`. One only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ips: Option<Vec<IpAddr>>,
    /// The original's: the port of `listen`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The original's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// The original's name for `client.osd_timeout_ms`, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub osd_timeout: Option<f64>,
    /// The original's name for `client.osd_connections`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub osd_connection_pool_size: Option<usize>,
    /// The original's name for `client.manifest_cache_bytes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_cache_size: Option<u64>,
    /// The object engine. Its `metadata` is that of above.
    #[serde(default)]
    pub client: ClientConfig,
}

/// What the kernel takes as a socket's path, less the zero at the end.
const MAX_SOCKET_PATH: usize = 107;

mod defaults {
    use super::{Ipv4Addr, SocketAddr};

    pub(super) fn listen() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 10_000).into()
    }
    pub(super) fn listen_unix_mode() -> String {
        "0600".to_owned()
    }
    pub(super) fn max_client_connections() -> usize {
        128
    }
    pub(super) fn request_timeout_ms() -> u64 {
        20_000
    }
    pub(super) fn min_transfer_rate() -> u64 {
        4 << 20
    }
    pub(super) fn handshake_timeout_ms() -> u64 {
        5_000
    }
    pub(super) fn max_frame_bytes() -> u64 {
        256 << 20
    }
    pub(super) fn max_request_bytes_in_flight() -> u64 {
        256 << 20
    }
    pub(super) fn drain_timeout_ms() -> u64 {
        8_000
    }
    pub(super) fn slow_request_ms() -> u64 {
        500
    }
}

impl ProxyConfig {
    /// The defaults, with these metadata servers.
    pub fn new(metadata: Vec<SocketAddr>) -> Self {
        Self {
            listen: defaults::listen(),
            insecure_listen: false,
            listen_unix: None,
            listen_unix_mode: defaults::listen_unix_mode(),
            metrics_listen: None,
            metadata,
            max_client_connections: defaults::max_client_connections(),
            request_timeout_ms: defaults::request_timeout_ms(),
            min_transfer_rate: defaults::min_transfer_rate(),
            handshake_timeout_ms: defaults::handshake_timeout_ms(),
            max_frame_bytes: defaults::max_frame_bytes(),
            max_request_bytes_in_flight: defaults::max_request_bytes_in_flight(),
            drain_timeout_ms: defaults::drain_timeout_ms(),
            slow_request_ms: defaults::slow_request_ms(),
            upload_slack: None,
            ips: None,
            port: None,
            transport: None,
            osd_timeout: None,
            osd_connection_pool_size: None,
            manifest_cache_size: None,
            client: ClientConfig::default(),
        }
    }

    /// `listen_unix_mode` as a number.
    pub fn socket_mode(&self) -> Result<u32, String> {
        let text = &self.listen_unix_mode;
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(mode),
            _ => Err(format!(
                "listen_unix_mode = {text:?}: write permission bits in octal, for instance \"0660\" for a group"
            )),
        }
    }

    /// The first thing that is wrong with the values, in words for the operator.
    pub fn check(&self) -> Result<(), String> {
        self.check_original()?;
        if !self.listen_at().ip().is_loopback() && !self.insecure_listen {
            return Err(format!(
                "listen = \"{}\" can be reached from other machines, and the ALBA protocol has no authentication: \
                 listen on 127.0.0.1, or set insecure_listen = true if the network is trusted",
                self.listen_at()
            ));
        }
        if let Some(path) = &self.listen_unix {
            let len = path.as_os_str().as_bytes().len();
            if len == 0 || len > MAX_SOCKET_PATH {
                return Err(format!("listen_unix must have from 1 to {MAX_SOCKET_PATH} bytes"));
            }
        }
        self.socket_mode()?;
        if self.metadata.is_empty() && self.client.metadata.is_empty() {
            return Err("metadata is missing: name the metadata servers, for instance \
                        metadata = [\"127.0.0.1:4000\"]"
                .to_owned());
        }
        let at_least_one = [
            ("request_timeout_ms", self.request_timeout_ms),
            ("handshake_timeout_ms", self.handshake_timeout_ms),
            ("min_transfer_rate", self.min_transfer_rate),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                return Err(format!("{key} must be at least 1"));
            }
        }
        if self.max_client_connections == 0 || self.max_client_connections > 100_000 {
            return Err("max_client_connections must be from 1 to 100000".to_owned());
        }
        if !(1 << 20..=0x7fff_ffff).contains(&self.max_frame_bytes) {
            return Err(
                "max_frame_bytes must be from 1048576 (1 MiB) to 2147483647, the protocol's limit".to_owned()
            );
        }
        if self.max_request_bytes_in_flight < self.max_frame_bytes {
            return Err("max_request_bytes_in_flight must not be below max_frame_bytes".to_owned());
        }
        self.engine().check().map_err(|reason| format!("client: {reason}"))
    }

    /// The object engine's configuration, with what is set here.
    pub fn engine(&self) -> ClientConfig {
        let mut engine = self.client.clone();
        if !self.metadata.is_empty() {
            engine.metadata.clone_from(&self.metadata);
        }
        self.apply_original(&mut engine);
        engine
    }

    /// What of `new` takes effect now, and which keys wait for a restart.
    pub(crate) fn reloaded(&self, new: &Self) -> Result<Reloaded<Self>, String> {
        let reloaded = reload(self, new, &LIVE)?;
        // Each was right by itself; the mixture may be wrong.
        reloaded.config.check()?;
        Ok(reloaded)
    }

    /// Time for a request that moves `bytes`: the fixed part and what the bytes add.
    pub(crate) fn time_for(&self, bytes: u64) -> Duration {
        let moving = Duration::from_secs(bytes / self.min_transfer_rate.max(1));
        Duration::from_millis(self.request_timeout_ms).saturating_add(moving)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut ProxyConfig)) -> String {
        let mut config = ProxyConfig::new(vec![([127, 0, 0, 1], 4000).into()]);
        assert_eq!(config.check(), Ok(()));
        change(&mut config);
        config.check().unwrap_err()
    }

    #[test]
    fn nonsense_is_named() {
        let open = refused(|c| c.listen = ([0, 0, 0, 0], 10_000).into());
        assert!(open.contains("insecure_listen = true"), "{open}");
        assert!(refused(|c| c.metadata.clear()).contains("metadata"));
        assert!(refused(|c| c.request_timeout_ms = 0).contains("request_timeout_ms"));
        assert!(refused(|c| c.listen_unix = Some("x".repeat(108).into())).contains("listen_unix"));
        for mode in ["", "0o600", "+600", "888", "1000", "rw"] {
            assert!(refused(|c| c.listen_unix_mode = mode.to_owned()).contains("listen_unix_mode"), "{mode}");
        }
        assert!(refused(|c| c.max_client_connections = 0).contains("max_client_connections"));
        assert!(refused(|c| c.max_frame_bytes = 1 << 31).contains("max_frame_bytes"));
        assert!(refused(|c| c.max_request_bytes_in_flight = 1).contains("max_request_bytes_in_flight"));
        assert!(refused(|c| c.upload_slack = Some(-1.0)).contains("upload_slack"));
    }

    #[test]
    fn an_open_listener_is_allowed_when_asked_for() {
        let mut config = ProxyConfig::new(vec![([127, 0, 0, 1], 4000).into()]);
        config.listen = ([0, 0, 0, 0], 10_000).into();
        config.insecure_listen = true;
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn the_originals_keys_mean_what_ours_do() {
        let text = "metadata = [\"127.0.0.1:4000\"]\nips = [\"127.0.0.2\"]\nport = 26203\ntransport = \"tcp\"\n\
                    osd_timeout = 2.5\nosd_connection_pool_size = 10\nmanifest_cache_size = 500000000\n\
                    upload_slack = 0.3\nmax_client_connections = 128\n";
        let config: ProxyConfig = toml::from_str(text).unwrap();
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.listen_at(), ([127, 0, 0, 2], 26203).into());
        let engine = config.engine();
        assert_eq!((engine.osd_timeout_ms, engine.osd_connections), (2500, 10));
        assert_eq!((engine.manifest_cache_bytes, engine.upload_slack), (500_000_000, 0.3));
        let only_port: ProxyConfig = toml::from_str("metadata = []\nport = 1\n").unwrap();
        assert_eq!(only_port.listen_at(), ([127, 0, 0, 1], 1).into());
        assert!(refused(|c| c.ips = Some(vec![[0, 0, 0, 0].into()])).contains("insecure_listen"));
        assert!(refused(|c| c.ips = Some(vec![])).contains("ips"));
        assert!(refused(|c| c.osd_timeout = Some(0.0)).contains("osd_timeout"));
        assert!(refused(|c| c.osd_timeout = Some(f64::NAN)).contains("osd_timeout"));
        assert!(toml::from_str::<ProxyConfig>("transport = \"rdma\"").is_err());
        assert!(toml::from_str::<ProxyConfig>("albamgr_cfg_url = \"file:///x\"").is_err());
    }

    #[test]
    fn a_reload_says_what_changed_and_what_waits() {
        let old = ProxyConfig::new(vec![([127, 0, 0, 1], 4000).into()]);
        let mut new = old.clone();
        new.slow_request_ms = 1;
        new.client.upload_slack = 0.4;
        new.listen = ([127, 0, 0, 1], 9).into();
        new.client.osd_connections = 3;
        let reloaded = old.reloaded(&new).unwrap();
        assert_eq!(reloaded.changed, ["client.upload_slack", "slow_request_ms"]);
        assert_eq!(reloaded.need_restart, ["client.osd_connections", "listen"]);
        assert_eq!((reloaded.config.slow_request_ms, reloaded.config.listen), (1, old.listen));
        assert_eq!(reloaded.config.engine().upload_slack, 0.4);
        // Room for frames of 256 MiB stays needed until a restart allows only smaller ones.
        new.max_frame_bytes = 1 << 20;
        new.max_request_bytes_in_flight = 1 << 20;
        assert_eq!(new.check(), Ok(()));
        assert!(old.reloaded(&new).unwrap_err().contains("max_request_bytes_in_flight"));
    }

    #[test]
    fn bytes_add_time() {
        let config = ProxyConfig::new(Vec::new());
        assert_eq!(config.time_for(0), Duration::from_secs(20));
        assert_eq!(config.time_for(1 << 30), Duration::from_secs(20 + 256));
    }

    #[test]
    fn the_example_of_a_fragment_cache_is_valid_and_shows_the_defaults() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/fragment-cache.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (_, rest) = text.split_once("```toml\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let text = format!("metadata = [\"127.0.0.1:4000\"]\n{example}");
        let config: ProxyConfig = toml::from_str(&text).unwrap();
        assert_eq!(config.check(), Ok(()));
        let cache = config.client.fragment_cache;
        let (kind, path) = (cache.kind, cache.path.clone());
        assert_eq!(cache, alba_client::FragmentCacheConfig { kind, path, ..Default::default() });
    }

    #[test]
    fn the_example_in_the_description_is_valid() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/formats/proxy-protocol.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (_, rest) = text.split_once("```toml\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let mut config: ProxyConfig = toml::from_str(example).unwrap();
        assert_eq!(config.check(), Ok(()));
        // It shows the defaults.
        assert!(config.metrics_listen.take().is_some() && config.listen_unix.take().is_some());
        assert_eq!(config.upload_slack.take(), Some(config.client.upload_slack));
        assert_eq!(config, ProxyConfig::new(vec![([127, 0, 0, 1], 4000).into()]));
    }
}
