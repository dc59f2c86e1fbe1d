//! Garbage collection: fragments that were written and never came to be named by a manifest (features §2.11, §3.3).
//!
//! ```text
//!   1 close    the group refuses writes of all epochs but the newest
//!   2 scan     tags of closed epochs on every OSD of the namespace
//!   3 ask      the manifest by id, consistently, from the group that owns the namespace
//!   4 delete   fragment, recovery info and tag, while the tag is there; or the tag only ([`verdict`])
//!   5 open     the next epoch, which the next run leaves as the only one
//! ```
//!
//! The order is what makes it safe (invariant 3). Were 2 before 1, an upload could commit a fragment after its tag was judged:
//! the manifest would name what is deleted. Were 3 before 2, the answer could be older than the tag.
//!
//! Epochs are opened at the end of a run and closed at the beginning of the next, so uploads have at least the pause between
//! them; a run that begins sooner than the grace period waits. What was written in vain in one epoch is gone after the second run
//! that begins later. A crash anywhere leaves epochs that the next run goes on with.

pub mod verdict;

use std::collections::BTreeSet;
use std::time::Duration;

use alba_core::env::MetaError;
use alba_core::failpoint::{Step, reach};
use alba_core::ids::{GcEpoch, ObjectId, OsdId};
use alba_core::manifest::Manifest;
use alba_core::osd_keys::{self, Parsed};
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, NamespaceRecord, NamespaceState};
use alba_core::wire::rpc::nsm::{NsmCommand, NsmError};
use async_trait::async_trait;

use crate::backend::{Backend, OsdHandle};
use crate::error::TaskError;
use crate::schedule::Timing;
use crate::task::{Run, Task, in_lane, lanes};
use crate::tasks::unheard::{Skipped, Unheard};
use verdict::{StaleTag, Verdict, carry_out, judge};

/// Tags per page (features §3.3).
const PAGE: i32 = 100;

/// The task `gc`.
pub struct Gc {
    grace: Duration,
    unheard: Unheard,
}

impl Gc {
    /// Uploads have at least `grace` from the opening of an epoch to the closing of the one before.
    pub fn new(grace: Duration) -> Self {
        Self { grace, unheard: Unheard::default() }
    }

    /// How long a run has to wait before it may close epochs, when somebody opened the newest one so long ago.
    fn wait(&self, rested: Option<Duration>) -> Duration {
        // Nobody has ever run here as far as is known: epochs were opened by whoever was forgotten.
        self.grace.saturating_sub(rested.unwrap_or_default())
    }
}

#[async_trait]
impl Task for Gc {
    fn name(&self) -> &'static str {
        "gc"
    }

    fn about(&self) -> &'static str {
        "deletes fragments of uploads that were never finished"
    }

    /// The original's (features §3.3).
    fn usual(&self) -> Timing {
        Timing::every(Duration::from_secs(900))
    }

    async fn parts(&self, _: &Backend) -> Result<Vec<String>, TaskError> {
        Ok(lanes())
    }

    async fn run(&self, part: &str, run: &Run) -> Result<(), TaskError> {
        let mut waited = false;
        let mut skipped = Skipped::default();
        let mut namespaces = run.backend.each_namespace();
        while let Some(namespace) = namespaces.next().await? {
            // The trash keeps everything; one that is being recovered or moved waits.
            if !in_lane(part, namespace.id.get()) || namespace.state != NamespaceState::Active {
                continue;
            }
            if let Err(error) = self.collect(run, &namespace, &mut waited, &mut skipped).await {
                run.progress.problem(format!("namespace {}: {error}", namespace.name));
            }
        }
        skipped.tell(&run.progress);
        Ok(())
    }
}

impl Gc {
    async fn collect(
        &self,
        run: &Run,
        namespace: &NamespaceRecord,
        waited: &mut bool,
        skipped: &mut Skipped,
    ) -> Result<(), TaskError> {
        let info = run.backend.namespace_info(namespace).await?;
        let newest = info.newest_epoch;
        if let Some(upto) = before(newest).filter(|_| info.min_epoch < newest) {
            if !*waited {
                run.progress.waits_for(Some("uploads of the last gc_grace to be finished"));
                run.sleep(self.wait(run.rested)).await;
                run.progress.waits_for(None);
                *waited = true;
            }
            reach(Step::GcClosing);
            let command = NsmCommand::DisableGcEpochs { namespace: namespace.id, upto };
            run.backend.tell_group(&namespace.group, command).await?;
            reach(Step::GcClosed);
        }
        // Asked after the closing: tags below it belong to attempts that can no longer commit anything.
        let open = run.backend.namespace_info(namespace).await?.min_epoch;
        for osd in osds_of(run, namespace).await? {
            if self.unheard.has(osd, run.now()) {
                skipped.count(osd);
                continue;
            }
            if let Err(error) = scan(run, namespace, osd, open).await {
                self.unheard.note(&error, run.now());
                run.progress.problem(format!("namespace {}: {error}", namespace.name));
            }
        }
        if let Some(next) = newest.next() {
            let command = NsmCommand::EnableGcEpoch { namespace: namespace.id, epoch: next };
            match run.backend.tell_group(&namespace.group, command).await {
                // Another agent, whose lease had run out, has opened it and the next one.
                Ok(_) | Err(TaskError::Meta(MetaError::Nsm(NsmError::InvalidGcEpoch(_)))) => {}
                Err(error) => return Err(error),
            }
            reach(Step::GcOpened);
        }
        Ok(())
    }
}

