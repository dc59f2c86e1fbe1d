//! What agents and clients share through the ABM: leases, who is there, maintenance configuration, health of OSDs.
//!
//! All times are the ABM's own: clients say how long ago something was, never when. So no clock but the leader's decides
//! anything, and what it decides (an expired lease, an OSD not seen for long) must be harmless when the clock was wrong.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, NodeId, PresetName, TaskName};
use crate::units::ByteCount;

/// Most time stamps and errors kept per kind (features §1.2).
pub const STAMPS_MAX: usize = 10;

/// Longest error text kept, in bytes.
pub const ERROR_TEXT_MAX: usize = 256;

/// Size and fill of an OSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// What it may hold.
    pub capacity: ByteCount,
    /// What it holds.
    pub used: ByteCount,
}

/// What one client saw of an OSD since its last report. Times are microseconds before the report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsdReport {
    /// It announced itself or answered.
    pub seen: Vec<u64>,
    /// A read worked.
    pub read: Vec<u64>,
    /// A write worked.
    pub write: Vec<u64>,
    /// Something failed.
    pub errors: Vec<(u64, String)>,
    /// Damaged fragments found since the last report.
    pub checksum_errors: u64,
    /// What it said of its size.
    pub usage: Option<Usage>,
}

/// The reports of all clients, merged: the newest [`STAMPS_MAX`] of each list, newest first, in microseconds since the
/// Unix epoch of the ABM's time. The order in which reports come does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsdHealth {
    /// It announced itself or answered.
    pub seen: Vec<u64>,
    /// A read worked.
    pub read: Vec<u64>,
    /// A write worked.
    pub write: Vec<u64>,
    /// Something failed.
    pub errors: Vec<(u64, String)>,
    /// Damaged fragments found so far.
    pub checksum_errors: u64,
}

/// Who has a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Which task.
    pub task: TaskName,
    /// Who has it.
    pub agent: AgentId,
    /// Grows whenever the task changes hands: what is done for the task can name it, and be refused when it is old.
    pub token: u64,
    /// Until when (microseconds since the Unix epoch, the ABM's time).
    pub expires: u64,
}

/// An agent that said it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParticipantRecord {
    /// Who.
    pub agent: AgentId,
    /// What it does.
    pub role: String,
    /// For people.
    pub about: String,
    /// When it last said so (microseconds since the Unix epoch, the ABM's time).
    pub seen: u64,
}

/// Where cache clients tell which objects they use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedisEviction {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The sorted set.
    pub key: String,
}

/// What all agents go by (features §3.11).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceConfig {
    /// Treat OSDs that show no life for long as if they were decommissioned.
    pub enable_auto_repair: bool,
    /// How long that is.
    pub auto_repair_timeout_seconds: u64,
    /// OSDs there always count as alive: planned work.
    pub auto_repair_disabled_nodes: BTreeSet<NodeId>,
    /// Move fragments from full OSDs to emptier ones.
    pub enable_rebalance: bool,
    /// Namespaces whose names begin so are caches, of these presets.
    pub cache_eviction_prefix_preset_pairs: BTreeMap<String, PresetName>,
    /// Evict what was not used for longest instead of at random.
    pub redis_lru_cache_eviction: Option<RedisEviction>,
    /// Days that deleted namespaces are kept; 0: they are removed at once.
    pub auto_cleanup_deleted_namespaces_days: u32,
}

impl Default for MaintenanceConfig {
    /// The original's defaults (features §3.5, §3.11), but for the trash, which keeps namespaces for a week.
    fn default() -> Self {
        Self {
            enable_auto_repair: true,
            auto_repair_timeout_seconds: 900,
            auto_repair_disabled_nodes: BTreeSet::new(),
            enable_rebalance: true,
            cache_eviction_prefix_preset_pairs: BTreeMap::new(),
            redis_lru_cache_eviction: None,
            auto_cleanup_deleted_namespaces_days: 7,
        }
    }
}

/// Changes of the maintenance configuration; what is not named stays. Of one element in both lists the removal counts
/// first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceUpdate {
    /// See [`MaintenanceConfig`].
    pub enable_auto_repair: Option<bool>,
    /// See [`MaintenanceConfig`].
    pub auto_repair_timeout_seconds: Option<u64>,
    /// Nodes that are under planned work from now on.
    pub add_disabled_nodes: Vec<NodeId>,
    /// Nodes that are not any more.
    pub remove_disabled_nodes: Vec<NodeId>,
    /// See [`MaintenanceConfig`].
    pub enable_rebalance: Option<bool>,
    /// New cache prefixes, or other presets for known ones.
    pub add_cache_eviction: Vec<(String, PresetName)>,
    /// Prefixes that are caches no more.
    pub remove_cache_eviction: Vec<String>,
    /// Set to something, or to none.
    pub redis_lru_cache_eviction: Option<Option<RedisEviction>>,
    /// See [`MaintenanceConfig`].
    pub auto_cleanup_deleted_namespaces_days: Option<u32>,
}

