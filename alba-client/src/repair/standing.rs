//! How the OSDs of a namespace stand, as far as repair is concerned. Pure.

use std::collections::BTreeMap;

use alba_core::ids::{NodeId, OsdId};
use alba_core::placement::Candidate;
use alba_core::preset::{OsdSet, Preset};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{OsdInfo, OsdState};
use alba_core::wire::rpc::nsm::OsdUse;

/// What can be expected of an OSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Alive, and takes new fragments of the namespace.
    Takes,
    /// Alive, and takes none for now: full, busy, or not in use by the namespace.
    Holds,
    /// Alive, and to be emptied when that costs no redundancy.
    Draining,
    /// Alive, and to be emptied, if need be by another policy.
    Leaving,
    /// Silent for so long that its fragments count as lost. It may come back.
    Dead,
    /// The same, and away on purpose: nothing is repaired for its sake.
    Away,
    /// Its fragments are lost for good: never read.
    Gone,
}

impl Standing {
    /// Does what is there count as redundancy?
    pub fn counts(self) -> bool {
        matches!(self, Self::Takes | Self::Holds | Self::Draining | Self::Leaving)
    }

    /// May what is there stay there?
    pub fn keeps(self) -> bool {
        matches!(self, Self::Takes | Self::Holds | Self::Away)
    }

    /// Is there nothing to be done about what is there, and does it count?
    pub fn is_well(self) -> bool {
        self.keeps() && self.counts()
    }
}

/// An OSD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsdView {
    /// Its failure domain.
    pub node: NodeId,
    /// What can be expected of it.
    pub standing: Standing,
    /// Its capacity.
    pub total: ByteCount,
    /// What is used of it.
    pub used: ByteCount,
}

/// The OSDs of a namespace: all that manifests may name, and all that may take fragments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Osds(BTreeMap<OsdId, OsdView>);

impl FromIterator<(OsdId, OsdView)> for Osds {
    fn from_iter<T: IntoIterator<Item = (OsdId, OsdView)>>(osds: T) -> Self {
        Self(osds.into_iter().collect())
    }
}

impl Osds {
    /// How one stands. One that is not known is treated like a silent one: read when nothing else is left.
    pub fn standing(&self, osd: OsdId) -> Standing {
        self.0.get(&osd).map_or(Standing::Dead, |view| view.standing)
    }

    /// Its failure domain.
    pub fn node(&self, osd: OsdId) -> Option<&NodeId> {
        self.0.get(&osd).map(|view| &view.node)
    }

    /// Is it known at all?
    pub fn knows(&self, osd: OsdId) -> bool {
        self.0.contains_key(&osd)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = (OsdId, &OsdView)> {
        self.0.iter().map(|(osd, view)| (*osd, view))
    }

    /// Adds one, or changes what is known of it.
    pub fn insert(&mut self, osd: OsdId, view: OsdView) {
        self.0.insert(osd, view);
    }

    /// It stands otherwise than was thought.
    pub fn set(&mut self, osd: OsdId, standing: Standing) {
        if let Some(view) = self.0.get_mut(&osd) {
            view.standing = standing;
        }
    }

    /// From now on it takes nothing, if it did.
    pub fn spare(&mut self, osd: OsdId) {
        if let Some(view) = self.0.get_mut(&osd).filter(|view| view.standing == Standing::Takes) {
            view.standing = Standing::Holds;
        }
    }

    /// Those whose fragments may stay where they are.
    pub(super) fn keeping(&self) -> Vec<Candidate> {
        self.candidates(Standing::keeps)
    }

    /// Those that take fragments.
    pub(super) fn taking(&self) -> Vec<Candidate> {
        self.candidates(|standing| standing == Standing::Takes)
    }

    fn candidates(&self, which: impl Fn(Standing) -> bool) -> Vec<Candidate> {
        let of = |(osd, view): (OsdId, &OsdView)| Candidate {
            osd,
            node: view.node.clone(),
            total: view.total,
            used: view.used,
        };
        self.iter().filter(|(_, view)| which(view.standing)).map(of).collect()
    }
}

/// Has an OSD been silent for too long?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// No.
    None,
    /// Yes.
    Unexplained,
    /// Yes, and an operator said that it is away.
    OnPurpose,
}

/// The standing of an OSD of a namespace, from what the ABM and the namespace's group say of it.
///
/// `silent`: by the failure detector and the maintenance windows. `takes`: could it take data, as far as this process knows?
pub fn standing(
    state: Option<OsdState>,
    used_as: OsdUse,
    preset: &Preset,
    osd: OsdId,
    silent: Silence,
    takes: bool,
) -> Standing {
    let wanted = match &preset.osds {
        OsdSet::All => true,
        OsdSet::Explicit(osds) => osds.contains(&osd),
    };
    match state {
        // An operator gave it up: nothing of it will be read again.
        Some(OsdState::Purging) => Standing::Gone,
        // The ABM does not know it as ours. It forgets none that anything names: this ABM may be older than the groups
        // (restored from a backup), so what is there is made up for, and never taken for lost.
        None | Some(OsdState::Available | OsdState::Foreign) => Standing::Dead,
        Some(_) if silent == Silence::OnPurpose => Standing::Away,
        Some(_) if silent == Silence::Unexplained => Standing::Dead,
        Some(OsdState::Decommissioning | OsdState::Decommissioned) => Standing::Leaving,
        Some(OsdState::Draining) => Standing::Draining,
        Some(OsdState::Active) => match used_as {
            OsdUse::Active if wanted && takes => Standing::Takes,
            OsdUse::Active | OsdUse::Draining | OsdUse::Unlinked => Standing::Holds,
        },
    }
}

/// A view of an OSD as the registry describes it.
pub fn view(info: &OsdInfo, standing: Standing) -> OsdView {
    OsdView { node: info.place.node().clone(), standing, total: info.capacity, used: info.used }
}
