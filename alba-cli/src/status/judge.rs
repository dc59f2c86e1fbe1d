//! What observations mean. Pure: the same observations give the same verdict.
//!
//! An object is below its policy when some chunk has fewer fragments on answering OSDs than
//! min(k + m, Σ over nodes of min(x, active OSDs there)) of the first policy that the active OSDs can satisfy, or when it
//! was stored by another policy than that one.

use std::collections::{BTreeMap, BTreeSet};

use alba_core::ids::{OsdId, Place};
use alba_core::manifest::Manifest;
use alba_core::policy::{Bucket, CodeShape, Policy};
use alba_core::preset::{OsdSet, Preset};

/// How things are; the exit code of `alba status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// Nothing to do.
    Healthy,
    /// Data is safe, but something needs attention or repair.
    Degraded,
    /// One more loss would destroy data, or has.
    AtRisk,
}

impl Verdict {
    /// As a word.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::AtRisk => "data at risk",
        }
    }

    /// For scripts (interfaces §3).
    pub(super) fn exit_code(self) -> u8 {
        match self {
            Self::Healthy => 0,
            Self::Degraded => 1,
            Self::AtRisk => 3,
        }
    }
}

/// What an object of a namespace should have: the first policy that the active OSDs can satisfy, and how many fragments
/// it can place with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The policy.
    pub(super) policy: Policy,
    /// Fragments of each chunk.
    pub(super) fragments: usize,
}

/// What `preset` can have with these active OSDs; none when no policy can be satisfied.
pub(super) fn wanted(preset: &Preset, active: &BTreeMap<OsdId, Place>) -> Option<Wanted> {
    let mut per_node: BTreeMap<&Place, usize> = BTreeMap::new();
    for (id, place) in active {
        let usable = match &preset.osds {
            OsdSet::All => true,
            OsdSet::Explicit(ids) => ids.contains(id),
        };
        if usable {
            *per_node.entry(place).or_default() += 1;
        }
    }
    preset.policies.iter().find_map(|policy| {
        let most = usize::try_from(policy.max_per_node()).unwrap_or(usize::MAX);
        let room: usize = per_node.values().map(|osds| (*osds).min(most)).sum();
        let fragments = room.min(policy.shape().total());
        (fragments >= policy.min_fragments()).then_some(Wanted { policy: *policy, fragments })
    })
}

/// Objects by what they have left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Safety {
    /// Fewer fragments than wanted, or of another policy; those at risk and lost included.
    pub(super) below: u64,
    /// One more loss would destroy them although their code has parity.
    pub(super) at_risk: u64,
    /// Not readable now: fewer than k fragments on answering OSDs.
    pub(super) unreadable: u64,
}

impl Safety {
    /// Counts `objects` whose weakest chunk has `left` fragments.
    pub(super) fn count(&mut self, shape: CodeShape, left: usize, wanted: Option<Wanted>, objects: u64) {
        let enough = wanted.is_some_and(|w| w.policy.shape() == shape && left >= w.fragments);
        if left < shape.k() {
            self.unreadable += objects;
        } else if left == shape.k() && shape.m() > 0 {
            self.at_risk += objects;
        }
        if !enough || left < shape.k() {
            self.below += objects;
        }
    }

    /// As the bucket counters tell it: every fragment that a manifest names counts.
    pub(super) fn of_buckets(buckets: &[(Bucket, u64)], wanted: Option<Wanted>) -> Self {
        let mut safety = Self::default();
        for (bucket, objects) in buckets {
            let left = usize::try_from(bucket.fragments).unwrap_or(usize::MAX);
            safety.count(bucket.shape, left, wanted, *objects);
        }
        safety
    }

    /// Corrects what the counters said about one object by what its OSDs that do not answer hold.
    pub(super) fn correct(&mut self, manifest: &Manifest, dead: &BTreeSet<OsdId>, wanted: Option<Wanted>) {
        let shape = manifest.scheme.shape;
        let weakest = |alive: &dyn Fn(OsdId) -> bool| {
            let counts = manifest.chunks.iter().map(|chunk| {
                chunk.fragments.iter().filter(|entry| entry.location.is_some_and(alive)).count()
            });
            counts.min().unwrap_or(0)
        };
        let mut named = Self::default();
        named.count(shape, weakest(&|_| true), wanted, 1);
        let mut left = Self::default();
        left.count(shape, weakest(&|osd| !dead.contains(&osd)), wanted, 1);
        self.below = self.below.saturating_sub(named.below) + left.below;
        self.at_risk = self.at_risk.saturating_sub(named.at_risk) + left.at_risk;
        self.unreadable = self.unreadable.saturating_sub(named.unreadable) + left.unreadable;
    }

    /// What it means.
    pub(super) fn verdict(&self) -> Verdict {
        if self.at_risk > 0 || self.unreadable > 0 {
            Verdict::AtRisk
        } else if self.below > 0 {
            Verdict::Degraded
        } else {
            Verdict::Healthy
        }
    }
}

#[cfg(test)]
mod tests;
