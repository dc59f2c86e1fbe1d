//! Reads and uploads with a fragment cache: what costs no OSD call, what is never stale, and what a bad cache may cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alba_core::encryption::{ClusterKey, FragmentKey};
use alba_core::env::files;
use alba_core::ids::NamespaceId;
use alba_core::preset::{Compression, FragmentEncryption, Preset};
use async_trait::async_trait;
use futures_util::future::{join, join_all, select};

use super::backend::{Fixture, preset};
use super::*;
use crate::fragment_cache::tests::{DEADLINE, TestTier, TierFaults, in_memory, over};
use crate::fragment_cache::{CacheKey, Entry, FragmentCache};
use crate::{ClientConfig, FragmentCacheConfig, FragmentCacheKind, FragmentCacheStatistics, Slice};

fn cached(change: impl FnOnce(&mut FragmentCacheConfig)) -> ClientConfig {
    let mut fragment_cache = FragmentCacheConfig { kind: FragmentCacheKind::Ram, ..Default::default() };
    change(&mut fragment_cache);
    ClientConfig { fragment_cache, ..ClientConfig::default() }
}

fn reads(fixture: &Fixture) -> usize {
    fixture.backend.all().iter().map(|osd| *osd.reads.lock().unwrap()).sum()
}

async fn slices(fixture: &Fixture, object: &str, asked: &[(i64, i32)]) -> Bytes {
    let asked = asked.iter().map(|(offset, length)| Slice { offset: *offset, length: *length }).collect();
    let requests = vec![(name(object), asked)];
    let read = fixture.client.read_slices(&ns(), requests, Consistency::Consistent, fixture.deadline()).await;
    read.unwrap().data.concat().into()
}

/// Until background work that has no handle is done: nothing of it takes simulated time.
async fn quiet(fixture: &Fixture) {
    let clock = fixture.node.env().clock;
    clock.sleep_until(clock.now().plus(Duration::from_secs(2))).await;
}

/// Presets of all kinds, with what they need.
fn kinds() -> Vec<(&'static str, [u32; 4], Preset, Option<tempfile::TempDir>)> {
    let mut kinds = Vec::new();
    for policy in [[2, 2, 4, 1], [1, 2, 3, 1], [3, 0, 3, 3]] {
        kinds.push(("plain", policy, preset(&[policy], 1024, Compression::None), None));
        kinds.push(("compressed", policy, preset(&[policy], 1024, Compression::Lz4), None));
        let dir = tempfile::tempdir().unwrap();
        let cluster = ClusterKey::new([6; 32]);
        let mut file = files::create_with_mode(&dir.path().join("key"), 0o600).unwrap();
        std::io::Write::write_all(&mut file, cluster.to_text().as_bytes()).unwrap();
        let fragment_encryption = FragmentEncryption::aes_256_ctr(&FragmentKey::new([5; 32]), &cluster);
        let sealed = Preset { fragment_encryption, ..preset(&[policy], 1024, Compression::None) };
        kinds.push(("encrypted", policy, sealed, Some(dir)));
    }
    kinds
}

fn fixture(
    policy: [u32; 4],
    preset: Preset,
    dir: Option<&tempfile::TempDir>,
    config: ClientConfig,
) -> Fixture {
    let cluster_key = dir.map(|dir| dir.path().join("key"));
    Fixture::with_config(policy[0] + policy[1], 9, preset, ClientConfig { cluster_key, ..config })
}

#[test]
fn a_second_read_makes_no_osd_call() {
    for (kind, policy, preset, dir) in kinds() {
        let fixture = fixture(policy, preset, dir.as_ref(), cached(|_| {}));
        let bytes = data(10_000);
        fixture.run(async {
            put(&fixture, "o", &bytes).await.unwrap();
            assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
            quiet(&fixture).await;
            let before = reads(&fixture);
            assert!(before > 0);
            assert_eq!(get(&fixture, "o").await.unwrap(), bytes, "{kind} {policy:?}");
            let expected = [&bytes[100..1300], &bytes[5000..9999]].concat();
            assert_eq!(slices(&fixture, "o", &[(100, 1200), (5000, 4999)]).await, expected);
            assert_eq!(reads(&fixture), before, "{kind} {policy:?}");
            // Even with all OSDs gone.
            fixture.backend.all().iter().for_each(|osd| osd.set(|faults| faults.dead = true));
            assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
        });
    }
}

