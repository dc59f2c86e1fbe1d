//! Objects in trouble as agents tell of them, and planned work as operators do. All times are the ABM's own, in microseconds: whoever
//! asks hears what time it is there, and compares with that and not with a clock of its own.

use serde::{Deserialize, Serialize};

use crate::ids::{LongId, NamespaceId, NodeId, ObjectId};

/// Longest maintenance window, in microseconds: 30 days. It ends by itself, so that work that was forgotten does not leave data without
/// repair for good.
pub const WINDOW_MAX: u64 = 30 * 86_400 * 1_000_000;

/// Most maintenance windows at a time.
pub const WINDOWS_MAX: usize = 200;

/// Longest reason that is kept, in characters.
pub const REASON_MAX: usize = 200;

/// Most objects remembered whose repair failed. What does not fit is tried again without a rest.
pub const UNREPAIRED_MAX: u64 = 50_000;

/// Most objects, or namespaces, that one command tells of.
pub const CARE_PAGE: usize = 200;

/// First rest of an object whose repair failed, in microseconds; it doubles up to [`LONGEST_REST`].
const FIRST_REST: u64 = 10 * 1_000_000;

/// Longest rest, in microseconds.
const LONGEST_REST: u64 = 1800 * 1_000_000;

/// How long an object rests (microseconds) whose repair failed, and had failed so often before.
pub fn rest(failures: u32) -> u64 {
    FIRST_REST.saturating_mul(1 << failures.min(10)).min(LONGEST_REST)
}

/// What is away on purpose.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WindowTarget {
    /// All OSDs of a node.
    Node(NodeId),
    /// One OSD.
    Osd(LongId),
}

/// A time for which something is away on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowRecord {
    /// What.
    pub target: WindowTarget,
    /// Why, for people.
    pub reason: String,
    /// When it began.
    pub since: u64,
    /// When it ends.
    pub until: u64,
}

impl WindowRecord {
    /// Is this OSD away on purpose?
    pub fn covers(&self, long_id: &LongId, node: &NodeId) -> bool {
        match &self.target {
            WindowTarget::Node(target) => target == node,
            WindowTarget::Osd(target) => target == long_id,
        }
    }
}

/// What a survey of a namespace found, counted exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SurveyCounts {
    /// Objects below their policy.
    pub below_policy: u64,
    /// Objects that can be improved now.
    pub repairable: u64,
    /// Objects that cannot be repaired as things are.
    pub unrepairable: u64,
    /// Objects below their policy that are left alone because of OSDs that are away on purpose.
    pub left_alone: u64,
    /// How many more fragments the weakest objects can lose, and how many are as weak; none without objects.
    pub least: Option<(i64, u64)>,
}

/// The last survey of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SurveyRecord {
    /// Which.
    pub namespace: NamespaceId,
    /// When it was told of.
    pub at: u64,
    /// What it found.
    pub counts: SurveyCounts,
}

/// An object whose repair failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRepair {
    /// Of which namespace.
    pub namespace: NamespaceId,
    /// Which.
    pub object: ObjectId,
    /// Why.
    pub reason: String,
}

/// The same, as the ABM keeps it until the object is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnrepairedRecord {
    /// Of which namespace.
    pub namespace: NamespaceId,
    /// Which.
    pub object: ObjectId,
    /// How often, since OSDs came or went.
    pub failures: u32,
    /// When it failed last.
    pub at: u64,
    /// Until when it is left alone.
    pub until: u64,
    /// Why.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_double_up_to_half_an_hour() {
        let seconds: Vec<u64> = (0..4).map(|failures| rest(failures) / 1_000_000).collect();
        assert_eq!(seconds, [10, 20, 40, 80]);
        assert_eq!((rest(8), rest(u32::MAX)), (LONGEST_REST, LONGEST_REST));
    }

    #[test]
    fn a_window_covers_its_osd_or_all_of_its_node() {
        let (node, other) = (NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
        let (osd, another) = (LongId::new("x").unwrap(), LongId::new("y").unwrap());
        let of = |target| WindowRecord { target, reason: String::new(), since: 0, until: 1 };
        let whole = of(WindowTarget::Node(node.clone()));
        assert!(whole.covers(&osd, &node) && whole.covers(&another, &node) && !whole.covers(&osd, &other));
        let one = of(WindowTarget::Osd(osd.clone()));
        assert!(one.covers(&osd, &other) && !one.covers(&another, &node));
    }
}