impl MaintenanceConfig {
    /// With an update merged in.
    pub fn merge(&mut self, update: &MaintenanceUpdate) {
        let update = update.clone();
        let set = |field: &mut bool, value: Option<bool>| *field = value.unwrap_or(*field);
        set(&mut self.enable_auto_repair, update.enable_auto_repair);
        set(&mut self.enable_rebalance, update.enable_rebalance);
        if let Some(seconds) = update.auto_repair_timeout_seconds {
            self.auto_repair_timeout_seconds = seconds;
        }
        for node in &update.remove_disabled_nodes {
            self.auto_repair_disabled_nodes.remove(node);
        }
        self.auto_repair_disabled_nodes.extend(update.add_disabled_nodes);
        for prefix in &update.remove_cache_eviction {
            self.cache_eviction_prefix_preset_pairs.remove(prefix);
        }
        self.cache_eviction_prefix_preset_pairs.extend(update.add_cache_eviction);
        if let Some(redis) = update.redis_lru_cache_eviction {
            self.redis_lru_cache_eviction = redis;
        }
        if let Some(days) = update.auto_cleanup_deleted_namespaces_days {
            self.auto_cleanup_deleted_namespaces_days = days;
        }
    }
}

impl OsdHealth {
    /// With a report merged in that came at `now`. Of any set of reports the outcome is the same in any order.
    pub fn merge(&mut self, now: u64, report: &OsdReport) {
        let at = |ago: &u64| now.saturating_sub(*ago);
        newest(&mut self.seen, report.seen.iter().map(at));
        newest(&mut self.read, report.read.iter().map(at));
        newest(&mut self.write, report.write.iter().map(at));
        let errors = report.errors.iter().map(|(ago, text)| (at(ago), shortened(text)));
        newest(&mut self.errors, errors);
        self.checksum_errors = self.checksum_errors.saturating_add(report.checksum_errors);
    }
}

/// The union's largest, largest first: a merge of sets, so neither order nor repetition matters.
fn newest<T: Ord>(kept: &mut Vec<T>, new: impl Iterator<Item = T>) {
    kept.extend(new);
    kept.sort_unstable_by(|a, b| b.cmp(a));
    kept.dedup();
    kept.truncate(STAMPS_MAX);
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(ERROR_TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn report() -> impl Strategy<Value = (u64, OsdReport)> {
        let ages = || prop::collection::vec(0_u64..100, 0..14);
        let errors = prop::collection::vec((0_u64..100, "[ab]{0,3}"), 0..14);
        (50_u64..150, ages(), ages(), ages(), errors, 0_u64..5).prop_map(
            |(now, seen, read, write, errors, checksum_errors)| {
                (now, OsdReport { seen, read, write, errors, checksum_errors, usage: None })
            },
        )
    }

    proptest! {
        #[test]
        fn reports_merge_in_any_order(
            reports in prop::collection::vec(report(), 0..5).prop_flat_map(|reports| {
                (Just(reports.clone()), Just(reports).prop_shuffle())
            })
        ) {
            let merged = |reports: &[(u64, OsdReport)]| {
                let mut health = OsdHealth::default();
                for (now, report) in reports {
                    health.merge(*now, report);
                }
                health
            };
            let health = merged(&reports.0);
            prop_assert_eq!(&health, &merged(&reports.1));
            for list in [&health.seen, &health.read, &health.write] {
                prop_assert!(list.len() <= STAMPS_MAX && list.is_sorted_by(|a, b| a > b));
            }
            prop_assert!(health.errors.len() <= STAMPS_MAX);
        }
    }

    #[test]
    fn long_errors_are_cut_between_characters() {
        let mut health = OsdHealth::default();
        let text = format!("{}é", "x".repeat(ERROR_TEXT_MAX - 1));
        health.merge(5, &OsdReport { errors: vec![(7, text)], ..OsdReport::default() });
        assert_eq!(health.errors, [(0, "x".repeat(ERROR_TEXT_MAX - 1))]);
    }

    #[test]
    fn maintenance_changes_field_by_field() {
        let mut config = MaintenanceConfig::default();
        let node = |text: &str| NodeId::new(text).unwrap();
        let preset = PresetName::new("default").unwrap();
        config.merge(&MaintenanceUpdate {
            add_disabled_nodes: vec![node("a"), node("b")],
            add_cache_eviction: vec![("c".to_owned(), preset.clone()), ("d".to_owned(), preset.clone())],
            ..MaintenanceUpdate::default()
        });
        config.merge(&MaintenanceUpdate {
            enable_rebalance: Some(false),
            remove_disabled_nodes: vec![node("a")],
            remove_cache_eviction: vec!["d".to_owned(), "none".to_owned()],
            ..MaintenanceUpdate::default()
        });
        let want = MaintenanceConfig {
            enable_rebalance: false,
            auto_repair_disabled_nodes: [node("b")].into(),
            cache_eviction_prefix_preset_pairs: [("c".to_owned(), preset)].into(),
            ..MaintenanceConfig::default()
        };
        assert_eq!(config, want);
    }
}