#[test]
fn what_is_read_in_slices_repeatedly_is_cached_and_what_is_read_once_costs_no_more_than_without() {
    for (kind, policy, preset, dir) in kinds() {
        if kind == "compressed" {
            continue;
        }
        let fixture = fixture(policy, preset, dir.as_ref(), cached(|_| {}));
        let bytes = data(10_000);
        fixture.run(async {
            put(&fixture, "o", &bytes).await.unwrap();
            let before = reads(&fixture);
            let part = async |at: usize| {
                let read = slices(&fixture, "o", &[(i64::try_from(at).unwrap(), 100)]).await;
                assert_eq!(read, bytes[at..at + 100], "{kind} {policy:?}");
                quiet(&fixture).await;
                reads(&fixture) - before
            };
            assert_eq!(part(200).await, 1);
            // The second one, and the whole fragment.
            assert_eq!(part(400).await, 3);
            for at in [0, 200, 900] {
                assert_eq!(part(at).await, 3, "{kind} {policy:?}");
            }
            assert_eq!(fixture.client.fragment_cache_statistics().filled, 1);
        });
    }
}

#[test]
fn what_is_written_need_not_be_read_from_osds_if_so_configured() {
    for (kind, policy, preset, dir) in kinds() {
        let fixture = fixture(policy, preset, dir.as_ref(), cached(|c| c.cache_on_write = true));
        let bytes = data(10_000);
        fixture.run(async {
            put(&fixture, "o", &bytes).await.unwrap();
            quiet(&fixture).await;
            assert_eq!(get(&fixture, "o").await.unwrap(), bytes, "{kind} {policy:?}");
            assert_eq!(slices(&fixture, "o", &[(17, 5000)]).await, bytes[17..5017]);
            assert_eq!(reads(&fixture), 0, "{kind} {policy:?}");
        });
    }
    // And neither flag set: nothing is kept.
    let nothing = cached(|c| c.cache_on_read = false);
    let fixture = Fixture::with_config(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None), nothing);
    fixture.run(async {
        put(&fixture, "o", &data(5000)).await.unwrap();
        for _ in 0..3 {
            get(&fixture, "o").await.unwrap();
            slices(&fixture, "o", &[(0, 100)]).await;
        }
        quiet(&fixture).await;
        assert_eq!(fixture.client.fragment_cache_statistics().ram.bytes, 0);
    });
}

#[test]
fn an_object_that_was_overwritten_or_deleted_is_never_served_stale() {
    let config = cached(|c| c.cache_on_write = true);
    let fixture = Fixture::with_config(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None), config);
    fixture.run(async {
        for round in 0..10_u8 {
            let fresh = data(4000 + usize::from(round));
            let bytes: Bytes = fresh.iter().map(|byte| byte.wrapping_add(round)).collect();
            // By this process, and by another one.
            if round % 2 == 0 {
                put(&fixture, "o", &bytes).await.unwrap();
            } else {
                let mut source = BytesSource::new(bytes.clone());
                let other = fixture.second_client();
                let options = UploadOptions::default();
                other.upload(&ns(), &name("o"), &mut source, options, fixture.deadline()).await.unwrap();
            }
            for _ in 0..3 {
                assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
                assert_eq!(slices(&fixture, "o", &[(5, 3000)]).await, bytes[5..3005]);
                quiet(&fixture).await;
            }
        }
        fixture.client.delete_object(&ns(), &name("o"), true, fixture.deadline()).await.unwrap();
        assert!(matches!(get(&fixture, "o").await, Err(ClientError::ObjectUnknown(_))));
    });
}

