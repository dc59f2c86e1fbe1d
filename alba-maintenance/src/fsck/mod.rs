//! A checker over the whole cluster: do OSDs hold exactly what manifests name, beside what is tagged or waits to be deleted?
//! Read-only, and in bounded pieces: a range of object ids at a time.
//!
//! Others go on meanwhile, so what looks wrong is looked at again: a difference is one only when the manifest, the queue and the
//! OSD, asked once more, still disagree.

mod compare;

use std::collections::{BTreeMap, BTreeSet};

use alba_core::ids::{NamespaceId, ObjectId, OsdId};
use alba_core::manifest::Manifest;
use alba_core::osd_keys::{self, FragmentAddress, Parsed};
use alba_core::range::{RangeQuery, next_prefix};
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmQuery, Destination, NamespaceRecord, NamespaceState, OsdFilter, OsdState, WorkItem,
};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery};

use crate::backend::{Backend, OsdHandle};
use crate::error::TaskError;

pub use compare::{Difference, Held, Totals, Wrong};
use compare::{compare, first_of, of_object, placed};

/// Keys of a delete queue that are known per question; longer queues are looked at again after they were worked on.
const QUEUE_PAGE: u32 = 200;

/// Most differences that are listed; more are counted.
const LISTED: usize = 1000;

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Fragments by what is known of them.
    pub totals: Totals,
    /// What is wrong; at most 1000 are listed.
    pub differences: Vec<Difference>,
    /// How many there are.
    pub count: u64,
    /// Namespaces that OSDs hold something of, and that do not exist.
    pub strangers: Vec<(OsdId, NamespaceId)>,
    /// What could not be looked at, and why.
    pub unknown: Vec<String>,
}

impl Report {
    /// Is everything there and nothing else?
    pub fn is_whole(&self) -> bool {
        self.count == 0 && self.strangers.is_empty() && self.unknown.is_empty()
    }
}

/// Checks the namespaces that `wanted` takes, all of them.
pub async fn check(
    backend: &Backend,
    wanted: impl Fn(&NamespaceRecord) -> bool,
) -> Result<Report, TaskError> {
    let mut report = Report::default();
    let mut osds = Vec::new();
    for record in backend.osds(OsdFilter::Claimed).await? {
        let Some(id) = record.osd_id.filter(|_| record.state != OsdState::Purging) else { continue };
        osds.push(backend.osd(id).await?);
    }
    for namespace in backend.namespaces().await?.iter().filter(|record| wanted(record)) {
        if let NamespaceState::Creating | NamespaceState::Removing | NamespaceState::Recovering =
            namespace.state
        {
            continue;
        }
        let mut checker = Checker { backend, namespace, osds: &osds, silent: BTreeSet::new() };
        if let Err(error) = checker.check(&mut report).await {
            report.unknown.push(format!("namespace {}: {error}", namespace.name));
        }
    }
    strangers(backend, &osds, &mut report).await?;
    report.differences.sort();
    Ok(report)
}

struct Checker<'a> {
    backend: &'a Backend,
    namespace: &'a NamespaceRecord,
    osds: &'a [OsdHandle],
    /// OSDs that did not answer: nothing is said about them.
    silent: BTreeSet<OsdId>,
}

