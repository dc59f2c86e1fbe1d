//! May OSDs be emptied? The check before a drain: what is left must have room for the data, and for all fragments of the
//! policies by which it is stored.

use std::collections::BTreeSet;

use alba_core::ids::{OsdId, PresetName};
use alba_core::placement::{Candidate, placeable};
use alba_core::policy::Policy;
use thiserror::Error;

/// Why a drain is refused, and what would help.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DrainRefused {
    /// One of a preset's policies in use could no longer hold all of its fragments.
    #[error(
        "preset {preset}: without these OSDs only {possible} of the {needed} fragments of policy {policy} can be placed \
         ({before} now); add {missing} OSDs on nodes that hold fewer than {} of a chunk, or drain fewer", .policy.max_per_node()
    )]
    Redundancy {
        /// Which preset.
        preset: PresetName,
        /// Which of its policies: the best one that can be satisfied now.
        policy: Policy,
        /// k + m, or as many as can be placed now.
        needed: usize,
        /// How many could be placed afterwards.
        possible: usize,
        /// How many can be placed now.
        before: usize,
        /// The difference.
        missing: usize,
    },
    /// The others have too little free space.
    #[error(
        "the OSDs that stay have {free} bytes free below {fullest_percent} %, {needed} bytes have to move there; add capacity or delete data"
    )]
    Space {
        /// Bytes on the OSDs to be emptied.
        needed: u64,
        /// Free on the others.
        free: u64,
        /// Up to which fill.
        fullest_percent: u64,
    },
}

/// No OSD is filled beyond this by a drain, in percent.
pub const FULLEST_PERCENT: u64 = 95;

/// Checks that the `leaving` OSDs can be emptied onto the other candidates without the redundancy of any preset in use
/// falling below what it is now.
pub fn check(
    candidates: &[Candidate],
    leaving: &BTreeSet<OsdId>,
    presets: &[(PresetName, Vec<Policy>)],
) -> Result<(), DrainRefused> {
    let staying = || candidates.iter().filter(|candidate| !leaving.contains(&candidate.osd));
    for (preset, policies) in presets {
        let place = |policy: &Policy, all: bool| {
            let osds = candidates.iter().filter(|c| all || !leaving.contains(&c.osd));
            placeable(osds.map(|c| (c.osd, &c.node)), policy.max_per_node()).min(policy.shape().total())
        };
        let best = policies.iter().find(|policy| place(policy, true) >= policy.min_fragments());
        let Some(policy) = best else { continue };
        let (before, possible) = (place(policy, true), place(policy, false));
        if possible < before {
            return Err(DrainRefused::Redundancy {
                preset: preset.clone(),
                policy: *policy,
                needed: policy.shape().total(),
                possible,
                before,
                missing: before - possible,
            });
        }
    }
    let needed = candidates
        .iter()
        .filter(|candidate| leaving.contains(&candidate.osd))
        .fold(0_u64, |sum, candidate| sum.saturating_add(candidate.used.get()));
    let room = |candidate: &Candidate| {
        (candidate.total.get() / 100).saturating_mul(FULLEST_PERCENT).saturating_sub(candidate.used.get())
    };
    let free = staying().map(room).fold(0_u64, u64::saturating_add);
    if needed > free {
        return Err(DrainRefused::Space { needed, free, fullest_percent: FULLEST_PERCENT });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alba_core::ids::NodeId;
    use alba_core::units::ByteCount;

    use super::*;

    fn candidates(nodes: u32, per_node: u32, used: u64) -> Vec<Candidate> {
        (0..nodes * per_node)
            .map(|id| Candidate {
                osd: OsdId::from_u32(id),
                node: NodeId::new(format!("node-{}", id / per_node)).unwrap(),
                total: ByteCount(1000),
                used: ByteCount(used),
            })
            .collect()
    }

    fn preset() -> (PresetName, Vec<Policy>) {
        let policies = [(5, 4, 8, 3), (2, 2, 3, 4)].map(|(k, m, c, x)| Policy::new(k, m, c, x).unwrap());
        (PresetName::new("default").unwrap(), policies.to_vec())
    }

    fn leaving(osds: impl IntoIterator<Item = u32>) -> BTreeSet<OsdId> {
        osds.into_iter().map(OsdId::from_u32).collect()
    }

    #[test]
    fn a_node_may_go_when_the_others_can_hold_all_fragments() {
        assert_eq!(check(&candidates(4, 3, 100), &leaving(0..3), &[preset()]), Ok(()));
    }

    #[test]
    fn a_drain_that_would_cost_redundancy_is_refused_and_says_what_is_missing() {
        let refused = check(&candidates(3, 3, 100), &leaving([0]), &[preset()]).unwrap_err();
        assert!(matches!(refused, DrainRefused::Redundancy { before: 9, possible: 8, missing: 1, .. }));
        assert!(refused.to_string().contains("add 1 OSDs"), "{refused}");
    }

    #[test]
    fn a_preset_that_cannot_be_satisfied_now_decides_nothing() {
        assert_eq!(check(&candidates(1, 2, 0), &leaving([0]), &[preset()]), Ok(()));
    }

    #[test]
    fn too_little_space_is_refused() {
        let refused = check(&candidates(4, 3, 900), &leaving(0..3), &[preset()]).unwrap_err();
        assert_eq!(refused, DrainRefused::Space { needed: 2700, free: 450, fullest_percent: 95 });
    }
}
