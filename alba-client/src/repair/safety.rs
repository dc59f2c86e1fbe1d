//! How safe the objects of a namespace are: exact counts of how many fragments they can still lose. Pure.

use std::collections::BTreeMap;

use alba_core::placement::placeable;
use alba_core::policy::{Bucket, CodeShape, Policy};

use super::standing::{Osds, Standing};

/// The objects of a namespace by their bucket and how many fragments of their weakest chunk are lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Safety {
    counts: BTreeMap<(Bucket, u32), u64>,
}

/// Objects that are equally safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SafetyRow {
    /// As the group counts them, lost fragments included.
    pub bucket: Bucket,
    /// How many they are.
    pub count: u64,
    /// Fragments of their weakest chunk that are on dead OSDs.
    pub lost: u32,
    /// How many more it can lose; below 0 it cannot be read.
    pub remaining: i64,
}

impl Safety {
    /// Of the group's counters: nothing is lost yet.
    pub fn new(buckets: &[(Bucket, u64)]) -> Self {
        let counted = buckets.iter().filter(|(_, count)| *count > 0);
        Self { counts: counted.map(|(bucket, count)| ((*bucket, 0), *count)).collect() }
    }

    /// An object of this bucket is known to have lost fragments: `remaining` are left to lose.
    pub fn lost(&mut self, bucket: Bucket, remaining: i64) {
        let whole = left(&bucket, 0);
        let Ok(lost) = u32::try_from(whole - remaining) else { return };
        if lost == 0 {
            return;
        }
        // Counters and objects may be read a moment apart: never below zero.
        if let Some(count) = self.counts.get_mut(&(bucket, 0)) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&(bucket, 0));
            }
        }
        *self.counts.entry((bucket, lost)).or_default() += 1;
    }

    /// The rows, the least safe ones first.
    pub fn rows(&self) -> Vec<SafetyRow> {
        let row = |(&(bucket, lost), &count): (&(Bucket, u32), &u64)| SafetyRow {
            bucket,
            count,
            lost,
            remaining: left(&bucket, lost),
        };
        let mut rows: Vec<SafetyRow> = self.counts.iter().map(row).collect();
        rows.sort_by_key(|row| (row.remaining, row.bucket, row.lost));
        rows
    }

    /// How many more fragments the weakest object can lose, and how many objects are as weak; none without objects.
    pub fn least(&self) -> Option<(i64, u64)> {
        let rows = self.rows();
        let least = rows.first()?.remaining;
        Some((least, rows.iter().take_while(|row| row.remaining == least).map(|row| row.count).sum()))
    }

    /// How many objects are below their policy: they have fewer fragments on live OSDs than could be there if all OSDs of the
    /// namespace were well (invariant 6 of the design).
    pub fn below_policy(&self, policies: &[Policy], osds: &Osds) -> u64 {
        let below = |row: &SafetyRow| {
            let k = i64::from(row.bucket.shape.as_u8().0);
            row.remaining + k < i64::try_from(expected(row.bucket, policies, osds)).unwrap_or(i64::MAX)
        };
        self.rows().iter().filter(|row| below(row)).map(|row| row.count).sum()
    }
}

fn left(bucket: &Bucket, lost: u32) -> i64 {
    i64::from(bucket.fragments) - i64::from(lost) - i64::from(bucket.shape.as_u8().0)
}

/// min(k + m, Σ over nodes of min(x, OSDs registered there)).
fn expected(bucket: Bucket, policies: &[Policy], osds: &Osds) -> usize {
    let shape: CodeShape = bucket.shape;
    let policy = policies.iter().find(|policy| policy.shape() == shape);
    // Of a code that is no policy's any more: as its objects are spread.
    let max_per_node = policy.map_or(bucket.max_per_node.max(1), Policy::max_per_node);
    let registered = osds
        .iter()
        .filter(|(_, view)| !matches!(view.standing, Standing::Leaving | Standing::Gone))
        .map(|(osd, view)| (osd, &view.node));
    placeable(registered, max_per_node).min(shape.total())
}

#[cfg(test)]
mod tests {
    use alba_core::ids::{NodeId, OsdId};
    use alba_core::units::ByteCount;

    use super::super::standing::OsdView;
    use super::*;

    fn bucket(fragments: u32) -> Bucket {
        Bucket { shape: CodeShape::new(5, 4).unwrap(), fragments, max_per_node: 3 }
    }

    fn osds(count: u32, standing: Standing) -> Osds {
        let of = |id: u32| {
            let node = NodeId::new(format!("node-{}", id % 4)).unwrap();
            (OsdId::from_u32(id), OsdView { node, standing, total: ByteCount(1), used: ByteCount(0) })
        };
        (0..count).map(of).collect()
    }

    #[test]
    fn losses_are_counted_exactly() {
        let mut safety = Safety::new(&[(bucket(9), 10), (bucket(8), 2), (bucket(7), 0)]);
        assert_eq!(safety.least(), Some((3, 2)));
        for remaining in [1, 1, 2, 4] {
            safety.lost(bucket(9), remaining);
        }
        safety.lost(bucket(8), 1);
        let rows: Vec<_> =
            safety.rows().iter().map(|r| (r.bucket.fragments, r.lost, r.remaining, r.count)).collect();
        assert_eq!(rows, [(8, 2, 1, 1), (9, 3, 1, 2), (9, 2, 2, 1), (8, 0, 3, 1), (9, 0, 4, 7)]);
        assert_eq!(safety.least(), Some((1, 3)));
        assert_eq!(Safety::default().least(), None);
        safety.lost(bucket(9), -2);
        assert_eq!(safety.least(), Some((-2, 1)));
    }

    #[test]
    fn below_policy_is_what_registered_osds_could_hold() {
        let policies = [Policy::new(5, 4, 8, 3).unwrap()];
        let mut safety = Safety::new(&[(bucket(9), 10), (bucket(8), 2)]);
        safety.lost(bucket(9), 3);
        assert_eq!(safety.below_policy(&policies, &osds(12, Standing::Takes)), 3);
        // Silent ones are registered all the same: nothing is healthy because its OSDs are gone.
        assert_eq!(safety.below_policy(&policies, &osds(12, Standing::Dead)), 3);
        assert_eq!(safety.below_policy(&policies, &osds(8, Standing::Takes)), 0);
        assert_eq!(safety.below_policy(&policies, &osds(0, Standing::Takes)), 0);
    }
}