#[test]
fn invalidating_a_namespace_drops_its_fragments() {
    let config = cached(|_| {});
    let fixture = Fixture::with_config(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None), config);
    fixture.run(async {
        put(&fixture, "o", &data(2000)).await.unwrap();
        get(&fixture, "o").await.unwrap();
        quiet(&fixture).await;
        let before = reads(&fixture);
        fixture.client.invalidate_cache(&ns(), fixture.deadline()).await.unwrap();
        get(&fixture, "o").await.unwrap();
        assert_eq!(reads(&fixture), before + 2);
        quiet(&fixture).await;
        get(&fixture, "o").await.unwrap();
        assert_eq!(reads(&fixture), before + 2);
    });
}

/// What goes wrong in a cache as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// No lookup ever ends.
    Hangs,
    /// One bit of all it gives is wrong.
    Lies,
    /// It gives the fragment that was added last, whatever is asked for.
    Confuses,
}

struct Bad {
    trouble: Trouble,
    good: Arc<dyn FragmentCache>,
    last: std::sync::Mutex<Option<Entry>>,
    removed: AtomicUsize,
}

#[async_trait]
impl FragmentCache for Bad {
    async fn get(&self, key: &CacheKey) -> Option<Entry> {
        match self.trouble {
            Trouble::Hangs => std::future::pending().await,
            Trouble::Lies => Some(self.good.get(key).await?.flipped(10)),
            Trouble::Confuses => self.last.lock().unwrap().clone(),
        }
    }

    fn may_have(&self, _: &CacheKey) -> bool {
        true
    }

    fn put(&self, key: &CacheKey, entry: Entry) {
        *self.last.lock().unwrap() = Some(entry.clone());
        self.good.put(key, entry);
    }

    fn remove(&self, key: &CacheKey) {
        self.removed.fetch_add(1, Ordering::Relaxed);
        *self.last.lock().unwrap() = None;
        self.good.remove(key);
    }

    fn drop_namespace(&self, namespace: NamespaceId) {
        self.good.drop_namespace(namespace);
    }

    fn statistics(&self) -> FragmentCacheStatistics {
        self.good.statistics()
    }
}

fn bad(trouble: Trouble) -> Arc<Bad> {
    let (last, removed) = (std::sync::Mutex::default(), AtomicUsize::new(0));
    Arc::new(Bad { trouble, good: in_memory(16 << 20), last, removed })
}

#[test]
fn a_cache_that_hangs_costs_at_most_its_deadline() {
    let fixture = Fixture::with_config(
        4,
        4,
        preset(&[[2, 2, 4, 1]], 1024, Compression::None),
        cached(|c| c.cache_on_write = true),
    );
    let fixture = fixture.with_cache(bad(Trouble::Hangs));
    let bytes = data(2000);
    fixture.run(async {
        let started = fixture.simulation.now();
        put(&fixture, "o", &bytes).await.unwrap();
        assert!(fixture.simulation.now().since(started) < Duration::from_millis(5), "uploads never wait");
        for _ in 0..10 {
            let started = fixture.simulation.now();
            assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
            assert_eq!(slices(&fixture, "o", &[(100, 1500)]).await, bytes[100..1600]);
            let took = fixture.simulation.now().since(started);
            // One deadline for each of the two.
            assert!(took <= DEADLINE * 2, "{took:?}");
        }
    });
}

#[test]
fn a_cache_that_lies_is_never_believed_and_is_told_to_forget() {
    for trouble in [Trouble::Lies, Trouble::Confuses] {
        for (kind, policy, preset, dir) in kinds() {
            let fixture = fixture(policy, preset, dir.as_ref(), cached(|_| {}));
            let cache = bad(trouble);
            let fixture = fixture.with_cache(cache.clone());
            fixture.run(async {
                let bytes = [data(10_000), data(7_777)];
                for round in 0..4 {
                    for (object, bytes) in ["a", "b"].into_iter().zip(&bytes) {
                        if round == 0 {
                            put(&fixture, object, bytes).await.unwrap();
                        }
                        let what = format!("{trouble:?} {kind} {policy:?}");
                        assert_eq!(get(&fixture, object).await.unwrap(), bytes, "{what}");
                        quiet(&fixture).await;
                        assert_eq!(slices(&fixture, object, &[(1, 3000)]).await, bytes[1..3001], "{what}");
                        quiet(&fixture).await;
                    }
                }
                let damaged = fixture.client.fragment_cache_statistics().damaged;
                assert!(damaged > 0);
                assert_eq!(u64::try_from(cache.removed.load(Ordering::Relaxed)).unwrap(), damaged);
                assert_eq!(fixture.client.statistics().fragments_damaged, 0, "no OSD is to blame");
            });
        }
    }
}