fn before(epoch: GcEpoch) -> Option<GcEpoch> {
    GcEpoch::new(epoch.get().checked_sub(1)?).ok()
}

/// Where fragments of the namespace may be: on every OSD that the ABM or the group ever linked to it and that is not gone.
async fn osds_of(run: &Run, namespace: &NamespaceRecord) -> Result<BTreeSet<OsdId>, TaskError> {
    let serving: BTreeSet<OsdId> = run.backend.serving_osds().await?.into_iter().collect();
    let details = run.backend.namespace_details(namespace).await?;
    let mut osds: BTreeSet<OsdId> = details.osds.into_iter().map(|(osd, _, _)| osd).collect();
    match run.backend.ask_abm(AbmQuery::NamespaceOsds(namespace.id)).await? {
        AbmAnswer::OsdIds(linked) => osds.extend(linked),
        _ => return Err(TaskError::Mismatch("OsdIds")),
    }
    Ok(osds.intersection(&serving).copied().collect())
}

/// Judges every tag of an epoch below `open` on one OSD.
async fn scan(run: &Run, namespace: &NamespaceRecord, osd: OsdId, open: GcEpoch) -> Result<(), TaskError> {
    let handle = run.backend.osd(osd).await?;
    let mut range = RangeQuery {
        first: osd_keys::gc_tags(namespace.id).to_vec(),
        first_included: true,
        last: Some((osd_keys::gc_tags_of(namespace.id, open).to_vec(), false)),
        reverse: false,
        max: PAGE,
    };
    // Fragments of one object are next to each other: its manifest is asked for once per page.
    loop {
        let page = handle.range(range.clone()).await?;
        run.progress.found(u64::try_from(page.items.len()).unwrap_or(u64::MAX));
        let values = handle.get_all(page.items.clone()).await?;
        let mut known: Option<(ObjectId, Option<Manifest>)> = None;
        for (key, value) in page.items.iter().zip(values) {
            // Somebody else has decided since it was listed.
            let Some(value) = value else { continue };
            let Ok(Parsed::GcTag(in_namespace, epoch, address)) = osd_keys::parse(key) else {
                run.progress.problem(format!("OSD {osd} holds a tag that cannot be read"));
                continue;
            };
            let tag = StaleTag { namespace: in_namespace, epoch, address, value };
            run.pace(1, 0).await;
            let manifest = match known.take() {
                Some((object, manifest)) if object == address.object_id => manifest,
                _ => run.backend.manifest_by_id(&namespace.group, namespace.id, address.object_id).await?,
            };
            let verdict = judge(&tag, osd, manifest.as_ref());
            carry(run, &handle, &tag, verdict).await?;
            known = Some((address.object_id, manifest));
        }
        match page.items.last() {
            Some(last) if page.has_more => range = range.after(last),
            _ => return Ok(()),
        }
    }
}

async fn carry(run: &Run, handle: &OsdHandle, tag: &StaleTag, verdict: Verdict) -> Result<(), TaskError> {
    reach(Step::GcJudged);
    let happened = handle.apply_if(carry_out(tag, verdict)).await?;
    reach(Step::GcDeleted);
    run.progress.did(1, 0);
    match verdict {
        // Without its tag somebody else has decided.
        Verdict::Garbage if happened => metrics::counter!("alba_gc_deleted_fragments_total").increment(1),
        Verdict::Garbage => {}
        Verdict::Referenced => metrics::counter!("alba_gc_removed_tags_total").increment(1),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_stay_open_for_the_grace_period() {
        let gc = Gc::new(Duration::from_secs(120));
        let wait = |rested: Option<u64>| gc.wait(rested.map(Duration::from_secs)).as_secs();
        assert_eq!([None, Some(0), Some(20), Some(120), Some(9999)].map(wait), [120, 120, 100, 0, 0]);
        assert_eq!(before(GcEpoch::from_u32(0)), None);
        assert_eq!(before(GcEpoch::from_u32(7)), Some(GcEpoch::from_u32(6)));
    }
}
