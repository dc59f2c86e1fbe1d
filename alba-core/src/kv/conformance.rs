//! What every [`Kv`] must do, as code. Each implementation runs it in its tests.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a suite of assertions")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Durability, KEY_MAX, Kv, KvError, KvRead, WriteBatch};

/// Runs all of it; `fresh` gives an empty store each time. Panics on the first deviation.
pub fn run<K: Kv>(fresh: impl Fn() -> Arc<K>) {
    points(fresh().as_ref());
    scans(fresh().as_ref());
    atomic_batches(fresh().as_ref());
    snapshots(fresh().as_ref());
    refused_keys(fresh().as_ref());
    for seed in 0..3 {
        against_a_map(fresh().as_ref(), seed);
    }
}

/// A store reopened with `open` holds what was synced. The store must be closed when its last handle is dropped.
pub fn reopen<K: Kv>(open: impl Fn() -> Arc<K>) {
    let kv = open();
    put(kv.as_ref(), "synced with the batch", "1", Durability::Sync);
    put(kv.as_ref(), "synced afterwards", "2", Durability::Eventual);
    kv.sync().unwrap();
    put(kv.as_ref(), "deleted", "3", Durability::Sync);
    let mut batch = WriteBatch::default();
    batch.delete("deleted");
    kv.commit(batch, Durability::Sync).unwrap();
    drop(kv);
    let kv = open();
    assert_eq!(kv.get(b"synced with the batch").unwrap().unwrap(), b"1");
    assert_eq!(kv.get(b"synced afterwards").unwrap().unwrap(), b"2");
    assert_eq!(kv.get(b"deleted").unwrap(), None);
}

fn put(kv: &impl Kv, key: &str, value: &str, durability: Durability) {
    let mut batch = WriteBatch::default();
    batch.put(key, value);
    kv.commit(batch, durability).unwrap();
}

fn keys(view: &(impl KvRead + ?Sized), lower: Bound<&[u8]>, upper: Bound<&[u8]>, reverse: bool) -> String {
    let entries = view.scan(lower, upper, reverse, usize::MAX).unwrap();
    entries.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect()
}

fn points(kv: &impl Kv) {
    assert_eq!(kv.get(b"a").unwrap(), None);
    put(kv, "a", "1", Durability::Sync);
    assert_eq!(kv.get(b"a").unwrap().unwrap(), b"1");
    put(kv, "a", "", Durability::Eventual);
    assert_eq!(kv.get(b"a").unwrap().unwrap(), b"", "an empty value is a value");
    let mut batch = WriteBatch::default();
    batch.delete("a");
    batch.delete("never there");
    kv.commit(batch, Durability::Eventual).unwrap();
    assert_eq!(kv.get(b"a").unwrap(), None);
    assert_eq!(kv.get(b"").unwrap(), None, "the empty key may be asked for");
    kv.commit(WriteBatch::default(), Durability::Sync).unwrap();
    kv.sync().unwrap();
}

fn scans(kv: &impl Kv) {
    use Bound::{Excluded, Included, Unbounded};
    for key in ["b", "d", "f", "bb"] {
        put(kv, key, key, Durability::Eventual);
    }
    type Case = (Bound<&'static [u8]>, Bound<&'static [u8]>, &'static str, &'static str);
    let cases: [Case; 14] = [
        (Unbounded, Unbounded, "bbbdf", "fdbbb"),
        (Included(b"b"), Unbounded, "bbbdf", "fdbbb"),
        (Excluded(b"b"), Unbounded, "bbdf", "fdbb"),
        (Unbounded, Included(b"d"), "bbbd", "dbbb"),
        (Unbounded, Excluded(b"d"), "bbb", "bbb"),
        (Included(b"bb"), Included(b"d"), "bbd", "dbb"),
        (Excluded(b"bb"), Excluded(b"f"), "d", "d"),
        (Included(b"c"), Excluded(b"e"), "d", "d"),
        (Included(b"d"), Included(b"d"), "d", "d"),
        (Excluded(b"d"), Included(b"d"), "", ""),
        (Included(b"d"), Excluded(b"d"), "", ""),
        (Excluded(b"d"), Excluded(b"d"), "", ""),
        (Included(b"f"), Included(b"b"), "", ""),
        (Included(b""), Excluded(b""), "", ""),
    ];
    for (lower, upper, forward, backward) in cases {
        assert_eq!(keys(kv, lower, upper, false), forward, "{lower:?} to {upper:?}");
        assert_eq!(keys(kv, lower, upper, true), backward, "{upper:?} down to {lower:?}");
    }
    let first = |reverse, limit| kv.scan(Unbounded, Unbounded, reverse, limit).unwrap();
    assert_eq!(first(false, 1), [(b"b".to_vec(), b"b".to_vec())]);
    assert_eq!(first(true, 1), [(b"f".to_vec(), b"f".to_vec())]);
    assert!(first(false, 0).is_empty());
}

