//! Policies: how much redundancy an object gets, and what is enough for success (features §2.3).

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The shape of a code: k data and m parity fragments. `k > 0`, `k + m <= 255` (the field GF(2^8) has no more
/// distinct rows).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u8, u8)", into = "(u8, u8)")]
pub struct CodeShape {
    k: u8,
    m: u8,
}

impl CodeShape {
    /// Checks the limits of the code.
    pub fn new(k: u8, m: u8) -> Result<Self, PolicyError> {
        if k == 0 {
            return Err(PolicyError::NoData);
        }
        if k.checked_add(m).is_none() {
            return Err(PolicyError::TooWide { k: u32::from(k), m: u32::from(m) });
        }
        Ok(Self { k, m })
    }

    /// Data fragments.
    pub fn k(self) -> usize {
        usize::from(self.k)
    }

    /// Parity fragments.
    pub fn m(self) -> usize {
        usize::from(self.m)
    }

    /// All fragments of a chunk.
    pub fn total(self) -> usize {
        self.k() + self.m()
    }

    /// k and m as the formats carry them.
    pub fn as_u8(self) -> (u8, u8) {
        (self.k, self.m)
    }

    /// k = 1: every fragment is a copy; nothing is coded or padded.
    pub fn is_replication(self) -> bool {
        self.k == 1
    }
}

impl TryFrom<(u8, u8)> for CodeShape {
    type Error = PolicyError;
    fn try_from((k, m): (u8, u8)) -> Result<Self, PolicyError> {
        Self::new(k, m)
    }
}

impl From<CodeShape> for (u8, u8) {
    fn from(shape: CodeShape) -> (u8, u8) {
        (shape.k, shape.m)
    }
}

/// A policy (k, m, c, x): an upload succeeds once c of the k + m fragments of each chunk are stored, with at most
/// x of them on one node. `k <= c <= k + m`, `x >= 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "[u32; 4]", into = "[u32; 4]")]
pub struct Policy {
    shape: CodeShape,
    min_fragments: u8,
    max_per_node: u32,
}

/// Why four numbers are no policy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// k = 0.
    #[error("k must be at least 1: an object needs a data fragment")]
    NoData,
    /// Wider than the field allows.
    #[error("k + m is {k} + {m}, more than the 255 fragments the code can tell apart")]
    TooWide {
        /// Data fragments asked for.
        k: u32,
        /// Parity fragments asked for.
        m: u32,
    },
    /// c outside k ..= k + m.
    #[error("min_fragment_count is {c}; it must be between k = {k} and k + m = {total}")]
    MinFragments {
        /// c.
        c: u32,
        /// k.
        k: u32,
        /// k + m.
        total: u32,
    },
    /// x = 0.
    #[error("max_disks_per_node must be at least 1")]
    NoDiskPerNode,
}

impl Policy {
    /// Checks and builds (k, m, c, x).
    pub fn new(k: u32, m: u32, c: u32, x: u32) -> Result<Self, PolicyError> {
        let too_wide = PolicyError::TooWide { k, m };
        let (Ok(k8), Ok(m8)) = (u8::try_from(k), u8::try_from(m)) else { return Err(too_wide) };
        let shape = CodeShape::new(k8, m8)?;
        let total = k + m;
        let min_fragments = match u8::try_from(c) {
            Ok(min) if (k..=total).contains(&c) => min,
            _ => return Err(PolicyError::MinFragments { c, k, total }),
        };
        if x == 0 {
            return Err(PolicyError::NoDiskPerNode);
        }
        Ok(Self { shape, min_fragments, max_per_node: x })
    }

    /// k and m.
    pub fn shape(&self) -> CodeShape {
        self.shape
    }

    /// c: how many fragments of each chunk must be stored for success.
    pub fn min_fragments(&self) -> usize {
        usize::from(self.min_fragments)
    }

    /// x: how many fragments of one chunk one node may hold.
    pub fn max_per_node(&self) -> u32 {
        self.max_per_node
    }
}

impl TryFrom<[u32; 4]> for Policy {
    type Error = PolicyError;
    fn try_from([k, m, c, x]: [u32; 4]) -> Result<Self, PolicyError> {
        Self::new(k, m, c, x)
    }
}

impl From<Policy> for [u32; 4] {
    fn from(policy: Policy) -> [u32; 4] {
        let (k, m) = policy.shape.as_u8();
        [u32::from(k), u32::from(m), u32::from(policy.min_fragments), policy.max_per_node]
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [k, m, c, x] = (*self).into();
        write!(f, "({k}, {m}, {c}, {x})")
    }
}

/// What the redundancy of a stored object is: the NSM indexes and counts objects by it (features §2.3).
/// Ordered so that the weakest objects of a shape come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bucket {
    /// k and m.
    pub shape: CodeShape,
    /// The smallest number of stored fragments over the object's chunks.
    pub fragments: u32,
    /// The largest number of fragments of one chunk on one node.
    pub max_per_node: u32,
}

impl Bucket {
    /// Does an object of this bucket conform to `policy`?
    pub fn satisfies(&self, policy: &Policy) -> bool {
        self.shape == policy.shape
            && usize::try_from(self.fragments).is_ok_and(|count| count >= policy.min_fragments())
            && self.max_per_node <= policy.max_per_node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_checked_once() {
        assert!(Policy::new(5, 4, 8, 3).is_ok());
        assert_eq!(Policy::new(0, 4, 1, 1), Err(PolicyError::NoData));
        assert_eq!(Policy::new(5, 4, 4, 1), Err(PolicyError::MinFragments { c: 4, k: 5, total: 9 }));
        assert_eq!(Policy::new(5, 4, 10, 1), Err(PolicyError::MinFragments { c: 10, k: 5, total: 9 }));
        assert_eq!(Policy::new(5, 4, 5, 0), Err(PolicyError::NoDiskPerNode));
        assert_eq!(Policy::new(200, 56, 200, 1), Err(PolicyError::TooWide { k: 200, m: 56 }));
        assert!(Policy::new(1, 0, 1, 1).is_ok());
    }

    #[test]
    fn a_bucket_conforms_when_enough_fragments_are_spread_enough() {
        let policy = Policy::new(5, 4, 8, 3).unwrap();
        let bucket = |fragments, max_per_node| Bucket { shape: policy.shape(), fragments, max_per_node };
        assert!(bucket(8, 3).satisfies(&policy));
        assert!(bucket(9, 1).satisfies(&policy));
        assert!(!bucket(7, 3).satisfies(&policy));
        assert!(!bucket(9, 4).satisfies(&policy));
    }
}