impl Checker<'_> {
    async fn check(&mut self, report: &mut Report) -> Result<(), TaskError> {
        let mut tags = BTreeMap::new();
        for osd in self.osds {
            match self.tags(osd).await {
                Ok(found) => drop(tags.insert(osd.id(), found)),
                Err(error) => self.give_up(osd.id(), &error, report),
            }
        }
        let mut after: Option<ObjectId> = None;
        loop {
            let page = self.manifests(after).await?;
            // What is above the last manifest of a full page is looked at with the next one.
            let upto = page.items.last().map(|manifest| manifest.object_id).filter(|_| page.has_more);
            let mut held = BTreeMap::new();
            for osd in self.osds {
                if self.silent.contains(&osd.id()) {
                    continue;
                }
                match self.held(osd, &tags, after, upto).await {
                    Ok(found) => drop(held.insert(osd.id(), found)),
                    Err(error) => self.give_up(osd.id(), &error, report),
                }
            }
            let (totals, differences) = compare(&self.namespace.name, &page.items, &held);
            report.totals.add(&totals);
            // Twice: what was deleted between two of the questions is in a queue, or gone, at the second look.
            let differences = self.still_so(differences).await?;
            let differences = self.still_so(differences).await?;
            report.count += u64::try_from(differences.len()).unwrap_or(u64::MAX);
            let room = LISTED.saturating_sub(report.differences.len());
            report.differences.extend(differences.into_iter().take(room));
            match upto {
                Some(upto) => after = Some(upto),
                None => return Ok(()),
            }
        }
    }

    fn give_up(&mut self, osd: OsdId, error: &TaskError, report: &mut Report) {
        self.silent.insert(osd);
        let text = error.to_string();
        if !report.unknown.contains(&text) {
            report.unknown.push(text);
        }
    }

    async fn manifests(
        &self,
        after: Option<ObjectId>,
    ) -> Result<alba_core::range::Page<Manifest>, TaskError> {
        let mut range = RangeQuery::all();
        if let Some(after) = after {
            range = range.after(after.as_bytes());
        }
        let query = NsmQuery::ManifestsById { namespace: self.namespace.id, range };
        match self.backend.ask_group(&self.namespace.group, query).await? {
            NsmAnswer::ManifestPage(page) => Ok(page),
            _ => Err(TaskError::Mismatch("ManifestPage")),
        }
    }

    async fn tags(&self, osd: &OsdHandle) -> Result<BTreeSet<FragmentAddress>, TaskError> {
        let prefix = osd_keys::gc_tags(self.namespace.id);
        let upper = next_prefix(&prefix);
        addresses(osd, prefix.to_vec(), upper).await
    }

    async fn queue(&self, osd: OsdId) -> Result<BTreeSet<FragmentAddress>, TaskError> {
        let query = NsmQuery::DeleteQueue { namespace: self.namespace.id, osd, max: QUEUE_PAGE };
        match self.backend.ask_group(&self.namespace.group, query).await? {
            NsmAnswer::Keys(page) => Ok(page
                .items
                .into_iter()
                .map(|key| FragmentAddress {
                    object_id: key.object,
                    chunk: key.chunk,
                    fragment: key.fragment,
                    version: key.version,
                })
                .collect()),
            _ => Err(TaskError::Mismatch("Keys")),
        }
    }

    /// What an OSD has of the objects above `after`, up to `upto`.
    async fn held(
        &self,
        osd: &OsdHandle,
        tags: &BTreeMap<OsdId, BTreeSet<FragmentAddress>>,
        after: Option<ObjectId>,
        upto: Option<ObjectId>,
    ) -> Result<Held, TaskError> {
        let id = self.namespace.id;
        let inside = |address: &FragmentAddress| {
            after.is_none_or(|after| address.object_id > after)
                && upto.is_none_or(|upto| address.object_id <= upto)
        };
        let bounds = |all: &[u8], key: fn(NamespaceId, &FragmentAddress) -> bytes::Bytes| {
            let beyond = |object| next_prefix(of_object(&key(id, &first_of(object))));
            let first = after.and_then(beyond).unwrap_or_else(|| all.to_vec());
            (first, upto.map_or_else(|| next_prefix(all), beyond))
        };
        let (first, last) = bounds(&osd_keys::fragments(id), osd_keys::fragment);
        let fragments = addresses(osd, first, last).await?;
        let (first, last) = bounds(&osd_keys::recovery_infos(id), osd_keys::recovery_info);
        let recovery_infos = addresses(osd, first, last).await?;
        let mut tagged = tags.get(&osd.id()).cloned().unwrap_or_default();
        tagged.retain(inside);
        let mut queued = self.queue(osd.id()).await?;
        queued.retain(inside);
        Ok(Held { fragments, recovery_infos, tagged, queued })
    }

    /// Asks all who are concerned once more, and keeps what is still wrong. The group is asked last: what it names then was
    /// written before.
    async fn still_so(&self, differences: Vec<Difference>) -> Result<Vec<Difference>, TaskError> {
        let mut kept = Vec::new();
        let mut known: BTreeMap<OsdId, (BTreeSet<FragmentAddress>, BTreeSet<FragmentAddress>)> =
            BTreeMap::new();
        for difference in differences {
            let Difference { osd, address, wrong, .. } = &difference;
            let Some(handle) = self.osds.iter().find(|handle| handle.id() == *osd) else { continue };
            if !known.contains_key(osd) {
                known.insert(*osd, (self.tags(handle).await?, self.queue(*osd).await?));
            }
            let Some((tags, queue)) = known.get(osd) else { continue };
            let tagged = tags.contains(address);
            // A queue can only be read from its beginning: one that is longer hides what is behind, and nothing is said.
            let full = u32::try_from(queue.len()).unwrap_or(u32::MAX) >= QUEUE_PAGE;
            let queued = full || queue.contains(address);
            let fragment = handle.has(osd_keys::fragment(self.namespace.id, address)).await?;
            let recovery_info = handle.has(osd_keys::recovery_info(self.namespace.id, address)).await?;
            let named = self
                .backend
                .manifest_by_id(&self.namespace.group, self.namespace.id, address.object_id)
                .await?
                .is_some_and(|manifest| placed(&manifest).any(|place| place == (*osd, *address)));
            let still = match wrong {
                Wrong::Missing => named && !fragment,
                Wrong::WithoutRecoveryInfo => named && !recovery_info,
                Wrong::Leaked => fragment && !named && !tagged && !queued,
                Wrong::LeakedRecoveryInfo => recovery_info && !fragment && !named && !tagged && !queued,
            };
            if still {
                kept.push(difference);
            }
        }
        Ok(kept)
    }
}

