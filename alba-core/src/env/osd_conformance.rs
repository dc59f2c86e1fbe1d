//! What every [`Osd`] must do, as code: the in-memory model, the real engine and the real server behind a connection
//! run it.
#![allow(clippy::unwrap_used, reason = "a suite of assertions")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::osd::{OsdAssert, OsdBatch, OsdKey, OsdUpdate, Priority, StoredValue, ValueSlice};
use super::{Clock, Deadline, Osd, OsdError};
use crate::checksum::{Checksum, ChecksumAlgorithm};
use crate::range::{PAGE_MAX, RangeQuery};

mod extensions;

const HIGH: Priority = Priority::High;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(20);

/// Runs all of it on an empty OSD with room for some tens of MiB. Panics on the first deviation.
pub async fn run(osd: Arc<dyn Osd>, clock: Arc<dyn Clock>) {
    let suite = Suite { osd, clock };
    suite.empty().await;
    suite.values_of_all_sizes().await;
    suite.checksums_are_kept_not_checked().await;
    suite.asserts().await;
    suite.the_last_update_of_a_key_counts().await;
    suite.batches_are_all_or_nothing().await;
    suite.slices().await;
    suite.ranges().await;
    suite.usage().await;
    suite.concurrent_claims().await;
    suite.against_a_map(7, false).await;
}

/// What an OSD with the capabilities `DeleteRange` and `ProvenGet` must do besides, on an empty one.
pub async fn run_extensions(osd: Arc<dyn Osd>, clock: Arc<dyn Clock>) {
    let suite = Suite { osd, clock };
    suite.ranges_are_deleted().await;
    suite.updates_are_applied_in_order().await;
    suite.a_deletion_of_a_range_is_of_its_batch().await;
    suite.proven_slices().await;
    suite.wrong_roots_are_refused().await;
    suite.against_a_map(8, true).await;
}

struct Suite {
    osd: Arc<dyn Osd>,
    clock: Arc<dyn Clock>,
}

/// Bytes that differ from block to block.
fn pattern(len: usize, salt: u64) -> Bytes {
    let mut bytes = vec![0; len];
    rand::Rng::fill_bytes(&mut StdRng::seed_from_u64(salt), &mut bytes);
    bytes.into()
}

fn key(text: &str) -> OsdKey {
    OsdKey::copy_from_slice(text.as_bytes())
}

fn stored(value: impl Into<Bytes>) -> StoredValue {
    let value = value.into();
    StoredValue { checksum: ChecksumAlgorithm::Crc32c.of(&value), value }
}

fn set(name: &str, value: impl Into<Bytes>) -> OsdUpdate {
    OsdUpdate::Set(key(name), stored(value))
}

impl Suite {
    fn deadline(&self) -> Deadline {
        Deadline::after(self.clock.as_ref(), CALL)
    }

    async fn apply(&self, asserts: Vec<OsdAssert>, updates: Vec<OsdUpdate>) -> Result<(), OsdError> {
        self.osd.apply(OsdBatch { asserts, updates }, HIGH, self.deadline()).await
    }

    async fn get(&self, name: &str) -> Option<StoredValue> {
        let keys = vec![key(name)];
        self.osd.multi_get(keys, HIGH, self.deadline()).await.unwrap().pop().unwrap()
    }

    async fn value(&self, name: &str) -> Option<Bytes> {
        self.get(name).await.map(|stored| stored.value)
    }

    async fn clear(&self) {
        loop {
            let page = self.osd.range(RangeQuery::all(), HIGH, self.deadline()).await.unwrap();
            if page.items.is_empty() {
                return;
            }
            let deletes = page.items.into_iter().map(OsdUpdate::Delete).collect();
            self.apply(vec![], deletes).await.unwrap();
        }
    }

    async fn empty(&self) {
        assert_eq!(self.get("absent").await, None);
        assert!(self.osd.multi_get(vec![], HIGH, self.deadline()).await.unwrap().is_empty());
        let page = self.osd.range(RangeQuery::all(), HIGH, self.deadline()).await.unwrap();
        assert!(page.items.is_empty() && !page.has_more);
        self.apply(vec![], vec![]).await.unwrap();
        self.apply(vec![], vec![OsdUpdate::Delete(key("absent"))]).await.unwrap();
    }

