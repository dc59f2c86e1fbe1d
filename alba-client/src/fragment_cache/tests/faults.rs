//! A disk that hangs, fails, is slow, is full: it costs a deadline, and then nothing.

use alba_core::env::sim::Simulation;
use futures_util::future::join_all;

use super::super::{DiskStatistics, FragmentCache};
use super::*;

const LEN: usize = 100_000;

struct Fixture {
    simulation: Simulation,
    env: Env,
    tier: Arc<TestTier>,
    cache: Arc<LocalCache>,
}

impl Fixture {
    /// Memory too small for anything, over a tier that works.
    fn new() -> Self {
        let simulation = Simulation::new(11);
        let env = simulation.node(1).env();
        let tier = TestTier::new(&env);
        let cache = over(&env, tier.clone(), 1);
        Self { simulation, env, tier, cache }
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.simulation.run(Duration::from_secs(3600), work).unwrap()
    }

    async fn sleep(&self, time: Duration) {
        self.env.clock.sleep_until(self.env.clock.now().plus(time)).await;
    }

    fn disk(&self) -> DiskStatistics {
        self.cache.statistics().disk.unwrap()
    }

    async fn works(&self) {
        for _ in 0..200 {
            if self.disk().broken.is_none() {
                return;
            }
            self.sleep(Duration::from_secs(1)).await;
        }
        panic!("{:?}", self.disk());
    }

    async fn add(&self, key: &CacheKey) {
        self.cache.put(key, entry(key, LEN));
        until(&*self.env.clock, async || self.tier.has(key)).await;
    }

    /// Looks a key up; says whether it was there, and how long that took.
    async fn get(&self, key: &CacheKey) -> (bool, Duration) {
        let started = self.env.clock.now();
        let found = self.cache.get(key).await.is_some();
        (found, self.env.clock.now().since(started))
    }
}

#[test]
fn a_disk_that_hangs_costs_a_deadline_and_then_nothing_until_it_works_again() {
    let fixture = Fixture::new();
    fixture.run(async {
        fixture.works().await;
        let keys: Vec<CacheKey> = (0..100).map(|object| key(1, object)).collect();
        for key in &keys {
            fixture.add(key).await;
        }
        assert!(fixture.get(&keys[0]).await.0);
        fixture.tier.set(TierFaults { reads_hang: true, ..Default::default() });
        // A hundred readers at once, more than may be at work: all are served within the deadline.
        let got = join_all(keys.iter().map(|key| fixture.get(key))).await;
        assert!(got.iter().all(|(found, took)| !found && *took <= DEADLINE), "{got:?}");
        let disk = fixture.disk();
        assert!(disk.broken.unwrap().contains("read_deadline_ms"));
        let reads = fixture.tier.calls.lock().unwrap()[1];
        assert!(reads <= 40, "{reads} reads hang");
        // From now on it is left alone.
        for key in &keys {
            assert_eq!(fixture.get(key).await, (false, Duration::ZERO));
        }
        assert!(fixture.disk().bypassed >= 100);
        // An hour later still, with a probe now and then.
        fixture.sleep(Duration::from_secs(1800)).await;
        assert!(!fixture.cache.may_have(&keys[0]));
        let probes = fixture.tier.calls.lock().unwrap()[1] - reads;
        assert!((10..60).contains(&probes), "{probes} probes in half an hour");
        // Once it answers again it is used again, the same keys included.
        fixture.tier.set(TierFaults::default());
        fixture.works().await;
        for key in &keys {
            assert!(fixture.get(key).await.0, "{key:?}");
        }
    });
}

#[test]
fn one_entry_that_hangs_is_not_waited_for_again_and_again() {
    let fixture = Fixture::new();
    fixture.run(async {
        fixture.works().await;
        let one = key(1, 1);
        fixture.add(&one).await;
        fixture.tier.set(TierFaults { reads_hang: true, ..Default::default() });
        let mut waited = Duration::ZERO;
        for _ in 0..100 {
            waited += fixture.get(&one).await.1;
        }
        assert!(waited <= DEADLINE * 3, "{waited:?}");
    });
}

#[test]
fn a_disk_that_is_slow_or_fails_is_left_alone_too() {
    let faults = [
        TierFaults { read_delay: Duration::from_millis(50), ..Default::default() },
        TierFaults { reads_fail: true, ..Default::default() },
    ];
    for faults in faults {
        let fixture = Fixture::new();
        fixture.run(async {
            fixture.works().await;
            let keys: Vec<CacheKey> = (0..10).map(|object| key(1, object)).collect();
            for key in &keys {
                fixture.add(key).await;
            }
            fixture.tier.set(faults);
            for key in &keys {
                let (found, took) = fixture.get(key).await;
                assert!(!found && took <= DEADLINE);
            }
            let disk = fixture.disk();
            assert!(disk.broken.is_some() && disk.timeouts + disk.errors == 3, "{disk:?}");
            fixture.tier.set(TierFaults::default());
            fixture.works().await;
            assert!(fixture.get(&keys[9]).await.0);
        });
    }
}

