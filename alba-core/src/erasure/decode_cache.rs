//! Prepared decode matrices of the losses met lately. A lost OSD gives every chunk of an object the same loss, so the
//! same inverse serves thousands of times; the cache is bounded and forgets the least recently used.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::kernel::Coefficients;

/// Which fragments are used and which are made from them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Loss {
    /// The k used, in the order in which they are given to the kernel.
    pub(super) chosen: Vec<u8>,
    /// The ones to make.
    pub(super) wanted: Vec<u8>,
}

/// A matrix takes k × wanted × 41 bytes: 4 of 16 some 2.6 KiB, the widest possible some 660 KiB; 64 of the usual ones
/// take less than 200 KiB per shape.
const CAPACITY: usize = 64;

/// The most a single matrix may take to be kept, in coefficients.
const LARGEST: usize = 4096;

#[derive(Default)]
pub(super) struct DecodeCache(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    /// Grows with each use; 2^64 uses do not happen.
    clock: u64,
    matrices: BTreeMap<Loss, (u64, Arc<Coefficients>)>,
}

impl DecodeCache {
    /// The matrix of this loss, made when it is not there. Two threads may both make it: they make the same.
    pub(super) fn get_or_make(
        &self,
        loss: Loss,
        make: impl FnOnce(&Loss) -> Option<Coefficients>,
    ) -> Option<Arc<Coefficients>> {
        if let Some(found) = self.entries().touch(&loss) {
            return Some(found);
        }
        let made = Arc::new(make(&loss)?);
        if made.rows() * made.columns() <= LARGEST {
            self.entries().insert(loss, Arc::clone(&made));
        }
        Some(made)
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        // What it holds is never half changed: a poisoned lock is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn touch(&mut self, loss: &Loss) -> Option<Arc<Coefficients>> {
        self.clock += 1;
        let (used, matrix) = self.matrices.get_mut(loss)?;
        *used = self.clock;
        Some(Arc::clone(matrix))
    }

    fn insert(&mut self, loss: Loss, matrix: Arc<Coefficients>) {
        if self.matrices.len() >= CAPACITY && !self.matrices.contains_key(&loss) {
            let oldest =
                self.matrices.iter().min_by_key(|(_, (used, _))| *used).map(|(loss, _)| loss.clone());
            if let Some(oldest) = oldest {
                self.matrices.remove(&oldest);
            }
        }
        self.clock += 1;
        self.matrices.insert(loss, (self.clock, matrix));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(n: u8) -> Loss {
        Loss { chosen: vec![n], wanted: vec![0] }
    }

    fn fill(cache: &DecodeCache, n: u8, made: &mut u32) {
        cache
            .get_or_make(loss(n), |_| {
                *made += 1;
                Some(Coefficients::new(&[[n]]))
            })
            .unwrap();
    }

    #[test]
    fn the_least_recently_used_is_forgotten() {
        let cache = DecodeCache::default();
        let mut made = 0;
        (0..64).for_each(|n| fill(&cache, n, &mut made));
        fill(&cache, 0, &mut made);
        assert_eq!(made, 64, "all were kept");
        fill(&cache, 64, &mut made);
        fill(&cache, 0, &mut made);
        assert_eq!(made, 65, "0 was used after 1");
        fill(&cache, 1, &mut made);
        assert_eq!(made, 66, "1 had to go");
        assert_eq!(cache.entries().matrices.len(), CAPACITY);
    }

    #[test]
    fn a_matrix_too_large_is_not_kept() {
        let cache = DecodeCache::default();
        let large = || Some(Coefficients::new(&vec![vec![1; 100]; 100]));
        cache.get_or_make(loss(1), |_| large()).unwrap();
        assert!(cache.entries().matrices.is_empty());
    }
}
