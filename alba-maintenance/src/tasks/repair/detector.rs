//! Which OSDs have been silent for too long (features §3.5).
//!
//! An OSD is alive while a read and a write of it worked within the timeout, whoever did them: clients tell the ABM, and this
//! agent tries itself where nobody has told for half of it. One on a node that is under planned work is always alive.
//! Nothing durable follows from silence: who answers again is alive again at once.
//!
//! [`Ages`] and [`is_silent`] are pure. Ages are durations, of the ABM's time or of this process's: clocks of different machines
//! are never compared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{OsdBatch, OsdKey, OsdUpdate, StoredValue};
use alba_core::env::{Moment, OsdError, within};
use alba_core::failpoint::{Step, reach};
use alba_core::ids::{LongId, OsdId};
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmQuery, MaintenanceConfig, OsdHealth, OsdRecord, OsdReport, OsdState,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::backend::Backend;
use crate::error::TaskError;

/// What is written to an OSD and read back to see whether it is alive (features §3.5): large enough to need the disk.
const TEST_LEN: usize = 512 << 10;

/// Under this key (wire-protocol §5.2), which clients' probes use, too.
const TEST_KEY: &[u8] = b"test";

/// OSDs tried at once.
const AT_ONCE: usize = 16;

/// Longest an OSD is tried.
const TRY_TIME: Duration = Duration::from_secs(10);

/// How long ago a read and a write of an OSD worked last, as far as anybody knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ages {
    /// The last read.
    pub read: Option<Duration>,
    /// The last write.
    pub write: Option<Duration>,
    /// How long this agent has watched it.
    pub watched: Duration,
}

impl Ages {
    /// Is it time to try it?
    pub fn is_old(&self, timeout: Duration) -> bool {
        let old = |age: Option<Duration>| age.is_none_or(|age| age > timeout / 2);
        old(self.read) || old(self.write)
    }
}

/// Has it been silent for too long? What nobody has ever told of counts from when this agent began to watch.
pub fn is_silent(ages: &Ages, timeout: Duration) -> bool {
    let too_long = |age: Option<Duration>| age.unwrap_or(ages.watched) > timeout;
    too_long(ages.read) || too_long(ages.write)
}

/// What this agent saw of an OSD.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    first: Moment,
    read: Option<Moment>,
    write: Option<Moment>,
}

/// What came of trying one.
#[derive(Debug, Clone, Default)]
struct Tried {
    read: bool,
    write: bool,
    error: Option<String>,
}

/// Remembers what was seen, and tries those that nobody tells of.
#[derive(Debug, Default)]
pub struct Detector {
    seen: Mutex<BTreeMap<OsdId, Seen>>,
}

impl Detector {
    /// The OSDs that have been silent for too long; none when automatic repair is switched off.
    pub async fn silent(
        &self,
        backend: &Backend,
        records: &BTreeMap<OsdId, OsdRecord>,
        config: &MaintenanceConfig,
    ) -> Result<BTreeSet<OsdId>, TaskError> {
        if !config.enable_auto_repair {
            return Ok(BTreeSet::new());
        }
        let timeout = Duration::from_secs(config.auto_repair_timeout_seconds.max(1));
        let told = health(backend).await?;
        let abm_now = abm_now(backend, &told).await?;
        let watched = records.iter().filter(|(_, record)| {
            !matches!(record.state, OsdState::Purging | OsdState::Decommissioned)
                && !config.auto_repair_disabled_nodes.contains(record.info.place.node())
        });
        let watched: Vec<(OsdId, LongId)> =
            watched.map(|(osd, record)| (*osd, record.info.long_id.clone())).collect();
        self.forget_others(&watched);
        let ages = |osd: OsdId, long_id: &LongId| {
            self.ages(osd, told.get(long_id), abm_now, backend.env().clock.now())
        };
        let quiet: Vec<(OsdId, LongId)> =
            watched.iter().filter(|(osd, long_id)| ages(*osd, long_id).is_old(timeout)).cloned().collect();
        let limit = TRY_TIME.min(timeout / 2);
        let tried: Vec<(OsdId, LongId, Tried)> = stream::iter(quiet)
            .map(|(osd, long_id)| async move { (osd, long_id, attempt(backend, osd, limit).await) })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        if !tried.is_empty() {
            reach(Step::RepairTried);
        }
        self.note(&tried, backend.env().clock.now());
        tell(backend, tried).await;
        let silent = watched.iter().filter(|(osd, long_id)| is_silent(&ages(*osd, long_id), timeout));
        Ok(silent.map(|(osd, _)| *osd).collect())
    }

