//! What all that repairs in this process shares: the repairer, what is known of OSDs, who rests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use alba_client::repair::{Registry, RepairStatistics, Repairer};
use alba_core::env::Moment;
use alba_core::ids::{NamespaceId, ObjectId};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, MaintenanceConfig, OsdFilter};
use std::sync::Arc;

use super::detector::Detector;
use super::rest::Resting;
use crate::backend::Backend;
use crate::error::TaskError;

/// OSDs are looked at anew after a sixth of the time after which they count as dead, within these bounds: so long it takes at most
/// until a change of the registry or of the configuration is noticed. Few of them are asked, mostly the ABM is.
const LOOK: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// See the module.
#[derive(Default)]
pub struct Surgery {
    repairer: OnceLock<Repairer>,
    detector: Detector,
    resting: Mutex<Resting>,
    /// When OSDs were last looked at, how long that is good for, and what was seen.
    looked: tokio::sync::Mutex<Option<(Moment, Duration, Arc<Registry>)>>,
    counted: Mutex<RepairStatistics>,
}

impl Surgery {
    /// The repairer, on top of the backend's client.
    pub fn repairer(&self, backend: &Backend) -> &Repairer {
        self.repairer.get_or_init(|| backend.client().repairer())
    }

    /// The OSDs and which of them are silent: at most some seconds old.
    pub async fn registry(&self, backend: &Backend) -> Result<Arc<Registry>, TaskError> {
        // One look serves all who wait for it.
        let mut looked = self.looked.lock().await;
        let now = backend.env().clock.now();
        if let Some((at, good_for, registry)) = looked.as_ref()
            && now.since(*at) < *good_for
        {
            return Ok(registry.clone());
        }
        let registry = Arc::new(self.look(backend).await?);
        let config = maintenance(backend).await?;
        let timeout = Duration::from_secs(config.auto_repair_timeout_seconds);
        if looked.as_ref().is_none_or(|(_, _, before)| {
            before.silent != registry.silent || before.records.len() != registry.records.len()
        }) {
            self.resting().wake_all();
        }
        *looked = Some((now, (timeout / 6).clamp(LOOK.0, LOOK.1), registry.clone()));
        Ok(registry)
    }

    async fn look(&self, backend: &Backend) -> Result<Registry, TaskError> {
        let claimed = backend.osds(OsdFilter::Claimed).await?;
        let records: BTreeMap<_, _> =
            claimed.into_iter().filter_map(|record| Some((record.osd_id?, record))).collect();
        let silent = self.detector.silent(backend, &records, &maintenance(backend).await?).await?;
        metrics::gauge!("alba_repair_silent_osds")
            .set(gauge(u64::try_from(silent.len()).unwrap_or(u64::MAX)));
        Ok(Registry { records, silent })
    }

    fn resting(&self) -> MutexGuard<'_, Resting> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The objects of a namespace that are to be left alone for now.
    pub(super) fn resting_in(&self, namespace: NamespaceId) -> BTreeSet<ObjectId> {
        let Some(repairer) = self.repairer.get() else { return BTreeSet::new() };
        self.resting().of(namespace, repairer.now())
    }

    pub(super) fn well(&self, namespace: NamespaceId, object: ObjectId) {
        self.resting().well(namespace, object);
    }

    pub(super) fn failed(&self, backend: &Backend, namespace: NamespaceId, object: ObjectId, why: String) {
        tracing::warn!(%namespace, %object, why, "not repaired; tried again later");
        self.resting().failed(namespace, object, backend.env().clock.now());
    }

    /// Adds what was done since to the metrics.
    pub(crate) fn count(&self) {
        let Some(repairer) = self.repairer.get() else { return };
        let mut before = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let now = repairer.statistics();
        let fragments = |how: &'static str, more: u64| {
            metrics::counter!("alba_repair_fragments_total", "how" => how).increment(more);
        };
        fragments("regenerated", now.regenerated - before.regenerated);
        fragments("copied", now.copied - before.copied);
        fragments("dropped", now.dropped - before.dropped);
        metrics::counter!("alba_repair_bytes_total").increment(now.bytes_written - before.bytes_written);
        metrics::counter!("alba_repair_read_bytes_total").increment(now.bytes_read - before.bytes_read);
        metrics::counter!("alba_repair_peer_copies_total").increment(now.peer_copied - before.peer_copied);
        metrics::counter!("alba_repair_races_total")
            .increment(now.raced + now.keys_taken - before.raced - before.keys_taken);
        *before = now;
    }
}

/// The maintenance configuration.
pub(super) async fn maintenance(backend: &Backend) -> Result<MaintenanceConfig, TaskError> {
    match backend.ask_abm(AbmQuery::Maintenance).await? {
        AbmAnswer::Maintenance(config) => Ok(*config),
        _ => Err(TaskError::Mismatch("Maintenance")),
    }
}

/// A number as a gauge has it.
pub(super) fn gauge(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}