fn atomic_batches(kv: &impl Kv) {
    put(kv, "old", "1", Durability::Eventual);
    let mut batch = WriteBatch::default();
    batch.put("new", "2");
    batch.delete("old");
    batch.put("twice", "first");
    batch.put("twice", "second");
    kv.commit(batch, Durability::Sync).unwrap();
    assert_eq!(keys(kv, Bound::Unbounded, Bound::Unbounded, false), "newtwice");
    assert_eq!(kv.get(b"twice").unwrap().unwrap(), b"second");
}

fn snapshots(kv: &impl Kv) {
    put(kv, "a", "1", Durability::Eventual);
    put(kv, "b", "1", Durability::Eventual);
    let view = kv.snapshot().unwrap();
    let mut batch = WriteBatch::default();
    batch.put("a", "2");
    batch.delete("b");
    batch.put("c", "2");
    kv.commit(batch, Durability::Sync).unwrap();
    assert_eq!(view.get(b"a").unwrap().unwrap(), b"1");
    assert_eq!(view.get(b"c").unwrap(), None);
    assert_eq!(keys(view.as_ref(), Bound::Unbounded, Bound::Unbounded, false), "ab");
    assert_eq!(keys(view.as_ref(), Bound::Unbounded, Bound::Unbounded, true), "ba");
    drop(view);
    assert_eq!(keys(kv.snapshot().unwrap().as_ref(), Bound::Unbounded, Bound::Unbounded, false), "ac");
}

fn refused_keys(kv: &impl Kv) {
    for len in [0, KEY_MAX + 1] {
        let mut batch = WriteBatch::default();
        batch.put("fine", "1");
        batch.put(vec![b'k'; len], "1");
        assert!(matches!(kv.commit(batch, Durability::Eventual), Err(KvError::KeyLength(n)) if n == len));
        assert_eq!(kv.get(b"fine").unwrap(), None, "nothing of a refused batch");
    }
    let mut batch = WriteBatch::default();
    batch.put(vec![b'k'; KEY_MAX], "1");
    kv.commit(batch, Durability::Eventual).unwrap();
    assert!(kv.get(&[b'k'; KEY_MAX]).unwrap().is_some());
}

fn against_a_map(kv: &impl Kv, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let key = |rng: &mut StdRng| vec![rng.random_range(b'a'..b'e'); rng.random_range(1..4)];
    for _ in 0..200 {
        let mut batch = WriteBatch::default();
        for _ in 0..rng.random_range(0..4) {
            let key = key(&mut rng);
            if rng.random_bool(0.4) {
                batch.delete(key);
            } else {
                batch.put(key, rng.random::<[u8; 8]>());
            }
        }
        for (key, value) in &batch.0 {
            match value {
                Some(value) => model.insert(key.clone(), value.clone()),
                None => model.remove(key),
            };
        }
        kv.commit(batch, Durability::Eventual).unwrap();
        let bound = |rng: &mut StdRng| match rng.random_range(0..3) {
            0 => Bound::Unbounded,
            1 => Bound::Included(key(rng)),
            _ => Bound::Excluded(key(rng)),
        };
        let (lower, upper) = (bound(&mut rng), bound(&mut rng));
        let (lower, upper) = (lower.as_ref().map(Vec::as_slice), upper.as_ref().map(Vec::as_slice));
        let mut expected: Vec<_> = model
            .iter()
            .filter(|(key, _)| std::ops::RangeBounds::<[u8]>::contains(&(lower, upper), key.as_slice()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        assert_eq!(kv.scan(lower, upper, false, usize::MAX).unwrap(), expected, "seed {seed}");
        expected.reverse();
        expected.truncate(3);
        assert_eq!(kv.scan(lower, upper, true, 3).unwrap(), expected, "seed {seed}");
    }
}