#[test]
fn a_disk_that_hangs_below_the_cache_costs_a_few_deadlines_and_then_nothing() {
    let fixture =
        Fixture::with_config(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None), cached(|_| {}));
    let env = fixture.node.env();
    let tier = TestTier::new(&env);
    let cache = fixture.run(async { over(&env, tier.clone(), 1) });
    let fixture = fixture.with_cache(cache);
    let bytes = data(2000);
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        get(&fixture, "o").await.unwrap();
        quiet(&fixture).await;
        let before = reads(&fixture);
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
        assert_eq!(reads(&fixture), before, "from the disk");
        tier.set(TierFaults { reads_hang: true, writes_hang: true, ..Default::default() });
        let mut waited = Duration::ZERO;
        for _ in 0..50 {
            let started = fixture.simulation.now();
            assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
            waited += fixture.simulation.now().since(started);
        }
        assert!(waited <= DEADLINE * 4, "{waited:?} in all");
        assert!(fixture.client.fragment_cache_statistics().disk.unwrap().broken.is_some());
    });
}

#[test]
fn concurrent_misses_are_one_fetch_and_a_cancelled_one_leaves_nothing_behind() {
    let fixture =
        Fixture::with_config(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None), cached(|_| {}));
    let bytes = data(2000);
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        for osd in fixture.backend.all() {
            // Too short for hedges.
            osd.set(|faults| faults.delay = Duration::from_millis(3));
        }
        let got = join_all((0..20).map(|_| get(&fixture, "o"))).await;
        assert!(got.into_iter().all(|got| got.unwrap() == bytes));
        assert_eq!(reads(&fixture), 2);
        assert_eq!(fixture.client.statistics().fragments_merged, 38);
        // The first of them goes away while it fetches.
        fixture.client.invalidate_cache(&ns(), fixture.deadline()).await.unwrap();
        let clock = fixture.node.env().clock;
        let first = async {
            let gone = Box::pin(clock.sleep_until(clock.now().plus(Duration::from_millis(1))));
            drop(select(Box::pin(get(&fixture, "o")), gone).await);
        };
        let (got, ()) = join(join_all((0..5).map(|_| get(&fixture, "o"))), first).await;
        assert!(got.into_iter().all(|got| got.unwrap() == bytes));
        assert_eq!(fixture.client.engine.fragments.under_way(), 0);
        // All fail at once, and nothing is marked for ever.
        fixture.client.invalidate_cache(&ns(), fixture.deadline()).await.unwrap();
        fixture.backend.all().iter().for_each(|osd| osd.set(|faults| faults.dead = true));
        let got = join_all((0..5).map(|_| get(&fixture, "o"))).await;
        assert!(got.iter().all(|got| matches!(got, Err(ClientError::NotEnoughFragments { .. }))));
        assert_eq!(fixture.client.engine.fragments.under_way(), 0);
        fixture.backend.all().iter().for_each(|osd| osd.set(|faults| faults.dead = false));
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
    });
}

#[test]
fn damage_on_an_osd_is_not_cached() {
    let fixture =
        Fixture::with_config(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None), cached(|_| {}));
    let bytes = data(2000);
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        for osd in fixture.backend.all() {
            osd.corrupt(|at| at.fragment.0 == 0);
        }
        for _ in 0..3 {
            assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
            quiet(&fixture).await;
        }
        assert_eq!(fixture.client.fragment_cache_statistics().damaged, 0);
        assert!(fixture.client.statistics().fragments_damaged >= 1);
    });
}
