//! Objects whose repair failed rest before they are tried again, longer each time, so that they hold up no others. Pure.
//!
//! The ABM keeps the same, for the agent that comes after this one; what is to be told there waits here, a page at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alba_core::env::Moment;
use alba_core::ids::{NamespaceId, ObjectId};
use alba_core::wire::rpc::abm::{CARE_PAGE, FailedRepair, UnrepairedRecord, rest};

/// Objects remembered; of more the newest are tried again without a rest.
const MOST: usize = 50_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Resting {
    objects: BTreeMap<(NamespaceId, ObjectId), Rest>,
    /// Not told yet.
    failed: Vec<FailedRepair>,
    well: Vec<(NamespaceId, ObjectId)>,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    failures: u32,
    until: Moment,
}

/// What the ABM is to be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    pub(super) failed: Vec<FailedRepair>,
    pub(super) well: Vec<(NamespaceId, ObjectId)>,
}

impl Resting {
    /// Begins with what the ABM knows: it may have come from another agent. `left`: how long each is left alone yet.
    pub(super) fn load(&mut self, known: Vec<(UnrepairedRecord, Duration)>, now: Moment) {
        *self = Self::default();
        for (record, left) in known.into_iter().take(MOST) {
            let rest = Rest { failures: record.failures, until: now.plus(left) };
            self.objects.insert((record.namespace, record.object), rest);
        }
    }

    /// Its repair failed now.
    pub(super) fn failed(&mut self, namespace: NamespaceId, object: ObjectId, reason: String, now: Moment) {
        let key = (namespace, object);
        if self.objects.len() >= MOST && !self.objects.contains_key(&key) {
            return;
        }
        let of_it = self.objects.entry(key).or_insert(Rest { failures: 0, until: now });
        of_it.until = now.plus(Duration::from_micros(rest(of_it.failures)));
        of_it.failures = of_it.failures.saturating_add(1);
        self.failed.push(FailedRepair { namespace, object, reason });
    }

    /// There is nothing wrong with it any more.
    pub(super) fn well(&mut self, namespace: NamespaceId, object: ObjectId) {
        if self.objects.remove(&(namespace, object)).is_some() {
            self.well.push((namespace, object));
        }
    }

    /// Of a namespace only these are still there and not well.
    pub(super) fn only(&mut self, namespace: NamespaceId, left: &BTreeSet<ObjectId>) {
        let gone: Vec<ObjectId> = self.all_of(namespace).map(|(object, _)| object).collect();
        for object in gone.into_iter().filter(|object| !left.contains(object)) {
            self.well(namespace, object);
        }
    }

    /// Of namespaces that are gone nothing is left.
    pub(super) fn only_in(&mut self, namespaces: &BTreeSet<NamespaceId>) {
        let gone: Vec<_> =
            self.objects.keys().filter(|(namespace, _)| !namespaces.contains(namespace)).copied().collect();
        for (namespace, object) in gone {
            self.well(namespace, object);
        }
    }

    /// A page of what is to be told; none as long as it is not worth a call, unless `all` of it has to go.
    pub(super) fn news(&mut self, all: bool) -> Option<News> {
        let count = self.failed.len().max(self.well.len());
        if count == 0 || (count < CARE_PAGE && !all) {
            return None;
        }
        let failed = self.failed.drain(..CARE_PAGE.min(self.failed.len())).collect();
        let well = self.well.drain(..CARE_PAGE.min(self.well.len())).collect();
        Some(News { failed, well })
    }

