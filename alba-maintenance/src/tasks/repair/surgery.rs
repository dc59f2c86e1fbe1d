//! What all that repairs in this process shares: the repairer, what is known of OSDs, who rests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use alba_client::repair::{Registry, RepairStatistics, Repairer, Silence};
use alba_core::env::{MetaError, Moment};
use alba_core::ids::{NamespaceId, ObjectId, OsdId};
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmQuery, CARE_PAGE, MaintenanceConfig, OsdFilter, OsdRecord, UnrepairedRecord, WindowRecord,
};
use std::sync::Arc;

use super::detector::Detector;
use super::rest::{News, Resting};
use crate::backend::Backend;
use crate::error::TaskError;
use crate::task::Run;

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
        let windows = windows(backend).await?;
        let is_away = |record: &OsdRecord| {
            windows.iter().any(|window| window.covers(&record.info.long_id, record.info.place.node()))
        };
        let away: BTreeSet<OsdId> =
            records.iter().filter(|(_, record)| is_away(record)).map(|(osd, _)| *osd).collect();
        metrics::gauge!("alba_repair_away_osds")
            .set(gauge(u64::try_from(away.intersection(&silent).count()).unwrap_or(u64::MAX)));
        Ok(Registry { records, silent, away })
    }

    fn resting(&self) -> MutexGuard<'_, Resting> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with what the ABM remembers of objects whose repair failed, whoever tried; and when OSDs came or went since, all are
    /// tried again.
    pub(super) async fn recall(&self, run: &Run) -> Result<(), TaskError> {
        let mut known = Vec::new();
        let mut after = None;
        loop {
            let max = u32::try_from(CARE_PAGE).unwrap_or(u32::MAX);
            let AbmAnswer::Unrepaired { now, page } =
                run.backend.ask_abm(AbmQuery::Unrepaired { after, max }).await?
            else {
                return Err(TaskError::Mismatch("Unrepaired"));
            };
            after = page.items.last().map(|record| (record.namespace, record.object)).or(after);
            let left = |record: &UnrepairedRecord| Duration::from_micros(record.until.saturating_sub(now));
            known.extend(page.items.into_iter().map(|record| {
                let left = left(&record);
                (record, left)
            }));
            if !page.has_more {
                break;
            }
        }
        self.resting().load(known, run.now());
        Ok(())
    }

    /// When OSDs are not what they were when objects were tried, these rest no longer. What they were the task's mark says.
    pub(super) async fn wake_if_changed(&self, run: &Run, registry: &Registry) -> Result<(), TaskError> {
        let mark = fingerprint(registry);
        if run.mark().await? == Some(mark) {
            return Ok(());
        }
        self.resting().wake_all(run.now());
        run.wake_unrepaired().await?;
        run.set_mark(mark).await
    }

    /// Tells the ABM of what failed and of what is well; `all`: also when it is little.
    pub(super) async fn tell(&self, run: &Run, all: bool) -> Result<(), TaskError> {
        loop {
            let Some(News { failed, well }) = self.resting().news(all) else { return Ok(()) };
            run.report_repairs(failed, well).await?;
        }
    }

    /// A namespace was gone through: of those that failed before, these are there still.
    pub(super) fn surveyed(&self, namespace: NamespaceId, left: &BTreeSet<ObjectId>) {
        self.resting().only(namespace, left);
    }

    /// These namespaces there are.
    pub(super) fn namespaces(&self, namespaces: &BTreeSet<NamespaceId>) {
        self.resting().only_in(namespaces);
    }

    /// All objects of a namespace whose repair failed before.
    pub(super) fn failed_in(&self, namespace: NamespaceId) -> BTreeSet<ObjectId> {
        self.resting().known_of(namespace)
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
        self.resting().failed(namespace, object, why, backend.env().clock.now());
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

/// The maintenance windows that are open.
pub(super) async fn windows(backend: &Backend) -> Result<Vec<WindowRecord>, TaskError> {
    match backend.ask_abm(AbmQuery::Windows).await {
        Ok(AbmAnswer::Windows { windows, .. }) => Ok(windows),
        Ok(_) => Err(TaskError::Mismatch("Windows")),
        // Of an older version: there are none.
        Err(TaskError::Meta(MetaError::Protocol(_))) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// A number that is another one, as good as always, when OSDs come, go, change their state or fall silent (FNV-1a of 64 bits).
fn fingerprint(registry: &Registry) -> u64 {
    let of = |(osd, record): (&OsdId, &OsdRecord)| {
        let silence = match registry.silence(*osd) {
            Silence::None => 0,
            Silence::Unexplained => 1,
            Silence::OnPurpose => 2,
        };
        format!("{osd} {:?} {silence};", record.state)
    };
    let text: String = registry.records.iter().map(of).collect();
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A number as a gauge has it.
pub(super) fn gauge(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}
