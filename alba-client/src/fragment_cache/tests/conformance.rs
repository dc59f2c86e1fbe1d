//! What every cache must do.

use alba_core::env::sim::Simulation;
use alba_core::env::{Clock, real};
use futures_util::FutureExt;
use futures_util::future::join_all;

use super::super::ssd::Ssd;
use super::super::{FragmentCache, Nothing};
use super::*;

const LEN: usize = 50_000;

/// The entry, once it is there.
async fn found(cache: &dyn FragmentCache, clock: &dyn Clock, key: &CacheKey) {
    until(clock, async || {
        let Some(got) = cache.get(key).await else { return false };
        assert_eq!(got, entry(key, LEN));
        true
    })
    .await;
}

async fn conforms(cache: &dyn FragmentCache, clock: &dyn Clock) {
    let one = key(1, 1);
    // A miss, and then it can be added all the same.
    assert!(cache.get(&one).await.is_none() && !cache.may_have(&one));
    cache.put(&one, entry(&one, LEN));
    found(cache, clock, &one).await;
    assert!(cache.may_have(&one));
    // Every part of the key counts.
    let others = [
        key(2, 1),
        key(1, 2),
        CacheKey { address: FragmentAddress { chunk: ChunkIndex(1), ..one.address }, ..one },
        CacheKey { address: FragmentAddress { fragment: FragmentIndex(1), ..one.address }, ..one },
        CacheKey { address: FragmentAddress { version: ObjectVersion(1), ..one.address }, ..one },
    ];
    for other in &others {
        assert!(cache.get(other).await.is_none(), "{other:?}");
    }
    // Removed and added again, more than once; a lookup that is given up leaves nothing behind.
    for _ in 0..3 {
        // What was put before may still be on its way to the disk and arrive after the removal.
        until(clock, async || {
            cache.remove(&one);
            cache.get(&one).await.is_none()
        })
        .await;
        drop(cache.get(&one).now_or_never());
        cache.put(&one, entry(&one, LEN));
        drop(cache.get(&one).now_or_never());
        found(cache, clock, &one).await;
    }
    // Many at once.
    let got = join_all((0..50).map(|_| cache.get(&one))).await;
    assert!(got.into_iter().all(|got| got == Some(entry(&one, LEN))));
    // One that is too large is not kept, and does no harm.
    let large = key(1, 9);
    cache.put(&large, entry(&large, 6 << 20));
    assert!(cache.get(&large).await.is_none());
    found(cache, clock, &one).await;
    // Dropping a namespace is for good, and for it alone; it can be used again.
    let other = key(2, 1);
    cache.put(&other, entry(&other, LEN));
    found(cache, clock, &other).await;
    cache.drop_namespace(one.namespace);
    assert!(cache.get(&one).await.is_none() && !cache.may_have(&one));
    found(cache, clock, &other).await;
    cache.put(&one, entry(&one, LEN));
    found(cache, clock, &one).await;
    let statistics = cache.statistics();
    assert!(
        statistics.ram.hits >= 50 && statistics.ram.misses >= 6 && statistics.ram.bytes > 0,
        "{statistics:?}"
    );
}

#[test]
fn memory_conforms() {
    let simulation = Simulation::new(1);
    let env = simulation.node(1).env();
    simulation.run(Duration::from_secs(60), conforms(&*in_memory(16 << 20), &*env.clock)).unwrap();
}

#[test]
fn memory_over_a_disk_conforms_also_when_the_memory_is_too_small_for_anything() {
    let simulation = Simulation::new(1);
    let env = simulation.node(1).env();
    let work = async {
        for ram in [16 << 20, 1] {
            let tier = TestTier::new(&env);
            let cache = over(&env, tier.clone(), ram);
            until(&*env.clock, async || cache.statistics().disk.unwrap().broken.is_none()).await;
            if ram > 1 {
                conforms(&*cache, &*env.clock).await;
                continue;
            }
            // Everything comes from the disk.
            let one = key(1, 1);
            cache.put(&one, entry(&one, LEN));
            found(&*cache, &*env.clock, &one).await;
            assert_eq!(cache.statistics().ram.hits, 0);
            assert!(cache.statistics().disk.unwrap().tier.hits > 0);
            cache.drop_namespace(one.namespace);
            assert!(cache.get(&one).await.is_none());
        }
    };
    simulation.run(Duration::from_secs(60), work).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_over_foyer_conforms() {
    let env = real::env();
    let dir = tempfile::tempdir().unwrap();
    let ssd =
        Ssd::new(dir.path().join("cache"), 32 << 20, Arc::new(Generations::new()), Arc::new(Sketch::new()));
    // A real clock, and a machine that may be busy.
    let cache = with_deadline(&env, Arc::new(ssd), 16 << 20, Duration::from_secs(10));
    until(&*env.clock, async || cache.statistics().disk.unwrap().broken.is_none()).await;
    conforms(&*cache, &*env.clock).await;
}

#[test]
fn no_cache_has_nothing() {
    let simulation = Simulation::new(1);
    let work = async {
        let one = key(1, 1);
        Nothing.put(&one, entry(&one, LEN));
        assert!(Nothing.get(&one).await.is_none() && !Nothing.may_have(&one));
        Nothing.remove(&one);
        Nothing.drop_namespace(one.namespace);
        assert_eq!(Nothing.statistics(), Default::default());
    };
    simulation.run(Duration::from_secs(1), work).unwrap();
}