    async fn values_of_all_sizes(&self) {
        let sizes = [0, 1, 15, 4095, 4096, 4097, 8192, 16_383, 16_384, 65_537, 1 << 20, (4 << 20) + 3];
        for (salt, size) in (0_u64..).zip(sizes) {
            self.apply(vec![], vec![set(&format!("size {size}"), pattern(size, salt))]).await.unwrap();
        }
        let keys: Vec<OsdKey> = sizes.iter().map(|size| key(&format!("size {size}"))).collect();
        let found = self.osd.multi_get(keys.clone(), Priority::Low, self.deadline()).await.unwrap();
        for (salt, (size, found)) in (0_u64..).zip(sizes.into_iter().zip(found)) {
            assert_eq!(found.unwrap(), stored(pattern(size, salt)), "{size} bytes");
        }
        let mut asked = vec![key("absent")];
        asked.extend(keys);
        let found = self.osd.multi_exists(asked, HIGH, self.deadline()).await.unwrap();
        assert_eq!(found.len(), sizes.len() + 1);
        assert!(!found[0] && found[1..].iter().all(|present| *present));
        // The empty key is one like any other.
        self.apply(vec![], vec![set("", "empty key")]).await.unwrap();
        assert_eq!(self.value("").await.unwrap(), "empty key");
        self.clear().await;
    }

    async fn checksums_are_kept_not_checked(&self) {
        let checksums =
            [Some(Checksum::None), Some(Checksum::Crc32c(12)), Some(Checksum::Sha1([3; 20])), None];
        for checksum in checksums {
            for len in [3, 100_000] {
                let value = pattern(len, 1);
                // Of BLAKE3 only the right one, since an OSD may check it.
                let checksum = checksum.unwrap_or_else(|| ChecksumAlgorithm::Blake3.of(&value));
                let stored = StoredValue { value, checksum };
                self.apply(vec![], vec![OsdUpdate::Set(key("c"), stored.clone())]).await.unwrap();
                assert_eq!(self.get("c").await.unwrap(), stored);
            }
        }
        self.clear().await;
    }

    async fn asserts(&self) {
        let big = pattern(100_000, 4);
        self.apply(vec![OsdAssert::Absent(key("a"))], vec![set("a", "1"), set("big", big.clone())])
            .await
            .unwrap();
        let refused = |name: &str| Err(OsdError::AssertFailed(key(name)));
        let value = |name: &str, value: &Bytes| OsdAssert::Value(key(name), value.clone());
        let one = Bytes::from_static(b"1");
        let wrong = [
            OsdAssert::Absent(key("a")),
            OsdAssert::Absent(key("big")),
            value("a", &Bytes::from_static(b"2")),
            value("a", &Bytes::new()),
            value("absent", &one),
            value("big", &pattern(100_000, 5)),
            value("big", &big.slice(1..)),
        ];
        for assert in wrong {
            let name = String::from_utf8(assert.key().to_vec()).unwrap();
            let result = self.apply(vec![value("a", &one), assert.clone()], vec![set("b", "no")]).await;
            assert_eq!(result, refused(&name), "{assert:?}");
        }
        assert_eq!(self.get("b").await, None);
        let right = vec![value("a", &one), value("big", &big), OsdAssert::Absent(key("b"))];
        // All asserts are about the state before the batch's own updates.
        self.apply(right, vec![set("a", "2"), set("b", "yes")]).await.unwrap();
        assert_eq!(self.value("a").await.unwrap(), "2");
        // A batch of asserts only is a question.
        assert_eq!(self.apply(vec![value("a", &one)], vec![]).await, refused("a"));
        self.apply(vec![value("b", &Bytes::from_static(b"yes"))], vec![]).await.unwrap();
        self.clear().await;
    }

    async fn the_last_update_of_a_key_counts(&self) {
        let delete = OsdUpdate::Delete(key("x"));
        self.apply(vec![], vec![set("x", "1"), delete.clone(), set("x", "2")]).await.unwrap();
        assert_eq!(self.value("x").await.unwrap(), "2");
        self.apply(vec![], vec![set("x", "3"), delete]).await.unwrap();
        assert_eq!(self.get("x").await, None);
    }

