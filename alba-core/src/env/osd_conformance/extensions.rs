//! What comes with the capabilities `DeleteRange` and `ProvenGet`.

use std::collections::BTreeMap;

use super::{HIGH, Suite, key, pattern, set};
use crate::blake3_tree;
use crate::checksum::{Checksum, ChecksumAlgorithm};
use crate::env::OsdError;
use crate::env::osd::{OsdAssert, OsdKey, OsdUpdate, Priority, ProvenSlice, StoredValue, ValueSlice};
use crate::range::RangeQuery;

fn delete_range(from: &str, to: &str) -> OsdUpdate {
    OsdUpdate::DeleteRange(key(from), key(to))
}

fn with_root(value: bytes::Bytes) -> StoredValue {
    StoredValue { checksum: ChecksumAlgorithm::Blake3.of(&value), value }
}

impl Suite {
    async fn names(&self) -> Vec<String> {
        let page = self.osd.range(RangeQuery::all(), HIGH, self.deadline()).await.unwrap();
        page.items.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
    }

    pub(super) async fn ranges_are_deleted(&self) {
        let all = ["a", "b", "b\0", "ba", "c", "c\0", "d"];
        let fill = async || {
            let values = all.map(|name| set(name, pattern(if name == "ba" { 50_000 } else { 10 }, 3)));
            self.apply(vec![], values.to_vec()).await.unwrap();
        };
        let cases: [(&str, &str, &[&str]); 6] = [
            // From the first on, up to the last, which stays.
            ("b", "c", &["a", "c", "c\0", "d"]),
            // Bounds need not exist.
            ("aa", "bz", &["a", "c", "c\0", "d"]),
            ("b\0", "b\0\0", &["a", "b", "ba", "c", "c\0", "d"]),
            ("", "z", &[]),
            ("", "a", &all),
            ("e", "z", &all),
        ];
        for (from, to, left) in cases {
            fill().await;
            self.apply(vec![], vec![delete_range(from, to)]).await.unwrap();
            assert_eq!(self.names().await, left, "{from:?}..{to:?}");
            for name in all {
                let there = left.contains(&name);
                assert_eq!(self.get(name).await.is_some(), there, "{name:?} after {from:?}..{to:?}");
                let exists = self.osd.multi_exists(vec![key(name)], HIGH, self.deadline()).await;
                assert_eq!(exists, Ok(vec![there]), "{name:?} after {from:?}..{to:?}");
            }
            // Twice is once.
            self.apply(vec![], vec![delete_range(from, to)]).await.unwrap();
            assert_eq!(self.names().await, left);
        }
        let slice = ValueSlice { offset: 0, len: 1 };
        self.apply(vec![], vec![delete_range("", "z")]).await.unwrap();
        let found = self.osd.partial_get(key("ba"), vec![slice], HIGH, self.deadline()).await;
        assert_eq!(found, Ok(None));
        self.used_becomes(0).await;

        // Keys that come later into a deleted range are there, and may be deleted with it again.
        fill().await;
        self.apply(vec![], vec![delete_range("b", "c")]).await.unwrap();
        self.apply(vec![OsdAssert::Absent(key("b"))], vec![set("b", "new"), set("bb", "other")])
            .await
            .unwrap();
        assert_eq!(self.value("b").await.unwrap(), "new");
        assert_eq!(self.names().await, ["a", "b", "bb", "c", "c\0", "d"]);
        self.used_becomes(10 * 4 + 8).await;
        self.apply(vec![], vec![delete_range("b", "bb")]).await.unwrap();
        assert_eq!(self.names().await, ["a", "bb", "c", "c\0", "d"]);

        for (from, to) in [("b", "b"), ("c", "b"), ("", "")] {
            let refused = self.apply(vec![], vec![set("no", "no"), delete_range(from, to)]).await;
            assert!(matches!(refused, Err(OsdError::BadRequest(_))), "{from:?}..{to:?}: {refused:?}");
        }
        assert_eq!(self.get("no").await, None, "nothing of a refused batch happens");
        self.clear().await;
    }

    pub(super) async fn updates_are_applied_in_order(&self) {
        self.apply(vec![], vec![set("r1", "old"), set("r2", "old"), set("r3", "old")]).await.unwrap();
        // What is set after the deletion of a range survives, what is set before it does not.
        let big = pattern(40_000, 1);
        let updates = vec![
            set("r1", "before"),
            set("r4", "before"),
            delete_range("r", "s"),
            set("r2", big.clone()),
            set("r5", "after"),
            OsdUpdate::Delete(key("r5")),
        ];
        self.apply(vec![], updates).await.unwrap();
        assert_eq!(self.names().await, ["r2"]);
        assert_eq!(self.value("r2").await.unwrap(), big);
        let updates = vec![
            delete_range("r", "r3"),
            set("r1", "1"),
            set("r2", "2"),
            set("r3", "3"),
            delete_range("r2", "r9"),
            set("r3", "4"),
        ];
        self.apply(vec![], updates).await.unwrap();
        assert_eq!(self.names().await, ["r1", "r3"]);
        assert_eq!(self.value("r3").await.unwrap(), "4");
        self.clear().await;
    }