    fn ages(&self, osd: OsdId, told: Option<&OsdHealth>, abm_now: u64, now: Moment) -> Ages {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = *seen.entry(osd).or_insert(Seen { first: now, ..Seen::default() });
        let told_age = |stamps: Option<&Vec<u64>>| {
            // The newest comes first.
            let newest = stamps?.first()?;
            Some(Duration::from_micros(abm_now.saturating_sub(*newest)))
        };
        let own_age = |at: Option<Moment>| at.map(|at| now.since(at));
        let newest = |a: Option<Duration>, b: Option<Duration>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Ages {
            read: newest(told_age(told.map(|told| &told.read)), own_age(seen.read)),
            // Of the history of writes, not of reads: a disk that only reads has to be left.
            write: newest(told_age(told.map(|told| &told.write)), own_age(seen.write)),
            watched: now.since(seen.first),
        }
    }

    fn note(&self, tried: &[(OsdId, LongId, Tried)], now: Moment) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (osd, _, tried) in tried {
            let seen = seen.entry(*osd).or_insert(Seen { first: now, ..Seen::default() });
            seen.read = if tried.read { Some(now) } else { seen.read };
            seen.write = if tried.write { Some(now) } else { seen.write };
        }
    }

    fn forget_others(&self, watched: &[(OsdId, LongId)]) {
        let watched: BTreeSet<OsdId> = watched.iter().map(|(osd, _)| *osd).collect();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).retain(|osd, _| watched.contains(osd));
    }
}

/// Writes to an OSD and reads that back. One that is full is alive.
async fn attempt(backend: &Backend, osd: OsdId, limit: Duration) -> Tried {
    let clock = &backend.env().clock;
    let deadline = backend.env().deadline_in(limit);
    let mut tried = Tried::default();
    let work = async {
        let handle = backend.osd(osd).await?;
        let value = StoredValue { value: Bytes::from_static(&[0x5a; TEST_LEN]), checksum: Checksum::None };
        let key = OsdKey::from_static(TEST_KEY);
        let batch = OsdBatch { asserts: Vec::new(), updates: vec![OsdUpdate::Set(key.clone(), value)] };
        match handle.apply(batch).await {
            Ok(()) | Err(TaskError::Osd { error: OsdError::Full, .. }) => tried.write = true,
            Err(error) => return Err(error),
        }
        // On one that was full from the first day there may be none.
        handle.get(key).await?;
        tried.read = true;
        Ok(())
    };
    tried.error = match within(clock.as_ref(), deadline, work).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("no answer in time".to_owned()),
    };
    tried
}

/// Lets the others know, so that they need not try.
async fn tell(backend: &Backend, tried: Vec<(OsdId, LongId, Tried)>) {
    let stamp = |worked: bool| if worked { vec![0] } else { Vec::new() };
    let reports: Vec<(LongId, OsdReport)> = tried
        .into_iter()
        .map(|(_, long_id, tried)| {
            let report = OsdReport {
                seen: stamp(tried.read || tried.write),
                read: stamp(tried.read),
                write: stamp(tried.write),
                errors: tried.error.map(|error| (0, error)).into_iter().collect(),
                ..OsdReport::default()
            };
            (long_id, report)
        })
        .collect();
    for reports in reports.chunks(200) {
        if let Err(error) = backend.tell_abm(AbmCommand::ReportOsds(reports.to_vec())).await {
            tracing::debug!(%error, "what was seen of OSDs is not told");
        }
    }
}

