//! Caches against the simplest model: what may be there, and how much.

use std::collections::BTreeSet;

use alba_core::env::sim::Simulation;
use proptest::prelude::*;

use super::super::FragmentCache;
use super::*;

#[derive(Debug, Clone)]
enum Op {
    Put(u32, u8, usize),
    Get(u32, u8),
    Remove(u32, u8),
    Drop(u32),
    Lie(bool),
    Wait,
}

fn op() -> impl Strategy<Value = Op> {
    let (ns, object) = (0_u32..3, 0_u8..6);
    prop_oneof![
        4 => (ns.clone(), object.clone(), 1_usize..60_000).prop_map(|(ns, o, len)| Op::Put(ns, o, len)),
        6 => (ns.clone(), object.clone()).prop_map(|(ns, o)| Op::Get(ns, o)),
        1 => (ns.clone(), object).prop_map(|(ns, o)| Op::Remove(ns, o)),
        1 => ns.prop_map(Op::Drop),
        1 => any::<bool>().prop_map(Op::Lie),
        2 => Just(Op::Wait),
    ]
}

const RAM: u64 = 1 << 20;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn never_wrong_bytes_never_what_was_dropped_never_too_much(
        ops in prop::collection::vec(op(), 1..120), disk in any::<bool>(), seed in any::<u64>(),
    ) {
        let simulation = Simulation::new(seed);
        let env = simulation.node(1).env();
        let tier = TestTier::new(&env);
        let work = async {
            let cache = if disk { over(&env, tier.clone(), RAM) } else { in_memory(RAM) };
            // The length that a key has, once it has one: fragments never change.
            let mut lengths = BTreeMap::new();
            let mut may_be_there = BTreeSet::new();
            let mut lies = false;
            for op in ops {
                match op {
                    Op::Put(ns, object, len) => {
                        let key = key(ns, object);
                        let len = *lengths.entry(key).or_insert(len);
                        cache.put(&key, entry(&key, len));
                        may_be_there.insert(key);
                    }
                    Op::Get(ns, object) => {
                        let key = key(ns, object);
                        let Some(got) = cache.get(&key).await else { continue };
                        assert!(may_be_there.contains(&key), "{key:?} was forgotten");
                        let len = lengths[&key];
                        let packed_len = u32::try_from(len).unwrap();
                        match got.range(&key, packed_len, 0, packed_len) {
                            Ok(bytes) => assert_eq!(bytes, content(&key, len)),
                            Err(_) => {
                                assert!(disk, "memory does not lie");
                                cache.remove(&key);
                                may_be_there.remove(&key);
                            }
                        }
                    }
                    Op::Remove(ns, object) => {
                        let key = key(ns, object);
                        cache.remove(&key);
                        // What is still in the queue to the disk may come back: it is what it should be.
                        if !disk {
                            may_be_there.remove(&key);
                        }
                    }
                    Op::Drop(ns) => {
                        cache.drop_namespace(NamespaceId::from_u32(ns));
                        may_be_there.retain(|key: &CacheKey| key.namespace.get() != u64::from(ns));
                    }
                    Op::Lie(now) => {
                        lies = now;
                        tier.set(TierFaults { reads_lie: lies, ..Default::default() });
                    }
                    Op::Wait => env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(50))).await,
                }
                let used = cache.statistics().ram.bytes;
                assert!(used <= RAM, "{used} bytes are used");
            }
            let _ = lies;
        };
        simulation.run(Duration::from_secs(600), work).unwrap();
    }
}

#[test]
fn a_scan_of_cold_fragments_washes_out_neither_memory_nor_disk() {
    let simulation = Simulation::new(5);
    let env = simulation.node(1).env();
    // A disk that is full: what is written evicts something.
    let tier = TestTier::with_room(&env, false);
    let work = async {
        let cache = over(&env, tier.clone(), 4 << 20);
        until(&*env.clock, async || cache.statistics().disk.unwrap().broken.is_none()).await;
        let hot: Vec<CacheKey> = (0..16).map(|object| key(1, object)).collect();
        for _ in 0..6 {
            for key in &hot {
                if cache.get(key).await.is_none() {
                    cache.put(key, entry(key, 64 << 10));
                }
            }
        }
        until(&*env.clock, async || hot.iter().all(|key| tier.has(key))).await;
        // Ten times the memory, each once.
        let cold: Vec<CacheKey> =
            (10..15).flat_map(|ns| (0..128).map(move |object| key(ns, object))).collect();
        for key in &cold {
            assert!(cache.get(key).await.is_none());
            cache.put(key, entry(key, 64 << 10));
        }
        env.clock.sleep_until(env.clock.now().plus(Duration::from_secs(5))).await;
        let before = cache.statistics().ram.hits;
        for key in &hot {
            assert!(cache.get(key).await.is_some());
        }
        let from_memory = cache.statistics().ram.hits - before;
        assert!(from_memory >= 12, "only {from_memory} of 16 hot fragments stayed in memory");
        let written = cold.iter().filter(|key| tier.has(key)).count();
        assert!(written <= 6, "{written} of {} cold fragments were written to the disk", cold.len());
        assert!(cache.statistics().disk.unwrap().not_admitted >= 600);
    };
    simulation.run(Duration::from_secs(600), work).unwrap();
}