#[test]
fn what_could_not_be_added_once_can_be_added_later() {
    let faults = [
        TierFaults { writes_fail: true, ..Default::default() },
        TierFaults { writes_hang: true, ..Default::default() },
    ];
    for faults in faults {
        let fixture = Fixture::new();
        fixture.run(async {
            fixture.works().await;
            let keys: Vec<CacheKey> = (0..8).map(|object| key(1, object)).collect();
            fixture.tier.set(faults.clone());
            for _ in 0..6 {
                for key in &keys {
                    let started = fixture.env.clock.now();
                    fixture.cache.put(key, entry(key, LEN));
                    assert_eq!(fixture.env.clock.now(), started, "adding never waits");
                    assert!(!fixture.get(key).await.0);
                }
                fixture.sleep(Duration::from_secs(6)).await;
            }
            assert!(fixture.disk().broken.is_some(), "{:?}", fixture.disk());
            fixture.tier.set(TierFaults::default());
            fixture.works().await;
            for key in &keys {
                fixture.add(key).await;
                assert!(fixture.get(key).await.0);
            }
        });
    }
}

#[test]
fn the_queue_and_the_rate_are_bounded_and_what_is_beyond_is_counted() {
    let fixture = Fixture::new();
    fixture.run(async {
        fixture.works().await;
        fixture.tier.set(TierFaults { writes_hang: true, ..Default::default() });
        for object in 0..40 {
            let key = key(1, object);
            fixture.cache.put(&key, entry(&key, 1 << 20));
        }
        // 16 MiB wait, and at most one batch of 4 MiB is being written.
        let dropped = fixture.disk().dropped_queue_full;
        assert!((20..=25).contains(&dropped), "{dropped}");
    });
    let simulation = Simulation::new(2);
    let env = simulation.node(1).env();
    let work = async {
        let disk = Guarded::start(TestTier::new(&env), &env, DEADLINE, 1 << 20);
        until(&*env.clock, async || disk.works()).await;
        let mut kept = 0;
        for object in 0..100 {
            let key = key(1, object);
            let slot = Slot { namespace: 1, generation: 0, address: key.address };
            disk.offer(slot, entry(&key, 100_000));
            until(&*env.clock, async || true).await;
            env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(10))).await;
            kept += usize::from(disk.may_have(&slot));
        }
        // A second's worth at once, and another in the second that this took.
        assert!((19..=22).contains(&kept), "{kept}");
        assert_eq!(disk.statistics().dropped_rate, 100 - u64::try_from(kept).unwrap());
    };
    simulation.run(Duration::from_secs(60), work).unwrap();
}

#[test]
fn a_disk_that_is_not_there_is_said_so_and_used_once_it_is() {
    let simulation = Simulation::new(4);
    let env = simulation.node(1).env();
    let tier = TestTier::new(&env);
    tier.set(TierFaults { opens_fail: true, ..Default::default() });
    let work = async {
        let cache = over(&env, tier.clone(), 16 << 20);
        let one = key(1, 1);
        // The memory serves meanwhile.
        cache.put(&one, entry(&one, LEN));
        assert!(cache.get(&one).await.is_some());
        until(&*env.clock, async || {
            cache.statistics().disk.unwrap().broken.is_some_and(|reason| reason.contains("no such disk"))
        })
        .await;
        tier.set(TierFaults::default());
        until(&*env.clock, async || cache.statistics().disk.unwrap().broken.is_none()).await;
        cache.put(&one, entry(&one, LEN));
        until(&*env.clock, async || tier.has(&one)).await;
    };
    simulation.run(Duration::from_secs(600), work).unwrap();
}

#[test]
fn concurrent_reads_of_one_entry_are_one_and_survive_those_who_give_up() {
    let fixture = Fixture::new();
    fixture.run(async {
        fixture.works().await;
        let one = key(1, 1);
        fixture.add(&one).await;
        fixture.tier.set(TierFaults { read_delay: Duration::from_millis(10), ..Default::default() });
        let before = fixture.tier.calls.lock().unwrap()[1];
        let first = Box::pin(fixture.cache.get(&one));
        let first = async {
            let sleep = Box::pin(fixture.sleep(Duration::from_millis(5)));
            drop(futures_util::future::select(first, sleep).await);
        };
        let others = join_all((0..20).map(|_| fixture.get(&one)));
        let (got, ()) = futures_util::future::join(others, first).await;
        assert!(got.iter().all(|(found, _)| *found), "{got:?}");
        assert_eq!(fixture.tier.calls.lock().unwrap()[1] - before, 1);
    });
}