/// All addresses in a range of keys of fragments, recovery infos or tags.
async fn addresses(
    osd: &OsdHandle,
    first: Vec<u8>,
    last: Option<Vec<u8>>,
) -> Result<BTreeSet<FragmentAddress>, TaskError> {
    let mut range = RangeQuery { first, last: last.map(|last| (last, false)), ..RangeQuery::all() };
    let mut found = BTreeSet::new();
    loop {
        let page = osd.range(range.clone()).await?;
        for key in &page.items {
            match osd_keys::parse(key) {
                Ok(
                    Parsed::Fragment(_, address)
                    | Parsed::RecoveryInfo(_, address)
                    | Parsed::GcTag(_, _, address),
                ) => drop(found.insert(address)),
                _ => {
                    let text = alba_core::ids::text_or_hex(key);
                    return Err(TaskError::Problem(format!(
                        "OSD {} holds a key that cannot be read: {text}",
                        osd.id()
                    )));
                }
            }
        }
        match page.items.last() {
            Some(last) if page.has_more => range = range.after(last),
            _ => return Ok(found),
        }
    }
}

/// Namespaces that OSDs hold something of and nobody knows or is about to remove.
async fn strangers(backend: &Backend, osds: &[OsdHandle], report: &mut Report) -> Result<(), TaskError> {
    for osd in osds {
        let found = match namespaces_on(osd).await {
            Ok(found) => found,
            // Said already, of its fragments.
            Err(_) if !report.unknown.is_empty() => continue,
            Err(error) => {
                report.unknown.push(error.to_string());
                continue;
            }
        };
        let known: BTreeSet<NamespaceId> =
            backend.namespaces().await?.into_iter().map(|record| record.id).collect();
        let unknown: Vec<NamespaceId> = found.difference(&known).copied().collect();
        if !unknown.is_empty() && !is_awaited(backend, osd.id()).await? {
            // It may have been removed since.
            let found = namespaces_on(osd).await?;
            report
                .strangers
                .extend(unknown.into_iter().filter(|id| found.contains(id)).map(|id| (osd.id(), id)));
        }
    }
    Ok(())
}

async fn namespaces_on(osd: &OsdHandle) -> Result<BTreeSet<NamespaceId>, TaskError> {
    // From namespace to namespace, whatever each holds.
    let lowest = NamespaceId::from_u32(0);
    let mut range =
        RangeQuery { first: osd_keys::namespace_marker(lowest).to_vec(), max: 1, ..RangeQuery::all() };
    let mut found = BTreeSet::new();
    loop {
        let page = osd.range(range.clone()).await?;
        let Some(key) = page.items.first() else { return Ok(found) };
        let id = match osd_keys::parse(key) {
            Ok(
                Parsed::NamespaceMarker(id)
                | Parsed::NamespaceName(id)
                | Parsed::NamespacePreset(id)
                | Parsed::Fragment(id, _)
                | Parsed::RecoveryInfo(id, _)
                | Parsed::GcTag(id, _, _)
                | Parsed::DeletionNote(id, _),
            ) => id,
            _ => return Ok(found),
        };
        found.insert(id);
        match next_prefix(&osd_keys::namespace_marker(id)) {
            Some(next) => (range.first, range.first_included) = (next, true),
            None => return Ok(found),
        }
    }
}

/// Is something on its way to the OSD that may take a namespace away?
async fn is_awaited(backend: &Backend, osd: OsdId) -> Result<bool, TaskError> {
    let AbmAnswer::Queues(queues) = backend.ask_abm(AbmQuery::Queues).await? else {
        return Err(TaskError::Mismatch("Queues"));
    };
    if queues.iter().any(|(destination, _)| *destination == Destination::Osd(osd)) {
        return Ok(true);
    }
    let mut after = None;
    loop {
        let AbmAnswer::Work(page) = backend.ask_abm(AbmQuery::Work { after, max: 100 }).await? else {
            return Err(TaskError::Mismatch("Work"));
        };
        let is_clean_up =
            |item: &WorkItem| matches!(item, WorkItem::CleanupOsdNamespace { osd: of, .. } if *of == osd);
        if page.items.iter().any(|record| is_clean_up(&record.item)) {
            return Ok(true);
        }
        match page.items.last() {
            Some(last) if page.has_more => after = Some(last.id),
            _ => return Ok(false),
        }
    }
}
