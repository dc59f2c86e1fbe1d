//! What is to be done with one object: pure, from what was found of it and what the backup knows.
//!
//! ```text
//!                      found whole            a part was found              nothing was found
//! live in the backup   restore; apart when    apart, or lost when           deleted since, or lost
//!                      a sign of deletion     it cannot be read
//! deleted there        nothing: it was        nothing                       -
//! unknown there        restore; apart when    listed as incomplete          -
//!                      it may never have
//!                      been confirmed
//! ```
//!
//! Signs of deletion: a note that somebody was about to delete or replace it; a fragment that the backup knows and its OSD
//! does not have any more.

use std::collections::BTreeSet;

use alba_core::ids::{NodeId, ObjectId, OsdId};
use alba_core::manifest::Manifest;
use alba_core::preset::Preset;

use super::assemble::{Found, NoManifest, as_told, assemble};

/// What the backup knows of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Before {
    /// It was stored.
    Live(Box<Manifest>),
    /// Its fragments waited to be deleted.
    Deleted,
    /// Nothing, or there is no backup.
    Unknown,
}

/// Everything there is about one object.
#[derive(Debug)]
pub(crate) struct Evidence {
    /// Which.
    pub(crate) id: ObjectId,
    /// From OSDs.
    pub(crate) found: Vec<Found>,
    /// From the backup.
    pub(crate) before: Before,
    /// Is there a note that it was about to be deleted or replaced?
    pub(crate) noted: bool,
}

/// Which OSDs could be asked.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// All that they hold was seen.
    pub(crate) scanned: BTreeSet<OsdId>,
    /// They belong to the backend and do not answer.
    pub(crate) absent: BTreeSet<OsdId>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// It goes back.
    Restore(Box<Manifest>),
    /// An operator decides.
    Apart(Box<Manifest>, Doubt),
    /// It was deleted, for certain.
    Deleted,
    /// It was deleted since the backup and nothing of it is left, or it is lost with all its fragments. Where it was can
    /// be asked, and has nothing.
    Gone,
    /// It cannot be put together from what could be asked.
    Incomplete(NoManifest),
}

/// Why an operator decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Somebody was about to delete or replace it.
    Noted,
    /// No fragment of it was confirmed: an upload that may never have been completed.
    Unconfirmed,
    /// Fragments that were there at the backup are gone.
    FragmentsGone,
}

impl Doubt {
    /// For people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Noted => "somebody was about to delete or replace it",
            Self::Unconfirmed => "its upload may never have been completed",
            Self::FragmentsGone => "fragments that it had at the backup are gone",
        }
    }
}

/// Judges one object.
pub(crate) fn judge<'n>(
    evidence: &Evidence,
    reach: &Reach,
    preset: &Preset,
    node_of: impl Fn(OsdId) -> Option<&'n NodeId>,
) -> Verdict {
    let id = evidence.id;
    match &evidence.before {
        Before::Deleted => Verdict::Deleted,
        Before::Unknown => match assemble(id, &evidence.found, preset, node_of) {
            Err(error) => Verdict::Incomplete(error),
            Ok(manifest) if evidence.noted => Verdict::Apart(Box::new(manifest), Doubt::Noted),
            Ok(manifest) if evidence.found.iter().all(|found| found.tagged) => {
                Verdict::Apart(Box::new(manifest), Doubt::Unconfirmed)
            }
            Ok(manifest) => Verdict::Restore(Box::new(manifest)),
        },
        Before::Live(old) => {
            let mut known = evidence.found.clone();
            known.extend(as_told(old, &reach.absent));
            if known.is_empty() {
                return Verdict::Gone;
            }
            let manifest = match assemble(id, &known, preset, node_of) {
                Err(error) => return Verdict::Incomplete(error),
                Ok(manifest) if manifest.name != old.name => {
                    let text = "the backup has it under another name".to_owned();
                    return Verdict::Incomplete(NoManifest::Inconsistent(text));
                }
                Ok(manifest) => with_old(manifest, old),
            };
            if evidence.noted {
                Verdict::Apart(Box::new(manifest), Doubt::Noted)
            } else if has_lost_fragments(old, evidence, reach) {
                Verdict::Apart(Box::new(manifest), Doubt::FragmentsGone)
            } else {
                Verdict::Restore(Box::new(manifest))
            }
        }
    }
}

/// What the backup knows better: when the object was committed, under which limit per node, and the version.
fn with_old(mut manifest: Manifest, old: &Manifest) -> Manifest {
    manifest.timestamp = old.timestamp;
    manifest.max_disks_per_node = old.max_disks_per_node;
    manifest.version = manifest.version.max(old.version);
    manifest
}

/// Is a fragment gone from an OSD that had it, without a newer one elsewhere?
fn has_lost_fragments(old: &Manifest, evidence: &Evidence, reach: &Reach) -> bool {
    old.fragments().any(|(chunk, index, fragment)| {
        fragment.location.is_some_and(|osd| {
            reach.scanned.contains(&osd)
                && !evidence.found.iter().any(|found| {
                    (found.address.chunk, found.address.fragment) == (chunk, index)
                        && found.address.version >= fragment.version
                })
        })
    })
}

#[cfg(test)]
mod tests;
