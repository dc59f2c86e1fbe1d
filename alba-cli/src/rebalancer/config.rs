//! The rebalancer's configuration. Sizes are in bytes; durations are written like `15m`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use alba_client::ClientConfig;
use alba_maintenance::MaintenanceConfig;
use alba_maintenance::config::TaskConfig;
use alba_rebalancer::Settings;
use alba_rebalancer::lanes::OsdLimits;
use serde::{Deserialize, Serialize};

use super::task::{NAME, Rebalance};

/// What an operator can set. Only `metadata` has no default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RebalancerConfig {
    /// Where `/metrics`, `/health` and `/tasks` are served; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Metadata servers; any one that answers is enough.
    #[serde(default)]
    pub(crate) metadata: Vec<SocketAddr>,
    /// Do less while clients are there.
    #[serde(default = "yes")]
    pub(crate) adapt_to_clients: bool,
    /// How long the work stays with an agent that is not heard of, before another agent takes it.
    #[serde(default = "lease")]
    pub(crate) lease: String,
    /// When and how fast.
    #[serde(default)]
    pub(crate) rebalance: RebalanceConfig,
    /// The object engine. Its `metadata` is that of above.
    #[serde(default)]
    pub(crate) client: ClientConfig,
}

fn yes() -> bool {
    true
}

/// That of maintenance.
fn lease() -> String {
    MaintenanceConfig::new(Vec::new()).lease
}

/// When and how fast fragments move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RebalanceConfig {
    /// Does this agent move anything?
    pub(crate) enabled: bool,
    /// So long after the last look at the fill; `1m` when there is no schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) every: Option<String>,
    /// A cron pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) schedule: Option<String>,
    /// Only in these hours, such as `22:00-06:00`, by this machine's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) window: Option<String>,
    /// Bytes moved per second in all.
    pub(crate) bytes_per_second: u64,
    /// Bytes per second that one OSD gives or takes.
    pub(crate) osd_bytes_per_second: u64,
    /// Moves side by side in all.
    pub(crate) moves_at_once: usize,
    /// Moves side by side that one OSD has a part in.
    pub(crate) osd_moves_at_once: usize,
}

impl Default for RebalanceConfig {
    /// A quarter of what a hard disk and a network of 10 Gbit/s can do, and less when clients notice: on the OSDs they come first, and the
    /// rates give way. A new disk of 10 TB is as full as the others within two days.
    fn default() -> Self {
        Self {
            enabled: true,
            every: None,
            schedule: None,
            window: None,
            bytes_per_second: 256 << 20,
            osd_bytes_per_second: 72 << 20,
            moves_at_once: 16,
            osd_moves_at_once: 2,
        }
    }
}

impl RebalanceConfig {
    /// How moves are made.
    pub(crate) fn settings(&self, dry: bool) -> Settings {
        let osd =
            OsdLimits { bytes_per_second: self.osd_bytes_per_second, moves_at_once: self.osd_moves_at_once };
        Settings { moves_at_once: self.moves_at_once, osd, dry }
    }
}

/// Most moves side by side.
const MOVES_MAX: usize = 1024;

impl RebalancerConfig {
    /// The first thing that is wrong with the values, in words for the operator.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.metadata.is_empty() && self.client.metadata.is_empty() {
            return Err("metadata is missing: name the metadata servers, for instance \
                        metadata = [\"127.0.0.1:4000\"]"
                .to_owned());
        }
        let rebalance = &self.rebalance;
        if rebalance.bytes_per_second == 0 || rebalance.osd_bytes_per_second == 0 {
            return Err("rebalance: a rate must be at least 1; enabled = false switches it off".to_owned());
        }
        for (name, moves) in
            [("moves_at_once", rebalance.moves_at_once), ("osd_moves_at_once", rebalance.osd_moves_at_once)]
        {
            if !(1..=MOVES_MAX).contains(&moves) {
                return Err(format!("rebalance.{name} must be from 1 to {MOVES_MAX}"));
            }
        }
        self.framework().lease()?;
        let task = Rebalance::new(rebalance.settings(false));
        self.framework().settings(&task).map_err(|error| error.replace("tasks.rebalance", "rebalance"))?;
        self.engine().check().map_err(|reason| format!("client: {reason}"))
    }

    /// As the agent takes it.
    pub(crate) fn framework(&self) -> MaintenanceConfig {
        let rebalance = &self.rebalance;
        let task = TaskConfig {
            enabled: Some(rebalance.enabled),
            schedule: rebalance.schedule.clone(),
            every: rebalance.every.clone(),
            window: rebalance.window.clone(),
            ..TaskConfig::default()
        };
        let mut config = MaintenanceConfig::new(self.metadata.clone());
        config.bytes_per_second = rebalance.bytes_per_second;
        config.adapt_to_clients = self.adapt_to_clients;
        config.lease.clone_from(&self.lease);
        config.tasks = BTreeMap::from([(NAME.to_owned(), task)]);
        config
    }

    /// The object engine's configuration, with what is set here.
    pub(crate) fn engine(&self) -> ClientConfig {
        let mut engine = self.client.clone();
        if !self.metadata.is_empty() {
            engine.metadata.clone_from(&self.metadata);
        }
        engine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<RebalancerConfig, String> {
        let text = format!("metadata = [\"127.0.0.1:4000\"]\n{text}");
        let config: RebalancerConfig = toml::from_str(&text).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    #[test]
    fn it_is_on_by_default_and_can_be_kept_to_hours_and_rates() {
        let config = parsed("").unwrap();
        assert!(config.rebalance.enabled && config.adapt_to_clients);
        let task = Rebalance::new(config.rebalance.settings(false));
        let settings = config.framework().settings(&task).unwrap();
        assert!(settings.enabled && settings.timing.window.is_none());
        let text = "[rebalance]\nwindow = \"22:00-06:00\"\nbytes_per_second = 7\nosd_moves_at_once = 1\n";
        let config = parsed(text).unwrap();
        let framework = config.framework();
        assert_eq!(framework.bytes_per_second, 7);
        assert_eq!(parsed("lease = \"2s\"\n").unwrap().framework().lease, "2s");
        assert!(framework.settings(&task).unwrap().timing.window.is_some());
        assert_eq!(config.rebalance.settings(true).osd.moves_at_once, 1);
        assert!(
            !parsed("[rebalance]\nenabled = false\n").unwrap().framework().settings(&task).unwrap().enabled
        );
    }

    #[test]
    fn nonsense_is_named() {
        let refused = |text: &str| parsed(text).unwrap_err();
        assert!(refused("[rebalance]\nosd_bytes_per_second = 0\n").contains("enabled = false"));
        assert!(refused("[rebalance]\nmoves_at_once = 0\n").contains("rebalance.moves_at_once"));
        assert!(refused("[rebalance]\nevery = \"soon\"\n").starts_with("rebalance:"));
        assert!(refused("[rebalance]\nwindow = \"late\"\n").contains("22:00-06:00"));
        assert!(refused("[rebalance]\nspeed = 1\n").contains("speed"));
        assert!(refused("lease = \"0s\"\n").contains("lease"));
        assert!(toml::from_str::<RebalancerConfig>("").unwrap().check().unwrap_err().contains("metadata"));
    }
}