/// What clients told of OSDs.
async fn health(backend: &Backend) -> Result<BTreeMap<LongId, OsdHealth>, TaskError> {
    let mut all = BTreeMap::new();
    let mut range = RangeQuery::all();
    loop {
        let AbmAnswer::OsdHealth(page) = backend.ask_abm(AbmQuery::OsdHealth(range.clone())).await? else {
            return Err(TaskError::Mismatch("OsdHealth"));
        };
        let last = page.items.last().map(|(long_id, _)| long_id.clone());
        all.extend(page.items);
        match last {
            Some(last) if page.has_more => range = range.after(last.as_str().as_bytes()),
            _ => return Ok(all),
        }
    }
}

/// A time that the ABM's clock has passed, from what it says of when it heard of agents and OSDs: at most some seconds old, since
/// this agent says that it is there.
async fn abm_now(backend: &Backend, told: &BTreeMap<LongId, OsdHealth>) -> Result<u64, TaskError> {
    let AbmAnswer::Participants(participants) = backend.ask_abm(AbmQuery::Participants).await? else {
        return Err(TaskError::Mismatch("Participants"));
    };
    let stamps = told.values().flat_map(|told| [&told.seen, &told.read, &told.write]);
    let newest = stamps.filter_map(|stamps| stamps.first().copied());
    Ok(participants.iter().map(|participant| participant.seen).chain(newest).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(900);

    fn ages(read: Option<u64>, write: Option<u64>, watched: u64) -> Ages {
        let seconds = |s: Option<u64>| s.map(Duration::from_secs);
        Ages { read: seconds(read), write: seconds(write), watched: Duration::from_secs(watched) }
    }

    #[test]
    fn a_read_and_a_write_within_the_timeout_are_life() {
        assert!(!is_silent(&ages(Some(900), Some(900), 5000), TIMEOUT));
        assert!(is_silent(&ages(Some(901), Some(1), 5000), TIMEOUT));
        // A disk that reads and does not write: the history of writes counts.
        assert!(is_silent(&ages(Some(1), Some(901), 5000), TIMEOUT));
        // Nobody has told of it: this agent watches for as long before it says so.
        assert!(!is_silent(&ages(None, None, 900), TIMEOUT));
        assert!(is_silent(&ages(None, Some(1), 901), TIMEOUT));
    }

    #[test]
    fn what_nobody_told_of_for_half_the_timeout_is_tried() {
        assert!(!ages(Some(450), Some(450), 0).is_old(TIMEOUT));
        assert!(ages(Some(451), Some(1), 0).is_old(TIMEOUT));
        assert!(ages(Some(1), Some(451), 0).is_old(TIMEOUT));
        assert!(ages(None, Some(1), 0).is_old(TIMEOUT));
    }

    #[test]
    fn the_newest_of_what_was_told_and_seen_counts_each_in_its_own_time() {
        let detector = Detector::default();
        let osd = OsdId::from_u32(3);
        let long_id = LongId::new("osd-3").unwrap();
        let at = |seconds| Moment(Duration::from_secs(seconds));
        let told = OsdHealth { read: vec![90_000_000, 1], write: vec![40_000_000], ..OsdHealth::default() };
        let first = detector.ages(osd, Some(&told), 100_000_000, at(7));
        assert_eq!(first, ages(Some(10), Some(60), 0));
        let tried = Tried { read: false, write: true, error: None };
        detector.note(&[(osd, long_id, tried)], at(20));
        assert_eq!(detector.ages(osd, Some(&told), 130_000_000, at(25)), ages(Some(40), Some(5), 18));
        // What the ABM's clock says of the future is now.
        assert_eq!(detector.ages(osd, Some(&told), 0, at(25)).read, Some(Duration::ZERO));
        detector.forget_others(&[]);
        assert_eq!(detector.ages(osd, None, 0, at(30)), ages(None, None, 0));
    }
}