    async fn batches_are_all_or_nothing(&self) {
        self.apply(vec![], vec![set("kept", "old")]).await.unwrap();
        let updates =
            vec![set("new", pattern(70_000, 1)), set("kept", "new"), OsdUpdate::Delete(key("gone"))];
        let failed = self.apply(vec![OsdAssert::Absent(key("kept"))], updates.clone()).await;
        assert_eq!(failed, Err(OsdError::AssertFailed(key("kept"))));
        assert_eq!((self.value("kept").await.unwrap(), self.get("new").await), ("old".into(), None));
        self.apply(vec![], updates).await.unwrap();
        assert_eq!(self.value("kept").await.unwrap(), "new");
        assert_eq!(self.value("new").await.unwrap(), pattern(70_000, 1));
        self.clear().await;
    }

    async fn slices(&self) {
        for len in [10_u32, 4_096, 10_000, 300_000] {
            let value = pattern(usize::try_from(len).unwrap(), u64::from(len));
            self.apply(vec![], vec![set("v", value.clone())]).await.unwrap();
            let slices: Vec<ValueSlice> =
                [(0, 1), (len - 1, 1), (0, len), (len / 2, len / 3), (7, 0), (len, 0)]
                    .map(|(offset, len)| ValueSlice { offset, len })
                    .to_vec();
            let found = self.osd.partial_get(key("v"), slices.clone(), HIGH, self.deadline()).await;
            for (slice, found) in slices.into_iter().zip(found.unwrap().unwrap()) {
                let start = usize::try_from(slice.offset).unwrap();
                let end = start + usize::try_from(slice.len).unwrap();
                assert_eq!(found, value.slice(start..end), "{slice:?} of {len}");
            }
            for (offset, len) in [(0, len + 1), (len, 1), (u32::MAX, 1), (1, u32::MAX)] {
                let outside = vec![ValueSlice { offset: 0, len: 1 }, ValueSlice { offset, len }];
                let refused = self.osd.partial_get(key("v"), outside, HIGH, self.deadline()).await;
                assert!(
                    matches!(refused, Err(OsdError::BadRequest(_) | OsdError::Connection(_))),
                    "{offset}+{len}: {refused:?}"
                );
            }
        }
        let slice = vec![ValueSlice { offset: 0, len: 1 }];
        assert_eq!(self.osd.partial_get(key("absent"), slice, HIGH, self.deadline()).await, Ok(None));
        self.clear().await;
    }

    async fn ranges(&self) {
        let names: Vec<String> = (0..PAGE_MAX + 5).map(|n| format!("r{n:04}")).collect();
        self.apply(vec![], names.iter().map(|name| set(name, name.clone())).collect()).await.unwrap();
        let page = async |query: &RangeQuery| {
            let page = self.osd.range(query.clone(), HIGH, self.deadline()).await.unwrap();
            let names = page.items.iter().map(|key| String::from_utf8(key.to_vec()).unwrap());
            (names.collect::<Vec<String>>(), page.has_more)
        };
        let (first, more) = page(&RangeQuery::all()).await;
        assert_eq!((first.as_slice(), more), (&names[..PAGE_MAX], true));
        let (rest, more) = page(&RangeQuery::all().after(first[PAGE_MAX - 1].as_bytes())).await;
        assert_eq!((rest.as_slice(), more), (&names[PAGE_MAX..], false));

        let bounded = RangeQuery {
            first: b"r0001".to_vec(),
            first_included: false,
            last: Some((b"r0004".to_vec(), true)),
            reverse: false,
            max: -1,
        };
        assert_eq!(page(&bounded).await, (names[2..=4].to_vec(), false));
        let backwards = RangeQuery { reverse: true, max: 2, ..bounded.clone() };
        assert_eq!(page(&backwards).await, (vec![names[4].clone(), names[3].clone()], true));
        assert_eq!(page(&RangeQuery { max: 3, ..bounded.clone() }).await, (names[2..=4].to_vec(), false));
        assert_eq!(page(&RangeQuery { max: 0, ..bounded.clone() }).await, (vec![], true));
        let nothing = RangeQuery { first: b"s".to_vec(), max: 0, ..RangeQuery::all() };
        assert_eq!(page(&nothing).await, (vec![], false));
        let inverted = RangeQuery { first: b"r0009".to_vec(), ..bounded };
        assert_eq!(page(&inverted).await, (vec![], false));
        self.clear().await;
    }

