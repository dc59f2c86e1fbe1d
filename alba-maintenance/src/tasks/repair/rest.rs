//! Objects whose repair failed rest before they are tried again, longer each time, so that they hold up no others. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alba_core::env::Moment;
use alba_core::ids::{NamespaceId, ObjectId};

/// First rest; doubles up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(10);

/// Longest rest.
const LONGEST: Duration = Duration::from_secs(1800);

/// Objects remembered; of more the newest are tried again without a rest.
const MOST: usize = 50_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Resting {
    objects: BTreeMap<(NamespaceId, ObjectId), (u32, Moment)>,
}

impl Resting {
    /// Its repair failed now.
    pub(super) fn failed(&mut self, namespace: NamespaceId, object: ObjectId, now: Moment) {
        let key = (namespace, object);
        if self.objects.len() >= MOST && !self.objects.contains_key(&key) {
            return;
        }
        let (failures, until) = self.objects.entry(key).or_insert((0, now));
        *until = now.plus(FIRST.saturating_mul(1 << (*failures).min(10)).min(LONGEST));
        *failures = failures.saturating_add(1);
    }

    /// There is nothing wrong with it any more.
    pub(super) fn well(&mut self, namespace: NamespaceId, object: ObjectId) {
        self.objects.remove(&(namespace, object));
    }

    /// The objects of a namespace that are to be left alone now.
    pub(super) fn of(&self, namespace: NamespaceId, now: Moment) -> BTreeSet<ObjectId> {
        let from = (namespace, ObjectId::new([0; 32]));
        let of_it = self.objects.range(from..).take_while(|((other, _), _)| *other == namespace);
        of_it.filter(|(_, (_, until))| now < *until).map(|((_, object), _)| *object).collect()
    }

    /// OSDs have come or gone: everything may be different.
    pub(super) fn wake_all(&mut self) {
        self.objects.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_and_end() {
        let mut resting = Resting::default();
        let (namespace, object) = (NamespaceId::from_u32(1), ObjectId::new([7; 32]));
        let at = |seconds| Moment(Duration::from_secs(seconds));
        let rests = |resting: &Resting, seconds| resting.of(namespace, at(seconds)).contains(&object);
        assert!(!rests(&resting, 0));
        resting.failed(namespace, object, at(0));
        assert!(rests(&resting, 9) && !rests(&resting, 10));
        resting.failed(namespace, object, at(10));
        assert!(rests(&resting, 29) && !rests(&resting, 30));
        for _ in 0..100 {
            resting.failed(namespace, object, at(100));
        }
        assert!(rests(&resting, 1899) && !rests(&resting, 1900));
        resting.well(namespace, object);
        assert!(!rests(&resting, 100));
        resting.failed(namespace, object, at(100));
        resting.wake_all();
        assert!(!rests(&resting, 100));
    }
}