    fn all_of(&self, namespace: NamespaceId) -> impl Iterator<Item = (ObjectId, Rest)> + '_ {
        let from = (namespace, ObjectId::new([0; 32]));
        let of_it = self.objects.range(from..).take_while(move |((other, _), _)| *other == namespace);
        of_it.map(|((_, object), rest)| (*object, *rest))
    }

    /// The objects of a namespace that are to be left alone now.
    pub(super) fn of(&self, namespace: NamespaceId, now: Moment) -> BTreeSet<ObjectId> {
        self.all_of(namespace).filter(|(_, rest)| now < rest.until).map(|(object, _)| object).collect()
    }

    /// All that is remembered of a namespace, also what may be tried again.
    pub(super) fn known_of(&self, namespace: NamespaceId) -> BTreeSet<ObjectId> {
        self.all_of(namespace).map(|(object, _)| object).collect()
    }

    /// OSDs have come or gone: everything may be different.
    pub(super) fn wake_all(&mut self, now: Moment) {
        for rest in self.objects.values_mut() {
            *rest = Rest { failures: 0, until: now };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NS: NamespaceId = NamespaceId::from_u32(1);
    const OBJECT: ObjectId = ObjectId::new([7; 32]);

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    fn fail(resting: &mut Resting, seconds: u64) {
        resting.failed(NS, OBJECT, "no".to_owned(), at(seconds));
    }

    #[test]
    fn rests_grow_and_end() {
        let mut resting = Resting::default();
        let rests = |resting: &Resting, seconds| resting.of(NS, at(seconds)).contains(&OBJECT);
        assert!(!rests(&resting, 0));
        fail(&mut resting, 0);
        assert!(rests(&resting, 9) && !rests(&resting, 10));
        fail(&mut resting, 10);
        assert!(rests(&resting, 29) && !rests(&resting, 30));
        for _ in 0..100 {
            fail(&mut resting, 100);
        }
        assert!(rests(&resting, 1899) && !rests(&resting, 1900));
        resting.well(NS, OBJECT);
        assert!(!rests(&resting, 100));
        fail(&mut resting, 100);
        resting.wake_all(at(101));
        assert!(!rests(&resting, 101));
        fail(&mut resting, 200);
        assert!(rests(&resting, 209) && !rests(&resting, 210), "from the beginning");
    }

    #[test]
    fn another_agent_goes_on_where_this_one_was() {
        let record = UnrepairedRecord {
            namespace: NS,
            object: OBJECT,
            failures: 3,
            at: 5,
            until: 40_000_005,
            reason: "no".to_owned(),
        };
        let mut resting = Resting::default();
        resting.load(vec![(record, Duration::from_secs(25))], at(1000));
        assert_eq!(resting.of(NS, at(1024)).len(), 1);
        assert_eq!((resting.of(NS, at(1025)).len(), resting.known_of(NS).len()), (0, 1));
        assert_eq!(resting.news(true), None, "the ABM knows");
        fail(&mut resting, 1025);
        assert_eq!(resting.of(NS, at(1104)).len(), 1, "80 s, for the fourth time");
    }

    #[test]
    fn the_abm_hears_of_failures_and_of_what_is_well_or_gone() {
        let mut resting = Resting::default();
        fail(&mut resting, 0);
        assert_eq!(resting.news(false), None, "not worth a call yet");
        let news = resting.news(true).unwrap();
        assert_eq!((news.failed.len(), news.well.len()), (1, 0));
        resting.well(NS, ObjectId::new([9; 32]));
        assert_eq!(resting.news(true), None, "it was never told of");
        resting.only(NS, &BTreeSet::from([OBJECT]));
        assert_eq!(resting.news(true), None);
        resting.only(NS, &BTreeSet::new());
        assert_eq!(resting.news(true).unwrap().well, [(NS, OBJECT)]);
        for n in 0..=u8::MAX {
            resting.failed(NS, ObjectId::new([n; 32]), String::new(), at(0));
        }
        assert_eq!(resting.news(false).unwrap().failed.len(), CARE_PAGE);
        resting.only_in(&BTreeSet::from([NS]));
        assert_eq!(resting.news(false), None);
        resting.only_in(&BTreeSet::new());
        let (mut failed, mut well) = (0, 0);
        while let Some(news) = resting.news(true) {
            (failed, well) = (failed + news.failed.len(), well + news.well.len());
        }
        assert_eq!((failed, well), (56, 256));
    }
}