    async fn usage(&self) {
        let used = async || self.osd.disk_usage(self.deadline()).await.unwrap().used.get();
        assert_eq!(used().await, 0, "all was deleted");
        self.apply(vec![], vec![set("small", "12345"), set("big", pattern(50_000, 0))]).await.unwrap();
        assert_eq!(used().await, 50_005);
        self.apply(vec![], vec![set("big", pattern(60_000, 0)), OsdUpdate::Delete(key("small"))])
            .await
            .unwrap();
        assert_eq!(used().await, 60_000);
        self.clear().await;
        assert_eq!(used().await, 0);
    }

    /// Many claim one key at once: exactly one gets it.
    async fn concurrent_claims(&self) {
        let claim = async |n: usize| {
            let value = pattern(20_000, u64::try_from(n).unwrap());
            self.apply(vec![OsdAssert::Absent(key("claimed"))], vec![set("claimed", value)]).await
        };
        let (a, b, c, d) = tokio::join!(claim(0), claim(1), claim(2), claim(3));
        let winners: Vec<usize> = [a, b, c, d]
            .into_iter()
            .enumerate()
            .filter_map(|(n, result)| match result {
                Ok(()) => Some(n),
                Err(OsdError::AssertFailed(_)) => None,
                Err(other) => unreachable_error(&other),
            })
            .collect();
        assert_eq!(winners.len(), 1);
        let value = pattern(20_000, u64::try_from(winners[0]).unwrap());
        assert_eq!(self.value("claimed").await.unwrap(), value);
        self.clear().await;
    }

    async fn against_a_map(&self, seed: u64, with_ranges: bool) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut model: BTreeMap<OsdKey, StoredValue> = BTreeMap::new();
        let any_key = |rng: &mut StdRng| key(&format!("m{}", rng.random_range(0..12)));
        for step in 0..150 {
            let mut asserts = Vec::new();
            if rng.random_bool(0.5) {
                let asked = any_key(&mut rng);
                asserts.push(match model.get(&asked) {
                    Some(stored) if rng.random_bool(0.8) => OsdAssert::Value(asked, stored.value.clone()),
                    _ => OsdAssert::Absent(asked),
                });
            }
            let mut updates = Vec::new();
            for _ in 0..rng.random_range(1..4) {
                let chosen = any_key(&mut rng);
                let size = [0, 10, 5_000, 40_000][rng.random_range(0..4)];
                updates.push(if with_ranges && rng.random_bool(0.2) {
                    // Some are empty of keys, none is empty.
                    let to = [any_key(&mut rng), key("n"), [&chosen[..], &[0]].concat().into()]
                        .into_iter()
                        .find(|to| *to > chosen);
                    OsdUpdate::DeleteRange(chosen, to.unwrap_or_else(|| key("n")))
                } else if rng.random_bool(0.3) {
                    OsdUpdate::Delete(chosen)
                } else {
                    OsdUpdate::Set(chosen, stored(pattern(size, rng.random())))
                });
            }
            let expected = asserts.iter().all(|assert| match assert {
                OsdAssert::Absent(asked) => !model.contains_key(asked),
                OsdAssert::Value(asked, value) => model.get(asked).map(|s| &s.value) == Some(value),
            });
            assert_eq!(self.apply(asserts, updates.clone()).await.is_ok(), expected, "step {step}");
            if expected {
                for update in updates {
                    match update {
                        OsdUpdate::Set(chosen, stored) => drop(model.insert(chosen, stored)),
                        OsdUpdate::Delete(chosen) => drop(model.remove(&chosen)),
                        OsdUpdate::DeleteRange(from, to) => model.retain(|key, _| *key < from || *key >= to),
                        OsdUpdate::SetFromPeer(..) => unreachable!("not in this suite"),
                    }
                }
            }
            let asked = any_key(&mut rng);
            let found = self.osd.multi_get(vec![asked.clone()], HIGH, self.deadline()).await.unwrap();
            assert_eq!(found, [model.get(&asked).cloned()], "step {step}");
        }
        self.equals(&model).await;
        self.clear().await;
    }
}

#[allow(clippy::panic, reason = "a suite of assertions")]
fn unreachable_error(error: &OsdError) -> ! {
    panic!("a claim may only fail by its assert, not with {error}")
}