    pub(super) async fn a_deletion_of_a_range_is_of_its_batch(&self) {
        self.apply(vec![], vec![set("n", "active"), set("n1", "1"), set("n2", "2")]).await.unwrap();
        let updates = vec![delete_range("n1", "n9"), set("m", "done")];
        let wrong = OsdAssert::Value(key("n"), "other".into());
        let failed = self.apply(vec![wrong], updates.clone()).await;
        assert_eq!(failed, Err(OsdError::AssertFailed(key("n"))));
        assert_eq!(self.names().await, ["n", "n1", "n2"]);
        // Asserts are about the state before, also on what the batch deletes.
        let right =
            vec![OsdAssert::Value(key("n"), "active".into()), OsdAssert::Value(key("n2"), "2".into())];
        self.apply(right, updates).await.unwrap();
        assert_eq!(self.names().await, ["m", "n"]);
        self.apply(vec![OsdAssert::Absent(key("n1")), OsdAssert::Absent(key("n2"))], vec![]).await.unwrap();
        self.clear().await;
    }

    pub(super) async fn proven_slices(&self) {
        let get = async |name: &str, offset: u32, len: u32| -> Result<Option<ProvenSlice>, OsdError> {
            let slice = ValueSlice { offset, len };
            self.osd.proven_get(key(name), slice, Priority::Low, self.deadline()).await
        };
        for len in [0_u32, 1, 1_000, 4_096, 16_384, 16_385, 49_152, 300_001] {
            let stored = with_root(pattern(usize::try_from(len).unwrap(), u64::from(len)));
            let Checksum::Blake3(root) = stored.checksum else { unreachable!("made with one") };
            let value = stored.value.clone();
            self.apply(vec![], vec![OsdUpdate::Set(key("v"), stored)]).await.unwrap();
            let last = len.saturating_sub(1);
            let slices =
                [(0, len), (0, 0), (len, 0), (0, len.min(1)), (last, len - last), (len / 2, len / 3)];
            for (offset, slice_len) in slices {
                let slice = ValueSlice { offset, len: slice_len };
                let proven = get("v", offset, slice_len).await.unwrap().unwrap();
                let verified = blake3_tree::verify(root, len, slice, &proven);
                let (start, end) =
                    (usize::try_from(offset).unwrap(), usize::try_from(offset + slice_len).unwrap());
                assert_eq!(verified.unwrap().into_bytes(), value.slice(start..end), "{slice:?} of {len}");
            }
            for (offset, slice_len) in [(0, len + 1), (len, 1), (u32::MAX, 1), (1, u32::MAX), (len + 1, 0)] {
                let refused = get("v", offset, slice_len).await;
                assert!(matches!(refused, Err(OsdError::BadRequest(_))), "{offset}+{slice_len}: {refused:?}");
            }
        }
        assert_eq!(get("absent", 0, 1).await, Ok(None));
        for checksum in [Checksum::None, Checksum::Crc32c(1), Checksum::Sha1([1; 20])] {
            for len in [10, 60_000] {
                let stored = StoredValue { value: pattern(len, 1), checksum };
                self.apply(vec![], vec![OsdUpdate::Set(key("other"), stored)]).await.unwrap();
                let refused = get("other", 0, 1).await;
                assert!(matches!(refused, Err(OsdError::BadRequest(_))), "{checksum}: {refused:?}");
            }
        }
        self.apply(vec![], vec![OsdUpdate::Delete(key("v"))]).await.unwrap();
        assert_eq!(get("v", 0, 1).await, Ok(None));
        self.clear().await;
    }

    pub(super) async fn wrong_roots_are_refused(&self) {
        for len in [0, 10, 16_384, 100_000] {
            let sound = with_root(pattern(len, 1));
            let wrong = StoredValue { checksum: Checksum::Blake3([9; 32]), ..sound.clone() };
            let updates = vec![set("x", "x"), OsdUpdate::Set(key("w"), wrong)];
            assert_eq!(
                self.apply(vec![], updates).await,
                Err(OsdError::WrongChecksum(key("w"))),
                "{len} bytes"
            );
            assert_eq!(self.names().await, Vec::<String>::new(), "nothing of the batch happened");
            self.apply(vec![], vec![OsdUpdate::Set(key("w"), sound.clone())]).await.unwrap();
            assert_eq!(self.get("w").await, Some(sound));
            self.clear().await;
        }
    }

    /// Sum of the value sizes; the space of a deleted range may take a moment.
    async fn used_becomes(&self, expected: u64) {
        let deadline = self.deadline();
        loop {
            let used = self.osd.disk_usage(deadline).await.unwrap().used.get();
            if used == expected {
                return;
            }
            assert!(!deadline.left(self.clock.as_ref()).is_zero(), "{used} bytes used, not {expected}");
            let pause = self.clock.now().plus(std::time::Duration::from_millis(10));
            self.clock.sleep_until(pause).await;
        }
    }

    /// After random updates: exactly the model, and its space.
    pub(super) async fn equals(&self, model: &BTreeMap<OsdKey, StoredValue>) {
        let page = self.osd.range(RangeQuery::all(), HIGH, self.deadline()).await.unwrap();
        assert_eq!(page.items, model.keys().cloned().collect::<Vec<_>>());
        let used: usize = model.values().map(|stored| stored.value.len()).sum();
        self.used_becomes(u64::try_from(used).unwrap()).await;
    }
}
